//! The strategies of a configuration: from the plugin folder, from the stock, configured by entries.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::join_all;

use super::Notes;
use crate::config::cycle::find_cycle;
use crate::config::{self, Config};
use crate::engine::Engine;
use crate::event::EventKind;
use crate::strategy::component::{
    ComponentStrategy, Grants, Isolation, Limits, LoadError, Runtime, StrategyOptions, scan,
};
use crate::strategy::{Entry, OnFault};

/// One strategy that is to be: a plugin, and how it is used.
struct Wanted<'a> {
    name: String,
    plugin: String,
    source: String,
    bytes: Bytes,
    entry: Option<&'a config::Strategy>,
}

/// Loads every strategy that takes part, and adds it to the engine.
pub(super) async fn load(
    config: &Config,
    engine: &Engine,
    runtime: &Runtime,
    notes: &mut Notes<'_>,
) {
    let available = available(config, notes).await;
    let wanted = wanted(config, &available, notes);
    // The compilations run side by side, off the async threads.
    let loaded = join_all(wanted.iter().map(|wanted| async {
        let options = options(wanted.entry);
        ComponentStrategy::load(runtime, &wanted.plugin, wanted.bytes.clone(), options).await
    }))
    .await;

    let mut routes: Vec<(String, String, String)> = Vec::new();
    for (wanted, loaded) in wanted.iter().zip(loaded) {
        let strategy = match loaded {
            Ok(strategy) => strategy,
            Err(error) => {
                reject(engine, notes, &wanted.source, &wanted.name, &error);
                continue;
            }
        };
        let known = routes.len();
        let declared = strategy.routes().iter();
        routes.extend(declared.map(|route| {
            (
                wanted.name.clone(),
                route.source.clone(),
                route.fallback.clone(),
            )
        }));
        if let Some(cycle) = find_cycle(
            routes
                .iter()
                .map(|(s, f, t)| (s.as_str(), f.as_str(), t.as_str())),
        ) {
            routes.truncate(known);
            let message = format!(
                "its fallback routes close a cycle: {cycle}: remove one of these routes; the strategy is left out"
            );
            engine.announce(EventKind::StrategyRejected {
                source: wanted.source.clone(),
                reason: message.clone(),
            });
            notes.say(format!("strategy {:?}", wanted.name), message);
            continue;
        }
        add(engine, notes, wanted, strategy);
    }
}

fn add(
    engine: &Engine,
    notes: &mut Notes<'_>,
    wanted: &Wanted<'_>,
    strategy: Arc<ComponentStrategy>,
) {
    let version = strategy.info().version.clone();
    let entry = match Entry::component(strategy) {
        Ok(entry) => entry.named(wanted.name.as_str()),
        Err(error) => return reject(engine, notes, &wanted.source, &wanted.name, &error),
    };
    let entry = match wanted.entry {
        None => entry,
        Some(given) => {
            let priority = given.priority.unwrap_or(entry.priority());
            entry
                .with_priority(priority)
                .with_on_fault(match given.on_fault {
                    config::OnFault::Skip => OnFault::Skip,
                    config::OnFault::Fail => OnFault::Fail,
                    config::OnFault::Decline => OnFault::Decline,
                })
        }
    };
    match engine.strategies().add(entry) {
        Ok(entry) => engine.announce(EventKind::StrategyLoaded {
            strategy: entry.name().clone(),
            version,
            source: wanted.source.clone(),
        }),
        Err(error) => reject(engine, notes, &wanted.source, &wanted.name, &error),
    }
}

fn reject(
    engine: &Engine,
    notes: &mut Notes<'_>,
    source: &str,
    name: &str,
    error: &(dyn std::error::Error + 'static),
) {
    notes.error(format!("strategy {name:?} ({source})"), error);
    let reason = error.to_string();
    engine.announce(EventKind::StrategyRejected {
        source: source.to_owned(),
        reason,
    });
}

type Available = BTreeMap<String, (String, Bytes)>;

/// Every plugin there is: name to source and content. A file of the folder goes before the stock.
async fn available(config: &Config, notes: &mut Notes<'_>) -> Available {
    let mut available = Available::new();
    #[cfg(feature = "stock")]
    if config.stock {
        for (name, bytes) in crate::strategy::component::stock() {
            available.insert(
                (*name).to_owned(),
                ("stock".to_owned(), Bytes::from_static(bytes)),
            );
        }
    }
    let Some(folder) = config.plugins.clone() else {
        return available;
    };
    for found in scan_folder(folder, notes).await {
        let source = found.path.display().to_string();
        match found.bytes {
            Ok(bytes) => {
                available.insert(found.stem, (source, bytes));
            }
            Err(error) => notes.error(format!("strategy {:?} ({source})", found.stem), &error),
        }
    }
    available
}

async fn scan_folder(
    folder: PathBuf,
    notes: &mut Notes<'_>,
) -> Vec<crate::strategy::component::Found> {
    let limit = Limits::default().component_bytes;
    match tokio::task::spawn_blocking(move || scan(&folder, limit)).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => {
            notes.error("plugins", &error);
            Vec::new()
        }
        Err(_) => {
            notes.error("plugins", &LoadError::Aborted { plugin: "*".into() });
            Vec::new()
        }
    }
}

