//! What is read for scrapers, and written for them: once for all who ask at a time.

use std::{
    collections::HashMap,
    io::Write as _,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use tokio::{
    sync::{Mutex, mpsc, oneshot},
    task, time,
};

use crate::{
    config,
    model::exporter::Exposition,
    render::metrics::{Format, Page},
    world::own_process,
};

/// Who asks again within this time gets the same: a client that asks without end does not
/// make us read without end.
const FRESH: Duration = Duration::from_millis(100);
/// How long an answer may take: Prometheus waits for ten seconds unless told otherwise.
const PATIENCE: Duration = Duration::from_secs(9);

/// What is asked of who observes.
#[derive(Debug)]
pub enum Request {
    /// Read, and say what is to be shown.
    Show(oneshot::Sender<Arc<Exposition>>),
    /// Say that you are there.
    Ping(oneshot::Sender<()>),
}

/// Pages of metrics.
#[derive(Debug)]
pub struct Pages {
    requests: mpsc::Sender<Request>,
    metrics: config::Metrics,
    latest: Mutex<Option<Latest>>,
}

#[derive(Debug)]
struct Latest {
    at: Instant,
    exposition: Arc<Exposition>,
    written: HashMap<(Format, bool), Bytes>,
}

impl Pages {
    /// Asks by `requests`.
    #[must_use]
    pub fn new(requests: mpsc::Sender<Request>, metrics: config::Metrics) -> Self {
        Self {
            requests,
            metrics,
            latest: Mutex::new(None),
        }
    }

    /// The metrics of now, compressed where `gzip`.
    ///
    /// # Errors
    /// Where who observes does not answer in time.
    pub async fn metrics(&self, format: Format, gzip: bool) -> anyhow::Result<Bytes> {
        let mut latest = self.latest.lock().await;
        let fresh = latest.take().filter(|latest| latest.at.elapsed() < FRESH);
        let fresh = match fresh {
            Some(fresh) => fresh,
            None => {
                let (answer, exposition) = oneshot::channel();
                let exposition = self.ask(Request::Show(answer), exposition).await?;
                Latest {
                    at: Instant::now(),
                    exposition,
                    written: HashMap::new(),
                }
            }
        };
        let fresh = latest.insert(fresh);
        if let Some(page) = fresh.written.get(&(format, gzip)) {
            return Ok(page.clone());
        }
        let page = Page {
            exposition: fresh.exposition.clone(),
            process: own_process::read().ok(),
            classes: self.metrics.classes,
            cadvisor: self.metrics.cadvisor,
        };
        // Megabytes, with a thousand namespaces: other connections go on meanwhile.
        let page = task::spawn_blocking(move || write(page, format, gzip))
            .await
            .context("write the metrics")??;
        fresh.written.insert((format, gzip), page.clone());
        Ok(page)
    }

    /// Whether who observes answers.
    pub async fn is_alive(&self) -> bool {
        let (answer, pong) = oneshot::channel();
        self.ask(Request::Ping(answer), pong).await.is_ok()
    }

    async fn ask<T>(&self, request: Request, answer: oneshot::Receiver<T>) -> anyhow::Result<T> {
        let asked = async {
            self.requests.send(request).await.ok()?;
            answer.await.ok()
        };
        time::timeout(PATIENCE, asked)
            .await
            .context("netobs is busy: no sample in time")?
            .context("netobs is ending")
    }
}

fn write(page: Page, format: Format, gzip: bool) -> anyhow::Result<Bytes> {
    let text = page.write(format)?;
    if !gzip {
        return Ok(text.into());
    }
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(text.as_bytes())?;
    Ok(encoder.finish()?.into())
}
