//! `backstop plugin`: everything the author of a strategy needs besides an editor.

mod bench;
mod build;
mod check;
mod inspect;
mod lock;
mod new;
mod pull;
mod push;
mod registry;
mod run;
mod test;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use backstop::config::{parse_duration, parse_size};
use backstop::strategy::component::{Grants, Limits, Runtime, RuntimeOptions, StrategyOptions};
use bytes::Bytes;
use clap::{Args, Subcommand, ValueEnum};

use super::{host, terminal};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Start a strategy: a project that builds and passes its tests.
    New {
        /// Its name: letters, digits, `-` and `_`. The project is made in a folder of this name.
        name: String,
        /// The language it is written in.
        #[arg(long, value_enum, default_value_t = Language::Rust)]
        lang: Language,
        /// Take the SDK from this folder instead of crates.io; for Rust.
        #[arg(long, value_name = "DIR")]
        sdk: Option<PathBuf>,
    },
    /// Build the project into `dist/NAME.wasm` with its language's tools.
    Build {
        /// The project.
        #[arg(value_name = "DIR", default_value = ".")]
        project: PathBuf,
    },
    /// Find everything a host would refuse, and what it would wonder at.
    Check {
        #[command(flatten)]
        component: Component,
        /// Print one JSON document.
        #[arg(long)]
        json: bool,
    },
    /// Show what a component says of itself, what it wants and what it gets.
    Inspect {
        #[command(flatten)]
        component: Component,
        /// Print one JSON document.
        #[arg(long)]
        json: bool,
    },
    /// Run the cases of a file against the component, in the real sandbox.
    Test {
        #[command(flatten)]
        component: Component,
        /// The cases, in TOML or JSON. Default: `cases.toml` or `cases.json`, in this folder or in the
        /// one above the component's.
        #[arg(long, value_name = "FILE")]
        cases: Option<PathBuf>,
        /// Print one JSON document.
        #[arg(long)]
        json: bool,
    },
    /// Let the component decide once, about a context given as JSON, and print the decision.
    Run {
        #[command(flatten)]
        component: Component,
        /// The context, a JSON object as in a case; `-` reads it from standard input.
        #[arg(long, value_name = "JSON", default_value = "{}")]
        context: String,
        /// Print one JSON document.
        #[arg(long)]
        json: bool,
    },
    /// Put a component into an OCI registry.
    ///
    /// What is printed as `pinned` names exactly this content, wherever its tag will point to.
    Push {
        #[command(flatten)]
        artifact: registry::Artifact,
        /// The component. Default: the one in `dist`.
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
        /// Print one JSON document.
        #[arg(long)]
        json: bool,
    },
    /// Get a component from an OCI registry.
    ///
    /// It is written as NAME.wasm, by the name of its strategy, once it has proved to be what the
    /// registry says, and a strategy.
    Pull {
        #[command(flatten)]
        artifact: registry::Artifact,
        /// The folder it is written to.
        #[arg(long, value_name = "DIR", default_value = ".")]
        to: PathBuf,
        /// Trust it: enter its SHA-256 into this lock file.
        #[arg(long, value_name = "FILE")]
        lock: Option<PathBuf>,
        /// Print one JSON document.
        #[arg(long)]
        json: bool,
    },
    /// Trust what lies in a plugin folder now: write its lock file anew.
    Lock {
        /// The plugin folder.
        #[arg(value_name = "DIR")]
        folder: PathBuf,
        /// The lock file, which `plugins_lock` names in a configuration.
        #[arg(value_name = "FILE", default_value = "plugins.lock")]
        file: PathBuf,
    },
    /// Measure what a decision costs on this machine.
    Bench {
        #[command(flatten)]
        component: Component,
        /// The context, a JSON object as in a case; `-` reads it from standard input.
        #[arg(long, value_name = "JSON", default_value = "{}")]
        context: String,
        /// How many decisions are measured.
        #[arg(long, value_name = "NUMBER", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(10..=1_000_000))]
        decisions: u32,
        /// Print one JSON document.
        #[arg(long)]
        json: bool,
    },
}

/// A language there is a template and a way to build for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Language {
    /// Rust, with the SDK.
    Rust,
    /// JavaScript, with Node and componentize-js.
    #[value(name = "js", alias = "javascript")]
    JavaScript,
    /// Python, with componentize-py.
    Python,
    /// C, with zig or clang.
    C,
}

/// The component a command is about, and how it is loaded.
#[derive(Debug, Args)]
pub(super) struct Component {
    /// The component. Default: the one in `dist`.
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// Its configuration, a JSON object.
    #[arg(long, value_name = "JSON", default_value = "{}")]
    config: String,
    /// Grant it state.
    #[arg(long)]
    state: bool,
    /// Grant it this folder, read-only.
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// The time one decision may take, such as `50ms`.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    deadline: Option<Duration>,
    /// The memory it may use, such as `64MiB`.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    memory: Option<u64>,
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "write a number with its unit, such as 50ms or 1s".into())
}

