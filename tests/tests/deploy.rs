//! `contrib/prometheus` and `contrib/grafana`, by the real Prometheus.

mod common;
mod contrib;
mod markdown;
mod scraped;

use std::{fs, process::Command};

use anyhow::{Context as _, ensure};
use common::{SOON, inside, ping};
use netobs_tests::{Lab, Prometheus, poll_until};
use scraped::Serve;
use serde_json::Value;

const CONFIG: &str = "prometheus/prometheus.yml";
const RULES: &str = "netobs.rules.yml";

/// What may have nothing to show: it needs a setting of the kernel's, or doubts.
const MAY_BE_EMPTY: [&str; 2] = ["netobs_program_run", "netobs_warnings"];

fn promtool(args: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("promtool")
        .args(args)
        .current_dir(contrib::path("prometheus"))
        .output()
        .context("cannot start promtool (package prometheus)")?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    ensure!(output.status.success(), "promtool {args:?}: {said}");
    ensure!(said.contains("SUCCESS"), "promtool {args:?}: {said}");
    Ok(())
}

#[test]
fn promtool_accepts_configuration_and_rules_and_their_tests_pass() -> anyhow::Result<()> {
    promtool(&["check", "config", "prometheus.yml"])?;
    promtool(&["check", "rules", RULES])?;
    promtool(&["test", "rules", "netobs.test.yml"])
}

/// docs/fleet.md has parts of configurations, rules, and one of another program that has a
/// configuration inside.
#[test]
fn promtool_accepts_what_the_page_on_many_hosts_shows() -> anyhow::Result<()> {
    let page = fs::read_to_string(contrib::path("../docs/fleet.md"))?;
    let folder = std::env::temp_dir().join(format!("netobs-fleet-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    let check = |kind: &str, text: &str| {
        let file = folder.join("checked.yml");
        // Files that are named have to be there.
        let text = text.replace("/etc/prometheus", &folder.display().to_string());
        fs::write(&file, &text)?;
        let file = file.display().to_string();
        promtool(&["check", kind, &file]).with_context(|| text)
    };
    fs::write(folder.join("netobs.password"), "secret")?;
    fs::write(folder.join("netobs-ca.pem"), "")?;
    let blocks = markdown::blocks(&page, "yaml");
    assert!(blocks.len() >= 9, "{}", blocks.len());
    for block in blocks {
        if block.starts_with("groups:") {
            check("rules", &block)?;
        } else if block.starts_with("receivers:") {
            let all: Value = serde_saphyr::from_str(&block)?;
            let inner = all["receivers"]["prometheus"]["config"].to_string();
            check("config", &inner.replace("$$", "$"))?;
        } else {
            // Debian builds Prometheus without it: the rest of that block is checked.
            let mut all: Value = serde_saphyr::from_str(&block)?;
            for job in all["scrape_configs"].as_array_mut().into_iter().flatten() {
                let job = job.as_object_mut().context("a job")?;
                job.remove("kubernetes_sd_configs");
            }
            check("config", &all.to_string())?;
        }
    }
    Ok(fs::remove_dir_all(&folder)?)
}

#[test]
fn every_alert_has_a_test() -> anyhow::Result<()> {
    let rules = contrib::yaml("prometheus/netobs.rules.yml")?;
    let tests = contrib::text("prometheus/netobs.test.yml")?;
    let groups = rules[0]["groups"].as_array().context("groups")?;
    let rules = groups.iter().filter_map(|group| group["rules"].as_array());
    let alerts: Vec<&str> = rules
        .flatten()
        .filter_map(|r| r["alert"].as_str())
        .collect();
    assert!(alerts.len() >= 8, "{alerts:?}");
    for alert in alerts {
        assert!(tests.contains(&format!("alertname: {alert}\n")), "{alert}");
    }
    Ok(())
}

/// A panel's or variable's query, with what Grafana would put in.
struct Query {
    place: String,
    expression: String,
}

/// What Grafana makes of an expression when everything is chosen.
fn filled(expression: &str) -> String {
    [
        ("$__rate_interval", "1m"),
        ("$__range", "5m"),
        ("$job", ".*"),
        ("$instance", ".*"),
        ("$netns", ".*"),
    ]
    .iter()
    .fold(expression.to_owned(), |text, (name, value)| {
        text.replace(name, value)
    })
}

fn dashboard() -> anyhow::Result<(Value, Vec<Query>)> {
    let dashboard: Value = serde_json::from_str(&contrib::text("grafana/netobs.json")?)?;
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().context("panels")? {
        let title = panel["title"].as_str().context("a title")?;
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expression = target["expr"].as_str().context("an expression")?;
            queries.push(Query {
                place: format!("{title} {}", target["refId"]),
                expression: filled(expression),
            });
        }
    }
    Ok((dashboard, queries))
}

