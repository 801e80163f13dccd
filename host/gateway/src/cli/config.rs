//! `backstop config`: what there is to know of configurations without one.

use std::process::ExitCode;

use backstop::config::Config;

use super::terminal;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Print the JSON schema of the configuration, for an editor or a check of one's own.
    Schema,
}

pub(super) fn run(command: &Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Schema => {
            let schema = serde_json::to_string_pretty(&Config::json_schema())?;
            terminal::say(&schema);
            Ok(ExitCode::SUCCESS)
        }
    }
}