fn size(text: &str) -> Result<u64, String> {
    parse_size(text).ok_or_else(|| "write a number with its unit, such as 64MiB".into())
}

/// A component's file, read.
pub(super) struct Loaded {
    path: PathBuf,
    /// The name it has in messages and would have in a configuration.
    plugin: String,
    bytes: Bytes,
}

/// Reads a component: this one, or the one in `dist`.
fn read(file: Option<&Path>) -> anyhow::Result<Loaded> {
    let path = match file {
        Some(path) => path.to_owned(),
        None => built(Path::new("."))?,
    };
    let bytes = std::fs::read(&path)
        .with_context(|| format!("cannot read {}: name a component (*.wasm)", path.display()))?;
    let stem = path.file_stem().unwrap_or_default();
    Ok(Loaded {
        plugin: stem.to_string_lossy().into_owned(),
        bytes: bytes.into(),
        path,
    })
}

impl Component {
    fn read(&self) -> anyhow::Result<Loaded> {
        read(self.file.as_deref())
    }

    fn limits(&self) -> anyhow::Result<Limits> {
        let mut limits = Limits::default();
        if let Some(deadline) = self.deadline {
            limits.decision_deadline_ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
        }
        if let Some(memory) = self.memory {
            limits.memory_bytes = usize::try_from(memory).unwrap_or(usize::MAX);
        }
        limits.validate().context("--deadline, --memory")?;
        Ok(limits)
    }

    fn options(&self) -> anyhow::Result<StrategyOptions> {
        let config = serde_json::from_str(&self.config)
            .context("--config takes a JSON object, such as '{\"after\":2}'")?;
        Ok(StrategyOptions {
            config,
            limits: self.limits()?,
            grants: Grants {
                folder: self.folder.clone(),
                state: self.state,
            },
            ..StrategyOptions::default()
        })
    }
}

/// The one component in a project's `dist`.
fn built(project: &Path) -> anyhow::Result<PathBuf> {
    let dist = project.join("dist");
    let found = std::fs::read_dir(&dist)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "wasm")
        });
    let mut found: Vec<_> = found.collect();
    match found.pop() {
        Some(path) if found.is_empty() => Ok(path),
        Some(_) => bail!(
            "{} has several components: name one of them",
            dist.display()
        ),
        None => bail!(
            "there is no component in {}: build it with `backstop plugin build`, or name a file",
            dist.display()
        ),
    }
}

/// A context given on the command line.
fn context(text: &str) -> anyhow::Result<backstop::cases::Context> {
    let text = if text == "-" {
        std::io::read_to_string(std::io::stdin()).context("cannot read standard input")?
    } else {
        text.to_owned()
    };
    serde_json::from_str(&text).context(
        "--context takes a JSON object, such as '{\"failure\":{\"kind\":\"TimeoutError\"}}'",
    )
}

/// A runtime with the user's cache, where it can be used: what a large component needs.
fn runtime() -> anyhow::Result<Runtime> {
    let cached = host::cache_folder()
        .and_then(|folder| Runtime::new(RuntimeOptions::default().with_cache(folder)).ok());
    match cached {
        Some(runtime) => Ok(runtime),
        None => {
            Runtime::new(RuntimeOptions::default()).context("the WebAssembly runtime cannot start")
        }
    }
}

/// A size, for people.
fn shown_size(bytes: usize) -> String {
    match bytes {
        0..10_000 => format!("{bytes} bytes"),
        10_000..10_000_000 => format!("{} KB", bytes / 1000),
        _ => format!("{}.{} MB", bytes / 1_000_000, bytes / 100_000 % 10),
    }
}

pub(super) async fn run(command: Command) -> anyhow::Result<ExitCode> {
    terminal::log();
    match command {
        Command::New { name, lang, sdk } => new::run(&name, lang, sdk.as_deref()),
        Command::Build { project } => build::run(&project),
        Command::Check { component, json } => check::run(&component, json).await,
        Command::Inspect { component, json } => inspect::run(&component, json).await,
        Command::Test {
            component,
            cases,
            json,
        } => test::run(&component, cases.as_deref(), json).await,
        Command::Run {
            component,
            context,
            json,
        } => run::run(&component, &context, json).await,
        Command::Push {
            artifact,
            file,
            json,
        } => push::run(&artifact, file.as_deref(), json).await,
        Command::Pull {
            artifact,
            to,
            lock,
            json,
        } => pull::run(&artifact, &to, lock.as_deref(), json).await,
        Command::Lock { folder, file } => lock::run(&folder, &file),
        Command::Bench {
            component,
            context,
            decisions,
            json,
        } => bench::run(&component, &context, decisions, json).await,
    }
}
