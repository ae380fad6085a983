//! Hangs the programs on an interface and takes them off again.
//!
//! Every function here works in the namespace of the calling thread: aya
//! resolves interface names there, and so does the kernel for netlink filters.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use aya::programs::{
    LinkOrder, ProgramError, TcAttachType,
    links::{FdLink, PinnedLink},
    tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle},
};
use log::debug;
use netobs_common::names;
use nix::{
    libc::EEXIST,
    net::if_::{if_indextoname, if_nametoindex},
};

use super::{chain, object::Programs, pins, raw_links};
use crate::{config::TcMode, model::sample::Hook, world::limits};

/// Priority of our clsact filters: ahead of all that leave the choice to the
/// kernel (49152 downwards) and of most that do not.
pub const PRIORITY: u16 = 1;
/// Major part of the handle of our clsact filters: "no".
pub const HANDLE_MAJOR: u16 = 0x6e6f;
/// The same for filters that are to outlive us (`--pin`): "np".
pub const HANDLE_MAJOR_PINNED: u16 = 0x6e70;

/// What the two hooks of an interface are called.
pub(super) const HOOKS: [&str; 2] = ["ingress", "egress"];
const DIRECTIONS: [(&str, TcAttachType, &str); 2] = [
    (names::PROG_INGRESS, TcAttachType::Ingress, HOOKS[0]),
    (names::PROG_EGRESS, TcAttachType::Egress, HOOKS[1]),
];

/// Our programs on one interface. Dropping it takes them off, for clsact in
/// the namespace of the dropping thread, unless they are pinned.
#[derive(Debug)]
pub struct Attached {
    /// How they hang.
    pub hook: Hook,
    /// Handle of the clsact filters, 0 for none.
    pub handle: u32,
    links: Vec<Hanging>,
}

#[derive(Debug)]
enum Hanging {
    Ours(SchedClassifierLink),
    Pinned(PinnedLink, PathBuf),
}

impl Attached {
    /// Nothing hangs.
    #[must_use]
    pub fn none() -> Self {
        Self {
            hook: Hook::None,
            handle: 0,
            links: Vec::new(),
        }
    }

    /// Takes the programs off, and their pins away.
    pub fn take_off(self) {
        for link in self.links {
            match link {
                Hanging::Ours(link) => drop(link),
                Hanging::Pinned(link, path) => {
                    drop(link);
                    unpin(&path);
                }
            }
        }
    }

    /// Lets go without taking anything off: for an interface that is gone
    /// with its namespace, whose index may be another's by now.
    pub fn forget(self) {
        if self.hook == Hook::Clsact {
            self.leave();
        } else {
            self.take_off();
        }
    }

    /// Lets go of programs that are to go on counting.
    pub fn leave(self) {
        for link in self.links {
            match link {
                Hanging::Ours(link) => std::mem::forget(link),
                Hanging::Pinned(link, _) => drop(link),
            }
        }
    }
}

/// Attaches both programs to `interface`, which has the index `ifindex`: first
/// in the TCX chain, or by clsact where there is no TCX or the user asks for it.
/// `made_qdisc` becomes true where that took a clsact qdisc of our own, also
/// when attaching fails after that.
///
/// # Errors
/// With the reasons of all that was tried; no program stays attached then.
pub fn attach(
    programs: &mut Programs,
    interface: &str,
    ifindex: u32,
    mode: TcMode,
    made_qdisc: &mut bool,
) -> anyhow::Result<Attached> {
    is_still(interface, ifindex)?;
    limits::room(2)?;
    let attached = by_mode(programs, interface, ifindex, mode, made_qdisc)?;
    // aya goes by the name, which may have become another's in between.
    match is_still(interface, ifindex) {
        Ok(()) => Ok(attached),
        Err(error) => {
            attached.take_off();
            Err(error)
        }
    }
}

fn is_still(interface: &str, ifindex: u32) -> anyhow::Result<()> {
    let now = if_nametoindex(interface)?;
    anyhow::ensure!(now == ifindex, "{interface} is another interface by now");
    Ok(())
}

fn by_mode(
    programs: &mut Programs,
    interface: &str,
    ifindex: u32,
    mode: TcMode,
    made_qdisc: &mut bool,
) -> anyhow::Result<Attached> {
    let tcx = match mode {
        TcMode::Clsact => None,
        TcMode::Tcx | TcMode::Auto => Some(both(programs, interface, ifindex, Hook::Tcx)),
    };
    match (tcx, mode) {
        (Some(Ok(attached)), _) => Ok(attached),
        (Some(Err(error)), TcMode::Tcx) => {
            Err(error.context("attach by TCX (since Linux 6.6; --tc-mode clsact works before)"))
        }
        (tcx, _) => {
            *made_qdisc |= add_clsact(interface)?;
            both(programs, interface, ifindex, Hook::Clsact).map_err(|error| match tcx {
                Some(Err(tcx)) => {
                    error.context(format!("attach by clsact, after TCX failed ({tcx:#})"))
                }
                _ => error.context("attach by clsact"),
            })
        }
    }
}

