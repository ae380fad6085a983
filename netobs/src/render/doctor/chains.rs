//! Who is attached to an interface, in the order in which packets meet them.

use std::io;

use serde::Serialize;

use super::WIDTH;
use crate::{
    model::{
        neighbours::{self, Neighbours, Program, Via},
        sample::Hook,
    },
    render::text::{harmless, wrapped},
};

/// Interfaces that are named where many are alike.
const NAMED: usize = 6;

/// Which end of a namespace's interface it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// That in our own namespace: what comes in here was sent there.
    HostEnd,
    /// The interface itself.
    Inside,
}

impl Place {
    /// The namespace's directions of ingress and egress.
    fn ways(self) -> [&'static str; 2] {
        match self {
            Self::HostEnd => ["tx", "rx"],
            Self::Inside => ["rx", "tx"],
        }
    }
}

/// One program or filter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// `xdp`, `tcx` or `clsact`.
    pub via: &'static str,
    /// `native`, `generic` or `offload` of XDP.
    pub mode: Option<&'static str>,
    /// Priority of a clsact filter.
    pub priority: Option<u16>,
    /// Its name, or the kind of a filter that is no eBPF program.
    pub name: String,
    /// The kernel's id, of eBPF programs.
    pub id: Option<u32>,
    /// Whether it is a netobs's.
    pub ours: bool,
}

/// The programs on one interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Chain {
    /// The namespace's name.
    pub namespace: String,
    /// The interface that carries them.
    pub interface: String,
    /// By TCX, ingress: `name#id`.
    pub tcx_ingress: Vec<String>,
    /// By TCX, egress.
    pub tcx_egress: Vec<String>,
    /// Filters on the clsact qdisc, ingress.
    pub clsact_ingress: Vec<String>,
    /// Filters on the clsact qdisc, egress.
    pub clsact_egress: Vec<String>,
    /// Which end it is.
    pub place: Place,
    /// All that packets meet on their way in, in that order.
    pub ingress: Vec<Entry>,
    /// On their way out.
    pub egress: Vec<Entry>,
    /// Whether no program of others runs before netobs's on the way in; `None`
    /// where there is none of netobs's.
    pub first_ingress: Option<bool>,
    /// The same on the way out.
    pub first_egress: Option<bool>,
    /// What this means for what netobs counts, in words.
    pub remarks: Vec<String>,
    #[serde(skip)]
    neighbours: Neighbours,
}

impl Chain {
    /// `neighbours` on an interface that netobs would observe by `hook`.
    #[must_use]
    pub fn new(
        namespace: &str,
        interface: &str,
        place: Place,
        hook: Hook,
        neighbours: Neighbours,
    ) -> Self {
        let Neighbours { ingress, egress } = &neighbours;
        Self {
            namespace: namespace.to_owned(),
            interface: interface.to_owned(),
            tcx_ingress: labels(ingress, |via| via == Via::Tcx),
            tcx_egress: labels(egress, |via| via == Via::Tcx),
            clsact_ingress: names(ingress),
            clsact_egress: names(egress),
            place,
            ingress: ingress.iter().map(entry).collect(),
            egress: egress.iter().map(entry).collect(),
            first_ingress: first(ingress, hook),
            first_egress: first(egress, hook),
            remarks: neighbours::remarks(&neighbours, hook, place.ways()),
            neighbours,
        }
    }

    /// An interface that could not be looked at because of `why`.
    #[must_use]
    pub fn unknown(namespace: &str, interface: &str, place: Place, why: &str) -> Self {
        Self {
            remarks: vec![format!("who is attached cannot be told: {why}")],
            ..Self::new(
                namespace,
                interface,
                place,
                Hook::None,
                Neighbours::default(),
            )
        }
    }

    /// Whether there is nothing to tell.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.neighbours.is_empty() && self.remarks.is_empty()
    }

    fn label(&self) -> String {
        format!(
            "{} {}",
            harmless(&self.namespace),
            harmless(&self.interface)
        )
    }

    /// What interfaces have to share to be told of together: all but the ids.
    fn likeness(&self) -> (Place, Vec<Program>, Vec<Program>, &[String]) {
        let bare = |programs: &[Program]| -> Vec<Program> {
            let bare = |program: &Program| Program {
                id: None,
                ..program.clone()
            };
            programs.iter().map(bare).collect()
        };
        let Neighbours { ingress, egress } = &self.neighbours;
        (self.place, bare(ingress), bare(egress), &self.remarks)
    }
}

