//! From a frame to what is counted of it. Touches no map.
//!
//! The common shapes (Ethernet, then IPv4 without options or IPv6 without
//! extension headers, in the linear part of the skb) are read by direct loads,
//! bounds checked in stages. Everything else (tags, options, extension
//! headers, fragments, heads that are not linear, frames cut short, devices
//! without an Ethernet header) goes through [`netobs_slow`], one subprogram that
//! reads by `bpf_skb_load_bytes`, which also sees the skb's fragments.
//!
//! Two rules: the class follows the EtherType and the IP protocol, whatever
//! else is wrong with the packet; and a network header that is cut short
//! leaves the packet in `other` of the family that its EtherType names.

use aya_ebpf::{bindings::__sk_buff, helpers::generated::bpf_skb_load_bytes};
use netobs_common::{
    CLASS_ARP, CLASS_IPV4_ICMP, CLASS_IPV4_OTHER, CLASS_IPV4_TCP, CLASS_IPV4_UDP, CLASS_IPV6,
    CLASS_OTHER,
};

const ETH_LEN: u32 = 14;
const IPV4_LEN: u32 = 20;
const IPV6_LEN: u32 = 40;
/// Up to and including the flags.
const TCP_FLAGS_LEN: u32 = 14;
const UDP_LEN: u32 = 8;

const ETH_P_IPV4: u32 = 0x0800;
const ETH_P_ARP: u32 = 0x0806;
const ETH_P_IPV6: u32 = 0x86dd;
const ETH_P_8021Q: u32 = 0x8100;
const ETH_P_8021AD: u32 = 0x88a8;
/// What QinQ was before 802.1ad.
const ETH_P_QINQ1: u32 = 0x9100;

const PROTO_ICMP: u32 = 1;
const PROTO_TCP: u32 = 6;
const PROTO_UDP: u32 = 17;
const PROTO_ICMPV6: u32 = 58;

const EXT_HOP_BY_HOP: u32 = 0;
const EXT_ROUTING: u32 = 43;
const EXT_FRAGMENT: u32 = 44;
const EXT_AUTH: u32 = 51;
const EXT_DESTINATION: u32 = 60;
const EXT_MOBILITY: u32 = 135;
const EXT_HIP: u32 = 139;
const EXT_SHIM6: u32 = 140;

/// IPv4: "more fragments" and the offset.
const FRAGMENT_BITS: u32 = 0x3fff;
const FRAGMENT_OFFSET: u32 = 0x1fff;

/// Tags that stand in the data; one more may be in the skb's metadata.
const MAX_TAGS: u32 = 4;
/// Extension headers followed; a packet with more is `other`.
const MAX_EXTENSIONS: u32 = 8;

/// What is counted of one frame, packed so that it travels in a register
/// through the call of a subprogram.
///
/// ```text
///  0..4  class     8..16  TCP flags    16 group MAC   17 fragment
/// 18 cut short    32..48  length of the headers that segmentation repeats
/// ```
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Frame(u64);

impl Frame {
    const GROUP: u64 = 1 << 16;
    const FRAGMENT: u64 = 1 << 17;
    const CUT: u64 = 1 << 18;

    #[inline(always)]
    const fn class_only(class: u32) -> Self {
        Self(class as u64)
    }

    #[inline(always)]
    const fn with(self, bits: u64) -> Self {
        Self(self.0 | bits)
    }

    #[inline(always)]
    const fn with_tcp_flags(self, flags: u32) -> Self {
        Self(self.0 | ((flags as u64 & 0xff) << 8))
    }

    #[inline(always)]
    const fn with_header(self, len: u32) -> Self {
        Self(self.0 | ((len as u64 & 0xffff) << 32))
    }

    /// One of the `CLASS_*` constants; at most 15 whatever happens, which
    /// keeps the verifier sure that a cell lies within its record.
    #[inline(always)]
    pub const fn class(self) -> u32 {
        (self.0 & 0xf) as u32
    }

    /// The flags byte of the TCP header, 0 where there is none.
    #[inline(always)]
    pub const fn tcp_flags(self) -> u32 {
        ((self.0 >> 8) & 0xff) as u32
    }

