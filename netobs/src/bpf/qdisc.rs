//! The clsact qdisc that we may have added: taken away again when nobody uses
//! it.

use anyhow::Context as _;
use futures_util::TryStreamExt as _;

use crate::{
    model::sample::NsKey,
    world::{gather::Machine, netlink::Netlink, netns},
};

/// `TC_H_CLSACT`: parent of the clsact qdisc.
/// <https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/pkt_sched.h>
const TC_H_CLSACT: u32 = 0xffff_fff1;

/// Deletes the clsact qdisc of `ifindex` unless a filter is left on it.
///
/// # Errors
/// Where a filter is left, or the kernel refuses.
pub async fn remove_if_empty(machine: &Machine, scope: NsKey, ifindex: u32) -> anyhow::Result<()> {
    if scope == machine.host_key() {
        return remove(machine.netlink(), ifindex).await;
    }
    let path = machine.path_of(scope).context("the namespace has ended")?;
    let (netlink, _) = Netlink::open_in(&netns::open(&path)?)?;
    remove(&netlink, ifindex).await
}

async fn remove(netlink: &Netlink, ifindex: u32) -> anyhow::Result<()> {
    let index = i32::try_from(ifindex)?;
    for ingress in [true, false] {
        let filters = netlink.handle().traffic_filter(index).get();
        let filters = if ingress {
            filters.ingress()
        } else {
            filters.egress()
        };
        let left: Vec<_> = filters.execute().try_collect().await?;
        anyhow::ensure!(left.is_empty(), "it has other filters");
    }
    let mut request = netlink.handle().qdisc().del(index);
    request.message_mut().header.parent = TC_H_CLSACT.into();
    request.execute().await?;
    Ok(())
}
