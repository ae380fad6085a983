//! `netobs serve`.

use std::{
    cell::RefCell,
    ops::ControlFlow,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context as _;
use futures_util::FutureExt as _;
use tokio::{
    sync::{mpsc, oneshot},
    time::{self, MissedTickBehavior},
};

use super::{
    live::{self, Frame, Outlet, Signals, Subject},
    traffic::Traffic,
};
use crate::{
    config,
    error::{Cause, Failure},
    inventory::{build::Row, facts::Facts},
    model::{
        exporter::{Exporter, Exposition},
        sample::Warning,
    },
    observer::RoutingObserver,
    web::{Bound, Pages, Request, Server, config::Reloading},
    world::{engine, gather::Machine, route_events::RouteEvents},
};

/// What has ended is noted at least so often, also where nobody asks.
const HOUSEKEEPING: Duration = Duration::from_secs(5);
/// Requests that may wait; those who ask do that one at a time.
const WAITING: usize = 16;

/// Reads for whoever asks.
struct Serve {
    traffic: Traffic,
    tables: Option<Tables>,
    exporter: Rc<RefCell<Exporter>>,
}

/// Routes, where they are asked for.
struct Tables {
    observer: RoutingObserver,
    events: RouteEvents,
}

pub(super) async fn run(config: config::Serve) -> Result<(), Failure> {
    let signals = Signals::new()?;
    // What can be told to be wrong is told before anything is attached.
    let web = config
        .web_config
        .as_deref()
        .map(Reloading::load)
        .transpose();
    let mut web = web.context("--web-config")?;
    if !config.open && config.listen.iter().any(|listen| !listen.is_local()) {
        web = web.map(Reloading::guarded);
    }
    let bound = listen(&config, web.as_ref())?;
    let machine = Machine::open()?;
    let routes = config.metrics.routes;
    let tables = match routes {
        Some(_) => {
            let events = RouteEvents::open().context("open a route socket")?;
            Some(Tables {
                observer: RoutingObserver::new(config.scope.selection.clone(), events.hears_others),
                events,
            })
        }
        None => None,
    };
    let detail = routes.map(|(destinations, _)| destinations);
    let engine = engine::follow(config.common.engine.clone());
    let traffic = Traffic::start(
        &config.traffic,
        &config.scope,
        &config.common,
        detail,
        &machine,
    )?;
    let max_routes = routes.map(|(_, series)| series as usize);
    let exporter = Rc::new(RefCell::new(Exporter::new(
        config.metrics.grace,
        max_routes,
    )));
    let (requests, asked) = mpsc::channel(WAITING);
    let outlet = Scraped {
        addresses: bound.iter().map(Bound::address).collect(),
        server: Server::start(bound, Pages::new(requests, config.metrics), web)
            .context("start the HTTP server")?,
        exporter: exporter.clone(),
        asked,
        waiting: Vec::new(),
        due: None,
    };
    let subject = Serve {
        traffic,
        tables,
        exporter,
    };
    live::run(signals, machine, subject, engine, &config.scope, outlet).await
}

/// Listens, where that is safe.
fn listen(config: &config::Serve, web: Option<&Reloading>) -> Result<Vec<Bound>, Failure> {
    let guarded = web.is_some_and(|web| web.current().is_guarded());
    let exposed = config
        .listen
        .iter()
        .find(|listen| !guarded && !listen.is_local());
    if let Some(listen) = exposed {
        let what = format!(
            "--listen {listen}: whoever reaches this port can read the names and traffic of all containers"
        );
        if !config.open {
            return Err(Failure::words(
                Cause::Usage,
                format!("{what}; --web-config sets TLS or users up, --insecure goes on without"),
            ));
        }
        log::warn!("{what}: there is neither TLS nor a user");
    }
    let bound: anyhow::Result<Vec<Bound>> =
        config.listen.iter().map(crate::web::Listen::bind).collect();
    Ok(bound?)
}

impl Subject for Serve {
    /// It is with the exporter.
    type Product = ();

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
        if let Some(tables) = &mut self.tables {
            tables.observer.apply(rows.clone(), machine).await;
        }
        self.traffic.apply(facts, rows, machine).await;
    }

    fn is_settled(&self) -> bool {
        let tables = self.tables.as_ref();
        tables.is_none_or(|tables| tables.observer.is_settled()) && self.traffic.is_settled()
    }

    async fn tend(&mut self, machine: &Machine) {
        self.traffic.observer.tend(machine).await;
    }

    fn problem(&self) -> Option<Failure> {
        self.traffic.problem()
    }

    async fn event(&mut self) {
        let Some(tables) = &mut self.tables else {
            return std::future::pending().await;
        };
        for event in tables.events.next().await {
            tables.observer.event(event);
        }
    }

    async fn frame(
        &mut self,
        machine: &Machine,
        warnings: Vec<Warning>,
    ) -> Result<Frame<()>, Failure> {
        if let Some(tables) = &mut self.tables {
            while let Some(events) = tables.events.next().now_or_never() {
                let events = events.into_iter();
                events.for_each(|event| tables.observer.event(event));
            }
            tables.observer.update(&self.traffic.lookups, machine).await;
        }
        let sample = self.traffic.sample(machine, warnings).await;
        let lookups = &mut self.traffic.lookups;
        let routing = match &mut self.tables {
            Some(tables) => tables.observer.join(lookups, sample.clone()).namespaces,
            None => {
                lookups.forget(&sample);
                Vec::new()
            }
        };
        let partial = self.traffic.is_partial(&sample);
        let keeper = &mut self.traffic.observer;
        self.exporter.borrow_mut().take(&sample, &routing, keeper);
        Ok(Frame {
            partial,
            warnings: sample.warnings,
            product: (),
        })
    }

    async fn close(self, machine: &Machine) {
        self.traffic.close(machine).await;
    }
}

