//! Routes and what met them: pure data.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netobs_common::routes::{
    CLASS_BLACKHOLE, CLASS_MARTIAN, CLASS_NO_ROUTE, CLASS_PROHIBIT, CLASS_RP_FILTER,
    CLASS_UNREACHABLE, FAMILY_IPV4, FailureKey, HIT_GATEWAY6, HIT_IMPLICIT, HitKey, ORIGIN_FORWARD,
    ORIGIN_INPUT, ORIGIN_OUTPUT,
};

/// The table of local addresses.
pub const TABLE_LOCAL: u32 = 255;
/// The table that routes are in unless somebody says otherwise.
pub const TABLE_MAIN: u32 = 254;
/// The table that is looked at last.
pub const TABLE_DEFAULT: u32 = 253;

/// `RTPROT_KERNEL`: a route that the kernel made by itself.
pub const PROTOCOL_KERNEL: u8 = 2;

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

impl Family {
    /// As in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
        }
    }

    /// Length of an address in bits.
    #[must_use]
    pub fn bits(self) -> u8 {
        match self {
            Self::Ipv4 => 32,
            Self::Ipv6 => 128,
        }
    }

    fn from_kernel(family: u8) -> Self {
        if u32::from(family) == FAMILY_IPV4 {
            Self::Ipv4
        } else {
            Self::Ipv6
        }
    }

    fn address(self, bytes: [u8; 16]) -> IpAddr {
        match self {
            Self::Ipv4 => Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).into(),
            Self::Ipv6 => Ipv6Addr::from(bytes).into(),
        }
    }
}

/// What a decision was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// A local sender.
    Output,
    /// A received packet that is for this namespace.
    Input,
    /// A received packet that is for elsewhere.
    Forward,
}

impl Origin {
    /// As in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Output => "output",
            Self::Input => "input",
            Self::Forward => "forward",
        }
    }
}

/// A number from the kernel's side that means nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unknown;

impl TryFrom<u8> for Origin {
    type Error = Unknown;

    fn try_from(origin: u8) -> Result<Self, Unknown> {
        match u32::from(origin) {
            ORIGIN_OUTPUT => Ok(Self::Output),
            ORIGIN_INPUT => Ok(Self::Input),
            ORIGIN_FORWARD => Ok(Self::Forward),
            _ => Err(Unknown),
        }
    }
}

/// Why a decision failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FailureClass {
    /// No table has a route.
    NoRoute,
    /// An unreachable route, or a packet for elsewhere where forwarding is off.
    Unreachable,
    /// A blackhole route.
    Blackhole,
    /// A prohibit route.
    Prohibit,
    /// The source of a received packet is not where it came from.
    RpFilter,
    /// An address that a packet must not have.
    Martian,
}

impl FailureClass {
    /// As in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoRoute => "no_route",
            Self::Unreachable => "unreachable",
            Self::Blackhole => "blackhole",
            Self::Prohibit => "prohibit",
            Self::RpFilter => "rp_filter",
            Self::Martian => "martian",
        }
    }
}

impl TryFrom<u8> for FailureClass {
    type Error = Unknown;

    fn try_from(class: u8) -> Result<Self, Unknown> {
        match u32::from(class) {
            CLASS_NO_ROUTE => Ok(Self::NoRoute),
            CLASS_UNREACHABLE => Ok(Self::Unreachable),
            CLASS_BLACKHOLE => Ok(Self::Blackhole),
            CLASS_PROHIBIT => Ok(Self::Prohibit),
            CLASS_RP_FILTER => Ok(Self::RpFilter),
            CLASS_MARTIAN => Ok(Self::Martian),
            _ => Err(Unknown),
        }
    }
}

/// `RTN_*`: what a route does with a packet.
/// <https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/rtnetlink.h>
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteType(pub u8);

