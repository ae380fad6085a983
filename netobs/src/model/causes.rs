//! Why the kernel's counters of an interface and ours differ though nothing moves:
//! what was found on the machine, and what may follow from it.
//!
//! Everything here is a possible cause: the evidence is that something is there, or
//! that a counter of losses grew, and never that it was these very packets.

use std::fmt;

use super::{
    counters::Directions,
    neighbours::{self, Neighbours, Program, Via},
    sample::Hook,
};

/// What the kernel lost at an interface, as its own counters tell it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Received with errors.
    pub rx_errors: u64,
    /// Received and dropped before anybody took them.
    pub rx_dropped: u64,
    /// Not taken from the device in time.
    pub rx_missed: u64,
    /// Not sent because of errors.
    pub tx_errors: u64,
    /// Dropped by the device on the way out.
    pub tx_dropped: u64,
    /// Not sent for lack of a carrier.
    pub tx_carrier: u64,
}

/// The queueing discipline of an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Queue {
    /// Its kind.
    pub kind: String,
    /// Packets that it dropped.
    pub dropped: u64,
    /// Packets that wait in it.
    pub waiting: u64,
}

/// What was found about an interface at one instant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evidence {
    /// Who hangs on it.
    pub neighbours: Neighbours,
    /// What the kernel lost there.
    pub losses: Losses,
    /// Whether it can send.
    pub carrier: bool,
    /// Its queueing discipline; `None` for none.
    pub queue: Option<Queue>,
    /// Packets dropped because the backlog of a CPU was full, of all interfaces.
    pub backlog_drops: u64,
    /// Whether the kernel joins packets ahead of TC.
    pub joins: bool,
    /// AF_XDP sockets in its namespace.
    pub xdp_sockets: u64,
    /// Packet sockets that may send by it.
    pub packet_sockets: u64,
}

/// Something that may be behind a difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Our programs are not on the interface.
    Absent,
    /// Somebody's program has packets before ours.
    Ahead(Program),
    /// AF_XDP sockets receive and send past TC.
    XdpSockets(u64),
    /// Packets are joined before TC sees them.
    Joined,
    /// The device or the stack dropped what it had received.
    Received(Losses),
    /// A CPU's backlog was full.
    Backlog(u64),
    /// Packet sockets can send past TC.
    PacketSockets(u64),
    /// The queueing discipline dropped behind our hook.
    Queue(Queue),
    /// There is no carrier.
    NoCarrier,
    /// The device dropped behind our hook.
    Sent(Losses),
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("our programs are not on the interface at the moment"),
            Self::Ahead(program) => write!(
                f,
                "{program} has packets before us, and may have dropped or redirected some"
            ),
            Self::XdpSockets(count) => write!(
                f,
                "AF_XDP sockets are open in this namespace ({count}): their packets pass no TC hook"
            ),
            Self::Joined => f.write_str(
                "receive offload (GRO) is on: it may join packets before we see them, after the \
                 device has counted them one by one",
            ),
            Self::Received(losses) => write!(
                f,
                "lost on the way in: {} dropped, {} with errors, {} missed",
                losses.rx_dropped, losses.rx_errors, losses.rx_missed
            ),
            Self::Backlog(count) => write!(
                f,
                "the backlog of a CPU was full and {count} packets were dropped, of this or other \
                 interfaces (net.core.netdev_max_backlog)"
            ),
            Self::PacketSockets(count) => write!(
                f,
                "packet sockets are open here ({count}): what they send with PACKET_QDISC_BYPASS \
                 passes no TC hook"
            ),
            Self::Queue(queue) => write!(
                f,
                "the queueing discipline {} behind us dropped {} packets, and {} wait in it",
                queue.kind, queue.dropped, queue.waiting
            ),
            Self::NoCarrier => {
                f.write_str("the interface has no carrier: what is sent is dropped behind us")
            }
            Self::Sent(losses) => write!(
                f,
                "lost behind us on the way out: {} dropped, {} with errors, {} without carrier",
                losses.tx_dropped, losses.tx_errors, losses.tx_carrier
            ),
        }
    }
}

