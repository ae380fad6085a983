//! The validated configuration.

use std::{env, io::IsTerminal as _, path::PathBuf, time::Duration};

use crate::{
    cli,
    error::{Cause, Failure},
    inventory::{build::Options, select::Selection},
    render::{columns::Columns, csv, routes},
    web::Listen,
    world::engine::Address,
};

/// Shortest time between samples.
const MIN_INTERVAL: Duration = Duration::from_millis(100);
/// Longest: beyond it a typing error is more likely.
const MAX_INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);

/// How to attach the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcMode {
    /// TCX, else clsact.
    Auto,
    /// TCX only.
    Tcx,
    /// clsact only.
    Clsact,
}

/// Output formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Table,
    /// One object per line.
    Json,
    /// RFC 4180.
    Csv,
}

/// What all commands share.
#[derive(Clone, Debug)]
pub struct Common {
    /// Where the container engine is.
    pub engine: Address,
    /// How to attach.
    pub tc_mode: TcMode,
    /// Whether standard output gets colour.
    pub color: bool,
}

/// What selects and counts namespaces.
#[derive(Clone, Debug)]
pub struct Scope {
    /// Which rows.
    pub selection: Selection,
    /// Which interfaces.
    pub options: Options,
    /// Whether partial observation is a failure.
    pub strict: bool,
}

/// How often, how long and how samples are printed.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Between samples.
    pub interval: Duration,
    /// Samples to print; `None` for endless.
    pub count: Option<u64>,
    /// First sample at once.
    pub once: bool,
    /// Format.
    pub format: Format,
}

/// How packets and lookups are counted.
#[derive(Clone, Debug)]
pub struct Traffic {
    /// Interfaces to make room for; `None` for what fits.
    pub max_interfaces: Option<u32>,
    /// Namespaces to count lookups of.
    pub max_namespaces: u32,
    /// Shorten RCU grace periods while programs come or go.
    pub expedite: bool,
    /// Observe route lookups.
    pub lookups: bool,
    /// Where everything lives on.
    pub pins: Option<PathBuf>,
}

/// `netobs watch`.
#[derive(Clone, Debug)]
pub struct Watch {
    /// What all commands share.
    pub common: Common,
    /// What to observe.
    pub scope: Scope,
    /// How often and how.
    pub pace: Pace,
    /// Columns of CSV.
    pub columns: Columns,
    /// How to count.
    pub traffic: Traffic,
}

/// `netobs serve`.
#[derive(Clone, Debug)]
pub struct Serve {
    /// What all commands share.
    pub common: Common,
    /// What to observe.
    pub scope: Scope,
    /// How to count.
    pub traffic: Traffic,
    /// Where to listen.
    pub listen: Vec<Listen>,
    /// Listen where anybody can connect, with neither TLS nor users.
    pub open: bool,
    /// TLS and users.
    pub web_config: Option<PathBuf>,
    /// What to show.
    pub metrics: Metrics,
}

/// Which metrics there are.
#[derive(Clone, Copy, Debug)]
pub struct Metrics {
    /// Series of what has ended stay for so long.
    pub grace: Duration,
    /// Packets by family and protocol.
    pub classes: bool,
    /// Hits per route: destinations to tell apart, and series to make.
    pub routes: Option<(u32, u32)>,
    /// cAdvisor's names too.
    pub cadvisor: bool,
}

/// `netobs routes`.
#[derive(Clone, Debug)]
pub struct Routes {
    /// What all commands share.
    pub common: Common,
    /// What to observe.
    pub scope: Scope,
    /// How often and how.
    pub pace: Pace,
    /// Namespaces to count lookups of.
    pub max_namespaces: u32,
    /// Columns of CSV.
    pub columns: Columns,
    /// Destinations to make room for.
    pub max_destinations: u32,
    /// Failed destinations to remember.
    pub max_failures: u32,
}

