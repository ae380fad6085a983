//! Who else hangs on an interface, for `doctor`.

use aya::programs::{SchedClassifier, TcAttachType};

/// The programs on one hook of an interface of this thread's namespace, in
/// the order in which they run.
///
/// # Errors
/// Where the kernel knows no TCX or the interface is gone.
pub fn tcx(interface: &str, ingress: bool) -> anyhow::Result<Vec<String>> {
    let direction = if ingress {
        TcAttachType::Ingress
    } else {
        TcAttachType::Egress
    };
    let (_revision, programs) = SchedClassifier::query_tcx(interface, direction)?;
    Ok(programs
        .iter()
        .map(|program| format!("{}#{}", program.name_as_str().unwrap_or("?"), program.id()))
        .collect())
}
