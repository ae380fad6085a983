//! The kernel's own counters: what netobs is held against.

use anyhow::Context as _;
use serde_json::Value;

/// One direction of a link, as the kernel sees it: `rx` of a host's veth is
/// what its namespace sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Direction {
    /// Packets, one per `sk_buff`.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
    /// Errors.
    pub errors: u64,
    /// Drops.
    pub dropped: u64,
}

/// A link's counters and numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkStats {
    /// Its number.
    pub ifindex: u32,
    /// The number of a veth's other end, in that end's namespace.
    pub link_index: Option<u32>,
    /// Its hardware address.
    pub mac: Option<String>,
    /// The bridge that it hangs on.
    pub master: Option<String>,
    /// What it received.
    pub rx: Direction,
    /// What it sent.
    pub tx: Direction,
}

/// A queueing discipline's counters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QdiscStats {
    /// Its kind, such as `noqueue` or `clsact`.
    pub kind: String,
    /// Its handle, such as `ffff:`.
    pub handle: String,
    /// Packets on the wire (segments).
    pub packets: u64,
    /// Bytes on the wire.
    pub bytes: u64,
}

/// Reads `ip -s -j link show dev NAME`.
pub(crate) fn stats(json: &Value) -> anyhow::Result<LinkStats> {
    let link = &json[0];
    let text = |key: &str| link[key].as_str().map(str::to_owned);
    Ok(LinkStats {
        ifindex: u32::try_from(number(link, "ifindex")?)?,
        // `link` is the other end's name where it is in the same namespace.
        link_index: number(link, "link_index")
            .ok()
            .and_then(|n| n.try_into().ok()),
        mac: text("address"),
        master: text("master"),
        rx: direction(&link["stats64"]["rx"])?,
        tx: direction(&link["stats64"]["tx"])?,
    })
}

fn direction(json: &Value) -> anyhow::Result<Direction> {
    Ok(Direction {
        packets: number(json, "packets")?,
        bytes: number(json, "bytes")?,
        errors: number(json, "errors")?,
        dropped: number(json, "dropped")?,
    })
}

/// Reads `tc -s -j qdisc show dev NAME`.
pub(crate) fn qdiscs(json: &Value) -> anyhow::Result<Vec<QdiscStats>> {
    let qdisc = |json: &Value| {
        Ok(QdiscStats {
            kind: json["kind"].as_str().unwrap_or_default().to_owned(),
            handle: json["handle"].as_str().unwrap_or_default().to_owned(),
            packets: number(json, "packets")?,
            bytes: number(json, "bytes")?,
        })
    };
    json.as_array().into_iter().flatten().map(qdisc).collect()
}

fn number(json: &Value, key: &str) -> anyhow::Result<u64> {
    json[key]
        .as_u64()
        .with_context(|| format!("no number `{key}` in {json}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reads_what_ip_prints() {
        let json = json!([{"ifindex": 4, "link_index": 3, "ifname": "veth1", "master": "docker0",
            "address": "02:42:1b:60:ef:9e", "stats64": {
            "rx": {"bytes": 28, "packets": 1, "errors": 0, "dropped": 0},
            "tx": {"bytes": 306, "packets": 3, "errors": 0, "dropped": 2}}}]);
        let stats = stats(&json).unwrap();
        assert_eq!((stats.ifindex, stats.link_index), (4, Some(3)));
        assert_eq!((stats.rx.packets, stats.tx.dropped), (1, 2));
        assert_eq!(stats.master.as_deref(), Some("docker0"));
    }

    #[test]
    fn a_link_without_counters_is_an_error() {
        let err = stats(&json!([{"ifindex": 4}])).unwrap_err().to_string();
        assert!(err.contains("packets"), "{err}");
    }

    #[test]
    fn reads_what_tc_prints() {
        let json = json!([{"kind": "clsact", "handle": "ffff:", "bytes": 98, "packets": 1}]);
        let qdisc = &qdiscs(&json).unwrap()[0];
        assert_eq!(qdisc.kind, "clsact");
        assert_eq!((qdisc.packets, qdisc.bytes), (1, 98));
    }
}
