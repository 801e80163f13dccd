//! The command line: one file for each command.

mod admin;
mod call;
mod check;
mod config;
pub(crate) mod host;
mod init;
mod observe;
mod plugin;
mod serve;
mod simulate;
mod template;
pub(crate) mod terminal;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};

/// Fallback for MCP clients. Every fallback strategy is a sandboxed WebAssembly component.
#[derive(Debug, Parser)]
#[command(
    name = "backstop",
    version,
    about,
    after_help = "\
Exit status: 0 it worked; 1 it did not; 2 the command line or the configuration is wrong."
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start MCP servers on this machine, break them, and show what saves the calls.
    Demo {
        /// Print one JSON document instead of text.
        #[arg(long)]
        json: bool,
    },
    /// Write a configuration: a template, or one with the servers of an MCP client, to put backstop between
    /// the two.
    #[command(group(clap::ArgGroup::new("source").required(true)))]
    Init {
        /// The client's configuration: JSON with `mcpServers` or `servers`.
        #[arg(long, value_name = "JSON", group = "source")]
        from: Option<PathBuf>,
        /// What to begin with, explained by comments.
        #[arg(long, value_name = "TEMPLATE", group = "source")]
        template: Option<template::Template>,
        /// The file to write; it must not be there yet.
        #[arg(
            long,
            short,
            visible_alias = "out",
            value_name = "FILE",
            default_value = "backstop.toml"
        )]
        output: PathBuf,
    },
    /// Serve MCP in front of the servers of a configuration.
    Serve {
        /// The configuration file.
        #[arg(long, short, value_name = "FILE", default_value = "backstop.toml")]
        config: PathBuf,
        /// Serve one client over standard input and output, instead of HTTP.
        #[arg(long, conflicts_with = "listen")]
        stdio: bool,
        /// Serve HTTP at this address, instead of the configuration's; port 0 takes a free one.
        #[arg(long, value_name = "ADDRESS")]
        listen: Option<std::net::SocketAddr>,
        /// Do not start if anything in the configuration is wrong.
        #[arg(long)]
        strict: bool,
    },
    /// Call one tool, with fallback, and print its answer.
    Call {
        /// The configuration file.
        #[arg(long, short, value_name = "FILE", default_value = "backstop.toml")]
        config: PathBuf,
        /// The tool.
        tool: String,
        /// Its arguments, a JSON object.
        #[arg(long, short, value_name = "JSON")]
        arguments: Option<String>,
        /// Print one JSON document: the answer, who gave it, and what was tried.
        #[arg(long)]
        json: bool,
    },
    /// Check a configuration and its plugins without running anything.
    Check {
        /// The configuration file.
        #[arg(long, short, value_name = "FILE", default_value = "backstop.toml")]
        config: PathBuf,
        /// Print one JSON document.
        #[arg(long)]
        json: bool,
    },
    /// What there is to know of configurations.
    #[command(subcommand)]
    Config(config::Command),
    /// Play a fault scenario against a configuration, with its real plugins, in simulated time.
    Simulate(simulate::Arguments),
    #[command(flatten)]
    Admin(admin::Command),
    /// Write a strategy: start, build, check, test and measure it.
    #[command(subcommand)]
    Plugin(plugin::Command),
}

/// Runs a command; what goes wrong is printed with its causes.
pub(crate) fn run(arguments: Arguments) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let outcome = runtime
        .context("cannot start the async runtime")
        .and_then(|runtime| {
            let outcome = runtime.block_on(dispatch(arguments.command));
            // A thread that waits for standard input would keep the program alive.
            runtime.shutdown_background();
            outcome
        });
    match outcome {
        Ok(code) => code,
        Err(error) => {
            terminal::complain(&format!("backstop: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Demo { json } => crate::demo::run(json).await,
        Command::Init {
            from: Some(from),
            output,
            ..
        } => init::run(&from, &output),
        Command::Init {
            template: Some(template),
            output,
            ..
        } => template::run(template, &output),
        // The command line asks for one of the two.
        Command::Init { .. } => Ok(ExitCode::from(USAGE)),
        Command::Config(command) => config::run(&command),
        Command::Serve {
            config,
            stdio,
            listen,
            strict,
        } => {
            let front = if stdio {
                serve::Front::Stdio
            } else {
                serve::Front::Http(listen)
            };
            serve::run(&config, front, strict).await
        }
        Command::Call {
            config,
            tool,
            arguments,
            json,
        } => call::run(&config, &tool, arguments.as_deref(), json).await,
        Command::Check { config, json } => check::run(&config, json).await,
        Command::Simulate(arguments) => simulate::run(arguments).await,
        Command::Admin(command) => admin::run(command).await,
        Command::Plugin(command) => plugin::run(command).await,
    }
}

/// The configuration, or the command line, is wrong.
const USAGE: u8 = 2;
