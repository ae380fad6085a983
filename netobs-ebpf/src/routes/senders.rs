//! Who is about to look a route up.
//!
//! A lookup that fails has no next hop to tell its namespace. For local
//! senders the socket call just before it does.

use aya_ebpf::{
    bindings::BPF_ANY,
    helpers::{bpf_get_current_pid_tgid, generated::bpf_get_netns_cookie},
    programs::SockAddrContext,
};
use netobs_common::routes::{FAMILY_IPV4, FAMILY_IPV6, Sender};

use crate::{kernel, maps};

/// Notes an IPv4 destination.
#[inline(always)]
pub fn note4(ctx: &SockAddrContext) {
    // SAFETY: the context is valid while the program runs.
    let address = unsafe { (*ctx.sock_addr).user_ip4 };
    note(ctx, FAMILY_IPV4, kernel::address4(address));
}

/// Notes an IPv6 destination, or an IPv4 one in IPv6's clothes.
#[inline(always)]
pub fn note6(ctx: &SockAddrContext) {
    let from = ctx.sock_addr;
    // SAFETY: the context is valid while the program runs. One by one: the
    // kernel takes no other loads.
    let address = unsafe {
        [
            (&raw const (*from).user_ip6[0]).read_volatile(),
            (&raw const (*from).user_ip6[1]).read_volatile(),
            (&raw const (*from).user_ip6[2]).read_volatile(),
            (&raw const (*from).user_ip6[3]).read_volatile(),
        ]
    };
    if address[0] == 0 && address[1] == 0 && address[2] == 0xffff_u32.to_be() {
        note(ctx, FAMILY_IPV4, kernel::address4(address[3]));
    } else {
        note(ctx, FAMILY_IPV6, kernel::words(address));
    }
}

#[inline(always)]
fn note(ctx: &SockAddrContext, family: u32, destination: [u8; 16]) {
    // SAFETY: the helper takes the program's context.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.sock_addr.cast()) };
    let sender = Sender {
        cookie,
        destination,
        family,
        reserved: 0,
    };
    // Without room the least recent thread goes.
    let _ = maps::NETOBS_SENDERS.insert(thread(), sender, BPF_ANY.into());
}

/// The namespace that this thread is about to send to `destination` from; 0 for
/// unknown.
#[inline(always)]
pub fn cookie_for(destination: u32) -> u64 {
    // SAFETY: only this thread writes the entry.
    match unsafe { maps::NETOBS_SENDERS.get(thread()) } {
        Some(sender)
            if sender.family == FAMILY_IPV4
                && sender.destination == kernel::address4(destination) =>
        {
            sender.cookie
        }
        _ => 0,
    }
}

#[inline(always)]
fn thread() -> u32 {
    bpf_get_current_pid_tgid() as u32
}
