//! The command line.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use cairn_mhost::model::{ANONYMOUS_ID, RuleAccess, RuleSquash};
use cairn_node::config::{CACHE_BYTES_DEFAULT, DriverChoice, RaidLayout, Rpcbind};
use cairn_node::{demo, parse_size};
use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

fn size(text: &str) -> Result<u64, String> {
    parse_size(text).ok_or_else(|| "write a size like 2GiB, 512MiB or 4096".to_owned())
}

/// Run and manage a Cairn NAS node
#[derive(Parser, Debug)]
#[command(name = "cairn", version, propagate_version = true)]
pub struct Args {
    /// Where the node is, and how to show what it says
    #[command(flatten)]
    pub target: Target,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// Where the node is.
#[derive(ClapArgs, Debug, Default)]
pub struct Target {
    /// REST address of the node: http://127.0.0.1:PORT or unix:/PATH
    #[arg(long, global = true, env = "CAIRN_SERVER", value_name = "URL")]
    pub server: Option<String>,
    /// File with the token of REST
    #[arg(long, global = true, env = "CAIRN_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Directory of a demo (for `demo`: where it lives)
    #[arg(long, global = true, env = "CAIRN_DIR", value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Show JSON instead of tables
    #[arg(long, global = true)]
    pub json: bool,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run a whole node on sparse files in one directory, in the foreground
    Demo(Demo),
    /// Run a node on real disks, as its configuration file says, until SIGTERM
    Daemon {
        /// Configuration file (TOML)
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Form a new aggregate when the disks hold none; everything on them is lost
        #[arg(long)]
        initialize: bool,
    },
    /// Show the node at a glance
    Status,
    /// Show and change disks
    #[command(subcommand)]
    Disk(Disk),
    /// Show and widen the aggregate
    #[command(subcommand)]
    Aggregate(Aggregate),
    /// Show, make, change and delete volumes
    #[command(subcommand)]
    Volume(Volume),
    /// Show and set export policies
    #[command(subcommand)]
    Export(Export),
    /// Show and follow jobs
    #[command(subcommand)]
    Job(Job),
    /// Verify every block
    #[command(subcommand)]
    Scrub(Scrub),
    /// Compare the structures of a volume or of the aggregate with each other, and repair them
    Check(Check),
    /// Show all counters
    Counters {
        /// Only those whose name contains this
        filter: Option<String>,
    },
    /// Show where a block of a file lies, all the way down to the disks
    Explain {
        /// Path, from a volume's junction on: /vol0/dir/file
        path: String,
        /// Byte of the file
        #[arg(long, default_value = "0", value_parser = size)]
        offset: u64,
    },
    /// Print the completion script of a shell
    Completion {
        /// Shell
        shell: Shell,
    },
}

/// RAID layouts by name.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Raid {
    /// One parity disk in a group
    Raid4,
    /// Two parity disks in a group
    #[value(name = "raid_dp")]
    RaidDp,
}

impl From<Raid> for RaidLayout {
    fn from(raid: Raid) -> Self {
        match raid {
            Raid::Raid4 => Self::Raid4,
            Raid::RaidDp => Self::RaidDp,
        }
    }
}

/// How clients find the ports.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Portmap {
    /// They name the port
    Off,
    /// Our own rpcbind answers (port 111)
    Serve,
    /// The running rpcbind is told
    Register,
}

impl From<Portmap> for Rpcbind {
    fn from(portmap: Portmap) -> Self {
        match portmap {
            Portmap::Off => Self::Off,
            Portmap::Serve => Self::Serve,
            Portmap::Register => Self::Register,
        }
    }
}

/// Disk drivers by name.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum DriverName {
    /// io_uring, or threads where the kernel refuses it
    Auto,
    /// io_uring
    Uring,
    /// Threads
    Threads,
}

impl From<DriverName> for DriverChoice {
    fn from(driver: DriverName) -> Self {
        match driver {
            DriverName::Auto => Self::Auto,
            DriverName::Uring => Self::Uring,
            DriverName::Threads => Self::Threads,
        }
    }
}

