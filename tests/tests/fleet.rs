//! Several hosts, each with its own netobs, and one Prometheus for all of them.

mod common;
mod contrib;
mod scraped;

use std::{fs, process::Command};

use anyhow::ensure;
use common::{SOON, ping, quiet_pair};
use netobs_tests::{Lab, LinkStats, Netns, Prometheus, figure, poll_until};
use scraped::Serve;

/// A host and where its netobs listens.
struct Host {
    lab: Lab,
    address: String,
}

impl Host {
    fn new(address: &str) -> anyhow::Result<Self> {
        let lab = Lab::new()?;
        quiet_pair(&lab)?;
        let address = address.to_owned();
        Ok(Self { lab, address })
    }

    /// What the kernel counted at its namespaces: packets and bytes, received and sent.
    fn kernel(&self) -> anyhow::Result<[u64; 4]> {
        let mut sum = [0; 4];
        for name in ["a", "b"] {
            let netns = Netns::Named(name.to_owned());
            let LinkStats { rx, tx, .. } = self.lab.link_stats(&netns, "eth0")?;
            let all = [rx.packets, tx.packets, rx.bytes, tx.bytes];
            sum.iter_mut().zip(all).for_each(|(sum, one)| *sum += one);
        }
        Ok(sum)
    }
}

/// A cable from the first host to another: `NET.1` here, `NET.2` there.
fn connect(first: &Lab, other: &Lab, name: &str, net: &str) -> anyhow::Result<()> {
    // Processes in them lead there from outside of both.
    let guides = [first, other].map(|lab| lab.command("sleep").arg("1000").start());
    let [here, there] = guides;
    let (here, there) = (here?, there?);
    let script = format!(
        "ip link add {name} type veth peer name {name} netns /proc/{}/ns/net",
        there.pid()
    );
    let output = Command::new("nsenter")
        .arg(format!("--net=/proc/{}/ns/net", here.pid()))
        .args(["sh", "-ec", &script])
        .output()?;
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{script}: {words}");
    for (lab, number) in [(first, 1), (other, 2)] {
        lab.shell(&format!(
            "ip address add {net}.{number}/24 dev {name}; ip link set {name} up"
        ))?;
    }
    Ok(())
}

/// The recording rules that are totals, in the order of [`Host::kernel`].
const SUMS: [&str; 4] = [
    "job:netobs_network_receive_packets:sum",
    "job:netobs_network_transmit_packets:sum",
    "job:netobs_network_receive_bytes:sum",
    "job:netobs_network_transmit_bytes:sum",
];

/// What the rules and the kernels have, at a time when nothing moves.
fn at_rest(hosts: &[Host], prometheus: &Prometheus<'_>) -> anyhow::Result<([f64; 4], [u64; 4])> {
    let mut kernel = [0; 4];
    for host in hosts {
        let of = host.kernel()?;
        kernel.iter_mut().zip(of).for_each(|(sum, one)| *sum += one);
    }
    let mut rules = [0.0; 4];
    for (value, rule) in rules.iter_mut().zip(SUMS) {
        *value = prometheus.value(rule)?.unwrap_or(f64::NAN);
    }
    Ok((rules, kernel))
}

