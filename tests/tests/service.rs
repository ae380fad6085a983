//! The unit in `contrib/systemd`: run by a real systemd, and what it allows held against what
//! netobs keeps.

mod common;
mod contrib;
mod scraped;

use std::fs;

use anyhow::Context as _;
use common::{SOON, ping, quiet_pair};
use contrib::{UNIT, bare, setting};
use netobs_tests::{Lab, LabCommand, Netns, Systemd, netobs_binary, poll_until, skip};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use scraped::{ADDRESS, Scrape};

/// A watchdog that a test can wait for.
const IMPATIENT: &str = "[Service]\nWatchdogSec=6s\n";

const RECEIVED: &str = "netobs_network_receive_packets_total";

fn no_systemd() -> bool {
    let none = !Systemd::is_installed();
    if none {
        skip("this machine has no systemd (package systemd)");
    }
    none
}

/// A number of `/proc/PID/status`.
fn status(pid: u32, field: &str) -> anyhow::Result<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    Ok(line.unwrap_or_default().trim().to_owned())
}

/// The names of the capabilities that a process has in effect.
fn effective(lab: &Lab, pid: u32) -> anyhow::Result<Vec<String>> {
    let mask = status(pid, "CapEff:")?;
    let mut capsh = lab.command("capsh");
    let text = capsh.arg(format!("--decode={mask}")).text()?;
    let names = text.trim().split_once('=').map_or("", |(_, names)| names);
    Ok(bare(names.split(',')))
}

fn scrape(lab: &Lab) -> anyhow::Result<Scrape> {
    let url = format!("http://{ADDRESS}/metrics");
    let mut curl = lab.command("curl");
    Scrape::parse(&curl.args(["-sf", "-m20", &url]).text()?)
}

/// Waits for a page that shows `a`'s packets as the kernel has them.
fn reconciled(lab: &Lab, base: u64) -> anyhow::Result<Scrape> {
    let a = Netns::Named("a".to_owned());
    poll_until(SOON, "a page that has what the kernel has", || {
        let page = scrape(lab)?;
        let kernel = lab.link_stats(&a, "eth0")?.rx.packets;
        let ours = page.sum(RECEIVED, &[("netns", "a")]);
        anyhow::ensure!(ours + base == kernel, "{ours} + {base} of {kernel}");
        Ok(Some(page))
    })
}

#[test]
fn systemd_finds_nothing_wrong_with_the_unit() -> anyhow::Result<()> {
    if no_systemd() {
        return Ok(());
    }
    let lab = Lab::new()?;
    // What it starts has to be there.
    let program = netobs_binary()?.display().to_string();
    let unit = contrib::text(UNIT)?.replace("/usr/local/bin/netobs", &program);
    let folder = Systemd::write_units(&lab, &[("netobs.service", &unit)])?;
    let analyze = |args: &[&str]| -> anyhow::Result<_> {
        let mut command = lab.command("systemd-analyze");
        command.args(args).arg(folder.join("netobs.service"));
        command
            .env("SYSTEMD_UNIT_PATH", &folder)
            .output()?
            .success()
    };
    let verified = analyze(&["verify", "--man=no"])?;
    assert_eq!((&*verified.stdout, &*verified.stderr), ("", ""));
    // "OK": most of what is left is what netobs is for.
    analyze(&["security", "--offline=true", "--threshold=40"])?;
    Ok(())
}

