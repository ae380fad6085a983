//! clsact filters: ours that a killed netobs left, and everybody's for `doctor`.

use std::{collections::HashSet, fs, io, path::Path};

use anyhow::Context as _;
use futures_util::{StreamExt as _, TryStreamExt as _};
use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcFilterBpfOption, TcMessage, TcOption},
};
use netobs_common::names;

use super::attach::{HANDLE_MAJOR, HANDLE_MAJOR_PINNED, PRIORITY};
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

/// Removes the filters of dead netobs processes from `links`, and among those that
/// were to outlive them the ones of the `unpinned` programs.
///
/// # Errors
/// Where the kernel refuses.
pub async fn remove_ours<'a>(
    netlink: &Netlink,
    links: impl Iterator<Item = (u32, &'a str)>,
    unpinned: &[u32],
) -> anyhow::Result<Left> {
    let mut left = Left::default();
    let held = held_programs();
    for (ifindex, name) in links {
        for ingress in [true, false] {
            // No qdisc, no filters.
            let Ok(filters) = on(netlink, ifindex, ingress).await else {
                continue;
            };
            for filter in filters.into_iter().filter(Filter::is_ours) {
                // Not knowing is no licence to remove.
                let dead = filter
                    .program
                    .zip(held.as_ref())
                    .is_some_and(|(program, held)| {
                        !held.contains(&program)
                            && (!filter.outlives() || unpinned.contains(&program))
                    });
                if !dead {
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

/// The ids of all programs that some process holds open: a netobs that lives
/// holds its own, in whatever pid namespace and under whatever name. `None`
/// where one that may be a netobs could not be looked at.
fn held_programs() -> Option<HashSet<u32>> {
    let mut held = HashSet::new();
    for process in fs::read_dir("/proc").ok()?.flatten() {
        if process.file_name().to_str()?.parse::<u32>().is_err() {
            continue;
        }
        let descriptors = match fs::read_dir(process.path().join("fdinfo")) {
            Ok(descriptors) => descriptors,
            Err(error) if ended(&error) => continue,
            // Some processes show their descriptors to nobody.
            Err(_) if !is_netobs(&process.path()) => continue,
            Err(_) => return None,
        };
        for descriptor in descriptors.flatten() {
            match fs::read(descriptor.path()) {
                // Drivers put names of others there, which need not be text.
                Ok(text) => held.extend(program_id(&String::from_utf8_lossy(&text))),
                Err(error) if ended(&error) => {}
                Err(_) => return None,
            }
        }
    }
    Some(held)
}

fn is_netobs(process: &Path) -> bool {
    fs::read(process.join("comm"))
        .is_ok_and(|comm| String::from_utf8_lossy(&comm).contains("netobs"))
}

/// Whether `error` means that the process or its descriptor is no more.
fn ended(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(nix::libc::ESRCH)
}

/// `prog_id` of a descriptor of a program (not of a link: that one holds the
/// program itself).
fn program_id(fdinfo: &str) -> Option<u32> {
    let line = fdinfo
        .lines()
        .find_map(|line| line.strip_prefix("prog_id:"))?;
    line.trim().parse().ok()
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

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    #[test]
    fn a_descriptor_of_a_program_names_it() {
        assert_eq!(
            program_id("pos:\t0\nprog_type:\t3\nprog_id:\t42\n"),
            Some(42)
        );
        assert_eq!(program_id("pos:\t0\nflags:\t02\n"), None);
    }

    proptest! {
        /// Drivers write there what they like.
        #[test]
        fn a_program_is_found_among_other_lines(
            others in vec("[^\n]{0,40}", 0..5),
            id in any::<u32>(),
        ) {
            let others = others.join("\n");
            program_id(&others);
            prop_assume!(!others.contains("prog_id:"));
            prop_assert_eq!(program_id(&format!("{others}\nprog_id:\t{id}\n")), Some(id));
        }
    }
}
