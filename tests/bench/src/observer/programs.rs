//! eBPF programs: of netobs, loaded as netobs loads them, and those of
//! `netobs-bench-ebpf`.

use anyhow::Context as _;
use aya::{
    Btf, Ebpf, EbpfLoader, include_bytes_aligned,
    maps::{HashMap, MapData},
    programs::{
        BtfTracePoint, LinkOrder, SchedClassifier, TcAttachType,
        tc::{SchedClassifierLink, TcAttachOptions},
    },
};
use netobs::{
    bpf::{
        attach::{Attached, attach},
        lookups::{LookupPrograms, Settings},
        object::{Capacity, Programs},
    },
    config::TcMode,
};
use netobs_common::SlotEntry;
use nix::net::if_::if_nametoindex;

use super::Observer;

static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/netobs-bench-ebpf"));

/// Programs that hang on both hooks of interfaces.
pub(crate) struct Pair {
    name: &'static str,
    programs: [&'static str; 2],
    interfaces: Vec<String>,
    ebpf: Ebpf,
    links: Vec<SchedClassifierLink>,
}

impl Pair {
    /// The floor: what the hooks themselves cost.
    pub(crate) fn empty(interfaces: &[String]) -> anyhow::Result<Self> {
        Self::new(
            "empty TCX pair",
            ["empty_ingress", "empty_egress"],
            interfaces,
        )
    }

    fn new(
        name: &'static str,
        programs: [&'static str; 2],
        interfaces: &[String],
    ) -> anyhow::Result<Self> {
        Ok(Self {
            name,
            programs,
            interfaces: interfaces.to_vec(),
            ebpf: load(&programs)?,
            links: Vec::new(),
        })
    }

    /// The program for ingress, and the one for egress.
    pub(crate) fn program(&mut self, direction: usize) -> anyhow::Result<&mut SchedClassifier> {
        classifier(&mut self.ebpf, self.programs[direction])
    }
}

fn load(programs: &[&str]) -> anyhow::Result<Ebpf> {
    let mut ebpf = EbpfLoader::new().load(OBJECT)?;
    for name in programs {
        classifier(&mut ebpf, name)?.load()?;
    }
    Ok(ebpf)
}

fn classifier<'a>(ebpf: &'a mut Ebpf, name: &str) -> anyhow::Result<&'a mut SchedClassifier> {
    let program = ebpf
        .program_mut(name)
        .with_context(|| format!("no program {name}"))?;
    Ok(program.try_into()?)
}

impl Observer for Pair {
    fn name(&self) -> &str {
        self.name
    }

    fn start(&mut self) -> anyhow::Result<()> {
        for interface in &self.interfaces {
            let hooks = [TcAttachType::Ingress, TcAttachType::Egress];
            for (name, hook) in self.programs.iter().zip(hooks) {
                let program = classifier(&mut self.ebpf, name)?;
                let first = TcAttachOptions::TcxOrder(LinkOrder::first());
                let id = program.attach_with_options(interface, hook, first)?;
                self.links.push(program.take_link(id)?);
            }
        }
        Ok(())
    }

    fn stop(&mut self) -> anyhow::Result<()> {
        self.links.clear();
        Ok(())
    }

    fn reload(&mut self) -> anyhow::Result<()> {
        self.ebpf = load(&self.programs)?;
        Ok(())
    }
}

/// A record per flow: what agents do that report flows.
pub(crate) struct Flows(Pair);

impl Flows {
    pub(crate) fn new(interfaces: &[String]) -> anyhow::Result<Self> {
        let pair = Pair::new(
            "flow table (LRU)",
            ["flow_ingress", "flow_egress"],
            interfaces,
        )?;
        Ok(Self(pair))
    }

    pub(crate) fn program(&mut self, direction: usize) -> anyhow::Result<&mut SchedClassifier> {
        self.0.program(direction)
    }
}

impl Observer for Flows {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn start(&mut self) -> anyhow::Result<()> {
        // With an empty table.
        self.0.reload()?;
        self.0.start()
    }