    /// The destination MAC has its group bit set.
    #[inline(always)]
    pub const fn group(self) -> bool {
        self.0 & Self::GROUP != 0
    }

    /// An IP fragment, first or later.
    #[inline(always)]
    pub const fn fragment(self) -> bool {
        self.0 & Self::FRAGMENT != 0
    }

    /// A header ended before its length.
    #[inline(always)]
    pub const fn cut(self) -> bool {
        self.0 & Self::CUT != 0
    }

    /// Length in bytes of the headers in front of the payload; 0 unless asked
    /// for and known.
    #[inline(always)]
    pub const fn header_len(self) -> u32 {
        ((self.0 >> 32) & 0xffff) as u32
    }
}

/// Reads the frame of `skb`. `gso` asks for the header length too.
///
/// # Safety
/// `skb` is the context of a running classifier.
#[inline(always)]
pub unsafe fn read(skb: *mut __sk_buff, no_ethernet: bool, gso: bool) -> Frame {
    if !no_ethernet {
        // SAFETY: the caller's promise.
        if let Some(frame) = unsafe { direct(skb, gso) } {
            return frame;
        }
    }
    // The one call: the verifier walks the subprogram anew for each.
    Frame(netobs_slow(skb, no_ethernet as u64))
}

/// The common shapes; `None` for all others.
#[inline(always)]
unsafe fn direct(skb: *mut __sk_buff, gso: bool) -> Option<Frame> {
    // SAFETY: the verifier checks every access to the context and, against
    // `data_end`, every access to the packet.
    unsafe {
        let data = (*skb).data as usize;
        let end = (*skb).data_end as usize;
        if data + (ETH_LEN + IPV4_LEN) as usize > end {
            return None;
        }
        let group = (byte(data, 0) as u64 & 1) << Frame::GROUP.trailing_zeros();
        let l3 = data + ETH_LEN as usize;
        let (family, protocol, l4) = match be16(data, 12) {
            ETH_P_IPV4 => {
                // Version 4 with a header of 5 words, and no fragment.
                if byte(l3, 0) != 0x45 || be16(l3, 6) & FRAGMENT_BITS != 0 {
                    return None;
                }
                (0, byte(l3, 9), ETH_LEN + IPV4_LEN)
            }
            ETH_P_IPV6 => {
                if data + (ETH_LEN + IPV6_LEN) as usize > end || byte(l3, 0) >> 4 != 6 {
                    return None;
                }
                let next = byte(l3, 6);
                if is_extension(next) {
                    return None;
                }
                (CLASS_IPV6, next, ETH_LEN + IPV6_LEN)
            }
            ETH_P_ARP => return Some(Frame::class_only(CLASS_ARP).with(group)),
            ETH_P_8021Q | ETH_P_8021AD | ETH_P_QINQ1 => return None,
            _ => return Some(Frame::class_only(CLASS_OTHER).with(group)),
        };
        let frame = Frame::class_only(class_of(family, protocol)).with(group);
        if protocol == PROTO_TCP {
            if data + (l4 + TCP_FLAGS_LEN) as usize > end {
                return None;
            }
            let l4_at = data + l4 as usize;
            let frame = frame.with_tcp_flags(byte(l4_at, 13));
            if gso {
                return Some(frame.with_header(l4 + (byte(l4_at, 12) >> 4) * 4));
            }
            return Some(frame);
        }
        if gso && protocol == PROTO_UDP {
            return Some(frame.with_header(l4 + UDP_LEN));
        }
        Some(frame)
    }
}

