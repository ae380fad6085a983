//! clsact filters: ours that a killed netobs left, and everybody's for `doctor`.

use anyhow::Context as _;
use futures_util::{StreamExt as _, TryStreamExt as _};
use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload, Nla as _};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcMessage, TcOption},
};
use netobs_common::names;

use super::attach::{HANDLE_MAJOR, PRIORITY};
use crate::world::{netlink::Netlink, text};

/// `TCA_BPF_NAME`.
/// <https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/pkt_cls.h>
const TCA_BPF_NAME: u16 = 7;

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
    message: TcMessage,
}

impl Filter {
    /// Whether a netobs made it: by name, place and handle.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        (self.name == names::PROG_INGRESS || self.name == names::PROG_EGRESS)
            && self.priority == PRIORITY
            && self.handle >> 16 == u32::from(HANDLE_MAJOR)
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

/// Removes the filters of dead netobs processes from `links`.
///
/// # Errors
/// Where the kernel refuses.
pub async fn remove_ours<'a>(
    netlink: &Netlink,
    links: impl Iterator<Item = (u32, &'a str)>,
) -> anyhow::Result<Left> {
    let mut left = Left::default();
    for (ifindex, name) in links {
        for ingress in [true, false] {
            // No qdisc, no filters.
            let Ok(filters) = on(netlink, ifindex, ingress).await else {
                continue;
            };
            for filter in filters.into_iter().filter(Filter::is_ours) {
                if is_alive(filter.handle as u16) {
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

/// Whether a netobs runs whose process id ends in `low`.
fn is_alive(low: u16) -> bool {
    let Ok(processes) = std::fs::read_dir("/proc") else {
        // Not knowing is no licence to remove.
        return true;
    };
    processes.flatten().any(|entry| {
        let pid: Option<u32> = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        pid.is_some_and(|pid| {
            pid as u16 == low
                && pid != std::process::id()
                && std::fs::read_to_string(format!("/proc/{pid}/comm"))
                    .is_ok_and(|comm| comm.trim_end() == "netobs")
        })
    })
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
    let name = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            TcAttribute::Options(options) => options.iter().find_map(bpf_name),
            _ => None,
        });
    Some(Filter {
        name: name.or(kind)?,
        handle,
        // The upper half is the priority, the lower the protocol.
        priority: (message.header.info >> 16) as u16,
        message,
    })
}

fn bpf_name(option: &TcOption) -> Option<String> {
    let TcOption::Other(attribute) = option else {
        return None;
    };
    if attribute.kind() != TCA_BPF_NAME {
        return None;
    }
    let mut bytes = vec![0; attribute.value_len()];
    attribute.emit_value(&mut bytes);
    Some(text::lossless(bytes.strip_suffix(b"\0").unwrap_or(&bytes)))
}
