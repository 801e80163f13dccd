//! `[service.oauth]`: how the host signs in at a server that asks for it.

use schemars::JsonSchema;
use serde::Serialize;

use super::reader::{Issue, Reader};
use super::units::Expanded;
use super::{text, value};

/// On whose behalf an [`OAuth`] client asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Grant {
    /// A person's, who signs in with a browser on this machine.
    #[default]
    AuthorizationCode,
    /// Its own, with its secret.
    ClientCredentials,
}

/// How the host signs in at a server that asks for OAuth (MCP, authorization).
#[derive(Debug, Clone, Default, PartialEq, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct OAuth {
    /// `authorization-code`: a person signs in, at an address that the log and the errors of calls name.
    /// `client-credentials`: nobody need be there. Default: `authorization-code`.
    pub grant: Grant,
    /// The client as the authorization server knows it. Default: it is registered when it is needed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,
    /// The client's secret. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_secret: Option<Expanded>,
    /// Where a document about the client is to be had, for authorization servers that want no
    /// registration. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_metadata_url: Option<Expanded>,
    /// What to ask for. Default: what the server says.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub scopes: Vec<String>,
    /// The port on loopback where a browser comes back to, which a registration may name. Default: any that
    /// is free.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub redirect_port: Option<u16>,
}

impl OAuth {
    pub(super) fn read(r: &mut Reader<'_, '_>) -> Self {
        const GRANTS: &[(&str, Grant)] = &[
            ("authorization-code", Grant::AuthorizationCode),
            ("client-credentials", Grant::ClientCredentials),
        ];
        let oauth = Self {
            grant: r.read("grant", value::word(GRANTS)).unwrap_or_default(),
            client_id: r.read("client_id", value::text),
            client_secret: r.read("client_secret", text::expanded),
            client_metadata_url: r.read("client_metadata_url", text::url),
            scopes: r.list("scopes", value::text).unwrap_or_default(),
            redirect_port: r.read("redirect_port", value::integer(1..=65535)),
        };
        if oauth.client_secret.is_some() && oauth.client_id.is_none() {
            let reason = "a secret belongs to a client that is registered";
            r.issue(
                "client_secret",
                Issue::error("client_secret without client_id", reason, "Add client_id."),
            );
        }
        if oauth.grant == Grant::ClientCredentials && oauth.client_secret.is_none() {
            let reason = "a client that asks for itself shows its secret";
            let remedy = "Add client_id and client_secret.";
            r.issue(
                "grant",
                Issue::error("no client credentials", reason, remedy),
            );
        }
        oauth
    }
}