fn both(
    programs: &mut Programs,
    interface: &str,
    ifindex: u32,
    hook: Hook,
) -> anyhow::Result<Attached> {
    let handle = own_handle(programs.part().is_some());
    let mut attached = Attached {
        hook,
        handle: match hook {
            Hook::Clsact => handle.into(),
            Hook::Tcx | Hook::None => 0,
        },
        links: Vec::new(),
    };
    if hook == Hook::Tcx {
        // Else both would count for a moment.
        discard(programs, ifindex);
    }
    for (name, direction, on) in DIRECTIONS {
        let options = match hook {
            Hook::Clsact => TcAttachOptions::Netlink(NlOptions {
                priority: PRIORITY,
                handle,
                classid: None,
            }),
            Hook::Tcx | Hook::None => TcAttachOptions::TcxOrder(LinkOrder::first()),
        };
        let program = programs.classifier(name)?;
        let hung = program
            .attach_with_options(interface, direction, options)
            .map_err(explain)
            .and_then(|id| Ok(program.take_link(id)?))
            .and_then(|link| pinned(programs, link, hook, ifindex, on));
        match hung {
            Ok(link) => attached.links.push(link),
            Err(error) => {
                attached.take_off();
                return Err(error);
            }
        }
    }
    Ok(attached)
}

/// Pins `link` where that is asked for; filters need no pin to stay.
fn pinned(
    programs: &Programs,
    link: SchedClassifierLink,
    hook: Hook,
    ifindex: u32,
    on: &str,
) -> anyhow::Result<Hanging> {
    let Some(part) = programs.part().filter(|_| hook == Hook::Tcx) else {
        return Ok(Hanging::Ours(link));
    };
    let path = part.interface_link(ifindex, on);
    let link = FdLink::try_from(link)?;
    let link = link
        .pin(&path)
        .with_context(|| format!("pin a link as {}", path.display()))?;
    Ok(Hanging::Pinned(link, path))
}

/// Goes on with what an earlier netobs has left on `interface`, with the programs
/// of this one: swapped in place, so that no packet passes between. `handle` is that
/// of the filters, 0 for TCX.
///
/// # Errors
/// Where not both programs hang there; those that do are off then.
pub fn adopt(
    programs: &mut Programs,
    interface: &str,
    ifindex: u32,
    handle: u32,
) -> anyhow::Result<Attached> {
    is_still(interface, ifindex)?;
    let mut attached = Attached {
        hook: if handle == 0 { Hook::Tcx } else { Hook::Clsact },
        handle,
        links: Vec::new(),
    };
    for (name, direction, on) in DIRECTIONS {
        match swapped(programs, interface, ifindex, handle, (name, direction, on)) {
            Ok(link) => attached.links.push(link),
            Err(error) => {
                attached.take_off();
                discard(programs, ifindex);
                return Err(error);
            }
        }
    }
    let ids = programs.ids()?;
    let hangs = handle != 0 || chain::has(ifindex, ids).unwrap_or(false);
    if !hangs || is_still(interface, ifindex).is_err() {
        attached.take_off();
        anyhow::bail!("the programs hang on another interface by now");
    }
    Ok(attached)
}

fn swapped(
    programs: &mut Programs,
    interface: &str,
    ifindex: u32,
    handle: u32,
    (name, direction, on): (&str, TcAttachType, &str),
) -> anyhow::Result<Hanging> {
    if handle != 0 {
        let handle = TcHandle::from(handle);
        let link = SchedClassifierLink::attached(interface, direction, PRIORITY, handle, None)?;
        let program = programs.classifier(name)?;
        let id = program.attach_to_link(link).map_err(explain)?;
        return Ok(Hanging::Ours(program.take_link(id)?));
    }
    let part = programs.part().context("nothing is pinned")?;
    let path = part.interface_link(ifindex, on);
    let link = FdLink::from(PinnedLink::from_pin(&path)?);
    let program = programs.classifier(name)?;
    let id = program.attach_to_link(link.try_into()?).map_err(explain)?;
    drop(program.take_link(id)?);
    Ok(Hanging::Pinned(PinnedLink::from_pin(&path)?, path))
}

/// Removes the pins of links on `ifindex`, wherever they hang by now.
pub fn discard(programs: &Programs, ifindex: u32) {
    let Some(part) = programs.part() else { return };
    for on in HOOKS {
        unpin(&part.interface_link(ifindex, on));
    }
}

/// Takes a pinned link off, if it is there, and its pin away.
fn unpin(path: &Path) {
    if let Err(error) = raw_links::detach(path) {
        debug!("{}: {error}", path.display());
    }
    if let Err(error) = pins::remove_file(path) {
        debug!("{error:#}");
    }
}

/// Removes the filters with `handle` from `ifindex`, if there are any.
pub fn remove_filters(ifindex: u32, handle: u32) {
    let name = if_indextoname(ifindex).ok();
    let Some(name) = name.as_ref().and_then(|name| name.to_str().ok()) else {
        return;
    };
    for (_, direction, _) in DIRECTIONS.iter().filter(|_| handle != 0) {
        let handle = TcHandle::from(handle);
        // Going out of scope takes it off.
        let _off = SchedClassifierLink::attached(name, *direction, PRIORITY, handle, None);
    }
}

/// The handle of a filter says whose it is: "no" or "np" and the low half of the
/// process id. `clean` takes it together with the filter's name.
fn own_handle(pinned: bool) -> TcHandle {
    let major = if pinned {
        HANDLE_MAJOR_PINNED
    } else {
        HANDLE_MAJOR
    };
    // 0 would let the kernel choose.
    TcHandle::new(major, (std::process::id() as u16).max(1))
}

/// `true` where the qdisc is new.
fn add_clsact(interface: &str) -> anyhow::Result<bool> {
    match tc::qdisc_add_clsact(interface) {
        Ok(()) => Ok(true),
        Err(TcError::AlreadyAttached) => Ok(false),
        // What the kernel says of a qdisc that is there.
        Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(EEXIST) => Ok(false),
        Err(error) => Err(error).context("add a clsact qdisc"),
    }
}

fn explain(error: ProgramError) -> anyhow::Error {
    let error = anyhow::Error::new(error);
    // aya's outer message is the name of a system call; the cause says more.
    let root = limits::told(error.root_cause());
    error.context(root)
}
