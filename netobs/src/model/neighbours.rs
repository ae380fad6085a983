//! Who else hangs on an interface, in the order in which packets meet them, and
//! what that means for what netobs counts.

use std::fmt;

use super::sample::Hook;

/// Where a program hangs, in the order in which packets meet the places.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Via {
    /// At the driver, on the way in only.
    Xdp(XdpMode),
    /// In the TCX chain.
    Tcx,
    /// On the clsact (or ingress) qdisc, with this priority.
    Clsact(u16),
}

/// Where exactly an XDP program runs, in the order in which packets meet it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum XdpMode {
    /// On the device.
    Offload,
    /// In the driver, before there is an skb.
    Native,
    /// In the stack, on an skb.
    Generic,
}

impl XdpMode {
    /// As in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Offload => "offload",
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

/// A program or filter on an interface.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Program {
    /// Where it hangs.
    pub via: Via,
    /// Its name; the kind of a filter that is no eBPF program.
    pub name: String,
    /// The kernel's id; `None` for what is no eBPF program.
    pub id: Option<u32>,
    /// Whether it is a netobs's, of whichever.
    pub ours: bool,
}

impl Program {
    /// The name, with the id where there is one.
    #[must_use]
    pub fn label(&self) -> String {
        match self.id {
            Some(id) => format!("{}#{id}", self.name),
            None => self.name.clone(),
        }
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let label = self.label();
        match self.via {
            Via::Xdp(mode) => write!(f, "xdp {} {label}", mode.as_str())?,
            Via::Tcx => write!(f, "tcx {label}")?,
            Via::Clsact(priority) => write!(f, "clsact {label}, priority {priority}")?,
        }
        if self.ours {
            f.write_str(" (ours)")?;
        }
        Ok(())
    }
}

/// The programs on an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Neighbours {
    /// Those that packets meet on their way in, in that order.
    pub ingress: Vec<Program>,
    /// On their way out.
    pub egress: Vec<Program>,
}

impl Neighbours {
    /// Whether nobody is there.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ingress.is_empty() && self.egress.is_empty()
    }
}

/// The others among `programs` that packets meet before the first that `is_own`
/// names. Where it names none: before the place that we would take by `hook`.
pub fn ahead(
    programs: &[Program],
    hook: Hook,
    is_own: impl Fn(&Program) -> bool,
) -> impl Iterator<Item = &Program> {
    let own = programs.iter().position(is_own);
    let place = own.unwrap_or_else(|| {
        let before = |program: &&Program| match program.via {
            Via::Xdp(_) => true,
            Via::Tcx => hook == Hook::Clsact,
            Via::Clsact(_) => false,
        };
        programs.iter().take_while(before).count()
    });
    programs[..place].iter().filter(|program| !program.ours)
}

/// Programs of others that are known to send packets past hooks.
struct Family {
    /// How their names begin. The kernel keeps 15 characters of a name.
    prefix: &'static str,
    /// What to know of them.
    habit: &'static str,
}

/// <https://github.com/cilium/cilium/blob/v1.18.0/bpf/bpf_lxc.c>,
/// <https://github.com/projectcalico/calico/blob/v3.30.0/felix/bpf-gpl/tc.c>,
/// <https://github.com/xdp-project/xdp-tools/blob/v1.5.5/lib/libxdp/xdp-dispatcher.c.in>.
const FAMILIES: [Family; 4] = [
    Family {
        prefix: "cil_",
        habit: "Cilium: with its host routing, packets go from the network card straight into a \
                container (bpf_redirect_peer), past the hooks of the container's host end: netobs \
                does not count them",
    },
    Family {
        prefix: "cali",
        habit: "Calico's eBPF dataplane: with BPFRedirectToPeer, packets go straight into a \
                container, past the hooks of its host end: netobs does not count them",
    },
    Family {
        prefix: "xdp_dispatcher",
        habit: "libxdp's dispatcher: it runs further programs (`xdp-loader status` names them)",
    },
    Family {
        prefix: "tc_dispatcher",
        habit: "bpfman's dispatcher: it runs further programs (`bpfman list` names them)",
    },
];

/// What somebody has to know who relies on what netobs counts at this interface.
/// `ways` are the two directions as the reader knows them, in and out.
#[must_use]
pub fn remarks(neighbours: &Neighbours, hook: Hook, ways: [&str; 2]) -> Vec<String> {
    let mut remarks = Vec::new();
    for (programs, way) in [
        (&neighbours.ingress, ways[0]),
        (&neighbours.egress, ways[1]),
    ] {
        for program in ahead(programs, hook, |program| program.ours) {
            remarks.push(format!("{way}: {}", verdict(program)));
        }
    }
    let names = || neighbours.ingress.iter().chain(&neighbours.egress);
    for family in &FAMILIES {
        if names().any(|program| program.name.starts_with(family.prefix)) {
            remarks.push(family.habit.to_owned());
        }
    }
    remarks
}

