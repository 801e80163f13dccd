//! `[[discovery]]`: sources of services and models that change while the host runs.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;
use toml::de::DeValue;

use super::reader::{Cx, Issue, Reader};
use super::targets::{Taken, default_group, header};
use super::units::{DurationText, Expanded, exactly_one};
use super::value::Read;
use super::{text, value};

/// How often a source is asked: not more than once a second, at least once a day.
const INTERVAL: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(24 * 3600);

fn default_interval() -> Duration {
    Duration::from_secs(30)
}

/// One `[[discovery]]`: a source of targets.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Discovery {
    /// Its name, unique among sources; targets found in DNS are named `NAME@HOST:PORT`.
    pub name: String,
    /// Where targets are found: in DNS (`dns`) or in a watched file (`file`).
    #[serde(flatten)]
    pub source: Source,
}

/// Where a [`Discovery`] finds targets.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(transform = exactly_one)]
pub enum Source {
    /// A name in DNS.
    Dns(Dns),
    /// A file.
    File {
        /// A file with the tables `[[service]]` and `[[model]]`, in TOML, or the same in JSON where its
        /// name ends in `.json`; relative to this file.
        file: PathBuf,
    },
}

/// MCP servers behind a name in DNS.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[non_exhaustive]
pub struct Dns {
    /// The name, fully qualified, such as `_mcp._tcp.search.example`.
    pub dns: String,
    /// Which records are asked for. Default: `srv` where the name begins with `_`, else `address`.
    #[schemars(with = "Option<Record>")]
    pub record: Record,
    /// The port, where the records hold only addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// How servers are spoken to. Default: `http`.
    #[serde(default)]
    pub scheme: Scheme,
    /// The path of the MCP endpoint. Default: `/mcp`.
    #[serde(default = "default_path")]
    pub path: String,
    /// The group the servers belong to. Default: `default`.
    #[serde(default = "default_group")]
    pub group: String,
    /// The priority of the most preferred; the priorities of SRV records, where lower is preferred, count
    /// down from it. Default: 0.
    #[serde(default)]
    pub priority: i32,
    /// Whether the servers' tool annotations are believed. Default: false.
    #[serde(default)]
    pub trusted: bool,
    /// Headers sent with every request. Default: none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, Expanded>,
    /// How long an answer is used at most, 1 s to 24 h; less where the records' time to live is shorter.
    /// Default: 30 s.
    #[serde(default = "default_interval", with = "DurationText")]
    #[schemars(with = "DurationText")]
    pub interval: Duration,
    /// The name servers to ask. Default: those of the system (`/etc/resolv.conf`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<String>")]
    pub nameservers: Vec<SocketAddr>,
}

fn default_path() -> String {
    "/mcp".into()
}

/// Which DNS records are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Record {
    /// Hosts, ports, priorities and weights (RFC 2782).
    Srv,
    /// IPv4 and IPv6 addresses.
    Address,
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
}

/// How a server is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// Without TLS.
    #[default]
    Http,
    /// With TLS.
    Https,
}

impl Scheme {
    /// As it stands in a URL.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

impl Discovery {
    pub(super) fn read(r: &mut Reader<'_, '_>, taken: &mut Taken) -> Option<Self> {
        let name = r.require("name", "\"NAME\"", text::name);
        let name = taken.name(r, "source", name);
        let dns = Dns::read(r);
        let file = r.read("file", file);
        let source = match (r.has("dns"), r.has("file")) {
            (true, false) => Source::Dns(dns?),
            (false, true) => {
                for key in Dns::KEYS {
                    if r.has(key) {
                        let reason = format!("{key} only means something beside dns");
                        r.issue(
                            key,
                            Issue::error(format!("{key} without dns"), reason, "Remove it."),
                        );
                    }
                }
                Source::File { file: file? }
            }
            (both, _) => {
                let (message, remedy) = if both {
                    ("both dns and file", "Remove one of the two.")
                } else {
                    (
                        "neither dns nor file",
                        "Add dns = \"NAME\" or file = \"FILE\".",
                    )
                };
                r.issue_here(Issue::error(
                    message,
                    "a source is a name or a file",
                    remedy,
                ));
                return None;
            }
        };
        Some(Self {
            name: name?,
            source,
        })
    }
}

impl Dns {
    const KEYS: [&'static str; 10] = [
        "record",
        "port",
        "scheme",
        "path",
        "group",
        "priority",
        "trusted",
        "headers",
        "interval",
        "nameservers",
    ];

