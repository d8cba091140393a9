//! What faces the network: N-module, NFS, M-host and REST over one D-module.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cairn_cf::DModule;
use cairn_mhost::db::{Db, DbError};
use cairn_mhost::model::{Clients, ExportRule, RuleAccess, RuleSquash};
use cairn_mhost::rest::{self, MetricsAccess, RestListener, Token, TokenError};
use cairn_mhost::{ApiError, Endpoints, MHost, Publish, PublishedVolume};
use cairn_nmod::{
    Access, ExportPolicy, HandleKey, NModule, PortRule, Routes, Rule, Squash, Subnet, Volume,
};
use cairn_sys::World;
use cairn_units::{Gid, Uid};
use tokio::sync::watch;

use crate::config::{FrontConfig, RestEndpoint};
use crate::metrics;
use crate::nfs::Nfs;
use crate::statedir::StateDir;

/// Name of the configuration database in the state directory.
pub(crate) const DATABASE_FILE: &str = "config.redb";
/// Name of the token's file in the state directory.
pub(crate) const TOKEN_FILE: &str = "rest-token";

/// Why the front did not start.
#[derive(Debug, thiserror::Error)]
pub enum FrontError {
    /// The configuration database.
    #[error(transparent)]
    Db(#[from] DbError),
    /// The token.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The M-host.
    #[error(transparent)]
    MHost(#[from] ApiError),
    /// The identity in the database.
    #[error("the configuration database holds no key of file handles; restore it from a backup")]
    HandleKey,
    /// NFS, MOUNT or rpcbind.
    #[error(transparent)]
    Nfs(#[from] cairn_nfs::StartError),
    /// The address of REST is taken.
    #[error("REST: {endpoint} is in use by another program; stop that one or choose another")]
    RestInUse {
        /// Where.
        endpoint: RestEndpoint,
    },
    /// REST cannot listen.
    #[error("REST: cannot listen on {endpoint}: {source}")]
    Rest {
        /// Where.
        endpoint: RestEndpoint,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// The running front.
pub struct Front {
    mhost: Arc<MHost>,
    nfs: Nfs,
    rest: RestEndpoint,
    rest_stop: watch::Sender<bool>,
    token_file: PathBuf,
}

fn subnet(text: &str) -> Option<Subnet> {
    match Clients::parse(text).ok()? {
        Clients::Everybody => Some(Subnet::everybody()),
        Clients::Subnet { ip, prefix } => Subnet::new(ip, prefix),
    }
}

fn rule(rule: &ExportRule) -> Result<Rule, String> {
    Ok(Rule {
        clients: subnet(&rule.clients)
            .ok_or_else(|| format!("{:?} is not a client", rule.clients))?,
        access: match rule.access {
            RuleAccess::None => Access::None,
            RuleAccess::Ro => Access::ReadOnly,
            RuleAccess::Rw => Access::ReadWrite,
        },
        squash: match rule.squash {
            RuleSquash::None => Squash::None,
            RuleSquash::Root => Squash::Root,
            RuleSquash::All => Squash::All,
        },
        ports: if rule.privileged_port { PortRule::Privileged } else { PortRule::Any },
        anon_uid: Uid::new(rule.anon_uid),
        anon_gid: Gid::new(rule.anon_gid),
    })
}

fn volume(volume: &PublishedVolume, dmodule: &Arc<dyn DModule>) -> Result<Option<Volume>, String> {
    let Some(root) = volume.root else { return Ok(None) };
    let rules: Result<Vec<Rule>, String> = volume.rules.iter().map(rule).collect();
    Ok(Some(Volume {
        fsid: volume.fsid,
        vserver: volume.vserver,
        junction: volume.junction.as_bytes().to_vec(),
        root,
        policy: ExportPolicy::new(rules?),
        dmodule: dmodule.clone(),
    }))
}

/// Puts the M-host's table into force in the N-module.
fn publisher(nmod: Arc<NModule>, dmodule: Arc<dyn DModule>) -> Publish {
    Arc::new(move |table: Vec<PublishedVolume>| {
        let mut volumes = Vec::new();
        let mut offline = Vec::new();
        for entry in &table {
            match volume(entry, &dmodule)? {
                Some(volume) => volumes.push(volume),
                None => offline.push(entry.fsid),
            }
        }
        let routes = Routes::new(volumes).map_err(|e| e.to_string())?;
        nmod.push(routes.with_offline(offline));
        Ok(())
    })
}

async fn bind_unix(path: &Path) -> std::io::Result<RestListener> {
    if tokio::net::UnixStream::connect(path).await.is_ok() {
        return Err(std::io::ErrorKind::AddrInUse.into());
    }
    // Nobody answers: what lies there is left over from a killed node.
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = tokio::net::UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(RestListener::Unix(listener))
}

async fn bind_rest(endpoint: &RestEndpoint) -> Result<(RestListener, RestEndpoint), FrontError> {
    let bound = match endpoint {
        RestEndpoint::Tcp(addr) => match tokio::net::TcpListener::bind(addr).await {
            Ok(l) => l.local_addr().map(|a| (RestListener::Tcp(l), RestEndpoint::Tcp(a))),
            Err(e) => Err(e),
        },
        RestEndpoint::Unix(path) => bind_unix(path).await.map(|l| (l, endpoint.clone())),
    };
    bound.map_err(|source| match source.kind() {
        std::io::ErrorKind::AddrInUse => FrontError::RestInUse { endpoint: endpoint.clone() },
        _ => FrontError::Rest { endpoint: endpoint.clone(), source },
    })
}

impl Front {
    /// The configuration database of a state directory.
    ///
    /// # Errors
    /// See [`DbError`].
    pub fn database(state: &StateDir) -> Result<Arc<Db>, DbError> {
        Ok(Arc::new(Db::open(&state.file(DATABASE_FILE))?))
    }

    /// Starts: routes first, so that no client is told that its files are gone; then NFS, then
    /// REST.
    ///
    /// # Errors
    /// See [`FrontError`]; nothing listens then.
    pub async fn start(
        world: &World,
        state: &StateDir,
        db: Arc<Db>,
        dmodule: Arc<dyn DModule>,
        config: &FrontConfig,
    ) -> Result<Self, FrontError> {
        let token_file = state.file(TOKEN_FILE);
        let token = Token::load_or_create(&token_file, world)?;
        let identity = cairn_mhost::identity(&db, world)?;
        let key = cairn_units::DiskUuid::parse(&identity.handle_key);
        let key = HandleKey::new(key.ok_or(FrontError::HandleKey)?.bytes());
        let nmod = Arc::new(NModule::new(key, dmodule.clone()));
        // Before anything is served, so that a taken address stops the start.
        let (listener, rest) = bind_rest(&config.rest).await?;
        let publish = publisher(nmod.clone(), dmodule.clone());
        let mhost = MHost::start(db, world.clone(), dmodule, publish).await?;
        let nfs = match Nfs::start(world, config, nmod.clone()) {
            Ok(nfs) => nfs,
            Err(e) => {
                mhost.stop().await;
                return Err(e);
            }
        };
        mhost.set_endpoints(Endpoints {
            nfs: nfs.addr().to_string(),
            rest: rest.to_string(),
            state_dir: state.path().to_owned(),
        });
        mhost.add_metrics(metrics::of_nmod(nmod));
        mhost.add_metrics(metrics::of_process(world.clone()));
        mhost.add_metrics(nfs.metrics());
        let open = if config.metrics_open { MetricsAccess::Open } else { MetricsAccess::Token };
        let router = rest::router(mhost.clone(), token, open);
        let (rest_stop, stopped) = watch::channel(false);
        let clock = world.clock.clone();
        world.spawn.spawn(
            "rest",
            Box::pin(async move {
                if let Err(e) = rest::serve(listener, router, clock, stopped).await {
                    tracing::error!("REST has stopped: {e}");
                }
            }),
        );
        Ok(Self { mhost, nfs, rest, rest_stop, token_file })
    }

    /// Stops taking requests and waits for those in flight; jobs stay where they are.
    pub async fn stop(self) {
        self.rest_stop.send_replace(true);
        self.mhost.stop().await;
        self.nfs.stop().await;
        if let RestEndpoint::Unix(path) = &self.rest
            && let Err(e) = std::fs::remove_file(path)
        {
            tracing::warn!("{}: {e}", path.display());
        }
    }

    /// The M-host.
    pub fn mhost(&self) -> &Arc<MHost> {
        &self.mhost
    }
    /// Address of NFS and MOUNT.
    pub fn nfs_addr(&self) -> std::net::SocketAddr {
        self.nfs.addr()
    }
    /// Address of REST.
    pub fn rest(&self) -> &RestEndpoint {
        &self.rest
    }
    /// The file with the token.
    pub fn token_file(&self) -> &Path {
        &self.token_file
    }
}
