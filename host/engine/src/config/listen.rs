//! `[gateway]` and `[admin]`: where the program listens, and who may talk to it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

use super::reader::{Issue, Reader};
use super::targets::secret_env;
use super::units::{DurationText, SizeText};
use super::{text, value};

/// How long a connection may be idle. Above it a peer that is gone would keep its place for ever.
const IDLE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(24 * 3600);

/// `[gateway]`: the MCP server in front.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Gateway {
    /// The address it listens on. Default: `127.0.0.1:8808`.
    #[schemars(with = "String")]
    pub listen: SocketAddr,
    /// The path of the MCP endpoint. Default: `/mcp`.
    pub path: String,
    /// Values of `Origin` that are let in, such as `https://app.example.com`. Default: none but
    /// requests without one and those of the same machine (MCP: DNS rebinding).
    pub allowed_origins: Vec<String>,
    /// Values of `Host` that are let in, with or without a port. Default: those of the same machine.
    pub allowed_hosts: Vec<String>,
    /// The environment variable that holds the token callers must send. Default: no token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bearer_token_env: Option<String>,
    /// The largest request taken, in bytes, 1 KiB to 1 GiB. Default: 4 MiB.
    #[serde(with = "SizeText")]
    #[schemars(with = "SizeText")]
    pub max_body: u64,
    /// The largest head of a request taken, 8 KiB to 1 MiB. Default: 64 KiB.
    #[serde(with = "SizeText")]
    #[schemars(with = "SizeText")]
    pub max_header: u64,
    /// Connections at a time, 1 to 1 000 000; a further client is sent away with 503. Default: 10 000.
    pub max_connections: u64,
    /// How long a connection may be open without a request, and how long a client may take to send one,
    /// 1 s to 1 day. Default: 75 s.
    #[serde(with = "DurationText")]
    #[schemars(with = "DurationText")]
    pub idle: Duration,
    /// The certificate to show, the leaf first, as PEM; with `tls_key`. Default: no TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_certificate: Option<PathBuf>,
    /// The certificate's key, as PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<PathBuf>,
    /// Whether a tool whose schemas differ among the servers of a group may be called on any of them.
    /// Default: false: only on those that mean what clients are shown.
    pub mixed_schemas: bool,
}

impl Default for Gateway {
    fn default() -> Self {
        Self {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8808),
            path: "/mcp".into(),
            allowed_origins: Vec::new(),
            allowed_hosts: Vec::new(),
            bearer_token_env: None,
            max_body: 4 << 20,
            max_header: 64 << 10,
            max_connections: 10_000,
            idle: Duration::from_secs(75),
            tls_certificate: None,
            tls_key: None,
            mixed_schemas: false,
        }
    }
}

impl Gateway {
    pub(super) fn read(r: &mut Reader<'_, '_>) -> Self {
        let base = Self::default();
        let listen = r.read("listen", text::listen).unwrap_or(base.listen);
        let path = r
            .read("path", value::text)
            .and_then(|path| absolute(r, path));
        let gateway = Self {
            listen,
            path: path.unwrap_or(base.path),
            allowed_origins: r.list("allowed_origins", value::text).unwrap_or_default(),
            allowed_hosts: r.list("allowed_hosts", value::text).unwrap_or_default(),
            bearer_token_env: secret_env(r, "bearer_token_env", "no caller can be let in"),
            max_body: r
                .read("max_body", value::size(1 << 10..=1 << 30))
                .unwrap_or(base.max_body),
            max_header: r
                .read("max_header", value::size(8 << 10..=1 << 20))
                .unwrap_or(base.max_header),
            max_connections: r
                .read("max_connections", value::integer(1..=1_000_000))
                .unwrap_or(base.max_connections),
            idle: r.read("idle", value::duration(IDLE)).unwrap_or(base.idle),
            tls_certificate: r.read("tls_certificate", text::file),
            tls_key: r.read("tls_key", text::file),
            mixed_schemas: r.read("mixed_schemas", value::boolean).unwrap_or(false),
        };
        for (has, lacks) in [
            ("tls_certificate", "tls_key"),
            ("tls_key", "tls_certificate"),
        ] {
            if r.has(has) && !r.has(lacks) {
                let reason = "a certificate and its key are of use together only";
                let remedy = format!("Add {lacks} = \"FILE.pem\".");
                r.issue(has, Issue::error("half of TLS", reason, remedy));
            }
        }
        if !r.has("bearer_token_env") {
            warn_of_open_door(r, gateway.listen, "bearer_token_env");
        }
        gateway
    }
}

pub(super) fn absolute(r: &mut Reader<'_, '_>, path: String) -> Option<String> {
    if path.starts_with('/') && !path.contains(['?', '#', '{', '}', '*', ' ']) {
        return Some(path);
    }
    let reason =
        format!("{path:?} does not begin with a slash, or has a character that is not plain");
    r.issue(
        "path",
        Issue::error("not a path", reason, "Write a path such as \"/mcp\"."),
    );
    None
}

/// `[admin]`: health, metrics and the configuration in force. The section's presence switches it on.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Admin {
    /// The address it listens on. Default: `127.0.0.1:8809`.
    #[schemars(with = "String")]
    pub listen: SocketAddr,
    /// The environment variable that holds the token callers must send. Default: no token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_env: Option<String>,
}

impl Default for Admin {
    fn default() -> Self {
        Self {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8809),
            token_env: None,
        }
    }
}

impl Admin {
    pub(super) fn read(r: &mut Reader<'_, '_>, gateway: SocketAddr) -> Self {
        let base = Self::default();
        let listen = r.read("listen", text::listen).unwrap_or(base.listen);
        if listen == gateway && listen.port() != 0 {
            let reason = format!("the gateway listens on {gateway} already");
            r.issue(
                "listen",
                Issue::error("address in use", reason, "Write another port."),
            );
        }
        let token_env = secret_env(r, "token_env", "no caller can be let in");
        if !r.has("token_env") {
            warn_of_open_door(r, listen, "token_env");
        }
        Self { listen, token_env }
    }
}

fn warn_of_open_door(r: &mut Reader<'_, '_>, listen: SocketAddr, key: &str) {
    if !listen.ip().is_loopback() {
        let reason =
            format!("{listen} can be reached from other machines, and no token is asked for");
        let remedy = format!("Add {key} = \"VARIABLE\", or listen on 127.0.0.1.");
        r.issue(
            "listen",
            Issue::warning("open to the network", reason, remedy),
        );
    }
}
