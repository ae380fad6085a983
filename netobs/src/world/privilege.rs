//! What this process may do.

use caps::{CapSet, Capability, CapsHashSet};

/// A capability and what netobs needs it for.
pub struct Need {
    /// The capability.
    pub capability: Capability,
    /// What does not work without it.
    pub purpose: &'static str,
}

/// Everything that observing needs.
pub const NEEDS: [Need; 5] = [
    Need {
        capability: Capability::CAP_BPF,
        purpose: "load the programs and make the maps",
    },
    Need {
        capability: Capability::CAP_NET_ADMIN,
        purpose: "attach the programs to interfaces",
    },
    Need {
        capability: Capability::CAP_PERFMON,
        purpose: "let the programs read packet headers by pointer",
    },
    Need {
        capability: Capability::CAP_SYS_ADMIN,
        purpose: "enter other network namespaces",
    },
    Need {
        capability: Capability::CAP_SYS_PTRACE,
        purpose: "find the namespaces of other users' processes in /proc",
    },
];

/// Whether this process has `capability` in effect. CAP_SYS_ADMIN includes the
/// two that were split from it.
/// <https://github.com/torvalds/linux/blob/v6.18/include/linux/capability.h>
#[must_use]
pub fn has(capability: Capability) -> bool {
    let effective =
        |capability| caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false);
    let split = matches!(capability, Capability::CAP_BPF | Capability::CAP_PERFMON);
    effective(capability) || (split && effective(Capability::CAP_SYS_ADMIN))
}

/// The needs that are not met.
pub fn missing() -> impl Iterator<Item = &'static Need> {
    NEEDS.iter().filter(|need| !has(need.capability))
}

/// Kept besides, where we have them: to hear of routes in other namespaces, and to
/// look into the folders of other users' engines.
const USEFUL: [Capability; 2] = [
    Capability::CAP_NET_BROADCAST,
    Capability::CAP_DAC_READ_SEARCH,
];

/// Gives up every capability that netobs has no use for, and the way to get any
/// back. To be called before there are other threads: capabilities are a thread's.
///
/// # Errors
/// Where the kernel refuses; what could be given up is.
pub fn reduce() -> anyhow::Result<()> {
    let keep: CapsHashSet = NEEDS
        .iter()
        .map(|need| need.capability)
        .chain(USEFUL)
        .collect();
    // First, while we may. Without CAP_SETPCAP the set bounds nobody but us, who
    // start no other program.
    for capability in caps::all().difference(&keep) {
        let _not_permitted = caps::drop(None, CapSet::Bounding, *capability);
    }
    caps::clear(None, CapSet::Ambient)?;
    caps::clear(None, CapSet::Inheritable)?;
    for set in [CapSet::Effective, CapSet::Permitted] {
        let have = caps::read(None, set)?;
        caps::set(None, set, &have.intersection(&keep).copied().collect())?;
    }
    nix::sys::prctl::set_no_new_privs()?;
    Ok(())
}

/// How to get what is missing, for people.
pub const HOW: &str = "run netobs as root (sudo netobs ...), or give the file the capabilities: \
     sudo setcap cap_bpf,cap_net_admin,cap_perfmon,cap_sys_admin,cap_sys_ptrace+ep \"$(command -v netobs)\"";
