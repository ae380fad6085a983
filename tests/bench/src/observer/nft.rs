//! Counters of nftables.

use netobs_tests::Lab;

use super::Observer;

/// Rules on both hooks of interfaces.
pub(crate) struct Nft<'a> {
    lab: &'a Lab,
    name: &'static str,
    rules: String,
}

/// The classes that netobs tells apart, in the order in which they are frequent.
const CLASSES: [&str; 11] = [
    "ip protocol tcp",
    "ip protocol udp",
    "ip protocol icmp",
    "ether type ip",
    "meta l4proto tcp ether type ip6",
    "meta l4proto udp ether type ip6",
    "meta l4proto icmpv6 ether type ip6",
    "ether type ip6",
    "ether type arp",
    "tcp flags syn",
    "meta pkttype { broadcast, multicast }",
];

impl<'a> Nft<'a> {
    /// Packets and bytes per interface and direction.
    pub(crate) fn totals(lab: &'a Lab, interfaces: &[String]) -> Self {
        Self::new(lab, "nft, one counter", interfaces, "")
    }

    /// By class too, like netobs.
    pub(crate) fn by_class(lab: &'a Lab, interfaces: &[String]) -> Self {
        let rules: String = CLASSES
            .iter()
            .map(|class| format!("{class} counter\n"))
            .collect();
        Self::new(lab, "nft, by class", interfaces, &rules)
    }

    fn new(lab: &'a Lab, name: &'static str, interfaces: &[String], more: &str) -> Self {
        let mut rules = "table netdev bench {\n".to_owned();
        for interface in interfaces {
            for hook in ["ingress", "egress"] {
                rules += &format!(
                    "chain {interface}_{hook} {{\n\
                     type filter hook {hook} device {interface} priority 0; policy accept;\n\
                     counter comment \"all {hook}\"\n{more}}}\n"
                );
            }
        }
        rules += "}\n";
        Self { lab, name, rules }
    }
}

impl Observer for Nft<'_> {
    fn name(&self) -> &str {
        self.name
    }

    fn start(&mut self) -> anyhow::Result<()> {
        self.lab.command("nft").arg(&self.rules).text()?;
        Ok(())
    }

    fn stop(&mut self) -> anyhow::Result<()> {
        self.lab.shell("nft delete table netdev bench")?;
        Ok(())
    }

    fn seen(&mut self) -> anyhow::Result<Option<u64>> {
        let table = self
            .lab
            .command("nft")
            .args(["-j", "list", "table", "netdev", "bench"])
            .json()?;
        let items = table["nftables"].as_array().cloned().unwrap_or_default();
        let rules = items.iter().map(|item| &item["rule"]);
        let all = rules.filter(|rule| rule["comment"] == "all ingress");
        let counters = all.flat_map(|rule| rule["expr"].as_array().into_iter().flatten());
        Ok(Some(
            counters
                .filter_map(|expr| expr["counter"]["packets"].as_u64())
                .sum(),
        ))
    }
}
