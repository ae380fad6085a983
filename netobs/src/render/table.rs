//! `netobs watch` for people: one line per namespace, in 80 columns.

use comfy_table::{Cell, CellAlignment, ColumnConstraint, Table, Width, presets};
use unicode_width::UnicodeWidthStr as _;

use super::{
    Style,
    text::{fit, harmless, si, si_rate},
};
use crate::model::{
    counters::Directions,
    sample::State,
    view::{Row, View},
};

/// Columns of a number, so that nothing moves from sample to sample.
const NUMBER: usize = 8;
/// Columns of numbers: the first ones are shown on every terminal, the others
/// where it is wide enough.
const HEADINGS: [&str; 9] = [
    "RX PKT/S", "RX B/S", "TX PKT/S", "TX B/S", "RX PKTS", "TX PKTS", "LOOKUP/S", "FAILED",
    "LKP/PKT",
];
const FEWEST: usize = 7;
/// Columns of the shortest and longest name.
const NAME: std::ops::RangeInclusive<usize> = 12..=40;
const UNKNOWN: &str = "-";

/// The lines of `view`, none wider than `style.width`.
#[must_use]
pub fn lines(view: &View<'_>, style: Style) -> Vec<String> {
    let mut lines = vec![title(view)];
    let mut notes = if style.notes { notes(view) } else { Vec::new() };
    // They shall not crowd out what they are about.
    let most = style
        .height
        .map_or(usize::MAX, |height| (height / 3).max(1));
    if notes.len() > most {
        let more = notes.len() - (most - 1);
        notes.truncate(most - 1);
        notes.push(format!("! {more} more warnings: -o json has them"));
    }
    let fixed = 2 + notes.len();
    let room = style
        .height
        .map_or(usize::MAX, |height| height.saturating_sub(fixed).max(1));
    let hidden = view.rows.len().saturating_sub(room);
    let shown = if hidden > 0 {
        room.saturating_sub(1).max(1)
    } else {
        view.rows.len()
    };
    let hidden = view.rows.len() - shown.min(view.rows.len());

    let rows = &view.rows[..shown.min(view.rows.len())];
    let mut body: Vec<String> = table(rows, style)
        .lines()
        .map(|line| fit(line, style.width))
        .collect();
    if style.color {
        if let Some(header) = body.first_mut() {
            *header = format!("\x1b[1m{header}\x1b[0m");
        }
        for (line, row) in body.iter_mut().skip(1).zip(rows) {
            if row.namespace.state == State::Gone {
                *line = format!("\x1b[2m{line}\x1b[0m");
            }
        }
    }
    lines.append(&mut body);
    if hidden > 0 {
        lines.push(format!("{hidden} more: name some, or use -o json"));
    }
    lines.append(&mut notes);
    // Coloured lines fit already.
    for line in &mut lines {
        if !line.starts_with('\x1b') {
            *line = fit(line, style.width);
        }
    }
    lines
}

fn title(view: &View<'_>) -> String {
    let time = humantime::format_rfc3339_seconds(view.sample.time);
    let up = view
        .rows
        .iter()
        .filter(|row| row.namespace.state == State::Up)
        .count();
    let s = if up == 1 { "" } else { "s" };
    format!(
        "{time}  {}  {up} namespace{s}",
        harmless(&view.sample.host.name)
    )
}

fn notes(view: &View<'_>) -> Vec<String> {
    view.sample
        .warnings
        .iter()
        .map(|warning| match &warning.namespace {
            Some(name) => format!("! {}: {}", harmless(name), harmless(&warning.message)),
            None => format!("! {}", harmless(&warning.message)),
        })
        .collect()
}

fn table(rows: &[Row<'_>], style: Style) -> String {
    let names: Vec<String> = rows.iter().map(|row| name(row)).collect();
    let widest = names.iter().map(|name| name.width()).max().unwrap_or(0);
    let wished = widest.clamp(*NAME.start(), *NAME.end());
    // One column of space in front of each number.
    let fits = style.width.saturating_sub(wished) / (NUMBER + 1);
    let columns = fits.clamp(FEWEST, HEADINGS.len());
    let room = style.width.saturating_sub(columns * (NUMBER + 1));
    let name_width = wished.min(room.max(*NAME.start()));

    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let mut header = vec![Cell::new("NAMESPACE")];
    header.extend(
        HEADINGS[..columns]
            .iter()
            .map(|text| Cell::new(text).set_alignment(CellAlignment::Right)),
    );
    table.set_header(header);
    for (row, name) in rows.iter().zip(names) {
        let mut cells = vec![Cell::new(fit(&name, name_width))];
        cells.extend(
            numbers(row)
                .into_iter()
                .take(columns)
                .map(|text| Cell::new(text).set_alignment(CellAlignment::Right)),
        );
        table.add_row(cells);
    }
    for (at, column) in table.column_iter_mut().enumerate() {
        let width = if at == 0 { name_width } else { NUMBER };
        let left = u16::from(at != 0);
        column.set_padding((left, 0));
        let width = u16::try_from(width)
            .unwrap_or(u16::MAX)
            .saturating_add(left);
        column.set_constraint(ColumnConstraint::Absolute(Width::Fixed(width)));
    }
    table.to_string()
}

fn name(row: &Row<'_>) -> String {
    let name = harmless(&row.namespace.name);
    match row.namespace.state {
        State::Up => name,
        State::Gone => format!("{name} (gone)"),
    }
}

fn numbers(row: &Row<'_>) -> [String; HEADINGS.len()] {
    let unknown = || UNKNOWN.to_owned();
    let rates = row
        .rates
        .map(|rates| rates.map(|rate| (si_rate(rate.packets), si_rate(rate.bytes))));
    let Directions { rx, tx } = rates.unwrap_or_else(|| Directions {
        rx: (unknown(), unknown()),
        tx: (unknown(), unknown()),
    });
    let totals = row.totals.as_ref();
    let packets = |total: Option<u64>| total.map_or_else(unknown, si);
    [
        rx.0,
        rx.1,
        tx.0,
        tx.1,
        packets(totals.map(|t| t.rx.total().packets)),
        packets(totals.map(|t| t.tx.total().packets)),
        row.lookups
            .map_or_else(unknown, |lookups| si_rate(lookups.total)),
        packets(row.namespace.lookups.map(|lookups| lookups.failed())),
        row.lookups_per_packet()
            .map_or_else(unknown, |ratio| format!("{ratio:.2}")),
    ]
}
