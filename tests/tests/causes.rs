//! What may be behind a difference between the kernel's counters and ours: each
//! difference here is made on purpose, seen in netobs's samples, and has to be
//! traced back to what made it.

mod common;
mod elf;

use std::{
    io,
    os::fd::{FromRawFd as _, OwnedFd},
};

use aya::programs::{SchedClassifier, TcAttachType, XdpMode};
use common::{Link, SOON, Watch, inside, interface, quiet_pair, warnings};
use elf::{NEXT, SHOT, XDP_DROP};
use netobs::{
    model::{
        causes::{Cause, Evidence},
        counters::Directions,
        neighbours::Via,
        sample::{Hook, NsKey},
    },
    observer::causes::{Carrier, causes, evidence},
    world::{
        gather::{Depth, Machine},
        netns, offload,
    },
};
use netobs_tests::{Lab, Netns, poll_until, skip};
use nix::{
    libc,
    net::if_::if_nametoindex,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

fn wait<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread();
    { runtime }.enable_all().build()?.block_on(work)
}

/// An AF_XDP socket in this thread's namespace.
fn af_xdp() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    #[expect(unsafe_code, reason = "nix has no name for this family")]
    // SAFETY: takes no pointers.
    let number = unsafe { libc::socket(libc::AF_XDP, kind, 0) };
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    #[expect(unsafe_code, reason = "nix has no name for this family")]
    // SAFETY: it is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// What is found about a host end, from the host's namespace.
fn found(lab: &Lab, name: &str) -> anyhow::Result<Evidence> {
    inside(lab, &Netns::Host, || {
        wait(async {
            let machine = Machine::open()?;
            evidence(&machine, carrier(&machine, name)?).await
        })
    })
}

fn carrier<'a>(machine: &Machine, name: &'a str) -> anyhow::Result<Carrier<'a>> {
    Ok(Carrier {
        scope: machine.host_key(),
        name,
        ifindex: if_nametoindex(name)?,
    })
}

/// The causes that netobs finds for a difference at a host end.
fn told(
    lab: &Lab,
    name: &str,
    difference: Directions<i64>,
    before: &Evidence,
) -> anyhow::Result<Vec<Cause>> {
    inside(lab, &Netns::Host, || {
        let own = [TcAttachType::Ingress, TcAttachType::Egress].map(|hook| own(name, hook));
        let [ingress, egress] = own;
        wait(async {
            let machine = Machine::open()?;
            let carrier = carrier(&machine, name)?;
            let own = [ingress?, egress?];
            causes(&machine, carrier, own, Hook::Tcx, difference, Some(before)).await
        })
    })
}

/// The id of the running netobs's program on an interface of this namespace.
fn own(name: &str, hook: TcAttachType) -> anyhow::Result<u32> {
    let (_, programs) = SchedClassifier::query_tcx(name, hook)?;
    let mut ours = programs.iter().filter(|program| {
        let name = program.name_as_str().unwrap_or_default();
        name.starts_with("netobs_")
    });
    ours.next()
        .map(|program| program.id())
        .ok_or_else(|| anyhow::anyhow!("netobs is not on {name}"))
}

/// Three pings from `b` that nobody answers.
fn lost_pings(lab: &Lab) -> anyhow::Result<()> {
    let b = Netns::Named("b".to_owned());
    let mut ping = lab.command_in(&b, "busybox");
    let args = ["ping", "-q", "-c3", "-W1", "-i0.02", "10.9.0.1"];
    let output = ping.args(args).output()?;
    assert!(output.stdout.contains("100% packet loss"), "{output:?}");
    Ok(())
}

/// The difference that netobs shows for the `eth0` of `row`, at its host end.
fn difference(lab: &Lab, watch: &mut Watch, row: &str) -> anyhow::Result<Directions<i64>> {
    let rest = watch.at_rest(lab, &[Link::named("a", "eth0"), Link::named("b", "eth0")])?;
    let unaccounted = &interface(&rest.sample, row, "eth0")["unaccounted"];
    let of = |way: &str| unaccounted[way].as_i64().unwrap_or(i64::MAX);
    Ok(Directions {
        rx: of("tx"),
        tx: of("rx"),
    })
}

/// Waits for a running netobs to tell of a difference and what is behind it.
fn told_by(watch: &mut Watch, difference: &str, cause: &str) -> anyhow::Result<()> {
    watch.until("a warning", |sample| {
        let all = warnings(sample, "unaccounted");
        let mut messages = all.iter().filter_map(|warning| warning["message"].as_str());
        messages.any(|text| text.contains(difference) && text.contains(cause))
    })?;
    Ok(())
}

/// A watch on two quiet namespaces, without a difference so far.
fn start(lab: &Lab) -> anyhow::Result<Watch> {
    quiet_pair(lab)?;
    let mut watch = Watch::start(lab, &["--tc-mode=tcx"])?;
    for row in ["a", "b"] {
        let none = difference(lab, &mut watch, row)?;
        assert_eq!(none, Directions::default(), "{row}");
    }
    Ok(watch)
}

