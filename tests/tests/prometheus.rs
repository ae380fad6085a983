//! `netobs serve` and the real Prometheus: what is scraped each second is what the
//! kernel counted, whatever restarts meanwhile.

mod common;
mod markdown;
mod scraped;

use std::{fs, time::Duration};

use anyhow::Context as _;
use common::{SOON, inside, ping, quiet_pair};
use netobs_tests::{Lab, Netns, Prometheus, poll_until};
use nix::sys::signal::Signal;
use scraped::{ADDRESS, Serve};

const RECEIVED: &str = "netobs_network_receive_packets_total";

/// Pings that `web` has had answered.
fn counted(serve: &Serve<'_>) -> anyhow::Result<u64> {
    // What was read for another is as old as this.
    std::thread::sleep(Duration::from_millis(150));
    let labels = [("netns", "web"), ("family", "ipv4"), ("protocol", "icmp")];
    Ok(serve.scrape()?.sum(RECEIVED, &labels))
}

/// Each second.
fn config(more: &str) -> String {
    format!(
        "global: {{scrape_interval: 1s, scrape_timeout: 1s}}
scrape_configs:
  - job_name: netobs
    static_configs: [{{targets: ['{ADDRESS}']}}]
{more}"
    )
}

/// How often counters went back, of all series, as Prometheus saw them.
fn resets(prometheus: &Prometheus<'_>) -> anyhow::Result<Vec<String>> {
    let names = "count by (__name__) ({__name__=~\"netobs_(network|route)_.*_total\"})";
    let mut all = Vec::new();
    for name in prometheus.query(names)? {
        let name = name.label("__name__");
        let series = prometheus.query(&format!("resets({name}[10m]) > 0"))?;
        all.extend(series.iter().map(|series| format!("{name}: {series:?}")));
    }
    Ok(all)
}

#[test]
fn rates_and_restarts() -> anyhow::Result<()> {
    let lab = Lab::with_docker()?;
    let other = lab.run_container("other", &[], &[])?;
    let target = other.address()?;
    let web = lab.run_container("web", &[], &[])?;
    let mut serve = Serve::start(&lab, &["--pin"])?;
    let prometheus = Prometheus::start(&lab, &config(""))?;
    prometheus.until("up", |up| up == 1.0)?;
    let icmp = format!("{RECEIVED}{{netns=\"web\",family=\"ipv4\",protocol=\"icmp\"}}");
    let first = prometheus.until(&icmp, |_| true)?;

    // A load of a known rate: ten a second.
    web.exec(["ping", "-q", "-c80", "-i0.1", &target])?;
    prometheus.until(&icmp, |now| now == first + 80.0)?;
    let rate = prometheus
        .value(&format!("max_over_time(rate({icmp}[8s])[30s:1s])"))?
        .context("a rate")?;
    assert!((9.0..12.0).contains(&rate), "{rate} a second");
    let classes = format!("sum without (family, protocol) ({RECEIVED}{{netns=\"web\"}})");
    let kernel = lab.link_stats(&web.netns(), "eth0")?.rx;
    let total = prometheus.value(&classes)?.context("a total")?;
    assert!(total <= kernel.packets as f64 && total > 80.0);

    // The container is restarted: another namespace, the same series.
    for round in 1..=3 {
        lab.docker(["restart", "-t1", "web"]).text()?;
        lab.exec("web", ["ping", "-q", "-c5", "-i0.05", &target])?;
        // Those at once may be before the programs.
        let most = first as u64 + 80 + 5 * round;
        let now = counted(&serve)?;
        assert!(now <= most && now + 3 * round >= most, "{now} of {most}");
        prometheus.until(&icmp, |scraped| scraped == now as f64)?;
    }
    assert_eq!(resets(&prometheus)?, [""; 0]);
    let identities = "count(netobs_netns_info{netns=\"web\"})";
    assert_eq!(prometheus.value(identities)?, Some(1.0));

    // And netobs, with a container that is restarted meanwhile: each in its way.
    let before = counted(&serve)? as f64;
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        // Whoever is killed has written down what ended some time before.
        std::thread::sleep(Duration::from_secs(6));
        serve.proc.end(signal, SOON)?;
        lab.exec("web", ["ping", "-q", "-c4", "-i0.05", &target])?;
        lab.docker(["restart", "-t1", "web"]).text()?;
        serve = Serve::start(&lab, &["--pin"])?;
        lab.exec("web", ["ping", "-q", "-c4", "-i0.05", &target])?;
        prometheus.until("up", |up| up == 1.0)?;
    }
    let after = prometheus.until(&icmp, |now| now >= before + 16.0)?;
    assert_eq!(after, before + 16.0);
    assert_eq!(resets(&prometheus)?, [""; 0]);
    assert_eq!(
        prometheus.value("count(count by (netns) (netobs_netns_info))")?,
        Some(3.0)
    );
    prometheus.end()?;
    serve.end()?;
    lab.netobs(["clean"])?.output()?.success()?;
    Ok(())
}

