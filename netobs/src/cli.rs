//! The command line as the user types it. [`config`](crate::config) makes
//! sense of it; nobody else sees clap.

use std::{path::PathBuf, time::Duration};

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum, builder::FalseyValueParser};

/// Observe network namespaces: who sends and receives what, container by container.
#[derive(Debug, Parser)]
#[command(
    name = "netobs",
    version,
    max_term_width = 100,
    arg_required_else_help = true,
    after_help = "Exit codes: 0 done, 1 failed, 2 usage, 3 not permitted, 4 the kernel lacks something, \
                  5 with --strict: not everything could be observed."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
}

/// Options of every command.
#[derive(Debug, Args)]
pub struct Global {
    /// Address of the container engine: unix:///PATH or tcp://ADDRESS [default: DOCKER_HOST, else
    /// the usual sockets of Docker and Podman]
    #[arg(long, global = true, value_name = "URL", env = "NETOBS_DOCKER_HOST")]
    pub docker_host: Option<String>,
    /// How to attach the programs
    #[arg(
        long,
        global = true,
        value_enum,
        default_value = "auto",
        env = "NETOBS_TC_MODE"
    )]
    pub tc_mode: TcModeArg,
    /// When to use colour; auto also honours NO_COLOR
    #[arg(
        long,
        global = true,
        value_enum,
        default_value = "auto",
        env = "NETOBS_COLOR"
    )]
    pub color: ColorArg,
    /// Log to standard error: -v what happens, with the eBPF programs' own messages, -vv details, -vvv
    /// the libraries too (RUST_LOG works as well)
    #[arg(short, long, global = true, action = ArgAction::Count, env = "NETOBS_VERBOSE")]
    pub verbose: u8,
}

/// Subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Live counters per namespace
    Watch(WatchArgs),
    /// Counters for Prometheus: OpenMetrics over HTTP
    Serve(ServeArgs),
    /// Namespaces, who lives in them, and their interfaces with host end, bridge and addresses
    List(ListArgs),
    /// Routing tables per namespace with hits per route, and failed lookups by destination
    Routes(RoutesArgs),
    /// What this kernel, host and user allow, and who else is attached where
    Doctor(DoctorArgs),
    /// Remove what an ended netobs left (pins, clsact filters of ours), and nothing else
    Clean(PinArgs),
    /// Print the JSON Schema of an output
    #[command(arg_required_else_help = true)]
    Schema {
        /// Of which output
        #[arg(value_enum)]
        name: SchemaArg,
    },
    /// Print a completion script
    Completions {
        /// For which shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    Man,
}

/// Which namespaces.
#[derive(Debug, Args)]
pub struct SelectArgs {
    /// Container name or id prefix, named namespace, inode or "host"; shell-style patterns work
    /// [default: host, containers, named namespaces and all that a veth connects to this one]
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// Leave out what matches; may be given more than once
    #[arg(
        long,
        value_name = "PATTERN",
        env = "NETOBS_EXCLUDE",
        value_delimiter = ','
    )]
    pub exclude: Vec<String>,
    /// Every namespace found, also those without a connection to this one
    #[arg(long, env = "NETOBS_ALL", value_parser = FalseyValueParser::new())]
    pub all: bool,
    /// Loopback interfaces too
    #[arg(long, env = "NETOBS_LOOPBACK", value_parser = FalseyValueParser::new())]
    pub loopback: bool,
    /// Exit with 5 when some namespace could not be observed fully
    #[arg(long, env = "NETOBS_STRICT", value_parser = FalseyValueParser::new())]
    pub strict: bool,
}

/// How often, how long and how samples are printed.
#[derive(Debug, Args)]
pub struct PaceArgs {
    /// Time between samples: 1s, 500ms, 1m; at least 100ms
    #[arg(short, long, default_value = "1s", value_parser = humantime::parse_duration, env = "NETOBS_INTERVAL")]
    pub interval: Duration,
    /// Stop after N samples [default: endless, 1 with --once]
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), env = "NETOBS_COUNT")]
    pub count: Option<u64>,
    /// Print the first sample at once, without waiting for an interval: what is there already, with no
    /// rates and no hits yet
    #[arg(long, env = "NETOBS_ONCE", value_parser = FalseyValueParser::new())]
    pub once: bool,
    /// Output format; json is one object per line and sample
    #[arg(
        short,
        long,
        value_enum,
        default_value = "table",
        env = "NETOBS_OUTPUT"
    )]
    pub output: OutputArg,
}

