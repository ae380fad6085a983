//! What the eBPF programs log reaches `-v`.

mod wire;

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
};

use netobs_tests::netobs_binary;

#[test]
fn a_header_cut_short_is_told_by_the_programs_with_v() {
    wire::in_new_namespace(|| {
        let mut netobs = Command::new(netobs_binary().expect("the binary"))
            .args(["-v", "watch", "host", "-i", "200ms", "-n", "100"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start netobs");
        let mut lines = BufReader::new(netobs.stderr.take().expect("a pipe")).lines();
        let mut wait_for = |text: &str| {
            lines
                .by_ref()
                .map(|line| line.expect("a line"))
                .find(|line| line.contains(text))
                .unwrap_or_else(|| panic!("netobs ended without saying {text:?}"))
        };
        // Both ends are observed: a frame that enters one leaves the other.
        wait_for("observing wire");
        wait_for("observing wire");
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
        frame.extend([0x45; 5]);
        wire::Wire::open(wire::DEVICE, false).send(&frame);
        let line = wait_for("a header of class 3 ends after 19 bytes");
        assert!(
            line.contains("INFO") && line.contains("netobs_ebpf"),
            "{line}"
        );

        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(netobs.id().try_into().expect("a pid")),
            nix::sys::signal::Signal::SIGTERM,
        )
        .expect("signal netobs");
        assert!(
            netobs.wait().expect("wait").success(),
            "SIGTERM is a good end"
        );
    });
}