/// The strategies that take part: those with an entry in the order of the file, then the others.
fn wanted<'a>(config: &'a Config, available: &Available, notes: &mut Notes<'_>) -> Vec<Wanted<'a>> {
    let mut wanted = Vec::new();
    let mut mentioned = BTreeSet::new();
    for entry in &config.strategies {
        mentioned.insert(entry.plugin.as_str());
        match available.get(&entry.plugin) {
            Some((source, bytes)) if entry.enabled => wanted.push(Wanted {
                name: entry.name.clone(),
                plugin: entry.plugin.clone(),
                source: source.clone(),
                bytes: bytes.clone(),
                entry: Some(entry),
            }),
            Some(_) => {}
            None => {
                let known: Vec<_> = available.keys().map(String::as_str).collect();
                let near = known.iter().max_by(|a, b| {
                    strsim::jaro_winkler(a, &entry.plugin)
                        .total_cmp(&strsim::jaro_winkler(b, &entry.plugin))
                });
                let hint = match near {
                    Some(near) if strsim::jaro_winkler(near, &entry.plugin) > 0.8 => {
                        format!("did you mean {near:?}?")
                    }
                    _ => format!("there are: {}.", known.join(", ")),
                };
                let place = match &config.plugins {
                    Some(folder) => format!("put {}.wasm into {}", entry.plugin, folder.display()),
                    None => "name a folder with `plugins = \"DIR\"`".to_owned(),
                };
                let message = format!("there is no plugin {:?}: {hint} Or {place}.", entry.plugin);
                notes.say(format!("strategy {:?}", entry.name), message);
            }
        }
    }
    for (plugin, (source, bytes)) in available {
        if !mentioned.contains(plugin.as_str()) {
            wanted.push(Wanted {
                name: plugin.clone(),
                plugin: plugin.clone(),
                source: source.clone(),
                bytes: bytes.clone(),
                entry: None,
            });
        }
    }
    wanted
}

fn options(entry: Option<&config::Strategy>) -> StrategyOptions {
    let mut options = StrategyOptions::default();
    let Some(entry) = entry else { return options };
    if !entry.config.is_null() {
        options.config = entry.config.clone();
    }
    options.grants = Grants {
        folder: entry.grants.folder.clone(),
        state: entry.grants.state,
    };
    options.isolation = match entry.isolation {
        config::Isolation::Fresh => Isolation::Fresh,
        config::Isolation::Reuse => Isolation::Reuse,
    };
    override_limits(&mut options.limits, &entry.limits);
    options
}

/// What the configuration gives takes the place of the default.
fn override_limits(limits: &mut Limits, given: &config::Limits) {
    let millis = |time: Option<std::time::Duration>| {
        time.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
    };
    let bytes = |size: Option<u64>| size.map(|size| usize::try_from(size).unwrap_or(usize::MAX));
    let count = |count: Option<u32>| bytes(count.map(u64::from));
    fn set<T>(limit: &mut T, given: Option<T>) {
        if let Some(given) = given {
            *limit = given;
        }
    }
    set(
        &mut limits.decision_deadline_ms,
        millis(given.decision_deadline),
    );
    set(
        &mut limits.configure_deadline_ms,
        millis(given.configure_deadline),
    );
    set(&mut limits.ready, given.ready);
    set(&mut limits.uses, given.uses);
    set(&mut limits.memory_bytes, bytes(given.memory));
    set(&mut limits.table_elements, count(given.table_elements));
    set(&mut limits.instances, count(given.instances));
    set(&mut limits.memories, count(given.memories));
    set(&mut limits.state_bytes, bytes(given.state_quota));
    set(&mut limits.state_value_bytes, bytes(given.state_value));
    set(&mut limits.state_operations, count(given.state_operations));
    set(&mut limits.log_lines, count(given.log_lines));
    set(&mut limits.log_bytes, bytes(given.log_bytes));
    set(&mut limits.result_bytes, bytes(given.result_size));
    set(&mut limits.folder_file_bytes, bytes(given.folder_file));
}
