//! What is written into maps for others: readers of the maps, and the netobs that
//! finds them pinned.

use log::debug;
use netobs_common::{Before, NETNS_NAME, Netns, Record, SlotOwner};

use super::{Observed, Observer, Spot};
use crate::{
    bpf::{pins, qdisc},
    inventory::build::Row,
    model::{
        baseline::Baseline,
        counters::Directions,
        sample::{Kind, NsKey},
    },
    world::gather::Machine,
};

impl Observer {
    /// Writes down whose each slot is, and who the namespaces are, where that has
    /// changed.
    pub(super) fn write_down(&mut self) {
        self.describe_all();
        let names: Vec<(u64, Netns)> = self
            .rows
            .values()
            .filter_map(|row| {
                let cookie = row.cookie?;
                let known = self.notes.get(&cookie).copied().unwrap_or_default();
                let note = named(known, row);
                (note != known).then_some((cookie, note))
            })
            .collect();
        for (cookie, note) in names {
            self.write_note(cookie, note);
        }
    }

    /// Writes down whose each slot is, where that has changed.
    pub(super) fn describe_all(&mut self) {
        let changed: Vec<Spot> = self
            .observed
            .iter()
            .filter(|(spot, observed)| self.owner(**spot, observed) != observed.described)
            .map(|(spot, _)| *spot)
            .collect();
        for spot in changed {
            let Some(mut observed) = self.observed.remove(&spot) else {
                continue;
            };
            if let Err(error) = self.describe(spot, &mut observed) {
                debug!("owner of slot {}: {error:#}", observed.slot);
            }
            self.observed.insert(spot, observed);
        }
    }

    /// Writes down whose the slot of `observed` is, where that has changed.
    pub(super) fn describe(&mut self, spot: Spot, observed: &mut Observed) -> anyhow::Result<()> {
        let owner = self.owner(spot, observed);
        if owner != observed.described {
            self.programs(spot.scope)?.describe(observed.slot, owner)?;
            observed.described = owner;
        }
        Ok(())
    }

    /// Whose the slot of `observed` is.
    fn owner(&self, spot: Spot, observed: &Observed) -> SlotOwner {
        let row = self.rows.get(&observed.owner);
        let (before, fast) = before(observed.baseline.as_ref());
        let own_qdisc = if self.made_qdiscs.contains(&spot) {
            SlotOwner::OWN_QDISC
        } else {
            0
        };
        SlotOwner {
            cookie: observed.owner.cookie().unwrap_or(0),
            inode: row.and_then(|row| row.inode).unwrap_or(0),
            generation: 0,
            ifindex: observed.interface.ifindex.unwrap_or(0),
            hook_ifindex: spot.ifindex,
            name: interface_name(observed.interface.name.as_deref().unwrap_or_default()),
            since: pins::since_1970(observed.since),
            before,
            flags: fast | own_qdisc,
            handle: observed.attached.handle,
            detached: observed.detached,
            reserved: [0; 3],
        }
    }

    /// Adds what a slot counted to what is remembered of the namespace `owner`. The
    /// generation tells whether that was done already by one that was killed after it.
    pub(super) fn fold(&mut self, owner: NsKey, generation: u64, records: [Record; 2]) {
        let Some(cookie) = owner.cookie().filter(|cookie| *cookie != 0) else {
            return;
        };
        let mut note = self.notes.get(&cookie).copied().unwrap_or_default();
        if note.folded == generation {
            return;
        }
        note.folded = generation;
        note.rx.add(&records[0]);
        note.tx.add(&records[1]);
        self.write_note(cookie, note);
    }

    fn write_note(&mut self, cookie: u64, note: Netns) {
        match self.host.note(cookie, &note) {
            Ok(()) => {
                self.notes.insert(cookie, note);
            }
            Err(error) => {
                debug!("namespace {cookie}: {error:#}");
                self.notes_full += 1;
            }
        }
    }

    /// What has ended and was shown is remembered no longer.
    pub(super) fn forget_departed(&mut self) {
        for cookie in std::mem::take(&mut self.departed) {
            if self.notes.remove(&cookie).is_some() {
                self.host.unnote(cookie);
            }
        }
    }

    /// Leaves everything where it is, to be found by the next.
    pub(super) async fn leave(mut self, machine: &Machine) {
        self.read_kernel(machine, None);
        self.write_down();
        self.forget_departed();
        for spot in std::mem::take(&mut self.made_qdiscs) {
            if !self.observed.contains_key(&spot) {
                let removed = qdisc::remove_if_empty(machine, spot.scope, spot.ifindex).await;
                if let Err(error) = removed {
                    debug!(
                        "interface {}: the clsact qdisc stays: {error:#}",
                        spot.ifindex
                    );
                }
            }
        }
        for (_, observed) in self.observed.drain() {
            observed.attached.leave();
        }
    }
}

fn named(known: Netns, row: &Row) -> Netns {
    let mut name = [0; NETNS_NAME];
    for (to, from) in name.iter_mut().zip(row.name.bytes()) {
        *to = from;
    }
    Netns {
        inode: row.inode.unwrap_or(known.inode),
        kind: number(row.kind),
        name_len: u32::try_from(row.name.len().min(NETNS_NAME)).unwrap_or(0),
        name,
        ..known
    }
}

/// A namespace as it was remembered.
pub(super) fn row(cookie: u64, note: &Netns) -> Row {
    let key = NsKey::Cookie(cookie);
    Row {
        key,
        name: match name(note) {
            name if name.is_empty() => key.to_string(),
            name => name,
        },
        cookie: Some(cookie),
        inode: (note.inode != 0).then_some(note.inode),
        kind: kind(note),
        reason: None,
        members: Vec::new(),
        interfaces: Vec::new(),
        shown: true,
    }
}

/// The row's name.
fn name(note: &Netns) -> String {
    let length = (note.name_len as usize).min(NETNS_NAME);
    String::from_utf8_lossy(&note.name[..length]).into_owned()
}

fn number(kind: Kind) -> u32 {
    match kind {
        Kind::Host => 0,
        Kind::Container => 1,
        Kind::Named => 2,
        Kind::Process => 3,
    }
}

/// The reverse.
fn kind(note: &Netns) -> Kind {
    match note.kind {
        0 => Kind::Host,
        1 => Kind::Container,
        2 => Kind::Named,
        _ => Kind::Process,
    }
}

/// IFNAMSIZ leaves room for the NUL.
fn interface_name(text: &str) -> [u8; 16] {
    let mut name = [0; 16];
    for (to, from) in name.iter_mut().take(15).zip(text.bytes()) {
        *to = from;
    }
    name
}

fn before(baseline: Option<&Directions<Baseline>>) -> ([Before; 2], u32) {
    let Some(baseline) = baseline else {
        return ([Before::default(); 2], 0);
    };
    let mut fast = 0;
    let directions = [baseline.rx, baseline.tx];
    for (shift, direction) in directions.iter().enumerate() {
        if direction.is_fast() {
            fast |= SlotOwner::BEFORE_FAST << shift;
        }
    }
    let before = directions.map(|direction| Before {
        packets: direction.packets,
        bytes: direction.bytes,
    });
    (before, fast | SlotOwner::BEFORE_KNOWN)
}
