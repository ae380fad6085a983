//! clsact filters: ours that a killed netobs left, and everybody's for `doctor`.

use std::collections::HashSet;

use anyhow::Context as _;
use aya::programs::loaded_programs;
use futures_util::{StreamExt as _, TryStreamExt as _};
use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcFilterBpfOption, TcMessage, TcOption},
};
use netobs_common::names;

use super::{
    alive,
    attach::{HANDLE_MAJOR, HANDLE_MAJOR_PINNED, PRIORITY},
};
use crate::{
    model::neighbours::{Program, Via},
    world::netlink::Netlink,
};

/// `TC_U32_KEY`: the part of a handle that names a rule in a hash table.
/// <https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/pkt_cls.h>
const U32_KEY: u32 = 0x000f_ffff;

/// What became of our filters on some interfaces.
#[derive(Debug, Default)]
pub struct Left {
    /// Removed, in words.
    pub removed: Vec<String>,
    /// Kept, because the netobs that made them lives.
    pub alive: usize,
}

/// One filter on a clsact qdisc.
#[derive(Debug)]
pub struct Filter {
    /// Its name, for eBPF filters; else its kind.
    pub name: String,
    handle: u32,
    priority: u16,
    program: Option<u32>,
    message: TcMessage,
}

impl Filter {
    /// Whether a netobs made it: by name, place and handle.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        (self.name == names::PROG_INGRESS || self.name == names::PROG_EGRESS)
            && self.priority == PRIORITY
            && (self.handle >> 16 == u32::from(HANDLE_MAJOR) || self.outlives())
    }

    /// Whether it is to stay when its netobs ends.
    fn outlives(&self) -> bool {
        self.handle >> 16 == u32::from(HANDLE_MAJOR_PINNED)
    }

    /// As a neighbour of others.
    #[must_use]
    pub fn told(&self) -> Program {
        Program {
            via: Via::Clsact(self.priority),
            name: self.name.clone(),
            id: self.program,
            ours: self.is_ours(),
        }
    }
}

/// The filters on one hook of an interface, in the order in which they run.
///
/// # Errors
/// Where the kernel refuses.
pub async fn on(netlink: &Netlink, ifindex: u32, ingress: bool) -> anyhow::Result<Vec<Filter>> {
    let request = netlink
        .handle()
        .traffic_filter(i32::try_from(ifindex)?)
        .get();
    let request = if ingress {
        request.ingress()
    } else {
        request.egress()
    };
    let messages: Vec<TcMessage> = request.execute().try_collect().await?;
    Ok(messages.into_iter().filter_map(filter).collect())
}

/// Whether the programs with these ids hang on the ingress and the egress hook of
/// an interface. Without a qdisc there are none.
pub async fn have(netlink: &Netlink, ifindex: u32, [ingress, egress]: [u32; 2]) -> bool {
    for (is_ingress, id) in [(true, ingress), (false, egress)] {
        let filters = on(netlink, ifindex, is_ingress).await.unwrap_or_default();
        if !filters.iter().any(|filter| filter.program == Some(id)) {
            return false;
        }
    }
    true
}

/// Filters that were to outlive their netobs, and whose programs count into maps with
/// these ids, are to go unless they are to be kept.
#[derive(Debug, Default)]
pub struct Unpinned {
    /// Ids of the maps.
    pub maps: Vec<u32>,
    /// Interface and handle of filters that stay.
    pub keep: HashSet<(u32, u32)>,
}

impl Unpinned {
    fn includes(&self, ifindex: u32, handle: u32, program: u32) -> bool {
        !self.maps.is_empty()
            && !self.keep.contains(&(ifindex, handle))
            && maps_of(program).iter().any(|id| self.maps.contains(id))
    }
}

/// Removes the filters of dead netobs processes from `links`, and those that are
/// `unpinned`.
///
/// # Errors
/// Where the kernel refuses.
pub async fn remove_ours<'a>(
    netlink: &Netlink,
    links: impl Iterator<Item = (u32, &'a str)>,
    unpinned: &Unpinned,
) -> anyhow::Result<Left> {
    let mut left = Left::default();
    let alive = alive::programs();
    for (ifindex, name) in links {
        for ingress in [true, false] {
            // No qdisc, no filters.
            let Ok(filters) = on(netlink, ifindex, ingress).await else {
                continue;
            };
            for filter in filters.into_iter().filter(Filter::is_ours) {
                let goes = filter.program.is_some_and(|program| {
                    if filter.outlives() {
                        return unpinned.includes(ifindex, filter.handle, program);
                    }
                    // Not knowing is no licence to remove.
                    alive
                        .as_ref()
                        .is_some_and(|alive| !alive.contains(&program))
                });
                if !goes {
                    left.alive += 1;
                    continue;
                }
                let what = format!("filter {} on {name}", filter.name);
                delete(netlink, filter).await?;
                left.removed.push(what);
            }
        }
    }
    Ok(left)
}

/// The ids of the maps of a program.
fn maps_of(program: u32) -> Vec<u32> {
    let found = loaded_programs().filter_map(Result::ok);
    found
        .filter(|info| info.id() == program)
        .filter_map(|info| info.map_ids().ok().flatten())
        .flatten()
        .collect()
}

/// rtnetlink's own request cannot name one filter, and without a name the
/// kernel deletes them all.
async fn delete(netlink: &Netlink, filter: Filter) -> anyhow::Result<()> {
    let mut message = TcMessage::default();
    message.header = filter.message.header;
    message.attributes = filter
        .message
        .attributes
        .into_iter()
        .filter(|attribute| matches!(attribute, TcAttribute::Kind(_)))
        .collect();
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::DelTrafficFilter(message));
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK;
    let mut replies = netlink.handle().clone().request(request)?;
    while let Some(reply) = replies.next().await {
        if let NetlinkPayload::Error(error) = reply.payload
            && error.code.is_some()
        {
            return Err(error.to_io()).context("delete a filter");
        }
    }
    Ok(())
}

fn filter(message: TcMessage) -> Option<Filter> {
    let handle: u32 = message.header.handle.into();
    // The dump starts each chain with a line of its own.
    if handle == 0 {
        return None;
    }
    let kind = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            TcAttribute::Kind(kind) => Some(kind.clone()),
            _ => None,
        });
    let options = || {
        message
            .attributes
            .iter()
            .flat_map(|attribute| match attribute {
                TcAttribute::Options(options) => options.as_slice(),
                _ => &[],
            })
    };
    // The hash tables of u32 are listed like filters, with no node in their handle.
    if kind.as_deref() == Some("u32") && handle & U32_KEY == 0 {
        return None;
    }
    let name = options().find_map(|option| match option {
        TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => Some(name.clone()),
        _ => None,
    });
    let program = options().find_map(|option| match option {
        TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => Some(*id),
        _ => None,
    });
    Some(Filter {
        name: name.or(kind)?,
        handle,
        program,
        // The upper half is the priority, the lower the protocol.
        priority: (message.header.info >> 16) as u16,
        message,
    })
}
