//! Which strategies a configuration asks for, given the plugins there are: names, order, options. No
//! file is opened here.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::look::Look;
use super::set::Problem;
use crate::config::{self, Config};
use crate::strategy::OnFault;
use crate::strategy::component::{
    Grants, Isolation, Limits, PluginFile, StateStore, StrategyOptions,
};

/// One strategy that is to be: a use of a plugin.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    pub(super) name: String,
    /// `None`: as the plugin says.
    pub(super) priority: Option<i32>,
    pub(super) on_fault: OnFault,
    pub(super) options: StrategyOptions,
}

/// A plugin that is used, and where it may come from; at least one of the two.
#[derive(Debug, Clone)]
pub(super) struct Plugin {
    pub(super) name: String,
    /// It goes before the stock.
    pub(super) file: Option<PluginFile>,
    pub(super) stock: Option<&'static [u8]>,
    pub(super) uses: Vec<Wanted>,
}

/// Where a stock strategy comes from, in messages.
pub(super) const STOCK: &str = "stock";

fn stock(config: &Config) -> &'static [(&'static str, &'static [u8])] {
    #[cfg(feature = "stock")]
    if config.stock {
        return crate::strategy::component::stock();
    }
    let _ = config;
    &[]
}

/// The plugins that are used: those with an entry in the order of the file, then the others by name.
/// `state` is where the state of those that are granted one is kept.
pub(super) fn wanted(
    config: &Config,
    look: &Look,
    state: Option<&StateStore>,
    problems: &mut Vec<Problem>,
) -> Vec<Plugin> {
    let plugin = |name: &str, file: Option<&PluginFile>, stock| Plugin {
        name: name.to_owned(),
        file: file.cloned(),
        stock,
        uses: Vec::new(),
    };
    let mut available: BTreeMap<&str, Plugin> = stock(config)
        .iter()
        .map(|(name, bytes)| (*name, plugin(name, None, Some(*bytes))))
        .collect();
    for file in &look.files {
        available
            .entry(&file.plugin)
            .or_insert_with(|| plugin(&file.plugin, None, None))
            .file = Some(file.clone());
    }

    let mut order: Vec<&str> = Vec::new();
    let mut mentioned = BTreeSet::new();
    let mut names = BTreeSet::new();
    for entry in &config.strategies {
        mentioned.insert(entry.plugin.as_str());
        let Some(plugin) = available.get_mut(entry.plugin.as_str()) else {
            // What could not be looked at may well be there.
            if look.is_whole {
                let message = missing(config, entry, available.keys().copied());
                problems.push(Problem::new(
                    format!("strategy {:?}", entry.name),
                    None,
                    message,
                ));
            }
            continue;
        };
        // Two entries of one name are told of by whoever read the file.
        if !entry.enabled || !names.insert(entry.name.as_str()) {
            continue;
        }
        if plugin.uses.is_empty() {
            order.push(&entry.plugin);
        }
        plugin.uses.push(Wanted {
            name: entry.name.clone(),
            priority: entry.priority,
            on_fault: match entry.on_fault {
                config::OnFault::Skip => OnFault::Skip,
                config::OnFault::Fail => OnFault::Fail,
                config::OnFault::Decline => OnFault::Decline,
            },
            options: options(entry, state),
        });
    }
    let others: Vec<&str> = available
        .keys()
        .copied()
        .filter(|name| !mentioned.contains(name))
        .collect();
    for name in others {
        if !names.insert(name) {
            problems.push(Problem::new(
                format!("strategy {name:?}"),
                None,
                format!(
                    "a [[strategy]] that uses another plugin has the name {name:?} already: give that entry another name, or plugin {name:?} an entry with a name of its own"
                ),
            ));
            continue;
        }
        if let Some(plugin) = available.get_mut(name) {
            order.push(name);
            plugin.uses.push(Wanted {
                name: name.to_owned(),
                priority: None,
                on_fault: OnFault::default(),
                options: StrategyOptions::default(),
            });
        }
    }
    order
        .into_iter()
        .filter_map(|name| available.remove(name))
        .collect()
}

/// What is said of an entry whose plugin is not there.
fn missing<'a>(
    config: &Config,
    entry: &config::Strategy,
    known: impl Iterator<Item = &'a str>,
) -> String {
    let known: Vec<_> = known.collect();
    let likeness = |name: &str| strsim::jaro_winkler(name, &entry.plugin);
    let near = known
        .iter()
        .max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    let hint = match near {
        Some(near) if likeness(near) > 0.8 => format!("did you mean {near:?}?"),
        _ => format!("there are: {}.", known.join(", ")),
    };
    let place = match &config.plugins {
        Some(folder) => format!("put {}.wasm into {}", entry.plugin, folder.display()),
        None => "name a folder with `plugins = \"DIR\"`".to_owned(),
    };
    format!("there is no plugin {:?}: {hint} Or {place}.", entry.plugin)
}

fn options(entry: &config::Strategy, state: Option<&StateStore>) -> StrategyOptions {
    let mut options = StrategyOptions::default();
    if !entry.config.is_null() {
        options.config = entry.config.clone();
    }
    options.grants = Grants {
        folder: entry.grants.folder.clone(),
        state: entry.grants.state,
    };
    if entry.grants.state {
        options.state = state.map(|store| (store.clone(), entry.name.clone()));
    }
    options.isolation = match entry.isolation {
        config::Isolation::Fresh => Isolation::Fresh,
        config::Isolation::Reuse => Isolation::Reuse,
    };
    override_limits(&mut options.limits, &entry.limits);
    options
}

/// What the configuration gives takes the place of the default.
fn override_limits(limits: &mut Limits, given: &config::Limits) {
    let millis = |time: Option<Duration>| {
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
