//! Hangs the programs on an interface and takes them off again.
//!
//! Every function here works in the namespace of the calling thread: aya
//! resolves interface names there, and so does the kernel for netlink filters.

use anyhow::Context as _;
use aya::programs::{
    LinkOrder, ProgramError, TcAttachType,
    tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle},
};
use netobs_common::names;
use nix::{libc::EEXIST, net::if_::if_nametoindex};

use super::object::Programs;
use crate::{config::TcMode, model::sample::Hook, world::limits};

/// Priority of our clsact filters: ahead of all that leave the choice to the
/// kernel (49152 downwards) and of most that do not.
pub const PRIORITY: u16 = 1;
/// Major part of the handle of our clsact filters: "no".
pub const HANDLE_MAJOR: u16 = 0x6e6f;

/// Our programs on one interface. Dropping it takes them off, for clsact in
/// the namespace of the dropping thread.
#[derive(Debug)]
pub struct Attached {
    /// How they hang.
    pub hook: Hook,
    links: Vec<SchedClassifierLink>,
}

impl Attached {
    /// Nothing hangs.
    #[must_use]
    pub fn none() -> Self {
        Self {
            hook: Hook::None,
            links: Vec::new(),
        }
    }

    /// Lets go without taking anything off: for an interface that is gone
    /// with its namespace, whose index may be another's by now.
    pub fn forget(self) {
        if self.hook == Hook::Clsact {
            self.links.into_iter().for_each(std::mem::forget);
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
    let attached = by_mode(programs, interface, mode, made_qdisc)?;
    // aya goes by the name, which may have become another's in between.
    is_still(interface, ifindex)?;
    Ok(attached)
}

fn is_still(interface: &str, ifindex: u32) -> anyhow::Result<()> {
    let now = if_nametoindex(interface)?;
    anyhow::ensure!(now == ifindex, "{interface} is another interface by now");
    Ok(())
}

fn by_mode(
    programs: &mut Programs,
    interface: &str,
    mode: TcMode,
    made_qdisc: &mut bool,
) -> anyhow::Result<Attached> {
    let tcx = match mode {
        TcMode::Clsact => None,
        TcMode::Tcx | TcMode::Auto => Some(both(programs, interface, Hook::Tcx)),
    };
    match (tcx, mode) {
        (Some(Ok(links)), _) => Ok(Attached {
            hook: Hook::Tcx,
            links,
        }),
        (Some(Err(error)), TcMode::Tcx) => {
            Err(error.context("attach by TCX (since Linux 6.6; --tc-mode clsact works before)"))
        }
        (tcx, _) => {
            *made_qdisc |= add_clsact(interface)?;
            match both(programs, interface, Hook::Clsact) {
                Ok(links) => Ok(Attached {
                    hook: Hook::Clsact,
                    links,
                }),
                Err(error) => Err(match tcx {
                    Some(Err(tcx)) => {
                        error.context(format!("attach by clsact, after TCX failed ({tcx:#})"))
                    }
                    _ => error.context("attach by clsact"),
                }),
            }
        }
    }
}

fn both(
    programs: &mut Programs,
    interface: &str,
    hook: Hook,
) -> anyhow::Result<Vec<SchedClassifierLink>> {
    [
        (names::PROG_INGRESS, TcAttachType::Ingress),
        (names::PROG_EGRESS, TcAttachType::Egress),
    ]
    .into_iter()
    .map(|(name, direction)| {
        let options = match hook {
            Hook::Tcx => TcAttachOptions::TcxOrder(LinkOrder::first()),
            Hook::Clsact | Hook::None => TcAttachOptions::Netlink(NlOptions {
                priority: PRIORITY,
                handle: own_handle(),
                classid: None,
            }),
        };
        let program = programs.classifier(name)?;
        let id = program
            .attach_with_options(interface, direction, options)
            .map_err(explain)?;
        Ok(program.take_link(id)?)
    })
    .collect()
}

/// The handle of a filter says whose it is: "no" and the low half of the
/// process id. `clean` takes it together with the filter's name.
fn own_handle() -> TcHandle {
    // 0 would let the kernel choose.
    TcHandle::new(HANDLE_MAJOR, (std::process::id() as u16).max(1))
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
