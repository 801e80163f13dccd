//! `backstop plugin lock`: trust what lies in a plugin folder now, and nothing else.

use std::path::Path;
use std::process::ExitCode;

use backstop::plugins::PluginLock;

use crate::cli::terminal;

pub(super) fn run(folder: &Path, file: &Path) -> anyhow::Result<ExitCode> {
    let lock = PluginLock::of_folder(folder)?;
    lock.write(file)?;
    for (name, digest) in &lock.plugins {
        terminal::say(&format!("{digest}  {name}"));
    }
    let plugins = terminal::count(lock.plugins.len(), "plugin", "plugins");
    terminal::say(&format!("{plugins} in {}", file.display()));
    Ok(ExitCode::SUCCESS)
}
