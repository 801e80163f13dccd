//! `[[service]]` and `[[model]]`: what calls may go to.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::Serialize;
use toml::de::DeValue;

use super::limits::TargetLimits;
use super::oauth::OAuth;
use super::overrides::TargetPolicies;
use super::policy::Circuit;
use super::reader::{Cx, Issue, Reader};
use super::units::{Expanded, exactly_one};
use super::{text, value};

pub(super) fn default_group() -> String {
    "default".into()
}

fn default_weight() -> u32 {
    1
}

/// The most a weight may be: beyond it no ratio that matters is left.
const HEAVIEST: i64 = 1_000_000;

/// A context no model has.
const LARGEST_CONTEXT: i64 = 1_000_000_000;

/// One `[[service]]`: an MCP server.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Service {
    /// Its name, unique among services and models; 1 to 128 characters without blanks.
    pub name: String,
    /// The group of targets that can stand in for each other. Default: `default`.
    #[serde(default = "default_group")]
    pub group: String,
    /// How it is reached: over HTTP (`url`) or as a child process (`command`).
    #[serde(flatten)]
    pub transport: Transport,
    /// A URL whose 2xx answer to GET says that it is well, or `tcp://host:port`: then it is well if it takes
    /// a connection. Default: it is asked over MCP itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_url: Option<Expanded>,
    /// Its place in the group, higher is asked first. Default: 0 (DESIGN: configuration).
    #[serde(default)]
    pub priority: i32,
    /// Its share among targets of the same priority, 1 to 1000000. Default: 1 (DESIGN: configuration).
    #[serde(default = "default_weight")]
    #[schemars(range(min = 1, max = HEAVIEST))]
    pub weight: u32,
    /// Whether its tool annotations are believed. Default: false (RULES: hints of an untrusted
    /// server count for nothing).
    #[serde(default)]
    pub trusted: bool,
    /// HTTP statuses, 400 to 599, after which this server may have acted although their meaning is that it
    /// has not, such as 503 of a server that says so halfway. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(inner(range(min = 400, max = 599)))]
    pub ambiguous_statuses: Vec<u16>,
    /// How much it is given to do.
    #[serde(flatten)]
    pub limits: TargetLimits,
    /// What holds for it instead of `[health]` and `[circuit]`.
    #[serde(flatten)]
    pub policies: TargetPolicies,
}

/// How a [`Service`] is reached.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(transform = exactly_one)]
pub enum Transport {
    /// Streamable HTTP.
    Http {
        /// Its MCP endpoint, `http` or `https`.
        url: Expanded,
        /// Headers sent with every request. Default: none.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        headers: BTreeMap<String, Expanded>,
        /// How to sign in where it asks for OAuth. Default: not at all.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        oauth: Option<OAuth>,
    },
    /// A child process spoken to over standard input and output.
    Stdio {
        /// The program: a name looked up in the PATH, or a path (relative to the file).
        command: String,
        /// Its arguments. Default: none.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        args: Vec<String>,
        /// Variables added to its environment. Default: none.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        env: BTreeMap<String, Expanded>,
        /// The folder it runs in, relative to the file. Default: the one the host runs in.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cwd: Option<PathBuf>,
    },
}

/// Models have a group of their own, since no service can stand in for one.
fn default_model_group() -> String {
    "models".into()
}

fn yes() -> bool {
    true
}

/// Which API a [`Model`] is behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ModelApi {
    /// OpenAI's, as most servers speak it: `POST BASE/chat/completions`.
    #[default]
    Openai,
    /// Anthropic's messages: `POST BASE/messages`. Requests and answers are translated.
    Anthropic,
}

/// One `[[model]]`: a model behind an OpenAI-compatible API or Anthropic's.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Model {
    /// Its name, unique among services and models; 1 to 128 characters without blanks.
    pub name: String,
    /// The group of models that can stand in for each other; clients ask for the group by this name.
    /// Default: `models`.
    #[serde(default = "default_model_group")]
    pub group: String,
    /// The API's base URL, such as `https://api.example.com/v1`.
    pub base_url: Expanded,
    /// Which API it is: `openai` or `anthropic`. Default: `openai`.
    #[serde(default)]
    pub api: ModelApi,
    /// The model as the API knows it. Default: the name.
    #[serde(default)]
    pub model: String,
    /// The environment variable that holds the API key. Default: no key is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_env: Option<String>,
    /// A URL whose 2xx answer to GET says that it is well. Default: it is asked for its list of models.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_url: Option<Expanded>,
    /// The file that holds the API key, relative to this file; it is read anew for each request, so
    /// that a key that is exchanged counts at once. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_file: Option<PathBuf>,
    /// Headers sent with every request. Default: none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, Expanded>,
    /// How many tokens of request and answer the model takes, 1 to 1000000000. A request that is longer
    /// by estimate goes to a larger model. Default: not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = LARGEST_CONTEXT))]
    pub context_length: Option<u64>,
    /// Whether it can be given tools; a request with tools goes to no other. Default: true.
    #[serde(default = "yes")]
    pub tools: bool,
    /// Whether it can be given images; a request with images goes to no other. Default: true.
    #[serde(default = "yes")]
    pub vision: bool,
    /// Whether it goes on with an answer that another began (the request ends with a message of the
    /// assistant). Many refuse that, or begin anew. Default: false.
    #[serde(default)]
    pub prefill: bool,
    /// Its place in the group, higher is asked first. Default: 0 (DESIGN: configuration).
    #[serde(default)]
    pub priority: i32,
    /// Its share among models of the same priority, 1 to 1000000. Default: 1 (DESIGN: configuration).
    #[serde(default = "default_weight")]
    #[schemars(range(min = 1, max = HEAVIEST))]
    pub weight: u32,
    /// How much it is given to do.
    #[serde(flatten)]
    pub limits: TargetLimits,
    /// What holds for it instead of `[health]` and `[circuit]`.
    #[serde(flatten)]
    pub policies: TargetPolicies,
}

