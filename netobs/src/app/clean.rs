//! `netobs clean`.

use std::{io::Write as _, path::Path};

use super::output;
use crate::{
    bpf::{
        filters::{self, Unpinned},
        pins::{Found, PinFolder},
    },
    error::{Cause, Failure},
    world::{
        gather::{Depth, Machine},
        netlink::Netlink,
        netns, privilege,
        rcu::Expedited,
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
    let found = PinFolder::find(pin_path)?;
    let unpinned = Unpinned {
        maps: match &found {
            Found::Left(folder) => folder.maps()?,
            Found::Nothing | Found::InUse => Vec::new(),
        },
        ..Unpinned::default()
    };
    let mut machine = Machine::open()?;
    machine.look(Depth::Periodic).await?;
    let facts = machine.facts();
    let mut removed = 0;
    let mut kept = 0;
    let mut out = std::io::stdout().lock();
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
    let left = filters::remove_ours(machine.netlink(), links, &unpinned).await?;
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
        let left = filters::remove_ours(&netlink, links, &unpinned).await?;
        output::finish(tell(&format!("{}", ns.key()), left))?;
    }
    if Expedited::repair() {
        removed += 1;
        output::finish(writeln!(out, "put /sys/kernel/rcu_expedited back"))?;
    }
    // Last: by its maps the filters are known.
    let path = crate::render::text::harmless(&pin_path.to_string_lossy());
    match found {
        Found::Nothing => {}
        Found::InUse => {
            eprintln!("netobs: the pins in {path} belong to a netobs that is running and stay");
        }
        Found::Left(folder) => {
            let _expedited = Expedited::begin();
            folder.remove()?;
            removed += 1;
            output::finish(writeln!(out, "removed the pins in {path}"))?;
        }
    }
    if kept > 0 {
        eprintln!(
            "netobs: {kept} filters belong to a netobs that is running, or to pins elsewhere, and stay"
        );
    }
    if removed == 0 {
        eprintln!("netobs: nothing was left behind");
    }
    Ok(())
}