#[test]
fn the_dashboard_is_whole() -> anyhow::Result<()> {
    let (dashboard, queries) = dashboard()?;
    // Of Grafana 10.0.
    assert_eq!(dashboard["schemaVersion"], 38);
    assert!(queries.len() >= 30, "{}", queries.len());
    let variables = dashboard["templating"]["list"].as_array().context("list")?;
    let names: Vec<&str> = variables
        .iter()
        .filter_map(|v| v["name"].as_str())
        .collect();
    assert_eq!(names, ["datasource", "job", "instance", "netns"]);
    let mut ids = Vec::new();
    let mut taken = Vec::new();
    for panel in dashboard["panels"].as_array().context("panels")? {
        ids.push(panel["id"].as_u64().context("an id")?);
        let at = |key: &str| panel["gridPos"][key].as_u64().context("a place");
        let (x, y, w, h) = (at("x")?, at("y")?, at("w")?, at("h")?);
        assert!(x + w <= 24, "{panel}");
        let overlaps = |(a, b, c, d): &(u64, u64, u64, u64)| {
            x < a + c && *a < x + w && y < b + d && *b < y + h
        };
        assert!(!taken.iter().any(overlaps), "{panel}");
        taken.push((x, y, w, h));
        if panel["type"] != "row" {
            // Nobody's own data source.
            assert_eq!(panel["datasource"]["uid"], "${datasource}");
            let targets = panel["targets"].as_array().context("targets")?;
            let all = |t: &Value| t["datasource"]["uid"] == "${datasource}";
            assert!(targets.iter().all(all), "{panel}");
        }
    }
    let many = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), many);
    Ok(())
}

/// Everything that can be shown of it: containers that talk, a lookup that fails, what
/// the host forwards.
fn talk(lab: &Lab) -> anyhow::Result<()> {
    let web = lab.run_container("web", &[], &["httpd", "-f", "-p", "80", "-h", "/www"])?;
    let guest = lab.run_container("guest", &["--cap-add=NET_ADMIN"], &[])?;
    let address = web.address()?;
    guest.exec(["ip", "route", "add", "unreachable", "203.0.113.0/24"])?;
    let fetch = "while :; do wget -q -O /dev/null http://$0/; sleep 0.2; done";
    let fetch = ["exec", "--detach", "guest", "sh", "-c", fetch];
    lab.docker(fetch).arg(&address).text()?;
    // Behind the host, so that it looks up for `guest`.
    lab.netns_add("behind")?;
    lab.shell(
        "ip link add vb type veth peer name eth0 netns behind
         ip link set vb up; ip -n behind link set eth0 up
         ip address add 10.8.0.1/24 dev vb; ip -n behind address add 10.8.0.2/24 dev eth0
         ip -n behind route add default via 10.8.0.1
         iptables -I FORWARD -j ACCEPT",
    )?;
    ping(lab, &guest.netns(), "10.8.0.2", &["-c3"])?;
    inside(lab, &guest.netns(), || {
        // It is refused, and nothing is sent.
        let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
        ensure!(socket.connect("203.0.113.9:53").is_err());
        Ok(())
    })
}

