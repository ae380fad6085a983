//! With how little netobs does its work, and that it only asks.

mod common;

use std::{
    fs,
    io::{self, Read, Write},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use common::{Link, Watch, code, count, inside, namespace, observes, ping, row_names, warnings};
use netobs_tests::{Lab, LabCommand, netobs_binary};
use serde_json::Value;

/// As the README says.
const DOCUMENTED: [&str; 5] = [
    "cap_bpf",
    "cap_net_admin",
    "cap_perfmon",
    "cap_sys_admin",
    "cap_sys_ptrace",
];

/// A netobs that anybody may run, by the capabilities of its file.
struct Installed<'lab> {
    lab: &'lab Lab,
    path: PathBuf,
}

impl<'lab> Installed<'lab> {
    fn new(lab: &'lab Lab) -> anyhow::Result<Self> {
        let path = lab.tmp().join("netobs");
        fs::copy(netobs_binary()?, &path)?;
        lab.shell(&format!(
            "chmod 755 {} {}",
            lab.tmp().display(),
            path.display()
        ))?;
        Ok(Self { lab, path })
    }

    fn gets(&self, capabilities: &[&str]) -> anyhow::Result<()> {
        let capabilities = format!("{}+ep", capabilities.join(","));
        let mut setcap = self.lab.command("setcap");
        setcap.arg(capabilities).arg(&self.path).text()?;
        Ok(())
    }

    /// Run by a user without any rights of his own.
    fn command(&self, args: &[&str]) -> LabCommand {
        let mut command = self.lab.command("setpriv");
        command
            .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"])
            .arg(&self.path)
            .args(args);
        command
    }
}

/// The numbers in a field of `/proc/PID/status`.
fn status(pid: u32, field: &str) -> anyhow::Result<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    Ok(line.unwrap_or_default().trim().to_owned())
}

/// Instead of root: counts, looks routes up, by TCX, and ends well.
#[test]
fn a_file_with_the_documented_capabilities_does_everything_for_anybody() -> anyhow::Result<()> {
    let lab = Lab::with_docker()?;
    let guest = lab.run_container("guest", &[], &[])?;
    let target = lab.run_container("target", &[], &[])?;
    let installed = Installed::new(&lab)?;
    installed.gets(&DOCUMENTED)?;
    // Who may ask Docker is Docker's business.
    lab.shell(&format!("chmod 666 {}", lab.docker_socket().display()))?;
    let url = lab.docker_host();
    let watch = |command: &str| -> anyhow::Result<Watch> {
        let args = [command, "-o", "json", "-i200ms", "--docker-host", &url];
        let proc = installed.command(&args).start()?;
        Ok(Watch { proc })
    };

    let mut counting = watch("watch")?;
    let seen = |sample: &Value| observes(sample, "guest", "eth0");
    let before = counting.until("the container", seen)?;
    assert_eq!(
        status(counting.proc.pid(), "Uid:")?.split('\t').next(),
        Some("65534")
    );
    let row = namespace(&before, "guest");
    assert_eq!(row["kind"], "container", "{row}");
    assert_eq!(row["interfaces"][0]["hook"], "tcx", "{row}");
    ping(&lab, &guest.netns(), &target.address()?, &["-c7"])?;
    let rest = counting.at_rest(&lab, &[Link::new("guest", &guest.netns(), "eth0")])?;
    rest.reconciles();
    for direction in ["rx", "tx"] {
        let icmp = &rest.counters("guest", direction)["ipv4"]["icmp"];
        assert_eq!(count(icmp, "packets"), 7);
    }
    assert_eq!(rest.sample["warnings"], serde_json::json!([]));
    counting.end()?;

    let mut routes = watch("routes")?;
    let shown = |sample: &Value| !common::rows(sample, "guest").is_empty();
    routes.until("the container", shown)?;
    let before = routes.settled()?;
    // It sends nothing: two lookups, as one that is not bound takes.
    inside(&lab, &guest.netns(), || {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
        Ok(socket.connect("8.8.8.8:53")?)
    })?;
    let after = routes.settled()?;
    let lookups = |sample: &Value| {
        let lookups = &namespace(sample, "guest")["route_lookups"]["ipv4"];
        count(lookups, "output")
    };
    assert_eq!(lookups(&after) - lookups(&before), 2, "{after}");
    assert_eq!(after["observer"]["route_backend"], "tracepoint");
    routes.end()?;
    // Nothing of ours is left on the container's interface.
    let left = lab.command("bpftool").args(["net", "show"]).text()?;
    assert!(!left.contains("netobs"), "{left}");
    Ok(())
}

