//! `contrib/docker` by the real Docker, and what `contrib/kubernetes` says held against it.

mod common;
mod contrib;
mod scraped;

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, ensure};
use common::{SOON, ping};
use contrib::{UNIT, bare, setting, words};
use netobs_tests::{Container, Lab, netobs_binary, poll_until};
use scraped::{ADDRESS, Scrape};
use serde_json::Value;

const COMPOSE: &str = "docker/compose.yaml";
const BASE: &str = "netobs-base:latest";
const RECEIVED: &str = "netobs_network_receive_packets_total";

/// Runs a program of the machine to its good end.
fn run(program: &str, args: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(program).args(args).output();
    let output = output.with_context(|| format!("cannot start {program}"))?;
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {args:?}: {words}");
    Ok(String::from_utf8(output.stdout)?)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
}

/// An image with the C library of this machine and nothing else.
fn make_base(lab: &Lab, netobs: &Path) -> anyhow::Result<()> {
    let root = lab.tmp().join("base");
    // `libc.so.6 => /lib/libc.so.6 (0x...)`, and `/lib64/ld-linux-x86-64.so.2 (0x...)`.
    let listed = run("ldd", &[text(netobs)])?;
    let files = listed.split_whitespace().filter(|w| w.starts_with('/'));
    for file in files {
        let to = root.join(file.trim_start_matches('/'));
        fs::create_dir_all(to.parent().context("a folder")?)?;
        fs::copy(file, to)?;
    }
    // A root that is read-only makes no places to mount at.
    for folder in ["run", "sys", "proc", "dev", "etc", "tmp"] {
        fs::create_dir_all(root.join(folder))?;
    }
    let tar = lab.tmp().join("base.tar");
    run("tar", &["-C", text(&root), "-cf", text(&tar), "."])?;
    lab.docker(["import", text(&tar), BASE]).text()?;
    fs::remove_dir_all(&root)?;
    Ok(fs::remove_file(&tar)?)
}

/// Builds the image as the Dockerfile says.
fn build(lab: &Lab, image: &str) -> anyhow::Result<()> {
    let context = lab.tmp().join("context");
    let netobs = context.join("target/release/netobs");
    fs::create_dir_all(netobs.parent().context("a folder")?)?;
    // Images of a lab live in memory.
    run("strip", &["-o", text(&netobs), text(&netobs_binary()?)])?;
    make_base(lab, &netobs)?;
    lab.docker(["build", "--build-arg", &format!("BASE={BASE}"), "-t", image])
        .args(["-f", text(&contrib::path("docker/Dockerfile"))])
        .arg(&context)
        // The builder that needs no other program.
        .env("DOCKER_BUILDKIT", "0")
        .text()?;
    Ok(fs::remove_dir_all(&context)?)
}

/// What `docker run` takes for what stands in the file; nothing in it is passed over.
fn options(service: &Value) -> anyhow::Result<Vec<String>> {
    let mut options = Vec::new();
    for (key, value) in service.as_object().context("a service")? {
        let option = match key.as_str() {
            "network_mode" => "network",
            "pid" => "pid",
            "cgroup" => "cgroupns",
            "cap_drop" => "cap-drop",
            "cap_add" => "cap-add",
            "security_opt" => "security-opt",
            "volumes" => "volume",
            "read_only" => "read-only",
            "build" | "image" | "command" | "restart" => continue,
            other => anyhow::bail!("compose.yaml has {other:?}, which the test does not know"),
        };
        match value {
            Value::String(value) => options.push(format!("--{option}={value}")),
            Value::Bool(true) => options.push(format!("--{option}")),
            list => options.extend(words(list).iter().map(|w| format!("--{option}={w}"))),
        }
    }
    Ok(options)
}

/// Starts `netobs` as the service says.
fn start(lab: &Lab, service: &Value) -> anyhow::Result<()> {
    let options = options(service)?;
    // The lab's engine has a socket of its own.
    let tmp = text(lab.tmp());
    let run = |options: &[String]| {
        let mut docker = lab.docker(["run", "--detach", "--name=netobs"]);
        docker.args(options).arg(format!("--volume={tmp}:{tmp}:ro"));
        docker.arg("netobs").args(words(&service["command"]));
        docker.args(["--docker-host", &lab.docker_host()]).output()
    };
    let output = run(&options)?;
    if !output.stderr.contains("unknown capability") {
        output.success()?;
        return Ok(());
    }
    // As the comment there says of old ones.
    let old = |option: &String| ["BPF", "PERFMON"].iter().any(|name| option.ends_with(name));
    let options: Vec<String> = options.into_iter().filter(|one| !old(one)).collect();
    run(&options)?.success()?;
    Ok(())
}

fn scrape(lab: &Lab) -> anyhow::Result<Scrape> {
    let url = format!("http://{ADDRESS}/metrics");
    let mut curl = lab.command("curl");
    Scrape::parse(&curl.args(["-sf", "-m20", &url]).text()?)
}

/// Waits until the page has what the kernel counted at `guest`, all that passed since it
/// began to be looked at.
fn reconciles(lab: &Lab, guest: &Container<'_>) -> anyhow::Result<()> {
    poll_until(SOON, "what the kernel counted", || {
        let kernel = || lab.link_stats(&guest.netns(), "eth0");
        let (before, page, after) = (kernel()?, scrape(lab)?, kernel()?);
        ensure!(before == after, "not at rest");
        let differs = page.all(
            "netobs_network_receive_unaccounted_packets",
            &[("netns", guest.name())],
        );
        ensure!(differs.iter().all(|line| line.value == 0.0), "{differs:?}");
        Ok(Some(()))
    })
}