/// A name with all that a format could stumble over.
const HOSTILE: &str = "q\"uo\\te,{}=\ttab \u{1b}[31m\nline \u{202e}日本";

#[test]
fn names_come_back_unharmed() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    lab.command("ip").args(["netns", "add", HOSTILE]).text()?;
    lab.command("ip")
        .args([
            "link", "add", "v0", "type", "veth", "peer", "name", "e\"\\{0", "netns", HOSTILE,
        ])
        .text()?;
    lab.command("ip")
        .args(["-n", HOSTILE, "link", "set", "e\"\\{0", "up"])
        .text()?;
    lab.shell("ip link set v0 up; ip link set lo up")?;
    let serve = Serve::start(&lab, &[])?;
    let prometheus = Prometheus::start(&lab, &config(""))?;
    prometheus.until("up", |up| up == 1.0)?;
    let found = prometheus.query("netobs_netns_info{kind=\"named\"}")?;
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].label("name"), HOSTILE);
    assert_eq!(found[0].label("netns"), HOSTILE);
    assert_eq!(found[0].label("interface"), "e\"\\{0");
    assert_eq!(found[0].label("peer"), "v0");
    prometheus.end()?;
    serve.end()?;
    lab.command("ip").args(["netns", "del", HOSTILE]).text()?;
    Ok(())
}

#[test]
fn over_tls_to_who_is_known() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    quiet_pair(&lab)?;
    let folder = lab.tmp().display().to_string();
    lab.shell(&format!(
        "cd {folder}
         openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 \
            -subj /CN=netobs -addext subjectAltName=DNS:localhost,IP:127.0.0.1 \
            -keyout key.pem -out cert.pem 2>/dev/null"
    ))?;
    // bcrypt of "secret".
    let web = "tls_server_config: {cert_file: cert.pem, key_file: key.pem}
basic_auth_users:
  scraper: $2b$04$pdqPssUl0tyX3DSsd.a.gO06AHECRt2hYbczkn5xseUf9ExjYCo52
";
    fs::write(lab.tmp().join("web.yml"), web)?;
    let web = format!("--web-config={folder}/web.yml");
    let mut serve = Serve::begin(&lab, &Netns::Host, &["--listen=:9929", &web])?;
    let user = [
        "-f",
        "-u",
        "scraper:secret",
        "--cacert",
        &format!("{folder}/cert.pem"),
    ];
    let metrics = "https://localhost:9929/metrics";
    poll_until(SOON, "a page over TLS", || {
        anyhow::ensure!(serve.proc.is_running(), "{:?}", serve.proc.stderr());
        let page = serve.curl(&[&user[..], &[metrics]].concat())?;
        Ok(page.status.success().then_some(()))
    })?;
    let code = |args: &[&str]| {
        let mut all = vec!["-k", "-o", "/dev/null", "-w", "%{http_code}"];
        all.extend(args);
        Ok::<_, anyhow::Error>(serve.curl(&all)?.stdout)
    };
    assert_eq!(code(&["https://localhost:9929/healthz"])?, "401");
    assert_eq!(code(&["-u", "scraper:wrong", metrics])?, "401");
    assert_eq!(code(&["http://localhost:9929/metrics"])?, "000");
    let more = format!(
        "    scheme: https
    basic_auth: {{username: scraper, password: secret}}
    tls_config: {{ca_file: {folder}/cert.pem}}"
    );
    let prometheus = Prometheus::start(&lab, &config(&more))?;
    prometheus.until("up", |up| up == 1.0)?;
    prometheus.end()?;
    serve.end()?;
    Ok(())
}

#[test]
fn both_look_8_8_8_8_up_and_hit_another_route() -> anyhow::Result<()> {
    let lab = Lab::with_docker()?;
    let a = lab.run_container("netshoot_a", &["--cap-add=NET_ADMIN"], &[])?;
    let b = lab.run_container("netshoot_b", &[], &[])?;
    a.exec(["route", "add", "-host", "8.8.8.8", "dev", "eth0"])?;
    let serve = Serve::start(&lab, &["--routes", "--compat=cadvisor"])?;
    let prometheus = Prometheus::start(&lab, &config(""))?;
    prometheus.until("up", |up| up == 1.0)?;
    for container in [&a, &b] {
        inside(&lab, &container.netns(), || {
            // A route is looked up; nothing is sent.
            for _ in 0..5 {
                std::net::UdpSocket::bind("0.0.0.0:0")?.connect("8.8.8.8:53")?;
            }
            Ok(())
        })?;
    }
    let hits = |netns: &str, prefix: &str, gateway: &str| {
        let labels = format!("netns=\"{netns}\",prefix=\"{prefix}\",gateway=\"{gateway}\"");
        format!(
            "sum(netobs_route_hits_total{{{labels},table=\"main\",interface=\"eth0\",origin=\"output\"}})"
        )
    };
    prometheus.until(&hits("netshoot_a", "8.8.8.8/32", ""), |n| n == 10.0)?;
    prometheus.until(&hits("netshoot_b", "0.0.0.0/0", "172.17.0.1"), |n| {
        n == 10.0
    })?;
    assert_eq!(
        prometheus.value(&hits("netshoot_b", "8.8.8.8/32", ""))?,
        None
    );

    // cAdvisor's names have what `docker stats` shows: the kernel's.
    ping(&lab, &a.netns(), &b.address()?, &["-c3"])?;
    let kernel = lab.link_stats(&a.netns(), "eth0")?.rx;
    let received = "container_network_receive_bytes_total{name=\"netshoot_a\",interface=\"eth0\"}";
    prometheus.until(received, |bytes| bytes >= kernel.bytes as f64)?;
    let series = prometheus.query(received)?.remove(0);
    assert_eq!(series.label("id"), format!("/docker/{}", a.id()));
    assert_eq!(series.label("image"), netobs_tests::image::NAME);
    let join = "netobs_network_receive_bytes_total{protocol=\"icmp\"} \
                * on (netns, interface) group_left (container_id) netobs_netns_info{container_id!=\"\"}";
    assert!(prometheus.query(join)?.len() >= 2);
    prometheus.end()?;
    serve.end()?;
    Ok(())
}

