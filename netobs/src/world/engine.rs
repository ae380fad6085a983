//! Container engines: Docker, and Podman by the same API.
//!
//! A task of its own keeps the list of running containers in step and sends it
//! whole each time something changed. It only ever reads from the engine.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    time::Duration,
};

use bollard::{
    API_DEFAULT_VERSION, Docker,
    models::{ContainerInspectResponse, EventMessageTypeEnum},
    query_parameters::{EventsOptionsBuilder, InspectContainerOptions, ListContainersOptions},
};
use futures_util::StreamExt as _;
use tokio::{sync::mpsc, time};

use super::scan;
use crate::inventory::facts::Container;

/// Where engines listen unless they were told otherwise.
const SOCKETS: [&str; 3] = [
    "/var/run/docker.sock",
    "/run/docker.sock",
    "/run/podman/podman.sock",
];
/// For an answer of the API.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Between attempts to reach an engine that is not there.
const RETRY: Duration = Duration::from_secs(1);
/// Further events within this time are answered by the same look.
const SETTLE: Duration = Duration::from_millis(5);

/// What the task tells.
#[derive(Clone, Debug)]
pub enum Update {
    /// All running containers, and the folders of their sandboxes.
    Containers(Vec<Container>, Vec<PathBuf>),
    /// No engine listens where one usually does. Fine.
    Absent,
    /// There is an engine (or there should be), and this is wrong with it.
    Trouble(String),
}

/// Where to find the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `--docker-host` or DOCKER_HOST.
    Given(String),
    /// The usual sockets.
    Usual,
}

impl Address {
    /// Checks a URL as `docker -H` takes it. Only engines of this machine make
    /// sense: `unix://PATH` and `tcp://` or `http://` to it.
    ///
    /// # Errors
    /// For other kinds, in words.
    pub fn parse(url: &str) -> Result<Self, String> {
        let known = ["unix://", "tcp://", "http://"];
        if known
            .iter()
            .any(|scheme| url.len() > scheme.len() && url.starts_with(scheme))
        {
            return Ok(Self::Given(url.to_owned()));
        }
        Err(format!(
            "{url:?} is no address of an engine on this machine: unix:///var/run/docker.sock or tcp://127.0.0.1:2375"
        ))
    }

    /// The URL to try; `None` where no engine is told of and none is found.
    fn url(&self) -> Option<String> {
        match self {
            Self::Given(url) => Some(url.clone()),
            Self::Usual => SOCKETS
                .iter()
                .find(|path| Path::new(path).exists())
                .map(|path| format!("unix://{path}")),
        }
    }
}

fn connect(url: &str) -> Result<Docker, bollard::errors::Error> {
    let seconds = TIMEOUT.as_secs();
    if url.starts_with("unix://") {
        Docker::connect_with_unix(url, seconds, API_DEFAULT_VERSION)
    } else {
        Docker::connect_with_http(url, seconds, API_DEFAULT_VERSION)
    }
}

/// Starts the task. The first update comes as soon as it is known whether an
/// engine is there; the channel never closes before its receiver.
#[must_use]
pub fn follow(address: Address) -> mpsc::Receiver<Update> {
    let (send, receive) = mpsc::channel(16);
    tokio::spawn(async move {
        let mut said = None;
        loop {
            let update = match address.url() {
                None => Update::Absent,
                Some(url) => match session(&url, &send).await {
                    Ok(()) => return,
                    Err(why) => Update::Trouble(format!("{url}: {why}")),
                },
            };
            // The same trouble is told once.
            let text = format!("{update:?}");
            if said.as_ref() != Some(&text) {
                said = Some(text);
                if send.send(update).await.is_err() {
                    return;
                }
            }
            time::sleep(RETRY).await;
        }
    });
    receive
}

