//! What a component is, before anybody has configured it or granted it anything.

use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;

use super::host_impl::Shared;
use super::{ComponentStrategy, Digest, Grants, Limits, LoadError, Runtime};
use crate::strategy::StrategyInfo;

/// What there is to know of a component that is not configured.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Description {
    /// What it says of itself. What it wants to be granted is in `capabilities`.
    pub info: StrategyInfo,
    /// The contract it was built for, as a version.
    pub contract: String,
    /// What it imports, by name.
    pub imports: Vec<String>,
    /// The size of its file, in bytes.
    pub size: usize,
    /// The SHA-256 of its file.
    pub sha256: Digest,
}

impl ComponentStrategy {
    /// Checks and compiles a component and asks it for its metadata, as [`load`](Self::load) does,
    /// without a configuration and without granting it anything: what a tool shows to whoever has
    /// yet to write the one and to decide about the other.
    ///
    /// # Errors
    /// [`LoadError`], except those about grants and the configuration.
    pub async fn describe(
        runtime: &Runtime,
        plugin: &str,
        bytes: impl Into<Bytes>,
        limits: &Limits,
    ) -> Result<Description, LoadError> {
        let compiled =
            Self::compile(runtime, plugin, bytes.into(), limits, &Grants::default()).await?;
        let shared = Arc::new(Shared {
            name: plugin.into(),
            state: None,
            folder: None,
            clock_start: runtime.started(),
            simulated: runtime.simulated().cloned(),
            limits: limits.clone(),
        });
        let info = Self::ask_metadata(runtime, &compiled.pre, &shared, &compiled.manifest).await?;
        info.interest().map_err(|source| LoadError::Info {
            plugin: plugin.into(),
            source,
        })?;
        Ok(Description {
            info,
            contract: compiled.manifest.version,
            imports: compiled.manifest.imports,
            size: compiled.size,
            sha256: compiled.sha256,
        })
    }
}