/// Hands readings to scrapers.
struct Scraped {
    addresses: Vec<String>,
    server: Server,
    exporter: Rc<RefCell<Exporter>>,
    asked: mpsc::Receiver<Request>,
    waiting: Vec<oneshot::Sender<Arc<Exposition>>>,
    /// When to read without being asked.
    due: Option<time::Interval>,
}

impl Outlet<()> for Scraped {
    async fn wanted(&mut self) -> ControlFlow<Result<(), Failure>> {
        let addresses = &self.addresses;
        let due = self.due.get_or_insert_with(|| {
            log::info!("serving at {}", addresses.join(", "));
            let mut due = time::interval(HOUSEKEEPING);
            due.set_missed_tick_behavior(MissedTickBehavior::Delay);
            due
        });
        loop {
            tokio::select! {
                biased;
                request = self.asked.recv() => match request {
                    Some(Request::Show(answer)) => {
                        self.waiting.push(answer);
                        return ControlFlow::Continue(());
                    }
                    // Who asked may have gone.
                    Some(Request::Ping(answer)) => answer.send(()).unwrap_or_default(),
                    None => {
                        let ended = Failure::words(Cause::Run, "the HTTP server has ended");
                        return ControlFlow::Break(Err(ended));
                    }
                },
                _ = due.tick() => return ControlFlow::Continue(()),
            }
        }
    }

    async fn give(&mut self, (): ()) -> ControlFlow<Result<(), Failure>> {
        if let Some(due) = &mut self.due {
            due.reset();
        }
        let waiting: Vec<_> = self
            .waiting
            .drain(..)
            .filter(|answer| !answer.is_closed())
            .collect();
        if !waiting.is_empty() {
            let shown = self.exporter.borrow_mut().show(SystemTime::now());
            let shown = Arc::new(shown);
            for answer in waiting {
                // Who asked may have gone.
                let _ = answer.send(shown.clone());
            }
        }
        ControlFlow::Continue(())
    }

    async fn close(self, _signalled: bool) -> Result<(), Failure> {
        drop(self.asked);
        drop(self.server);
        Ok(())
    }
}
