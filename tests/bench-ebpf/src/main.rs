//! What the programs of netobs are compared with: programs that do nothing (the
//! floor: what the kernel's hooks cost), and the usual design of an agent that
//! reports flows.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![expect(
    missing_docs,
    reason = "the macro makes undocumented functions beside the documented ones"
)]

use core::{arch::asm, mem::zeroed};

use aya_ebpf::{
    btf_maps::LruHashMap,
    helpers::bpf_ktime_get_ns,
    macros::{btf_map, btf_tracepoint, classifier},
    programs::{BtfTracePointContext, TcContext},
};

const TCX_NEXT: i32 = -1;

/// Nothing, for every packet that enters.
#[classifier]
pub fn empty_ingress(_: TcContext) -> i32 {
    TCX_NEXT
}

/// Nothing, for every packet that leaves.
#[classifier]
pub fn empty_egress(_: TcContext) -> i32 {
    TCX_NEXT
}

/// Nothing, for every visit to a table.
#[btf_tracepoint(function = "fib_table_lookup")]
pub fn empty_visit(_: BtfTracePointContext) -> i32 {
    0
}

/// Nothing, for every packet that is received.
#[btf_tracepoint(function = "netif_receive_skb")]
pub fn empty_receive(_: BtfTracePointContext) -> i32 {
    0
}

/// Nothing, for every packet that is dropped.
#[btf_tracepoint(function = "kfree_skb")]
pub fn empty_drop(_: BtfTracePointContext) -> i32 {
    0
}

/// A flow as its packets tell it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct FlowKey {
    source: [u8; 16],
    destination: [u8; 16],
    ifindex: u32,
    source_port: u16,
    destination_port: u16,
    ether_type: u16,
    protocol: u8,
    direction: u8,
}

/// What is kept of it.
#[repr(C)]
pub struct Flow {
    packets: u64,
    bytes: u64,
    first_ns: u64,
    last_ns: u64,
    flags: u64,
}

/// More than such agents have by default: here nobody takes flows out.
#[btf_map]
static BENCH_FLOWS: LruHashMap<FlowKey, Flow, 65536> = LruHashMap::new();

/// One flow's record per packet that enters.
#[classifier]
pub fn flow_ingress(ctx: TcContext) -> i32 {
    let _ = account(&ctx, 0);
    TCX_NEXT
}

/// One flow's record per packet that leaves.
#[classifier]
pub fn flow_egress(ctx: TcContext) -> i32 {
    let _ = account(&ctx, 1);
    TCX_NEXT
}

#[repr(C)]
struct Ethernet {
    destination: [u8; 6],
    source: [u8; 6],
    ether_type: [u8; 2],
}

#[repr(C)]
struct Ipv4 {
    version_and_length: u8,
    service: u8,
    length: [u8; 2],
    id: [u8; 2],
    fragment: [u8; 2],
    hops: u8,
    protocol: u8,
    checksum: [u8; 2],
    source: [u8; 4],
    destination: [u8; 4],
}

#[repr(C)]
struct Ipv6 {
    version_and_flow: [u8; 4],
    length: [u8; 2],
    protocol: u8,
    hops: u8,
    source: [u8; 16],
    destination: [u8; 16],
}

/// The flags of a TCP header stand in its second word from the fourth.
const TCP_FLAGS: usize = 13;

/// The `T` at `offset`, where the packet has one.
#[inline(always)]
fn at<T>(ctx: &TcContext, offset: usize) -> Option<&T> {
    let start = ctx.data() + offset;
    if start + size_of::<T>() > ctx.data_end() {
        return None;
    }
    // SAFETY: within the packet, as just checked; bytes only, of any alignment.
    Some(unsafe { &*(start as *const T) })
}

#[inline(always)]
fn account(ctx: &TcContext, direction: u8) -> Option<()> {
    let ethernet: &Ethernet = at(ctx, 0)?;
    // SAFETY: the context is valid while the program runs.
    let (ifindex, len) = unsafe { ((*ctx.skb.skb).ifindex, (*ctx.skb.skb).len) };
    // SAFETY: integers only.
    let mut key: FlowKey = unsafe { zeroed() };
    key.ifindex = ifindex;
    key.direction = direction;
    key.ether_type = u16::from_be_bytes(ethernet.ether_type);
    let mut ports = size_of::<Ethernet>();
    match key.ether_type {
        0x0800 => {
            let ip: &Ipv4 = at(ctx, ports)?;
            key.source[..4].copy_from_slice(&ip.source);
            key.destination[..4].copy_from_slice(&ip.destination);
            key.protocol = ip.protocol;
            ports += size_of::<Ipv4>();
        }
        0x86dd => {
            let ip: &Ipv6 = at(ctx, ports)?;
            key.source = ip.source;
            key.destination = ip.destination;
            key.protocol = ip.protocol;
            ports += size_of::<Ipv6>();
        }
        _ => {}
    }
    let mut flags = 0;
    if key.protocol == 6 || key.protocol == 17 {
        let [a, b, c, d] = *at::<[u8; 4]>(ctx, ports)?;
        key.source_port = u16::from_be_bytes([a, b]);
        key.destination_port = u16::from_be_bytes([c, d]);
        if key.protocol == 6 {
            flags = u64::from(*at::<u8>(ctx, ports + TCP_FLAGS)?);
        }
    }
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    if let Some(flow) = BENCH_FLOWS.get_ptr_mut(key) {
        // SAFETY: a map's value, alive while the program runs. What is not atomic is the
        // latest's to write.
        unsafe {
            add(&raw mut (*flow).packets, 1);
            add(&raw mut (*flow).bytes, len.into());
            (*flow).last_ns = now;
            (*flow).flags |= flags;
        }
        return Some(());
    }
    let fresh = Flow {
        packets: 1,
        bytes: len.into(),
        first_ns: now,
        last_ns: now,
        flags,
    };
    // Full only where every flow is in use on another CPU.
    let _ = BENCH_FLOWS.insert(key, &fresh, 0);
    Some(())
}

/// Adds with an atomic instruction; Rust has none for this target.
#[inline(always)]
fn add(counter: *mut u64, amount: u64) {
    // SAFETY: the counter is in a map's value: aligned, and alive while we run.
    unsafe {
        asm!(
            "lock *(u64 *)({counter} + 0) += {amount}",
            counter = in(reg) counter,
            amount = in(reg) amount,
            options(nostack),
        );
    }
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
