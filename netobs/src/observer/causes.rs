//! Looks for what may be behind a difference between the kernel's counters of an
//! interface and ours.

use std::{fs, io};

use anyhow::Context as _;

use crate::{
    bpf::chain::{self, Inside, Spot},
    model::{
        causes::{self, Cause, Evidence},
        counters::Directions,
        sample::{Hook, NsKey},
    },
    world::{gather::Machine, offload},
};

/// An interface that carries our programs.
#[derive(Clone, Copy, Debug)]
pub struct Carrier<'a> {
    /// Its namespace.
    pub scope: NsKey,
    /// Its name there.
    pub name: &'a str,
    /// Its index there.
    pub ifindex: u32,
}

/// What may be behind `difference`: packets that the kernel counted at `carrier` and
/// our programs `own` (their ids, for ingress and egress), attached by `hook`, did
/// not, in that interface's own directions; negative for the reverse. `before` is
/// what [`evidence`] gave when we attached, or [`baseline`] when we started.
///
/// # Errors
/// Where the interface or its namespace is gone, or cannot be entered.
pub async fn causes(
    machine: &Machine,
    carrier: Carrier<'_>,
    own: [u32; 2],
    hook: Hook,
    difference: Directions<i64>,
    before: Option<&Evidence>,
) -> anyhow::Result<Vec<Cause>> {
    let now = evidence(machine, carrier).await?;
    Ok(causes::causes(difference, own, hook, &now, before))
}

/// What counts for the whole machine, as a `before` for [`causes`] that costs nothing
/// per interface: losses of an interface then count from its beginning.
#[must_use]
pub fn baseline() -> Evidence {
    Evidence {
        backlog_drops: backlog_drops().unwrap_or(0),
        ..Evidence::default()
    }
}

/// What there is to find about `carrier` now.
///
/// # Errors
/// Where the interface or its namespace is gone, or cannot be entered.
pub async fn evidence(machine: &Machine, carrier: Carrier<'_>) -> anyhow::Result<Evidence> {
    let inside = Inside::of(machine, carrier.scope)?;
    let spot = Spot::new(machine, inside.as_ref(), carrier.name, carrier.ifindex);
    let neighbours = chain::look(spot).await?;
    let state = spot.netlink.state(spot.ifindex).await?;
    let queue = spot.netlink.queue(spot.ifindex).await?;
    let local = spot.within(|| Local::read(spot.name, spot.ifindex))?;
    Ok(Evidence {
        neighbours,
        losses: state.losses,
        carrier: state.carrier,
        queue,
        backlog_drops: backlog_drops().context("read /proc/net/softnet_stat")?,
        // A bridge is given what its ports have joined.
        joins: local.joins && !state.is_bridge,
        xdp_sockets: local.xdp_sockets,
        packet_sockets: local.packet_sockets,
    })
}

/// What only a thread inside the namespace can read. What cannot be told counts
/// as not there.
struct Local {
    joins: bool,
    xdp_sockets: u64,
    packet_sockets: u64,
}

impl Local {
    fn read(name: &str, ifindex: u32) -> Self {
        let read = |file: &str| fs::read_to_string(format!("/proc/thread-self/net/{file}"));
        Self {
            joins: offload::joins(name).unwrap_or(false),
            xdp_sockets: read("protocols").map_or(0, |text| sockets_of("XDP", &text)),
            packet_sockets: read("packet").map_or(0, |text| bound_to(ifindex, &text)),
        }
    }
}

/// Open sockets of `protocol` in `/proc/net/protocols`, which is a namespace's own.
fn sockets_of(protocol: &str, text: &str) -> u64 {
    text.lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .find(|words| words.first() == Some(&protocol))
        .and_then(|words| words.get(2)?.parse().ok())
        .unwrap_or(0)
}

/// Sockets in `/proc/net/packet` that are bound to this interface or to none.
fn bound_to(ifindex: u32, text: &str) -> u64 {
    let bound = text
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().nth(4)?.parse::<u32>().ok());
    bound.filter(|bound| [0, ifindex].contains(bound)).count() as u64
}

/// The second column, over all CPUs.
/// <https://github.com/torvalds/linux/blob/v6.18/net/core/net-procfs.c>
fn backlog_drops() -> io::Result<u64> {
    Ok(dropped(&fs::read_to_string("/proc/net/softnet_stat")?))
}

fn dropped(softnet: &str) -> u64 {
    softnet
        .lines()
        .filter_map(|line| u64::from_str_radix(line.split_whitespace().nth(1)?, 16).ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_tables_are_read() {
        let softnet = "00593d62 0000f19e 00000002 00000000\n002917a4 0001a5f1 00000000\n";
        assert_eq!(dropped(softnet), 0xf19e + 0x1a5f1);
        let protocols = "protocol  size sockets  memory press maxhdr  slab module\n\
                         PACKET    1600      3      -1   NI       0   no   kernel\n\
                         XDP       1088      2      -1   NI       0   no   kernel\n";
        assert_eq!(sockets_of("XDP", protocols), 2);
        assert_eq!(sockets_of("SMC", protocols), 0);
        let packet = "sk               RefCnt Type Proto  Iface R Rmem   User   Inode\n\
                      0000000000000000 3      3    0003   4     1 0      0      11\n\
                      0000000000000000 3      3    0003   0     1 0      0      12\n\
                      0000000000000000 3      3    0003   5     1 0      0      13\n";
        assert_eq!(bound_to(4, packet), 2);
        assert_eq!(bound_to(7, packet), 1);
    }
}
