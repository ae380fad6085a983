//! Hash maps without aya's types: whole maps read with few system calls, and
//! single entries of maps whose type is known elsewhere.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _},
};

use aya::maps::MapData;
use nix::libc;

/// Bytes of keys and values to ask for at a time.
const BATCH_BYTES: usize = 512 << 10;
/// Entries at least: a bucket of the map has to fit.
const FEWEST: usize = 64;

/// `BPF_MAP_LOOKUP_BATCH` of `enum bpf_cmd`, since Linux 5.6.
/// <https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/bpf.h>
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
/// `BPF_MAP_UPDATE_ELEM`.
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
/// `BPF_MAP_DELETE_ELEM`.
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
/// Make the entry, and leave one that is there alone.
const BPF_NOEXIST: u64 = 1;

/// The `batch` member of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// A key or value of a map.
///
/// # Safety
/// It is all integers and has no padding, so that any bytes are one.
#[expect(
    unsafe_code,
    reason = "who implements it promises what the kernel needs"
)]
// SAFETY: a trait; see its implementations.
pub(super) unsafe trait Bytes: Copy + Default {}

#[expect(unsafe_code, reason = "integers are bytes")]
// SAFETY: integers.
unsafe impl Bytes for u64 {}

/// What a map has.
#[derive(Debug)]
pub(super) struct Entries<K, V> {
    keys: Vec<K>,
    values: Vec<V>,
    /// Values of a key.
    each: usize,
}

impl<K, V> Entries<K, V> {
    /// Keys with their values.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &[V])> {
        self.keys.iter().zip(self.values.chunks(self.each))
    }
}

/// All entries of the hash map `map`: each key with its values, of which there are `each`,
/// one per CPU for a per-CPU map, else one. Entries that come or go meanwhile may or
/// may not be among them, and one may be there twice.
///
/// # Errors
/// Where the kernel refuses.
pub(super) fn entries<K: Bytes, V: Bytes>(map: &MapData, each: usize) -> io::Result<Entries<K, V>> {
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    let mut position = 0u64;
    let entry = size_of::<K>() + each * size_of::<V>();
    let mut room = (BATCH_BYTES / entry).max(FEWEST);
    let mut first = true;
    loop {
        let mut next = 0u64;
        let known = keys.len();
        keys.resize(known + room, K::default());
        values.resize((known + room) * each, V::default());
        let mut attributes = Attributes {
            in_batch: if first { 0 } else { &raw const position as u64 },
            out_batch: &raw mut next as u64,
            keys: keys[known..].as_mut_ptr() as u64,
            values: values[known * each..].as_mut_ptr() as u64,
            count: u32::try_from(room).unwrap_or(u32::MAX),
            map_fd: u32::try_from(map.fd().as_fd().as_raw_fd())
                .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?,
            ..Attributes::default()
        };
        let end = match call(&mut attributes) {
            Ok(()) => false,
            // The last ones.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            // A bucket has more than we have room for.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && room < 1 << 22 => {
                keys.truncate(known);
                room *= 4;
                continue;
            }
            Err(error) => return Err(error),
        };
        let count = known + attributes.count as usize;
        keys.truncate(count);
        values.truncate(count * each);
        if end {
            return Ok(Entries { keys, values, each });
        }
        position = next;
        first = false;
    }
}

#[expect(unsafe_code, reason = "aya has no call for batches")]
fn call(attributes: &mut Attributes) -> io::Result<()> {
    // SAFETY: the attributes are as long as we say, and what they point to is as
    // long as `count` says and lives through the call: `Bytes` have the sizes of
    // the map's keys and values.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_MAP_LOOKUP_BATCH,
            &raw mut *attributes,
            size_of::<Attributes>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Removes the entry `key` of the hash map `map`.
///
/// # Errors
/// Where there is none (`NotFound`) or the kernel refuses.
pub(super) fn delete<K: Bytes>(map: &MapData, key: &K) -> io::Result<()> {
    element(BPF_MAP_DELETE_ELEM, map, key, 0, 0)
}

/// Makes the entry `key` of the hash map `map`.
///
/// # Errors
/// Where there is one already (`AlreadyExists`), or no room.
pub(super) fn create<K: Bytes, V: Bytes>(map: &MapData, key: &K, value: &V) -> io::Result<()> {
    let value = &raw const *value as u64;
    element(BPF_MAP_UPDATE_ELEM, map, key, value, BPF_NOEXIST)
}

/// Makes or replaces it.
///
/// # Errors
/// Where there is no room.
pub(super) fn put<K: Bytes, V: Bytes>(map: &MapData, key: &K, value: &V) -> io::Result<()> {
    let value = &raw const *value as u64;
    element(BPF_MAP_UPDATE_ELEM, map, key, value, 0)
}

#[expect(unsafe_code, reason = "aya has no call for maps of any type")]
fn element<K: Bytes>(
    command: libc::c_long,
    map: &MapData,
    key: &K,
    value: u64,
    flags: u64,
) -> io::Result<()> {
    /// The member of `union bpf_attr` for single elements.
    #[repr(C)]
    struct Element {
        map_fd: u32,
        padding: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    let attributes = Element {
        map_fd: u32::try_from(map.fd().as_fd().as_raw_fd())
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?,
        padding: 0,
        key: &raw const *key as u64,
        value,
        flags,
    };
    // SAFETY: the attributes are as long as we say; `key`, and the value where
    // there is one, live through the call and have the sizes of the map's.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            &raw const attributes,
            size_of::<Element>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
