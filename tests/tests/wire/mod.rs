//! A veth pair in a namespace of its own, to send raw frames through: for
//! what BPF_PROG_TEST_RUN refuses (network headers cut short) or cannot make
//! (heads that are not linear).

#![allow(
    dead_code,
    clippy::allow_attributes,
    reason = "each test binary uses a part"
)]

use std::{
    os::fd::{AsRawFd as _, OwnedFd},
    process::Command,
};

use nix::{
    libc,
    sched::{CloneFlags, unshare},
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

/// The end that frames are sent through.
pub(crate) const DEVICE: &str = "wire0";
const FAR_END: &str = "wire1";

/// Runs `work` on a thread in a new namespace with a pair that is up; the namespace ends with the thread.
pub(crate) fn in_new_namespace<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET).expect("make a namespace (needs root)");
                let mut commands = vec![
                    "link set lo up".to_owned(),
                    format!("link add {DEVICE} type veth peer name {FAR_END}"),
                ];
                for end in [DEVICE, FAR_END] {
                    // Nothing may speak between the test's own frames.
                    commands.push(format!(
                        "link set {end} mtu 60000 addrgenmode none multicast off"
                    ));
                    commands.push(format!("link set {end} up"));
                }
                for args in commands {
                    let args = args.split(' ');
                    let status = Command::new("ip")
                        .args(args.clone())
                        .status()
                        .expect("run ip");
                    assert!(status.success(), "ip {args:?}: {status}");
                }
                work()
            })
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Index of `name` in this thread's namespace.
pub(crate) fn index(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).expect("the interface")
}

/// A packet socket bound to one interface.
pub(crate) struct Wire {
    socket: OwnedFd,
    header: bool,
}

impl Wire {
    /// Opens one. With `header`, frames go out with a `virtio_net_hdr` that
    /// keeps all but the Ethernet header out of the linear part of the skb.
    #[expect(
        unsafe_code,
        reason = "sockaddr_ll and PACKET_VNET_HDR have no safe wrapper"
    )]
    pub(crate) fn open(name: &str, header: bool) -> Self {
        let socket = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .expect("open a packet socket");
        if header {
            const PACKET_VNET_HDR: libc::c_int = 15;
            let on: libc::c_int = 1;
            // SAFETY: `on` outlives the call and its size is given.
            let failed = unsafe {
                libc::setsockopt(
                    socket.as_raw_fd(),
                    libc::SOL_PACKET,
                    PACKET_VNET_HDR,
                    (&raw const on).cast(),
                    size_of::<libc::c_int>() as libc::socklen_t,
                )
            };
            assert_eq!(
                failed,
                0,
                "PACKET_VNET_HDR: {}",
                std::io::Error::last_os_error()
            );
        }
        // SAFETY: a C struct of integers: all zeroes are valid.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_ifindex = index(name) as i32;
        // SAFETY: `address` outlives the call and its size is given.
        let failed = unsafe {
            libc::bind(
                socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        assert_eq!(failed, 0, "bind: {}", std::io::Error::last_os_error());
        Self { socket, header }
    }

    /// Sends one frame; it has passed the egress hook when this returns.
    pub(crate) fn send(&self, frame: &[u8]) {
        /// Ten bytes; `hdr_len` stands at offset 2.
        /// <https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/virtio_net.h>
        const ONLY_ETHERNET_LINEAR: [u8; 10] = [0, 0, 14, 0, 0, 0, 0, 0, 0, 0];
        let mut bytes = Vec::new();
        if self.header {
            bytes.extend(ONLY_ETHERNET_LINEAR);
        }
        bytes.extend(frame);
        let sent = nix::unistd::write(&self.socket, &bytes).expect("send a frame");
        assert_eq!(sent, bytes.len());
    }
}
