//! The files of `contrib/`.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::{fs, path::PathBuf};

use anyhow::Context as _;
use serde_json::Value;

/// Where a file is.
pub(crate) fn path(name: &str) -> PathBuf {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../contrib");
    root.canonicalize().unwrap_or(root).join(name)
}

/// Its text.
pub(crate) fn text(name: &str) -> anyhow::Result<String> {
    let path = path(name);
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// The unit of systemd.
pub(crate) const UNIT: &str = "systemd/netobs.service";

/// The values of a setting in a unit, all lines of it.
pub(crate) fn setting(unit: &str, name: &str) -> Vec<String> {
    let line = |line: &str| Some(line.strip_prefix(name)?.strip_prefix('=')?.to_owned());
    let values: Vec<String> = unit.lines().filter_map(line).collect();
    let words = values.iter().flat_map(|value| value.split_whitespace());
    words.map(str::to_owned).collect()
}

/// Names of capabilities as `setpriv` and `docker` have them, without `cap_`, sorted.
pub(crate) fn bare(capabilities: impl IntoIterator<Item = impl AsRef<str>>) -> Vec<String> {
    let capabilities = capabilities.into_iter();
    let mut bare: Vec<String> = capabilities
        .map(|name| name.as_ref().to_lowercase())
        .map(|name| name.strip_prefix("cap_").unwrap_or(&name).to_owned())
        .collect();
    bare.sort();
    bare
}

/// The documents of a file of YAML.
pub(crate) fn yaml(name: &str) -> anyhow::Result<Vec<Value>> {
    let text = text(name)?;
    serde_saphyr::from_multiple(&text).with_context(|| name.to_owned())
}

/// The words of a list.
pub(crate) fn words(list: &Value) -> Vec<&str> {
    let all = list.as_array().map_or(&[][..], Vec::as_slice);
    all.iter().filter_map(Value::as_str).collect()
}