#[test]
fn sums_over_hosts_are_those_of_the_kernels() -> anyhow::Result<()> {
    let hosts = [
        Host::new("127.0.0.1:9929")?,
        Host::new("10.77.1.2:9929")?,
        Host::new("10.77.2.2:9929")?,
    ];
    let [first, second, third] = &hosts;
    connect(&first.lab, &second.lab, "up1", "10.77.1")?;
    connect(&first.lab, &third.lab, "up2", "10.77.2")?;
    let serving: anyhow::Result<Vec<Serve<'_>>> = hosts
        .iter()
        .map(|Host { lab, address }| {
            // By name: at the other end of a cable is what looks like a container.
            let args = ["--listen", address, "--insecure", "host", "a", "b"];
            // A fleet need not be alike: classes are summed over.
            let more: &[&str] = match address.starts_with("10.77.2.") {
                true => &["--no-classes"],
                false => &[],
            };
            let mut serve = Serve::begin(lab, &Netns::Host, &[&args, more].concat())?;
            serve.wait_healthy(&format!("http://{address}/healthz"))?;
            Ok(serve)
        })
        .collect();
    let serving = serving?;

    let folder = first.lab.tmp().join("prometheus");
    fs::create_dir_all(&folder)?;
    let rules = "netobs.rules.yml";
    fs::copy(contrib::path("prometheus").join(rules), folder.join(rules))?;
    let targets: Vec<&str> = hosts.iter().map(|host| host.address.as_str()).collect();
    let config = contrib::text("prometheus/prometheus.yml")?
        .replace(": 15s", ": 1s")
        .replace("localhost:9929", &targets.join("\n          - "));
    let prometheus = Prometheus::start(&first.lab, &config)?;
    prometheus.until("sum(up)", |up| up == 3.0)?;
    // What is under way is counted once a page has been the same as the kernel twice.
    let mut last = None;
    let (rules, kernel) = poll_until(SOON, "rest", || {
        std::thread::sleep(std::time::Duration::from_secs(3));
        let now = at_rest(&hosts, &prometheus)?;
        let same = last.as_ref() == Some(&now) && now.0.iter().all(|value| value.is_finite());
        last = Some(now);
        Ok(same.then_some(now))
    })?;

    // Not the same on each.
    let a = Netns::Named("a".to_owned());
    for (host, count) in hosts.iter().zip(["-c20", "-c30", "-c50"]) {
        ping(&host.lab, &a, "10.9.0.2", &[count])?;
    }
    let grown = poll_until(SOON, "the rules and the kernels to agree", || {
        let now = at_rest(&hosts, &prometheus)?;
        let ours = now.0.iter().zip(rules).map(|(now, before)| now - before);
        let theirs = now.1.iter().zip(kernel).map(|(now, before)| now - before);
        let pairs: Vec<(f64, u64)> = ours.zip(theirs).collect();
        // A ping and its answer are received by one and by the other.
        let all = pairs[0].1 >= 200 && pairs.iter().all(|(ours, theirs)| *ours == *theirs as f64);
        ensure!(all, "{pairs:?}");
        Ok(Some(pairs))
    })?;
    assert_eq!(grown[0].1, grown[1].1, "{grown:?}");
    // Of each host alone.
    for (instance, count) in [
        ("127.0.0.1", 40.0),
        ("10.77.1.2", 60.0),
        ("10.77.2.2", 100.0),
    ] {
        let of = |q: &str| format!("sum({q}{{instance=\"{instance}\",netns!=\"host\"}})");
        let total = prometheus.value(&of("netobs_network_receive_packets_total"))?;
        assert!(total >= Some(count), "{instance}: {total:?}");
        let rate =
            format!("instance:netobs_network_receive_packets:rate1m{{instance=\"{instance}\"}}");
        prometheus.until(&rate, |rate| rate > 0.0)?;
    }
    prometheus.until("job:netobs_network_receive_packets:rate1m", |rate| {
        rate > 0.0
    })?;

    prometheus.end()?;
    for serve in serving {
        serve.end()?;
    }
    Ok(())
}

/// The numbers of docs/fleet.md: series and bytes that one more interface, with a namespace
/// of its own, adds.
#[test]
fn each_interface_has_as_many_series_as_the_page_says() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    quiet_pair(&lab)?;
    let mut measured = Vec::new();
    let all: [&[&str]; 4] = [
        &[],
        &["--no-classes"],
        &["--no-lookups"],
        &["--no-classes", "--no-lookups"],
    ];
    for args in all {
        let serve = Serve::start(&lab, args)?;
        let page = || {
            let page = serve.until("both", |page| {
                page.all("netobs_netns_info", &[("interface", "eth0")])
                    .len()
                    >= 2
            })?;
            let of = |name: &str| {
                let of = |line: &&scraped::Line| line.label("netns") == name;
                page.lines.iter().filter(of).count()
            };
            let text = serve.page()?;
            let bytes: usize = text
                .lines()
                .filter(|line| line.contains("netns=\"a\""))
                .map(|line| line.len() + 1)
                .sum();
            anyhow::Ok((of("a"), bytes))
        };
        let (series, bytes) = page()?;
        figure(&format!(
            "serve {args:?}: {series} series and {bytes} bytes per namespace"
        ));
        measured.push(series);
        serve.end()?;
    }
    let page = fs::read_to_string(contrib::path("../docs/fleet.md"))?;
    for (series, args) in
        measured
            .iter()
            .zip(["as it is", "`--no-classes`", "`--no-lookups`", "both"])
    {
        let row = page
            .lines()
            .find(|line| line.starts_with(&format!("| {args} |")));
        let row = row.unwrap_or_default();
        assert!(
            row.starts_with(&format!("| {args} | {series} |")),
            "{series}: {row}"
        );
    }
    Ok(())
}
