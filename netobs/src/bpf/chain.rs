//! Who hangs on an interface.

use std::{fs::File, io};

use anyhow::Context as _;
use aya::programs::{ProgramInfo, SchedClassifier, TcAttachType, loaded_programs};
use netobs_common::names;

use super::{filters, raw_links};
use crate::{
    model::{
        neighbours::{Neighbours, Program, Via},
        sample::NsKey,
    },
    world::{gather::Machine, netlink::Netlink, netns},
};

/// A way into a namespace that is not ours. To be kept for a visit only: it keeps
/// the namespace alive.
pub struct Inside {
    file: File,
    netlink: Netlink,
}

impl Inside {
    /// The way into `scope`; `None` where that is our own.
    ///
    /// # Errors
    /// Where the namespace has ended or cannot be entered.
    pub fn of(machine: &Machine, scope: NsKey) -> anyhow::Result<Option<Self>> {
        if scope == machine.host_key() {
            return Ok(None);
        }
        let path = machine.path_of(scope).context("the namespace has ended")?;
        let file = netns::open(&path)?;
        let (netlink, cookie) = Netlink::open_in(&file)?;
        let same = scope.cookie().is_none_or(|own| cookie == Some(own));
        anyhow::ensure!(same, "the namespace has ended");
        Ok(Some(Self { file, netlink }))
    }
}

/// An interface to look at.
#[derive(Clone, Copy)]
pub struct Spot<'a> {
    /// A route socket in its namespace.
    pub netlink: &'a Netlink,
    /// Its name.
    pub name: &'a str,
    /// Its index.
    pub ifindex: u32,
    namespace: Option<&'a File>,
}

impl<'a> Spot<'a> {
    /// An interface of the namespace that `inside` leads to, or of our own.
    #[must_use]
    pub fn new(
        machine: &'a Machine,
        inside: Option<&'a Inside>,
        name: &'a str,
        ifindex: u32,
    ) -> Self {
        Self {
            netlink: inside.map_or_else(|| machine.netlink(), |inside| &inside.netlink),
            name,
            ifindex,
            namespace: inside.map(|inside| &inside.file),
        }
    }

    /// Runs `work` on a thread that is in the interface's namespace.
    ///
    /// # Errors
    /// Where that cannot be entered.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        match self.namespace {
            Some(file) => netns::within(file, work),
            None => Ok(work()),
        }
    }
}

/// Everybody on an interface. A kernel without TCX, and an interface without a
/// qdisc, have nobody there.
///
/// # Errors
/// Where the interface is gone or its namespace cannot be entered.
pub async fn look(spot: Spot<'_>) -> anyhow::Result<Neighbours> {
    let xdp = spot.netlink.xdp(spot.ifindex).await?;
    let mut ingress: Vec<Program> = xdp
        .into_iter()
        .map(|(mode, id)| Program {
            via: Via::Xdp(mode),
            name: name_of(id),
            id: Some(id),
            ours: false,
        })
        .collect();
    ingress.sort_by_key(|program| program.via);
    let mut egress = Vec::new();
    let [tcx_ingress, tcx_egress] =
        spot.within(|| [tcx(spot.name, true), tcx(spot.name, false)])?;
    for (into, tcx, is_ingress) in [
        (&mut ingress, tcx_ingress, true),
        (&mut egress, tcx_egress, false),
    ] {
        into.extend(tcx.unwrap_or_default());
        let filters = filters::on(spot.netlink, spot.ifindex, is_ingress).await;
        into.extend(
            filters
                .unwrap_or_default()
                .iter()
                .map(filters::Filter::told),
        );
    }
    Ok(Neighbours { ingress, egress })
}

fn tcx(interface: &str, ingress: bool) -> anyhow::Result<Vec<Program>> {
    let direction = if ingress {
        TcAttachType::Ingress
    } else {
        TcAttachType::Egress
    };
    let (_revision, programs) = SchedClassifier::query_tcx(interface, direction)?;
    let told = |info: &ProgramInfo| {
        let name = name(info);
        Program {
            via: Via::Tcx,
            ours: name == names::PROG_INGRESS || name == names::PROG_EGRESS,
            name,
            id: Some(info.id()),
        }
    };
    Ok(programs.iter().map(told).collect())
}

fn name(info: &ProgramInfo) -> String {
    String::from_utf8_lossy(info.name()).into_owned()
}

/// The kernel tells of an XDP program by its id only.
fn name_of(id: u32) -> String {
    loaded_programs()
        .filter_map(Result::ok)
        .find(|info| info.id() == id)
        .map_or_else(|| "?".to_owned(), |info| name(&info))
}

/// Whether the programs with these ids hang on the ingress and the egress hook of
/// an interface of this thread's namespace.
///
/// # Errors
/// Where the kernel knows no TCX or the interface is gone.
pub fn has(ifindex: u32, ours: [u32; 2]) -> anyhow::Result<bool> {
    let found = raw_links::on(ifindex)?;
    Ok(found.iter().zip(&ours).all(|(ids, id)| ids.contains(id)))
}
