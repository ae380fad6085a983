//! `netobs watch`.

use std::{
    pin::pin,
    time::{Duration, Instant, SystemTime},
};

use bytes::{BufMut as _, BytesMut};
use futures_util::StreamExt as _;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{self, MissedTickBehavior},
};

use super::{
    explain, host,
    list::{Said, engine_warning, first_word, standing},
    output::{self, Output},
};
use crate::{
    bpf::lookups,
    config::{self, Format},
    error::{Cause, Failure},
    inventory::{behalf, build},
    model::{
        sample::{Hook, NsKey, Sample, State, Warning},
        view::View,
    },
    observer::{LookupObserver, Observer, Settings, Wanted},
    render::{csv, json, table},
    world::{
        engine::{self, Update},
        gather::{Depth, Machine},
        netlink::{LinkEvent, Netlink},
    },
};

/// How long the first sample waits for the engine's names.
const ENGINE_PATIENCE: Duration = Duration::from_secs(2);
/// Between looks for what no event tells of.
const REFRESH: Duration = Duration::from_secs(1);
/// How long a reader has to take the last samples after a signal.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Columns where standard output is no terminal.
const WIDTH: usize = 100;

/// The state of a run.
struct Run {
    config: config::Watch,
    machine: Machine,
    observer: Observer,
    lookups: LookupObserver,
    engine: Option<Warning>,
    standing: Vec<Warning>,
    before: Option<Sample>,
    screen: Screen,
    said: Said,
    partial: bool,
}

pub(super) async fn run(config: config::Watch) -> Result<(), Failure> {
    // First of all: from here on a signal ends us in order, with everything
    // put back.
    let mut signals = Signals::new()?;
    let mut machine = Machine::open()?;
    let observer = Observer::new(
        Settings {
            tc_mode: config.common.tc_mode,
            max_interfaces: config.max_interfaces,
            selection: config.scope.selection.clone(),
            expedite: config.expedite,
        },
        machine.host_key(),
    )
    .map_err(explain)?;
    let lookups = LookupObserver::start(wanted(&config, machine.host_key()));
    let (_socket, events) = Netlink::events().map_err(anyhow::Error::from)?;
    let mut events = pin!(events);
    let mut engine = engine::follow(config.common.engine.clone());
    let engine_warning_ = first_word(&mut engine, &mut machine, ENGINE_PATIENCE)
        .await
        .pop();

    let mut run = Run {
        machine,
        observer,
        lookups,
        engine: engine_warning_,
        standing: Vec::new(),
        before: None,
        screen: Screen::new(&config),
        said: Said::default(),
        partial: false,
        config,
    };
    run.look(Depth::Periodic).await?;
    if let Some(reason) = run.observer.nothing_works() {
        return Err(explain(anyhow::anyhow!("attach to interfaces: {reason}")));
    }

    let mut output = Output::start();
    let interval = run.config.interval;
    let first = if run.config.once {
        Duration::ZERO
    } else {
        interval
    };
    let mut ticks = time::interval_at(time::Instant::now() + first, interval);
    // After a pause (a suspended machine, a blocked reader) one sample, not many.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut refresh = time::interval_at(time::Instant::now() + REFRESH, REFRESH);
    refresh.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut left = run.config.count;
    let mut signalled = false;
    let result = loop {
        let settled = run.machine.settles_in();
        tokio::select! {
            biased;
            () = signals.any() => {
                signalled = true;
                break Ok(());
            }
            ended = output.ended() => break ended,
            // Ahead of the events: these may come faster than they are looked at.
            _ = ticks.tick() => {
                if output.is_full() {
                    continue;
                }
                let frame = match run.frame().await {
                    Ok(frame) => frame,
                    Err(error) => break Err(error),
                };
                if !output.send(frame).await {
                    break output.ended().await;
                }
                if let Some(left) = &mut left {
                    *left -= 1;
                    if *left == 0 {
                        break Ok(());
                    }
                }
            }
            Some(event) = events.next() => {
                run.event(&event);
                // What happened together is looked at together.
                while let Some(Some(event)) = futures_util::FutureExt::now_or_never(events.next()) {
                    run.event(&event);
                }
                if let Err(error) = run.look(Depth::Event).await { break Err(error.into()); }
            }
            Some(update) = engine.recv() => {
                run.engine_says(&update);
                if let Err(error) = run.look(Depth::Event).await { break Err(error.into()); }
            }
            () = time::sleep(settled.unwrap_or(Duration::MAX)), if settled.is_some() => {
                if let Err(error) = run.look(Depth::Event).await { break Err(error.into()); }
            }
            _ = refresh.tick() => {
                if let Err(error) = run.look(Depth::Periodic).await { break Err(error.into()); }
            }
        }
    };
    let Run {
        observer,
        machine,
        partial,
        config,
        ..
    } = run;
    observer.shut_down(&machine).await;
    result?;
    // A reader that does not read would be waited for without end.
    let patience = if signalled { LAST_WORDS } else { Duration::MAX };
    tokio::select! {
        closed = output.close() => closed?,
        () = signals.any() => {}
        () = time::sleep(patience) => {}
    }
    if config.scope.strict && partial {
        return Err(Failure::words(
            Cause::Partial,
            "--strict: some namespaces could not be observed fully",
        ));
    }
    Ok(())
}

