//! What interfaces sent and received, and who they are.

use std::fmt;

use prometheus_client::{encoding::DescriptorEncoder, registry::Unit};

use super::families::Family;
use crate::model::{
    counters::{Counters, Directions, Tally},
    exporter::{Exposition, InterfaceLabels},
};

type Series = (InterfaceLabels, Directions<Counters>);
/// Which direction, by the word that Prometheus' exporters have for it.
type Direction = (&'static str, fn(&Directions<Counters>) -> &Counters);

const DIRECTIONS: [Direction; 2] = [
    ("receive", |counters| &counters.rx),
    ("transmit", |counters| &counters.tx),
];

/// Something that is counted of each class.
struct Quantity {
    name: &'static str,
    unit: fn() -> Unit,
    help: &'static str,
    of: fn(&Tally) -> u64,
}

const QUANTITIES: [Quantity; 4] = [
    Quantity {
        name: "",
        unit: || Unit::Other("packets".to_owned()),
        help: "Packets as the kernel's interface counters count them: skbs",
        of: |tally| tally.packets,
    },
    Quantity {
        name: "",
        unit: || Unit::Bytes,
        help: "Bytes of these packets, link layer headers included",
        of: |tally| tally.bytes,
    },
    Quantity {
        name: "",
        unit: || Unit::Other("segments".to_owned()),
        help: "Packets on the wire: of a packet that is to be segmented, its segments",
        of: |tally| tally.segments,
    },
    Quantity {
        name: "_wire",
        unit: || Unit::Bytes,
        help: "Bytes on the wire, with the headers that segmentation repeats",
        of: |tally| tally.wire_bytes,
    },
];

/// Something that is counted beside the classes.
type Trait = (&'static str, &'static str, fn(&Counters) -> u64);

const TRAITS: [Trait; 3] = [
    ("broadcast", "Packets to the all-ones MAC address", |c| {
        c.broadcast
    }),
    ("multicast", "Packets to any other group MAC address", |c| {
        c.multicast
    }),
    ("fragment", "IP fragments, first ones too", |c| c.fragments),
];

type Difference = (&'static str, fn(&Directions<i64>) -> i64);

const DIFFERENCES: [Difference; 2] = [("receive", |d| d.rx), ("transmit", |d| d.tx)];

type Flag = (&'static str, fn(&Counters) -> u64);

const FLAGS: [Flag; 3] = [("syn", |c| c.syn), ("fin", |c| c.fin), ("rst", |c| c.rst)];

pub(super) fn encode(
    encoder: &mut DescriptorEncoder<'_>,
    exposition: &Exposition,
    classes: bool,
) -> fmt::Result {
    let packets = &exposition.packets;
    for (direction, of) in DIRECTIONS {
        for quantity in &QUANTITIES {
            let name = format!("netobs_network_{direction}{}", quantity.name);
            let family = Family::new(&name, quantity.help).unit((quantity.unit)());
            if classes {
                let series = packets.iter().flat_map(|series| by_class(series, of));
                let series = series.map(|(labels, tally)| (labels, (quantity.of)(tally)));
                family.counters(encoder, series)?;
            } else {
                let series = packets
                    .iter()
                    .map(|(labels, counters)| (base(labels), (quantity.of)(&of(counters).total())));
                family.counters(encoder, series)?;
            }
        }
        let name = format!("netobs_network_{direction}_tcp_flag");
        let flags = packets.iter().flat_map(|(labels, counters)| {
            let [netns, interface] = base(labels);
            FLAGS.map(|(flag, count)| ([netns, interface, ("flag", flag)], count(of(counters))))
        });
        Family::new(&name, "TCP packets with this flag set, SYN-ACK too")
            .of("packets")
            .counters(encoder, flags)?;
        for (kind, help, count) in TRAITS {
            let name = format!("netobs_network_{direction}_{kind}");
            let series = packets
                .iter()
                .map(|(labels, counters)| (base(labels), count(of(counters))));
            Family::new(&name, help)
                .of("packets")
                .counters(encoder, series)?;
        }
    }
    for (direction, of) in DIFFERENCES {
        let name = format!("netobs_network_{direction}_unaccounted");
        let help = "Packets that the kernel has counted since netobs attached and netobs has not";
        let series = exposition.unaccounted.iter();
        Family::new(&name, help)
            .of("packets")
            .gauges(encoder, series.map(|(labels, d)| (base(labels), of(d))))?;
    }
    let identities = exposition.identities.iter().map(|one| {
        let [netns, interface] = base(&one.labels);
        [
            netns,
            interface,
            ("cookie", &*one.cookie),
            ("inode", &*one.inode),
            ("kind", one.kind.as_str()),
            ("name", &*one.name),
            ("container_id", &*one.container_id),
            ("image", &*one.image),
            ("peer", &*one.peer),
        ]
    });
    Family::new(
        "netobs_netns",
        "Which namespace and interface the labels mean",
    )
    .infos(encoder, identities)
}

fn base(labels: &InterfaceLabels) -> [(&'static str, &str); 2] {
    [("netns", &*labels.netns), ("interface", &*labels.interface)]
}

/// All classes, those without a packet too: who begins to count later has lost the first.
fn by_class(
    (labels, counters): &Series,
    of: fn(&Directions<Counters>) -> &Counters,
) -> impl Iterator<Item = (Vec<(&'static str, &str)>, &Tally)> {
    let counters = of(counters);
    let families = [("ipv4", counters.ipv4()), ("ipv6", counters.ipv6())];
    let ip = families.into_iter().flat_map(|(family, of)| {
        let protocols = [
            ("tcp", of.tcp),
            ("udp", of.udp),
            ("icmp", of.icmp),
            ("other", of.other),
        ];
        protocols.map(|(protocol, tally)| (family, protocol, tally))
    });
    let others = [("arp", "", counters.arp()), ("other", "", counters.other())];
    ip.chain(others).map(move |(family, protocol, tally)| {
        let mut all = base(labels).to_vec();
        all.push(("family", family));
        // An empty label is none.
        if !protocol.is_empty() {
            all.push(("protocol", protocol));
        }
        (all, tally)
    })
}
