//! `[gateway]` and `[admin]`: where the program listens, and who may talk to it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use schemars::JsonSchema;
use serde::Serialize;

use super::reader::{Issue, Reader};
use super::targets::secret_env;
use super::units::SizeText;
use super::{text, value};

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
        };
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
