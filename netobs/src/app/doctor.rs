//! `netobs doctor`: tries everything in a namespace of its own that vanishes
//! again, so that nothing of the host's is touched.

use std::{path::Path, time::Duration};

use nix::sched::{CloneFlags, unshare};

use super::print;
use crate::{
    bpf::{
        attach,
        chain::{self, Inside, Spot},
        lookups::{LookupPrograms, Settings},
        object::{self, Capacity, Programs},
    },
    config::{self, TcMode},
    error::{Cause, Failure},
    inventory::build,
    model::{
        neighbours::Neighbours,
        sample::{Hook, NsKey},
    },
    render::doctor::{self, Chain, Check, Place, Report, Verdict},
    world::{
        engine::{self, Running, Update},
        gather::{Depth, Machine},
        limits, privilege, rcu,
    },
};

const ENGINE_PATIENCE: Duration = Duration::from_secs(5);
const BTF: &str = "/sys/kernel/btf/vmlinux";

pub(super) async fn run(config: config::Doctor) -> Result<(), Failure> {
    let mut checks = vec![kernel(), capabilities(), btf()];
    let mut hook = Hook::None;
    match Capacity::inside(Some(1)).and_then(Programs::load) {
        Ok(programs) => {
            checks.push(ok("load", "the kernel takes the programs"));
            hook = attach_checks(programs, config.common.tc_mode, &mut checks);
        }
        Err(error) => checks.push(bad(
            "load",
            format!("{error:#}"),
            "netobs cannot count anything".to_owned(),
        )),
    }
    checks.push(lookups());
    checks.push(expedite());
    let mut machine = Machine::open()?;
    checks.push(engine_check(&config, &mut machine).await);
    let (interfaces, chains) = chains(&mut machine, hook).await?;
    checks.push(files(interfaces));
    checks.push(memory());

    let report = Report {
        schema: "netobs.doctor/1",
        hook: hook.as_str(),
        checks,
        interfaces,
        chains,
    };
    let mut text = Vec::new();
    if config.json {
        doctor::json(&report, &mut text)
    } else {
        doctor::table(&report, config.common.color, &mut text)
    }
    .map_err(|error| Failure::new(Cause::Run, error.into()))?;
    print(&text)?;
    if hook != Hook::None {
        return Ok(());
    }
    // Then nothing else was found out.
    limits::room(object::DESCRIPTORS).map_err(|short| Failure::words(Cause::Run, short))?;
    Err(
        super::not_permitted(&"the checks above").unwrap_or_else(|| {
            Failure::words(Cause::Kernel, "this kernel cannot run netobs: see above")
        }),
    )
}

fn ok(name: &str, found: impl Into<String>) -> Check {
    Check {
        name: name.to_owned(),
        verdict: Verdict::Ok,
        found: found.into(),
        consequence: None,
    }
}

fn bad(name: &str, found: String, consequence: String) -> Check {
    Check {
        name: name.to_owned(),
        verdict: Verdict::Bad,
        found,
        consequence: Some(consequence),
    }
}

fn limited(name: &str, found: String, consequence: String) -> Check {
    Check {
        verdict: Verdict::Limited,
        ..bad(name, found, consequence)
    }
}

fn kernel() -> Check {
    ok("kernel", super::host().kernel)
}

fn capabilities() -> Check {
    let missing: Vec<_> = privilege::missing().collect();
    if missing.is_empty() {
        return ok("capabilities", "all that netobs needs");
    }
    let names: Vec<String> = missing
        .iter()
        .map(|need| need.capability.to_string())
        .collect();
    let lost: Vec<&str> = missing.iter().map(|need| need.purpose).collect();
    bad(
        "capabilities",
        format!("missing {}", names.join(", ")),
        format!("netobs cannot {}", lost.join(", nor ")),
    )
}

fn btf() -> Check {
    if Path::new(BTF).exists() {
        return ok("btf", BTF);
    }
    limited(
        "btf",
        format!("{BTF} is not there (kernels since 5.4 have it with CONFIG_DEBUG_INFO_BTF)"),
        "counting works; route lookups are not observed, and readers of the maps do not see field \
         names"
            .to_owned(),
    )
}

/// Tries the programs that follow routing decisions, for a moment.
fn lookups() -> Check {
    let settings = Settings {
        detail: true,
        calls: true,
        host: 0,
        namespaces: 1,
        destinations: 1,
        failures: 1,
    };
    match LookupPrograms::start(settings, None) {
        Ok(programs) => {
            let doubts: Vec<&str> = programs
                .doubts()
                .iter()
                .map(|doubt| doubt.message.as_str())
                .collect();
            let backend = format!("observed by {}", programs.backend().as_str());
            if doubts.is_empty() {
                return ok("lookups", backend);
            }
            limited("lookups", backend, doubts.join("; "))
        }
        Err(error) => limited(
            "lookups",
            format!("{error:#}"),
            "route lookups are not observed; packets are".to_owned(),
        ),
    }
}

fn expedite() -> Check {
    match rcu::obstacle() {
        Ok(()) => ok("rcu", "attaching sets rcu_expedited for that moment"),
        Err(why) => limited(
            "rcu",
            why,
            "attaching takes about 9 ms for each direction of each interface".to_owned(),
        ),
    }
}

