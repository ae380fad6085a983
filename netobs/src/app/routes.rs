//! `netobs routes`.

use std::time::{Instant, SystemTime};

use anyhow::Context as _;
use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::FutureExt as _;

use super::{
    host,
    live::{self, Frame, Signals, Subject},
    not_permitted,
    paced::Paced,
    screen::Screen,
};
use crate::{
    bpf::lookups,
    config::{self, Format},
    error::{Cause, Failure},
    inventory::{behalf, build::Row, facts::Facts},
    model::{
        lookups::Backend,
        routing::RoutingSample,
        sample::{State, Warning},
    },
    observer::{LookupObserver, RoutingObserver, Wanted},
    render::routes,
    world::{engine, gather::Machine, route_events::RouteEvents},
};

/// Routing tables and what met them.
struct Routing {
    config: config::Routes,
    lookups: LookupObserver,
    observer: RoutingObserver,
    events: RouteEvents,
    screen: Screen,
    started: bool,
}

pub(super) async fn run(config: config::Routes) -> Result<(), Failure> {
    let signals = Signals::new()?;
    let machine = Machine::open()?;
    // Ahead of the first look: what changes after it is told.
    let events = RouteEvents::open().context("open a route socket")?;
    let engine = engine::follow(config.common.engine.clone());
    let lookups = LookupObserver::start(
        Wanted::This(lookups::Settings {
            detail: true,
            calls: true,
            host: machine.host_key().cookie().unwrap_or(0),
            namespaces: config.max_namespaces,
            destinations: config.max_destinations,
            failures: config.max_failures,
        }),
        None,
    );
    if lookups.backend() == Backend::None
        && let Some(doubt) = lookups.doubts().first()
        && let Some(failure) = not_permitted(&doubt.message)
    {
        return Err(failure);
    }
    let scope = config.scope.clone();
    let outlet = Paced::new(config.pace);
    let routing = Routing {
        lookups,
        observer: RoutingObserver::new(config.scope.selection.clone(), events.hears_others),
        config,
        events,
        screen: Screen::default(),
        started: false,
    };
    live::run(signals, machine, routing, engine, &scope, outlet).await
}

impl Subject for Routing {
    type Product = Bytes;

    const HURRIES: bool = false;

    fn ended(&mut self, _ifindex: u32) {}

    fn passable(&mut self, _ifindex: u32, _up: bool, _at: Instant) {}

    fn greet(&mut self, _rows: &[Row], _machine: &Machine) {}

    async fn apply(&mut self, facts: &Facts, rows: Vec<Row>, machine: &Machine) {
        self.lookups
            .follow(behalf::sources(&facts.host.links, &rows));
        self.observer.apply(rows, machine).await;
    }

    fn is_settled(&self) -> bool {
        self.lookups.is_settled() && self.observer.is_settled()
    }

    async fn tend(&mut self, _machine: &Machine) {}

    /// Tables can be shown without lookups.
    fn problem(&self) -> Option<Failure> {
        None
    }

    async fn event(&mut self) {
        for event in self.events.next().await {
            self.observer.event(event);
        }
    }

    async fn frame(
        &mut self,
        machine: &Machine,
        warnings: Vec<Warning>,
    ) -> Result<Frame<Bytes>, Failure> {
        // What has been told already.
        while let Some(events) = self.events.next().now_or_never() {
            events
                .into_iter()
                .for_each(|event| self.observer.event(event));
        }
        self.observer.update(&self.lookups, machine).await;
        let mut sample = self.observer.bare(host(), SystemTime::now(), warnings);
        self.lookups.complete(&mut sample);
        let sample = self.observer.join(&mut self.lookups, sample);
        let partial = self.lookups.is_partial()
            || sample
                .namespaces
                .iter()
                .any(|routing| routing.namespace.state == State::Up && routing.routes.is_none());
        let bytes = self
            .draw(&sample)
            .map_err(|error| Failure::new(Cause::Run, error.into()))?;
        let warnings = if Screen::shows_warnings(self.config.pace.format) {
            Vec::new()
        } else {
            sample.warnings
        };
        Ok(Frame {
            product: bytes,
            warnings,
            partial,
        })
    }

    async fn close(self, _machine: &Machine) {}
}

impl Routing {
    fn draw(&mut self, sample: &RoutingSample) -> std::io::Result<Bytes> {
        let mut frame = BytesMut::new().writer();
        match self.config.pace.format {
            Format::Json => routes::json(sample, self.config.pace.interval, &mut frame)?,
            Format::Csv => {
                if !self.started {
                    routes::csv_header(&self.config.columns, &mut frame)?;
                }
                routes::csv(sample, &self.config.columns, &mut frame)?;
            }
            Format::Table => {
                let (style, terminal) = Screen::style(self.config.common.color);
                let lines = routes::lines(sample, style);
                self.screen.draw(&lines, terminal, &mut frame)?;
            }
        }
        self.started = true;
        Ok(frame.into_inner().freeze())
    }
}
