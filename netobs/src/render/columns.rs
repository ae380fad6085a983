//! Which columns of a CSV are written, and in what order.

use std::io;

/// A name this much like another one may be meant by it.
const ALIKE: f64 = 0.7;

/// All columns, or those asked for in the order asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Columns(Option<Vec<usize>>);

impl Columns {
    /// The `wanted` ones of those that are `known`.
    ///
    /// # Errors
    /// In words, for a name that is not known, or is there twice: whoever reads
    /// columns by their name would see one of them only.
    pub fn new(known: &[String], wanted: &[String]) -> Result<Self, String> {
        let mut columns = Vec::new();
        for name in wanted {
            let Some(at) = known.iter().position(|field| field == name) else {
                return Err(unknown(known, name));
            };
            if columns.contains(&at) {
                return Err(format!("{name} is there twice"));
            }
            columns.push(at);
        }
        Ok(Self(Some(columns)))
    }

    /// Writes those of `fields`, which are one for each column that there is.
    pub(super) fn record(&self, fields: &[String], out: &mut dyn io::Write) -> io::Result<()> {
        self.records([fields], out)
    }

    /// The same for many lines.
    pub(super) fn records<F: AsRef<[String]>>(
        &self,
        lines: impl IntoIterator<Item = F>,
        out: &mut dyn io::Write,
    ) -> io::Result<()> {
        let mut writer = csv::WriterBuilder::new()
            .terminator(csv::Terminator::CRLF)
            .from_writer(out);
        for line in lines {
            let fields = line.as_ref();
            match &self.0 {
                Some(columns) => writer.write_record(columns.iter().map(|at| &fields[*at]))?,
                None => writer.write_record(fields)?,
            }
        }
        writer.flush()
    }
}

fn unknown(known: &[String], name: &str) -> String {
    let like = |field: &String| strsim::jaro_winkler(field, name);
    let nearest = known.iter().max_by(|a, b| like(a).total_cmp(&like(b)));
    let meant = match nearest {
        Some(nearest) if like(nearest) > ALIKE => format!(", did you mean {nearest}?"),
        _ => ":".to_owned(),
    };
    format!("there is no {name:?}{meant} `--fields help` shows all names")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        text.split(',').map(str::to_owned).collect()
    }

    fn written(columns: &Columns) -> String {
        let mut out = Vec::new();
        columns
            .record(&names("web,3,4"), &mut out)
            .expect("a Vec takes everything");
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn all_of_them_or_those_asked_for_in_their_order() {
        let known = names("namespace,rx_packets,tx_packets");
        assert_eq!(written(&Columns::default()), "web,3,4\r\n");
        let two = Columns::new(&known, &names("tx_packets,namespace"));
        assert_eq!(written(&two.expect("known names")), "4,web\r\n");
    }

    #[test]
    fn a_name_that_is_not_known_is_told_with_the_nearest_one() {
        let known = names("namespace,rx_packets,tx_packets");
        let why = |wanted| Columns::new(&known, &names(wanted)).expect_err("refused");
        assert_eq!(
            why("namespace,rx_paket"),
            "there is no \"rx_paket\", did you mean rx_packets? `--fields help` shows all names"
        );
        assert_eq!(
            why("colour"),
            "there is no \"colour\": `--fields help` shows all names"
        );
        assert_eq!(why("namespace,namespace"), "namespace is there twice");
    }
}