/// Which columns.
#[derive(Debug, Args)]
pub struct ColumnArgs {
    /// Columns of -o csv and their order; "help" shows the names of all [default: all]
    #[arg(
        long,
        value_name = "NAME,...",
        env = "NETOBS_FIELDS",
        value_delimiter = ','
    )]
    pub fields: Vec<String>,
}

/// Room for lookups.
#[derive(Debug, Args)]
pub struct RoomArgs {
    /// How many namespaces can have route lookups counted
    #[arg(long, value_name = "N", default_value_t = 16_384, value_parser = clap::value_parser!(u32).range(1..=1_000_000), env = "NETOBS_MAX_NAMESPACES")]
    pub max_namespaces: u32,
}

/// `netobs watch`.
#[derive(Debug, Args)]
pub struct WatchArgs {
    /// Which namespaces.
    #[command(flatten)]
    pub select: SelectArgs,
    /// How often, and how.
    #[command(flatten)]
    pub pace: PaceArgs,
    /// Which columns.
    #[command(flatten)]
    pub columns: ColumnArgs,
    /// Room for lookups.
    #[command(flatten)]
    pub room: RoomArgs,
    /// How to count.
    #[command(flatten)]
    pub traffic: TrafficArgs,
}

/// `netobs serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Which namespaces.
    #[command(flatten)]
    pub select: SelectArgs,
    /// Where to listen: ADDRESS:PORT, [IPv6]:PORT, :PORT for all addresses, or unix:PATH; may be given
    /// more than once
    #[arg(
        short,
        long,
        value_name = "WHERE",
        default_value = "127.0.0.1:9929",
        env = "NETOBS_LISTEN",
        value_delimiter = ','
    )]
    pub listen: Vec<String>,
    /// TLS and users, as Prometheus' exporters take them (docs/web-config.md)
    #[arg(long, value_name = "FILE", env = "NETOBS_WEB_CONFIG")]
    pub web_config: Option<PathBuf>,
    /// Listen beyond loopback although there is neither TLS nor a user: whoever reaches the port reads
    /// the names and traffic of all containers
    #[arg(long, env = "NETOBS_INSECURE", value_parser = FalseyValueParser::new())]
    pub insecure: bool,
    /// Series of what has ended stay for so long, and until they were scraped once
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration, env = "NETOBS_GRACE")]
    pub grace: Duration,
    /// Packets per interface and direction only, not by family and protocol: a third of the series
    #[arg(long, env = "NETOBS_NO_CLASSES", value_parser = FalseyValueParser::new())]
    pub no_classes: bool,
    /// Hits per route too: netobs_route_hits_total
    #[arg(long, env = "NETOBS_ROUTES", value_parser = FalseyValueParser::new())]
    pub routes: bool,
    /// With --routes: how many series of hits there can be; hits of more routes are one series per
    /// namespace, without a prefix
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000), env = "NETOBS_MAX_ROUTES")]
    pub max_routes: u32,
    /// With --routes: how many destinations can be told apart at once
    #[arg(long, value_name = "N", default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(1..=10_000_000), env = "NETOBS_MAX_DESTINATIONS")]
    pub max_destinations: u32,
    /// Other names for what they call the same, beside our own
    #[arg(long, value_enum, env = "NETOBS_COMPAT")]
    pub compat: Option<CompatArg>,
    /// Room for lookups.
    #[command(flatten)]
    pub room: RoomArgs,
    /// How to count.
    #[command(flatten)]
    pub traffic: TrafficArgs,
}

/// Whose names to use too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CompatArg {
    /// cAdvisor's container_network_*, the kernel's own counters as there
    Cadvisor,
}

