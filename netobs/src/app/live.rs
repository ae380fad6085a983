//! What `watch`, `routes` and `serve` share: look at the machine, follow its events, and
//! take a sample whenever one is wanted, until somebody has had enough.

use std::{
    ops::ControlFlow,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use sd_notify::NotifyState;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc::Receiver,
    time::{self, MissedTickBehavior},
};

use super::list::{Said, engine_warning, first_word, standing};
use crate::{
    config,
    error::{Cause, Failure},
    inventory::{
        build::{self, Row},
        facts::Facts,
    },
    model::sample::Warning,
    world::{
        engine,
        gather::{Depth, Machine, PERIOD},
        link_events::{self, Heard, LinkEvent, LinkEvents},
        own_process,
    },
};

/// How long the first sample waits for the engine's names.
const ENGINE_PATIENCE: Duration = Duration::from_secs(2);

/// Tells a service manager that waits for it (systemd's `Type=notify` and
/// `WatchdogSec=`); nobody else is told.
struct Manager {
    watchdog: time::Interval,
    watched: bool,
}

impl Manager {
    fn new() -> Self {
        let patience = sd_notify::watchdog_enabled();
        // Twice in its time, as systemd asks for.
        let every = patience.map_or(PERIOD, |patience| patience / 2);
        let mut watchdog = time::interval(every.max(Duration::from_millis(1)));
        watchdog.set_missed_tick_behavior(MissedTickBehavior::Skip);
        Self {
            watchdog,
            watched: patience.is_some(),
        }
    }

    fn tell(state: NotifyState<'_>) {
        if let Err(error) = sd_notify::notify(&[state]) {
            log::debug!("tell the service manager: {error}");
        }
    }

    /// Says that we are alive, when it is time to.
    async fn alive(&mut self) {
        self.watchdog.tick().await;
        Self::tell(NotifyState::Watchdog);
    }
}

/// A sample, ready to be handed out.
pub(super) struct Frame<T> {
    /// What to hand out.
    pub(super) product: T,
    /// Doubts that `product` has no place for.
    pub(super) warnings: Vec<Warning>,
    /// Whether something could not be observed.
    pub(super) partial: bool,
}

/// Who wants samples.
pub(super) trait Outlet<T> {
    /// Returns when one is wanted, or when none will be any more. Nothing is lost when
    /// the future is dropped.
    async fn wanted(&mut self) -> ControlFlow<Result<(), Failure>>;

    /// Hands one out.
    async fn give(&mut self, product: T) -> ControlFlow<Result<(), Failure>>;

    /// Ends. `signalled`: somebody waits for it.
    async fn close(self, signalled: bool) -> Result<(), Failure>;
}

/// What is observed.
pub(super) trait Subject {
    /// What a sample becomes.
    type Product;

    /// Whether what is heard of links is worth a [`greet`](Self::greet) and an
    /// [`apply`](Self::apply) before anything was looked at.
    const HURRIES: bool;

    /// An interface of our own namespace has ended.
    fn ended(&mut self, ifindex: u32);

    /// Packets can pass one (`up`), or cannot, since this moment.
    fn passable(&mut self, ifindex: u32, up: bool, at: Instant);

    /// Adjusts to what is new, ahead of an [`apply`](Self::apply) of everything.
    fn greet(&mut self, rows: &[Row], machine: &Machine);

    /// Adjusts to what was found on the machine.
    async fn apply(&mut self, facts: &Facts, rows: Vec<Row>, machine: &Machine);

    /// Whether another [`apply`](Self::apply) with the same would change nothing.
    fn is_settled(&self) -> bool;

    /// Does what time asks for, after a look that has found nothing new.
    async fn tend(&mut self, machine: &Machine);

    /// Why nothing at all works, after the first [`apply`](Self::apply).
    fn problem(&self) -> Option<Failure>;

    /// Returns when something of its own has happened.
    async fn event(&mut self);

    /// Takes a sample.
    async fn frame(
        &mut self,
        machine: &Machine,
        warnings: Vec<Warning>,
    ) -> Result<Frame<Self::Product>, Failure>;

    /// Takes everything off.
    async fn close(self, machine: &Machine);
}

/// The state of a run.
struct Run<S> {
    scope: config::Scope,
    machine: Machine,
    subject: S,
    engine: Option<Warning>,
    standing: Vec<Warning>,
    said: Said,
    partial: bool,
}

