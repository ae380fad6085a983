//! `netobs list`.

use std::{
    collections::{BTreeMap, HashSet},
    time::{Duration, SystemTime},
};

use caps::Capability;

use super::{host, print};
use crate::{
    config::{self, Format},
    error::{Cause, Failure},
    inventory::{build, build::Row},
    model::sample::Warning,
    observer,
    render::{csv, json, list, text::harmless},
    world::{
        engine::{self, Update},
        gather::{Depth, Machine},
        privilege,
    },
};

/// An engine that has not answered by then is a warning.
const ENGINE_PATIENCE: Duration = Duration::from_secs(5);

pub(super) async fn run(config: config::List) -> Result<(), Failure> {
    let mut machine = Machine::open()?;
    let mut engine = engine::follow(config.common.engine.clone());
    let mut warnings = first_word(&mut engine, &mut machine, ENGINE_PATIENCE).await;
    machine.look(Depth::Periodic).await?;
    let rows = build::rows(machine.facts(), config.scope.options);
    warnings.extend(standing(&machine, &rows, &config.scope));
    let mut rows: Vec<Row> = rows
        .into_iter()
        .filter(|row| config.scope.selection.includes(row))
        .collect();
    // By name, as people look for them; our own namespace stays first.
    rows.sort_by(|a, b| {
        (a.name != "host", &a.name, a.key).cmp(&(b.name != "host", &b.name, b.key))
    });
    let namespaces = observer::listed(&rows);
    for ns in &namespaces {
        if let Some(reason) = &ns.reason {
            warnings.push(Warning {
                code: "namespace_unreadable".to_owned(),
                namespace: Some(ns.name.clone()),
                message: reason.clone(),
            });
        }
    }

    let mut text = Vec::new();
    match config.format {
        Format::Table => list::table(&namespaces, config.common.color, &mut text),
        Format::Csv => csv::list(&namespaces, &config.columns, &mut text),
        Format::Json => json::list(
            SystemTime::now(),
            &host(),
            &namespaces,
            &warnings,
            &mut text,
        ),
    }
    .map_err(|error| Failure::new(Cause::Run, error.into()))?;
    if config.format != Format::Json {
        let mut said = Said::default();
        said.tell(&warnings);
    }
    print(&text)?;
    let partial = machine.blind.is_some() || namespaces.iter().any(|ns| ns.reason.is_some());
    if config.scope.strict && partial {
        return Err(Failure::words(
            Cause::Partial,
            "--strict: some namespaces could not be looked into",
        ));
    }
    Ok(())
}

/// Waits for the engine's first word.
pub(super) async fn first_word(
    engine: &mut tokio::sync::mpsc::Receiver<Update>,
    machine: &mut Machine,
    patience: Duration,
) -> Vec<Warning> {
    match tokio::time::timeout(patience, engine.recv()).await {
        Ok(Some(update)) => {
            machine.take(&update);
            engine_warning(&update).into_iter().collect()
        }
        Ok(None) => Vec::new(),
        Err(_) => vec![engine_trouble(&format!(
            "no answer within {} s",
            patience.as_secs()
        ))],
    }
}

/// What is wrong with the engine, if anything is.
pub(super) fn engine_warning(update: &Update) -> Option<Warning> {
    match update {
        Update::Containers(running) => running.trouble.as_deref().map(engine_trouble),
        Update::Absent => {
            log::info!("no container engine found: containers are shown as plain namespaces");
            None
        }
        Update::Trouble(reason) => Some(engine_trouble(reason)),
    }
}

fn engine_trouble(reason: &str) -> Warning {
    Warning {
        code: "engine_unreachable".to_owned(),
        namespace: None,
        message: format!(
            "the container engine does not answer as it should, names of containers may be missing \
             or old: {reason}"
        ),
    }
}

