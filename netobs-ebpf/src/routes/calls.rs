//! Whose a lookup is, by the system call that the thread is in.
//!
//! A lookup that fails has no next hop to tell its namespace, but the socket has it,
//! and the number of the socket is in a register. It is read only when a lookup has
//! failed: a program that notes every sender takes several hundred nanoseconds of
//! every datagram and every `connect()`, most of them for the socket's lock.
//! (`BPF_CGROUP_RUN_PROG_UDP4_SENDMSG_LOCK()`)
//! <https://github.com/torvalds/linux/blob/v6.18/include/linux/bpf-cgroup.h>
//!
//! A packet may come in meanwhile and have lookups of its own, and so may a tunnel:
//! the call has to name the destination that was looked up.

use core::ffi::c_void;

use aya_ebpf::helpers::{
    bpf_probe_read_user,
    generated::{self, bpf_get_current_task_btf, bpf_task_pt_regs},
};

use crate::kernel::*;

/// Of x86-64.
/// <https://github.com/torvalds/linux/blob/v6.18/arch/x86/entry/syscalls/syscall_64.tbl>
mod number {
    pub const CONNECT: u64 = 42;
    pub const SENDTO: u64 = 44;
    pub const SENDMSG: u64 = 46;
    pub const SENDMMSG: u64 = 307;
}

/// Datagrams of one `sendmmsg()` that are looked at for the destination.
const MOST_MESSAGES: u64 = 64;
/// `sizeof(struct mmsghdr)`, which begins with a `struct msghdr`, which begins with
/// the pointer to the address.
const MESSAGE: u64 = 64;

const AF_UNSPEC: u16 = 0;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

const UDP: u16 = 17;
const UDPLITE: u16 = 136;

/// The namespace of the socket that the thread is connecting, or of the UDP socket that
/// it is sending by, to `destination`; 0 for unknown.
#[inline(always)]
pub fn cookie_for(destination: u32) -> u64 {
    if NETOBS_CALLS.load() == 0 {
        return 0;
    }
    // SAFETY: the helpers have no preconditions.
    let task: Object = unsafe { bpf_get_current_task_btf() }.cast();
    // SAFETY: likewise.
    let registers = unsafe { bpf_task_pt_regs(task.cast_mut().cast()) } as Object;
    let second: u64 = load(registers, &OFF_REGS_SECOND);
    let call: u64 = load(registers, &OFF_REGS_CALL);
    let names = match call {
        number::CONNECT => is(second, destination),
        number::SENDTO => is(load(registers, &OFF_REGS_FIFTH), destination),
        number::SENDMSG => message_is(second, destination),
        number::SENDMMSG => {
            let messages = load(registers, &OFF_REGS_THIRD);
            is(first_like(second, messages, destination), destination)
        }
        _ => false,
    };
    if !names {
        return 0;
    }
    let any = call == number::CONNECT;
    socket_cookie(task, load(registers, &OFF_REGS_FIRST), any).unwrap_or(0)
}

/// The first address of so many messages that has `destination` in its place; 0 for none.
/// The verifier goes round with us: nothing is asked that can wait until one is found.
#[inline(always)]
fn first_like(messages: u64, number: u64, destination: u32) -> u64 {
    for at in 0..MOST_MESSAGES {
        if at >= number {
            break;
        }
        let address: u64 = glance_user(messages + at * MESSAGE);
        let in_ipv6 = u64::from(glance_user::<u16>(address) == AF_INET6);
        if glance_user::<u32>(address + 4 + 16 * in_ipv6) == destination {
            return address;
        }
    }
    0
}

/// Whether the message's address is `destination`.
#[inline(always)]
fn message_is(message: u64, destination: u32) -> bool {
    read_user(message).is_some_and(|address| is(address, destination))
}

/// Whether the caller's socket address is `destination`, be it in IPv6's clothes.
#[inline(always)]
fn is(address: u64, destination: u32) -> bool {
    match read_user::<[u16; 2]>(address) {
        Some([AF_INET | AF_UNSPEC, _]) => read_user(address + 4) == Some(destination),
        Some([AF_INET6, _]) => {
            read_user(address + 8) == Some([0, 0, 0xffff_u32.to_be(), destination])
        }
        _ => false,
    }
}

#[inline(always)]
fn read_user<T>(address: u64) -> Option<T> {
    if address == 0 {
        return None;
    }
    // SAFETY: the helper reports an address that cannot be read.
    unsafe { bpf_probe_read_user(address as *const T) }.ok()
}

/// The number at `address`; 0 where it cannot be read.
#[inline(always)]
fn glance_user<T: Copy + Default>(address: u64) -> T {
    let mut value = T::default();
    // SAFETY: the helper writes as much as there is room for, and zeros where it fails.
    unsafe {
        generated::bpf_probe_read_user(
            (&raw mut value).cast(),
            size_of::<T>() as u32,
            address as *const c_void,
        );
    }
    value
}

/// The namespace of the socket `number` of the thread, which is one for UDP unless `any`
/// will do.
#[inline(always)]
fn socket_cookie(task: Object, number: u64, any: bool) -> Option<u64> {
    let files: Object = load(task, &OFF_TASK_FILES);
    let table: Object = load(files, &OFF_FILES_TABLE);
    // The call takes 32 bits.
    let number = number & 0xffff_ffff;
    if number >= load::<u32>(table, &OFF_TABLE_LEN).into() {
        return None;
    }
    let file: u64 = probe(load::<u64>(table, &OFF_TABLE_FILES) + number * 8)?;
    let socket: u64 = probe_member(file, &OFF_FILE_DATA)?;
    // Files of other kinds have something else there.
    if file == 0 || probe_member::<u64>(socket, &OFF_SOCKET_FILE)? != file {
        return None;
    }
    let sk: u64 = probe_member(socket, &OFF_SOCKET_SK)?;
    let protocol: u16 = probe_member(sk, &OFF_SK_PROTOCOL)?;
    if !any && protocol != UDP && protocol != UDPLITE {
        return None;
    }
    let net: u64 = probe_member(sk, &OFF_SK_NET)?;
    probe_member(net, &OFF_NET_COOKIE)
}