/// Follows one connection until it breaks; `Ok` when nobody listens any more.
async fn session(url: &str, send: &mpsc::Sender<Update>) -> Result<(), String> {
    let docker = connect(url).map_err(trouble)?;
    let docker = docker.negotiate_version().await.map_err(trouble)?;
    let version = docker.version().await.map_err(trouble)?;
    let runtime = if version
        .components
        .iter()
        .flatten()
        .any(|component| component.name.starts_with("Podman"))
    {
        "podman"
    } else {
        "docker"
    };

    // From a little before the list, so that nothing falls between the two.
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |time| time.as_secs().saturating_sub(1));
    let options = EventsOptionsBuilder::new()
        .since(&since.to_string())
        .filters(&HashMap::from([("type", vec!["container", "network"])]))
        .build();
    let mut events = Box::pin(docker.events(Some(options)));
    let mut known = Known::default();
    loop {
        let update = known.refresh(&docker, runtime).await.map_err(trouble)?;
        if send.send(update).await.is_err() {
            return Ok(());
        }
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                () = send.closed() => return Ok(()),
            };
            let event = event
                .ok_or("the engine closed the stream of events")?
                .map_err(trouble)?;
            if known.concerns(
                event.typ,
                event.action.as_deref(),
                event.actor.and_then(|a| a.id),
            ) {
                break;
            }
        }
        // Starting a container is several events.
        while let Ok(Some(event)) = time::timeout(SETTLE, events.next()).await {
            let event = event.map_err(trouble)?;
            known.concerns(
                event.typ,
                event.action.as_deref(),
                event.actor.and_then(|a| a.id),
            );
        }
    }
}

/// The chain of reasons, each once.
fn trouble(error: bollard::errors::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// What is known of containers, so that only new and changed ones are asked for.
#[derive(Default)]
struct Known {
    containers: HashMap<String, (Container, Option<PathBuf>)>,
}

impl Known {
    /// Whether an event may change the list; forgets what it makes stale.
    fn concerns(
        &mut self,
        kind: Option<EventMessageTypeEnum>,
        action: Option<&str>,
        id: Option<String>,
    ) -> bool {
        // An exec in a container is an event too, and a frequent one.
        let noise = [
            "exec_",
            "top",
            "health_status",
            "attach",
            "resize",
            "archive-path",
        ];
        if action.is_some_and(|action| noise.iter().any(|prefix| action.starts_with(prefix))) {
            return false;
        }
        if kind == Some(EventMessageTypeEnum::CONTAINER)
            && let Some(id) = id
        {
            self.containers.remove(&id);
        }
        true
    }

    async fn refresh(
        &mut self,
        docker: &Docker,
        runtime: &str,
    ) -> Result<Update, bollard::errors::Error> {
        let list = docker
            .list_containers(Some(ListContainersOptions::default()))
            .await?;
        let ids: Vec<String> = list.into_iter().filter_map(|summary| summary.id).collect();
        self.containers.retain(|id, _| ids.contains(id));
        for id in ids {
            if self.containers.contains_key(&id) {
                continue;
            }
            let inspect = docker
                .inspect_container(&id, None::<InspectContainerOptions>)
                .await;
            match inspect {
                Ok(inspect) => {
                    if let Some(container) = container(runtime, &id, inspect) {
                        self.containers.insert(id, container);
                    }
                }
                // It ended between the list and the question.
                Err(bollard::errors::Error::DockerResponseServerError {
                    status_code: 404, ..
                }) => {}
                Err(error) => return Err(error),
            }
        }
        let mut sandboxes: Vec<PathBuf> = self
            .containers
            .values()
            .filter_map(|(_, sandbox)| sandbox.clone())
            .collect();
        sandboxes.sort();
        sandboxes.dedup();
        Ok(Update::Containers(
            self.containers
                .values()
                .map(|(container, _)| container.clone())
                .collect(),
            sandboxes,
        ))
    }
}

/// `None` where it does not run.
fn container(
    runtime: &str,
    id: &str,
    inspect: ContainerInspectResponse,
) -> Option<(Container, Option<PathBuf>)> {
    let pid = inspect.state.as_ref()?.pid?;
    let pid = u32::try_from(pid).ok().filter(|pid| *pid > 0)?;
    let name = inspect.name.unwrap_or_default();
    let name = name.strip_prefix('/').unwrap_or(&name);
    let sandbox = inspect
        .network_settings
        .and_then(|settings| settings.sandbox_key)
        .filter(|key| !key.is_empty())
        .and_then(|key| Some(Path::new(&key).parent()?.to_path_buf()));
    let container = Container {
        runtime: runtime.to_owned(),
        id: id.to_owned(),
        name: if name.is_empty() { short(id) } else { name }.to_owned(),
        image: inspect.config.and_then(|config| config.image),
        pid,
        started: scan::started(pid),
        inode: scan::inode_of(pid),
    };
    Some((container, sandbox))
}

fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}
