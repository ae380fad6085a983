//! Container engines: Docker, and Podman by the same API.
//!
//! A thread of its own keeps the list of running containers in step and sends it
//! whole each time something changed: whatever an engine does, it does not hold up
//! the observing. It only ever reads from the engine.
//!
//! What the events tell of containers goes ahead of that. While a container starts,
//! Docker answers no question about it, and one that lives for a moment has ended
//! before the answer; but its name is in the event of its making.

mod answers;
mod client;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet, VecDeque},
    path::{Path, PathBuf},
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::{StreamExt as _, stream};
use tokio::{
    sync::mpsc,
    time::{self, Instant},
};

use self::{
    answers::{Event, Ids, Inspected, Version},
    client::{Client, Events, Failed},
};
use super::scan;
use crate::inventory::facts::Container;

/// Where engines listen unless they were told otherwise.
const SOCKETS: [&str; 3] = [
    "/var/run/docker.sock",
    "/run/docker.sock",
    "/run/podman/podman.sock",
];
/// For an answer of the engine, and for those about all containers together.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Between attempts to reach an engine that is not there, or answers badly.
const RETRY: Duration = Duration::from_secs(1);
/// Further events within this time are answered by the same look.
const SETTLE: Duration = Duration::from_millis(5);
/// An engine that never stops telling of events is looked at nevertheless.
const SETTLE_AT_MOST: Duration = Duration::from_millis(100);
/// Between looks at an engine that tells of no events: it may hang.
const QUIET: Duration = Duration::from_secs(30);
/// Containers that are asked about at once.
const AT_ONCE: usize = 8;
/// Containers that are remembered for having been made or started: of the newest
/// ones some may not have begun to run.
const MOST_MADE: usize = 256;
/// The events that matter: `{"type":["container","network"]}`.
const FILTERS: &str = "%7B%22type%22%3A%5B%22container%22%2C%22network%22%5D%7D";

/// What runs, as far as the engine tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Running {
    /// The containers.
    pub containers: Vec<Container>,
    /// The folders of their sandboxes.
    pub sandboxes: Vec<PathBuf>,
    /// The containers that the engine told of last, whether or not they run.
    pub made: VecDeque<Made>,
    /// Why some containers may be missing.
    pub trouble: Option<String>,
}

/// What the engine's events tell of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// `docker` or `podman`.
    pub runtime: &'static str,
    /// Id.
    pub id: String,
    /// Name.
    pub name: String,
    /// Image.
    pub image: Option<String>,
}

/// What the task tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Update {
    /// All running containers.
    Containers(Running),
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

/// Starts the thread. The first update comes as soon as it is known whether an
/// engine is there.
#[must_use]
pub fn follow(address: Address) -> mpsc::Receiver<Update> {
    let (send, receive) = mpsc::channel(1);
    let failed = send.clone();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let started = runtime.and_then(|runtime| {
        thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || runtime.block_on(run(address, Teller { send, last: None })))
    });
    if let Err(error) = started {
        let why = format!("cannot start a thread for it: {error}");
        // There is room for one.
        let _ = failed.try_send(Update::Trouble(why));
    }
    receive
}

/// The way to whom it concerns. What was told last is not told again.
struct Teller {
    send: mpsc::Sender<Update>,
    last: Option<Update>,
}

/// Nobody listens any more.
struct Deaf;

impl Teller {
    async fn tell(&mut self, update: Update) -> Result<(), Deaf> {
        if self.last.as_ref() == Some(&update) {
            return Ok(());
        }
        self.last = Some(update.clone());
        self.send.send(update).await.map_err(|_| Deaf)
    }
}

async fn run(address: Address, mut teller: Teller) {
    loop {
        let update = match address.url() {
            None => Update::Absent,
            Some(url) => match session(&url, &mut teller).await {
                Ok(Deaf) => return,
                Err(why) => Update::Trouble(format!("{url}: {why}")),
            },
        };
        if teller.tell(update).await.is_err() {
            return;
        }
        tokio::select! {
            () = time::sleep(RETRY) => {}
            () = teller.send.closed() => return,
        }
    }
}