#[test]
fn who_drops_ahead_of_us_is_named() -> anyhow::Result<()> {
    for by_xdp in [true, false] {
        let lab = Lab::new()?;
        let mut watch = start(&lab)?;
        let before = found(&lab, "vb")?;
        let dropper = inside(&lab, &Netns::Host, || {
            if by_xdp {
                elf::xdp("dropper", XDP_DROP, "vb", XdpMode::Skb)
            } else {
                elf::tcx("dropper", SHOT, "vb", TcAttachType::Ingress)
            }
        })?;
        lost_pings(&lab)?;
        let difference = difference(&lab, &mut watch, "b")?;
        assert_eq!(difference, Directions { rx: 3, tx: 0 }, "XDP {by_xdp}");
        let causes = told(&lab, "vb", difference, &before)?;
        let named = causes.iter().any(|cause| match cause {
            Cause::Ahead(program) => {
                program.id == Some(dropper.id) && (program.via == Via::Tcx) != by_xdp
            }
            _ => false,
        });
        assert!(named, "{causes:?}");
        told_by(&mut watch, "3 tx packets that we did not", "dropper")?;
        // Those that have nothing to do with it are not.
        assert!(!causes.contains(&Cause::Absent), "{causes:?}");
        assert_eq!(told(&lab, "va", Directions { rx: 3, tx: 0 }, &before)?, []);
        watch.end()?;
    }
    Ok(())
}

#[test]
fn a_queue_that_drops_behind_us_is_named() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    let mut watch = start(&lab)?;
    // Smaller than any packet.
    lab.shell("tc qdisc add dev va root tbf rate 1kbit burst 2000 limit 1")?;
    let before = found(&lab, "va")?;
    lost_pings(&lab)?;
    let difference = difference(&lab, &mut watch, "a")?;
    assert_eq!(difference, Directions { rx: 0, tx: -3 });
    let causes = told(&lab, "va", difference, &before)?;
    match &causes[..] {
        [Cause::Queue(queue)] => {
            assert_eq!((queue.kind.as_str(), queue.dropped), ("tbf", 3));
        }
        other => panic!("{other:?}"),
    }
    told_by(&mut watch, "3 rx packets less than we did", "tbf")?;
    watch.end()?;
    Ok(())
}

#[test]
fn sockets_and_a_carrier_are_seen() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    quiet_pair(&lab)?;
    let quiet = found(&lab, "va")?;
    assert!(quiet.carrier);
    assert_eq!((quiet.xdp_sockets, quiet.packet_sockets), (0, 0));
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = inside(&lab, &Netns::Host, || {
        Ok(socket(AddressFamily::Packet, SockType::Raw, flags, None)?)
    })?;
    assert_eq!(found(&lab, "va")?.packet_sockets, 1);
    drop(socket);
    assert_eq!(found(&lab, "va")?.packet_sockets, 0);
    // Bridges have receive offload on, pairs have it off unless asked.
    let joins = |name| inside(&lab, &Netns::Host, || Ok(offload::joins(name)?));
    assert!(joins("br0")?);
    assert!(!joins("va")?);
    assert!(!found(&lab, "br0")?.joins, "its ports have done so");
    lab.shell("ip -n a link set eth0 down")?;
    assert!(!found(&lab, "va")?.carrier);
    assert!(found(&lab, "vb")?.carrier);
    Ok(())
}

#[test]
fn af_xdp_sockets_are_seen() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    quiet_pair(&lab)?;
    let socket = match inside(&lab, &Netns::Host, || Ok(af_xdp())) {
        Ok(Err(error)) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            skip("this kernel has no AF_XDP sockets (CONFIG_XDP_SOCKETS)");
            return Ok(());
        }
        other => other??,
    };
    assert_eq!(found(&lab, "va")?.xdp_sockets, 1);
    drop(socket);
    // The kernel counts it until a grace period has passed.
    poll_until(SOON, "the end of the socket", || {
        Ok((found(&lab, "va")?.xdp_sockets == 0).then_some(()))
    })
}

/// Where programs hang inside a container, that is where to look.
#[test]
fn inside_a_namespace_the_evidence_is_its_own() -> anyhow::Result<()> {
    let lab = Lab::new()?;
    for name in ["c", "d"] {
        lab.netns_add(name)?;
    }
    lab.shell(
        "ip -n c link add x type veth peer name y netns d
         ip -n c link set x up
         ip -n d link set y up",
    )?;
    let c = Netns::Named("c".to_owned());
    let _resident = lab.command_in(&c, "sleep").arg("1000").start()?;
    let (theirs, cookie, ifindex) = inside(&lab, &c, || {
        let theirs = elf::tcx("theirs", NEXT, "x", TcAttachType::Ingress)?;
        Ok((theirs, netns::cookie()?, if_nametoindex("x")?))
    })?;
    let evidence = inside(&lab, &Netns::Host, || {
        wait(async {
            let mut machine = Machine::open()?;
            machine.look(Depth::Periodic).await?;
            let carrier = Carrier {
                scope: NsKey::Cookie(cookie),
                name: "x",
                ifindex,
            };
            evidence(&machine, carrier).await
        })
    })?;
    let ids: Vec<_> = evidence.neighbours.ingress.iter().map(|p| p.id).collect();
    assert_eq!(ids, [Some(theirs.id)]);
    assert!(evidence.carrier);
    Ok(())
}
