//! Ctrl-C and SIGTERM while something has to be taken down in order.

use std::sync::atomic::{AtomicI32, Ordering};

use anyhow::Context as _;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// The last signal that came, 0 for none.
static CAME: AtomicI32 = AtomicI32::new(0);

extern "C" fn note(signal: i32) {
    CAME.store(signal, Ordering::Relaxed);
}

/// Makes SIGINT, SIGTERM and SIGHUP be noted instead of ending us. Programs
/// that we start get them as usual: exec resets handlers.
pub(crate) fn note_them() -> anyhow::Result<()> {
    let action = SigAction::new(
        SigHandler::Handler(note),
        SaFlags::SA_RESTART,
        SigSet::empty(),
    );
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        #[expect(unsafe_code, reason = "std has no signal handlers")]
        // SAFETY: the handler only stores to an atomic.
        unsafe { sigaction(signal, &action) }.with_context(|| format!("cannot handle {signal}"))?;
    }
    Ok(())
}

/// Takes the signal that came, if one did.
pub(crate) fn take() -> Option<Signal> {
    Signal::try_from(CAME.swap(0, Ordering::Relaxed)).ok()
}
