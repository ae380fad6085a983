//! Ctrl-C and SIGTERM while something has to be taken down in order.

use std::{
    ffi::c_void,
    sync::atomic::{AtomicBool, AtomicI32, Ordering},
};

use anyhow::Context as _;
use nix::{
    libc,
    sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction},
};

/// The last signal that came, 0 for none.
static CAME: AtomicI32 = AtomicI32::new(0);
/// Whether it was a terminal's Ctrl-C.
static TO_ALL: AtomicBool = AtomicBool::new(false);

/// A signal that came.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Came {
    pub(crate) signal: Signal,
    /// Whether it is a terminal's Ctrl-C, which programs that we have started get too. (The
    /// end of a terminal is told to the first of a session alone.)
    pub(crate) to_all: bool,
}

extern "C" fn note(signal: i32, info: *mut libc::siginfo_t, _: *mut c_void) {
    #[expect(unsafe_code, reason = "that is how the kernel tells")]
    // SAFETY: the kernel hands a valid one over, for as long as this runs (SA_SIGINFO).
    let code = unsafe { (*info).si_code };
    let to_all = signal == libc::SIGINT && code == libc::SI_KERNEL;
    TO_ALL.store(to_all, Ordering::Relaxed);
    CAME.store(signal, Ordering::Relaxed);
}

/// Makes SIGINT, SIGTERM and SIGHUP be noted instead of ending us. Programs
/// that we start get them as usual: exec resets handlers.
pub(crate) fn note_them() -> anyhow::Result<()> {
    let action = SigAction::new(
        SigHandler::SigAction(note),
        SaFlags::SA_RESTART | SaFlags::SA_SIGINFO,
        SigSet::empty(),
    );
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        #[expect(unsafe_code, reason = "std has no signal handlers")]
        // SAFETY: the handler only stores to atomics.
        unsafe { sigaction(signal, &action) }.with_context(|| format!("cannot handle {signal}"))?;
    }
    Ok(())
}

/// Takes the signal that came, if one did.
pub(crate) fn take() -> Option<Came> {
    let signal = Signal::try_from(CAME.swap(0, Ordering::Relaxed)).ok()?;
    Some(Came {
        signal,
        to_all: TO_ALL.load(Ordering::Relaxed),
    })
}
