//! Who is about to look a route up.
//!
//! A lookup that fails has no next hop to tell its namespace. For local
//! senders the socket call just before it does.

use aya_ebpf::{
    bindings::BPF_ANY,
    helpers::{
        bpf_get_current_pid_tgid,
        generated::{bpf_get_netns_cookie, bpf_ktime_get_ns},
    },
    programs::SockAddrContext,
};
use netobs_common::routes::Sender;

use crate::{calls, kernel, maps};

/// How long a note holds: a socket call looks its route up at once. A thread that
/// has moved to another namespace meanwhile is not to blame the first.
const HOLDS_NS: u64 = 50_000_000;

/// Notes an IPv4 destination.
#[inline(always)]
pub fn note4(ctx: &SockAddrContext) {
    // SAFETY: the context is valid while the program runs.
    let address = unsafe { (*ctx.sock_addr).user_ip4 };
    note(ctx, address);
}

/// Notes an IPv4 destination in IPv6's clothes. IPv6 itself tells its namespace.
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
        note(ctx, address[3]);
    }
}

#[inline(always)]
fn note(ctx: &SockAddrContext, destination: u32) {
    let sender = Sender {
        // SAFETY: the helper takes the program's context.
        cookie: unsafe { bpf_get_netns_cookie(ctx.sock_addr.cast()) },
        destination: kernel::address4(destination),
        at_ns: now(),
    };
    // Without room the least recent thread goes.
    let _ = maps::NETOBS_SENDERS.insert(thread(), sender, BPF_ANY.into());
}

/// The namespace that this thread is about to send to `destination` from; 0 for
/// unknown.
#[inline(never)]
pub fn cookie_for(destination: u32) -> u64 {
    match calls::cookie_for(destination) {
        0 => noted_for(destination),
        cookie => cookie,
    }
}

#[inline(always)]
fn noted_for(destination: u32) -> u64 {
    // SAFETY: only this thread writes the entry.
    match unsafe { maps::NETOBS_SENDERS.get(thread()) } {
        Some(sender)
            if sender.destination == kernel::address4(destination)
                && now() - sender.at_ns < HOLDS_NS =>
        {
            sender.cookie
        }
        _ => 0,
    }
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_ktime_get_ns() }
}

#[inline(always)]
fn thread() -> u32 {
    bpf_get_current_pid_tgid() as u32
}