fn labels(programs: &[Program], wanted: impl Fn(Via) -> bool) -> Vec<String> {
    let wanted = programs.iter().filter(|program| wanted(program.via));
    wanted.map(Program::label).collect()
}

/// Of filters the name alone, as ever.
fn names(programs: &[Program]) -> Vec<String> {
    let filters = programs
        .iter()
        .filter(|program| matches!(program.via, Via::Clsact(_)));
    filters.map(|program| program.name.clone()).collect()
}

fn entry(program: &Program) -> Entry {
    let (via, mode, priority) = match program.via {
        Via::Xdp(mode) => ("xdp", Some(mode.as_str()), None),
        Via::Tcx => ("tcx", None, None),
        Via::Clsact(priority) => ("clsact", None, Some(priority)),
    };
    Entry {
        via,
        mode,
        priority,
        name: program.name.clone(),
        id: program.id,
        ours: program.ours,
    }
}

fn first(programs: &[Program], hook: Hook) -> Option<bool> {
    let ours = |program: &Program| program.ours;
    programs
        .iter()
        .any(ours)
        .then(|| neighbours::ahead(programs, hook, ours).next().is_none())
}

/// Writes `chains` for people, those that are alike together; `interfaces` were
/// looked at.
pub(super) fn table(
    chains: &[Chain],
    interfaces: usize,
    out: &mut dyn io::Write,
) -> io::Result<()> {
    let alone = interfaces.saturating_sub(chains.len());
    if chains.is_empty() {
        return writeln!(
            out,
            "nobody is attached to what netobs would observe (interfaces: {alone})"
        );
    }
    writeln!(out)?;
    writeln!(
        out,
        "who is attached to what netobs would observe, in the order in which packets"
    )?;
    writeln!(out, "meet them:")?;
    for group in groups(chains) {
        one(&group, out)?;
    }
    if alone > 0 {
        writeln!(
            out,
            "nobody is attached to the others (interfaces: {alone})"
        )?;
    }
    Ok(())
}

/// Those that are alike, in the order of the first of each.
fn groups(chains: &[Chain]) -> Vec<Vec<&Chain>> {
    let mut groups: Vec<Vec<&Chain>> = Vec::new();
    for chain in chains {
        match groups
            .iter_mut()
            .find(|group| group[0].likeness() == chain.likeness())
        {
            Some(group) => group.push(chain),
            None => groups.push(vec![chain]),
        }
    }
    groups
}

fn one(group: &[&Chain], out: &mut dyn io::Write) -> io::Result<()> {
    let named: Vec<String> = group.iter().take(NAMED).map(|c| c.label()).collect();
    let mut heading = named.join(", ");
    if let Some(more) = group.len().checked_sub(NAMED).filter(|more| *more > 0) {
        heading.push_str(&format!(" and {more} more like them"));
    }
    indented("", "  ", &heading, out)?;
    let ways = group[0].place.ways();
    type Of = fn(&Chain) -> &[Program];
    let ingress: Of = |chain| &chain.neighbours.ingress;
    let egress: Of = |chain| &chain.neighbours.egress;
    for (hook, way, of) in [("ingress", ways[0], ingress), ("egress", ways[1], egress)] {
        let mut label = format!("{hook} ({way})");
        for place in 0..of(group[0]).len() {
            let same: Vec<&Program> = group.iter().map(|chain| &of(chain)[place]).collect();
            writeln!(out, "  {label:<13} {}", harmless(&together(&same)))?;
            label.clear();
        }
    }
    for remark in &group[0].remarks {
        indented("  ! ", "    ", &harmless(remark), out)?;
    }
    Ok(())
}

/// A program that several interfaces have, with its id where it is the same.
fn together(same: &[&Program]) -> String {
    if same.iter().all(|program| *program == same[0]) {
        return same[0].to_string();
    }
    Program {
        id: None,
        ..same[0].clone()
    }
    .to_string()
}

fn indented(first: &str, next: &str, text: &str, out: &mut dyn io::Write) -> io::Result<()> {
    let mut indent = first;
    for line in wrapped(text, WIDTH - next.len()) {
        writeln!(out, "{indent}{line}")?;
        indent = next;
    }
    Ok(())
}
