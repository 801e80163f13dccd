//! Why a component could not be made a strategy.

use std::path::PathBuf;

use super::digest::Digest;
use super::limits::{LimitError, Size};
use crate::strategy::{InfoError, StrategyFault};

/// Why a component could not be made a strategy: what is wrong, in which plugin, and how to mend it.
///
/// `plugin` is the name the strategy was loaded under, usually the file's stem.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum LoadError {
    /// The plugin folder cannot be read.
    #[error("the plugin folder {} cannot be read: create it, or name another one in `plugins`", path.display())]
    Folder {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// A file of the plugin folder cannot be read.
    #[error("plugin {plugin}: {} cannot be read: check that it is a file and its permissions", path.display())]
    File {
        plugin: String,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// A file of the plugin folder is a link that leaves the folder.
    #[error("plugin {plugin}: {} leads out of the plugin folder: put the file itself there", path.display())]
    Escape { plugin: String, path: PathBuf },
    /// A file of the plugin folder has a name no plugin can have.
    #[error(
        "{path:?} has a name no plugin can have: rename it to 1 to 64 letters, digits, `-` or `_`, and `.wasm`"
    )]
    FileName { path: PathBuf },
    /// A file of the plugin folder changed while it was read.
    #[error("plugin {plugin}: {} is being written: wait until it is complete, or move it into the folder when it is", path.display())]
    Changing { plugin: String, path: PathBuf },
    /// The lock file does not name the plugin.
    #[error("plugin {plugin}: {} does not name it, so it is not trusted: check where the file comes from, then write the lock again", lock.display())]
    NotLocked { plugin: String, lock: PathBuf },
    /// The file is not the one the lock file names.
    #[error("plugin {plugin}: its SHA-256 is {found}, and {} has {locked}: it is not the file that was trusted; put that one back, or check this one and write the lock again", lock.display())]
    LockMismatch {
        plugin: String,
        lock: PathBuf,
        locked: Digest,
        found: Digest,
    },
    /// The file is too large.
    #[error("plugin {plugin}: the component is larger than {}, the most a component may have: build it smaller", Size(*limit))]
    TooLarge { plugin: String, limit: usize },
    /// A limit is out of its range.
    #[error("plugin {plugin}: `limits` is not acceptable: {source}")]
    Limit { plugin: String, source: LimitError },
    /// The file is not WebAssembly.
    #[error(
        "plugin {plugin}: not a WebAssembly file: build the strategy with `--target wasm32-wasip2`"
    )]
    NotWasm { plugin: String },
    /// The file is a core module, not a component.
    #[error(
        "plugin {plugin}: a core WebAssembly module, not a component: build it with `--target wasm32-wasip2`, or wrap it with `wasm-tools component new`"
    )]
    CoreModule { plugin: String },
    /// The file is damaged.
    #[error(
        "plugin {plugin}: the file is damaged or incomplete ({reason}): copy or build it again"
    )]
    Damaged { plugin: String, reason: String },
    /// The component has so much of something that compiling it would take too long.
    #[error(
        "plugin {plugin}: has {count} {what} or more, and at most {limit} are accepted: build it smaller"
    )]
    Excessive {
        plugin: String,
        what: &'static str,
        count: usize,
        limit: usize,
    },
    /// The component is not a strategy.
    #[error(
        "plugin {plugin}: not a fallback strategy: it does not export {wanted} but {}: build it for the world `strategy` of `backstop:strategy`",
        listed(exports)
    )]
    WrongWorld {
        plugin: String,
        wanted: String,
        exports: Vec<String>,
    },
    /// The component is a strategy of a contract this host does not speak.
    #[error(
        "plugin {plugin}: wants the contract `{wants}`, and this host offers {offers}: use a host that offers it, or build the plugin for the host's contract"
    )]
    Contract {
        plugin: String,
        wants: String,
        offers: String,
    },
    /// The component imports something a strategy never gets.
    #[error("plugin {plugin}: imports `{import}`, and a strategy gets no {what}: build it without")]
    Forbidden {
        plugin: String,
        import: String,
        what: &'static str,
    },
    /// The component imports something this host does not have.
    #[error(
        "plugin {plugin}: imports `{import}`, which this host does not offer: build it without, or use a newer host"
    )]
    UnknownImport { plugin: String, import: String },
    /// The component cannot be compiled.
    #[error(
        "plugin {plugin}: cannot be compiled ({reason}): build it again with tools of this year"
    )]
    Compile { plugin: String, reason: String },
    /// The component's imports or exports have other types than those of the contract it names.
    #[error(
        "plugin {plugin}: wants the contract `{wants}`, but does not fit it: {part} has another type there, or is missing; this host offers {offers}: build the plugin from the contract's own WIT files"
    )]
    Shape {
        plugin: String,
        wants: String,
        offers: String,
        /// The function or interface that differs.
        part: String,
    },
    /// No instance could be made, or `metadata` failed.
    #[error(
        "plugin {plugin}: `metadata` failed: the plugin {source}: mend the plugin, or remove it"
    )]
    Metadata {
        plugin: String,
        source: StrategyFault,
    },
    /// What the strategy says of itself is out of range.
    #[error("plugin {plugin}: its metadata is not acceptable: {source}")]
    Info { plugin: String, source: InfoError },
    /// A field of the metadata is out of range.
    #[error("plugin {plugin}: its metadata field `{field}` is not acceptable: {reason}")]
    Field {
        plugin: String,
        field: &'static str,
        reason: String,
    },
    /// The configuration does not grant a capability the strategy needs.
    #[error(
        "plugin {plugin}: needs the capability `{capability}`: grant it with `{remedy}`, or do not use the plugin"
    )]
    NotGranted {
        plugin: String,
        capability: &'static str,
        remedy: &'static str,
    },
    /// The granted folder cannot be opened.
    #[error("plugin {plugin}: the folder {} of `grants.folder` cannot be opened: create it, or grant another one", path.display())]
    GrantedFolder {
        plugin: String,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// What is kept of its state cannot be read.
    #[error("plugin {plugin}: its state is not to be had: {source}")]
    State {
        plugin: String,
        source: super::StateStoreError,
    },
    /// The configuration does not fit the strategy's schema.
    #[error("plugin {plugin}: `{field}` is wrong: {reason}: {remedy}")]
    Config {
        plugin: String,
        field: String,
        reason: String,
        remedy: String,
    },
    /// `configure` returned an error.
    #[error("plugin {plugin}: refuses its configuration: {message}")]
    Refused { plugin: String, message: String },
    /// `configure` trapped, took too long, or asked for too much.
    #[error(
        "plugin {plugin}: `configure` failed: the plugin {source}: change its `config`, or mend the plugin"
    )]
    Configure {
        plugin: String,
        source: StrategyFault,
    },
    /// The runtime cannot run its work.
    #[error("plugin {plugin}: loading was cut short: the program is ending")]
    Aborted { plugin: String },
}