/// Names already taken, and by what.
#[derive(Default)]
pub(super) struct Taken(BTreeMap<String, &'static str>);

impl Taken {
    /// Reads the `name` of an entry and notes a second use of it.
    pub(super) fn name(
        &mut self,
        r: &mut Reader<'_, '_>,
        what: &'static str,
        name: Option<String>,
    ) -> Option<String> {
        let name = name?;
        if let Some(other) = self.0.get(&name) {
            let reason = format!("an earlier {other} has the name {name:?}");
            r.issue(
                "name",
                Issue::error(
                    "duplicate name",
                    reason,
                    format!("Give this {what} a name of its own."),
                ),
            );
            return None;
        }
        self.0.insert(name.clone(), what);
        Some(name)
    }
}

impl Service {
    pub(super) fn read(r: &mut Reader<'_, '_>, taken: &mut Taken, all: &Circuit) -> Option<Self> {
        let name = r.require("name", "\"NAME\"", text::name);
        let name = taken.name(r, "service", name);
        let group = r.read("group", text::name);
        let transport = Transport::read(r);
        let health_url = r.read("health_url", text::health_url);
        let priority = r.read(
            "priority",
            value::integer(i32::MIN.into()..=i32::MAX.into()),
        );
        let weight = r.read("weight", value::integer(1..=HEAVIEST));
        let trusted = r.read("trusted", value::boolean);
        let ambiguous_statuses = r.list("ambiguous_statuses", value::integer(400..=599));
        let limits = TargetLimits::read(r);
        let policies = TargetPolicies::read(r, all);
        Some(Self {
            name: name?,
            group: group.unwrap_or_else(default_group),
            transport: transport?,
            health_url,
            priority: priority.unwrap_or(0),
            weight: weight.unwrap_or_else(default_weight),
            trusted: trusted.unwrap_or(false),
            ambiguous_statuses: ambiguous_statuses.unwrap_or_default(),
            limits,
            policies,
        })
    }
}

impl Transport {
    fn read(r: &mut Reader<'_, '_>) -> Option<Self> {
        let url = r.read("url", text::url);
        let headers = r.map("headers", header);
        let oauth = r.section("oauth", OAuth::read);
        let command = r
            .read("command", value::text)
            .and_then(|text| command(r, &text));
        let args = r.list("args", value::text).unwrap_or_default();
        let env = r.map("env", |_, text, cx| text::expanded(text, cx));
        let cwd = r.read("cwd", text::folder);
        match (r.has("url"), r.has("command")) {
            (true, true) => {
                let reason = "a service is either reached over HTTP or started as a process";
                r.issue(
                    "command",
                    Issue::error("both url and command", reason, "Remove one of the two."),
                );
                None
            }
            (false, false) => {
                let reason = "a service must be reached over HTTP or started as a process";
                let remedy = "Add url = \"https://…\" or command = \"PROGRAM\".";
                r.issue_here(Issue::error("neither url nor command", reason, remedy));
                None
            }
            (true, false) => {
                for key in ["args", "env", "cwd"] {
                    other_transport(r, key, "command");
                }
                if oauth.is_some()
                    && headers
                        .keys()
                        .any(|name| name.eq_ignore_ascii_case("authorization"))
                {
                    let reason = "there is one Authorization field in a request";
                    let remedy = "Remove oauth, or the header.";
                    r.issue(
                        "oauth",
                        Issue::error("two ways to be let in", reason, remedy),
                    );
                }
                Some(Self::Http {
                    url: url?,
                    headers,
                    oauth,
                })
            }
            (false, true) => {
                for key in ["headers", "oauth"] {
                    other_transport(r, key, "url");
                }
                Some(Self::Stdio {
                    command: command?,
                    args,
                    env,
                    cwd,
                })
            }
        }
    }
}

/// A key that only means something beside another one.
fn other_transport(r: &mut Reader<'_, '_>, key: &'static str, beside: &str) {
    if r.has(key) {
        let reason = format!("{key} only means something beside {beside}");
        r.issue(
            key,
            Issue::error(format!("{key} without {beside}"), reason, "Remove it."),
        );
    }
}

/// A program with a folder in its name is relative to the file, as every path is; a bare name is
/// left to the PATH.
fn command(r: &mut Reader<'_, '_>, text: &str) -> Option<String> {
    let path = Path::new(text);
    if text.trim().is_empty() {
        let remedy = "Write the program's name or path.";
        r.issue(
            "command",
            Issue::error("empty command", "there is no program to start", remedy),
        );
        return None;
    }
    if path.components().count() < 2 || path.is_absolute() {
        return Some(text.to_owned());
    }
    Some(r.cx.folder.join(path).to_string_lossy().into_owned())
}

pub(super) fn header(name: &str, value: &DeValue<'_>, cx: &Cx<'_>) -> Result<Expanded, Issue> {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if name.is_empty() || !name.bytes().all(token) {
        let reason = format!("{name:?} has a character that RFC 9110 does not allow in one");
        return Err(Issue::error(
            "not a header name",
            reason,
            "Write letters, digits and hyphens.",
        ));
    }
    let text = text::expanded(value, cx)?;
    if text
        .value()
        .bytes()
        .any(|b| (b < b' ' && b != b'\t') || b == 0x7f)
    {
        let reason = "it holds a line break or another control character";
        return Err(Issue::error(
            "not a header value",
            reason,
            "Write it in one line.",
        ));
    }
    Ok(text)
}

impl Model {
    pub(super) fn read(r: &mut Reader<'_, '_>, taken: &mut Taken, all: &Circuit) -> Option<Self> {
        let name = r.require("name", "\"NAME\"", text::name);
        let name = taken.name(r, "model", name);
        let group = r.read("group", text::name);
        let base_url = r.require("base_url", "\"https://…/v1\"", text::url);
        const APIS: &[(&str, ModelApi)] = &[
            ("openai", ModelApi::Openai),
            ("anthropic", ModelApi::Anthropic),
        ];
        let api = r.read("api", value::word(APIS));
        let model = r.read("model", value::text);
        let api_key_env = secret_env(r, "api_key_env", "the API is asked without a key");
        let health_url = r.read("health_url", text::url);
        let api_key_file = r.read("api_key_file", text::file);
        if r.has("api_key_env") && r.has("api_key_file") {
            let reason = "there is one key for a model";
            r.issue(
                "api_key_file",
                Issue::error("two keys", reason, "Remove api_key_env or api_key_file."),
            );
        }
        let headers = r.map("headers", header);
        let context_length = r.read("context_length", value::integer(1..=LARGEST_CONTEXT));
        let tools = r.read("tools", value::boolean);
        let vision = r.read("vision", value::boolean);
        let prefill = r.read("prefill", value::boolean);
        let priority = r.read(
            "priority",
            value::integer(i32::MIN.into()..=i32::MAX.into()),
        );
        let weight = r.read("weight", value::integer(1..=HEAVIEST));
        let limits = TargetLimits::read(r);
        let policies = TargetPolicies::read(r, all);
        let name = name?;
        Some(Self {
            group: group.unwrap_or_else(default_model_group),
            base_url: base_url?,
            model: model.unwrap_or_else(|| name.clone()),
            name,
            api: api.unwrap_or_default(),
            api_key_env,
            health_url,
            api_key_file,
            headers,
            context_length,
            tools: tools.unwrap_or(true),
            vision: vision.unwrap_or(true),
            prefill: prefill.unwrap_or(false),
            priority: priority.unwrap_or(0),
            weight: weight.unwrap_or_else(default_weight),
            limits,
            policies,
        })
    }
}

/// The name of an environment variable that holds a secret; warns where it is not set.
pub(super) fn secret_env(
    r: &mut Reader<'_, '_>,
    key: &'static str,
    otherwise: &str,
) -> Option<String> {
    let name = r.read(key, value::text)?;
    if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        // The text itself is not shown: it may be the secret, written in the wrong place.
        let reason = "this is the name of a variable (letters, digits, `_`), not the secret itself";
        r.issue(
            key,
            Issue::error(
                "not a variable's name",
                reason,
                "Put the secret into the environment, and its name here.",
            ),
        );
        return None;
    }
    if (r.cx.env)(&name).is_none_or(|value| value.is_empty()) {
        let reason = format!("{name} is not set or is empty: {otherwise}");
        r.issue(
            key,
            Issue::warning("no secret", reason, format!("Set {name} before the start.")),
        );
    }
    Some(name)
}
