//! Where frames go, and what the last one left there.

use std::io;

use super::output;

/// Columns where standard output is no terminal.
pub(super) const WIDTH: usize = 100;

/// Redraws lines in place on a terminal.
#[derive(Default)]
pub(super) struct Screen {
    /// Lines of the last frame on the terminal, and its size then.
    last: Option<(usize, (usize, usize))>,
}

impl Screen {
    /// Columns and lines of the terminal, if standard output is one.
    pub(super) fn terminal() -> Option<(usize, usize)> {
        output::terminal()
    }

    /// Draws `lines` over the last frame. The last line of the terminal stays
    /// free for the cursor, so that nothing scrolls.
    pub(super) fn redraw(
        &mut self,
        lines: &[String],
        size: (usize, usize),
        out: &mut impl io::Write,
    ) -> io::Result<()> {
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
