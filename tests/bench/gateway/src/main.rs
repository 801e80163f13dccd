//! What a gateway adds to a call, measured beside direct calls and other proxies.
//!
//! All of them stand in front of the same server, one after another in short turns, so that whatever
//! the machine does besides hits all alike. The figures are ratios taken in one run.

mod failing;
mod load;
mod peers;
mod pipe;
mod report;
mod server;
mod start;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// An MCP server over HTTP whose tool `echo` answers with `size` bytes.
    Http {
        /// The port on loopback.
        port: u16,
        /// Answers with an event stream instead of JSON.
        #[arg(long)]
        sse: bool,
    },
    /// The same server over standard input and output.
    Stdio,
    /// Measures every proxy that is there.
    Run {
        /// The release build of the program.
        #[arg(long)]
        backstop: PathBuf,
        /// Where `run` has installed the peers.
        #[arg(long)]
        peers: PathBuf,
        /// Where the figures go.
        #[arg(long)]
        out: PathBuf,
        /// Seconds each turn takes.
        #[arg(long, default_value_t = 1.0)]
        turn: f64,
        /// Turns of each proxy and each load.
        #[arg(long, default_value_t = 5)]
        turns: usize,
    },
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Http { port, sse } => server::http(port, sse).await,
        Command::Stdio => server::stdio(),
        Command::Run {
            backstop,
            peers,
            out,
            turn,
            turns,
        } => {
            let plan = load::Plan {
                turn: Duration::from_secs_f64(turn),
                turns,
            };
            report::run(&backstop, &peers, &out, plan).await
        }
    }
}