/// Doubts that follow from what was asked for and what is there.
pub(super) fn standing(machine: &Machine, rows: &[Row], scope: &config::Scope) -> Vec<Warning> {
    let unmatched = scope
        .selection
        .unmatched(rows)
        .into_iter()
        .map(|name| Warning {
            code: "no_such_namespace".to_owned(),
            namespace: None,
            message: format!("no namespace matches {name:?} now; it is shown when one does"),
        });
    let troubles = machine.troubles.iter().map(|(path, reason)| Warning {
        code: "namespace_file_unusable".to_owned(),
        namespace: None,
        message: format!(
            "{}: {reason}",
            crate::world::text::lossless_os(path.as_os_str())
        ),
    });
    let exhausted = machine.blind.map(|short| Warning {
        code: "open_files_exhausted".to_owned(),
        namespace: None,
        message: format!("namespaces that come or go are not seen at the moment: {short}"),
    });
    let blind = privilege::missing()
        .filter(|need| {
            matches!(
                need.capability,
                Capability::CAP_SYS_ADMIN | Capability::CAP_SYS_PTRACE
            )
        })
        .map(|need| Warning {
            code: "not_permitted".to_owned(),
            namespace: None,
            message: format!(
                "without {} netobs cannot {}: rows and names may be missing; {}",
                need.capability,
                need.purpose,
                privilege::HOW
            ),
        });
    unmatched
        .chain(troubles)
        .chain(exhausted)
        .chain(blind)
        .collect()
}

/// So many warnings of one code are told at a time.
const ALIKE: usize = 5;

/// Tells each warning once, on standard error.
#[derive(Default)]
pub(super) struct Said(HashSet<Warning>);

impl Said {
    /// Tells those of `warnings` that are new.
    pub(super) fn tell(&mut self, warnings: &[Warning]) {
        for line in self.news(warnings) {
            eprintln!("netobs: {line}");
        }
    }

    /// A line for each of `warnings` that is new, and one for those that are too
    /// many of a kind.
    fn news(&mut self, warnings: &[Warning]) -> Vec<String> {
        let mut lines = Vec::new();
        let mut alike: BTreeMap<&str, usize> = BTreeMap::new();
        for warning in warnings {
            if self.0.insert(warning.clone()) {
                let number = alike.entry(&warning.code).or_default();
                *number += 1;
                if *number <= ALIKE {
                    lines.push(line(warning));
                }
            }
        }
        for (code, number) in alike {
            if let Some(more @ 1..) = number.checked_sub(ALIKE) {
                lines.push(format!(
                    "{more} more warnings like it ({code}): -o json has them"
                ));
            }
        }
        // What has passed and comes again is told again.
        self.0.retain(|said| warnings.contains(said));
        lines
    }
}

fn line(warning: &Warning) -> String {
    let message = harmless(&warning.message);
    match &warning.namespace {
        Some(name) => format!("{}: {message}", harmless(name)),
        None => message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warning(code: &str, namespace: &str) -> Warning {
        Warning {
            code: code.to_owned(),
            namespace: Some(namespace.to_owned()),
            message: "no".to_owned(),
        }
    }

    #[test]
    fn each_is_told_once_and_again_when_it_comes_again() {
        let mut said = Said::default();
        let one = [warning("a", "web\u{1b}")];
        assert_eq!(said.news(&one), ["web\\u{1b}: no"]);
        assert!(said.news(&one).is_empty());
        assert!(said.news(&[]).is_empty());
        assert_eq!(said.news(&one).len(), 1);
    }

    #[test]
    fn very_many_of_a_kind_are_a_number() {
        let mut many: Vec<Warning> = (0..100).map(|n| warning("a", &format!("n{n}"))).collect();
        many.push(warning("b", "web"));
        let lines = Said::default().news(&many);
        assert_eq!(lines.len(), ALIKE + 2);
        assert_eq!(lines[ALIKE], "web: no");
        assert_eq!(
            lines[ALIKE + 1],
            "95 more warnings like it (a): -o json has them"
        );
    }
}