/// What of `now` may explain a `difference` (packets that the kernel counted and we
/// did not, in the directions of the interface that carries our programs; negative:
/// the reverse). `own` are the ids of our programs for ingress and egress, which hang
/// there by `hook`; `before` was found when we attached, and without it losses count
/// from the beginning of the interface.
#[must_use]
pub fn causes(
    difference: Directions<i64>,
    own: [u32; 2],
    hook: Hook,
    now: &Evidence,
    before: Option<&Evidence>,
) -> Vec<Cause> {
    let mut causes = Vec::new();
    if difference == Directions::default() {
        return causes;
    }
    if !is_there(&now.neighbours, own) {
        causes.push(Cause::Absent);
    }
    let losses = since(now.losses, before.map(|before| before.losses));
    if difference.rx > 0 {
        unseen_in(&mut causes, own[0], hook, now, before, losses);
    }
    if difference.rx > 0 || difference.tx > 0 {
        causes.extend((now.xdp_sockets > 0).then_some(Cause::XdpSockets(now.xdp_sockets)));
    }
    if difference.tx > 0 {
        let sockets = now.packet_sockets;
        causes.extend((sockets > 0).then_some(Cause::PacketSockets(sockets)));
    }
    if difference.tx < 0 {
        unsent(&mut causes, now, before, losses);
    }
    causes
}

/// What keeps from us what the interface received.
fn unseen_in(
    causes: &mut Vec<Cause>,
    own: u32,
    hook: Hook,
    now: &Evidence,
    before: Option<&Evidence>,
    losses: Losses,
) {
    let is_own = |program: &Program| is_tc(program) && program.id == Some(own);
    let ahead = neighbours::ahead(&now.neighbours.ingress, hook, is_own);
    causes.extend(ahead.cloned().map(Cause::Ahead));
    causes.extend(now.joins.then_some(Cause::Joined));
    if losses.rx_dropped + losses.rx_errors + losses.rx_missed > 0 {
        causes.push(Cause::Received(losses));
    }
    // It counts since the machine started, for every interface.
    let dropped = before.map_or(0, |before| {
        now.backlog_drops.saturating_sub(before.backlog_drops)
    });
    causes.extend((dropped > 0).then_some(Cause::Backlog(dropped)));
}

/// What keeps from the wire what we saw leave.
fn unsent(causes: &mut Vec<Cause>, now: &Evidence, before: Option<&Evidence>, losses: Losses) {
    if let Some(queue) = &now.queue {
        let same = before
            .and_then(|before| before.queue.as_ref())
            .filter(|before| before.kind == queue.kind);
        let earlier = same.map_or(0, |before| before.dropped);
        // Another one of its kind has begun anew.
        let dropped = queue.dropped.checked_sub(earlier).unwrap_or(queue.dropped);
        if dropped + queue.waiting > 0 {
            causes.push(Cause::Queue(Queue {
                dropped,
                ..queue.clone()
            }));
        }
    }
    causes.extend((!now.carrier).then_some(Cause::NoCarrier));
    if losses.tx_dropped + losses.tx_errors + losses.tx_carrier > 0 {
        causes.push(Cause::Sent(losses));
    }
}

fn is_tc(program: &Program) -> bool {
    !matches!(program.via, Via::Xdp(_))
}

fn is_there(neighbours: &Neighbours, [ingress, egress]: [u32; 2]) -> bool {
    let has = |programs: &[Program], id| programs.iter().any(|p| is_tc(p) && p.id == Some(id));
    has(&neighbours.ingress, ingress) && has(&neighbours.egress, egress)
}