fn wanted(config: &config::Watch, host: NsKey) -> Wanted {
    if !config.lookups {
        return Wanted::Nothing;
    }
    Wanted::This(lookups::Settings {
        detail: false,
        host: host.cookie().unwrap_or(0),
        namespaces: config.max_namespaces,
        destinations: 1,
        failures: 1,
    })
}

impl Run {
    fn event(&mut self, event: &LinkEvent) {
        match event {
            LinkEvent::Gone(ifindex) => self.observer.ended(*ifindex),
            LinkEvent::Changed => {}
            LinkEvent::Lost => log::info!("the kernel dropped link events: looking at everything"),
        }
    }

    fn engine_says(&mut self, update: &Update) {
        self.machine.take(update);
        self.engine = engine_warning(update);
    }

    async fn look(&mut self, depth: Depth) -> anyhow::Result<()> {
        let started = Instant::now();
        let facts = self.machine.look(depth).await?;
        let rows = build::rows(&facts, self.config.scope.options);
        self.standing = standing(&self.machine, &rows, &self.config.scope);
        self.lookups.follow(behalf::sources(&facts.host.links, &rows));
        self.observer.apply(rows, &self.machine).await;
        log::trace!("{depth:?} look took {:?}", started.elapsed());
        Ok(())
    }

    async fn frame(&mut self) -> Result<bytes::Bytes, Failure> {
        let warnings = self.engine.iter().chain(&self.standing).cloned().collect();
        let mut sample = self
            .observer
            .sample(&self.machine, host(), SystemTime::now(), warnings)
            .await;
        self.lookups.complete(&mut sample);
        self.partial |= sample.namespaces.iter().any(|ns| {
            ns.state == State::Up
                && (ns.reason.is_some() || ns.interfaces.iter().any(|i| i.hook == Hook::None))
        });
        let view = View::new(self.before.as_ref(), &sample, self.config.interval);
        let frame = self
            .screen
            .frame(&view)
            .map_err(|error| Failure::new(Cause::Run, error.into()))?;
        if !self.screen.shows_warnings() {
            self.said.tell(&sample.warnings);
        }
        self.before = Some(sample);
        Ok(frame)
    }
}

/// Where frames go and what the last one left there.
struct Screen {
    format: Format,
    color: bool,
    started: bool,
    /// Lines of the last frame on the terminal, and its size then.
    last: Option<(usize, (usize, usize))>,
}

impl Screen {
    fn new(config: &config::Watch) -> Self {
        Self {
            format: config.format,
            color: config.common.color,
            started: false,
            last: None,
        }
    }

    /// JSON carries warnings itself; a terminal shows them below the table.
    fn shows_warnings(&self) -> bool {
        match self.format {
            Format::Json => true,
            Format::Csv => false,
            Format::Table => output::terminal().is_some(),
        }
    }

    fn frame(&mut self, view: &View<'_>) -> std::io::Result<bytes::Bytes> {
        let mut frame = BytesMut::new().writer();
        match self.format {
            Format::Json => json::sample(view, &mut frame)?,
            Format::Csv => {
                if !self.started {
                    csv::header(&mut frame)?;
                }
                csv::sample(view, &mut frame)?;
            }
            Format::Table => match output::terminal() {
                Some(size) => self.redraw(view, size, &mut frame)?,
                None => {
                    let style = table::Style {
                        width: WIDTH,
                        height: None,
                        color: self.color,
                        notes: false,
                    };
                    table::block(view, style, &mut frame)?;
                }
            },
        }
        self.started = true;
        Ok(frame.into_inner().freeze())
    }

    /// Draws over the last frame. The last line of the terminal stays free
    /// for the cursor, so that nothing scrolls.
    fn redraw(
        &mut self,
        view: &View<'_>,
        (width, height): (usize, usize),
        out: &mut impl std::io::Write,
    ) -> std::io::Result<()> {
        let style = table::Style {
            width,
            height: Some(height.saturating_sub(1)),
            color: self.color,
            notes: true,
        };
        let lines = table::lines(view, style);
        match self.last {
            Some((count, size)) if size == (width, height) => {
                if count > 0 {
                    write!(out, "\x1b[{count}A")?;
                }
                write!(out, "\r\x1b[J")?;
            }
            // Lines of another width have wrapped: start on an empty screen.
            Some(_) => write!(out, "\x1b[H\x1b[J")?,
            None => {}
        }
        for line in &lines {
            writeln!(out, "{line}")?;
        }
        self.last = Some((lines.len(), (width, height)));
        Ok(())
    }
}

/// The signals that end a run well.
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
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
