//! `backstop status`, `top`, `events` and `explain`: a running program, asked through its
//! administration endpoint.

mod events;
mod explain;
mod status;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use backstop::config::Config;
use reqwest::{Client, Response, StatusCode, Url};
use serde::de::DeserializeOwned;

use super::{observe, terminal};

/// How long the program may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// The variable with the token, where the address is given on the command line.
const TOKEN: &str = "BACKSTOP_ADMIN_TOKEN";

/// Which program is asked.
#[derive(Debug, clap::Args)]
pub(super) struct Where {
    /// The configuration file the program was started with: its `[admin]` section says where to ask.
    #[arg(long, short, value_name = "FILE", default_value = "backstop.toml")]
    config: PathBuf,
    /// Ask here instead; the token, where there is one, is read from BACKSTOP_ADMIN_TOKEN.
    #[arg(long, value_name = "URL")]
    admin: Option<Url>,
}

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Say what is wrong, since when, and how every target and strategy stands.
    Status {
        #[command(flatten)]
        place: Where,
        /// Print the JSON document of the endpoint.
        #[arg(long)]
        json: bool,
    },
    /// The same, again and again, until it is ended.
    Top {
        #[command(flatten)]
        place: Where,
        /// Seconds between two looks.
        #[arg(long, default_value = "1", value_parser = clap::value_parser!(u32).range(1..=3600))]
        every: u32,
    },
    /// Print events as they happen, until it is ended.
    Events {
        #[command(flatten)]
        place: Where,
        /// Only these, with commas between them, such as call_saved,call_failed.
        #[arg(long)]
        only: Option<String>,
        /// Print each as one line of JSON.
        #[arg(long)]
        json: bool,
    },
    /// Say what became of one call and why: every attempt, every strategy asked, every action refused.
    Explain {
        /// The call's id, such as c000042: it stands in the answer's `_meta`, in errors and in events.
        call: String,
        #[command(flatten)]
        place: Where,
        /// Print the JSON document of the endpoint.
        #[arg(long)]
        json: bool,
    },
}

pub(super) async fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Status { place, json } => status::run(&Endpoint::find(&place)?, json).await,
        Command::Top { place, every } => status::top(&Endpoint::find(&place)?, every).await,
        Command::Events { place, only, json } => {
            events::run(&Endpoint::find(&place)?, only.as_deref(), json).await
        }
        Command::Explain { call, place, json } => {
            explain::run(&Endpoint::find(&place)?, &call, json).await
        }
    }
}

/// A running program's administration endpoint.
struct Endpoint {
    base: Url,
    token: Option<String>,
    client: Client,
}

impl Endpoint {
    fn find(place: &Where) -> anyhow::Result<Self> {
        let (base, token) = match &place.admin {
            Some(url) => (url.clone(), std::env::var(TOKEN).ok()),
            None => of_config(&place.config)?,
        };
        let client = Client::builder()
            .connect_timeout(PATIENCE)
            .build()
            .context("the HTTP client")?;
        Ok(Self {
            base,
            token: token.filter(|token| !token.is_empty()),
            client,
        })
    }

    async fn get(&self, path: &[&str], query: &[(&str, &str)]) -> anyhow::Result<Response> {
        let mut url = self.base.clone();
        url.path_segments_mut()
            .map_err(|()| anyhow::anyhow!("{} is no address of an endpoint", self.base))?
            .pop_if_empty()
            .extend(path);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let mut request = self.client.get(url);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        let answer = tokio::time::timeout(PATIENCE, request.send()).await;
        let answer = answer
            .with_context(|| format!("{} does not answer", self.base))?
            .with_context(|| {
                format!(
                    "nobody answers at {}: is `backstop serve` running, with an `[admin]` section?",
                    self.base
                )
            })?;
        if answer.status() == StatusCode::UNAUTHORIZED {
            bail!(
                "{} wants a token: set the variable its `[admin] token_env` names, or {TOKEN} with --admin",
                self.base
            );
        }
        Ok(answer)
    }

    /// The document at a path, or why there is none.
    async fn read<T: DeserializeOwned>(&self, path: &[&str]) -> anyhow::Result<T> {
        let answer = self.get(path, &[]).await?;
        let status = answer.status();
        let body = tokio::time::timeout(PATIENCE, answer.bytes()).await;
        let body = body.with_context(|| format!("{} breaks off", self.base))??;
        if !status.is_success() {
            bail!("{}", reason(&body).unwrap_or_else(|| status.to_string()));
        }
        serde_json::from_slice(&body)
            .with_context(|| format!("what {} answers is not understood", self.base))
    }
}

fn reason(body: &[u8]) -> Option<String> {
    let body: serde_json::Value = serde_json::from_slice(body).ok()?;
    Some(body["error"].as_str()?.to_owned())
}

fn of_config(path: &Path) -> anyhow::Result<(Url, Option<String>)> {
    let loaded = Config::load(path);
    let Some(admin) = loaded.config.admin else {
        // What is wrong in the file may be why.
        for diagnostic in loaded.diagnostics.iter().filter(|it| it.is_error()) {
            terminal::complain(&diagnostic.to_string());
        }
        bail!(
            "{} has no `[admin]` section, so the program it starts cannot be asked; add one, or say where with --admin",
            path.display()
        );
    };
    if admin.listen.port() == 0 {
        bail!("`[admin] listen` takes a free port; say which it is with --admin");
    }
    let address = reachable(admin.listen);
    let url = Url::parse(&format!("http://{address}/")).context("the address of `[admin]`")?;
    Ok((url, observe::token(&admin)?))
}

/// An address that means every interface is reached on this machine.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// A time, as short as it can be said.
fn span(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..120_000 => format!("{} s", ms / 1_000),
        120_000..7_200_000 => format!("{} min", ms / 60_000),
        _ => format!("{} h", ms / 3_600_000),
    }
}

/// Text of servers and plugins, without what would steer a terminal.
fn plain(text: &str) -> String {
    let visible = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().map(visible).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_on_every_interface_is_asked_on_this_machine() {
        for (listen, asked) in [
            ("0.0.0.0:1", "127.0.0.1:1"),
            ("[::]:1", "[::1]:1"),
            ("10.0.0.1:1", "10.0.0.1:1"),
        ] {
            assert_eq!(reachable(listen.parse().unwrap()).to_string(), asked);
        }
    }

    #[test]
    fn what_a_server_says_does_not_steer_the_terminal() {
        assert_eq!(plain("a\u{1b}[2Jb\nc"), "a [2Jb c");
    }
}