/// The whole truth, for frames that [`direct`] does not decide. Returns the bits
/// of a [`Frame`] (a subprogram's result must be a scalar).
///
/// `no_mangle` makes it a global function, which the kernel verifies by itself
/// and only once: as a static one it multiplied the verifier's work by ten.
/// <https://github.com/torvalds/linux/blob/v6.18/kernel/bpf/verifier.c>
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn netobs_slow(skb: *mut __sk_buff, no_ethernet: u64) -> u64 {
    // SAFETY: as for `direct`.
    unsafe {
        let mut group = 0;
        let mut at = 0;
        let mut ethertype;
        if no_ethernet != 0 {
            ethertype = u16::from_be((*skb).protocol as u16) as u32;
        } else {
            let Some(mac) = load::<14>(skb, 0) else {
                return Frame::class_only(CLASS_OTHER).with(Frame::CUT).0;
            };
            group = (mac[0] as u64 & 1) << Frame::GROUP.trailing_zeros();
            ethertype = be16_of(mac[12], mac[13]);
            at = ETH_LEN;
            let mut tags = 0;
            while tags < MAX_TAGS {
                if !matches!(ethertype, ETH_P_8021Q | ETH_P_8021AD | ETH_P_QINQ1) {
                    break;
                }
                let Some(tag) = load::<4>(skb, at) else {
                    return Frame::class_only(CLASS_OTHER).with(group | Frame::CUT).0;
                };
                ethertype = be16_of(tag[2], tag[3]);
                at += 4;
                tags += 1;
            }
        }
        match ethertype {
            ETH_P_IPV4 => ipv4(skb, at).with(group).0,
            ETH_P_IPV6 => ipv6(skb, at).with(group).0,
            ETH_P_ARP => Frame::class_only(CLASS_ARP).with(group).0,
            _ => Frame::class_only(CLASS_OTHER).with(group).0,
        }
    }
}

#[inline(always)]
unsafe fn ipv4(skb: *mut __sk_buff, at: u32) -> Frame {
    const CUT: Frame = Frame::class_only(CLASS_IPV4_OTHER).with(Frame::CUT);
    // SAFETY: as for `direct`.
    unsafe {
        let Some(header) = load::<20>(skb, at) else {
            return CUT;
        };
        let header_len = (header[0] as u32 & 0xf) * 4;
        if header[0] >> 4 != 4 || header_len < IPV4_LEN || at + header_len > (*skb).len {
            return CUT;
        }
        let fragment = be16_of(header[6], header[7]);
        let mut frame = Frame::class_only(class_of(0, header[9] as u32));
        if fragment & FRAGMENT_BITS != 0 {
            frame = frame.with(Frame::FRAGMENT);
        }
        if fragment & FRAGMENT_OFFSET != 0 {
            return frame;
        }
        transport(skb, at + header_len, header[9] as u32, frame)
    }
}

#[inline(always)]
unsafe fn ipv6(skb: *mut __sk_buff, at: u32) -> Frame {
    const OTHER: Frame = Frame::class_only(CLASS_IPV6 + CLASS_IPV4_OTHER);
    // SAFETY: as for `direct`.
    unsafe {
        let Some(header) = load::<8>(skb, at) else {
            return OTHER.with(Frame::CUT);
        };
        if header[0] >> 4 != 6 || at + IPV6_LEN > (*skb).len {
            return OTHER.with(Frame::CUT);
        }
        let mut next = header[6] as u32;
        let mut at = at + IPV6_LEN;
        let mut fragment = 0;
        let mut extensions = 0;
        while extensions < MAX_EXTENSIONS {
            if !is_extension(next) {
                break;
            }
            let Some(extension) = load::<8>(skb, at) else {
                return OTHER.with(fragment | Frame::CUT);
            };
            let kind = next;
            next = extension[0] as u32;
            let len = match kind {
                EXT_FRAGMENT => {
                    let bits = be16_of(extension[2], extension[3]);
                    // An offset of 0 without "more" is an atomic fragment:
                    // whole, so not counted (RFC 6946).
                    if bits & 0xfff9 != 0 {
                        fragment = Frame::FRAGMENT;
                    }
                    if bits & 0xfff8 != 0 {
                        // What follows is payload. An extension header named
                        // here stands in the first fragment only.
                        if is_extension(next) {
                            return OTHER.with(fragment);
                        }
                        return Frame::class_only(class_of(CLASS_IPV6, next)).with(fragment);
                    }
                    8
                }
                EXT_AUTH => (extension[1] as u32 + 2) * 4,
                _ => (extension[1] as u32 + 1) * 8,
            };
            at += len;
            if at > (*skb).len {
                return OTHER.with(fragment | Frame::CUT);
            }
            extensions += 1;
        }
        if is_extension(next) {
            return OTHER.with(fragment);
        }
        let frame = Frame::class_only(class_of(CLASS_IPV6, next)).with(fragment);
        transport(skb, at, next, frame)
    }
}

