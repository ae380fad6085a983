//! The scene that a newcomer sees: two containers with different routing
//! tables and a web server that both fetch from.

use netobs_tests::{Container, Lab, Proc};

/// Fetches and pings, gently.
const TALK: &str = "while :; do
    wget -q -O /dev/null http://$0/
    ping -c 1 -W 1 -q $1 >/dev/null
    sleep 0.5
done";

/// Connects a UDP socket to 8.8.8.8: the kernel looks up the route there and
/// sends nothing. The image's shell cannot, so it is the machine's, in the
/// container's network namespace.
const LOOK_UP: &str = "while :; do
    exec 3<>/dev/udp/8.8.8.8/53 && exec 3>&-
    sleep 0.5
done";

/// The lab with what runs in it.
pub(crate) struct Demo {
    // Ends before the lab.
    _lookups: Vec<Proc>,
    pub(crate) lab: Lab,
}

/// Starts the lab and its containers.
pub(crate) fn start() -> anyhow::Result<Demo> {
    eprintln!("xtask: starting the lab: a Docker host of its own, without a way out");
    let lab = Lab::with_docker()?;
    // First, so that it has the bridge's first free address.
    let web = lab.run_container("web", &[], &["httpd", "-f", "-p", "80", "-h", "/www"])?;
    let a = lab.run_container("netshoot_a", &["--cap-add=NET_ADMIN"], &[])?;
    let b = lab.run_container("netshoot_b", &[], &[])?;
    a.exec(["route", "add", "-host", "8.8.8.8", "dev", "eth0"])?;
    let web = web.address()?;
    for (container, other) in [(&a, b.address()?), (&b, a.address()?)] {
        let talk = ["exec", "--detach", container.name(), "sh", "-c", TALK];
        lab.docker(talk).args([&web, &other]).text()?;
    }
    let look_up =
        |container: &Container<'_>| container.command("bash").args(["-c", LOOK_UP]).start();
    let lookups = vec![look_up(&a)?, look_up(&b)?];
    eprintln!(
        "xtask: containers web, netshoot_a and netshoot_b talk to each other; both look up 8.8.8.8,\n\
         xtask: for which netshoot_a has a route of its own (`netobs routes` shows it)"
    );
    drop((a, b));
    Ok(Demo {
        _lookups: lookups,
        lab,
    })
}