/// Follows an engine until something is wrong with it; `Ok` when nobody listens
/// any more.
async fn session(url: &str, teller: &mut Teller) -> Result<Deaf, String> {
    let client = Client::new(url);
    let deadline = Instant::now() + TIMEOUT;
    let version = client.get("/version", deadline).await.map_err(why)?;
    let version = answers::version(&version).map_err(|why| format!("GET /version: {why}"))?;
    // From a little before the list, so that nothing falls between the two.
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs().saturating_sub(1));
    let path = format!("/v{}/events?since={since}&filters={FILTERS}", version.api);
    let mut events = client.events(path);
    let mut known = Known {
        client,
        version,
        containers: BTreeMap::new(),
        stale: BTreeSet::new(),
        troubles: Vec::new(),
        looked: false,
    };
    let mut heard = Heard::default();
    loop {
        known.stale.append(&mut heard.changed);
        heard.look = false;
        let look = match listening(&known, &mut heard, &mut events, teller).await? {
            Ok(look) => look,
            Err(deaf) => return Ok(deaf),
        };
        known.take(look);
        heard.untold = false;
        let running = known.running(&heard.made);
        let pause = match running.trouble {
            Some(_) => RETRY,
            None => QUIET,
        };
        if let Err(deaf) = teller.tell(Update::Containers(running)).await {
            return Ok(deaf);
        }
        tokio::select! {
            news = time::timeout(pause, heard.news(&known, &mut events)) => if let Ok(news) = news { news? },
            () = teller.send.closed() => return Ok(Deaf),
        }
    }
}

/// Asks what runs, and meanwhile passes on what events tell: an engine may take
/// longer to answer than a container lives.
async fn listening(
    known: &Known,
    heard: &mut Heard,
    events: &mut Events,
    teller: &mut Teller,
) -> Result<Result<Look, Deaf>, String> {
    let look = known.look();
    tokio::pin!(look);
    loop {
        // Before the first answer nothing else is known.
        if known.looked && std::mem::take(&mut heard.untold) {
            let running = known.running(&heard.made);
            if let Err(deaf) = teller.tell(Update::Containers(running)).await {
                return Ok(Err(deaf));
            }
        }
        tokio::select! {
            look = &mut look => return look.map(Ok),
            event = events.next(), if heard.broken.is_none() => match event {
                Ok(event) => heard.take(event, known),
                // The answer counts nevertheless.
                Err(why) => heard.broken = Some(why),
            },
        }
    }
}

fn why(failed: Failed) -> String {
    failed.why
}

/// What events have told since the engine was asked.
#[derive(Default)]
struct Heard {
    /// The containers told of, the newest last.
    made: VecDeque<Made>,
    /// Whether there is something in `made` that nobody was told.
    untold: bool,
    /// Ids of known containers that something has happened to.
    changed: BTreeSet<String>,
    /// Whether the engine is to be asked again.
    look: bool,
    /// Why there are no more events.
    broken: Option<String>,
}

impl Heard {
    /// Returns when events have made another look necessary.
    async fn news(&mut self, known: &Known, events: &mut Events) -> Result<(), String> {
        if let Some(why) = self.broken.take() {
            return Err(why);
        }
        while !self.look {
            self.take(events.next().await?, known);
        }
        // Starting a container is several events.
        let end = Instant::now() + SETTLE_AT_MOST;
        while let Ok(event) = time::timeout(SETTLE, events.next()).await {
            self.take(event?, known);
            if Instant::now() >= end {
                break;
            }
        }
        Ok(())
    }

    /// Notes what an event changes.
    fn take(&mut self, event: Event, known: &Known) {
        // An exec in a container is an event too, and a frequent one.
        let noise = [
            "exec_",
            "top",
            "health_status",
            "attach",
            "resize",
            "archive-path",
        ];
        let action = event.action.unwrap_or_default();
        if noise.iter().any(|prefix| action.starts_with(prefix)) {
            return;
        }
        self.look = true;
        let Some(id) = event.id else { return };
        if event.kind.as_deref() != Some("container") {
            return;
        }
        if known.containers.contains_key(&id) {
            self.changed.insert(id.clone());
        }
        if let Some(name) = event.name.filter(|name| !name.is_empty()) {
            self.note(Made {
                runtime: known.version.runtime,
                id,
                name,
                image: event.image,
            });
        }
    }

    /// Remembers a container by the name that it has now. What has been removed
    /// stays too: its namespace may not have been looked at, and no id comes twice.
    fn note(&mut self, made: Made) {
        if self.made.contains(&made) {
            return;
        }
        self.made.retain(|old| old.id != made.id);
        if self.made.len() >= MOST_MADE {
            self.made.pop_front();
        }
        self.made.push_back(made);
        self.untold = true;
    }
}