/// Adds what the transport header says, as far as it is there.
#[inline(always)]
unsafe fn transport(skb: *mut __sk_buff, at: u32, protocol: u32, frame: Frame) -> Frame {
    // SAFETY: as for `direct`.
    unsafe {
        match protocol {
            PROTO_TCP => match load::<14>(skb, at) {
                Some(header) => frame
                    .with_tcp_flags(header[13] as u32)
                    .with_header(at + (header[12] as u32 >> 4) * 4),
                None => frame.with(Frame::CUT),
            },
            PROTO_UDP => frame.with_header(at + UDP_LEN),
            _ => frame,
        }
    }
}

/// The class of `protocol` within `family` (0 or [`CLASS_IPV6`]).
#[inline(always)]
fn class_of(family: u32, protocol: u32) -> u32 {
    let icmp = if family == 0 {
        PROTO_ICMP
    } else {
        PROTO_ICMPV6
    };
    family
        + if protocol == PROTO_TCP {
            CLASS_IPV4_TCP
        } else if protocol == PROTO_UDP {
            CLASS_IPV4_UDP
        } else if protocol == icmp {
            CLASS_IPV4_ICMP
        } else {
            CLASS_IPV4_OTHER
        }
}

/// Extension headers of IPv6 that carry a "next header" of their own (IANA,
/// "IPv6 Extension Header Types"; ESP hides it and so ends the walk).
#[inline(always)]
fn is_extension(next: u32) -> bool {
    matches!(
        next,
        EXT_HOP_BY_HOP
            | EXT_ROUTING
            | EXT_FRAGMENT
            | EXT_AUTH
            | EXT_DESTINATION
            | EXT_MOBILITY
            | EXT_HIP
            | EXT_SHIM6
    )
}

#[inline(always)]
unsafe fn byte(base: usize, offset: usize) -> u32 {
    // SAFETY: the caller compared `base + offset` with `data_end`.
    unsafe { *((base + offset) as *const u8) as u32 }
}

#[inline(always)]
unsafe fn be16(base: usize, offset: usize) -> u32 {
    // SAFETY: the caller's promise.
    u16::from_be(unsafe { half(base, offset) }) as u32
}

/// Two bytes with one load; `offset` is even.
///
/// Where a kernel insists on alignment, it knows that frames begin two bytes behind it
/// (`NET_IP_ALIGN`), and its verifier takes that into account.
/// <https://github.com/torvalds/linux/blob/v6.18/kernel/bpf/verifier.c>
#[inline(always)]
unsafe fn half(base: usize, offset: usize) -> u16 {
    // SAFETY: the caller compared `base + offset + 1` with `data_end`.
    unsafe { ((base + offset) as *const u16).read() }
}

/// Whether the frame of `skb` is for everybody.
///
/// # Safety
/// `skb` is the context of a running classifier.
#[inline(always)]
pub unsafe fn is_broadcast(skb: *mut __sk_buff) -> bool {
    // SAFETY: as for `direct`.
    unsafe {
        let data = (*skb).data as usize;
        if data + 6 > (*skb).data_end as usize {
            return load::<6>(skb, 0) == Some([0xff; 6]);
        }
        half(data, 0) & half(data, 2) & half(data, 4) == 0xffff
    }
}

#[inline(always)]
const fn be16_of(high: u8, low: u8) -> u32 {
    ((high as u32) << 8) | low as u32
}

/// Copies `N` bytes from `offset`, `None` where the skb ends before.
#[inline(always)]
unsafe fn load<const N: usize>(skb: *mut __sk_buff, offset: u32) -> Option<[u8; N]> {
    let mut bytes = [0u8; N];
    // SAFETY: the helper writes exactly `N` bytes or fails.
    let failed =
        unsafe { bpf_skb_load_bytes(skb.cast(), offset, bytes.as_mut_ptr().cast(), N as u32) };
    (failed == 0).then_some(bytes)
}
