//! What this process gives up for good: system calls that an observer never makes.
//!
//! A list of what is refused, and not of what is allowed: the C library, the
//! runtime and the kernel's own interfaces (bpf, netlink) change under us, and an
//! observer that a library's update kills serves nobody. Refused is what whoever
//! takes over a process with our capabilities would reach for: to start programs,
//! look into processes and change them, mount, load modules, enter any other kind
//! of namespace, type into the terminal, make new kinds of sockets. Opening files for
//! writing cannot be told from reading them here.

use std::collections::BTreeMap;

use anyhow::Context as _;
use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

/// Refused whatever their arguments are.
const REFUSED: [libc::c_long; 68] = [
    // Other programs.
    libc::SYS_execve,
    libc::SYS_execveat,
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_kcmp,
    libc::SYS_move_pages,
    libc::SYS_migrate_pages,
    // The kernel itself.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_syslog,
    libc::SYS_acct,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_personality,
    libc::SYS_vhangup,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_fanotify_init,
    // Mounts, roots, namespaces.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_chroot,
    // Files by other ways than their names, and other kinds of them.
    libc::SYS_open_by_handle_at,
    libc::SYS_mknodat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    // Other users.
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setgroups,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    // `kexec_file_load`, which not every C library has a name for.
    #[cfg(target_arch = "x86_64")]
    320,
    #[cfg(not(target_arch = "x86_64"))]
    294,
];

/// What only x86 has.
#[cfg(target_arch = "x86_64")]
const REFUSED_HERE: [libc::c_long; 4] = [
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_modify_ldt,
    libc::SYS_mknod,
];
#[cfg(not(target_arch = "x86_64"))]
const REFUSED_HERE: [libc::c_long; 0] = [];

/// The x32 ABI has the numbers of x86-64 with this bit, and some of its own.
/// <https://github.com/torvalds/linux/blob/v6.18/arch/x86/entry/syscalls/syscall_64.tbl>
#[cfg(target_arch = "x86_64")]
const X32: libc::c_long = 0x4000_0000;
/// ioctl, execve, ptrace, rt_sigqueueinfo, kexec_load, move_pages,
/// rt_tgsigqueueinfo, process_vm_readv, process_vm_writev, execveat.
#[cfg(target_arch = "x86_64")]
const X32_ONLY: [libc::c_long; 10] = [514, 520, 521, 524, 528, 533, 536, 539, 540, 545];

/// Families of sockets that netobs uses: engines, files of names, the kernel.
const FAMILIES: [libc::c_int; 4] = [
    libc::AF_UNIX,
    libc::AF_INET,
    libc::AF_INET6,
    libc::AF_NETLINK,
];

/// `TIOCSTI` and `TIOCLINUX`: put characters into the terminal's input.
/// <https://github.com/torvalds/linux/blob/v6.18/include/uapi/asm-generic/ioctls.h>
const TYPING: [u64; 2] = [0x5412, 0x541c];

/// The kind of namespace that netobs enters, and that `netobs doctor` makes.
const NEWNET: u64 = libc::CLONE_NEWNET as u64;

/// Refuses all of this to every thread of this process, for good.
///
/// # Errors
/// Where the kernel has no seccomp.
pub fn install() -> anyhow::Result<()> {
    seccompiler::apply_filter_all_threads(&filter()?).context("install the seccomp filter")
}

/// The program that the kernel runs at each system call.
fn filter() -> anyhow::Result<BpfProgram> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for number in REFUSED.iter().chain(&REFUSED_HERE) {
        rules.insert(*number, Vec::new());
    }
    let own = u64::from(std::process::id());
    let families = FAMILIES.map(|family| family.unsigned_abs().into());
    // None but these values of an argument.
    let only = [
        (libc::SYS_socket, 0, &families[..]),
        (libc::SYS_setns, 1, &[NEWNET]),
        (libc::SYS_unshare, 0, &[NEWNET]),
        // An abort is a signal to oneself.
        (libc::SYS_tgkill, 0, &[own]),
    ];
    for (number, argument, values) in only {
        rules.insert(number, vec![rule(argument, SeccompCmpOp::Ne, values)?]);
    }
    let typing = TYPING.map(|request| rule(1, SeccompCmpOp::Eq, &[request]));
    rules.insert(
        libc::SYS_ioctl,
        typing.into_iter().collect::<Result<_, _>>()?,
    );
    #[cfg(target_arch = "x86_64")]
    add_x32(&mut rules);
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EPERM.unsigned_abs()),
        std::env::consts::ARCH.try_into()?,
    )?;
    Ok(filter.try_into()?)
}

