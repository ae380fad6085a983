//! The summary for people.

use std::fmt::Write as _;

use anyhow::Context as _;

use super::{Bound, Part, Report, Table, Target};
use crate::stats::Spread;

const BEGIN: &str = "<!-- begin: written by cargo xtask bench -->\n";
const END: &str = "<!-- end: written by cargo xtask bench -->";

impl Report {
    pub(crate) fn markdown(&self) -> String {
        let machine = &self.machine;
        let mut text = format!(
            "`{}` on {}, Linux {}, {} CPUs ({}{}), {:.0} GiB of memory, netobs {}; medians of {} rounds \
             with quartiles in parentheses.\n",
            self.command,
            machine.date,
            machine.kernel,
            machine.cpus,
            machine.cpu,
            if machine.virtual_machine {
                ", a virtual machine"
            } else {
                ""
            },
            machine.memory_gib,
            machine.netobs,
            self.rounds,
        );
        let targets: Vec<&Target> = self.parts.iter().flat_map(|part| &part.targets).collect();
        if !targets.is_empty() {
            let met = targets.iter().filter(|target| target.met).count();
            let _ = write!(
                text,
                "\n## Targets\n\n{met} of {} are met.\n\n| what | target | measured | |\n|---|---|---|---|\n",
                targets.len()
            );
            for target in targets {
                text += &line_of(target);
            }
        }
        for part in &self.parts {
            text += &part.markdown();
        }
        text
    }
}

fn line_of(target: &Target) -> String {
    let unit = with_space(target.unit);
    let (word, bound) = match target.bound {
        Bound::AtLeast(bound) => ("at least", bound),
        Bound::AtMost(bound) => ("at most", bound),
    };
    format!(
        "| {} | {word} {bound}{unit} | {}{unit} | {} |\n",
        target.what,
        cell(&target.measured, digits_for(bound)),
        if target.met { "met" } else { "**missed**" },
    )
}

/// As many as the bound needs, and one more.
fn digits_for(bound: f64) -> usize {
    if bound >= 10.0 {
        1
    } else if bound >= 2.0 {
        2
    } else {
        3
    }
}

fn with_space(unit: &str) -> String {
    match unit {
        "" => String::new(),
        unit => format!(" {unit}"),
    }
}

impl Part {
    pub(crate) fn markdown(&self) -> String {
        let mut text = format!("\n## {}\n\n{}\n", self.title, self.method);
        for table in &self.tables {
            text += &table.markdown();
        }
        for plot in &self.plots {
            let _ = write!(text, "\n![{}]({}.svg)\n", plot.title(), plot.name());
        }
        if !self.notes.is_empty() {
            text += "\n";
        }
        for note in &self.notes {
            let _ = writeln!(text, "- {note}");
        }
        text
    }
}

impl Table {
    fn markdown(&self) -> String {
        let mut text = format!("\n**{}**\n\n| {} |", self.title, self.rows_are);
        for column in &self.columns {
            let _ = match column.unit {
                "" => write!(text, " {} |", column.name),
                unit => write!(text, " {}, {unit} |", column.name),
            };
        }
        text += "\n|---|";
        text += &"---:|".repeat(self.columns.len());
        text += "\n";
        for row in &self.rows {
            let _ = write!(text, "| {} |", row.name);
            for (value, column) in row.cells.iter().zip(&self.columns) {
                let _ = match value {
                    Some(spread) => write!(text, " {} |", cell(spread, column.digits)),
                    None => write!(text, " |"),
                };
            }
            text += "\n";
        }
        text
    }
}

fn cell(spread: &Spread, digits: usize) -> String {
    let Spread {
        median,
        low,
        high,
        n,
    } = spread;
    match n {
        1 => format!("{median:.digits$}"),
        _ => format!("{median:.digits$} ({low:.digits$} to {high:.digits$})"),
    }
}

/// The text of `document` with `summary` between its marks.
pub(crate) fn put_between_marks(document: &str, summary: &str) -> anyhow::Result<String> {
    let (before, rest) = document
        .split_once(BEGIN)
        .context("there is no line for its begin")?;
    let (_, after) = rest
        .split_once(END)
        .context("there is no line for its end")?;
    Ok(format!("{before}{BEGIN}\n{summary}\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_marks_is_replaced() {
        let document = format!("a\n{BEGIN}old\n{END}\nb\n");
        let new = put_between_marks(&document, "new\n").unwrap();
        assert_eq!(new, format!("a\n{BEGIN}\nnew\n\n{END}\nb\n"));
        assert!(put_between_marks("no marks", "new").is_err());
    }

    #[test]
    fn a_cell_has_its_quartiles_where_there_are_several_values() {
        let several = Spread::of([1.0, 2.0, 3.0]).unwrap();
        assert_eq!(cell(&several, 1), "2.0 (1.5 to 2.5)");
        assert_eq!(cell(&Spread::of([2.0]).unwrap(), 0), "2");
    }
}
