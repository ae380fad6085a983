//! What `netobs doctor` says of who is attached where, held against programs that
//! the tests themselves attached.

mod common;
mod elf;

use aya::programs::{TcAttachType, XdpMode};
use common::{Link, Watch, code, inside, quiet_pair};
use elf::{NEXT, XDP_PASS};
use netobs_tests::{Lab, Netns, netobs_binary};
use serde_json::{Value, json};

/// The report, which is well-formed whatever it finds.
fn doctor(lab: &Lab) -> anyhow::Result<Value> {
    lab.netobs(["doctor", "--output=json"])?.json()
}

/// What the report has of an interface.
#[track_caller]
fn chain<'a>(report: &'a Value, interface: &str) -> &'a Value {
    let all = report["chains"].as_array().into_iter().flatten();
    let found: Vec<&Value> = all.filter(|c| c["interface"] == interface).collect();
    assert_eq!(found.len(), 1, "{interface}: {report:#}");
    found[0]
}

/// `via name` of what packets meet, in that order.
fn order(chain: &Value, hook: &str) -> Vec<String> {
    let entries = chain[hook].as_array().into_iter().flatten();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    entries
        .map(|entry| format!("{} {}", text(&entry["via"]), text(&entry["name"])))
        .collect()
}

#[track_caller]
fn remarks(chain: &Value) -> Vec<&str> {
    let all = chain["remarks"].as_array().into_iter().flatten();
    all.filter_map(Value::as_str).collect()
}

/// The table, all of whose lines fit.
fn table(lab: &Lab) -> anyhow::Result<String> {
    let text = lab.netobs(["doctor", "--color=never"])?.text()?;
    for line in text.lines() {
        assert!(line.chars().count() <= 80, "{line}\n{text}");
    }
    Ok(text)
}

#[test]
fn neighbours_are_shown_in_the_order_in_which_they_run() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    quiet_pair(&lab)?;
    let host = |work: &(dyn Fn() -> anyhow::Result<elf::Neighbour> + Sync)| {
        inside(&lab, &Netns::Host, work)
    };
    let behind = host(&|| elf::tcx("behind", NEXT, "va", TcAttachType::Ingress))?;
    lab.shell(
        "tc qdisc add dev va clsact
         tc filter add dev va ingress prio 100 protocol all u32 match u32 0 0 classid 1:1",
    )?;
    let report = doctor(&lab)?;
    assert_eq!(chain(&report, "va")["first_ingress"], Value::Null);
    assert_eq!(remarks(chain(&report, "va")), [""; 0], "we would be first");

    let mut watch = Watch::start(&lab, &["--tc-mode=tcx"])?;
    watch.at_rest(&lab, &[Link::named("a", "eth0")])?;
    let report = doctor(&lab)?;
    let va = chain(&report, "va");
    assert_eq!(
        order(va, "ingress"),
        ["tcx netobs_ingress", "tcx behind", "clsact u32"]
    );
    assert_eq!(order(va, "egress"), ["tcx netobs_egress"]);
    assert_eq!(
        (&va["first_ingress"], &va["first_egress"]),
        (&json!(true), &json!(true))
    );
    assert_eq!(remarks(va), [""; 0]);
    assert_eq!(va["namespace"], "a");
    assert_eq!(va["place"], "host_end");
    assert_eq!(va["ingress"][1]["id"], behind.id);
    assert_eq!(va["ingress"][2]["priority"], 100);
    assert_eq!(va["ingress"][2]["id"], Value::Null);

    // From now on somebody is ahead.
    let _ahead = host(&|| elf::tcx("ahead", NEXT, "va", TcAttachType::Ingress))?;
    let cilium = host(&|| elf::tcx("cil_to_container", NEXT, "va", TcAttachType::Egress))?;
    let generic = host(&|| elf::xdp("looks_first", XDP_PASS, "va", XdpMode::Skb))?;
    let native = host(&|| elf::xdp("in_driver", XDP_PASS, "vb", XdpMode::Driver))?;
    let report = doctor(&lab)?;
    let va = chain(&report, "va");
    let expected = [
        "xdp looks_first",
        "tcx ahead",
        "tcx netobs_ingress",
        "tcx behind",
        "clsact u32",
    ];
    assert_eq!(order(va, "ingress"), expected);
    assert_eq!(va["ingress"][0]["mode"], "generic");
    assert_eq!(va["ingress"][0]["id"], generic.id);
    // The kernel keeps 15 characters of a name.
    assert_eq!(
        order(va, "egress"),
        ["tcx cil_to_containe", "tcx netobs_egress"]
    );
    assert_eq!(va["egress"][0]["id"], cilium.id);
    assert_eq!(
        (&va["first_ingress"], &va["first_egress"]),
        (&json!(false), &json!(false))
    );
    let said = remarks(va);
    assert_eq!(said.len(), 4, "{said:?}");
    for (remark, words) in said.iter().zip([
        ["tx: looks_first", "XDP"],
        ["tx: ahead", "ahead of netobs"],
        ["rx: cil_to_containe", "ahead of netobs"],
        ["Cilium", "bpf_redirect_peer"],
    ]) {
        assert!(words.iter().all(|word| remark.contains(word)), "{remark}");
    }
    let vb = chain(&report, "vb");
    assert_eq!(
        order(vb, "ingress"),
        ["xdp in_driver", "tcx netobs_ingress"]
    );
    assert_eq!(vb["ingress"][0]["mode"], "native");
    assert_eq!(vb["ingress"][0]["id"], native.id);
    // What was there before is said as before.
    let ours = &vb["ingress"][1]["id"];
    assert_eq!(vb["tcx_ingress"], json!([format!("netobs_ingress#{ours}")]));
    assert_eq!(va["clsact_ingress"], json!(["u32"]));

    let text = table(&lab)?;
    assert!(
        text.contains("netobs_ingress") && text.contains("(ours)"),
        "{text}"
    );
    assert!(text.contains("! tx: ahead runs ahead of netobs"), "{text}");
    watch.end()?;
    Ok(())
}

