//! The JSON Schemas of `docs/schema`, as they were when netobs was built.

/// Of `netobs watch`.
pub const SAMPLE: &str = include_str!("../../../docs/schema/netobs.sample.schema.json");
/// Of `netobs list`.
pub const LIST: &str = include_str!("../../../docs/schema/netobs.list.schema.json");
/// Of `netobs routes`.
pub const ROUTES: &str = include_str!("../../../docs/schema/netobs.routes.schema.json");
/// Of `netobs doctor`.
pub const DOCTOR: &str = include_str!("../../../docs/schema/netobs.doctor.schema.json");
