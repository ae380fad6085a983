//! `netobs watch`.

use std::time::Instant;

use bytes::Bytes;

use super::{
    live::{self, Frame, Signals, Subject},
    paced::Paced,
    screen::Screen,
    traffic::Traffic,
};
use crate::{
    config::{self, Format},
    error::{Cause, Failure},
    inventory::{build::Row, facts::Facts},
    model::{
        sample::{Sample, Warning},
        view::View,
    },
    render::{csv, json, table},
    world::{engine, gather::Machine},
};

/// Traffic, drawn.
struct Watch {
    config: config::Watch,
    traffic: Traffic,
    before: Option<Sample>,
    screen: Screen,
    json: json::Lines,
    started: bool,
    /// Bytes of the last frame: the next one will be of about this size.
    size: usize,
}

pub(super) async fn run(config: config::Watch) -> Result<(), Failure> {
    let signals = Signals::new()?;
    let machine = Machine::open()?;
    let scope = config.scope.clone();
    let engine = engine::follow(config.common.engine.clone());
    let traffic = Traffic::start(&config.traffic, &scope, &config.common, None, &machine)?;
    let outlet = Paced::new(config.pace);
    let watch = Watch {
        config,
        traffic,
        before: None,
        screen: Screen::default(),
        json: json::Lines::default(),
        started: false,
        size: 0,
    };
    live::run(signals, machine, watch, engine, &scope, outlet).await
}

impl Subject for Watch {
    type Product = Bytes;

    const HURRIES: bool = true;

    fn ended(&mut self, ifindex: u32) {
        self.traffic.ended(ifindex);
    }

    fn passable(&mut self, ifindex: u32, up: bool, at: Instant) {
        self.traffic.passable(ifindex, up, at);
    }

    fn greet(&mut self, rows: &[Row], machine: &Machine) {
        self.traffic.observer.greet(rows, machine);
    }

    async fn apply(&mut self, facts: &Facts, rows: Vec<Row>, machine: &Machine) {
        self.traffic.apply(facts, rows, machine).await;
    }

    fn is_settled(&self) -> bool {
        self.traffic.is_settled()
    }

    async fn tend(&mut self, machine: &Machine) {
        self.traffic.observer.tend(machine).await;
    }

    fn problem(&self) -> Option<Failure> {
        self.traffic.problem()
    }

    async fn event(&mut self) {
        std::future::pending().await
    }

    async fn frame(
        &mut self,
        machine: &Machine,
        warnings: Vec<Warning>,
    ) -> Result<Frame<Bytes>, Failure> {
        let sample = self.traffic.sample(machine, warnings).await;
        self.traffic.lookups.forget(&sample);
        let partial = self.traffic.is_partial(&sample);
        let before = self.before.take();
        let view = View::new(before.as_ref(), &sample, self.config.pace.interval);
        let bytes = self
            .draw(&view)
            .map_err(|error| Failure::new(Cause::Run, error.into()))?;
        let warnings = if Screen::shows_warnings(self.config.pace.format) {
            Vec::new()
        } else {
            sample.warnings.clone()
        };
        self.before = Some(sample);
        Ok(Frame {
            product: bytes,
            warnings,
            partial,
        })
    }

    async fn close(self, machine: &Machine) {
        self.traffic.close(machine).await;
    }
}

impl Watch {
    fn draw(&mut self, view: &View<'_>) -> std::io::Result<Bytes> {
        let mut frame = Vec::with_capacity(self.size + self.size / 16);
        match self.config.pace.format {
            Format::Json => self.json.sample(view, &mut frame)?,
            Format::Csv => {
                if !self.started {
                    csv::header(&self.config.columns, &mut frame)?;
                }
                csv::sample(view, &self.config.columns, &mut frame)?;
            }
            Format::Table => {
                let (style, terminal) = Screen::style(self.config.common.color);
                let lines = table::lines(view, style);
                self.screen.draw(&lines, terminal, &mut frame)?;
            }
        }
        self.started = true;
        self.size = frame.len();
        Ok(frame.into())
    }
}