/// What is known of containers, so that only new and changed ones are asked for.
struct Known {
    client: Client,
    version: Version,
    /// By id, with the folder of the sandbox.
    containers: BTreeMap<String, (Container, Option<PathBuf>)>,
    /// Ids of those of them that something has happened to since.
    stale: BTreeSet<String>,
    /// What was wrong with the last answers.
    troubles: Vec<String>,
    /// Whether there has been an answer.
    looked: bool,
}

/// What the engine answered.
struct Look {
    list: Ids,
    /// About those of the list that were not known.
    inspected: Vec<(String, Answer)>,
}

/// About one container: nothing where it does not run.
type Answer = Result<Option<(Container, Option<PathBuf>)>, String>;

impl Known {
    /// Asks what runs, and about those that are not known.
    async fn look(&self) -> Result<Look, String> {
        let deadline = Instant::now() + TIMEOUT;
        let path = format!("/v{}/containers/json", self.version.api);
        let list = self.client.get(&path, deadline).await.map_err(why)?;
        let list = answers::ids(&list).map_err(|why| format!("GET {path}: {why}"))?;
        let listed: HashSet<&String> = list.ids.iter().collect();
        let unknown = listed
            .into_iter()
            .filter(|id| self.stale.contains(*id) || !self.containers.contains_key(*id));
        let inspected = stream::iter(unknown)
            .map(|id| async move { (id.clone(), self.inspect(id, deadline).await) })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        Ok(Look { list, inspected })
    }

    /// Takes what was answered.
    fn take(&mut self, look: Look) {
        let Look { list, inspected } = look;
        self.looked = true;
        let listed: HashSet<&String> = list.ids.iter().collect();
        self.containers.retain(|id, _| listed.contains(id));
        self.stale.retain(|id| listed.contains(id));
        self.troubles.clear();
        if list.odd > 0 {
            self.troubles.push(format!(
                "{} entries of its list are no containers",
                list.odd
            ));
        }
        for (id, answer) in inspected {
            match answer {
                Ok(found) => {
                    self.stale.remove(&id);
                    self.containers.remove(&id);
                    self.containers
                        .extend(found.map(|container| (id, container)));
                }
                // What was known of it is better than nothing.
                Err(why) => self.troubles.push(why),
            }
        }
        // The same ones give the same words.
        self.troubles.sort();
    }

    /// One container; `None` where it does not run.
    async fn inspect(&self, id: &str, deadline: Instant) -> Answer {
        let path = format!("/v{}/containers/{id}/json", self.version.api);
        match self.client.get(&path, deadline).await {
            Ok(answer) => answers::inspected(&answer)
                .map(|found| container(self.version.runtime, id, found))
                .map_err(|why| format!("GET {path}: {why}")),
            // It ended between the list and the question.
            Err(failed) if failed.status == Some(404) => Ok(None),
            Err(failed) => Err(failed.why),
        }
    }

    fn running(&self, made: &VecDeque<Made>) -> Running {
        let sandboxes = self.containers.values();
        let mut sandboxes: Vec<PathBuf> = sandboxes
            .filter_map(|(_, sandbox)| sandbox.clone())
            .collect();
        sandboxes.sort();
        sandboxes.dedup();
        let trouble = self
            .troubles
            .first()
            .map(|first| match self.troubles.len() {
                1 => first.clone(),
                many => format!("{first} (and {} more)", many - 1),
            });
        let containers = self.containers.values();
        Running {
            containers: containers.map(|(container, _)| container.clone()).collect(),
            sandboxes,
            made: made.clone(),
            trouble,
        }
    }
}

/// `None` where it does not run.
fn container(runtime: &str, id: &str, found: Inspected) -> Option<(Container, Option<PathBuf>)> {
    let Inspected {
        pid,
        name,
        image,
        sandbox,
    } = found;
    if pid == 0 {
        return None;
    }
    let container = Container {
        runtime: runtime.to_owned(),
        id: id.to_owned(),
        name: if name.is_empty() {
            short(id).to_owned()
        } else {
            name
        },
        image,
        pid,
        started: scan::started(pid),
        inode: scan::inode_of(pid),
    };
    let sandbox = sandbox.and_then(|key| Some(Path::new(&key).parent()?.to_path_buf()));
    Some((container, sandbox))
}

fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}
