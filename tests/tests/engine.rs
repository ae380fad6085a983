//! Container engines that are broken, each in its own way. No real one can be made
//! to be: here a small server stands in for it. What a real one that stops, dies
//! and comes back does is in `live.rs`.

mod common;

use std::{
    fs,
    io::{self, Read as _, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use common::{Watch, rows, warnings};
use netobs_tests::{Lab, poll_until};
use serde_json::{Value, json};

/// Longer than netobs has patience for an answer.
const PATIENCE: Duration = Duration::from_secs(40);
const ID: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const STUCK: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

/// How the engine answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Well,
    /// Takes the question and says nothing.
    Silent,
    /// Half of an answer, and then nothing.
    HalfAnswer,
    /// Promises more than comes, and closes.
    CutOff,
    /// Promises more than comes, and waits.
    TooLittle,
    /// A chunk now and then, without an end.
    EndlessChunks,
    /// No HTTP.
    Garbage,
    /// Status 500, with a message.
    Failing,
    /// A login page, say, with status 200.
    Html,
    /// JSON that means nothing.
    OtherJson,
    /// Hundreds of megabytes of list.
    HugeList,
    /// The same, promised at once.
    HugePromise,
    /// An event of hundreds of megabytes.
    HugeEvent,
    /// Events that are none.
    GarbageEvents,
    /// Closes the stream of events at once.
    NoEvents,
    /// More events than anybody can read.
    EventStorm,
    /// Answers about all containers but one.
    OneStuck,
}

/// What the engine does now.
#[derive(Debug)]
struct State {
    way: Way,
    name: String,
    pid: u64,
    /// Of what it did before nothing goes on.
    generation: u64,
}

/// A server that speaks as much of the API as netobs asks for.
struct Engine {
    state: Arc<Mutex<State>>,
    socket: PathBuf,
}

impl Engine {
    fn start(lab: &Lab, pid: u64) -> anyhow::Result<Self> {
        let socket = lab.tmp().join("engine.sock");
        let listener = UnixListener::bind(&socket)?;
        let state = Arc::new(Mutex::new(State {
            way: Way::Well,
            name: "first".to_owned(),
            pid,
            generation: 0,
        }));
        let shared = Arc::clone(&state);
        // Both end with the process of this test.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                thread::spawn(move || Connection::new(stream, state).serve());
            }
        });
        Ok(Self { state, socket })
    }

    fn url(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    fn now(&self, way: Way, name: &str) {
        let mut state = locked(&self.state);
        state.way = way;
        state.name = name.to_owned();
        state.generation += 1;
    }
}

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Connection {
    stream: UnixStream,
    state: Arc<Mutex<State>>,
    way: Way,
    generation: u64,
}

impl Connection {
    fn new(stream: UnixStream, state: Arc<Mutex<State>>) -> Self {
        let (way, generation) = {
            let state = locked(&state);
            (state.way, state.generation)
        };
        Self {
            stream,
            state,
            way,
            generation,
        }
    }

    /// netobs may go away at any time.
    fn serve(mut self) {
        let _gone = self.head().and_then(|path| self.answer(&path));
    }

    fn head(&mut self) -> io::Result<String> {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            self.stream.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        Ok(head.split(' ').nth(1).unwrap_or_default().to_owned())
    }

    fn is_current(&self) -> bool {
        locked(&self.state).generation == self.generation
    }

