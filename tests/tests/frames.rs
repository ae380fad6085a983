//! The classifiers against an independent parser (etherparse), frame by frame,
//! in the kernel, through BPF_PROG_TEST_RUN.

mod oracle;
mod wire;

use aya::programs::{TestRun as _, TestRunOptions};
use netobs::{
    bpf::{
        attach::{Attached, attach},
        object::{Capacity, Programs},
    },
    config::TcMode,
    model::counters::{Counters, Directions, Tally},
};
use netobs_common::{SlotEntry, names};
use oracle::{Class, Expect};
use wire::{DEVICE, Wire};

/// BPF_PROG_TEST_RUN puts frames on the loopback interface of the namespace.
const LO: u32 = 1;
/// Random frames, over both programs.
const FRAMES: u64 = 1_000_000;

/// The programs with one slot for `lo`.
struct Bench {
    programs: Programs,
    slot: u32,
    last: Directions<Counters>,
}

impl Bench {
    fn new(flags: u32) -> Self {
        let mut programs = Programs::load(Capacity::host(Some(4)).expect("count CPUs"))
            .expect("load the programs (needs root)");
        let slot = programs
            .take_slot()
            .expect("map counters")
            .expect("a free slot");
        programs
            .direct(LO, SlotEntry::new(slot, flags))
            .expect("direct lo");
        Self {
            programs,
            slot,
            last: Directions::default(),
        }
    }

    /// Runs one frame through `program` and says what that added; `None`
    /// where the kernel does not take such a frame for a test run.
    fn try_run(
        &mut self,
        program: &str,
        frame: &[u8],
        context: Option<&[u8]>,
    ) -> Option<Directions<Counters>> {
        let result = self
            .programs
            .classifier(program)
            .expect("the program")
            .test_run(TestRunOptions {
                data_in: Some(frame),
                ctx_in: context,
                ..Default::default()
            });
        match result {
            Ok(result) => assert_eq!(result.return_value as i32, -1, "the packet must pass on"),
            Err(error) => {
                assert!(is_short(frame), "run {program} on {frame:02x?}: {error:?}");
                return None;
            }
        }
        Some(self.added())
    }

    fn run(&mut self, program: &str, frame: &[u8], context: Option<&[u8]>) -> Directions<Counters> {
        self.try_run(program, frame, context)
            .unwrap_or_else(|| panic!("{program} on {frame:02x?}: refused"))
    }

    /// Sends `frame` through the egress hook of a real interface.
    fn send(&mut self, wire: &Wire, frame: &[u8]) -> Directions<Counters> {
        wire.send(frame);
        self.added()
    }

    /// What has been counted since the last look.
    fn added(&mut self) -> Directions<Counters> {
        let now = self.programs.counters().read(self.slot);
        let added = Directions {
            rx: minus(&now.rx, &self.last.rx),
            tx: minus(&now.tx, &self.last.tx),
        };
        self.last = now;
        added
    }

    /// Counts what passes the dummy interface of this thread's namespace.
    fn attach(&mut self, flags: u32) -> Attached {
        self.programs
            .direct(wire::index(DEVICE), SlotEntry::new(self.slot, flags))
            .expect("direct the dummy interface");
        attach(
            &mut self.programs,
            DEVICE,
            wire::index(DEVICE),
            TcMode::Auto,
            &mut false,
        )
        .expect("attach")
    }
}

/// The kernel takes no frame for a test run whose network header is shorter
/// than its EtherType asks for.
/// <https://github.com/torvalds/linux/blob/v6.18/net/bpf/test_run.c>
fn is_short(frame: &[u8]) -> bool {
    match frame[12..14] {
        [0x08, 0x00] => frame.len() < 14 + 20,
        [0x86, 0xdd] => frame.len() < 14 + 40,
        _ => frame.len() == 14,
    }
}

fn minus(now: &Counters, before: &Counters) -> Counters {
    now.since(before).expect("counters only grow")
}

fn tally_of(counters: &Counters, class: Class) -> Tally {
    let (four, six) = (counters.ipv4(), counters.ipv6());
    *match class {
        Class::Ipv4Tcp => four.tcp,
        Class::Ipv4Udp => four.udp,
        Class::Ipv4Icmp => four.icmp,
        Class::Ipv4Other => four.other,
        Class::Ipv6Tcp => six.tcp,
        Class::Ipv6Udp => six.udp,
        Class::Ipv6Icmp => six.icmp,
        Class::Ipv6Other => six.other,
        Class::Arp => counters.arp(),
        Class::Other => counters.other(),
    }
}

