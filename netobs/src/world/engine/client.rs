//! Asks an engine over HTTP: GET and nothing else, within limits of time and
//! memory, so that no engine, however broken, holds up or fills netobs.

use std::{
    error::Error, fmt::Write as _, future::poll_fn, path::PathBuf, pin::Pin, time::Duration,
};

use bytes::{Bytes, BytesMut};
use hyper::{
    Request, StatusCode,
    body::{Body as _, Incoming},
    client::conn::http1,
    header,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    sync::mpsc,
    task::JoinHandle,
    time::{self, Instant},
};

use super::answers::{self, Event};

/// Longest answer: a list of a thousand containers is some 4 MB.
const ANSWER_BYTES: usize = 16 << 20;
/// Longest answer that tells of a failure.
const FAILURE_BYTES: usize = 64 << 10;
/// Longest event: those of Docker have a few kilobytes.
const EVENT_BYTES: usize = 1 << 20;
/// Events that may wait to be taken.
const EVENTS_WAITING: usize = 256;
/// What an engine may say in a burst before it has to wait for [`BREATH`].
const BURST_BYTES: usize = 256 << 10;
/// An event is no cheaper than this many bytes, however short.
const EVENT_COST: usize = 1 << 10;
const BREATH: Duration = Duration::from_millis(10);

/// Where an engine listens.
#[derive(Clone, Debug)]
enum Place {
    Unix(PathBuf),
    Tcp(String),
}

/// A way to ask an engine. Each question has a connection of its own.
#[derive(Clone, Debug)]
pub(super) struct Client(Place);

/// Why a question has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failed {
    /// The status, where the engine gave one.
    pub(super) status: Option<u16>,
    /// What happened, in words.
    pub(super) why: String,
}

impl Failed {
    fn new(path: &str, why: impl std::fmt::Display) -> Self {
        let path = path.split_once('?').map_or(path, |(path, _)| path);
        Self {
            status: None,
            why: format!("GET {path}: {why}"),
        }
    }
}

/// A task that ends with its owner.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// An answer whose body has not been read.
struct Answer {
    status: StatusCode,
    body: Incoming,
    _connection: Task,
}

/// The engine's events, as they come.
pub(super) struct Events {
    receive: mpsc::Receiver<Result<Event, String>>,
    _task: Task,
}

impl Client {
    /// For a `url` that `Address::parse` has accepted.
    pub(super) fn new(url: &str) -> Self {
        if let Some(path) = url.strip_prefix("unix://") {
            return Self(Place::Unix(path.into()));
        }
        let place = url.split_once("://").map_or(url, |(_, place)| place);
        let place = place.split('/').next().unwrap_or(place);
        let has_port = place
            .rsplit_once(':')
            .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        Self(Place::Tcp(if has_port {
            place.to_owned()
        } else {
            format!("{place}:2375")
        }))
    }

    /// Asks for `path` and gives the body of a good answer.
    pub(super) async fn get(&self, path: &str, deadline: Instant) -> Result<Bytes, Failed> {
        let late = |what| Failed::new(path, what);
        let mut answer = time::timeout_at(deadline, self.ask(path))
            .await
            .map_err(|_| late("no answer in time"))?
            .map_err(|why| Failed::new(path, why))?;
        let read = async {
            if answer.status.is_success() {
                let body = answer.whole(ANSWER_BYTES).await;
                body.map_err(|why| Failed::new(path, why))
            } else {
                Err(answer.failure(path).await)
            }
        };
        time::timeout_at(deadline, read)
            .await
            .map_err(|_| late("the answer did not end in time"))?
    }

    /// Follows the stream of events at `path`. Some engines begin to answer only
    /// with the first event: there is no limit of time.
    pub(super) fn events(&self, path: String) -> Events {
        let (send, receive) = mpsc::channel(EVENTS_WAITING);
        let client = self.clone();
        let task = tokio::spawn(async move {
            if let Err(why) = client.follow(&path, &send).await {
                let _nobody_listens = send.send(Err(why)).await;
            }
        });
        Events {
            receive,
            _task: Task(task),
        }
    }

    async fn follow(
        &self,
        path: &str,
        send: &mpsc::Sender<Result<Event, String>>,
    ) -> Result<(), String> {
        let mut answer = self
            .ask(path)
            .await
            .map_err(|why| Failed::new(path, why).why)?;
        if !answer.status.is_success() {
            return Err(answer.failure(path).await.why);
        }
        let mut lines = Lines::default();
        let mut burst = 0;
        while let Some(chunk) = answer.chunk().await {
            lines.rest.extend_from_slice(&chunk?);
            while let Some(line) = lines.next() {
                burst += line.len() + EVENT_COST;
                if !line.trim_ascii().is_empty()
                    && send.send(Ok(answers::event(&line)?)).await.is_err()
                {
                    return Ok(());
                }
                if burst > BURST_BYTES {
                    burst = 0;
                    time::sleep(BREATH).await;
                }
            }
            if lines.rest.len() > EVENT_BYTES {
                return Err(format!(
                    "the engine sent an event of more than {}",
                    mebibytes(EVENT_BYTES)
                ));
            }
        }
        Err("the engine closed the stream of events".to_owned())
    }

