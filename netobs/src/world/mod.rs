//! What touches the machine: namespaces, netlink, /proc, container engines.

pub mod cgroup;
mod dump;
pub mod engine;
pub mod gather;
pub mod limits;
pub mod link_events;
mod multicast;
pub mod netlink;
pub mod netns;
pub mod offload;
pub mod own_process;
pub mod privilege;
pub mod rcu;
pub mod route_events;
pub mod scan;
pub mod seccomp;
pub mod stats;
pub mod text;
