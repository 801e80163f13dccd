//! `backstop`: fallback in front of MCP servers, from the command line.
#![forbid(unsafe_code)]

mod cli;
mod demo;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    cli::run(cli::Arguments::parse())
}