fn since(now: Losses, before: Option<Losses>) -> Losses {
    let before = before.unwrap_or_default();
    Losses {
        rx_errors: now.rx_errors.saturating_sub(before.rx_errors),
        rx_dropped: now.rx_dropped.saturating_sub(before.rx_dropped),
        rx_missed: now.rx_missed.saturating_sub(before.rx_missed),
        tx_errors: now.tx_errors.saturating_sub(before.tx_errors),
        tx_dropped: now.tx_dropped.saturating_sub(before.tx_dropped),
        tx_carrier: now.tx_carrier.saturating_sub(before.tx_carrier),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::neighbours::XdpMode, *};

    const OWN: [u32; 2] = [12, 13];

    fn program(via: Via, name: &str, id: u32) -> Program {
        Program {
            via,
            name: name.to_owned(),
            id: Some(id),
            ours: name.starts_with("netobs_"),
        }
    }

    fn quiet() -> Evidence {
        Evidence {
            neighbours: Neighbours {
                ingress: vec![program(Via::Tcx, "netobs_ingress", OWN[0])],
                egress: vec![program(Via::Tcx, "netobs_egress", OWN[1])],
            },
            carrier: true,
            ..Evidence::default()
        }
    }

    fn difference(rx: i64, tx: i64) -> Directions<i64> {
        Directions { rx, tx }
    }

    fn told(difference: Directions<i64>, now: &Evidence, before: &Evidence) -> Vec<Cause> {
        causes(difference, OWN, Hook::Tcx, now, Some(before))
    }

    #[test]
    fn without_a_difference_or_evidence_there_is_no_cause() {
        let mut now = quiet();
        now.losses.rx_dropped = 7;
        assert_eq!(told(difference(0, 0), &now, &quiet()), []);
        assert_eq!(told(difference(3, -3), &quiet(), &quiet()), []);
        // It was there before us.
        assert_eq!(told(difference(3, 3), &now, &now), []);
    }

    #[test]
    fn each_way_has_causes_of_its_own() {
        let mut now = quiet();
        let xdp = program(Via::Xdp(XdpMode::Generic), "dropper", 4);
        now.neighbours.ingress.insert(0, xdp.clone());
        let queue = Queue {
            kind: "tbf".to_owned(),
            dropped: 9,
            waiting: 1,
        };
        now.queue = Some(queue.clone());
        now.backlog_drops = 5;
        now.packet_sockets = 1;
        assert_eq!(
            told(difference(3, 0), &now, &quiet()),
            [Cause::Ahead(xdp), Cause::Backlog(5)]
        );
        assert_eq!(
            told(difference(0, 2), &now, &quiet()),
            [Cause::PacketSockets(1)]
        );
        assert_eq!(
            told(difference(0, -2), &now, &quiet()),
            [Cause::Queue(queue)]
        );
    }

    #[test]
    fn only_what_grew_counts() {
        let queue = |dropped| {
            Some(Queue {
                kind: "tbf".to_owned(),
                dropped,
                waiting: 0,
            })
        };
        let (mut before, mut now) = (quiet(), quiet());
        before.queue = queue(5);
        before.losses.tx_dropped = 3;
        now.queue = queue(6);
        now.losses.tx_dropped = 5;
        let sent = Losses {
            tx_dropped: 2,
            ..Losses::default()
        };
        assert_eq!(
            told(difference(0, -1), &now, &before),
            [
                Cause::Queue(queue(1).unwrap_or_default()),
                Cause::Sent(sent)
            ]
        );
        // Without a beginning the backlog says nothing about this interface.
        now.backlog_drops = 1000;
        let causes = causes(difference(1, 0), OWN, Hook::Tcx, &now, None);
        assert_eq!(causes, []);
    }

    #[test]
    fn programs_of_ours_that_are_gone_are_the_first_cause() {
        let mut now = quiet();
        now.neighbours.egress.clear();
        assert_eq!(told(difference(0, 1), &now, &quiet()), [Cause::Absent]);
        // Another netobs's do not count as ours.
        now = quiet();
        now.neighbours.ingress[0].id = Some(99);
        assert_eq!(told(difference(1, 0), &now, &quiet()), [Cause::Absent]);
    }

    #[test]
    fn a_cause_is_told_in_words() {
        let program = program(Via::Tcx, "other", 9);
        assert_eq!(
            Cause::Ahead(program).to_string(),
            "tcx other#9 has packets before us, and may have dropped or redirected some"
        );
        let losses = Losses {
            rx_dropped: 3,
            ..Losses::default()
        };
        assert_eq!(
            Cause::Received(losses).to_string(),
            "lost on the way in: 3 dropped, 0 with errors, 0 missed"
        );
    }
}
