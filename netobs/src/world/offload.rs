//! Whether a device joins what it receives.

use std::{io, os::fd::AsRawFd as _};

use nix::{
    libc,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

/// `ETHTOOL_GGRO`.
/// <https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/ethtool.h>
const ETHTOOL_GGRO: u32 = 0x2b;

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// Whether generic receive offload is on for `interface` of this thread's namespace:
/// packets are joined before TC sees them, where the driver hands them over by NAPI.
///
/// # Errors
/// Where there is no such interface.
pub fn joins(interface: &str) -> io::Result<bool> {
    let socket = socket(
        AddressFamily::Unix,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let mut value = Value {
        command: ETHTOOL_GGRO,
        data: 0,
    };
    let mut name: [libc::c_char; libc::IFNAMSIZ] = [0; libc::IFNAMSIZ];
    if interface.len() >= name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in name.iter_mut().zip(interface.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    let mut request = libc::ifreq {
        ifr_name: name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_data: (&raw mut value).cast(),
        },
    };
    #[expect(unsafe_code, reason = "ethtool's requests are pointers in an ioctl")]
    // SAFETY: the kernel reads and writes `request` and the `ethtool_value` that it
    // points to, both of which live until the call returns.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(value.data != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_an_answer_for_what_is_there_only() {
        assert!(joins("lo").is_ok());
        assert!(joins("no-such-device").is_err());
        assert!(joins("a-name-that-is-too-long-for-one").is_err());
    }
}
