//! The kernel's counters of all interfaces of a namespace, by RTM_GETSTATS: a tenth of
//! what a dump of the links costs. Read by hand, as they are read for every sample and are
//! a few numbers at fixed places.

use std::{collections::HashMap, io};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST};

use super::dump::{self, HEADER, split, u16_at, u32_at};
use crate::model::counters::{Directions, KernelCounters};

/// The kernel's counters by interface index.
pub type CountersByIndex = HashMap<u32, Directions<KernelCounters>>;

/// `RTM_NEWSTATS` and `RTM_GETSTATS`.
/// <https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/rtnetlink.h>
const NEW: u16 = 92;
const GET: u16 = 94;
/// `IFLA_STATS_LINK_64`, and its bit in a filter.
/// <https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/if_link.h>
const LINK_64: u16 = 1;
const LINK_64_MASK: u32 = 1;
/// Bytes of `struct if_stats_msg` and `struct nlattr`.
const STATS: usize = 12;
const ATTRIBUTE: usize = 4;

/// Reads them of the namespace of this thread.
///
/// # Errors
/// Where the kernel refuses.
pub fn counters() -> io::Result<CountersByIndex> {
    let mut counters = HashMap::new();
    dump::messages(&request(), |message| counters.extend(of_one(message)))?;
    Ok(counters)
}

fn request() -> Vec<u8> {
    let len = (HEADER + STATS) as u32;
    let flags = NLM_F_REQUEST | NLM_F_DUMP;
    [
        &len.to_ne_bytes()[..],
        &GET.to_ne_bytes(),
        &flags.to_ne_bytes(),
        // A number and a port, family and index: none.
        &[0; 16],
        &LINK_64_MASK.to_ne_bytes(),
    ]
    .concat()
}

/// An interface's index and counters.
fn of_one(message: &[u8]) -> Option<(u32, Directions<KernelCounters>)> {
    let stats = message
        .get(HEADER..)
        .filter(|_| u16_at(message, 4) == Some(NEW))?;
    let ifindex = u32_at(stats, 4)?;
    let mut attributes = stats.get(STATS..)?;
    loop {
        let len = u16_at(attributes, 0).map(u32::from);
        let (attribute, rest) = split(attributes, ATTRIBUTE, len)?;
        if u16_at(attribute, 2) == Some(LINK_64) {
            return Some((ifindex, directions(&attribute[ATTRIBUTE..])?));
        }
        attributes = rest;
    }
}

/// The beginning of `struct rtnl_link_stats64`: packets, bytes, errors, and what was
/// dropped, each received and sent.
fn directions(stats: &[u8]) -> Option<Directions<KernelCounters>> {
    let number = |place: usize| {
        let bytes = stats.get(place * 8..place * 8 + 8)?;
        Some(u64::from_ne_bytes(bytes.try_into().ok()?))
    };
    let counters = |first: usize| {
        Some(KernelCounters {
            packets: number(first)?,
            bytes: number(first + 2)?,
            errors: number(first + 4)?,
            dropped: number(first + 6)?,
        })
    };
    Some(Directions {
        rx: counters(0)?,
        tx: counters(1)?,
    })
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// A message about the interface 7 whose counters are 1, 2, ...
    fn message() -> Vec<u8> {
        let mut stats: Vec<u8> = [0, 7, LINK_64_MASK].map(u32::to_ne_bytes).concat();
        stats.extend((4u16 + 24 * 8).to_ne_bytes());
        stats.extend(LINK_64.to_ne_bytes());
        stats.extend((1..=24u64).flat_map(u64::to_ne_bytes));
        let mut message = (HEADER as u32 + stats.len() as u32).to_ne_bytes().to_vec();
        message.extend(NEW.to_ne_bytes());
        message.extend([0; 10]);
        message.extend(stats);
        message
    }

    #[test]
    fn each_number_is_in_its_place() {
        let mut counters = HashMap::new();
        let mut take = |message: &[u8]| counters.extend(of_one(message));
        let last = dump::datagram(&message(), &mut take).expect("no error");
        assert!(!last);
        let expected = |first| KernelCounters {
            packets: first,
            bytes: first + 2,
            errors: first + 4,
            dropped: first + 6,
        };
        assert_eq!(counters.len(), 1);
        let found = counters[&7];
        assert_eq!((found.rx, found.tx), (expected(1), expected(2)));
    }

    #[test]
    fn the_kernel_tells_of_loopback() {
        assert!(counters().expect("counters").contains_key(&1));
    }

    proptest! {
        #[test]
        fn any_datagram_is_no_panic(bytes in vec(any::<u8>(), 0..300)) {
            let _any = dump::datagram(&bytes, &mut |message| {
                of_one(message);
            });
        }

        #[test]
        fn changed_messages_are_no_panic(
            changes in vec((0..224usize, any::<u8>()), 1..6),
            cut in 0..=224usize,
        ) {
            let mut bytes = message();
            for (at, value) in changes {
                bytes[at] = value;
            }
            bytes.truncate(cut);
            let _any = dump::datagram(&bytes, &mut |message| {
                of_one(message);
            });
        }
    }
}
