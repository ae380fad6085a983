//! Counts one packet.

use aya_ebpf::{bindings::__sk_buff, helpers::bpf_get_smp_processor_id, programs::TcContext};
use aya_log_ebpf::{debug, info, warn};
use netobs_common::{Cell, Record, SlotEntry, TCP_FIN, TCP_RST, TCP_SYN, record_index};

use crate::{
    frame::{self, Frame},
    maps,
};

/// What a namespace sends to a group that it has joined itself, the kernel
/// hands back to it as received on the same interface, without a link-layer
/// header. It never was on the interface, nor do the interface's counters have
/// it. (`PACKET_LOOPBACK`; `dev_loopback_xmit()`)
/// <https://github.com/torvalds/linux/blob/v6.18/net/core/dev.c>
const PACKET_LOOPBACK: u32 = 5;

/// Adds the packet of `ctx` to the record of its interface and direction.
/// `egress` is 1 on the egress hook, 0 on the ingress hook.
///
/// Plain increments: the kernel runs both hooks with bottom halves disabled,
/// so nothing else writes this CPU's record meanwhile.
#[inline(always)]
pub fn packet(ctx: &TcContext, egress: u32) {
    let skb = ctx.skb.skb;
    // SAFETY: the context is valid while the program runs.
    let (ifindex, len, gso_segs) = unsafe { ((*skb).ifindex, (*skb).len, (*skb).gso_segs) };
    let entry = SlotEntry(maps::slot_entry(ifindex));
    let Some(slot) = entry.slot() else {
        no_slot(ctx, ifindex);
        return;
    };
    // SAFETY: as above.
    if egress == 0 && entry.inside() && unsafe { (*skb).pkt_type } == PACKET_LOOPBACK {
        return;
    }
    // SAFETY: as above.
    let frame = unsafe { frame::read(skb, entry.no_ethernet(), gso_segs > 1) };

    // SAFETY: the helper has no preconditions.
    let cpu = unsafe { bpf_get_smp_processor_id() } as u32;
    let index = record_index(slot, entry.direction(egress), cpu, maps::cpus());
    let Some(record) = maps::record(index) else {
        no_record(ctx, index);
        return;
    };
    add(record, frame, len, gso_segs);
    if frame.group() {
        add_group(skb, record);
    }
    if frame.cut() {
        info!(
            ctx,
            "interface {}: a header of class {} ends after {} bytes",
            ifindex,
            frame.class(),
            len
        );
    }
}

#[inline(always)]
fn add(record: *mut Record, frame: Frame, len: u32, gso_segs: u32) {
    let bytes = u64::from(len);
    let (segments, wire_bytes) = if gso_segs > 1 {
        let repeated = u64::from(gso_segs - 1) * u64::from(frame.header_len());
        (u64::from(gso_segs), bytes + repeated)
    } else {
        (1, bytes)
    };
    // SAFETY: `class()` is below 16 and a record has room for 16 cells; the
    // verifier checks the same.
    unsafe {
        let cell = &mut *record.cast::<Cell>().add(frame.class() as usize);
        cell.packets += 1;
        cell.bytes += bytes;
        cell.segments += segments;
        cell.wire_bytes += wire_bytes;
        let flags = frame.tcp_flags();
        if flags & (TCP_SYN | TCP_FIN | TCP_RST) != 0 {
            (*record).syn += u64::from(flags & TCP_SYN != 0);
            (*record).fin += u64::from(flags & TCP_FIN != 0);
            (*record).rst += u64::from(flags & TCP_RST != 0);
        }
        if frame.fragment() {
            (*record).fragments += 1;
        }
    }
}

/// Tells broadcast from multicast. Group addresses are rare, so the other
/// five bytes are looked at only here.
#[inline(always)]
fn add_group(skb: *mut __sk_buff, record: *mut Record) {
    // SAFETY: the context is valid while the program runs, and the record is this
    // CPU's own.
    unsafe {
        if frame::is_broadcast(skb) {
            (*record).broadcast += 1;
        } else {
            (*record).multicast += 1;
        }
    }
}

/// The program runs on an interface that nobody gave a slot: between a
/// detach and the end of its grace period, or after a move.
#[inline(always)]
fn no_slot(ctx: &TcContext, ifindex: u32) {
    if let Some(stray) = maps::stray() {
        // SAFETY: per-CPU, bottom halves disabled.
        unsafe { (*stray).no_slot += 1 };
    }
    debug!(ctx, "interface {} has no slot", ifindex);
}

#[inline(always)]
fn no_record(ctx: &TcContext, index: u32) {
    if let Some(stray) = maps::stray() {
        // SAFETY: per-CPU, bottom halves disabled.
        unsafe { (*stray).no_record += 1 };
    }
    warn!(ctx, "record {} lies outside the counters map", index);
}