    /// Until the engine is to do something else.
    fn hold(&self) -> io::Result<()> {
        while self.is_current() {
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn send(&mut self, text: &str) -> io::Result<()> {
        self.stream.write_all(text.as_bytes())
    }

    fn body(&mut self, status: &str, body: &str) -> io::Result<()> {
        let len = body.len();
        self.send(&format!(
            "HTTP/1.1 {status}\r\nContent-Length: {len}\r\n\r\n{body}"
        ))
    }

    fn chunks(&mut self) -> io::Result<()> {
        self.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    }

    /// The same bytes again and again, some 400 MB or until the engine is to do
    /// something else.
    fn flood(&mut self, part: &str) -> io::Result<()> {
        let part = part.repeat((64 << 10) / part.len());
        let chunk = format!("{:x}\r\n{part}\r\n", part.len());
        for _ in 0..6400 {
            if !self.is_current() {
                break;
            }
            self.send(&chunk)?;
        }
        Ok(())
    }

    fn answer(&mut self, path: &str) -> io::Result<()> {
        let events = path.contains("/events");
        let list = path.ends_with("/containers/json");
        match self.way {
            Way::Silent => self.hold(),
            Way::HalfAnswer => {
                self.send("HTTP/1.1 200 OK\r\nContent-Length: 400\r\n\r\n{\"ApiVer")?;
                self.hold()
            }
            Way::TooLittle if !events => {
                let body = self.good(path);
                let len = body.len() + 1;
                self.send(&format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {len}\r\n\r\n{body}"
                ))?;
                self.hold()
            }
            Way::CutOff => self.send("HTTP/1.1 200 OK\r\nContent-Length: 400\r\n\r\n{\"ApiVer"),
            Way::EndlessChunks if !events => {
                self.chunks()?;
                while self.is_current() {
                    self.send("1\r\n \r\n")?;
                    thread::sleep(Duration::from_millis(50));
                }
                Ok(())
            }
            Way::Garbage => self.send("\u{1b}[2J\0\u{7f}no such protocol\r\n\r\n"),
            Way::Failing => self.body("500 Internal Server Error", r#"{"message":"disk is full"}"#),
            Way::Html => self.body("200 OK", "<!doctype html><title>Log in</title>"),
            Way::OtherJson => self.body("200 OK", r#"{"ApiVersion":[],"x":null}"#),
            Way::HugeList if list => {
                self.chunks()?;
                self.send("1\r\n[\r\n")?;
                self.flood(&format!(r#"{{"Id":"{ID}"}},"#))
            }
            Way::HugePromise if list => {
                self.send("HTTP/1.1 200 OK\r\nContent-Length: 400000000\r\n\r\n[")?;
                self.hold()
            }
            Way::HugeEvent if events => {
                self.chunks()?;
                self.flood("x")
            }
            Way::GarbageEvents if events => {
                self.chunks()?;
                self.send("8\r\nsurely!\n\r\n")?;
                self.hold()
            }
            Way::NoEvents if events => {
                self.chunks()?;
                self.send("0\r\n\r\n")
            }
            Way::EventStorm if events => {
                self.chunks()?;
                let event = json!({"Type": "container", "Action": "start", "Actor": {"ID": ID}});
                while self.is_current() {
                    self.flood(&format!("{event}\n"))?;
                }
                Ok(())
            }
            Way::OneStuck if path.contains(STUCK) => self.hold(),
            _ if events => {
                self.chunks()?;
                self.hold()
            }
            _ => {
                let body = self.good(path);
                self.body("200 OK", &body)
            }
        }
    }

    fn good(&self, path: &str) -> String {
        let state = locked(&self.state);
        let answer = match path {
            "/version" => json!({"ApiVersion": "1.47"}),
            "/v1.47/containers/json" if self.way == Way::OneStuck => {
                json!([{"Id": STUCK}, {"Id": ID}])
            }
            "/v1.47/containers/json" => json!([{"Id": ID}]),
            _ if path.contains(ID) => json!({
                "Name": format!("/{}", state.name),
                "State": {"Pid": state.pid},
                "Config": {"Image": "image"},
            }),
            // netobs has no business here.
            _ => json!({"message": path}),
        };
        answer.to_string()
    }
}

/// A process in a namespace of its own, which the engine calls a container; its
/// number inside the lab.
fn container(lab: &Lab) -> anyhow::Result<(netobs_tests::Proc, u64)> {
    let netns = lab.netns_add("box")?;
    lab.shell(
        "ip link add vbox type veth peer name eth0 netns box
         ip link set vbox up
         ip -n box link set eth0 up",
    )?;
    let process = lab.command_in(&netns, "sleep").arg("1000").start()?;
    let status = format!("/proc/{}/status", process.pid());
    let pid = poll_until(common::SOON, "the process's number", || {
        let status = fs::read_to_string(&status)?;
        let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        let numbers: Vec<&str> = line.context("NSpid")?.split_whitespace().collect();
        // Before it has entered the lab it has one only.
        Ok((numbers.len() > 1).then(|| numbers[numbers.len() - 1].to_owned()))
    })?;
    Ok((process, pid.parse()?))
}

/// Most memory that a process has had so far, in KiB.
fn peak_kib(pid: u32) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let line = line.context("VmHWM")?.trim().trim_end_matches(" kB");
    Ok(line.parse()?)
}

fn named(sample: &Value, name: &str) -> bool {
    rows(sample, name)
        .iter()
        .any(|row| row["kind"] == "container")
}

fn troubles(sample: &Value) -> Vec<&str> {
    let all = warnings(sample, "engine_unreachable").into_iter();
    all.filter_map(|warning| warning["message"].as_str())
        .collect()
}

/// Plays every way after the other on one netobs: each is told in `words`, costs
/// neither samples nor memory, and is over when the engine is well again.
fn endures(ways: &[(Way, &[&str])]) -> anyhow::Result<()> {
    let lab = Lab::new()?;
    let (_process, pid) = container(&lab)?;
    let engine = Engine::start(&lab, pid)?;
    let url = engine.url();
    let mut watch = Watch::start(&lab, &["--docker-host", &url])?;
    watch.until("the first name", |sample| named(sample, "first"))?;
    let memory = peak_kib(watch.proc.pid())?;

    for (number, (way, words)) in ways.iter().enumerate() {
        let bad = format!("bad{number}");
        engine.now(*way, &bad);
        let start = Instant::now();
        let mut seen = watch.proc.stdout().len();
        let told = poll_until(PATIENCE, "the warning", || {
            let lines = watch.proc.stdout();
            let from = seen.min(lines.len());
            seen = lines.len();
            let samples = common::parsed(&lines[from..])?;
            let told = |sample: &Value| {
                let troubles = troubles(sample);
                let told = |text: &&str| words.iter().all(|word| text.contains(word));
                (!words.is_empty() && troubles.iter().any(told))
                    || (words.is_empty() && named(sample, &bad))
            };
            Ok(samples.iter().any(told).then_some(()))
        });
        let last = watch.fresh()?;
        told.with_context(|| format!("{way:?}: {}", last["warnings"]))?;
        eprintln!("{way:?}: told after {:?}", start.elapsed());
        // A name that is known stays, and the row with it.
        let previous = format!("well{}", number.wrapping_sub(1));
        let known = ["first", &bad, &previous]
            .iter()
            .any(|name| named(&last, name));
        assert!(known, "{way:?}: {last}");

        let well = format!("well{number}");
        engine.now(Way::Well, &well);
        watch.until("the new name and no warning", |sample| {
            named(sample, &well) && troubles(sample).is_empty()
        })?;
        let grown = peak_kib(watch.proc.pid())?.saturating_sub(memory);
        assert!(grown < 100 << 10, "{way:?}: {grown} KiB more");
    }
    let samples = watch.samples()?;
    let stderr = watch.end()?.stderr;
    assert!(!stderr.contains("panic"), "{stderr}");
    keeps_pace(&samples);
    Ok(())
}

/// No two samples further from each other than a loaded machine explains, and nearer than
/// the ten seconds that an engine has for an answer; they are taken five times a second.
#[track_caller]
fn keeps_pace(samples: &[Value]) {
    let times: Vec<f64> = samples.iter().map(second_of_the_day).collect();
    assert!(times.len() > 10, "{} samples", times.len());
    for pair in times.windows(2) {
        let seconds = (pair[1] - pair[0]).rem_euclid(86_400.0);
        assert!(seconds < 5.0, "{seconds} s without a sample: {pair:?}");
    }
}

/// Of `2026-11-23T18:00:00.000000Z`.
#[track_caller]
fn second_of_the_day(sample: &Value) -> f64 {
    let time = sample["time"].as_str().expect("a time");
    let (_, clock) = time.trim_end_matches('Z').split_once('T').expect("a clock");
    let numbers = clock.split(':').map(|number| number.parse::<f64>());
    numbers.fold(0.0, |sum, number| sum * 60.0 + number.expect("a number"))
}

#[test]
fn an_engine_that_hangs_stops_nothing_and_is_told() -> anyhow::Result<()> {
    endures(&[
        (Way::Silent, &["GET /version", "no answer in time"]),
        (Way::HalfAnswer, &["GET /version", "did not end in time"]),
        (Way::OneStuck, &[STUCK, "no answer in time"]),
    ])
}

#[test]
fn an_engine_whose_answers_never_end_stops_nothing_and_is_told() -> anyhow::Result<()> {
    endures(&[
        (Way::TooLittle, &["GET /version", "did not end in time"]),
        (Way::EndlessChunks, &["GET /version", "did not end in time"]),
        (Way::EventStorm, &[]),
    ])
}

#[test]
fn an_engine_that_answers_nonsense_stops_nothing_and_is_told() -> anyhow::Result<()> {
    endures(&[
        (Way::CutOff, &["GET /version", "end of file"]),
        (Way::Garbage, &["GET /version", "invalid HTTP"]),
        (Way::Failing, &["500 Internal Server Error", "disk is full"]),
        (Way::Html, &["is no JSON", "<title>Log in"]),
        (Way::OtherJson, &["no version of Docker's API"]),
        (Way::GarbageEvents, &["in the stream of events", "surely!"]),
        (Way::NoEvents, &["closed the stream of events"]),
    ])
}

#[test]
fn an_engine_without_measure_fills_no_memory_and_is_told() -> anyhow::Result<()> {
    endures(&[
        (Way::HugeList, &["containers/json", "longer than 16 MiB"]),
        (Way::HugePromise, &["containers/json", "longer than 16 MiB"]),
        (Way::HugeEvent, &["an event of more than 1 MiB"]),
    ])
}