/// How packets and lookups are counted.
#[derive(Debug, Args)]
pub struct TrafficArgs {
    /// How many interfaces can be observed at once, from this namespace and from inside each other one;
    /// each takes 1 KiB of kernel memory per CPU [default: what 64 MiB hold, from 256 to 4096; inside
    /// others what 4 MiB hold, from 16 to 256]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000), env = "NETOBS_MAX_INTERFACES")]
    pub max_interfaces: Option<u32>,
    /// Leave route lookups alone: count packets only
    #[arg(long, env = "NETOBS_NO_LOOKUPS", value_parser = FalseyValueParser::new())]
    pub no_lookups: bool,
    /// Leave programs, links and maps in the kernel on the way out: they go on counting, and the next
    /// --pin run goes on with the same totals. `netobs clean` removes them
    #[arg(long, env = "NETOBS_PIN", value_parser = FalseyValueParser::new())]
    pub pin: bool,
    /// Where that is.
    #[command(flatten)]
    pub pins: PinArgs,
    /// Leave /sys/kernel/rcu_expedited alone. Without this netobs sets it for the moment in which it
    /// attaches to interfaces, which else holds up them and the host's link operations, and puts it
    /// back
    #[arg(long, env = "NETOBS_NO_EXPEDITE", value_parser = FalseyValueParser::new())]
    pub no_expedite: bool,
}

/// Where pins are.
#[derive(Debug, Args)]
pub struct PinArgs {
    /// Folder on a BPF file system for --pin
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/sys/fs/bpf/netobs",
        env = "NETOBS_PIN_PATH"
    )]
    pub pin_path: PathBuf,
}

/// `netobs routes`.
#[derive(Debug, Args)]
pub struct RoutesArgs {
    /// Which namespaces.
    #[command(flatten)]
    pub select: SelectArgs,
    /// How often, and how.
    #[command(flatten)]
    pub pace: PaceArgs,
    /// Which columns.
    #[command(flatten)]
    pub columns: ColumnArgs,
    /// Room for lookups.
    #[command(flatten)]
    pub room: RoomArgs,
    /// How many destinations can be told apart at once; more are in the totals only
    #[arg(long, value_name = "N", default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(1..=10_000_000), env = "NETOBS_MAX_DESTINATIONS")]
    pub max_destinations: u32,
    /// How many failed destinations are remembered, the most recent ones
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..=1_000_000), env = "NETOBS_MAX_FAILURES")]
    pub max_failures: u32,
}

/// `netobs list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Which namespaces.
    #[command(flatten)]
    pub select: SelectArgs,
    /// Output format
    #[arg(
        short,
        long,
        value_enum,
        default_value = "table",
        env = "NETOBS_OUTPUT"
    )]
    pub output: OutputArg,
    /// Which columns.
    #[command(flatten)]
    pub columns: ColumnArgs,
}

/// `netobs doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Output format
    #[arg(
        short,
        long,
        value_enum,
        default_value = "table",
        env = "NETOBS_DOCTOR_OUTPUT"
    )]
    pub output: DoctorOutputArg,
}

/// Output formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OutputArg {
    /// For people
    Table,
    /// For scripts: one object per line
    Json,
    /// RFC 4180: a header, then one line per namespace (list: per interface; routes: per route and failure)
    Csv,
}

/// Output formats of `doctor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DoctorOutputArg {
    /// For people
    Table,
    /// For scripts: one object
    Json,
}

/// Outputs that have a schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SchemaArg {
    /// netobs.sample/1: a line of `netobs watch -o json`
    #[value(alias = "watch")]
    Sample,
    /// netobs.list/1: what `netobs list -o json` prints
    List,
    /// netobs.routes/1: a line of `netobs routes -o json`
    Routes,
    /// netobs.doctor/1: what `netobs doctor -o json` prints
    Doctor,
}

/// When to use colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ColorArg {
    /// On a terminal
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// How to attach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TcModeArg {
    /// TCX, or clsact where the kernel has no TCX
    Auto,
    /// TCX only (since Linux 6.6)
    Tcx,
    /// A clsact qdisc and a filter
    Clsact,
}
