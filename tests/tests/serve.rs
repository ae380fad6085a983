//! `netobs serve`: what a scraper gets, held against the kernel's own counters.

mod common;
mod scraped;

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use common::{SOON, Watch, code, fails, inside, ping, quiet_pair};
use netobs_tests::{Lab, Netns, poll_until};
use nix::sys::signal::Signal;
use scraped::{ADDRESS, Scrape, Serve};

const RECEIVED: &str = "netobs_network_receive_packets_total";
const SENT: &str = "netobs_network_transmit_packets_total";

/// A page and the kernel's packets of `a`'s interface at a time when nothing moved.
fn at_rest(lab: &Lab, serve: &Serve<'_>) -> anyhow::Result<(Scrape, [u64; 4])> {
    let a = Netns::Named("a".to_owned());
    let kernel = || {
        let stats = lab.link_stats(&a, "eth0")?;
        anyhow::Ok([
            stats.rx.packets,
            stats.rx.bytes,
            stats.tx.packets,
            stats.tx.bytes,
        ])
    };
    poll_until(SOON, "a page at rest", || {
        let before = kernel()?;
        // What was read for another is as old as this.
        std::thread::sleep(Duration::from_millis(150));
        let scrape = serve.scrape()?;
        Ok((before == kernel()?).then_some((scrape, before)))
    })
}

fn ours(scrape: &Scrape) -> [u64; 4] {
    let of = |what: &str| {
        let name = format!("netobs_network_{what}_total");
        scrape.sum(&name, &[("netns", "a"), ("interface", "eth0")])
    };
    [
        of("receive_packets"),
        of("receive_bytes"),
        of("transmit_packets"),
        of("transmit_bytes"),
    ]
}

#[test]
fn counters_grow_as_the_kernels_do() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    quiet_pair(&lab)?;
    let serve = Serve::start(&lab, &[])?;
    let (first, kernel_first) = at_rest(&lab, &serve)?;
    let a = Netns::Named("a".to_owned());
    ping(&lab, &a, "10.9.0.2", &["-c20"])?;
    ping(&lab, &a, "fd09::2", &["-c10"])?;
    let (second, kernel_second) = at_rest(&lab, &serve)?;
    let (before, after) = (ours(&first), ours(&second));
    for ((ours, kernel), what) in before
        .iter()
        .zip(after)
        .map(|(a, b)| b - a)
        .zip(kernel_first.iter().zip(kernel_second).map(|(a, b)| b - a))
        .zip(["rx packets", "rx bytes", "tx packets", "tx bytes"])
    {
        assert_eq!(ours, kernel, "{what}");
    }
    let icmp = |scrape: &Scrape, family| {
        let labels = [("netns", "a"), ("family", family), ("protocol", "icmp")];
        scrape.sum(RECEIVED, &labels)
    };
    assert_eq!(icmp(&second, "ipv4") - icmp(&first, "ipv4"), 20);
    assert_eq!(icmp(&second, "ipv6") - icmp(&first, "ipv6"), 10);
    // A ping looks its way up: by `netobs watch` the same.
    let mut watch = Watch::start(&lab, &[])?;
    let sample = watch.fresh()?;
    watch.end()?;
    assert_eq!(sample["observer"]["route_backend"], "tracepoint");
    let lookups = |scrape: &Scrape| {
        let labels = [("netns", "a"), ("family", "ipv4"), ("origin", "output")];
        scrape.sum("netobs_route_lookups_total", &labels)
    };
    assert!(lookups(&second) > lookups(&first));
    // Ten classes are one series without them.
    serve.end()?;
    let serve = Serve::start(&lab, &["--no-classes", "--no-lookups"])?;
    let scrape = serve.scrape()?;
    assert_eq!(scrape.all(RECEIVED, &[("netns", "a")]).len(), 1);
    assert!(scrape.all("netobs_route_lookups_total", &[]).is_empty());
    serve.end()?;
    Ok(())
}

