//! The scene that a newcomer sees: two containers with different routing
//! tables and a web server that both fetch from.

use netobs_tests::Lab;

/// Fetches, pings and looks routes up, gently. `ip route get` asks the kernel
/// where a packet would go and sends none.
const TALK: &str = "while :; do
    wget -q -O /dev/null http://$0/
    ping -c 1 -W 1 -q $1 >/dev/null
    ip route get 8.8.8.8 >/dev/null 2>&1
    sleep 0.5
done";

/// Starts the lab and its containers.
pub(crate) fn start() -> anyhow::Result<Lab> {
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
    eprintln!("xtask: containers web, netshoot_a and netshoot_b talk to each other");
    Ok(lab)
}
