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

/// Whether the programs with these ids hang on the ingress and the egress hook of
/// an interface of this thread's namespace.
///
/// # Errors
/// Where the kernel knows no TCX or the interface is gone.
pub fn has(interface: &str, [ingress, egress]: [u32; 2]) -> anyhow::Result<bool> {
    for (direction, id) in [
        (TcAttachType::Ingress, ingress),
        (TcAttachType::Egress, egress),
    ] {
        let (_revision, programs) = SchedClassifier::query_tcx(interface, direction)?;
        if !programs.iter().any(|program| program.id() == id) {
            return Ok(false);
        }
    }
    Ok(true)
}