/// Everything that a frame without GSO may add.
fn check(frame: &[u8], added: &Counters, expect: &Expect) {
    let one = Tally {
        packets: 1,
        bytes: frame.len() as u64,
        segments: 1,
        wire_bytes: frame.len() as u64,
    };
    let got = (
        tally_of(added, expect.class),
        added.total(),
        [added.syn, added.fin, added.rst].map(|n| n == 1),
        added.broadcast == 1,
        added.multicast == 1,
        added.fragments == 1,
    );
    let want = (
        one,
        one,
        [expect.syn, expect.fin, expect.rst],
        expect.broadcast,
        expect.multicast,
        expect.fragment,
    );
    assert_eq!(
        got, want,
        "frame {frame:02x?}\nexpected {expect:?}\ngot {added:?}"
    );
}

#[test]
fn random_frames_are_counted_as_an_independent_parser_reads_them() {
    let seed = std::env::var("NETOBS_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| fastrand::u64(..));
    println!("NETOBS_SEED={seed} repeats this run");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut seen = std::collections::BTreeMap::<Class, u64>::new();
    let (mut cut, mut flags, mut fragments, mut sent) = (0, 0, 0, 0);
    wire::in_new_namespace(|| {
        let mut bench = Bench::new(0);
        let _attached = bench.attach(0);
        let wire = Wire::open(DEVICE, false);
        for at in 0..FRAMES {
            let frame = oracle::random_frame(&mut random);
            let expect = oracle::read(&frame);
            *seen.entry(expect.class).or_default() += 1;
            cut += u64::from(expect.cut);
            flags += u64::from(expect.syn || expect.fin || expect.rst);
            fragments += u64::from(expect.fragment);
            let (program, mut ingress) = if at % 2 == 0 {
                (names::PROG_INGRESS, true)
            } else {
                (names::PROG_EGRESS, false)
            };
            let added = bench.try_run(program, &frame, None).unwrap_or_else(|| {
                sent += 1;
                ingress = false;
                bench.send(&wire, &frame)
            });
            // On the host end ingress is what the namespace sends.
            let (hit, other) = if ingress {
                (&added.tx, &added.rx)
            } else {
                (&added.rx, &added.tx)
            };
            check(&frame, hit, &expect);
            assert_eq!(
                other,
                &Counters::default(),
                "the other direction stays as it was"
            );
        }
    });
    println!("of {FRAMES} frames {sent} were too short for a test run and went over a wire");
    assert!(FRAMES - sent >= 100_000);
    println!(
        "{FRAMES} frames: {seen:?}, {cut} cut short, {flags} with flags, {fragments} fragments"
    );
    // A generator that misses a class would test nothing of it.
    assert_eq!(seen.len(), 10, "every class must have come up: {seen:?}");
    assert!(
        seen.values().all(|n| *n > 500),
        "each of them often: {seen:?}"
    );
    assert!(cut > 1000 && flags > 1000 && fragments > 1000);
}

#[test]
fn hand_made_frames() {
    wire::in_new_namespace(|| {
        let mut bench = Bench::new(0);
        let _attached = bench.attach(0);
        let wire = Wire::open(DEVICE, false);
        for (what, frame, class) in oracle::hand_made() {
            let expect = oracle::read(&frame);
            assert_eq!(expect.class, class, "the oracle on {what}");
            if let Some(added) = bench.try_run(names::PROG_INGRESS, &frame, None) {
                check(&frame, &added.tx, &expect);
            }
            let added = bench.send(&wire, &frame);
            check(&frame, &added.rx, &expect);
        }
    });
}

#[test]
fn headers_outside_the_linear_part_are_read_too() {
    wire::in_new_namespace(|| {
        let mut bench = Bench::new(0);
        let _attached = bench.attach(0);
        let wire = Wire::open(DEVICE, true);
        for (what, mut frame, class) in oracle::hand_made() {
            let whole = oracle::read(&frame);
            if whole.cut {
                continue;
            }
            // Below a page the kernel keeps everything linear.
            frame.resize(5000, 0);
            let expect = oracle::read(&frame);
            assert_eq!(expect.class, class, "the oracle on {what}");
            let added = bench.send(&wire, &frame);
            check(&frame, &added.rx, &expect);
        }
    });
}

#[test]
fn frames_without_an_ethernet_header() {
    let mut bench = Bench::new(SlotEntry::NO_ETHERNET);
    let entry = SlotEntry::new(bench.slot, SlotEntry::NO_ETHERNET);
    bench.programs.direct(LO, entry).expect("direct lo");
    // A test run always has an Ethernet header; read as a packet of its
    // EtherType, that header is a broken one: version 0.
    let frame = oracle::hand_made().remove(0).1;
    let added = bench.run(names::PROG_INGRESS, &frame, None);
    assert_eq!(added.tx.ipv4().other.packets, 1);
    assert_eq!(added.tx.broadcast + added.tx.multicast, 0);
}

#[test]
fn inside_a_namespace_directions_are_not_mirrored() {
    let mut bench = Bench::new(SlotEntry::INSIDE);
    let frame = oracle::hand_made().remove(0).1;
    let ingress = bench.run(names::PROG_INGRESS, &frame, None);
    assert_eq!(
        (ingress.rx.total().packets, ingress.tx.total().packets),
        (1, 0)
    );
    let egress = bench.run(names::PROG_EGRESS, &frame, None);
    assert_eq!(
        (egress.rx.total().packets, egress.tx.total().packets),
        (0, 1)
    );
}

#[test]
fn segments_and_wire_bytes_follow_gso() {
    let mut bench = Bench::new(0);
    // What the kernel would put on the wire, from its own rule in
    // qdisc_pkt_len_init(): the headers once more for every further segment.
    for (what, frame, headers) in oracle::gso_frames() {
        for segments in [1u16, 2, 45] {
            let context = oracle::context_with_gso(segments, 1000);
            let added = bench.run(names::PROG_EGRESS, &frame, Some(&context));
            let total = added.rx.total();
            assert_eq!(total.packets, 1, "{what}");
            assert_eq!(total.bytes, frame.len() as u64, "{what}");
            assert_eq!(total.segments, u64::from(segments), "{what}");
            let more = u64::from(segments - 1) * headers;
            assert_eq!(
                total.wire_bytes,
                frame.len() as u64 + more,
                "{what}, {segments} segments"
            );
        }
    }
}

#[test]
fn an_interface_without_a_slot_is_told_and_not_credited() {
    let mut bench = Bench::new(0);
    bench
        .programs
        .direct(LO, SlotEntry::NONE)
        .expect("take the slot away");
    let frame = oracle::hand_made().remove(0).1;
    let added = bench.run(names::PROG_INGRESS, &frame, None);
    assert_eq!(added, Directions::default());
    assert_eq!(bench.programs.lost(), 1);
}

#[test]
fn a_slot_starts_at_zero_for_its_next_owner() {
    let mut bench = Bench::new(0);
    let frame = oracle::hand_made().remove(0).1;
    bench.run(names::PROG_INGRESS, &frame, None);
    bench
        .programs
        .direct(LO, SlotEntry::NONE)
        .expect("undirect");
    bench.programs.give_back(bench.slot).expect("give back");
    let slots: Vec<u32> =
        std::iter::from_fn(|| bench.programs.take_slot().expect("map counters")).collect();
    assert_eq!(slots.len(), 4);
    for slot in slots {
        assert_eq!(bench.programs.counters().read(slot), Directions::default());
    }
    assert_eq!(
        bench.programs.maps().full,
        1,
        "the fifth did not fit, and that is told"
    );
}

#[test]
fn indexes_beyond_the_array_are_counted_too() {
    // `near: 1` leaves everything to the hash.
    let mut programs = Capacity::inside(Some(4))
        .and_then(Programs::load)
        .expect("load the programs (needs root)");
    let slot = programs
        .take_slot()
        .expect("map counters")
        .expect("a free slot");
    programs
        .direct(LO, SlotEntry::new(slot, 0))
        .expect("direct lo");
    let mut bench = Bench {
        programs,
        slot,
        last: Directions::default(),
    };
    let frame = oracle::hand_made().remove(0).1;
    let added = bench.run(names::PROG_INGRESS, &frame, None);
    assert_eq!(added.tx.total().packets, 1);
    bench
        .programs
        .direct(LO, SlotEntry::NONE)
        .expect("undirect");
    bench.run(names::PROG_INGRESS, &frame, None);
    assert_eq!(bench.programs.lost(), 1);
}
