//! A running `netobs serve`, and what a scraper gets of it.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::collections::BTreeMap;

use anyhow::{Context as _, bail};
use netobs_tests::{Lab, Netns, Output, Proc, poll_until};
use nix::sys::signal::Signal;

use crate::common::SOON;

/// Where it listens unless told otherwise.
pub(crate) const ADDRESS: &str = "127.0.0.1:9929";

/// A `netobs serve` in the background.
pub(crate) struct Serve<'lab> {
    lab: &'lab Lab,
    netns: Netns,
    pub(crate) proc: Proc,
}

impl<'lab> Serve<'lab> {
    /// Starts it at the usual address and waits until it is healthy.
    pub(crate) fn start(lab: &'lab Lab, args: &[&str]) -> anyhow::Result<Self> {
        Self::start_in(lab, &Netns::Host, args)
    }

    /// The same in another namespace of the lab.
    pub(crate) fn start_in(lab: &'lab Lab, netns: &Netns, args: &[&str]) -> anyhow::Result<Self> {
        let mut serve = Self::begin(lab, netns, args)?;
        serve.wait_healthy(&format!("http://{ADDRESS}/healthz"))?;
        Ok(serve)
    }

    /// Starts it.
    pub(crate) fn begin(lab: &'lab Lab, netns: &Netns, args: &[&str]) -> anyhow::Result<Self> {
        let words = [&["serve"], args].concat();
        Ok(Self {
            lab,
            netns: netns.clone(),
            proc: lab.netobs_in(netns, &words)?.start()?,
        })
    }

    /// Waits for its word that it works.
    pub(crate) fn wait_healthy(&mut self, url: &str) -> anyhow::Result<()> {
        poll_until(SOON, "a healthy netobs", || {
            if !self.proc.is_running() {
                bail!("it ended: {}", self.proc.stderr().join("\n"));
            }
            let answer = self.curl(&["-kf", "-m5", url])?;
            Ok(answer.status.success().then_some(()))
        })
        .with_context(|| self.proc.stderr().join("\n"))
    }

    /// Asks by curl, beside it.
    pub(crate) fn curl(&self, args: &[&str]) -> anyhow::Result<Output> {
        let mut curl = self.lab.command_in(&self.netns, "curl");
        curl.arg("-s").args(args).output()
    }

    /// The page, of the text format.
    pub(crate) fn page(&self) -> anyhow::Result<String> {
        let url = format!("http://{ADDRESS}/metrics");
        Ok(self.curl(&["-f", "-m20", &url])?.success()?.stdout)
    }

    /// The series of the page.
    pub(crate) fn scrape(&self) -> anyhow::Result<Scrape> {
        Scrape::parse(&self.page()?)
    }

    /// Waits for a page that `wanted` accepts.
    pub(crate) fn until(
        &self,
        what: &str,
        mut wanted: impl FnMut(&Scrape) -> bool,
    ) -> anyhow::Result<Scrape> {
        let mut last = String::new();
        poll_until(SOON, what, || {
            last = self.page()?;
            let scrape = Scrape::parse(&last)?;
            Ok(wanted(&scrape).then_some(scrape))
        })
        .with_context(|| last.clone())
    }

    /// Ends it well and gives everything it said.
    pub(crate) fn end(mut self) -> anyhow::Result<Output> {
        self.proc.end(Signal::SIGTERM, SOON)?.success()
    }
}

/// A series.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) value: f64,
}

/// The series of a page.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scrape {
    pub(crate) lines: Vec<Line>,
}

impl Scrape {
    /// Reads the text format.
    pub(crate) fn parse(page: &str) -> anyhow::Result<Self> {
        let lines = page.lines().filter(|line| !line.starts_with('#'));
        let lines = lines.map(|line| parse(line).with_context(|| format!("no series: {line}")));
        Ok(Self {
            lines: lines.collect::<anyhow::Result<_>>()?,
        })
    }

    /// The series of this name with these labels.
    pub(crate) fn all(&self, name: &str, labels: &[(&str, &str)]) -> Vec<&Line> {
        let matches = |line: &&Line| {
            let has = |(name, value): &(&str, &str)| line.label(name) == *value;
            line.name == name && labels.iter().all(has)
        };
        self.lines.iter().filter(matches).collect()
    }

    /// The sum of these.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let sum: f64 = self.all(name, labels).iter().map(|line| line.value).sum();
        sum as u64
    }
}

impl Line {
    /// A label, empty for none.
    pub(crate) fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }
}

fn parse(line: &str) -> Option<Line> {
    let Some((name, rest)) = line.split_once('{') else {
        let (name, value) = line.split_once(' ')?;
        return Some(Line {
            name: name.to_owned(),
            labels: BTreeMap::new(),
            value: value.parse().ok()?,
        });
    };
    let mut labels = BTreeMap::new();
    let mut rest = rest;
    while !rest.starts_with('}') {
        let (label, after) = rest.split_once("=\"")?;
        let mut value = String::new();
        let mut chars = after.char_indices();
        let end = loop {
            match chars.next()? {
                (at, '"') => break at,
                (_, '\\') => value.push(match chars.next()?.1 {
                    'n' => '\n',
                    c @ ('"' | '\\') => c,
                    _ => return None,
                }),
                (_, c) => value.push(c),
            }
        };
        labels.insert(label.to_owned(), value);
        rest = &after[end + 1..];
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
    Some(Line {
        name: name.to_owned(),
        labels,
        value: rest.strip_prefix("} ")?.parse().ok()?,
    })
}
