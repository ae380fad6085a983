//! The eBPF programs of netobs: two TC classifiers, shared by all interfaces.
//!
//! They only count. Both return `TCX_NEXT` (-1, the same as `TC_ACT_UNSPEC`):
//! any other verdict would end the chain of programs on the hook and hide the
//! packet from those behind.
//! <https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/bpf.h>
#![no_std]
#![no_main]
#![expect(
    missing_docs,
    reason = "the macro makes undocumented functions beside the documented ones"
)]

mod count;
mod frame;
mod maps;

use aya_ebpf::{macros::classifier, programs::TcContext};

const TCX_NEXT: i32 = -1;

/// Runs for every packet that enters through an observed interface.
#[classifier]
pub fn netobs_ingress(ctx: TcContext) -> i32 {
    count::packet(&ctx, 0);
    TCX_NEXT
}

/// Runs for every packet that leaves through an observed interface.
#[classifier]
pub fn netobs_egress(ctx: TcContext) -> i32 {
    count::packet(&ctx, 1);
    TCX_NEXT
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