/// Options of the demo.
#[derive(ClapArgs, Debug)]
pub struct Demo {
    /// Disks [default: 8]
    #[arg(long, value_name = "N")]
    pub disks: Option<u16>,
    /// Size of each disk (sparse) [default: 2GiB]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub disk_size: Option<u64>,
    /// RAID layout [default: raid_dp]
    #[arg(long)]
    pub raid: Option<Raid>,
    /// Address that NFS listens on
    #[arg(long, value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub listen: IpAddr,
    /// Port of NFS and MOUNT (0: any)
    #[arg(long, value_name = "P", default_value_t = demo::NFS_PORT)]
    pub nfs_port: u16,
    /// Port of REST on 127.0.0.1 (0: any)
    #[arg(long, value_name = "P", default_value_t = demo::REST_PORT)]
    pub rest_port: u16,
    /// Throw away the demo that is in the directory
    #[arg(long)]
    pub fresh: bool,
    /// Buffer cache [default: 512MiB]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub cache: Option<u64>,
    /// How clients find the ports
    #[arg(long, default_value = "off")]
    pub rpcbind: Portmap,
    /// Disk driver
    #[arg(long, default_value = "auto")]
    pub driver: DriverName,
    /// File or device that stands for non-volatile memory and takes the log (may be given several
    /// times, up to three copies; at every start)
    #[arg(long, value_name = "PATH")]
    pub nvram: Vec<PathBuf>,
}

impl Demo {
    /// The options as the node takes them.
    pub fn options(&self, dir: Option<PathBuf>) -> demo::DemoOptions {
        demo::DemoOptions {
            dir: dir.unwrap_or_else(|| PathBuf::from("cairn-demo")),
            disks: self.disks,
            disk_bytes: self.disk_size,
            raid: self.raid.map(Into::into),
            listen: self.listen,
            nfs_port: self.nfs_port,
            rest_port: self.rest_port,
            cache_bytes: self.cache.unwrap_or(CACHE_BYTES_DEFAULT),
            rpcbind: self.rpcbind.into(),
            driver: self.driver.into(),
            nvram: self.nvram.clone(),
            fresh: if self.fresh { demo::Fresh::Yes } else { demo::Fresh::No },
        }
    }
}

/// Orders that become jobs.
#[derive(ClapArgs, Clone, Copy, Debug, Default)]
pub struct Follow {
    /// Do not wait for the job
    #[arg(long)]
    pub no_wait: bool,
}

/// Disks.
#[derive(Subcommand, Debug)]
pub enum Disk {
    /// Show all disks
    List,
    /// Attach devices or files as spares
    Add {
        /// Paths
        #[arg(required = true)]
        locations: Vec<PathBuf>,
        #[command(flatten)]
        follow: Follow,
    },
    /// Copy a disk that still serves to a spare, which takes its place
    Replace {
        /// Identity, or where it is attached
        disk: String,
        /// The spare [default: one that fits]
        #[arg(long, value_name = "SPARE")]
        with: Option<String>,
        #[command(flatten)]
        follow: Follow,
    },
    /// Take a disk out; a spare is rebuilt in its place
    Fail {
        /// Identity, or where it is attached
        disk: String,
        #[command(flatten)]
        follow: Follow,
    },
}

/// The aggregate.
#[derive(Subcommand, Debug)]
pub enum Aggregate {
    /// Show the aggregate and its RAID groups
    #[command(alias = "list")]
    Show,
    /// Widen a group by one data disk, from a spare
    Grow {
        /// Number of the group
        group: u16,
        #[command(flatten)]
        follow: Follow,
    },
    /// Form a new group of spares
    AddGroup {
        /// Disks in it, parity included
        disks: u16,
        #[command(flatten)]
        follow: Follow,
    },
    /// Make the RAID groups RAID-DP, with a spare for each, or RAID-4
    RaidType {
        /// Identity of the aggregate, or its beginning
        aggregate: String,
        /// What they are to be
        raid: Raid,
        /// Only this group
        #[arg(long)]
        group: Option<u16>,
        #[command(flatten)]
        follow: Follow,
    },
    /// Run a consistency point now
    Cp,
}

