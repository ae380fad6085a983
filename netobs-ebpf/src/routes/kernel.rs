//! Reading the kernel's structures.
//!
//! Offsets come from the kernel's own BTF: user space writes them into
//! read-only globals before the verifier looks, which then takes them for
//! constants and checks every load against the type that it knows.

use core::ffi::c_void;

use aya_ebpf::{Global, helpers::bpf_probe_read_kernel};
use netobs_common::routes::ABSENT;

/// An object of the kernel's.
pub type Object = *const c_void;

macro_rules! globals {
    ($($(#[$doc:meta])* $name:ident: $kind:ty = $value:expr;)*) => {
        $($(#[$doc])* #[unsafe(no_mangle)] pub static $name: Global<$kind> = Global::new($value);)*
    };
}

globals! {
    /// Cookie of the namespace that netobs runs in.
    NETOBS_HOST: u64 = 0;
    /// 1 to count per route and destination.
    NETOBS_DETAIL: u32 = 0;

    OFF_DEV_NET: u32 = ABSENT;
    OFF_DEV_IFINDEX: u32 = ABSENT;
    OFF_NET_COOKIE: u32 = ABSENT;

    OFF_FL4_OIF: u32 = ABSENT;
    OFF_FL4_IIF: u32 = ABSENT;
    OFF_FL4_PROTO: u32 = ABSENT;
    OFF_FL4_L3MDEV: u32 = ABSENT;
    OFF_FL4_SADDR: u32 = ABSENT;
    OFF_FL4_DADDR: u32 = ABSENT;
    OFF_NHC_DEV: u32 = ABSENT;
    OFF_NHC_OIF: u32 = ABSENT;
    OFF_NHC_SCOPE: u32 = ABSENT;
    OFF_NHC_GW_FAMILY: u32 = ABSENT;
    OFF_NHC_GW: u32 = ABSENT;
    OFF_NET_DISSECT: u32 = ABSENT;
    OFF_NET_ADDRESSES: u32 = ABSENT;
    OFF_DEV_IN: u32 = ABSENT;
    OFF_IN_ADDRESSES: u32 = ABSENT;
    OFF_IFA_NEXT: u32 = ABSENT;
    OFF_IFA_ADDRESS: u32 = ABSENT;
    OFF_IFA_MASK: u32 = ABSENT;
    OFF_IFA_BROADCAST: u32 = ABSENT;

    /// 1 where all that follows is known.
    NETOBS_CALLS: u32 = 0;
    OFF_REGS_CALL: u32 = ABSENT;
    OFF_REGS_FIRST: u32 = ABSENT;
    OFF_REGS_SECOND: u32 = ABSENT;
    OFF_REGS_THIRD: u32 = ABSENT;
    OFF_REGS_FIFTH: u32 = ABSENT;
    OFF_TASK_FILES: u32 = ABSENT;
    OFF_FILES_TABLE: u32 = ABSENT;
    OFF_TABLE_FILES: u32 = ABSENT;
    OFF_TABLE_LEN: u32 = ABSENT;
    OFF_FILE_DATA: u32 = ABSENT;
    OFF_SOCKET_FILE: u32 = ABSENT;
    OFF_SOCKET_SK: u32 = ABSENT;
    OFF_SK_PROTOCOL: u32 = ABSENT;
    OFF_SK_NET: u32 = ABSENT;

    OFF_FL6_IIF: u32 = ABSENT;
    OFF_FL6_PROTO: u32 = ABSENT;
    OFF_FL6_SADDR: u32 = ABSENT;
    OFF_FL6_DADDR: u32 = ABSENT;
    OFF_NET_NULL6: u32 = ABSENT;
    OFF_RES6_NH: u32 = ABSENT;
    OFF_RES6_F6I: u32 = ABSENT;
    OFF_RES6_TYPE: u32 = ABSENT;
    OFF_TB6_ID: u32 = ABSENT;
    OFF_F6I_ADDR: u32 = ABSENT;
    OFF_F6I_LEN: u32 = ABSENT;
    OFF_NH6_COMMON: u32 = ABSENT;

    OFF_SKB_PROTOCOL: u32 = ABSENT;
    OFF_SKB_DEV: u32 = ABSENT;
    OFF_SKB_HEAD: u32 = ABSENT;
    OFF_SKB_DATA: u32 = ABSENT;
    OFF_SKB_NETWORK: u32 = ABSENT;
    OFF_SKB_DST: u32 = ABSENT;
    OFF_DST_ERROR: u32 = ABSENT;

    REASON_NOT_SPECIFIED: u32 = ABSENT;
    REASON_INNOROUTES: u32 = ABSENT;
    REASON_INADDRERRORS: u32 = ABSENT;
    REASON_RPFILTER: u32 = ABSENT;
    REASON_LOCAL_SOURCE: u32 = ABSENT;
    REASON_INVALID_SOURCE: u32 = ABSENT;
    REASON_LOCALNET: u32 = ABSENT;
    REASON_INVALID_DEST: u32 = ABSENT;
}

/// The member at the offset `field` of `object`.
#[inline(always)]
pub fn load<T: Copy>(object: Object, field: &Global<u32>) -> T {
    load_at(object, field.load())
}

/// The member `offset` bytes into `object`.
#[inline(always)]
pub fn load_at<T: Copy>(object: Object, offset: u32) -> T {
    // SAFETY: the verifier knows the type of `object` and refuses a load that
    // does not fit it; the kernel handles the fault of a pointer gone stale.
    unsafe {
        object
            .cast::<u8>()
            .add(offset as usize)
            .cast::<T>()
            .read_volatile()
    }
}

/// An IPv6 address at the offset `field` of `object`, word by word: the
/// kernel's type is a union of arrays.
#[inline(always)]
pub fn load_address6(object: Object, field: &Global<u32>) -> [u8; 16] {
    let at = field.load();
    words([
        load_at(object, at),
        load_at(object, at + 4),
        load_at(object, at + 8),
        load_at(object, at + 12),
    ])
}

/// Words as they are in memory.
#[inline(always)]
pub fn words(words: [u32; 4]) -> [u8; 16] {
    // SAFETY: both are 16 bytes of plain data.
    unsafe { core::mem::transmute(words) }
}

/// An IPv4 address in the first four bytes.
#[inline(always)]
pub fn address4(address: u32) -> [u8; 16] {
    words([address, 0, 0, 0])
}

/// Reads from an address that the verifier knows nothing of. Slower than
/// [`load`], so not for what happens with every packet.
#[inline(always)]
pub fn probe<T>(address: u64) -> Option<T> {
    // SAFETY: the helper reports an address that cannot be read.
    unsafe { bpf_probe_read_kernel(address as *const T) }.ok()
}

/// The member at the offset `field` of what is at `object`, see [`probe`].
#[inline(always)]
pub fn probe_member<T>(object: u64, field: &Global<u32>) -> Option<T> {
    probe(object + u64::from(field.load()))
}

/// Cookie of the namespace that a device is in; 0 for no device.
#[inline(always)]
pub fn cookie_of(device: Object) -> u64 {
    if device.is_null() {
        return 0;
    }
    let net: Object = load(device, &OFF_DEV_NET);
    if net.is_null() {
        return 0;
    }
    load(net, &OFF_NET_COOKIE)
}