/// The same for those who call by other numbers.
#[cfg(target_arch = "x86_64")]
fn add_x32(rules: &mut BTreeMap<i64, Vec<SeccompRule>>) {
    let same: Vec<_> = rules
        .iter()
        .map(|(number, rules)| (number | X32, rules.clone()))
        .collect();
    rules.extend(same);
    // Some kernels take these without the bit too.
    let own = X32_ONLY.iter().flat_map(|number| [*number, number | X32]);
    rules.extend(own.map(|number| (number, Vec::new())));
}

/// Matches where `argument` compares so with all of `values`.
fn rule(argument: u8, operator: SeccompCmpOp, values: &[u64]) -> anyhow::Result<SeccompRule> {
    let conditions = values.iter().map(|value| {
        // The kernel looks at the lower half only.
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator.clone(), *value)
    });
    Ok(SeccompRule::new(conditions.collect::<Result<_, _>>()?)?)
}

#[cfg(test)]
mod tests {
    use std::{fs::File, net::TcpListener, os::fd::AsFd as _, process::Command, thread};

    use nix::{
        errno::Errno,
        sched::{CloneFlags, setns, unshare},
        sys::{
            signal::kill,
            socket::{AddressFamily, SockFlag, SockType, socket},
        },
        unistd::Pid,
    };

    use super::*;

    /// On a thread of its own: there is no way back.
    fn filtered<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        let thread = thread::spawn(|| {
            seccompiler::apply_filter(&filter().expect("a filter")).expect("seccomp");
            work()
        });
        thread.join().expect("no panic")
    }

    fn open(family: AddressFamily) -> Result<(), Errno> {
        socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).map(drop)
    }

    /// Enters what is no namespace, which fails for that reason where it is allowed.
    fn enter(kind: CloneFlags) -> Result<(), Errno> {
        let file = File::open("/dev/null").expect("/dev/null");
        setns(file.as_fd(), kind)
    }

    #[test]
    fn what_an_observer_never_needs_is_refused() {
        // All of it works before, or fails for another reason.
        let refused = |expected: bool| {
            let is = |result: Result<(), Errno>| assert_eq!(result == Err(Errno::EPERM), expected);
            let program = Command::new("true").status().map(drop);
            is(program.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0))));
            is(kill(Pid::this(), None));
            is(open(AddressFamily::Vsock));
            is(open(AddressFamily::Alg));
            is(enter(CloneFlags::CLONE_NEWUTS));
            is(enter(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS));
            // Any kind would do.
            is(enter(CloneFlags::empty()));
            is(unshare(CloneFlags::empty()));
        };
        refused(false);
        filtered(move || refused(true));
    }

    #[test]
    fn what_it_needs_is_not() {
        filtered(|| {
            assert_eq!(enter(CloneFlags::CLONE_NEWNET), Err(Errno::EINVAL));
            // An abort has to end us.
            let own = Pid::this().as_raw();
            #[expect(unsafe_code, reason = "nix has no tgkill")]
            // SAFETY: numbers in, a number out; signal 0 only asks whether it may.
            let asked = unsafe { libc::syscall(libc::SYS_tgkill, own, libc::gettid(), 0) };
            assert_eq!(asked, 0);
            for family in [
                AddressFamily::Unix,
                AddressFamily::Inet,
                AddressFamily::Inet6,
                AddressFamily::Netlink,
            ] {
                assert_ne!(open(family), Err(Errno::EPERM), "{family:?}");
            }
            assert!(thread::spawn(|| 7).join().is_ok());
            assert!(TcpListener::bind("127.0.0.1:0").is_ok());
            let folder = std::env::temp_dir().join(format!("netobs-sc-{}", std::process::id()));
            let other = folder.with_extension("renamed");
            std::fs::create_dir(&folder).expect("mkdir");
            std::fs::rename(&folder, &other).expect("rename");
            std::fs::remove_dir(&other).expect("rmdir");
        });
    }
}