fn verdict(program: &Program) -> String {
    let name = &program.name;
    match program.via {
        Via::Xdp(XdpMode::Generic) => format!(
            "{name} (XDP) runs before any TC program: what it drops or redirects is not counted by \
             netobs, but it is by the interface"
        ),
        Via::Xdp(_) => format!(
            "{name} (XDP) runs before any TC program: what it drops or redirects is not counted by \
             netobs"
        ),
        Via::Tcx | Via::Clsact(_) => format!(
            "{name} runs ahead of netobs: what it drops, redirects or lets pass for good is not \
             counted by netobs"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(via: Via, name: &str) -> Program {
        Program {
            via,
            name: name.to_owned(),
            id: Some(7),
            ours: name.starts_with("netobs"),
        }
    }

    fn names<'a>(programs: impl Iterator<Item = &'a Program>) -> Vec<&'a str> {
        programs.map(|program| program.name.as_str()).collect()
    }

    fn before(programs: &[Program], hook: Hook) -> Vec<&str> {
        names(ahead(programs, hook, |program| program.ours))
    }

    #[test]
    fn ahead_is_who_comes_before_the_first_of_ours() {
        let chain = [
            program(Via::Xdp(XdpMode::Native), "x"),
            program(Via::Tcx, "a"),
            program(Via::Tcx, "netobs_ingress"),
            program(Via::Tcx, "b"),
            program(Via::Tcx, "netobs_ingress"),
            program(Via::Clsact(1), "c"),
        ];
        assert_eq!(before(&chain, Hook::Tcx), ["x", "a"]);
        // The second of ours has the first ahead, which is no neighbour.
        let second = |p: &Program| std::ptr::eq(p, &raw const chain[4]);
        assert_eq!(names(ahead(&chain, Hook::Tcx, second)), ["x", "a", "b"]);
        assert_eq!(before(&chain[2..], Hook::Tcx), [""; 0]);
    }

    #[test]
    fn where_we_are_not_it_is_who_would_be_before_us() {
        let chain = [
            program(Via::Xdp(XdpMode::Generic), "x"),
            program(Via::Tcx, "a"),
            program(Via::Clsact(1), "c"),
        ];
        assert_eq!(before(&chain, Hook::Tcx), ["x"]);
        assert_eq!(before(&chain, Hook::Clsact), ["x", "a"]);
    }

    #[test]
    fn remarks_name_the_way_and_the_family() {
        let neighbours = Neighbours {
            ingress: vec![
                program(Via::Xdp(XdpMode::Generic), "dropper"),
                program(Via::Tcx, "netobs_ingress"),
                program(Via::Tcx, "cil_from_contai"),
            ],
            egress: vec![
                program(Via::Tcx, "mine"),
                program(Via::Tcx, "netobs_egress"),
            ],
        };
        let remarks = remarks(&neighbours, Hook::Tcx, ["tx", "rx"]);
        assert_eq!(remarks.len(), 3, "{remarks:?}");
        assert!(remarks[0].starts_with("tx: dropper (XDP)"), "{remarks:?}");
        assert!(remarks[1].starts_with("rx: mine runs ahead"), "{remarks:?}");
        assert!(remarks[2].contains("bpf_redirect_peer"), "{remarks:?}");
    }

    #[test]
    fn with_nobody_ahead_there_is_nothing_to_say() {
        let neighbours = Neighbours {
            ingress: vec![
                program(Via::Tcx, "netobs_ingress"),
                program(Via::Clsact(100), "u32"),
            ],
            egress: vec![program(Via::Tcx, "other")],
        };
        assert!(remarks(&neighbours, Hook::Tcx, ["rx", "tx"]).is_empty());
    }

    #[test]
    fn a_program_is_told_with_its_place() {
        let mut filter = program(Via::Clsact(49152), "matchall");
        filter.id = None;
        assert_eq!(filter.to_string(), "clsact matchall, priority 49152");
        assert_eq!(
            program(Via::Tcx, "netobs_egress").to_string(),
            "tcx netobs_egress#7 (ours)"
        );
        let xdp = program(Via::Xdp(XdpMode::Native), "x");
        assert_eq!(xdp.to_string(), "xdp native x#7");
    }
}
