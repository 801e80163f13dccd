//! `backstop plugin push`: a component into an OCI registry.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{Context as _, bail};
use axum::http::HeaderValue;
use backstop::strategy::component::{ComponentStrategy, Description, Limits};
use chrono::{DateTime, SecondsFormat, Utc};
use oci_client::RegistryOperation;
use oci_client::manifest::{OCI_IMAGE_MEDIA_TYPE, OciDescriptor, OciImageManifest};
use serde_json::json;

use super::registry::{Artifact, CONFIG, LAYER, digest_of, explain};
use super::{read, shown_size};
use crate::cli::terminal;

pub(super) async fn run(
    artifact: &Artifact,
    file: Option<&Path>,
    as_json: bool,
) -> anyhow::Result<ExitCode> {
    if artifact.reference().digest().is_some() {
        bail!("a digest names what is there already: push to a tag, such as NAME:1.0.0");
    }
    let loaded = read(file)?;
    let runtime = super::runtime()?;
    // What is no strategy, or asks for what none gets, is not worth anybody's download.
    let about = ComponentStrategy::describe(
        &runtime,
        &loaded.plugin,
        loaded.bytes.clone(),
        &Limits::default(),
    )
    .await?;
    let modified = std::fs::metadata(&loaded.path).and_then(|about| about.modified());
    let made = modified.with_context(|| format!("cannot look at {}", loaded.path.display()))?;

    let layer = digest_of(&loaded.bytes);
    let config = serde_json::to_vec(&config(&about, &layer, made))?;
    let manifest = serde_json::to_vec(&manifest(&about, &config, (&layer, loaded.bytes.len()))?)?;
    let pushed = digest_of(&manifest);

    let registry = artifact.reach(RegistryOperation::Push).await?;
    let (client, reference) = (&registry.client, &registry.reference);
    let sent = async {
        client.push_blob(reference, loaded.bytes, &layer).await?;
        let digest = digest_of(&config);
        client.push_blob(reference, config, &digest).await?;
        let media_type = HeaderValue::from_static(OCI_IMAGE_MEDIA_TYPE);
        client
            .push_manifest_raw(reference, manifest, media_type)
            .await
    };
    sent.await.map_err(|error| explain(error, reference))?;

    let pinned = registry.pinned(&pushed);
    if as_json {
        let document = json!({
            "reference": reference.to_string(),
            "pinned": pinned,
            "plugin": about.info.name,
            "version": about.info.version,
            "size": about.size,
            "sha256": about.sha256,
        });
        terminal::say(&serde_json::to_string_pretty(&document)?);
    } else {
        let (name, version) = (&about.info.name, &about.info.version);
        let size = shown_size(about.size);
        terminal::say(&format!("pushed  {name} {version}, {size}, to {reference}"));
        terminal::say(&format!("pinned  {pinned}"));
    }
    Ok(ExitCode::SUCCESS)
}

/// What the artifact's configuration says. The fields and their names are the layout's.
fn config(about: &Description, layer: &str, made: SystemTime) -> serde_json::Value {
    let made = DateTime::<Utc>::from(made);
    let contract = &about.contract;
    json!({
        "created": made.to_rfc3339_opts(SecondsFormat::Secs, true),
        "architecture": "wasm",
        "os": "wasip2",
        "layerDigests": [layer],
        "component": {
            "exports": [format!("backstop:strategy/policy@{contract}")],
            "imports": about.imports,
            "target": format!("backstop:strategy/strategy@{contract}"),
        },
    })
}

fn manifest(
    about: &Description,
    config: &[u8],
    (layer, size): (&str, usize),
) -> anyhow::Result<OciImageManifest> {
    let descriptor = |media_type: &str, digest: String, size: usize| {
        anyhow::Ok(OciDescriptor {
            media_type: media_type.into(),
            digest,
            size: size.try_into()?,
            ..OciDescriptor::default()
        })
    };
    let annotations = [
        ("title", &about.info.name),
        ("version", &about.info.version),
        ("description", &about.info.description),
    ];
    let annotations = annotations.map(|(key, value)| {
        let key = format!("org.opencontainers.image.{key}");
        (key, value.clone())
    });
    Ok(OciImageManifest {
        media_type: Some(OCI_IMAGE_MEDIA_TYPE.into()),
        config: descriptor(CONFIG, digest_of(config), config.len())?,
        layers: vec![descriptor(LAYER, layer.into(), size)?],
        annotations: Some(BTreeMap::from(annotations)),
        ..OciImageManifest::default()
    })
}