    fn stop(&mut self) -> anyhow::Result<()> {
        self.0.stop()
    }

    fn seen(&mut self) -> anyhow::Result<Option<u64>> {
        const LENGTH: usize = 44;
        let map = self.0.ebpf.map("BENCH_FLOWS").context("no map of flows")?;
        let flows: HashMap<&MapData, [u8; LENGTH], [u64; 5]> = map.try_into()?;
        let mut packets = 0;
        for entry in flows.iter() {
            let (key, flow) = entry?;
            // Of the direction in: every packet has one of each.
            if key[LENGTH - 1] == 0 {
                packets += flow[0];
            }
        }
        Ok(Some(packets))
    }

    fn exact(&self) -> bool {
        // What was least in use makes room, on every CPU by itself, before the table is full.
        false
    }
}

/// The programs of netobs, hung as netobs hangs them.
pub(crate) struct Netobs {
    interfaces: Vec<String>,
    programs: Programs,
    slots: Vec<u32>,
    attached: Vec<Attached>,
    before: u64,
    capacity: Option<u32>,
}

impl Netobs {
    pub(crate) fn new(interfaces: &[String]) -> anyhow::Result<Self> {
        let capacity = u32::try_from(interfaces.len())?
            .next_power_of_two()
            .max(256);
        let mut programs = Programs::load(Capacity::host(Some(capacity))?)?;
        let slots = direct(&mut programs, interfaces)?;
        Ok(Self {
            interfaces: interfaces.to_vec(),
            programs,
            slots,
            attached: Vec::new(),
            before: 0,
            capacity: Some(capacity),
        })
    }

    /// The program for ingress, and the one for egress.
    pub(crate) fn program(&mut self, direction: usize) -> anyhow::Result<&mut SchedClassifier> {
        let names = [
            netobs_common::names::PROG_INGRESS,
            netobs_common::names::PROG_EGRESS,
        ];
        self.programs.classifier(names[direction])
    }

    /// Also counts what passes the interface `ifindex`.
    pub(crate) fn also(&mut self, ifindex: u32) -> anyhow::Result<()> {
        let slot = self.programs.take_slot()?.context("no slot is free")?;
        self.programs.direct(ifindex, SlotEntry::new(slot, 0))
    }

    /// Reads all counters once, as a sample does.
    pub(crate) fn read(&self) -> u64 {
        let all = self.slots.iter();
        all.map(|slot| self.programs.counters().read(*slot).tx.total().packets)
            .sum()
    }
}

/// Gives each interface a slot.
fn direct(programs: &mut Programs, interfaces: &[String]) -> anyhow::Result<Vec<u32>> {
    let mut slots = Vec::new();
    for interface in interfaces {
        let slot = programs.take_slot()?.context("no slot is free")?;
        let ifindex = if_nametoindex(interface.as_str())?;
        programs.direct(ifindex, SlotEntry::new(slot, 0))?;
        slots.push(slot);
    }
    Ok(slots)
}

impl Observer for Netobs {
    fn name(&self) -> &str {
        "netobs"
    }

    fn start(&mut self) -> anyhow::Result<()> {
        self.before = self.read();
        for interface in &self.interfaces {
            let ifindex = if_nametoindex(interface.as_str())?;
            let hung = attach(
                &mut self.programs,
                interface,
                ifindex,
                TcMode::Tcx,
                &mut false,
            )?;
            self.attached.push(hung);
        }
        Ok(())
    }

    fn stop(&mut self) -> anyhow::Result<()> {
        self.attached.drain(..).for_each(Attached::take_off);
        Ok(())
    }

    fn reload(&mut self) -> anyhow::Result<()> {
        self.programs = Programs::load(Capacity::host(self.capacity)?)?;
        self.slots = direct(&mut self.programs, &self.interfaces)?;
        Ok(())
    }

    fn seen(&mut self) -> anyhow::Result<Option<u64>> {
        Ok(Some(self.read() - self.before))
    }
}

