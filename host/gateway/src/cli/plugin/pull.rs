//! `backstop plugin pull`: a component from an OCI registry.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use backstop::plugins::{LockError, PluginLock};
use backstop::strategy::component::{ComponentStrategy, Limits};
use bytes::Bytes;
use futures_util::StreamExt as _;
use oci_client::RegistryOperation;
use oci_client::errors::OciDistributionError;
use oci_client::manifest::{
    OCI_IMAGE_MEDIA_TYPE, OciDescriptor, OciImageManifest, WASM_LAYER_MEDIA_TYPE,
};
use serde_json::json;

use super::registry::{Artifact, LAYER, Registry, explain};
use super::{build, shown_size};
use crate::cli::terminal;

pub(super) async fn run(
    artifact: &Artifact,
    folder: &Path,
    lock: Option<&Path>,
    as_json: bool,
) -> anyhow::Result<ExitCode> {
    let limits = Limits::default();
    // Before anything is fetched or written: a lock that cannot be read cannot be added to.
    let locked = lock.map(read_lock).transpose()?;
    let registry = artifact.reach(RegistryOperation::Pull).await?;
    let reference = &registry.reference;
    let fetched = registry
        .client
        .pull_manifest_raw(reference, &registry.auth, &[OCI_IMAGE_MEDIA_TYPE])
        .await;
    let (manifest, digest) = fetched.map_err(|error| explain(error, reference))?;
    let layer = layer_of(&manifest, limits.component_bytes)
        .with_context(|| format!("{reference} is no strategy"))?;
    let bytes = download(&registry, &layer, limits.component_bytes).await?;

    let runtime = super::runtime()?;
    let name = reference
        .repository()
        .rsplit('/')
        .next()
        .unwrap_or_default();
    let about = ComponentStrategy::describe(&runtime, name, bytes.clone(), &limits).await?;
    // Its own name, which the loading has checked, and which is what a configuration refers to.
    let name = &about.info.name;
    let file = folder.join(format!("{name}.wasm"));
    build::place(&file, &bytes)?;
    if let (Some(mut locked), Some(path)) = (locked, lock) {
        locked.plugins.insert(name.clone(), about.sha256);
        locked.write(path)?;
    }

    let pinned = registry.pinned(&digest);
    if as_json {
        let document = json!({
            "reference": reference.to_string(),
            "pinned": pinned,
            "file": file,
            "plugin": name,
            "version": about.info.version,
            "size": about.size,
            "sha256": about.sha256,
            "wants": about.info.capabilities,
        });
        terminal::say(&serde_json::to_string_pretty(&document)?);
    } else {
        let (version, size) = (&about.info.version, shown_size(about.size));
        let file = file.display();
        terminal::say(&format!("pulled  {name} {version}, {size}, to {file}"));
        terminal::say(&format!("sha256  {}", about.sha256));
        terminal::say(&format!("pinned  {pinned}"));
    }
    Ok(ExitCode::SUCCESS)
}

fn read_lock(path: &Path) -> Result<PluginLock, LockError> {
    match PluginLock::read(path) {
        Err(LockError::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            Ok(PluginLock::default())
        }
        read => read,
    }
}

/// The component an artifact consists of.
fn layer_of(manifest: &[u8], limit: usize) -> anyhow::Result<OciDescriptor> {
    let manifest: OciImageManifest = serde_json::from_slice(manifest)
        .context("it is no image manifest; one that lists several must be named by its digest")?;
    let types: Vec<&str> = manifest.layers.iter().map(|it| &*it.media_type).collect();
    // The second one is what was written before there was a layout.
    let [LAYER | WASM_LAYER_MEDIA_TYPE] = types[..] else {
        bail!(
            "it has the layers {types:?} where a component has one of {LAYER:?}: name an artifact that `backstop plugin push` or another tool for WebAssembly has made"
        );
    };
    let mut layers = manifest.layers;
    let layer = layers.pop().context("it has no layer")?;
    if !usize::try_from(layer.size).is_ok_and(|size| size <= limit) {
        bail!(
            "its component has {} bytes, and at most {limit} are accepted",
            layer.size
        );
    }
    Ok(layer)
}

/// Fetches the component. What is returned has the digest the manifest says, else it is an error.
async fn download(
    registry: &Registry,
    layer: &OciDescriptor,
    limit: usize,
) -> anyhow::Result<Bytes> {
    let (client, reference) = (&registry.client, &registry.reference);
    let opened = client.pull_blob_stream(reference, layer).await;
    let mut stream = opened.map_err(|error| explain(error, reference))?;
    let mut bytes = Vec::new();
    while let Some(part) = stream.next().await {
        let part = part.map_err(|error| {
            let is_other = error
                .get_ref()
                .and_then(|inner| inner.downcast_ref::<oci_client::errors::DigestError>())
                .is_some();
            let what = if is_other {
                format!("the registry sent something else than {reference}: do not use it, and tell whoever runs the registry")
            } else {
                format!("{reference} could not be fetched to its end: try it again")
            };
            anyhow::Error::new(OciDistributionError::from(error)).context(what)
        })?;
        if bytes.len() + part.len() > limit {
            bail!("the registry sends more than {limit} bytes for {reference}: do not use it");
        }
        bytes.extend_from_slice(&part);
    }
    Ok(bytes.into())
}