impl RouteType {
    /// Not known.
    pub const UNKNOWN: Self = Self(0);
    /// Sends it on.
    pub const UNICAST: Self = Self(1);
    /// Takes it.
    pub const LOCAL: Self = Self(2);
    /// Throws it away.
    pub const BLACKHOLE: Self = Self(6);
    /// Goes on with the next table.
    pub const THROW: Self = Self(9);

    const NAMES: [&'static str; 12] = [
        "unspec",
        "unicast",
        "local",
        "broadcast",
        "anycast",
        "multicast",
        "blackhole",
        "unreachable",
        "prohibit",
        "throw",
        "nat",
        "xresolve",
    ];

    /// As `ip route` names it; its number where that has no name.
    #[must_use]
    pub fn name(self) -> String {
        Self::NAMES
            .get(usize::from(self.0))
            .map_or_else(|| self.0.to_string(), |name| (*name).to_owned())
    }

    /// Whether it is for an address of the namespace itself, or of a group that it
    /// is in.
    #[must_use]
    pub fn is_own_address(self) -> bool {
        (2..=5).contains(&self.0)
    }

    /// Whether it sends packets nowhere: it has no next hop then.
    #[must_use]
    pub fn rejects(self) -> bool {
        (6..=9).contains(&self.0)
    }
}

/// A block of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    /// The first of them.
    pub address: IpAddr,
    /// How many leading bits they share.
    pub len: u8,
}

impl Prefix {
    /// The block of `len` bits that `address` is in.
    #[must_use]
    pub fn of(address: IpAddr, len: u8) -> Self {
        let address = match address {
            IpAddr::V4(v4) => {
                let mask = u32::MAX
                    .checked_shl(32 - u32::from(len.min(32)))
                    .unwrap_or(0);
                Ipv4Addr::from_bits(v4.to_bits() & mask).into()
            }
            IpAddr::V6(v6) => {
                let mask = u128::MAX
                    .checked_shl(128 - u32::from(len.min(128)))
                    .unwrap_or(0);
                Ipv6Addr::from_bits(v6.to_bits() & mask).into()
            }
        };
        Self { address, len }
    }

    /// The family of its addresses.
    #[must_use]
    pub fn family(&self) -> Family {
        match self.address {
            IpAddr::V4(_) => Family::Ipv4,
            IpAddr::V6(_) => Family::Ipv6,
        }
    }

    /// Whether `address` is one of them.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        Self::of(address, self.len) == *self
    }
}

impl std::fmt::Display for Prefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.len)
    }
}

/// Where a route sends packets to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hop {
    /// Through this router; `None` for neighbours.
    pub gateway: Option<IpAddr>,
    /// By this interface.
    pub ifindex: Option<u32>,
}

/// A route, as netlink tells of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Route {
    /// In this table.
    pub table: u32,
    /// For these destinations.
    pub prefix: Prefix,
    /// What it does.
    pub kind: RouteType,
    /// Where to: one of these, as the kernel spreads flows over them. None where
    /// it rejects.
    pub hops: Vec<Hop>,
    /// The next hop object that it uses.
    pub nexthop: Option<u32>,
    /// `RTPROT_*`: who made it.
    pub protocol: u8,
    /// `RT_SCOPE_*`.
    pub scope: u8,
    /// Less is better.
    pub metric: u32,
    /// The source address that senders get.
    pub source: Option<IpAddr>,
}

/// What a decision ended with, as the kernel told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Hit {
    /// What it was for.
    pub origin: Origin,
    /// The table that was visited, 0 for unknown; main may stand for local too.
    pub table: u32,
    /// The address that was looked up, as a prefix of full length; the route's
    /// prefix where `exact`.
    pub prefix: Prefix,
    /// Whether the kernel told the route's prefix.
    pub exact: bool,
    /// No route matched: the socket was bound to an interface.
    pub implicit: bool,
    /// The route's type, [`RouteType::UNKNOWN`] where the kernel did not tell.
    pub kind: RouteType,
    /// Where to. Of several next hops it is the first: the kernel tells before it
    /// chooses one.
    pub hop: Hop,
}