/// One less, and either netobs says which and ends with 3, or it says what is
/// missing and does the rest.
#[test]
fn every_documented_capability_is_missed_by_name() -> anyhow::Result<()> {
    let lab = Lab::with_docker()?;
    let _guest = lab.run_container("guest", &[], &[])?;
    lab.shell(&format!("chmod 666 {}", lab.docker_socket().display()))?;
    let installed = Installed::new(&lab)?;
    let url = lab.docker_host();
    let args = ["watch", "--once", "-o", "json", "--docker-host", &url];
    let run = |without: &[&str], mode: &str| -> anyhow::Result<(i32, Value, String)> {
        let given = DOCUMENTED
            .into_iter()
            .filter(|name| !without.contains(name));
        installed.gets(&given.collect::<Vec<_>>())?;
        let mut command = installed.command(&args);
        let output = command.args(["--tc-mode", mode]).output()?;
        let sample = serde_json::from_str(&output.stdout).unwrap_or_default();
        Ok((code(&output)?, sample, output.stderr))
    };
    // To bpf(2) CAP_SYS_ADMIN is as good as these: only without it they are missed.
    // https://github.com/torvalds/linux/blob/v6.18/kernel/bpf/token.c
    for name in ["cap_bpf", "cap_perfmon", "cap_net_admin"] {
        let (code, sample, stderr) = run(&[name], "auto")?;
        assert_eq!((code, stderr.as_str()), (0, ""), "{name}: {sample}");
        assert!(observes(&sample, "guest", "eth0"), "{name}: {sample}");
        let (code, _, stderr) = run(&[name, "cap_sys_admin"], "auto")?;
        ends_with_3(code, &stderr, name);
    }
    // Netlink is stricter.
    let (code, _, stderr) = run(&["cap_net_admin"], "clsact")?;
    ends_with_3(code, &stderr, "cap_net_admin");
    for name in ["cap_sys_admin", "cap_sys_ptrace"] {
        let (code, sample, stderr) = run(&[name], "auto")?;
        assert_eq!(code, 0, "{name}: {stderr}");
        let told = warnings(&sample, "not_permitted");
        assert_eq!(told.len(), 1, "{name}: {sample}");
        let message = told[0]["message"].to_string();
        assert!(message.contains(&name.to_uppercase()), "{message}");
        assert!(row_names(&sample).contains(&"host".to_owned()), "{sample}");
    }
    Ok(())
}

#[track_caller]
fn ends_with_3(code: i32, stderr: &str, name: &str) {
    assert_eq!(code, 3, "{name}: {stderr}");
    let missing = format!("missing {} (to", name.to_uppercase());
    assert!(stderr.contains(&missing), "{stderr}");
    assert!(stderr.contains("setcap"), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "no verifier's log: {stderr}");
}

/// What passes from netobs to Docker, written down.
struct Witness {
    said: Arc<Mutex<Vec<Vec<u8>>>>,
    socket: PathBuf,
}

