//! Which rows are shown, and by which names, while names come and go: an engine
//! tells of a container a moment after its first packets, and a container leaves
//! its namespace a moment before that ends.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::{Duration, Instant},
};

use crate::{
    inventory::{build::Row, select::Selection},
    model::sample::{Kind, NsKey},
};

/// How long an engine has to tell the name of a new container.
const UNNAMED: Duration = Duration::from_secs(5);
/// How long a namespace keeps the name of its last container.
const ORPHAN: Duration = Duration::from_secs(5);

/// What is remembered of names from look to look.
#[derive(Default)]
pub(super) struct Names {
    /// Since when namespaces are there; `None` for longer than we.
    born: HashMap<NsKey, Option<Instant>>,
    /// Since when namespaces have had no container that had one.
    orphaned: HashMap<NsKey, Instant>,
    /// Whether some were too young to tell, when last asked.
    waiting: bool,
}

impl Names {
    /// Those of `rows` that `selection` includes or may come to include, by
    /// names that outlive a container by a moment. `before` finds a row as it was.
    pub(super) fn select<'a>(
        &mut self,
        rows: Vec<Row>,
        selection: &Selection,
        before: impl Fn(NsKey) -> Option<&'a Row>,
    ) -> BTreeMap<NsKey, Row> {
        self.note_births(&rows);
        self.waiting = false;
        let mut named = BTreeMap::new();
        for row in rows {
            let row = self.still_known(row, &before);
            let young = self.is_young(row.key);
            self.waiting |= young;
            if selection.includes(&row) || (young && selection.may_include(&row)) {
                named.insert(row.key, row);
            }
        }
        self.orphaned.retain(|key, _| named.contains_key(key));
        named
    }

    /// Whether time alone changes nothing of what was selected last.
    pub(super) fn are_settled(&self) -> bool {
        !self.waiting && self.orphaned.is_empty()
    }

    /// Notes which namespaces are new. Those of the first look are not: their
    /// containers' names are known by then.
    fn note_births(&mut self, rows: &[Row]) {
        let born = (!self.born.is_empty()).then(Instant::now);
        let present: HashSet<NsKey> = rows.iter().map(|row| row.key).collect();
        self.born.retain(|key, _| present.contains(key));
        for key in present {
            self.born.entry(key).or_insert(born);
        }
    }

    fn is_young(&self, key: NsKey) -> bool {
        let born = self.born.get(&key).copied().flatten();
        born.is_some_and(|born| born.elapsed() < UNNAMED)
    }

    /// The row keeps its name meanwhile, and so shows it when it is gone.
    fn still_known<'a>(&mut self, row: Row, before: &impl Fn(NsKey) -> Option<&'a Row>) -> Row {
        match before(row.key) {
            Some(was) if row.kind == Kind::Process && was.kind == Kind::Container => {
                let since = self.orphaned.entry(row.key).or_insert_with(Instant::now);
                if since.elapsed() < ORPHAN {
                    return Row {
                        name: was.name.clone(),
                        kind: was.kind,
                        members: was.members.clone(),
                        ..row
                    };
                }
            }
            _ => {
                self.orphaned.remove(&row.key);
            }
        }
        row
    }
}
