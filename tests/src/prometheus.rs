//! The real Prometheus, in a lab.

use std::{collections::BTreeMap, fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, bail};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{Lab, Netns, Proc, poll_until};

/// A loaded machine with two cores starts it in a few seconds.
const PATIENCE: Duration = Duration::from_secs(60);
const ADDRESS: &str = "127.0.0.1:9090";

/// One series of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Its labels, `__name__` too.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

impl Series {
    /// A label, empty for none.
    pub fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }
}

/// A Prometheus that runs in a namespace of a lab and keeps its data there.
#[derive(Debug)]
pub struct Prometheus<'lab> {
    lab: &'lab Lab,
    netns: Netns,
    proc: Proc,
    folder: PathBuf,
}

impl<'lab> Prometheus<'lab> {
    /// Starts it in the lab's own namespace with a configuration, which may name files
    /// beside it.
    pub fn start(lab: &'lab Lab, config: &str) -> anyhow::Result<Self> {
        Self::start_in(lab, &Netns::Host, config)
    }

    /// The same in another namespace of the lab.
    pub fn start_in(lab: &'lab Lab, netns: &Netns, config: &str) -> anyhow::Result<Self> {
        let folder = lab.tmp().join("prometheus");
        fs::create_dir_all(&folder)?;
        let file = folder.join("prometheus.yml");
        fs::write(&file, config)?;
        let proc = lab
            .command_in(netns, "prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                folder.join("data").display()
            ))
            .arg(format!("--web.listen-address={ADDRESS}"))
            .arg("--log.level=warn")
            .start()
            .context("cannot start prometheus (package prometheus)")?;
        let mut prometheus = Self {
            lab,
            netns: netns.clone(),
            proc,
            folder,
        };
        prometheus.wait_ready()?;
        Ok(prometheus)
    }

    fn wait_ready(&mut self) -> anyhow::Result<()> {
        let url = format!("http://{ADDRESS}/-/ready");
        let ready = poll_until(PATIENCE, "an answer of Prometheus", || {
            if !self.proc.is_running() {
                return Ok(Some(false));
            }
            let mut curl = self.lab.command_in(&self.netns, "curl");
            let answer = curl.args(["-sf", "-m5", &url]).output()?;
            Ok(answer.status.success().then_some(true))
        });
        match ready {
            Ok(true) => Ok(()),
            Ok(false) => bail!("Prometheus ended: {}", self.proc.stderr().join("\n")),
            Err(error) => Err(error.context(self.proc.stderr().join("\n"))),
        }
    }

    /// Its folder, where its configuration is.
    pub fn folder(&self) -> &std::path::Path {
        &self.folder
    }

    /// Asks its HTTP API; gives `data`.
    pub fn api(&self, path: &str, parameters: &[(&str, &str)]) -> anyhow::Result<Value> {
        let mut curl = self.lab.command_in(&self.netns, "curl");
        curl.args(["-s", "-m20", "-G"]);
        for (name, value) in parameters {
            curl.arg("--data-urlencode").arg(format!("{name}={value}"));
        }
        let answer = curl.arg(format!("http://{ADDRESS}/api/v1/{path}")).json()?;
        if answer["status"] != "success" {
            bail!("{path} {parameters:?}: {answer}");
        }
        Ok(answer["data"].clone())
    }

    /// What an expression is now. A scalar is one series without labels.
    pub fn query(&self, expression: &str) -> anyhow::Result<Vec<Series>> {
        let data = self.api("query", &[("query", expression)])?;
        let number = |value: &Value| -> anyhow::Result<f64> {
            let text = value[1].as_str().with_context(|| value.to_string())?;
            Ok(text.parse()?)
        };
        if data["resultType"] == "scalar" {
            return Ok(vec![Series {
                labels: BTreeMap::new(),
                value: number(&data["result"])?,
            }]);
        }
        let all = data["result"].as_array().context("a vector")?;
        all.iter()
            .map(|series| {
                let labels = serde_json::from_value(series["metric"].clone())?;
                let value = number(&series["value"]).context("an instant vector")?;
                Ok(Series { labels, value })
            })
            .collect()
    }

    /// The one value of an expression; none where there is no series.
    pub fn value(&self, expression: &str) -> anyhow::Result<Option<f64>> {
        let all = self.query(expression)?;
        if all.len() > 1 {
            bail!("{expression} is more than one: {all:?}");
        }
        Ok(all.first().map(|series| series.value))
    }

    /// Waits until an expression has a value that `wanted` accepts.
    pub fn until(
        &self,
        expression: &str,
        mut wanted: impl FnMut(f64) -> bool,
    ) -> anyhow::Result<f64> {
        let mut last = None;
        poll_until(PATIENCE, expression, || {
            last = self.value(expression)?;
            Ok(last.filter(|value| wanted(*value)))
        })
        .with_context(|| format!("{expression} was {last:?} in the end"))
    }

    /// Ends it.
    pub fn end(mut self) -> anyhow::Result<()> {
        self.proc.end(Signal::SIGTERM, PATIENCE)?;
        Ok(())
    }
}