impl Witness {
    /// Stands between a socket of its own and the lab's Docker.
    fn start(lab: &Lab) -> anyhow::Result<Self> {
        let socket = lab.tmp().join("witness.sock");
        let listener = UnixListener::bind(&socket)?;
        let said = Arc::new(Mutex::new(Vec::new()));
        let (notes, docker) = (Arc::clone(&said), lab.docker_socket());
        // All of it ends with the process of this test.
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(engine) = UnixStream::connect(&docker) else {
                    continue;
                };
                relay(client, engine, &notes);
            }
        });
        Ok(Self { said, socket })
    }

    /// The first lines of all requests.
    fn requests(&self) -> Vec<String> {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let mut lines = Vec::new();
        for connection in said.iter() {
            let text = String::from_utf8_lossy(connection);
            // A request without a body ends with an empty line; with one, what
            // follows is no request line, and the test says so.
            let heads = text.split("\r\n\r\n").filter(|head| !head.is_empty());
            lines.extend(heads.map(|head| head.lines().next().unwrap_or_default().to_owned()));
        }
        lines
    }
}

fn relay(client: UnixStream, engine: UnixStream, notes: &Arc<Mutex<Vec<Vec<u8>>>>) {
    let Ok(((from_client, from_engine), (to_client, to_engine))) =
        both(&client, &engine).and_then(|from| Ok((from, both(&client, &engine)?)))
    else {
        return;
    };
    let number = {
        let mut notes = notes.lock().unwrap_or_else(PoisonError::into_inner);
        notes.push(Vec::new());
        notes.len() - 1
    };
    let notes = Arc::clone(notes);
    thread::spawn(move || {
        pass(from_client, to_engine, |bytes| {
            let mut notes = notes.lock().unwrap_or_else(PoisonError::into_inner);
            notes[number].extend_from_slice(bytes);
        })
    });
    thread::spawn(move || pass(from_engine, to_client, |_| ()));
}

fn both(a: &UnixStream, b: &UnixStream) -> io::Result<(UnixStream, UnixStream)> {
    Ok((a.try_clone()?, b.try_clone()?))
}

/// Until one of the two has gone.
fn pass(mut from: UnixStream, mut to: UnixStream, mut note: impl FnMut(&[u8])) {
    let mut buffer = [0; 4096];
    while let Ok(len) = from.read(&mut buffer) {
        note(&buffer[..len]);
        if len == 0 || to.write_all(&buffer[..len]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}

/// Whoever can write to Docker's socket is root on the machine. netobs reads.
#[test]
fn docker_is_only_asked() -> anyhow::Result<()> {
    let lab = Lab::with_docker()?;
    let _guest = lab.run_container("guest", &[], &[])?;
    let witness = Witness::start(&lab)?;
    let url = format!("unix://{}", witness.socket.display());
    // The lab's own URL follows the subcommand; the last one counts.
    let once = |args: &[&str]| {
        let mut command = lab.command(netobs_binary()?);
        command.args(args).args(["--docker-host", &url]).text()
    };
    assert!(once(&["list"])?.contains("guest"));
    once(&["doctor"])?;
    for command in ["watch", "routes"] {
        let proc = {
            let mut netobs = lab.command(netobs_binary()?);
            let args = [command, "-o", "json", "-i200ms", "--docker-host", &url];
            netobs.args(args).start()?
        };
        let mut watch = Watch { proc };
        let there =
            |name: &'static str| move |sample: &Value| !common::rows(sample, name).is_empty();
        watch.until("the container", there("guest"))?;
        // Events make it ask again.
        let _later = lab.run_container("later", &[], &[])?;
        watch.until("the later one", there("later"))?;
        lab.docker(["rename", "later", "renamed"]).text()?;
        watch.until("its new name", there("renamed"))?;
        lab.docker(["rm", "-f", "renamed"]).text()?;
        watch.end()?;
    }
    let requests = witness.requests();
    for request in &requests {
        assert!(request.starts_with("GET /"), "{request:?} in {requests:?}");
        assert!(request.ends_with(" HTTP/1.1"), "{request:?}");
    }
    for part in ["/version", "/events?", "/containers/json"] {
        let times = requests.iter().filter(|line| line.contains(part)).count();
        assert!(times >= 4, "{times} of {part}: {requests:?}");
    }
    Ok(())
}