/// The expressions of a block, without comments: each ends where all its parentheses do.
fn expressions(block: &str) -> Vec<String> {
    let mut all = Vec::new();
    let mut expression = String::new();
    for line in block.lines() {
        let code = line.split_once("  #").map_or(line, |(code, _)| code);
        expression += code;
        expression.push('\n');
        let count = |c: char| expression.matches(c).count();
        if count('(') == count(')') && !expression.trim().is_empty() {
            all.push(std::mem::take(&mut expression));
        }
    }
    all
}

#[test]
fn what_the_documentation_asks_is_answered() -> anyhow::Result<()> {
    let lab = Lab::with_docker()?;
    let web = lab.run_container("web", &["--cap-add=NET_ADMIN"], &[])?;
    let other = lab.run_container("other", &[], &[])?;
    web.exec(["route", "add", "-host", "8.8.8.8", "dev", "eth0"])?;
    let serve = Serve::start(&lab, &["--routes"])?;
    let prometheus = Prometheus::start(&lab, &config(""))?;
    prometheus.until("up", |up| up == 1.0)?;
    web.exec(["ping", "-q", "-c20", "-i0.1", &other.address()?])?;
    inside(&lab, &other.netns(), || {
        std::net::UdpSocket::bind("0.0.0.0:0")?.connect("8.8.8.8:53")?;
        Ok(())
    })?;
    // A lookup that fails.
    lab.shell(&format!(
        "nsenter --net=/proc/{}/ns/net ip route add unreachable 203.0.113.0/24",
        web.pid()
    ))?;
    for _ in 0..3 {
        let _ = inside(&lab, &web.netns(), || {
            std::net::UdpSocket::bind("0.0.0.0:0")?.connect("203.0.113.1:53")?;
            Ok(())
        });
        std::thread::sleep(Duration::from_secs(1));
    }
    let docs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let text = fs::read_to_string(docs.join("metrics.md"))?;
    let queries: Vec<String> = markdown::blocks(&text, "promql")
        .iter()
        .flat_map(|block| expressions(block))
        .collect();
    assert!(queries.len() > 5, "{queries:?}");
    for query in queries {
        poll_until(SOON, &query, || {
            Ok((!prometheus.query(&query)?.is_empty()).then_some(()))
        })?;
    }
    for (number, block) in markdown::blocks(&text, "yaml").iter().enumerate() {
        let file = prometheus.folder().join(format!("docs-{number}.yml"));
        fs::write(&file, block)?;
        lab.command("promtool")
            .args(["check", "config"])
            .arg(&file)
            .text()?;
    }
    // And each family has a word there.
    let told = told_families(&text);
    for line in serve.page()?.lines() {
        let Some(rest) = line.strip_prefix("# TYPE ") else {
            continue;
        };
        let name = rest.split(' ').next().unwrap_or_default();
        let known = told.iter().any(|told| match told.strip_suffix('*') {
            Some(begin) => name.starts_with(begin),
            None => name == told,
        });
        assert!(known, "docs/metrics.md says nothing of {name}");
    }
    prometheus.end()?;
    serve.end()?;
    Ok(())
}

/// Names between backticks, `{a,b}` in them taken apart, labels behind them left out.
fn told_families(text: &str) -> Vec<String> {
    let spans = text.split('`').skip(1).step_by(2);
    let mut all = Vec::new();
    for span in spans.filter(|span| span.contains('_')) {
        let mut names = vec![String::new()];
        let mut rest = span;
        while let Some((before, after)) = rest.split_once('{') {
            let Some((choices, behind)) = after.split_once('}') else {
                break;
            };
            names.iter_mut().for_each(|name| name.push_str(before));
            rest = behind;
            if behind.is_empty() {
                break;
            }
            names = names
                .iter()
                .flat_map(|name| {
                    choices
                        .split(',')
                        .map(move |choice| format!("{name}{choice}"))
                })
                .collect();
        }
        names.iter_mut().for_each(|name| name.push_str(rest));
        all.extend(names);
    }
    all
}
