//! Namespaces to send between.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use netobs::world::netns;
use netobs_tests::{Lab, Proc};

use crate::load::Frame;

/// Ports of a bridge are limited to 1,023.
/// <https://github.com/torvalds/linux/blob/v6.18/net/bridge/br_private.h>
const PORTS: u32 = 1000;

/// A lab with namespaces `n0`, `n1`, ..., whose `eth0` is `v0`, `v1`, ... on the host
/// (10.77.0.0/16), on bridges of a thousand.
///
/// Each bridge knows for each port an address that nobody has: what is sent there crosses
/// the bridge, enters the namespace, and is dropped as soon as the kernel looks at whom it is for.
/// That is the shortest way for a packet that is counted where it leaves and where it arrives.
pub(crate) struct Scene {
    pub(crate) lab: Lab,
    pub(crate) namespaces: u32,
    /// Its /proc entry leads to the lab's files.
    guide: Proc,
}

/// `$0` to `$1`; 1000 is [`PORTS`]. Without IPv6, and with neighbours that are not asked
/// again whether they are there, nothing is sent by itself.
const MAKE: &str = r#"
    seq $0 $1 | sed 's/^/netns add n/' | ip -batch -
    seq $0 $1 | xargs -P2 -I{} nsenter --net=/run/netns/n{} sh -ec '
        echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6
        ip -batch - <<.
link set lo up
link add eth0 up type veth peer name v{} netns 1
address add 10.77.$(({} / 250)).$(({} % 250 + 1))/16 dev eth0
.
        echo 86400000 >/proc/sys/net/ipv4/neigh/eth0/base_reachable_time_ms'
    for i in $(seq $0 $1); do
        echo "link set v$i master b$((i / 1000)) up"
    done | ip -batch -
    for i in $(seq $0 $1); do
        printf 'fdb add 02:00:00:00:%02x:%02x dev v%d master static\n' $((i / 256)) $((i % 256)) $i
    done | bridge -batch -
"#;

impl Scene {
    pub(crate) fn new(namespaces: u32) -> anyhow::Result<Self> {
        Self::in_lab(Lab::new()?, namespaces)
    }

    /// With containers' engine, for what asks it.
    pub(crate) fn with_docker() -> anyhow::Result<Self> {
        Self::in_lab(Lab::with_docker()?, 0)
    }

    fn in_lab(lab: Lab, namespaces: u32) -> anyhow::Result<Self> {
        lab.shell(
            "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1
             # Where the module is there, packets on a bridge would go by iptables.
             call=/proc/sys/net/bridge/bridge-nf-call-iptables
             [ ! -e $call ] || echo 0 >$call",
        )?;
        for bridge in 0..namespaces.div_ceil(PORTS) {
            lab.shell(&format!(
                "ip link add b{bridge} up type bridge mcast_snooping 0"
            ))?;
        }
        if namespaces > 0 {
            let last = (namespaces - 1).to_string();
            lab.command("sh").args(["-ec", MAKE, "0", &last]).text()?;
        }
        let guide = lab.command("sleep").arg("2147483647").start()?;
        Ok(Self {
            lab,
            namespaces,
            guide,
        })
    }

    /// The host's namespace.
    pub(crate) fn host(&self) -> anyhow::Result<File> {
        open(&self.of_guide("ns/net"))
    }

    /// A named one.
    pub(crate) fn netns(&self, name: &str) -> anyhow::Result<File> {
        // Files as the guide sees them.
        open(&self.of_guide("root").join("run/netns").join(name))
    }

    fn of_guide(&self, what: &str) -> PathBuf {
        Path::new("/proc")
            .join(self.guide.pid().to_string())
            .join(what)
    }

    /// Works on a thread inside the host's namespace.
    pub(crate) fn on_host<T: Send>(
        &self,
        work: impl FnOnce() -> anyhow::Result<T> + Send,
    ) -> anyhow::Result<T> {
        inside(&self.host()?, work)
    }

    /// A frame from the namespace `from` to the one behind it on its bridge.
    pub(crate) fn frame(&self, from: u32, source_port: u16) -> Frame {
        let first = from / PORTS * PORTS;
        let ports = PORTS.min(self.namespaces - first);
        let to = first + (from - first + 1) % ports;
        Frame {
            source_mac: mac(0xaa, from),
            destination_mac: mac(0, to),
            source: address(from),
            destination: address(to),
            source_port,
            destination_port: 9,
        }
    }
}

fn open(path: &Path) -> anyhow::Result<File> {
    File::open(path).with_context(|| format!("open {}", path.display()))
}

/// Works on a thread inside `netns`.
pub(crate) fn inside<T: Send>(
    netns: &File,
    work: impl FnOnce() -> anyhow::Result<T> + Send,
) -> anyhow::Result<T> {
    netns::within(netns, work)?
}

fn mac(kind: u8, number: u32) -> [u8; 6] {
    let [.., high, low] = number.to_be_bytes();
    [2, 0, 0, kind, high, low]
}

/// As the scene gives them.
pub(crate) fn address(number: u32) -> [u8; 4] {
    [10, 77, (number / 250) as u8, (number % 250 + 1) as u8]
}

/// The end of `n{number}` on the host.
pub(crate) fn end(number: u32) -> String {
    format!("v{number}")
}

/// The number that the kernel gave to `netns`, never used twice.
pub(crate) fn cookie(netns: &File) -> anyhow::Result<u64> {
    inside(netns, || Ok(netns::cookie()?))
}