#[test]
fn systemd_runs_it_as_the_unit_says() -> anyhow::Result<()> {
    if no_systemd() {
        return Ok(());
    }
    let lab = Lab::new()?;
    quiet_pair(&lab)?;
    let unit = contrib::text(UNIT)?;
    let log = lab.tmp().join("netobs.log");
    let logged = format!("[Service]\nStandardError=append:{}\n", log.display());
    let units = [
        ("netobs.service", &*unit),
        ("netobs.service.d/impatient.conf", IMPATIENT),
        ("netobs.service.d/logged.conf", &logged),
    ];
    let systemd = Systemd::start(&lab, &units)?;
    // Comes back once netobs has said that it is ready.
    systemd
        .systemctl(&["start", "netobs"])
        .with_context(|| fs::read_to_string(&log).unwrap_or_default())?;
    let main = systemd.process("netobs")?.expect("it runs");
    assert_eq!(
        effective(&lab, main)?,
        bare(setting(&unit, "CapabilityBoundingSet"))
    );
    assert_eq!(status(main, "CapBnd:")?, status(main, "CapEff:")?);
    assert_eq!(status(main, "NoNewPrivs:")?, "1");

    let a = Netns::Named("a".to_owned());
    let before = lab.link_stats(&a, "eth0")?.rx.packets;
    let page = scrape(&lab)?;
    let base = before - page.sum(RECEIVED, &[("netns", "a")]);
    assert_eq!(page.sum("netobs_interfaces", &[("hook", "none")]), 0);
    assert_eq!(
        page.all("netobs_warnings", &[]),
        Vec::<&scraped::Line>::new()
    );
    assert!(page.sum("netobs_route_lookups_total", &[]) > 0);
    ping(&lab, &a, "10.9.0.2", &["-c10"])?;
    reconciled(&lab, base)?;

    // Mounted after the unit's own mounts were made.
    lab.netns_add("later")?;
    lab.shell("ip link add vl up type veth peer name eth0 netns later")?;
    poll_until(SOON, "a namespace that came later, by its name", || {
        let labels = [("netns", "later"), ("interface", "eth0")];
        Ok((!scrape(&lab)?.all("netobs_netns_info", &labels).is_empty()).then_some(()))
    })?;

    // Who may write to what, by opening it for that.
    let may_write = |path: &str| -> anyhow::Result<bool> {
        let mut nsenter = std::process::Command::new("nsenter");
        let nsenter = nsenter.arg(format!("--mount=/proc/{main}/ns/mnt"));
        let script = format!(": 2>/dev/null >>{path}");
        Ok(nsenter.args(["sh", "-c", &script]).status()?.success())
    };
    assert!(may_write("/sys/kernel/rcu_expedited")?);
    for path in ["/sys/kernel/profiling", "/proc/sys/kernel/panic", "/usr/x"] {
        assert!(!may_write(path)?, "{path}");
    }

    // What passes while it is stopped is counted.
    systemd.systemctl(&["stop", "netobs"])?;
    assert_eq!(systemd.property("netobs", "Result")?, "success");
    ping(&lab, &a, "10.9.0.2", &["-c10"])?;
    systemd.systemctl(&["start", "netobs"])?;
    reconciled(&lab, base)?;

    // One that hangs is started again.
    let hung = systemd.process("netobs")?.expect("it runs");
    kill(Pid::from_raw(hung.cast_signed()), Signal::SIGSTOP)?;
    ping(&lab, &a, "10.9.0.2", &["-c10"])?;
    poll_until(SOON, "another start", || {
        let again = systemd.process("netobs")?;
        let active = systemd.property("netobs", "ActiveState")? == "active";
        Ok((active && again.is_some_and(|pid| pid != hung)).then_some(()))
    })?;
    assert_eq!(systemd.property("netobs", "NRestarts")?, "1");
    reconciled(&lab, base)?;

    systemd.systemctl(&["stop", "netobs"])?;
    lab.netobs(["clean"])?.text()?;
    Ok(())
}

/// The same capabilities without systemd: nothing is missing, and nothing is too much.
#[test]
fn netobs_keeps_what_the_unit_gives_and_lacks_nothing() -> anyhow::Result<()> {
    let lab = Lab::with_docker()?;
    let guest = lab.run_container("guest", &[], &[])?;
    let target = lab.run_container("target", &[], &[])?;
    let given = bare(setting(&contrib::text(UNIT)?, "CapabilityBoundingSet"));
    let bounds: String = given.iter().map(|name| format!(",+{name}")).collect();
    let url = lab.docker_host();
    let run = |mut command: LabCommand| -> anyhow::Result<()> {
        let mut proc = command
            .args(["serve", "--strict", "--docker-host", &url])
            .start()?;
        let page = poll_until(SOON, "the container", || {
            anyhow::ensure!(proc.is_running(), "it ended");
            let page = scrape(&lab)?;
            let labels = [("netns", "guest"), ("interface", "eth0")];
            Ok((!page.all(RECEIVED, &labels).is_empty()).then_some(page))
        })?;
        assert_eq!(
            page.all("netobs_warnings", &[]),
            Vec::<&scraped::Line>::new()
        );
        let pinged = [("netns", "guest"), ("family", "ipv4"), ("protocol", "icmp")];
        let before = page.sum(RECEIVED, &pinged);
        ping(&lab, &guest.netns(), &target.address()?, &["-c7"])?;
        let page = scrape(&lab)?;
        let after = page.sum(RECEIVED, &pinged);
        assert_eq!(after - before, 7);
        assert_eq!(effective(&lab, proc.pid())?, given);
        proc.end(Signal::SIGTERM, SOON)?.success()?;
        Ok(())
    };
    // Of all that root has.
    run(lab.command(netobs_binary()?))?;
    let mut bounded = lab.command("setpriv");
    bounded.arg(format!("--bounding-set=-all{bounds}"));
    bounded.arg("--no-new-privs").arg(netobs_binary()?);
    run(bounded)
}