/// `netobs list`.
#[derive(Clone, Debug)]
pub struct List {
    /// What all commands share.
    pub common: Common,
    /// What to list.
    pub scope: Scope,
    /// Format.
    pub format: Format,
    /// Columns of CSV.
    pub columns: Columns,
}

/// `netobs doctor`.
#[derive(Clone, Debug)]
pub struct Doctor {
    /// What all commands share.
    pub common: Common,
    /// As JSON.
    pub json: bool,
}

impl Common {
    /// From the options of every command.
    ///
    /// # Errors
    /// For an engine address that makes no sense.
    pub fn new(args: &cli::Global) -> Result<Self, Failure> {
        let url = args
            .docker_host
            .clone()
            .or_else(|| env::var("DOCKER_HOST").ok())
            .filter(|url| !url.is_empty());
        let engine = match url {
            Some(url) => Address::parse(&url)
                .map_err(|why| Failure::words(Cause::Usage, format!("--docker-host: {why}")))?,
            None => Address::Usual,
        };
        let color = match args.color {
            cli::ColorArg::Always => true,
            cli::ColorArg::Never => false,
            cli::ColorArg::Auto => {
                std::io::stdout().is_terminal()
                    && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            }
        };
        Ok(Self {
            engine,
            tc_mode: match args.tc_mode {
                cli::TcModeArg::Auto => TcMode::Auto,
                cli::TcModeArg::Tcx => TcMode::Tcx,
                cli::TcModeArg::Clsact => TcMode::Clsact,
            },
            color,
        })
    }
}

impl Scope {
    fn new(args: &cli::SelectArgs) -> Self {
        Self {
            selection: Selection::new(&args.names, &args.exclude, args.all),
            options: Options {
                loopback: args.loopback,
            },
            strict: args.strict,
        }
    }
}

impl From<cli::OutputArg> for Format {
    fn from(output: cli::OutputArg) -> Self {
        match output {
            cli::OutputArg::Table => Self::Table,
            cli::OutputArg::Json => Self::Json,
            cli::OutputArg::Csv => Self::Csv,
        }
    }
}

/// The columns that there are, where `--fields help` asks for them.
#[must_use]
pub fn fields_to_tell(command: &cli::Command) -> Option<Vec<String>> {
    let (args, known) = match command {
        cli::Command::Watch(args) => (&args.columns, csv::sample_fields()),
        cli::Command::List(args) => (&args.columns, csv::list_fields()),
        cli::Command::Routes(args) => (&args.columns, routes::csv_fields()),
        _ => return None,
    };
    (args.fields == ["help"]).then_some(known)
}

/// The columns asked for, of those that are `known`.
fn columns(args: &cli::ColumnArgs, format: Format, known: &[String]) -> Result<Columns, Failure> {
    let usage = |why: String| Failure::words(Cause::Usage, format!("--fields: {why}"));
    let wanted: Vec<String> = args
        .fields
        .iter()
        .map(|name| name.trim().to_owned())
        .collect();
    // An empty variable is as good as none.
    if wanted.is_empty() || wanted == [""] {
        return Ok(Columns::default());
    }
    if format != Format::Csv {
        return Err(usage(
            "chooses columns of CSV: add `-o csv` (or take NETOBS_FIELDS out of the environment)"
                .to_owned(),
        ));
    }
    Columns::new(known, &wanted).map_err(usage)
}

impl Pace {
    /// Refuses an interval out of range.
    fn new(args: &cli::PaceArgs) -> Result<Self, Failure> {
        if !(MIN_INTERVAL..=MAX_INTERVAL).contains(&args.interval) {
            return Err(Failure::words(
                Cause::Usage,
                format!(
                    "--interval {}: must be from 100ms to 24h",
                    humantime::format_duration(args.interval)
                ),
            ));
        }
        Ok(Self {
            interval: args.interval,
            count: args.count.or(args.once.then_some(1)),
            once: args.once,
            format: args.output.into(),
        })
    }
}

