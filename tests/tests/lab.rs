//! The lab itself: it works, it keeps to itself, and it leaves nothing.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use netobs_tests::{Lab, Netns, leaks::Snapshot, poll_until};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const SOON: Duration = Duration::from_secs(30);
/// Set for the process that `a_killed_owner_takes_its_lab_along` kills.
const HOLD: &str = "NETOBS_LAB_TEST_HOLD";

/// Other tests' labs come and go meanwhile: only this lab's traces count.
fn traces(lab: &str) -> anyhow::Result<Vec<String>> {
    let all = Snapshot::take()?.to_string();
    let of_lab = |line: &&str| line.contains(lab);
    Ok(all.lines().filter(of_lab).map(str::to_owned).collect())
}

/// Processes that have the lab's folder on their command line.
fn processes(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let wanted = folder.to_string_lossy().into_owned();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let path = entry?.path();
        let words = std::fs::read(path.join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&words).contains(&wanted) {
            found.push(path);
        }
    }
    Ok(found)
}

#[test]
fn containers_reach_each_other_and_the_kernel_counts_it() -> anyhow::Result<()> {
    let lab = Lab::with_docker()?;
    let (name, folder) = (lab.name().to_owned(), lab.tmp().to_owned());
    let a = lab.run_container("a-box", &["--cap-add=NET_ADMIN"], &[])?;
    let b = lab.run_container("b-box", &[], &[])?;

    let before = lab.link_stats(&b.netns(), "eth0")?;
    a.exec(["ping", "-c3", "-i0.1", "-W5", &b.address()?])?;
    let after = lab.link_stats(&b.netns(), "eth0")?;
    // ARP may come on top.
    assert!(after.rx.packets - before.rx.packets >= 3, "{after:?}");
    assert!(after.tx.bytes - before.tx.bytes >= 3 * 98, "{after:?}");
    // What is bridged does not count as received by the bridge itself.
    let veth = lab.link_stats(&b.netns(), "eth0")?.link_index;
    assert!(veth.is_some_and(|index| index > 1), "{veth:?}");
    assert!(lab.link_stats(&Netns::Host, "docker0")?.ifindex > 1);
    assert_eq!(lab.qdisc_stats(&b.netns(), "eth0")?[0].kind, "noqueue");

    a.exec(["route", "add", "-host", "8.8.8.8", "dev", "eth0"])?;
    assert!(a.exec(["route", "-n"])?.contains("8.8.8.8"));
    assert!(!b.exec(["route", "-n"])?.contains("8.8.8.8"));

    assert!(!traces(&name)?.is_empty(), "the leak check is blind");
    drop(lab);
    assert_eq!(traces(&name)?, Vec::<String>::new());
    assert!(processes(&folder)?.is_empty());
    Ok(())
}

#[test]
fn there_is_no_way_out() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    lab.netns_add("inner")?;
    assert!(!Path::new("/run/netns/inner").exists());
    assert_eq!(lab.shell("ls /sys/class/net")?, "lo\n");
    assert_eq!(lab.shell("ip route show table main")?, "");
    assert_eq!(lab.shell("ip -6 route show default")?, "");
    let inner = Netns::Named("inner".into());
    assert_eq!(lab.link_stats(&inner, "lo")?.ifindex, 1);
    lab.netns_del("inner")?;
    assert!(lab.link_stats(&inner, "lo").is_err());
    Ok(())
}

#[test]
fn programs_in_the_background_take_signals_and_end_with_the_lab() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    let script = "trap 'echo bye; exit 7' INT; echo pid $$; while :; do sleep 0.1; done";
    let mut proc = lab.command("sh").args(["-c", script]).start()?;
    let line = proc.wait_stdout(SOON, |line| line.starts_with("pid"))?;
    assert_ne!(line, format!("pid {}", proc.pid()), "no pid namespace");
    let output = proc.end(Signal::SIGINT, SOON)?;
    assert_eq!(output.status.code(), Some(7));
    assert!(output.stdout.ends_with("bye\n"), "{output:?}");

    let mut orphan = lab.command("sleep").arg("1000").start()?;
    drop(lab);
    assert!(!orphan.wait(SOON)?.status.success());
    Ok(())
}

#[test]
fn failures_say_command_status_and_words() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    let err = lab.shell("echo no such luck >&2; exit 3").unwrap_err();
    let text = format!("{err:#}");
    assert!(text.contains("exit status: 3"), "{text}");
    assert!(text.contains("no such luck"), "{text}");
    let err = lab.command("no-such-program").text().unwrap_err();
    assert!(format!("{err:#}").contains("no-such-program"), "{err:#}");
    Ok(())
}

#[test]
fn docker_stops_dies_and_comes_back() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    assert!(lab.docker(["ps"]).text().is_err());
    lab.start_docker()?;
    lab.run_container("one", &["--restart=always"], &[])?;
    lab.stop_docker()?;
    assert!(lab.docker(["ps"]).text().is_err());
    lab.start_docker()?;
    lab.kill_docker()?;
    lab.start_docker()?;
    poll_until(SOON, "the container's restart", || {
        let names = lab.docker(["ps", "--format", "{{.Names}}"]).text()?;
        Ok((names.trim() == "one").then_some(()))
    })
}

#[test]
fn a_killed_owner_takes_its_lab_along() -> anyhow::Result<()> {
    if std::env::var_os(HOLD).is_some() {
        let lab = Lab::with_docker()?;
        lab.run_container("orphan", &[], &[])?;
        println!("\nholds {}", lab.tmp().display());
        loop {
            std::thread::park();
        }
    }
    let own = "a_killed_owner_takes_its_lab_along";
    let mut owner = Command::new(std::env::current_exe()?)
        .args(["--exact", own, "--nocapture"])
        .env(HOLD, "1")
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = std::io::BufReader::new(owner.stdout.take().expect("a pipe"));
    let mut line = String::new();
    let folder = loop {
        line.clear();
        let read = std::io::BufRead::read_line(&mut lines, &mut line)?;
        assert_ne!(read, 0, "the owner ended: {:?}", owner.wait());
        if let Some(folder) = line.trim().strip_prefix("holds ") {
            break PathBuf::from(folder);
        }
    };
    assert!(folder.exists());
    kill(Pid::from_raw(owner.id().cast_signed()), Signal::SIGKILL)?;
    owner.wait()?;

    let name = folder.file_name().expect("a name").to_string_lossy();
    let gone = |left: bool| Ok((!left).then_some(()));
    poll_until(SOON, "the end of its processes", || {
        gone(!processes(&folder)?.is_empty())
    })?;
    poll_until(SOON, "the end of its traces", || {
        gone(!traces(&name)?.is_empty())
    })
}