/// Runs until the end. `signals` were taken before anything was attached: from
/// then on a signal ends us in order. So was the `engine` asked: it answers while
/// programs are loaded.
pub(super) async fn run<S: Subject>(
    mut signals: Signals,
    mut machine: Machine,
    subject: S,
    mut engine: Receiver<engine::Update>,
    scope: &config::Scope,
    mut outlet: impl Outlet<S::Product>,
) -> Result<(), Failure> {
    let LinkEvents {
        mut events,
        hears_others,
    } = link_events::listen().context("listen to link events")?;
    machine.listens(hears_others);
    let warning = first_word(&mut engine, &mut machine, ENGINE_PATIENCE)
        .await
        .pop();
    let mut run = Run {
        scope: scope.clone(),
        machine,
        subject,
        engine: warning,
        standing: Vec::new(),
        said: Said::default(),
        partial: false,
    };
    run.look(Depth::Periodic).await?;
    own_process::release_memory();
    if let Some(problem) = run.subject.problem() {
        return Err(problem);
    }

    let mut manager = Manager::new();
    Manager::tell(NotifyState::Ready);
    let mut refresh = time::interval_at(time::Instant::now() + PERIOD, PERIOD);
    refresh.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut signalled = false;
    let result = loop {
        let settled = run.machine.settles_in();
        tokio::select! {
            biased;
            () = signals.any() => {
                signalled = true;
                break Ok(());
            }
            // Ahead of the events: these may come faster than they are looked at.
            wanted = outlet.wanted() => {
                if let ControlFlow::Break(ended) = wanted {
                    break ended;
                }
                let product = match run.frame().await {
                    Ok(product) => product,
                    Err(error) => break Err(error),
                };
                if let ControlFlow::Break(ended) = outlet.give(product).await {
                    break ended;
                }
            }
            Some(heard) = events.recv() => {
                let mut look = heard.event.asks_for_a_look();
                let mut urgent = run.event(&heard);
                // What happened together is looked at together.
                while let Ok(heard) = events.try_recv() {
                    look |= heard.event.asks_for_a_look();
                    urgent |= run.event(&heard);
                }
                if !look {
                    continue;
                }
                while let Ok(update) = engine.try_recv() {
                    run.hear_engine(&update);
                }
                if urgent && S::HURRIES {
                    run.hurry().await;
                }
                if let Err(error) = run.look(Depth::Event).await { break Err(error.into()); }
            }
            Some(update) = engine.recv() => {
                let changed = run.hear_engine(&update);
                if changed && let Err(error) = run.look(Depth::Event).await {
                    break Err(error.into());
                }
            }
            () = time::sleep(settled.unwrap_or(Duration::MAX)), if settled.is_some() => {
                if let Err(error) = run.look(Depth::Event).await { break Err(error.into()); }
            }
            _ = refresh.tick() => {
                if let Err(error) = run.look(Depth::Periodic).await { break Err(error.into()); }
            }
            () = run.subject.event() => {}
            () = manager.alive(), if manager.watched => {}
        }
    };
    Manager::tell(NotifyState::Stopping);
    let Run {
        subject,
        machine,
        partial,
        scope,
        ..
    } = run;
    subject.close(&machine).await;
    result?;
    tokio::select! {
        closed = outlet.close(signalled) => closed?,
        () = signals.any() => {}
    }
    if scope.strict && partial {
        return Err(Failure::words(
            Cause::Partial,
            "--strict: some namespaces could not be observed fully",
        ));
    }
    Ok(())
}

impl<S: Subject> Run<S> {
    /// Takes what was heard; `true` where it should not wait for a look.
    fn event(&mut self, heard: &Heard) -> bool {
        match &heard.event {
            LinkEvent::Gone(ifindex) => self.subject.ended(*ifindex),
            LinkEvent::Changed { link, up } => {
                self.subject.passable(link.ifindex, *up, heard.at);
            }
            LinkEvent::Address { .. }
            | LinkEvent::Inside { .. }
            | LinkEvent::NamespaceId(_)
            | LinkEvent::Other => {}
            LinkEvent::Lost => log::info!("the kernel dropped link events: looking at everything"),
        }
        self.machine.hear(heard)
    }

    /// Takes what the engine told; `false` where that changes no row.
    fn hear_engine(&mut self, update: &engine::Update) -> bool {
        self.engine = engine_warning(update);
        self.machine.take(update)
    }

    /// Adjusts to what was heard, ahead of a look: packets do not wait until it is
    /// known whose they are.
    async fn hurry(&mut self) {
        let new = build::rows(&self.machine.newcomers(), self.scope.options);
        self.subject.greet(&new, &self.machine);
        self.machine.recall();
        self.apply().await;
        // And then whose they are, while there is somebody to ask.
        if self.machine.glance().await {
            self.machine.recall();
            self.apply().await;
        }
    }

    async fn apply(&mut self) {
        let facts = self.machine.facts();
        let rows = build::rows(facts, self.scope.options);
        self.standing = standing(&self.machine, &rows, &self.scope);
        self.subject.apply(facts, rows, &self.machine).await;
    }

    async fn look(&mut self, depth: Depth) -> anyhow::Result<()> {
        let started = Instant::now();
        if self.machine.look(depth).await? || !self.subject.is_settled() {
            self.apply().await;
        } else {
            self.subject.tend(&self.machine).await;
        }
        log::trace!("{depth:?} look took {:?}", started.elapsed());
        Ok(())
    }

    async fn frame(&mut self) -> Result<S::Product, Failure> {
        let warnings = self.engine.iter().chain(&self.standing).cloned().collect();
        let frame = self.subject.frame(&self.machine, warnings).await?;
        self.partial |= frame.partial || self.machine.blind.is_some();
        self.said.tell(&frame.warnings);
        Ok(frame.product)
    }
}

/// The signals that end a run well.
pub(super) struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl Signals {
    /// Takes them from here on.
    pub(super) fn new() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).map_err(|error| Failure::new(Cause::Run, error.into()));
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    async fn any(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}
