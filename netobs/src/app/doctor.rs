//! `netobs doctor`: tries everything in a namespace of its own that vanishes
//! again, so that nothing of the host's is touched.

use std::{path::Path, time::Duration};

use nix::sched::{CloneFlags, unshare};

use super::print;
use crate::{
    bpf::{
        attach, chain, filters,
        lookups::{LookupPrograms, Settings},
        object::{Capacity, Programs},
    },
    config::{self, TcMode},
    error::{Cause, Failure},
    inventory::build,
    model::sample::Hook,
    render::doctor::{self, Chain, Check, Report, Verdict},
    world::{
        engine::{self, Running, Update},
        gather::{Depth, Machine},
        netlink::Netlink,
        netns, privilege, rcu,
    },
};

const ENGINE_PATIENCE: Duration = Duration::from_secs(5);
const BTF: &str = "/sys/kernel/btf/vmlinux";

pub(super) async fn run(config: config::Doctor) -> Result<(), Failure> {
    let mut checks = vec![kernel(), capabilities(), btf()];
    let mut hook = "none";
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
    let chains = chains(&mut machine).await?;

    let report = Report {
        schema: "netobs.doctor/1",
        hook,
        checks,
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
    if hook != "none" {
        return Ok(());
    }
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
        host: 0,
        namespaces: 1,
        destinations: 1,
        failures: 1,
    };
    match LookupPrograms::start(settings) {
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
        Ok(()) => ok(
            "rcu",
            "attaching to many interfaces at once sets rcu_expedited for that moment",
        ),
        Err(why) => limited(
            "rcu",
            why,
            "attaching takes about 9 ms for each direction of each interface".to_owned(),
        ),
    }
}

/// Attaches to the loopback interface of a new namespace, both ways.
fn attach_checks(mut programs: Programs, mode: TcMode, checks: &mut Vec<Check>) -> &'static str {
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
            return "none";
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
        TcMode::Auto | TcMode::Tcx if has_tcx => Hook::Tcx.as_str(),
        TcMode::Auto | TcMode::Clsact if has_clsact => Hook::Clsact.as_str(),
        _ => Hook::None.as_str(),
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

/// Who is attached to the interfaces that netobs would observe.
async fn chains(machine: &mut Machine) -> anyhow::Result<Vec<Chain>> {
    let facts = machine.look(Depth::Periodic).await?;
    let rows = build::rows(&facts, build::Options::default());
    let mut chains = Vec::new();
    for row in rows.iter().filter(|row| row.shown) {
        for interface in &row.interfaces {
            let name = interface.place.name();
            let index = interface.place.ifindex();
            let mut chain = Chain {
                namespace: row.name.clone(),
                interface: name.to_owned(),
                tcx_ingress: Vec::new(),
                tcx_egress: Vec::new(),
                clsact_ingress: Vec::new(),
                clsact_egress: Vec::new(),
            };
            let in_host = matches!(interface.place, build::Place::HostEnd { .. })
                || row.key == machine.host_key();
            let filled = if in_host {
                (chain.tcx_ingress, chain.tcx_egress) = tcx(name);
                clsact(machine.netlink(), index, &mut chain).await;
                true
            } else {
                inside(machine, row, name, index, &mut chain)
                    .await
                    .is_some()
            };
            if filled && !chain.is_empty() {
                chains.push(chain);
            }
        }
    }
    Ok(chains)
}

/// A kernel without TCX has nobody there.
fn tcx(name: &str) -> (Vec<String>, Vec<String>) {
    (
        chain::tcx(name, true).unwrap_or_default(),
        chain::tcx(name, false).unwrap_or_default(),
    )
}

async fn clsact(netlink: &Netlink, ifindex: u32, chain: &mut Chain) {
    for (ingress, names) in [
        (true, &mut chain.clsact_ingress),
        (false, &mut chain.clsact_egress),
    ] {
        // No qdisc, no filters.
        if let Ok(filters) = filters::on(netlink, ifindex, ingress).await {
            *names = filters.into_iter().map(|filter| filter.name).collect();
        }
    }
}

async fn inside(
    machine: &Machine,
    row: &build::Row,
    name: &str,
    ifindex: u32,
    chain: &mut Chain,
) -> Option<()> {
    let file = netns::open(&machine.path_of(row.key)?).ok()?;
    (chain.tcx_ingress, chain.tcx_egress) = netns::within(&file, || tcx(name)).ok()?;
    let (netlink, _) = Netlink::open_in(&file).ok()?;
    clsact(&netlink, ifindex, chain).await;
    Some(())
}
