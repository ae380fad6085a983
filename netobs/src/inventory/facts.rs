//! What was found on the machine, before it means anything.

use crate::model::sample::NsKey;

/// `ARPHRD_ETHER`.
/// <https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/if_arp.h>
const ARPHRD_ETHER: u16 = 1;
/// `ARPHRD_LOOPBACK`: frames have an Ethernet header too.
const ARPHRD_LOOPBACK: u16 = 772;

/// An interface as netlink shows it to its own namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Index.
    pub ifindex: u32,
    /// Name.
    pub name: String,
    /// `veth`, `bridge`, `macvlan`, ... ; `None` for hardware.
    pub kind: Option<String>,
    /// `ARPHRD_*`.
    pub hardware: u16,
    /// Hardware address, `aa:bb:cc:dd:ee:ff`.
    pub mac: Option<String>,
    /// `IFLA_LINK`: index of the other end, or of the device below.
    pub link: Option<u32>,
    /// `IFLA_LINK_NETNSID`: where that is, `None` for the same namespace.
    pub link_nsid: Option<i32>,
    /// Index of the bridge (or other device) that it is a port of.
    pub master: Option<u32>,
    /// `address/prefix length`, IPv4 first.
    pub addresses: Vec<String>,
    /// Appeared a moment ago and is not where it will be, as far as can be told: an
    /// engine makes interfaces in our namespace and then moves them, and of a pair
    /// one end may be seen before the other.
    pub settling: bool,
    /// Appeared a moment ago, or its other end has moved.
    pub young: bool,
    /// Whether its other end is in our namespace.
    pub peer_here: bool,
}

impl Link {
    /// Whether frames begin with an Ethernet header.
    #[must_use]
    pub fn has_ethernet_header(&self) -> bool {
        matches!(self.hardware, ARPHRD_ETHER | ARPHRD_LOOPBACK)
    }

    /// Whether it is the loopback interface.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        self.hardware == ARPHRD_LOOPBACK
    }

    /// Whether it carries what another interface of the same namespace
    /// carries already: a VLAN or macvlan above an interface here.
    #[must_use]
    pub fn is_stacked(&self) -> bool {
        !self.is_veth()
            && self.link_nsid.is_none()
            && self.link.is_some_and(|l| l != self.ifindex && l != 0)
    }

    /// Whether it is one end of a pair.
    #[must_use]
    pub fn is_veth(&self) -> bool {
        matches!(self.kind.as_deref(), Some("veth" | "netkit"))
    }
}

/// A process that keeps a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Its command name.
    pub comm: String,
}

/// A namespace other than ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceFacts {
    /// Cookie, where it could be entered.
    pub cookie: Option<u64>,
    /// Inode.
    pub inode: u64,
    /// The id that our namespace has given it.
    pub nsid: Option<i32>,
    /// Its names for `ip netns`.
    pub names: Vec<String>,
    /// The oldest process in it.
    pub process: Option<Process>,
    /// Its interfaces, or why they are not known.
    pub links: Result<Vec<Link>, String>,
}

impl NamespaceFacts {
    /// The best identity there is.
    #[must_use]
    pub fn key(&self) -> NsKey {
        self.cookie.map_or(NsKey::Inode(self.inode), NsKey::Cookie)
    }
}

/// Our own namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// Cookie.
    pub cookie: Option<u64>,
    /// Inode.
    pub inode: u64,
    /// Its interfaces.
    pub links: Vec<Link>,
}

/// A running container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// `docker` or `podman`.
    pub runtime: String,
    /// Id.
    pub id: String,
    /// Name, without the leading slash.
    pub name: String,
    /// Image.
    pub image: Option<String>,
    /// Its first process.
    pub pid: u32,
    /// When that started, in clock ticks since boot.
    pub started: Option<u64>,
    /// Inode of the namespace it lives in.
    pub inode: Option<u64>,
}

/// Everything found at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Our namespace.
    pub host: HostFacts,
    /// All others.
    pub namespaces: Vec<NamespaceFacts>,
    /// Running containers.
    pub containers: Vec<Container>,
}
