//! The HTTP server, on a thread of its own: no client holds up the observing.

use std::{
    convert::Infallible,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Response, StatusCode,
    body::Incoming,
    header::{self, HeaderMap, HeaderValue},
    http::request::Parts,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::{GracefulShutdown, Watcher},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    runtime,
    sync::{Semaphore, oneshot},
    task, time,
};
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::TlsAcceptor;

use super::{
    config::Reloading,
    listen::{Bound, Listener},
    pages::Pages,
};
use crate::render::metrics::Format;

/// Clients at one time; who comes when there are as many is turned away.
const MOST_CLIENTS: usize = 128;
/// A client has so long for the head of a request, also between two of them, and for taking
/// the next part of an answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest head of a request.
const HEAD_BYTES: usize = 16 << 10;
/// How long answers under way are waited for in the end.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// After an error of `accept`, which comes back at once: too many open files.
const BREATH: Duration = Duration::from_millis(100);

/// A server that runs.
#[derive(Debug)]
pub struct Server {
    /// Dropped: the end.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Server {
    /// Serves `pages` at `bound`, to whom `config` says.
    ///
    /// # Errors
    /// Where there can be no thread or runtime.
    pub fn start(bound: Vec<Bound>, pages: Pages, config: Option<Reloading>) -> io::Result<Self> {
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (stop, stopped) = oneshot::channel();
        let thread = thread::Builder::new()
            .name("http".to_owned())
            .spawn(move || {
                let site = Arc::new(Site {
                    pages,
                    config,
                    clients: Arc::new(Semaphore::new(MOST_CLIENTS)),
                    graceful: Mutex::new(Some(GracefulShutdown::new())),
                });
                runtime.block_on(site.serve(bound, stopped));
                runtime.shutdown_background();
            })?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the HTTP server has panicked");
        }
    }
}