impl Watch {
    /// From the arguments.
    ///
    /// # Errors
    /// For an interval out of range, columns that there are not, or an engine address
    /// that makes no sense.
    pub fn new(global: &cli::Global, args: &cli::WatchArgs) -> Result<Self, Failure> {
        Ok(Self {
            common: Common::new(global)?,
            scope: Scope::new(&args.select),
            pace: Pace::new(&args.pace)?,
            columns: columns(
                &args.columns,
                args.pace.output.into(),
                &csv::sample_fields(),
            )?,
            traffic: Traffic::new(&args.traffic, args.room.max_namespaces),
        })
    }
}

impl Traffic {
    fn new(args: &cli::TrafficArgs, max_namespaces: u32) -> Self {
        Self {
            max_interfaces: args.max_interfaces,
            max_namespaces,
            expedite: !args.no_expedite,
            lookups: !args.no_lookups,
            pins: args.pin.then(|| args.pins.pin_path.clone()),
        }
    }
}

impl Serve {
    /// From the arguments.
    ///
    /// # Errors
    /// For an address to listen at or of the engine that makes no sense, and for options
    /// that exclude each other.
    pub fn new(global: &cli::Global, args: &cli::ServeArgs) -> Result<Self, Failure> {
        let usage = |why: String| Failure::words(Cause::Usage, why);
        let listen: Result<Vec<Listen>, _> =
            args.listen.iter().map(|text| Listen::parse(text)).collect();
        let traffic = Traffic::new(&args.traffic, args.room.max_namespaces);
        if args.routes && traffic.pins.is_some() {
            return Err(usage(
                "--routes and --pin: hits per route end with netobs, they cannot go on in the kernel; \
                 choose one of the two"
                    .to_owned(),
            ));
        }
        if args.routes && !traffic.lookups {
            return Err(usage(
                "--routes and --no-lookups: hits of routes are lookups; choose one of the two"
                    .to_owned(),
            ));
        }
        Ok(Self {
            common: Common::new(global)?,
            scope: Scope::new(&args.select),
            traffic,
            listen: listen.map_err(|why| usage(format!("--listen {why}")))?,
            open: args.insecure,
            web_config: args.web_config.clone(),
            metrics: Metrics {
                grace: args.grace,
                classes: !args.no_classes,
                routes: args
                    .routes
                    .then_some((args.max_destinations, args.max_routes)),
                cadvisor: args.compat == Some(cli::CompatArg::Cadvisor),
            },
        })
    }
}

impl Routes {
    /// From the arguments.
    ///
    /// # Errors
    /// For an interval out of range, columns that there are not, or an engine address
    /// that makes no sense.
    pub fn new(global: &cli::Global, args: &cli::RoutesArgs) -> Result<Self, Failure> {
        Ok(Self {
            common: Common::new(global)?,
            scope: Scope::new(&args.select),
            pace: Pace::new(&args.pace)?,
            max_namespaces: args.room.max_namespaces,
            columns: columns(
                &args.columns,
                args.pace.output.into(),
                &routes::csv_fields(),
            )?,
            max_destinations: args.max_destinations,
            max_failures: args.max_failures,
        })
    }
}

impl List {
    /// From the arguments.
    ///
    /// # Errors
    /// For columns that there are not, or an engine address that makes no sense.
    pub fn new(global: &cli::Global, args: &cli::ListArgs) -> Result<Self, Failure> {
        Ok(Self {
            common: Common::new(global)?,
            scope: Scope::new(&args.select),
            format: args.output.into(),
            columns: columns(&args.columns, args.output.into(), &csv::list_fields())?,
        })
    }
}

impl Doctor {
    /// From the arguments.
    ///
    /// # Errors
    /// For an engine address that makes no sense.
    pub fn new(global: &cli::Global, args: &cli::DoctorArgs) -> Result<Self, Failure> {
        Ok(Self {
            common: Common::new(global)?,
            json: args.output == cli::DoctorOutputArg::Json,
        })
    }
}
