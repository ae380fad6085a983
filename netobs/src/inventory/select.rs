//! Which rows the user asked for.

use glob::Pattern;

use super::build::Row;
use crate::model::sample::Kind;

/// Shortest prefix of a container id that selects it, as `docker` would take
/// it without a second thought.
const SHORTEST_ID: usize = 3;

/// NAME and `--exclude` arguments.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    names: Vec<Selector>,
    exclude: Vec<Selector>,
    /// Every namespace found, not only the shown ones.
    pub all: bool,
}

#[derive(Clone, Debug)]
struct Selector {
    text: String,
    pattern: Option<Pattern>,
}

impl Selector {
    fn new(text: &str) -> Self {
        Self {
            text: text.to_owned(),
            // What is no pattern ("[") is still a name.
            pattern: Pattern::new(text).ok(),
        }
    }

    fn matches_name(&self, name: &str) -> bool {
        self.text == name || self.pattern.as_ref().is_some_and(|p| p.matches(name))
    }

    fn matches(&self, row: &Row) -> bool {
        self.matches_name(&row.name)
            || row
                .inode
                .is_some_and(|inode| self.text == inode.to_string())
            || (row.kind == Kind::Host && self.text == "host")
            || row.members.iter().any(|member| {
                self.matches_name(&member.name)
                    || member.id.as_ref().is_some_and(|id| {
                        self.text.len() >= SHORTEST_ID && id.starts_with(&self.text)
                    })
            })
    }
}

impl Selection {
    /// From the arguments as given.
    #[must_use]
    pub fn new(names: &[String], exclude: &[String], all: bool) -> Self {
        Self {
            names: names.iter().map(|n| Selector::new(n)).collect(),
            exclude: exclude.iter().map(|n| Selector::new(n)).collect(),
            all,
        }
    }

    /// Whether `row` was asked for. What is asked for by name is shown even
    /// where it would not be by default.
    #[must_use]
    pub fn includes(&self, row: &Row) -> bool {
        if self.exclude.iter().any(|selector| selector.matches(row)) {
            return false;
        }
        if self.names.is_empty() {
            return self.all || row.shown;
        }
        self.names.iter().any(|selector| selector.matches(row))
    }

    /// Whether `row` may yet turn out to be asked for, given that it has just
    /// appeared: engines tell a container's name after its first packets.
    #[must_use]
    pub fn may_include(&self, row: &Row) -> bool {
        let excluded = self.exclude.iter().any(|selector| selector.matches(row));
        !excluded && row.shown && row.kind == Kind::Process
    }

    /// The NAMEs that match none of `rows`.
    #[must_use]
    pub fn unmatched<'a>(&'a self, rows: &[Row]) -> Vec<&'a str> {
        self.names
            .iter()
            .filter(|selector| !rows.iter().any(|row| selector.matches(row)))
            .map(|selector| selector.text.as_str())
            .collect()
    }
}