#[test]
fn a_container_as_compose_has_it_observes_the_others() -> anyhow::Result<()> {
    let lab = Lab::with_docker()?;
    // As systemd leaves it on a host.
    lab.shell("mount --make-rshared / && mkdir -p /run/netns")?;
    let guest = lab.run_container("guest", &[], &[])?;
    let target = lab.run_container("target", &[], &[])?;
    build(&lab, "netobs")?;
    let compose = contrib::yaml(COMPOSE)?;
    let service = &compose[0]["services"]["netobs"];
    start(&lab, service)?;
    let logs = || lab.docker(["logs", "netobs"]).output();

    let page = poll_until(SOON, "the container", || {
        let page = scrape(&lab)?;
        let labels = [("netns", "guest"), ("interface", "eth0")];
        Ok((!page.all("netobs_netns_info", &labels).is_empty()).then_some(page))
    });
    let page = page.with_context(|| format!("{:?}", logs()))?;
    let who = page.all("netobs_netns_info", &[("netns", "guest")]);
    assert_eq!(who[0].label("container_id"), guest.id());
    assert_eq!(who[0].label("kind"), "container");
    assert_ne!(who[0].label("peer"), "", "the host's end is found");
    let warnings = page.all("netobs_warnings", &[]);
    assert!(warnings.is_empty(), "{warnings:?} {:?}", logs());
    assert_eq!(page.sum("netobs_interfaces", &[("hook", "none")]), 0);

    let pinged = [("netns", "guest"), ("family", "ipv4"), ("protocol", "icmp")];
    let before = page.sum(RECEIVED, &pinged);
    ping(&lab, &guest.netns(), &target.address()?, &["-c7"])?;
    let page = scrape(&lab)?;
    let after = page.sum(RECEIVED, &pinged);
    assert_eq!(after - before, 7);
    reconciles(&lab, &guest)?;
    let lookups = [("netns", "guest"), ("origin", "output"), ("result", "ok")];
    assert!(page.sum("netobs_route_lookups_total", &lookups) >= 7);

    // A mount that is made while the container runs.
    lab.netns_add("later")?;
    lab.shell("ip link add vl up type veth peer name eth0 netns later")?;
    poll_until(SOON, "a namespace that came later, by its name", || {
        let labels = [("netns", "later"), ("interface", "eth0")];
        Ok((!scrape(&lab)?.all("netobs_netns_info", &labels).is_empty()).then_some(()))
    })?;

    // Of /sys it may write to this alone.
    let pid = lab
        .docker(["inspect", "--format={{.State.Pid}}", "netobs"])
        .text()?;
    let mounts = lab.shell(&format!("cat /proc/{}/mountinfo", pid.trim()))?;
    let is_writable = |place: &str| {
        let mut fields = mounts
            .lines()
            .map(|line| line.split(' ').collect::<Vec<_>>());
        let mount = fields.find(|fields| fields[4] == place);
        mount.is_some_and(|fields| fields[5].split(',').any(|option| option == "rw"))
    };
    assert!(is_writable("/sys/kernel/rcu_expedited"), "{mounts}");
    assert!(is_writable("/sys/fs/bpf"), "{mounts}");
    for place in ["/", "/sys", "/run", "/sys/fs/cgroup"] {
        assert!(!is_writable(place), "{place}: {mounts}");
    }
    lab.docker(["stop", "netobs"]).text()?;
    let code = lab
        .docker(["inspect", "--format={{.State.ExitCode}}", "netobs"])
        .text()?;
    assert_eq!(code.trim(), "0", "{:?}", logs());
    Ok(())
}

/// Unit, Compose and Kubernetes give the same.
#[test]
fn everybody_gives_the_same_capabilities_and_folders() -> anyhow::Result<()> {
    let expected = bare(setting(&contrib::text(UNIT)?, "CapabilityBoundingSet"));
    let compose = contrib::yaml(COMPOSE)?;
    let service = &compose[0]["services"]["netobs"];
    assert_eq!(bare(words(&service["cap_add"])), expected);

    let all = contrib::yaml("kubernetes/daemonset.yaml")?;
    let kinds: Vec<_> = all.iter().filter_map(|one| one["kind"].as_str()).collect();
    assert_eq!(kinds, ["Namespace", "DaemonSet", "Service"]);
    let pod = &all[1]["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    let security = &container["securityContext"];
    assert_eq!(bare(words(&security["capabilities"]["add"])), expected);
    assert_eq!(pod["hostNetwork"], true);
    assert_eq!(pod["hostPID"], true);

    // Where they are inside, and from where.
    let volumes = words(&service["volumes"]);
    let parts = |volume: &&str| -> Vec<String> { volume.split(':').map(str::to_owned).collect() };
    for parts in volumes.iter().map(parts) {
        let options = parts.get(2).map_or("", String::as_str);
        let of = |list: &Value, key: &str, value: &str| -> anyhow::Result<Value> {
            let mut all = list.as_array().into_iter().flatten();
            let found = all.find(|one| one[key] == value);
            Ok(found.with_context(|| format!("{value} in {list}"))?.clone())
        };
        let mount = of(&container["volumeMounts"], "mountPath", &parts[1])?;
        assert_eq!(mount["readOnly"] == true, options.contains("ro"), "{mount}");
        let propagates = mount["mountPropagation"] == "HostToContainer";
        assert_eq!(propagates, options.contains("rslave"), "{mount}");
        let name = mount["name"].as_str().unwrap_or_default();
        let volume = of(&pod["volumes"], "name", name)?;
        assert_eq!(volume["hostPath"]["path"], parts[0].as_str());
    }
    let mounts = container["volumeMounts"].as_array().map(Vec::len);
    assert_eq!(mounts, Some(volumes.len()));
    Ok(())
}
