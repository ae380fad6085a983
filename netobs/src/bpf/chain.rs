//! Who hangs on an interface.

use std::fs::File;

use anyhow::Context as _;
use aya::programs::{ProgramInfo, SchedClassifier, TcAttachType, loaded_programs};
use netobs_common::names;

use super::filters;
use crate::{
    model::{
        neighbours::{Neighbours, Program, Via},
        sample::NsKey,
    },
    world::{gather::Machine, netlink::Netlink, netns},
};

/// An interface to look at.
#[derive(Clone, Copy)]
pub struct Spot<'a> {
    /// Its namespace; `None` for that of this thread.
    pub namespace: Option<&'a File>,
    /// A route socket there.
    pub netlink: &'a Netlink,
    /// Its name.
    pub name: &'a str,
    /// Its index.
    pub ifindex: u32,
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
    let query = || [tcx(spot.name, true), tcx(spot.name, false)];
    let [tcx_ingress, tcx_egress] = match spot.namespace {
        Some(file) => netns::within(file, query)?,
        None => query(),
    };
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

/// Everybody on the interface `name` of the namespace `scope`.
///
/// # Errors
/// Where the interface or the namespace is gone, or cannot be entered.
pub async fn look_in(
    machine: &Machine,
    scope: NsKey,
    name: &str,
    ifindex: u32,
) -> anyhow::Result<Neighbours> {
    if scope == machine.host_key() {
        return look(Spot {
            namespace: None,
            netlink: machine.netlink(),
            name,
            ifindex,
        })
        .await;
    }
    let path = machine.path_of(scope).context("the namespace has ended")?;
    let file = netns::open(&path)?;
    let (netlink, _) = Netlink::open_in(&file)?;
    look(Spot {
        namespace: Some(&file),
        netlink: &netlink,
        name,
        ifindex,
    })
    .await
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
pub fn has(interface: &str, [ingress, egress]: [u32; 2]) -> anyhow::Result<bool> {
    for (direction, id) in [
        (TcAttachType::Ingress, ingress),
        (TcAttachType::Egress, egress),
    ] {
        let (_revision, programs) = SchedClassifier::query_tcx(interface, direction)?;
        if !programs.iter().any(|program| program.id() == id) {
            return Ok(false);
        }
    }
    Ok(true)
}