/// Whether `interfaces` can be attached to and namespaces still be looked into.
fn files(interfaces: usize) -> Check {
    const NAME: &str = "open files";
    let Some(limit) = limits::files() else {
        return ok(NAME, "no limit");
    };
    let need = u64::try_from(interfaces)
        .unwrap_or(u64::MAX)
        .saturating_mul(2);
    let room = limits::interfaces(limit);
    let found = format!("{limit} (RLIMIT_NOFILE): room for {room} interfaces");
    if interfaces as u64 <= room {
        return ok(NAME, found);
    }
    let ample = limits::ample(limit.max(need));
    limited(
        NAME,
        found,
        format!(
            "of {interfaces} interfaces some are not observed; start netobs with more by \
             `ulimit -n {ample}` or by LimitNOFILE={ample} in its systemd unit"
        ),
    )
}

fn memory() -> Check {
    match limits::memory(&super::host().kernel) {
        None => ok("memory", "no limit on what programs and maps take"),
        Some(memory) => limited("memory", memory, "the programs may not load".to_owned()),
    }
}

/// Attaches to the loopback interface of a new namespace, both ways.
fn attach_checks(mut programs: Programs, mode: TcMode, checks: &mut Vec<Check>) -> Hook {
    let tried = std::thread::scope(|scope| {
        scope
            .spawn(|| {
                // The thread ends with this closure, and its namespace with it.
                unshare(CloneFlags::CLONE_NEWNET)?;
                let lo = nix::net::if_::if_nametoindex("lo")?;
                // The qdisc goes with the namespace.
                let mut attempt = |mode| {
                    attach::attach(&mut programs, "lo", lo, mode, &mut false).map(|a| a.hook)
                };
                anyhow::Ok((attempt(TcMode::Tcx), attempt(TcMode::Clsact)))
            })
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    let (tcx, clsact) = match tried {
        Ok(tried) => tried,
        Err(error) => {
            checks.push(bad(
                "attach",
                format!("cannot make a namespace to try in: {error:#}"),
                "whether netobs can attach is not known".to_owned(),
            ));
            return Hook::None;
        }
    };
    let has_clsact = clsact.is_ok();
    let has_tcx = tcx.is_ok();
    checks.push(match tcx {
        Ok(_) => ok("tcx", "programs can be chained with others' (Linux 6.6)"),
        Err(error) if has_clsact => limited(
            "tcx",
            format!("{error:#}"),
            "netobs uses clsact filters; after a crash `netobs clean` removes them".to_owned(),
        ),
        Err(error) => bad("tcx", format!("{error:#}"), "no way to attach".to_owned()),
    });
    checks.push(match clsact {
        Ok(_) => ok("clsact", "works too"),
        Err(error) if has_tcx => limited(
            "clsact",
            format!("{error:#}"),
            "not needed where TCX works".to_owned(),
        ),
        Err(error) => bad(
            "clsact",
            format!("{error:#}"),
            "no way to attach: the kernel needs CONFIG_NET_SCH_INGRESS and CONFIG_NET_CLS_BPF"
                .to_owned(),
        ),
    });
    match mode {
        TcMode::Auto | TcMode::Tcx if has_tcx => Hook::Tcx,
        TcMode::Auto | TcMode::Clsact if has_clsact => Hook::Clsact,
        _ => Hook::None,
    }
}

async fn engine_check(config: &config::Doctor, machine: &mut Machine) -> Check {
    let mut engine = engine::follow(config.common.engine.clone());
    match tokio::time::timeout(ENGINE_PATIENCE, engine.recv()).await {
        Ok(Some(update)) => {
            machine.take(&update);
            match update {
                Update::Containers(Running {
                    trouble: Some(reason),
                    ..
                }) => limited(
                    "engine",
                    reason,
                    "some namespaces are shown without names of containers".to_owned(),
                ),
                Update::Containers(running) => ok(
                    "engine",
                    format!("answers, {} containers run", running.containers.len()),
                ),
                Update::Absent => ok(
                    "engine",
                    "no Docker or Podman socket: namespaces are shown without names of containers",
                ),
                Update::Trouble(reason) => limited(
                    "engine",
                    reason,
                    "namespaces are shown without names of containers".to_owned(),
                ),
            }
        }
        Ok(None) | Err(_) => limited(
            "engine",
            format!("no answer within {} s", ENGINE_PATIENCE.as_secs()),
            "namespaces are shown without names of containers".to_owned(),
        ),
    }
}

/// Interfaces that netobs would observe: how many, and who is attached to them.
async fn chains(machine: &mut Machine, hook: Hook) -> anyhow::Result<(usize, Vec<Chain>)> {
    machine.look(Depth::Periodic).await?;
    let rows = build::rows(machine.facts(), build::Options::default());
    let shown = rows.iter().filter(|row| row.shown);
    let interfaces: Vec<(&build::Row, &build::Interface)> = shown
        .flat_map(|row| row.interfaces.iter().map(move |interface| (row, interface)))
        .collect();
    let mut chains = Vec::new();
    for (row, interface) in &interfaces {
        let at = &interface.place;
        let (place, scope) = match at {
            build::Place::HostEnd { .. } => (Place::HostEnd, machine.host_key()),
            build::Place::Inside { .. } => (Place::Inside, row.key),
        };
        let chain = match neighbours(machine, scope, at).await {
            Ok(neighbours) => Chain::new(&row.name, at.name(), place, hook, neighbours),
            Err(error) => Chain::unknown(&row.name, at.name(), place, &format!("{error:#}")),
        };
        if !chain.is_empty() {
            chains.push(chain);
        }
    }
    Ok((interfaces.len(), chains))
}

async fn neighbours(
    machine: &Machine,
    scope: NsKey,
    at: &build::Place,
) -> anyhow::Result<Neighbours> {
    let inside = Inside::of(machine, scope)?;
    chain::look(Spot::new(machine, inside.as_ref(), at.name(), at.ifindex())).await
}