#[test]
fn every_query_of_dashboard_and_rules_has_an_answer() -> anyhow::Result<()> {
    let lab = Lab::with_docker()?;
    let serve = Serve::start(&lab, &[])?;
    let folder = lab.tmp().join("prometheus");
    fs::create_dir_all(&folder)?;
    fs::copy(contrib::path("prometheus").join(RULES), folder.join(RULES))?;
    // More often: a test does not wait for four times 15 seconds.
    let config = contrib::text(CONFIG)?.replace(": 15s", ": 1s");
    let prometheus = Prometheus::start(&lab, &config)?;
    talk(&lab)?;
    let traffic =
        r#"rate(netobs_network_receive_packets_total{netns="guest",protocol="tcp"}[10s])"#;
    prometheus.until(&format!("sum({traffic})"), |rate| rate > 1.0)?;

    let failed = r#"netobs_route_lookup_failures_total{netns="guest",class="unreachable"}"#;
    prometheus.until(failed, |count| count >= 1.0)?;
    prometheus.until(
        r#"netobs_route_lookups_by_host_total{netns="guest"}"#,
        |n| n > 0.0,
    )?;

    let (dashboard, queries) = dashboard()?;
    for Query { place, expression } in &queries {
        let may_be_empty = MAY_BE_EMPTY.iter().any(|name| expression.contains(name));
        let found = poll_until(SOON, place, || {
            let found = prometheus.query(expression)?;
            Ok((may_be_empty || !found.is_empty()).then_some(found))
        });
        found.with_context(|| expression.clone())?;
    }
    // The tables: who they are comes along.
    let talkers = queries
        .iter()
        .filter(|q| q.place.starts_with("Top talkers"));
    for query in talkers {
        let found = prometheus.query(&query.expression)?;
        let guest = found.iter().find(|series| series.label("netns") == "guest");
        let guest = guest.with_context(|| format!("{}: {found:?}", query.place))?;
        assert_eq!(guest.label("container_id").len(), 64, "{guest:?}");
        assert_eq!(guest.label("kind"), "container");
        assert!(guest.value > 0.0, "{guest:?}");
    }
    // `label_values(METRIC, LABEL)`
    for variable in dashboard["templating"]["list"].as_array().context("list")? {
        let Some(text) = variable["query"]["query"].as_str() else {
            continue;
        };
        let inner = text
            .strip_prefix("label_values(")
            .and_then(|t| t.strip_suffix(')'));
        let (metric, label) = inner.and_then(|t| t.rsplit_once(", ")).context("values")?;
        let found = prometheus.query(&format!("count by ({label}) ({})", filled(metric)))?;
        assert!(
            found.iter().all(|one| !one.label(label).is_empty()),
            "{text}"
        );
        assert!(!found.is_empty(), "{text}");
    }

    let rules = poll_until(SOON, "an evaluation of all rules", || {
        let rules = prometheus.api("rules", &[])?;
        let groups = rules["groups"].as_array().context("groups")?.clone();
        let all = groups.iter().filter_map(|group| group["rules"].as_array());
        let all: Vec<Value> = all.flatten().cloned().collect();
        let done = all.iter().all(|rule| rule["health"] == "ok");
        Ok((done && !all.is_empty()).then_some(all))
    })?;
    for rule in &rules {
        let name = rule["name"].as_str().context("a name")?;
        if rule["type"] == "recording" {
            poll_until(SOON, name, || {
                Ok((!prometheus.query(name)?.is_empty()).then_some(()))
            })?;
        } else {
            // A reading that took long on a busy machine may have begun one's time.
            let busy = name == "NetobsAttachesLate" || rule["state"] == "pending";
            assert!(busy || rule["state"] == "inactive", "{rule}");
        }
    }
    prometheus.end()?;
    serve.end()?;
    Ok(())
}
