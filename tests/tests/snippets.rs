//! What the documentation shows can be run. How it is marked is in `markdown/mod.rs`.

mod markdown;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::Context as _;
use markdown::{Snippet, snippets};
use netobs_tests::{Container, Lab, Proc, netobs_binary};

/// Seconds that a script may take.
const LIMIT: &str = "60";

/// netobs as scripts find it: what would go on without end is ended as by Ctrl-C.
const WRAPPER: &str = r#"#!/bin/sh
case $1 in watch | routes | serve)
    case " $* " in
    *" --once "* | *" -n "* | *" --count"*) ;;
    *) exec timeout --preserve-status --signal=INT 3 NETOBS "$@" ;;
    esac
esac
exec NETOBS "$@"
"#;

/// Fetches from `web`, and pings it.
const TALK: &str = "while :; do
    wget -q -O /dev/null http://$0/
    ping -c 1 -W 1 -q $0 >/dev/null
    sleep 0.2
done";

/// A UDP socket that connects looks up a route and sends nothing. One of these fails in
/// `netshoot_b`.
const LOOK_UP: &str = "while :; do
    (exec 3<>/dev/udp/8.8.8.8/53)
    (exec 3<>/dev/udp/203.0.113.9/53)
    sleep 0.2
done";

/// The containers that the documentation tells of.
struct Scene {
    // End before the lab.
    _lookups: Vec<Proc>,
    lab: Lab,
}

impl Scene {
    fn start() -> anyhow::Result<Self> {
        let lab = Lab::with_docker()?;
        let web = lab.run_container("web", &[], &["httpd", "-f", "-p", "80", "-h", "/www"])?;
        let a = lab.run_container("netshoot_a", &["--cap-add=NET_ADMIN"], &[])?;
        let b = lab.run_container("netshoot_b", &["--cap-add=NET_ADMIN"], &[])?;
        a.exec(["route", "add", "-host", "8.8.8.8", "dev", "eth0"])?;
        b.exec(["ip", "route", "add", "unreachable", "203.0.113.0/24"])?;
        let address = web.address()?;
        for container in [&a, &b] {
            let talk = ["exec", "--detach", container.name(), "sh", "-c", TALK];
            lab.docker(talk).arg(&address).text()?;
        }
        let look_up =
            |container: &Container<'_>| container.command("bash").args(["-c", LOOK_UP]).start();
        let lookups = vec![look_up(&a)?, look_up(&b)?];
        drop((web, a, b));
        let bin = lab.tmp().join("bin");
        fs::create_dir_all(&bin)?;
        fs::create_dir_all(lab.tmp().join("work"))?;
        let netobs = netobs_binary()?.display().to_string();
        fs::write(bin.join("netobs"), WRAPPER.replace("NETOBS", &netobs))?;
        lab.shell(&format!("chmod 755 '{}/netobs'", bin.display()))?;
        Ok(Self {
            _lookups: lookups,
            lab,
        })
    }

    /// What is wrong with `snippet`, if anything is.
    fn run(&self, snippet: &Snippet) -> anyhow::Result<Option<String>> {
        let tmp = self.lab.tmp();
        let path = std::env::var("PATH").context("PATH")?;
        let mut command = self.lab.command("timeout");
        let output = command
            .args([LIMIT, "bash", "-euo", "pipefail", "-c", &snippet.script])
            .env("PATH", format!("{}:{path}", tmp.join("bin").display()))
            .env("DOCKER_HOST", self.lab.docker_host())
            .stdin(Stdio::null())
            .current_dir(tmp.join("work"))?
            .output()?;
        let doubt = match output.status.code() {
            Some(code) if code == snippet.code => snippet.doubt(&output.stdout),
            Some(124) => Some(format!("took more than {LIMIT} s")),
            Some(code) => Some(format!("ended with {code}, not {}", snippet.code)),
            None => Some(format!("ended with {}", output.status)),
        };
        Ok(doubt.map(|doubt| {
            let (Snippet { place, script, .. }, said) = (snippet, &output.stderr);
            format!("{place}: {doubt}\n{script}\n{}{said}", output.stdout)
        }))
    }
}

/// The README and the pages, by their paths from the root.
fn documentation() -> anyhow::Result<Vec<(String, String)>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files = vec![PathBuf::from("README.md")];
    for entry in fs::read_dir(root.join("docs"))? {
        let name = entry?.file_name();
        files.push(Path::new("docs").join(name));
    }
    files.retain(|file| file.extension().is_some_and(|end| end == "md"));
    files.sort();
    let read = |file: PathBuf| {
        let text = fs::read_to_string(root.join(&file));
        let text = text.with_context(|| file.display().to_string())?;
        Ok((file.display().to_string(), text))
    };
    files.into_iter().map(read).collect()
}

#[test]
fn every_shell_block_of_the_documentation_does_what_it_says() -> anyhow::Result<()> {
    let mut all = Vec::new();
    for (file, text) in documentation()? {
        all.extend(snippets(&file, &text)?);
    }
    assert!(all.len() >= 30, "only {}: have they moved?", all.len());
    let scene = Scene::start()?;
    let mut wrong = Vec::new();
    for snippet in &all {
        wrong.extend(scene.run(snippet)?);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    Ok(())
}

#[test]
fn blocks_are_what_their_fences_say() -> anyhow::Result<()> {
    let text = "Words\n\n```sh exit 5\none\ntwo\n```\n- a list\n    that goes on\n\n\
                ```text\n    $ no\n```\n```console\n$ ls | head\nA  B\n1\n$ true\n```\n\
                ```sh no-run: takes a day\nsleep 1d\n```\n```sh\nls\n```\n```sh quiet\ntrue\n```\n";
    let snippet = |line: u8, script: &str| Snippet {
        place: format!("x.md:{line}"),
        script: script.to_owned(),
        code: 0,
        speaks: false,
        shown: Vec::new(),
    };
    let mut failing = snippet(3, "one\ntwo");
    failing.code = 5;
    let mut session = snippet(13, "ls | head");
    session.shown = vec!["A  B".to_owned(), "1".to_owned()];
    assert_eq!(session.doubt("A B\r\n2\n"), None);
    assert!(session.doubt("B A\n1\n").is_some());
    assert!(session.doubt("\n").is_some());
    let mut script = snippet(22, "ls");
    script.speaks = true;
    assert_eq!(script.doubt("web\n"), None);
    assert!(script.doubt("").is_some());
    let quiet = snippet(25, "true");
    assert_eq!(quiet.doubt(""), None);
    let expected = [failing, session, snippet(13, "true"), script, quiet];
    assert_eq!(snippets("x.md", text)?, expected);
    Ok(())
}

#[test]
fn a_block_that_is_not_marked_is_an_error() {
    for text in [
        "```\nls\n```\n",
        "```bash\nls\n```\n",
        "```sh no-run\nls\n```\n",
        "```sh no-run:\nls\n```\n",
        "```sh exit soon\nls\n```\n",
        "```console\nls\n```\n",
        "```sh loud\nls\n```\n",
        "```console quiet\n$ ls\n```\n",
        "```console\n```\n",
        "```sh\nls\n",
        "Words\n\n    ls\n",
    ] {
        assert!(snippets("x.md", text).is_err(), "{text}");
    }
}