/// What all connections share.
struct Site {
    pages: Pages,
    config: Option<Reloading>,
    clients: Arc<Semaphore>,
    /// Knows the connections, until the end.
    graceful: Mutex<Option<GracefulShutdown>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Site {
    async fn serve(self: Arc<Self>, bound: Vec<Bound>, stopped: oneshot::Receiver<()>) {
        let mut files = Vec::new();
        for Bound { listener, file } in bound {
            files.push(file);
            let site = self.clone();
            tokio::spawn(async move {
                let Err(error) = site.accept(listener).await;
                log::error!("the HTTP server: {error}");
            });
        }
        // An error too: who would stop us is gone.
        let _ = stopped.await;
        drop(files);
        let graceful = lock(&self.graceful).take();
        if let Some(graceful) = graceful {
            let _ = time::timeout(LAST_WORDS, graceful.shutdown()).await;
        }
    }

    async fn accept(self: Arc<Self>, listener: Listener) -> io::Result<Infallible> {
        match listener {
            Listener::Tcp(tcp) => {
                let tcp = TcpListener::from_std(tcp)?;
                loop {
                    self.meet(tcp.accept().await).await;
                }
            }
            Listener::Unix(unix) => {
                let unix = UnixListener::from_std(unix)?;
                loop {
                    self.meet(unix.accept().await).await;
                }
            }
        }
    }

    /// Serves whoever has connected, as long as there are not too many.
    async fn meet<S, A>(self: &Arc<Self>, accepted: io::Result<(S, A)>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                log::debug!("accept: {error}");
                time::sleep(BREATH).await;
                return;
            }
        };
        let Ok(place) = self.clients.clone().try_acquire_owned() else {
            log::debug!("turned a client away: there are {MOST_CLIENTS}");
            return;
        };
        // None any more in the end.
        let watcher = lock(&self.graceful).as_ref().map(GracefulShutdown::watcher);
        let Some(watcher) = watcher else { return };
        let site = self.clone();
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(PATIENCE));
        let stream = Box::pin(stream);
        tokio::spawn(async move {
            match site
                .config
                .as_ref()
                .and_then(|config| config.current().tls())
            {
                None => site.talk(stream, watcher).await,
                Some(tls) => {
                    let secured = TlsAcceptor::from(tls).accept(stream);
                    match time::timeout(PATIENCE, secured).await {
                        Ok(Ok(stream)) => site.talk(stream, watcher).await,
                        Ok(Err(error)) => log::debug!("a client: {error}"),
                        Err(_) => log::debug!("a client: no TLS handshake in time"),
                    }
                }
            }
            drop(place);
        });
    }

    async fn talk<S>(self: Arc<Self>, stream: S, watcher: Watcher)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            let site = self.clone();
            async move {
                let (head, _) = request.into_parts();
                Ok::<_, Infallible>(site.admit(&head).await)
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(PATIENCE)
            .max_buf_size(HEAD_BYTES)
            .serve_connection(TokioIo::new(stream), service);
        // A client that goes away, or speaks something else, is none of our trouble.
        if let Err(error) = watcher.watch(connection).await {
            log::debug!("a client: {error}");
        }
    }

    /// Answers whoever may ask.
    async fn admit(&self, head: &Parts) -> Response<Full<Bytes>> {
        let Some(config) = self.config.as_ref().map(Reloading::current) else {
            return self
                .answer(&head.method, head.uri.path(), &head.headers)
                .await;
        };
        let authorization = head.headers.get(header::AUTHORIZATION);
        let authorization = authorization.map(|value| value.as_bytes().to_vec());
        let asked = config.clone();
        let admits = !config.has_users()
            || task::spawn_blocking(move || asked.admits(authorization.as_deref()))
                .await
                .unwrap_or(false);
        let mut response = if admits {
            self.answer(&head.method, head.uri.path(), &head.headers)
                .await
        } else {
            let mut response = plain(StatusCode::UNAUTHORIZED, "Unauthorized\n");
            response.headers_mut().insert(
                header::WWW_AUTHENTICATE,
                HeaderValue::from_static("Basic realm=\"netobs\""),
            );
            response
        };
        for (name, value) in config.headers() {
            response.headers_mut().insert(name.clone(), value.clone());
        }
        response
    }

    async fn answer(
        &self,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
    ) -> Response<Full<Bytes>> {
        if method != Method::GET && method != Method::HEAD {
            let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
            response
                .headers_mut()
                .insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        match path {
            "/metrics" => self.metrics(headers).await,
            "/healthz" | "/-/healthy" => {
                if self.pages.is_alive().await {
                    plain(StatusCode::OK, "ok\n")
                } else {
                    plain(StatusCode::SERVICE_UNAVAILABLE, "netobs does not answer\n")
                }
            }
            "/" => {
                let mut response = plain(StatusCode::OK, INDEX);
                response.headers_mut().insert(
                    header::CONTENT_TYPE,
                    HeaderValue::from_static("text/html; charset=utf-8"),
                );
                response
            }
            _ => plain(
                StatusCode::NOT_FOUND,
                "not here: see /metrics, /healthz and /\n",
            ),
        }
    }

    async fn metrics(&self, headers: &HeaderMap) -> Response<Full<Bytes>> {
        let format = Format::accepted(&all(headers, header::ACCEPT));
        let gzip = accepts_gzip(&all(headers, header::ACCEPT_ENCODING));
        let page = match self.pages.metrics(format, gzip).await {
            Ok(page) => page,
            Err(error) => {
                log::warn!("metrics: {error:#}");
                return plain(StatusCode::SERVICE_UNAVAILABLE, &format!("{error:#}\n"));
            }
        };
        let mut response = Response::new(Full::new(page));
        let fields = response.headers_mut();
        fields.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static(format.content_type()),
        );
        fields.insert(
            header::VARY,
            HeaderValue::from_static("Accept, Accept-Encoding"),
        );
        if gzip {
            fields.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        response
    }
}

const INDEX: &str = concat!(
    "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>netobs</title></head><body>\n\
     <h1>netobs ",
    env!("CARGO_PKG_VERSION"),
    "</h1>\n\
     <p>What the network namespaces of this host send, receive and look up.</p>\n\
     <ul><li><a href=\"/metrics\">/metrics</a>: counters, for Prometheus</li>\n\
     <li><a href=\"/healthz\">/healthz</a>: whether netobs works</li></ul>\n\
     </body></html>\n"
);

fn plain(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::copy_from_slice(text.as_bytes())));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}

/// All lines of a field as one list; what is no text says nothing.
fn all(headers: &HeaderMap, name: header::HeaderName) -> String {
    let lines = headers.get_all(name).iter();
    let lines: Vec<&str> = lines.filter_map(|line| line.to_str().ok()).collect();
    lines.join(",")
}

fn accepts_gzip(accept: &str) -> bool {
    accept.split(',').any(|coding| {
        let mut parts = coding.split(';').map(str::trim);
        let named = parts
            .next()
            .is_some_and(|name| name.eq_ignore_ascii_case("gzip"));
        let refused = parts.any(|part| matches!(part, "q=0" | "q=0.0" | "q=0.00" | "q=0.000"));
        named && !refused
    })
}