#[test]
fn formats_are_negotiated_and_promtool_has_no_complaint() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    quiet_pair(&lab)?;
    let serve = Serve::start(&lab, &["--routes", "--compat=cadvisor"])?;
    let url = format!("http://{ADDRESS}/metrics");
    let asked = |accept: &str| {
        let accept = format!("Accept: {accept}");
        serve.curl(&["-i", "-H", &accept, &url])
    };
    let prometheus = "application/openmetrics-text;version=1.0.0,\
                      application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    let page = asked(prometheus)?.success()?.stdout;
    assert!(page.contains("application/openmetrics-text; version=1.0.0; charset=utf-8"));
    assert!(
        page.ends_with("# EOF\n") && page.contains("# UNIT netobs_network_receive_bytes bytes\n")
    );
    assert!(page.contains("# TYPE netobs_network_receive_packets counter\n"));
    assert!(page.contains("# TYPE netobs_netns info\n"));
    for text in ["text/plain", "*/*", "application/openmetrics-text;q=0"] {
        let page = asked(text)?.success()?.stdout;
        assert!(
            page.contains("text/plain; version=0.0.4; charset=utf-8"),
            "{text}"
        );
        assert!(page.contains("# TYPE netobs_network_receive_packets_total counter\n"));
        assert!(!page.contains("# EOF") && !page.contains("# UNIT"));
    }
    // What is packed is the same.
    let packed = serve
        .curl(&["-f", "--compressed", "-i", &url])?
        .success()?
        .stdout;
    assert!(packed.contains("content-encoding: gzip"), "{packed}");
    assert!(packed.contains("netobs_build_info"));

    let file = lab.tmp().join("page");
    std::fs::write(&file, serve.page()?)?;
    let check = format!("promtool check metrics < {}", file.display());
    let checked = lab.command("sh").args(["-c", &check]).output()?;
    // Names that are cAdvisor's are not ours to mend; it has no complaint about them.
    assert_eq!((code(&checked)?, &*checked.stderr), (0, ""), "{checked:?}");

    let status = |args: &[&str]| {
        let mut all = vec!["-o", "/dev/null", "-w", "%{http_code}"];
        all.extend(args);
        Ok::<_, anyhow::Error>(serve.curl(&all)?.success()?.stdout)
    };
    let base = format!("http://{ADDRESS}");
    assert_eq!(status(&[&format!("{base}/")])?, "200");
    assert_eq!(status(&["-I", &url])?, "200");
    assert_eq!(status(&[&format!("{base}/nothing")])?, "404");
    assert_eq!(status(&["-X", "POST", &url])?, "405");
    let index = serve.curl(&[&base])?.success()?.stdout;
    assert!(index.contains("<a href=\"/metrics\">"), "{index}");
    serve.end()?;
    Ok(())
}

#[test]
fn what_has_ended_is_shown_to_its_end_and_then_no_more() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    quiet_pair(&lab)?;
    let serve = Serve::start(&lab, &["--grace=3s"])?;
    let a = Netns::Named("a".to_owned());
    ping(&lab, &a, "10.9.0.2", &["-c7"])?;
    let (last, _) = at_rest(&lab, &serve)?;
    // More that no scraper has seen.
    ping(&lab, &a, "10.9.0.2", &["-c5"])?;
    lab.netns_del("a")?;
    let gone = serve.until("the end of a", |scrape| {
        scrape.sum("netobs_namespaces", &[("kind", "named")]) == 1
    })?;
    let icmp = [("netns", "a"), ("protocol", "icmp"), ("family", "ipv4")];
    assert_eq!(gone.sum(RECEIVED, &icmp), last.sum(RECEIVED, &icmp) + 5);
    assert_eq!(gone.sum(SENT, &icmp), last.sum(SENT, &icmp) + 5);
    let identity = |scrape: &Scrape| scrape.all("netobs_netns_info", &[("netns", "a")]).len();
    assert_eq!(identity(&gone), 1);
    let later = serve.until("no series of a", |scrape| {
        scrape.all(RECEIVED, &[("netns", "a")]).is_empty()
    })?;
    assert_eq!(identity(&later), 0);
    // Another one of its name goes on.
    lab.netns_add("a")?;
    lab.shell("ip link add va type veth peer name eth0 netns a; ip link set va up; ip -n a link set eth0 up")?;
    let again = serve.until("a again", |scrape| {
        !scrape.all(RECEIVED, &[("netns", "a")]).is_empty()
    })?;
    assert_eq!(again.sum(RECEIVED, &icmp), gone.sum(RECEIVED, &icmp));
    serve.end()?;
    Ok(())
}

/// Asks in the words of `request`, reads to the end, gives what came.
fn talk(lab: &Lab, request: &[u8]) -> anyhow::Result<String> {
    inside(lab, &Netns::Host, || {
        let mut stream = TcpStream::connect(ADDRESS)?;
        stream.set_read_timeout(Some(SOON))?;
        stream.write_all(request)?;
        let mut answer = String::new();
        // Whoever speaks nonsense may be cut off.
        let _ = stream.read_to_string(&mut answer);
        Ok(answer)
    })
}

