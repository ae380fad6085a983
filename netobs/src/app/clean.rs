//! `netobs clean`.

use std::{io::Write as _, path::Path};

use super::output;
use crate::{
    bpf::{
        filters,
        pins::{Found, PinFolder},
    },
    error::{Cause, Failure},
    world::{
        gather::{Depth, Machine},
        netlink::Netlink,
        netns, privilege,
    },
};

pub(super) async fn run(pin_path: &Path) -> Result<(), Failure> {
    if !privilege::has(caps::Capability::CAP_NET_ADMIN) {
        return Err(Failure::words(
            Cause::NotPermitted,
            format!(
                "missing CAP_NET_ADMIN (to remove filters); {}",
                privilege::HOW
            ),
        ));
    }
    let pins = remove_pins(pin_path)?;
    let mut machine = Machine::open()?;
    let facts = machine.look(Depth::Periodic).await?;
    let mut removed = usize::from(pins.removed);
    let mut kept = 0;
    let mut out = std::io::stdout().lock();
    if pins.removed {
        let path = crate::render::text::harmless(&pin_path.to_string_lossy());
        output::finish(writeln!(out, "removed the pins in {path}"))?;
    }
    let mut tell = |place: &str, left: filters::Left| {
        removed += left.removed.len();
        kept += left.alive;
        left.removed.iter().try_for_each(|filter| {
            writeln!(
                out,
                "removed {} ({place})",
                crate::render::text::harmless(filter)
            )
        })
    };
    let links = facts
        .host
        .links
        .iter()
        .map(|l| (l.ifindex, l.name.as_str()));
    let left = filters::remove_ours(machine.netlink(), links, &pins.programs).await?;
    output::finish(tell("host", left))?;
    for ns in &facts.namespaces {
        let Ok(links) = &ns.links else { continue };
        let Some(path) = machine.path_of(ns.key()) else {
            continue;
        };
        // It may have ended since.
        let Ok(file) = netns::open(&path) else {
            continue;
        };
        let Ok((netlink, _)) = Netlink::open_in(&file) else {
            continue;
        };
        let links = links.iter().map(|l| (l.ifindex, l.name.as_str()));
        let left = filters::remove_ours(&netlink, links, &pins.programs).await?;
        output::finish(tell(&format!("{}", ns.key()), left))?;
    }
    if kept > 0 {
        eprintln!("netobs: {kept} filters belong to a netobs that is running and stay");
    }
    if pins.in_use {
        let path = crate::render::text::harmless(&pin_path.to_string_lossy());
        eprintln!("netobs: the pins in {path} belong to a netobs that is running and stay");
    }
    if removed == 0 {
        eprintln!("netobs: nothing was left behind");
    }
    Ok(())
}

/// What became of pins.
#[derive(Default)]
struct Pins {
    removed: bool,
    in_use: bool,
    /// The classifiers that were among them.
    programs: Vec<u32>,
}

/// Removes the pins, if there are any and nobody uses them.
fn remove_pins(path: &Path) -> anyhow::Result<Pins> {
    match PinFolder::find(path)? {
        Found::Nothing => Ok(Pins::default()),
        Found::InUse => Ok(Pins {
            in_use: true,
            ..Pins::default()
        }),
        Found::Left(folder) => {
            let programs = folder.classifiers()?;
            folder.remove()?;
            Ok(Pins {
                removed: true,
                in_use: false,
                programs,
            })
        }
    }
}