/// The other end of the pair is in another container: both are looked at inside.
#[test]
fn inside_other_namespaces_it_looks_too() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    for name in ["c", "d"] {
        lab.netns_add(name)?;
    }
    lab.shell(
        "ip -n c link add toward-d type veth peer name toward-c netns d
         ip -n c link set toward-d up
         ip -n d link set toward-c up
         ip link add up-c type veth peer name eth0 netns c
         ip link add up-d type veth peer name eth0 netns d",
    )?;
    let c = Netns::Named("c".to_owned());
    let theirs = inside(&lab, &c, || {
        elf::tcx("theirs", NEXT, "toward-d", TcAttachType::Egress)
    })?;
    let report = doctor(&lab)?;
    let toward_d = chain(&report, "toward-d");
    assert_eq!(toward_d["place"], "inside");
    assert_eq!(toward_d["namespace"], "c");
    assert_eq!(order(toward_d, "egress"), ["tcx theirs"]);
    assert_eq!(toward_d["egress"][0]["id"], theirs.id);
    Ok(())
}

/// Fifty containers with the same programs are one paragraph.
#[test]
fn many_that_are_alike_are_told_of_once() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    lab.shell(
        "for i in $(seq 50); do
            ip netns add box-$i
            ip link add v$i type veth peer name eth0 netns box-$i
            ip link set v$i up
            ip -n box-$i link set eth0 up
         done",
    )?;
    let watch = Watch::start(&lab, &[])?;
    let report = doctor(&lab)?;
    assert_eq!(report["chains"].as_array().map(Vec::len), Some(50));
    assert_eq!(report["interfaces"], 50);
    let text = table(&lab)?;
    // Wherever the line breaks.
    let words: Vec<&str> = text.split_whitespace().collect();
    assert!(words.join(" ").contains("44 more like them"), "{text}");
    assert_eq!(text.matches("netobs_ingress").count(), 1, "{text}");
    assert!(text.lines().count() < 40, "{text}");
    watch.end()?;
    Ok(())
}

#[test]
fn too_few_open_files_are_told() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    quiet_pair(&lab)?;
    let files = |limit: &str| -> anyhow::Result<Value> {
        let mut command = lab.command("prlimit");
        command.arg(format!("--nofile={limit}"));
        command.arg(netobs_binary()?);
        let report = command.args(["doctor", "--output=json"]).json()?;
        let mut checks = report["checks"].as_array().into_iter().flatten();
        let check = checks.find(|check| check["name"] == "open files");
        Ok(check.cloned().unwrap_or_default())
    };
    let plenty = files("64:4096")?;
    assert_eq!(plenty["verdict"], "ok", "{plenty}");
    let few = files("76:76")?;
    assert_eq!(few["verdict"], "limited", "{few}");
    let advice = few["consequence"].as_str().unwrap_or_default();
    assert!(
        advice.contains("ulimit -n") && advice.contains("LimitNOFILE="),
        "{few}"
    );

    // Too few for the programs even.
    let mut command = lab.command("prlimit");
    command.arg("--nofile=20:20").arg(netobs_binary()?);
    let output = command.arg("doctor").output()?;
    assert_eq!(code(&output)?, 1, "{output:?}");
    assert!(output.stderr.contains("ulimit -n"), "{output:?}");
    Ok(())
}
