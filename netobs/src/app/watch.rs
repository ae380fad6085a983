//! `netobs watch`.

use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};

use bytes::{BufMut as _, Bytes, BytesMut};

use super::{
    explain, host,
    live::{self, Frame, Signals, Subject},
    screen::Screen,
};
use crate::{
    bpf::{lookups, object, pins::PinFolder},
    config::{self, Format},
    error::{Cause, Failure},
    inventory::{behalf, build::Row, facts::Facts},
    model::{
        sample::{Hook, NsKey, Sample, State, Warning},
        view::View,
    },
    observer::{LookupObserver, Observer, Settings, Wanted},
    render::{csv, json, table},
    world::{gather::Machine, limits},
};

/// Packets and lookups of namespaces.
struct Traffic {
    config: config::Watch,
    observer: Observer,
    lookups: LookupObserver,
    before: Option<Sample>,
    screen: Screen,
    started: bool,
}

pub(super) async fn run(config: config::Watch) -> Result<(), Failure> {
    let signals = Signals::new()?;
    let machine = Machine::open()?;
    let pins = match (&config.pins, machine.host_key().cookie()) {
        (None, _) => None,
        (Some(path), Some(cookie)) => Some(Arc::new(PinFolder::open(path, cookie)?)),
        (Some(_), None) => {
            return Err(Failure::words(
                Cause::Kernel,
                "--pin: this kernel does not number its namespaces (SO_NETNS_COOKIE, since Linux 5.14)",
            ));
        }
    };
    let observer = Observer::new(
        Settings {
            tc_mode: config.common.tc_mode,
            max_interfaces: config.max_interfaces,
            selection: config.scope.selection.clone(),
            expedite: config.expedite,
            pins: pins.clone(),
        },
        machine.host_key(),
    )
    .map_err(explain)?;
    let part = pins.as_deref().map(PinFolder::part);
    let lookups = LookupObserver::start(wanted(&config, machine.host_key()), part);
    let (common, scope) = (config.common.clone(), config.scope.clone());
    let pace = config.pace;
    let traffic = Traffic {
        config,
        observer,
        lookups,
        before: None,
        screen: Screen::default(),
        started: false,
    };
    live::run(signals, machine, traffic, &common, &scope, pace).await
}

fn wanted(config: &config::Watch, host: NsKey) -> Wanted {
    if !config.lookups {
        return Wanted::Nothing;
    }
    Wanted::This(lookups::Settings {
        detail: false,
        host: host.cookie().unwrap_or(0),
        namespaces: config.pace.max_namespaces,
        destinations: 1,
        failures: 1,
    })
}

impl Subject for Traffic {
    const HURRIES: bool = true;

    fn ended(&mut self, ifindex: u32) {
        self.observer.ended(ifindex);
    }

    fn passable(&mut self, ifindex: u32, up: bool, at: Instant) {
        self.observer.passable(ifindex, up, at);
    }

    async fn apply(&mut self, facts: &Facts, rows: Vec<Row>, machine: &Machine) {
        self.lookups
            .follow(behalf::sources(&facts.host.links, &rows));
        self.observer.apply(rows, machine).await;
    }

    fn problem(&self) -> Option<Failure> {
        let reason = self.observer.nothing_works()?;
        // Room may come, and the reason is in every row.
        limits::room(object::DESCRIPTORS).ok()?;
        Some(explain(anyhow::anyhow!("attach to interfaces: {reason}")))
    }

    async fn event(&mut self) {
        std::future::pending().await
    }

    async fn frame(&mut self, machine: &Machine, warnings: Vec<Warning>) -> Result<Frame, Failure> {
        let mut sample = self
            .observer
            .sample(machine, host(), SystemTime::now(), warnings)
            .await;
        self.lookups.complete(&mut sample);
        self.lookups.forget(&sample);
        let partial = self.lookups.is_partial()
            || sample.namespaces.iter().any(|ns| {
                ns.state == State::Up
                    && (ns.reason.is_some() || ns.interfaces.iter().any(|i| i.hook == Hook::None))
            });
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
            bytes,
            warnings,
            partial,
        })
    }

    async fn close(self, machine: &Machine) {
        self.observer.shut_down(machine).await;
    }
}

impl Traffic {
    fn draw(&mut self, view: &View<'_>) -> std::io::Result<Bytes> {
        let mut frame = BytesMut::new().writer();
        match self.config.pace.format {
            Format::Json => json::sample(view, &mut frame)?,
            Format::Csv => {
                if !self.started {
                    csv::header(&mut frame)?;
                }
                csv::sample(view, &mut frame)?;
            }
            Format::Table => {
                let (style, terminal) = Screen::style(self.config.common.color);
                let lines = table::lines(view, style);
                self.screen.draw(&lines, terminal, &mut frame)?;
            }
        }
        self.started = true;
        Ok(frame.into_inner().freeze())
    }
}