impl TryFrom<&HitKey> for Hit {
    type Error = Unknown;

    fn try_from(key: &HitKey) -> Result<Self, Unknown> {
        let family = Family::from_kernel(key.family);
        let address = family.address(key.destination);
        let exact = key.prefix_len <= family.bits();
        let gateway_family = if key.flags & HIT_GATEWAY6 != 0 {
            Family::Ipv6
        } else {
            Family::Ipv4
        };
        Ok(Self {
            origin: key.origin.try_into()?,
            table: key.table,
            prefix: if exact {
                Prefix::of(address, key.prefix_len)
            } else {
                Prefix::of(address, family.bits())
            },
            exact,
            implicit: key.flags & HIT_IMPLICIT != 0,
            kind: RouteType(key.route_type),
            hop: Hop {
                gateway: (key.gateway != [0; 16]).then(|| gateway_family.address(key.gateway)),
                ifindex: (key.ifindex != 0).then_some(key.ifindex),
            },
        })
    }
}

/// A failed decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What it was for.
    pub origin: Origin,
    /// Why.
    pub class: FailureClass,
    /// What was looked up.
    pub destination: IpAddr,
    /// The kernel's number for the reason of the drop, `None` where nothing was
    /// dropped.
    pub reason: Option<u32>,
    /// How often.
    pub count: u64,
}

impl Failure {
    /// The kernel's `key` and `count`.
    ///
    /// # Errors
    /// Where a number in it means nothing.
    pub fn new(key: &FailureKey, count: u64) -> Result<Self, Unknown> {
        Ok(Self {
            origin: key.origin.try_into()?,
            class: key.class.try_into()?,
            destination: Family::from_kernel(key.family).address(key.destination),
            reason: (key.reason != 0).then_some(key.reason),
            count,
        })
    }
}

/// How sure it is which route a decision met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Match {
    /// The kernel told its prefix.
    Exact,
    /// By the longest prefix, among those with its table and next hop.
    Inferred,
    /// No route: the socket was bound to an interface.
    Implicit,
}

impl Match {
    /// As in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Inferred => "inferred",
            Self::Implicit => "implicit",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_hold_what_they_should() {
        let prefix = |text: &str, len| Prefix::of(text.parse().expect("an address"), len);
        let holds = |prefix: Prefix, text: &str| prefix.contains(text.parse().expect("an address"));
        assert_eq!(prefix("10.1.2.3", 8).to_string(), "10.0.0.0/8");
        assert_eq!(prefix("10.1.2.3", 0).to_string(), "0.0.0.0/0");
        assert_eq!(prefix("10.1.2.3", 32).to_string(), "10.1.2.3/32");
        assert_eq!(prefix("fd00::1", 64).to_string(), "fd00::/64");
        assert_eq!(prefix("fd00::1", 0).to_string(), "::/0");
        assert!(holds(prefix("10.0.0.0", 8), "10.255.0.1"));
        assert!(!holds(prefix("10.0.0.0", 8), "11.0.0.0"));
        assert!(holds(prefix("0.0.0.0", 0), "8.8.8.8"));
        assert!(!holds(prefix("0.0.0.0", 0), "::1"));
    }

    #[test]
    fn numbers_from_the_kernel_are_checked() {
        let mut key = HitKey {
            origin: 9,
            ..HitKey::default()
        };
        assert!(Hit::try_from(&key).is_err());
        key.origin = 2;
        key.prefix_len = 255;
        let hit = Hit::try_from(&key).expect("known numbers");
        assert_eq!((hit.exact, hit.prefix.len), (false, 32));
        let failure = FailureKey {
            class: 77,
            ..FailureKey::default()
        };
        assert!(Failure::new(&failure, 1).is_err());
        assert_eq!(RouteType(200).name(), "200");
    }
}