    fn read(r: &mut Reader<'_, '_>) -> Option<Self> {
        let dns = r.read("dns", dns_name);
        let by_name = match &dns {
            Some(name) if name.starts_with('_') => Record::Srv,
            _ => Record::Address,
        };
        let record = r.read("record", record).unwrap_or(by_name);
        let port = r.read("port", value::integer(1..=65535));
        let scheme = r.read("scheme", scheme).unwrap_or_default();
        let path = r.read("path", value::text).unwrap_or_else(default_path);
        let found = Self {
            record,
            port,
            scheme,
            path,
            group: r.read("group", text::name).unwrap_or_else(default_group),
            priority: r
                .read(
                    "priority",
                    value::integer(i32::MIN.into()..=i32::MAX.into()),
                )
                .unwrap_or(0),
            trusted: r.read("trusted", value::boolean).unwrap_or(false),
            headers: r.map("headers", header),
            interval: r
                .read("interval", value::duration(INTERVAL))
                .unwrap_or_else(default_interval),
            nameservers: r.list("nameservers", nameserver).unwrap_or_default(),
            dns: dns?,
        };
        found.check(r);
        Some(found)
    }

    fn check(&self, r: &mut Reader<'_, '_>) {
        if !self.path.starts_with('/') {
            let reason = format!("{:?} does not begin with a slash", self.path);
            let remedy = "Write a path such as \"/mcp\".";
            r.issue("path", Issue::error("not a path", reason, remedy));
        }
        match (self.record, self.port) {
            (Record::Srv, Some(_)) => {
                let reason = "SRV records say the port themselves";
                r.issue(
                    "port",
                    Issue::error("port beside SRV", reason, "Remove it."),
                );
            }
            (Record::Srv, None) | (_, Some(_)) => {}
            (_, None) => {
                let reason = "records of addresses do not say the port";
                r.issue(
                    "dns",
                    Issue::error(
                        "no port",
                        reason,
                        "Add port = NUMBER, or ask for SRV records.",
                    ),
                );
            }
        }
        if self.scheme == Scheme::Https && self.record != Record::Srv {
            let reason = "a certificate is for a host, and these records name none";
            let remedy = "Use SRV records, or a [[service]] with the host in its url.";
            r.issue("scheme", Issue::error("https to addresses", reason, remedy));
        }
    }
}

/// One of a few words.
fn word<T: Copy>(value: &DeValue<'_>, cx: &Cx<'_>, words: &[(&str, T)]) -> Read<T> {
    let text = value::text(value, cx)?;
    let found = words.iter().find(|(word, _)| *word == text);
    found.map(|(_, value)| *value).ok_or_else(|| {
        let words: Vec<_> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
        let remedy = format!("Write one of {}.", words.join(", "));
        Issue::error("unknown word", format!("{text:?} is none of these"), remedy)
    })
}

fn record(value: &DeValue<'_>, cx: &Cx<'_>) -> Read<Record> {
    let words = [
        ("srv", Record::Srv),
        ("address", Record::Address),
        ("a", Record::A),
        ("aaaa", Record::Aaaa),
    ];
    word(value, cx, &words)
}

fn scheme(value: &DeValue<'_>, cx: &Cx<'_>) -> Read<Scheme> {
    word(
        value,
        cx,
        &[("http", Scheme::Http), ("https", Scheme::Https)],
    )
}

/// RFC 1035: labels of 1 to 63 bytes, 253 in all.
fn dns_name(value: &DeValue<'_>, cx: &Cx<'_>) -> Read<String> {
    let text = value::text(value, cx)?;
    let name = text.strip_suffix('.').unwrap_or(&text);
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    let label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(plain);
    if name.len() <= 253 && name.split('.').all(label) {
        return Ok(name.to_owned());
    }
    let reason = format!("{text:?} is not made of labels of 1 to 63 letters, digits, `-` and `_`");
    let remedy = "Write a name such as \"_mcp._tcp.search.example\".";
    Err(Issue::error("not a DNS name", reason, remedy))
}

fn nameserver(value: &DeValue<'_>, cx: &Cx<'_>) -> Read<SocketAddr> {
    let text = value::text(value, cx)?;
    let alone = || Some(SocketAddr::new(text.parse().ok()?, 53));
    text.parse().ok().or_else(alone).ok_or_else(|| {
        let reason = format!("{text:?} is not an IP address, with or without a port");
        let remedy = "Write an address such as \"10.0.0.53\" or \"127.0.0.1:8600\".";
        Issue::error("not a name server", reason, remedy)
    })
}

/// A file, relative to this one; it may come later.
fn file(value: &DeValue<'_>, cx: &Cx<'_>) -> Read<PathBuf> {
    let path = cx.folder.join(value::text(value, cx)?);
    if path.is_dir() || path.file_name().is_none() {
        let reason = format!("{} is a folder", path.display());
        return Err(Issue::error("not a file", reason, "Write the file's path."));
    }
    Ok(path)
}