#[test]
fn bad_clients_disturb_nobody() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    quiet_pair(&lab)?;
    let mut serve = Serve::start(&lab, &[])?;
    let first = serve.scrape()?;
    // Many that say nothing, and some that never read their answer.
    let idle = inside(&lab, &Netns::Host, || {
        let mut idle = Vec::new();
        for number in 0..400 {
            let mut stream = TcpStream::connect(ADDRESS)?;
            match number % 4 {
                0 => stream.write_all(b"GET /metr")?,
                // Turned away, perhaps, before it has said all.
                1 => drop(stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")),
                _ => {}
            }
            idle.push(stream);
        }
        Ok(idle)
    })?;
    let a = Netns::Named("a".to_owned());
    ping(&lab, &a, "10.9.0.2", &["-c20"])?;
    drop(idle);
    for nonsense in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"GET /metrics HTTP/9.9\r\n\r\n",
        b"GET  \r\n\r\n",
        b"\0\0\0\0\r\n\r\n",
        b"POST /metrics HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
    ] {
        let answer = talk(&lab, nonsense)?;
        assert!(!answer.contains(" 200 "), "{answer}");
    }
    // A head that is right is answered, whatever follows it.
    let chunked = b"GET /metrics HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n";
    assert!(talk(&lab, chunked)?.starts_with("HTTP/1.1 200 OK"));
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(100_000));
    let answer = talk(&lab, long.as_bytes())?;
    assert!(!answer.contains(" 200 "), "{answer}");
    // All at once.
    let pages: Vec<String> = std::thread::scope(|scope| {
        let serve = &serve;
        let all: Vec<_> = (0..20).map(|_| scope.spawn(|| serve.page())).collect();
        let all = all.into_iter().map(|one| one.join().expect("no panic"));
        all.collect::<anyhow::Result<_>>()
    })?;
    assert_eq!(pages.len(), 20);
    let (last, _) = at_rest(&lab, &serve)?;
    let icmp = [("netns", "a"), ("protocol", "icmp"), ("family", "ipv4")];
    assert_eq!(last.sum(RECEIVED, &icmp), first.sum(RECEIVED, &icmp) + 20);
    assert!(serve.proc.is_running());
    let ended = serve.end()?;
    assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
    Ok(())
}

#[test]
fn it_listens_where_it_is_told_to() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    let socket = lab.tmp().join("netobs.sock");
    let listen = format!("--listen=unix:{},[::1]:9100,localhost:0", socket.display());
    let mut serve = Serve::begin(&lab, &Netns::Host, &[&listen, "-v"])?;
    serve.wait_healthy("http://[::1]:9100/healthz")?;
    let path = socket.display().to_string();
    let page = serve.curl(&["-f", "--unix-socket", &path, "http://netobs/metrics"])?;
    assert!(page.success()?.stdout.contains("netobs_build_info"));
    let mode = lab.shell(&format!("stat -c %a {path}"))?;
    assert_eq!(mode.trim(), "660");
    let said = serve
        .proc
        .wait_stderr(SOON, |line| line.contains("serving at"))?;
    assert!(
        said.contains("127.0.0.1:") && !said.contains(":0,"),
        "{said}"
    );
    serve.end()?;
    assert!(!socket.exists());
    Ok(())
}

#[test]
fn what_cannot_be_is_told_before_anything_is_attached() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    quiet_pair(&lab)?;
    let serve = Serve::start(&lab, &[])?;
    let broken = lab.tmp().join("web.yml");
    std::fs::write(&broken, "basic_auth_users:\n  me: secret\n")?;
    let broken = format!("--web-config={}", broken.display());
    let cases: [(&[&str], i32, &[&str]); 9] = [
        (&[], 1, &["127.0.0.1:9929", "--listen"]),
        (&["--listen=example:80"], 2, &["example:80", "ADDRESS:PORT"]),
        (&["--listen=:9100"], 2, &["--web-config", "--insecure"]),
        (
            &["--listen=10.9.0.1:9100", "--insecure"],
            1,
            &["no interface has this address"],
        ),
        (&["--listen=unix:/"], 1, &["no socket"]),
        (&["--web-config=/nowhere.yml"], 1, &["/nowhere.yml"]),
        (&[&broken], 1, &["web.yml", "me"]),
        (&["--routes", "--pin"], 2, &["--routes", "--pin"]),
        (&["--grace=never"], 2, &["--grace"]),
    ];
    for (args, expected, words) in cases {
        let mut all = vec!["serve"];
        all.extend(args);
        let output = lab.netobs(&all)?.output()?;
        fails(&output, expected, words);
    }
    serve.end()?;
    // With the explicit flag it says what it does.
    let mut serve = Serve::begin(&lab, &Netns::Host, &["--listen=0.0.0.0:9100", "--insecure"])?;
    serve.wait_healthy("http://127.0.0.1:9100/healthz")?;
    let ended = serve.end()?;
    assert!(
        ended.stderr.contains("neither TLS nor a user"),
        "{}",
        ended.stderr
    );
    // A killed one leaves a port that is free.
    let mut serve = Serve::start(&lab, &[])?;
    serve.proc.end(Signal::SIGKILL, SOON)?;
    Serve::start(&lab, &[])?.end()?;
    Ok(())
}
