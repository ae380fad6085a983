//! What a route lookup costs.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use netobs_tests::Netns;

use crate::{
    alternate::{Measured, Plan, alternate},
    cpu,
    load::{Connects, Datagrams, Frame, Frames, Generator},
    observer::{Lookups, Observer, Tracepoints},
    report::{Bound, Part, Table, column},
    scene::{Scene, cookie},
    stats::Spread,
};

/// `a` sends over `r` to `b`, where nobody has the address: it is dropped as soon as the
/// kernel looks at whom it is for. Neighbours are known, so that nobody asks for them.
const MAKE: &str = "
    for n in a r b; do
        ip netns add $n
        ip netns exec $n sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1 \
            net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0
    done
    ip -n a link add eth0 address 02:00:00:00:01:01 type veth peer name in address 02:00:00:00:01:02 netns r
    ip -n r link add out address 02:00:00:00:02:01 type veth peer name eth0 address 02:00:00:00:02:02 netns b
    for end in 'a eth0' 'r in' 'r out' 'b eth0'; do
        set -- $end
        ip -n $1 link set $2 up
    done
    ip -n r address add 10.88.1.1/24 dev in
    ip -n r address add 10.88.2.1/24 dev out
    ip -n r neigh add 10.88.2.2 lladdr 02:00:00:00:02:03 dev out nud permanent
    ip netns exec r sysctl -qw net.ipv4.ip_forward=1";

const TO: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 88, 2, 2), 9);

/// Nanoseconds per lookup, of local senders and of a router.
pub(crate) fn lookups(plan: Plan) -> anyhow::Result<Part> {
    let scene = Scene::new(0)?;
    scene.lab.shell(MAKE)?;
    let count = Arc::new(AtomicU64::new(0));
    let connects = Arc::clone(&count);
    let mut connecting = Generator::start(scene.netns("r")?, || Connects::to(TO, connects));
    let connects = measure(plan, &scene, &mut connecting, || Ok(count.load(Relaxed)))?;
    drop(connecting);
    let sent = || Ok(scene.lab.link_stats(&named("r"), "out")?.tx.packets);
    let mut sending = Generator::start(scene.netns("r")?, || Datagrams::to(TO));
    let own = measure(plan, &scene, &mut sending, sent)?;
    drop(sending);
    let frame = Frame {
        source_mac: [2, 0, 0, 0, 1, 1],
        destination_mac: [2, 0, 0, 0, 1, 2],
        source: [10, 88, 1, 2],
        destination: [10, 88, 2, 2],
        source_port: 1024,
        destination_port: 9,
    };
    let mut router = Generator::start(scene.netns("a")?, move || {
        Frames::by("eth0", vec![frame.bytes(); 64])
    });
    let forwarded = measure(plan, &scene, &mut router, sent)?;

    let mut part = Part {
        name: "lookups",
        title: "Per lookup",
        method: "Connects: `connect()` of a UDP socket, a lookup and no packet. Sends: datagrams by a socket that is not \
                 connected, one lookup each; another namespace receives and drops them, and what netobs does at that is in the \
                 figure. Forwarded: small frames through a router to another namespace, which drops them: one lookup, two \
                 receptions and a drop each. In slices as above. The decisions that netobs counted for the namespace equal \
                 what was done (by the kernel's counters where there are packets), in every slice. \
                 The floor are programs that do nothing, at the tracepoints where netobs has programs (a run of one takes some 50 ns by \
                 itself)."
            .to_owned(),
        ..Part::default()
    };
    for (title, measured) in [
        ("Connects", &connects),
        ("Sends", &own),
        ("Forwarded", &forwarded),
    ] {
        let mut table = Table::new(
            title,
            "observer",
            [
                column("lookups per second", "of none", 3),
                column("added CPU", "ns per lookup", 0),
                column("over the floor", "ns per lookup", 0),
            ],
        );
        for runs in &measured.runs {
            let rate = Spread::of(runs.rate.iter().copied());
            let added = Spread::of(runs.added.iter().copied());
            table.row(&runs.name, [rate, added, over(measured, &runs.name)?]);
        }
        part.tables.push(table);
        if let Some(cost) = Spread::of(measured.cost.iter().copied()) {
            part.notes.push(format!(
                "{title}, without observer: {:.0} ns of CPU each.",
                cost.median
            ));
        }
    }
    for (what, measured) in [
        ("connect", &connects),
        ("send", &own),
        ("forwarded", &forwarded),
    ] {
        part.target(
            format!("a lookup ({what}), netobs over programs that do nothing"),
            "ns",
            Bound::AtMost(25.0),
            over(measured, TOTALS)?,
        );
    }
    part.target(
        "packets per second through a router, netobs against none",
        "",
        Bound::AtLeast(0.95),
        Spread::of(forwarded.of(TOTALS)?.rate.iter().copied()),
    );
    Ok(part)
}

const TOTALS: &str = "netobs, totals";
const FLOORS: [&str; 2] = ["an empty program", "empty programs at all tracepoints"];

fn measure(
    plan: Plan,
    scene: &Scene,
    generator: &mut Generator,
    sent: impl FnMut() -> anyhow::Result<u64> + Send,
) -> anyhow::Result<Measured> {
    let cookie = cookie(&scene.netns("r")?)?;
    scene.on_host(|| {
        cpu::stay_on(cpu::others()?)?;
        let mut observers: Vec<Box<dyn Observer + '_>> = vec![
            Box::new(Tracepoints::visit()),
            Box::new(Tracepoints::all()),
            Box::new(Lookups::totals(cookie)),
            Box::new(Lookups::per_route(cookie)),
        ];
        alternate(plan, generator, &mut observers, sent)
    })
}

/// What one adds more than programs that do nothing, where it has some.
fn over(measured: &Measured, name: &str) -> anyhow::Result<Option<Spread>> {
    if FLOORS.contains(&name) {
        return Ok(None);
    }
    let (of, floor) = (measured.of(name)?, measured.of(FLOORS[1])?);
    let pairs = of.added.iter().zip(&floor.added);
    Ok(Spread::of(pairs.map(|(of, floor)| of - floor)))
}

fn named(name: &str) -> Netns {
    Netns::Named(name.to_owned())
}
