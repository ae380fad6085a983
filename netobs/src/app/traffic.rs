//! Packets and lookups of namespaces: what `watch` and `serve` observe.

use std::{
    panic,
    sync::Arc,
    thread,
    time::{Instant, SystemTime},
};

use tokio::runtime::Handle;

use super::{explain, host};
use crate::{
    bpf::{lookups, object, pins::PinFolder},
    config,
    error::{Cause, Failure},
    inventory::{behalf, build::Row, facts::Facts},
    model::sample::{Hook, Sample, State, Warning},
    observer::{LookupObserver, Observer, Settings, Wanted},
    world::{gather::Machine, limits},
};

/// Programs that count packets, and those that follow lookups.
pub(super) struct Traffic {
    pub(super) observer: Observer,
    /// The programs that follow lookups.
    pub(super) lookups: LookupObserver,
}

impl Traffic {
    /// Loads everything. `detail`: lookups by destination too, with room for so many.
    pub(super) fn start(
        config: &config::Traffic,
        scope: &config::Scope,
        common: &config::Common,
        detail: Option<u32>,
        machine: &Machine,
    ) -> Result<Self, Failure> {
        let host = machine.host_key();
        let pins = match (&config.pins, host.cookie()) {
            (None, _) => None,
            (Some(path), Some(cookie)) => Some(Arc::new(PinFolder::open(path, cookie)?)),
            (Some(_), None) => {
                return Err(Failure::words(
                    Cause::Kernel,
                    "--pin: this kernel does not number its namespaces (SO_NETNS_COOKIE, since Linux 5.14)",
                ));
            }
        };
        let settings = Settings {
            tc_mode: common.tc_mode,
            max_interfaces: config.max_interfaces,
            selection: scope.selection.clone(),
            expedite: config.expedite,
            pins: pins.clone(),
        };
        let observer = || Observer::new(settings, host).map_err(explain);
        let wanted = if config.lookups {
            Wanted::This(lookups::Settings {
                detail: detail.is_some(),
                calls: true,
                host: host.cookie().unwrap_or(0),
                namespaces: config.max_namespaces,
                destinations: detail.unwrap_or(1),
                failures: 1,
            })
        } else {
            Wanted::Nothing
        };
        if let Some(pins) = pins {
            // What is pinned for the one is a part of what the other has made there.
            let observer = observer()?;
            let lookups = LookupObserver::start(wanted, Some(pins.part()));
            return Ok(Self { observer, lookups });
        }
        // The verifier takes its time over each.
        let runtime = Handle::current();
        thread::scope(|scope| {
            let lookups = scope.spawn(|| {
                let _context = runtime.enter();
                LookupObserver::start(wanted, None)
            });
            let observer = observer();
            let lookups = match lookups.join() {
                Ok(lookups) => lookups,
                Err(panic) => panic::resume_unwind(panic),
            };
            Ok(Self {
                observer: observer?,
                lookups,
            })
        })
    }

    /// As of [`Subject`](super::live::Subject).
    pub(super) fn ended(&mut self, ifindex: u32) {
        self.observer.ended(ifindex);
    }

    /// As of [`Subject`](super::live::Subject).
    pub(super) fn passable(&mut self, ifindex: u32, up: bool, at: Instant) {
        self.observer.passable(ifindex, up, at);
    }

    /// Adjusts to what was found on the machine.
    pub(super) async fn apply(&mut self, facts: &Facts, rows: Vec<Row>, machine: &Machine) {
        self.lookups
            .follow(behalf::sources(&facts.host.links, &rows));
        self.observer.apply(rows, machine).await;
    }

    /// As of [`Subject`](super::live::Subject).
    pub(super) fn is_settled(&self) -> bool {
        self.lookups.is_settled() && self.observer.is_settled()
    }

    /// Why nothing at all works.
    pub(super) fn problem(&self) -> Option<Failure> {
        let reason = self.observer.nothing_works()?;
        // Room may come, and the reason is in every row.
        limits::room(object::DESCRIPTORS).ok()?;
        Some(explain(anyhow::anyhow!("attach to interfaces: {reason}")))
    }

    /// Reads everything. [`LookupObserver::forget`] is yet to be called with the result.
    pub(super) async fn sample(&mut self, machine: &Machine, warnings: Vec<Warning>) -> Sample {
        let started = Instant::now();
        let mut sample = self
            .observer
            .sample(machine, host(), SystemTime::now(), warnings)
            .await;
        self.lookups.complete(&mut sample);
        self.observer.share(&sample);
        log::debug!(
            "{} namespaces read in {} µs",
            sample.namespaces.len(),
            started.elapsed().as_micros()
        );
        sample
    }

    /// Whether something of `sample` could not be observed.
    pub(super) fn is_partial(&self, sample: &Sample) -> bool {
        self.lookups.is_partial()
            || sample.namespaces.iter().any(|ns| {
                ns.state == State::Up
                    && (ns.reason.is_some() || ns.interfaces.iter().any(|i| i.hook == Hook::None))
            })
    }

    /// Takes everything off, unless it is to live on.
    pub(super) async fn close(self, machine: &Machine) {
        self.observer.shut_down(machine).await;
    }
}