/// Volumes.
#[derive(Subcommand, Debug)]
pub enum Volume {
    /// Show all volumes
    List,
    /// Make a volume
    Create {
        /// Name
        name: String,
        /// Size
        #[arg(long, value_parser = size)]
        size: u64,
        /// Path at which clients find it [default: /NAME]
        #[arg(long)]
        junction: Option<String>,
        #[command(flatten)]
        follow: Follow,
    },
    /// Change a volume's size
    Resize {
        /// Name
        name: String,
        /// Size
        #[arg(long, value_parser = size)]
        size: u64,
        #[command(flatten)]
        follow: Follow,
    },
    /// Rename a volume; its path stays
    Rename {
        /// Name
        name: String,
        /// New name
        to: String,
        #[command(flatten)]
        follow: Follow,
    },
    /// Delete a volume with everything in it
    Delete {
        /// Name
        name: String,
        /// Say that you mean it
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        follow: Follow,
    },
}

/// What a rule lets its clients do.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum AccessName {
    /// Nothing
    None,
    /// Read
    Ro,
    /// Read and change
    Rw,
}

impl From<AccessName> for RuleAccess {
    fn from(access: AccessName) -> Self {
        match access {
            AccessName::None => Self::None,
            AccessName::Ro => Self::Ro,
            AccessName::Rw => Self::Rw,
        }
    }
}

/// Whose requests are made anonymous.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum SquashName {
    /// Nobody's
    None,
    /// The superuser's
    Root,
    /// Everybody's
    All,
}

impl From<SquashName> for RuleSquash {
    fn from(squash: SquashName) -> Self {
        match squash {
            SquashName::None => Self::None,
            SquashName::Root => Self::Root,
            SquashName::All => Self::All,
        }
    }
}

/// Export policies.
#[derive(Subcommand, Debug)]
pub enum Export {
    /// Show all exports
    List,
    /// Add a rule behind those there are (or before all with --first)
    Add {
        /// Volume
        volume: String,
        /// `*`, an address, or a subnet like 10.0.0.0/8
        clients: String,
        /// What they may do
        #[arg(long, default_value = "rw")]
        access: AccessName,
        /// Whose requests are made anonymous
        #[arg(long, default_value = "root")]
        squash: SquashName,
        /// User of anonymous requests
        #[arg(long, default_value_t = ANONYMOUS_ID)]
        anon_uid: u32,
        /// Group of anonymous requests
        #[arg(long, default_value_t = ANONYMOUS_ID)]
        anon_gid: u32,
        /// Take requests from ports below 1024 only
        #[arg(long)]
        privileged_port: bool,
        /// Before all other rules
        #[arg(long)]
        first: bool,
    },
    /// Remove the rules for these clients
    Remove {
        /// Volume
        volume: String,
        /// As `cairn export list` shows them
        clients: String,
    },
}

/// Jobs.
#[derive(Subcommand, Debug)]
pub enum Job {
    /// Show all jobs
    List,
    /// Show one job
    Show {
        /// Number
        id: u64,
    },
    /// Follow a job to its end
    Wait {
        /// Number
        id: u64,
    },
}

/// The check.
#[derive(clap::Args, Debug)]
pub struct Check {
    /// Volume to check; the whole aggregate when none is named
    pub volume: Option<String>,
    /// Put right what can be put right
    #[arg(long)]
    pub repair: bool,
    /// Read the data of all files too, and compare it with its checksums
    #[arg(long)]
    pub data: bool,
    /// Show what the last check found, and start none
    #[arg(long, conflicts_with_all = ["volume", "repair", "data", "disks"])]
    pub status: bool,
    /// Disks of a node that is stopped: check them without it
    #[arg(long, num_args = 1.., value_name = "DISK", conflicts_with = "volume")]
    pub disks: Vec<std::path::PathBuf>,
    #[command(flatten)]
    pub follow: Follow,
}

/// The scrub.
#[derive(Subcommand, Debug)]
pub enum Scrub {
    /// Start one and follow it
    Start {
        #[command(flatten)]
        follow: Follow,
    },
    /// Show how it stands
    Status,
    /// Set the hours between two scrubs (0: never by itself)
    Schedule {
        /// Hours
        hours: u32,
    },
}