    async fn ask(&self, path: &str) -> Result<Answer, String> {
        match &self.0 {
            Place::Unix(socket) => ask(UnixStream::connect(socket).await, path).await,
            Place::Tcp(place) => ask(TcpStream::connect(place).await, path).await,
        }
    }
}

async fn ask<S>(stream: std::io::Result<S>, path: &str) -> Result<Answer, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let stream = TokioIo::new(stream.map_err(|error| error.to_string())?);
    let (mut sender, connection) = http1::handshake::<_, String>(stream)
        .await
        .map_err(|error| chain(&error))?;
    let connection = Task(tokio::spawn(async move {
        // What breaks is told where the answer is read.
        let _ = connection.await;
    }));
    let request = Request::get(path)
        .header(header::HOST, "localhost")
        .header(header::USER_AGENT, "netobs")
        .body(String::new())
        .map_err(|error| chain(&error))?;
    let response = sender
        .send_request(request)
        .await
        .map_err(|error| chain(&error))?;
    Ok(Answer {
        status: response.status(),
        body: response.into_body(),
        _connection: connection,
    })
}

impl Answer {
    /// The next part of the body.
    async fn chunk(&mut self) -> Option<Result<Bytes, String>> {
        loop {
            let frame = poll_fn(|context| Pin::new(&mut self.body).poll_frame(context)).await?;
            match frame.map(hyper::body::Frame::into_data) {
                Ok(Ok(data)) => return Some(Ok(data)),
                // Trailers.
                Ok(Err(_)) => {}
                Err(error) => return Some(Err(chain(&error))),
            }
        }
    }

    /// The whole body, if it is no longer than `limit`.
    async fn whole(&mut self, limit: usize) -> Result<Bytes, String> {
        let too_long = || format!("the answer is longer than {}", mebibytes(limit));
        if self.body.size_hint().lower() > limit as u64 {
            return Err(too_long());
        }
        let mut body = BytesMut::new();
        while let Some(chunk) = self.chunk().await {
            let chunk = chunk?;
            if body.len() + chunk.len() > limit {
                return Err(too_long());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.freeze())
    }

    /// What an answer with another status than a good one means.
    async fn failure(&mut self, path: &str) -> Failed {
        let body = self.whole(FAILURE_BYTES).await.unwrap_or_default();
        let said = answers::failure(&body);
        let mut why = format!("the engine answered {}", self.status);
        if !said.is_empty() {
            // Writing to a String cannot fail.
            let _ = write!(why, ": {said}");
        }
        Failed {
            status: Some(self.status.as_u16()),
            ..Failed::new(path, why)
        }
    }
}

impl Events {
    /// The next event; an error is the last one's.
    pub(super) async fn next(&mut self) -> Result<Event, String> {
        let event = self.receive.recv().await;
        event.unwrap_or_else(|| Err("the stream of events has ended".to_owned()))
    }
}

/// Bytes that are cut at line ends.
#[derive(Default)]
struct Lines {
    rest: BytesMut,
    /// How much of `rest` has no line end.
    searched: usize,
}

impl Lines {
    fn next(&mut self) -> Option<BytesMut> {
        let found = self.rest[self.searched..].iter().position(|b| *b == b'\n');
        let Some(at) = found else {
            self.searched = self.rest.len();
            return None;
        };
        let line = self.rest.split_to(self.searched + at + 1);
        self.searched = 0;
        Some(line)
    }
}

fn mebibytes(bytes: usize) -> String {
    if bytes < 1 << 20 {
        return format!("{} KiB", bytes >> 10);
    }
    format!("{} MiB", bytes >> 20)
}

/// The chain of reasons, each once.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_lead_to_places() {
        let place = |url| format!("{:?}", Client::new(url).0);
        assert_eq!(place("unix:///run/d.sock"), r#"Unix("/run/d.sock")"#);
        assert_eq!(place("tcp://127.0.0.1:99"), r#"Tcp("127.0.0.1:99")"#);
        assert_eq!(place("tcp://[::1]:99/"), r#"Tcp("[::1]:99")"#);
        assert_eq!(place("http://[::1]"), r#"Tcp("[::1]:2375")"#);
        assert_eq!(place("http://localhost/"), r#"Tcp("localhost:2375")"#);
    }

    #[test]
    fn lines_are_cut_wherever_the_chunks_are() {
        let text = b"one\n\ntwo\nthree";
        for size in 1..text.len() {
            let mut lines = Lines::default();
            let mut found = Vec::new();
            for chunk in text.chunks(size) {
                lines.rest.extend_from_slice(chunk);
                while let Some(line) = lines.next() {
                    found.push(line.to_vec());
                }
            }
            assert_eq!(found, [&b"one\n"[..], b"\n", b"two\n"], "{size}");
            assert_eq!(&lines.rest[..], b"three");
        }
    }
}
