//! The eBPF programs of netobs that follow the kernel's routing decisions.
//!
//! They only count. The tracepoint programs read what the kernel passes to
//! them; the cgroup programs let every call pass.
//!
//! `tracepoint` is one way to see decisions. Another one (`fexit`) would be
//! other entry points over the same [`account`].
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![expect(
    missing_docs,
    reason = "the macro makes undocumented functions beside the documented ones"
)]

mod account;
mod behalf;
mod calls;
mod drops;
mod ipv4;
mod ipv6;
mod kernel;
mod maps;
mod senders;

use aya_ebpf::{
    macros::{btf_tracepoint, cgroup_sock_addr},
    programs::{BtfTracePointContext, SockAddrContext},
};

/// Let the call go on.
const ALLOW: i32 = 1;

/// A table was visited for an IPv4 flow.
/// <https://github.com/torvalds/linux/blob/v6.18/include/trace/events/fib.h>
#[btf_tracepoint(function = "fib_table_lookup")]
pub fn netobs_ipv4_visit(ctx: BtfTracePointContext) -> i32 {
    ipv4::visit(&ctx);
    0
}

/// A table was visited for an IPv6 flow.
/// <https://github.com/torvalds/linux/blob/v6.18/include/trace/events/fib6.h>
#[btf_tracepoint(function = "fib6_table_lookup")]
pub fn netobs_ipv6_visit(ctx: BtfTracePointContext) -> i32 {
    ipv6::visit(&ctx);
    0
}

/// A packet is dropped.
/// <https://github.com/torvalds/linux/blob/v6.18/include/trace/events/skb.h>
#[btf_tracepoint(function = "kfree_skb")]
pub fn netobs_drop(ctx: BtfTracePointContext) -> i32 {
    drops::dropped(&ctx);
    0
}

/// A packet was received.
/// <https://github.com/torvalds/linux/blob/v6.18/include/trace/events/net.h>
#[btf_tracepoint(function = "netif_receive_skb")]
pub fn netobs_receive(ctx: BtfTracePointContext) -> i32 {
    drops::received(&ctx);
    0
}

/// A socket is being connected.
#[cgroup_sock_addr(connect4)]
pub fn netobs_connect4(ctx: SockAddrContext) -> i32 {
    senders::note4(&ctx);
    ALLOW
}

/// A socket is being connected.
#[cgroup_sock_addr(connect6)]
pub fn netobs_connect6(ctx: SockAddrContext) -> i32 {
    senders::note6(&ctx);
    ALLOW
}

/// A datagram is sent by a socket that is not connected.
#[cgroup_sock_addr(sendmsg4)]
pub fn netobs_sendmsg4(ctx: SockAddrContext) -> i32 {
    senders::note4(&ctx);
    ALLOW
}

/// A datagram is sent by a socket that is not connected.
#[cgroup_sock_addr(sendmsg6)]
pub fn netobs_sendmsg6(ctx: SockAddrContext) -> i32 {
    senders::note6(&ctx);
    ALLOW
}

/// What the kernel reads to know which helpers may be used.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}