/// The programs of netobs that follow lookups, with those that count packets where
/// there are interfaces to hang them on.
pub(crate) struct Lookups {
    name: &'static str,
    detail: bool,
    /// The namespace whose decisions count as seen.
    cookie: u64,
    packets: Option<Netobs>,
    running: Option<LookupPrograms>,
}

impl Lookups {
    /// Totals per namespace, as `netobs watch` and `netobs serve` count them.
    pub(crate) fn totals(cookie: u64) -> Self {
        Self::new("netobs, totals", false, cookie, None)
    }

    /// Hits per route too, as `netobs routes` counts them.
    pub(crate) fn per_route(cookie: u64) -> Self {
        Self::new("netobs, per route", true, cookie, None)
    }

    /// Totals, and packets.
    pub(crate) fn and_packets(interfaces: &[String]) -> anyhow::Result<Self> {
        let packets = Netobs::new(interfaces)?;
        Ok(Self::new("netobs, with lookups", false, 0, Some(packets)))
    }

    fn new(name: &'static str, detail: bool, cookie: u64, packets: Option<Netobs>) -> Self {
        Self {
            name,
            detail,
            cookie,
            packets,
            running: None,
        }
    }

    /// Decisions of its namespace so far.
    fn decisions(&self) -> anyhow::Result<u64> {
        let running = self.running.as_ref().context("the programs do not run")?;
        let all = running.lookups()?;
        Ok(all
            .get(&self.cookie)
            .map_or(0, netobs::model::lookups::Lookups::total))
    }
}

impl Observer for Lookups {
    fn name(&self) -> &str {
        self.name
    }

    fn start(&mut self) -> anyhow::Result<()> {
        let settings = Settings {
            detail: self.detail,
            calls: true,
            host: 0,
            namespaces: 4096,
            destinations: 65536,
            failures: 16384,
        };
        self.running = Some(LookupPrograms::start(settings, None)?);
        match &mut self.packets {
            Some(packets) => packets.start(),
            None => Ok(()),
        }
    }

    fn stop(&mut self) -> anyhow::Result<()> {
        self.running = None;
        match &mut self.packets {
            Some(packets) => packets.stop(),
            None => Ok(()),
        }
    }

    fn reload(&mut self) -> anyhow::Result<()> {
        match &mut self.packets {
            Some(packets) => packets.reload(),
            None => Ok(()),
        }
    }

    fn seen(&mut self) -> anyhow::Result<Option<u64>> {
        match &mut self.packets {
            Some(packets) => packets.seen(),
            None => Ok(Some(self.decisions()?)),
        }
    }
}

/// Programs that do nothing, at tracepoints where netobs has programs.
pub(crate) struct Tracepoints {
    name: &'static str,
    /// Programs and tracepoints.
    programs: &'static [(&'static str, &'static str)],
    ebpf: Option<Ebpf>,
}

impl Tracepoints {
    /// At that of IPv4 lookups.
    pub(crate) fn visit() -> Self {
        Self {
            name: "an empty program",
            programs: &[("empty_visit", "fib_table_lookup")],
            ebpf: None,
        }
    }

    /// At all that an IPv4 packet passes.
    pub(crate) fn all() -> Self {
        Self {
            name: "empty programs at all tracepoints",
            programs: &[
                ("empty_visit", "fib_table_lookup"),
                ("empty_receive", "netif_receive_skb"),
                ("empty_drop", "kfree_skb"),
            ],
            ebpf: None,
        }
    }
}

impl Observer for Tracepoints {
    fn name(&self) -> &str {
        self.name
    }

    fn start(&mut self) -> anyhow::Result<()> {
        let mut ebpf = EbpfLoader::new().load(OBJECT)?;
        let types = Btf::from_sys_fs()?;
        for (name, tracepoint) in self.programs {
            let program = ebpf.program_mut(name);
            let program: &mut BtfTracePoint = program
                .with_context(|| format!("no program {name}"))?
                .try_into()?;
            program.load(tracepoint, &types)?;
            program.attach()?;
        }
        self.ebpf = Some(ebpf);
        Ok(())
    }

    fn stop(&mut self) -> anyhow::Result<()> {
        self.ebpf = None;
        Ok(())
    }
}
