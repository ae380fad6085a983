//! Where frames go, and what the last one left there.

use std::io;

use super::output;
use crate::{config::Format, render::Style};

/// Columns where standard output is no terminal.
const WIDTH: usize = 100;

/// Columns and lines of a terminal.
type Size = (usize, usize);

/// Redraws lines in place on a terminal; elsewhere prints one block after the
/// other.
#[derive(Default)]
pub(super) struct Screen {
    /// Lines of the last frame on the terminal, and its size then.
    last: Option<(usize, Size)>,
}

impl Screen {
    /// How lines are to be made for standard output, and its size if it is a
    /// terminal.
    pub(super) fn style(color: bool) -> (Style, Option<Size>) {
        let terminal = output::terminal();
        let style = Style {
            width: terminal.map_or(WIDTH, |(width, _)| width),
            // The last line stays free for the cursor, so that nothing scrolls.
            height: terminal.map(|(_, height)| height.saturating_sub(1)),
            color,
            notes: terminal.is_some(),
        };
        (style, terminal)
    }

    /// Whether warnings are shown with the data: JSON carries them itself, and a
    /// terminal shows them below the table.
    pub(super) fn shows_warnings(format: Format) -> bool {
        match format {
            Format::Json => true,
            Format::Csv => false,
            Format::Table => output::terminal().is_some(),
        }
    }

    /// Draws `lines`, on a terminal of this `size` over the last frame.
    pub(super) fn draw(
        &mut self,
        lines: &[String],
        size: Option<Size>,
        out: &mut impl io::Write,
    ) -> io::Result<()> {
        let Some(size) = size else {
            for line in lines {
                writeln!(out, "{line}")?;
            }
            return writeln!(out);
        };
        match self.last {
            Some((count, last)) if last == size => {
                if count > 0 {
                    write!(out, "\x1b[{count}A")?;
                }
                write!(out, "\r\x1b[J")?;
            }
            // Lines of another width have wrapped: start on an empty screen.
            Some(_) => write!(out, "\x1b[H\x1b[J")?,
            None => {}
        }
        for line in lines {
            writeln!(out, "{line}")?;
        }
        self.last = Some((lines.len(), size));
        Ok(())
    }
}
