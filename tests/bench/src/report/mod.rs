//! What was measured, and how it is told: as tables for people, as JSON, as plots.

mod markdown;
mod plot;

use std::{fs, path::Path};

use anyhow::Context as _;
use serde::Serialize;

use crate::{machine::Machine, stats::Spread};

pub(crate) use markdown::put_between_marks;
pub(crate) use plot::Plot;

/// Everything.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) schema: &'static str,
    pub(crate) command: String,
    pub(crate) rounds: usize,
    pub(crate) machine: Machine,
    pub(crate) parts: Vec<Part>,
}

/// A question and its answers.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Part {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    /// How it was measured, in sentences.
    pub(crate) method: String,
    pub(crate) tables: Vec<Table>,
    pub(crate) targets: Vec<Target>,
    /// What does not show in numbers.
    pub(crate) notes: Vec<String>,
    #[serde(skip)]
    pub(crate) plots: Vec<Plot>,
}

/// Rows of spreads.
#[derive(Debug, Serialize)]
pub(crate) struct Table {
    pub(crate) title: String,
    /// What rows are.
    pub(crate) rows_are: &'static str,
    pub(crate) columns: Vec<Column>,
    pub(crate) rows: Vec<Row>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Column {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    #[serde(skip)]
    pub(crate) digits: usize,
}

/// A column, and how many digits behind the point are worth showing.
pub(crate) const fn column(name: &'static str, unit: &'static str, digits: usize) -> Column {
    Column { name, unit, digits }
}

#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) name: String,
    /// One per column; nothing where it does not apply.
    pub(crate) cells: Vec<Option<Spread>>,
}

impl Table {
    pub(crate) fn new(
        title: impl Into<String>,
        rows_are: &'static str,
        columns: impl Into<Vec<Column>>,
    ) -> Self {
        Self {
            title: title.into(),
            rows_are,
            columns: columns.into(),
            rows: Vec::new(),
        }
    }

    pub(crate) fn row(&mut self, name: impl Into<String>, cells: impl Into<Vec<Option<Spread>>>) {
        let (name, cells) = (name.into(), cells.into());
        assert_eq!(cells.len(), self.columns.len(), "{name}");
        self.rows.push(Row { name, cells });
    }
}

/// What was set out to be reached.
#[derive(Debug, Serialize)]
pub(crate) struct Target {
    pub(crate) what: String,
    pub(crate) unit: &'static str,
    #[serde(flatten)]
    pub(crate) bound: Bound,
    pub(crate) measured: Spread,
    pub(crate) met: bool,
}

#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

impl Part {
    pub(crate) fn target(
        &mut self,
        what: impl Into<String>,
        unit: &'static str,
        bound: Bound,
        measured: Option<Spread>,
    ) {
        // What was not measured shows as missing in its table.
        let Some(measured) = measured else { return };
        let met = match bound {
            Bound::AtLeast(least) => measured.median >= least,
            Bound::AtMost(most) => measured.median <= most,
        };
        self.targets.push(Target {
            what: what.into(),
            unit,
            bound,
            measured,
            met,
        });
    }
}

impl Report {
    /// Writes `results.json`, `summary.md` and the plots into `folder`.
    pub(crate) fn write(&self, folder: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        let write = |name: &str, text: &str| {
            let path = folder.join(name);
            fs::write(&path, text).with_context(|| format!("write {}", path.display()))
        };
        write(
            "results.json",
            &(serde_json::to_string_pretty(self)? + "\n"),
        )?;
        write("summary.md", &self.markdown())?;
        for plot in self.parts.iter().flat_map(|part| &part.plots) {
            write(&format!("{}.svg", plot.name()), &plot.svg()?)?;
        }
        Ok(())
    }
}