fn listed(names: &[String]) -> String {
    if names.is_empty() {
        return "nothing".into();
    }
    let shown: Vec<_> = names
        .iter()
        .take(5)
        .map(|name| format!("`{name}`"))
        .collect();
    let more = if names.len() > shown.len() {
        ", ..."
    } else {
        ""
    };
    format!("{}{more}", shown.join(", "))
}

impl LoadError {
    /// Whether the same file may be accepted at another time: what was wrong is not in it.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::File { .. }
            | Self::Changing { .. }
            | Self::GrantedFolder { .. }
            | Self::State { .. }
            | Self::Aborted { .. } => true,
            Self::Metadata { source, .. } | Self::Configure { source, .. } => matches!(
                source,
                StrategyFault::Timeout(_) | StrategyFault::Instantiate(_)
            ),
            _ => false,
        }
    }

    /// The plugin it is about; `None` where it is about the folder.
    pub fn plugin(&self) -> Option<&str> {
        match self {
            Self::Folder { .. } | Self::FileName { .. } => None,
            Self::File { plugin, .. }
            | Self::Escape { plugin, .. }
            | Self::Changing { plugin, .. }
            | Self::NotLocked { plugin, .. }
            | Self::LockMismatch { plugin, .. }
            | Self::TooLarge { plugin, .. }
            | Self::Limit { plugin, .. }
            | Self::NotWasm { plugin }
            | Self::CoreModule { plugin }
            | Self::Damaged { plugin, .. }
            | Self::Excessive { plugin, .. }
            | Self::WrongWorld { plugin, .. }
            | Self::Contract { plugin, .. }
            | Self::Forbidden { plugin, .. }
            | Self::UnknownImport { plugin, .. }
            | Self::Compile { plugin, .. }
            | Self::Shape { plugin, .. }
            | Self::Metadata { plugin, .. }
            | Self::Info { plugin, .. }
            | Self::Field { plugin, .. }
            | Self::NotGranted { plugin, .. }
            | Self::GrantedFolder { plugin, .. }
            | Self::State { plugin, .. }
            | Self::Config { plugin, .. }
            | Self::Refused { plugin, .. }
            | Self::Configure { plugin, .. }
            | Self::Aborted { plugin } => Some(plugin),
        }
    }
}
