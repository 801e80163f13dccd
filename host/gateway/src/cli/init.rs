//! `backstop init`: from the configuration of a desktop client or an IDE to one of backstop's, with
//! backstop between the client and its servers.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use backstop::config::Config;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{USAGE, terminal};

/// What clients write: Claude Desktop, Cursor, Windsurf and others `mcpServers`, VS Code `servers`.
#[derive(Debug, Deserialize)]
struct ClientFile {
    #[serde(rename = "mcpServers", alias = "servers")]
    servers: serde_json::Map<String, serde_json::Value>,
}

#[derive(Debug, Deserialize)]
struct ClientServer {
    command: Option<String>,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    cwd: Option<String>,
    #[serde(alias = "serverUrl")]
    url: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    disabled: bool,
}

#[derive(Debug, Serialize)]
struct Written {
    service: Vec<WrittenService>,
}

#[derive(Debug, Serialize)]
struct WrittenService {
    name: String,
    group: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    command: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    args: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cwd: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    env: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    headers: BTreeMap<String, String>,
}

const HEAD: &str = "\
# The servers of an MCP client, with backstop in front of them. Each is a group of its own: give another
# server the same group, and it stands in when the first fails.

";

pub(super) fn run(from: &Path, output: &Path) -> anyhow::Result<ExitCode> {
    let text =
        std::fs::read_to_string(from).with_context(|| format!("cannot read {}", from.display()))?;
    let file: ClientFile = serde_json::from_str(&text).with_context(|| {
        format!(
            "{} is no client configuration: an object with `mcpServers` (or `servers`) is expected",
            from.display()
        )
    })?;
    let (written, notes) = convert(file)?;
    let text = format!(
        "{HEAD}{}",
        toml::to_string_pretty(&written).context("writing TOML")?
    );
    create(output, &text)?;
    for note in &notes {
        terminal::complain(note);
    }
    let loaded = Config::load(output);
    for diagnostic in &loaded.diagnostics {
        terminal::complain(&diagnostic.to_string());
    }
    let path = std::fs::canonicalize(output).unwrap_or_else(|_| output.to_owned());
    let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("backstop"));
    let entry = json!({ "mcpServers": { "backstop": {
        "command": program, "args": ["serve", "--stdio", "--config", path] } } });
    terminal::complain(&format!(
        "{} is written. Put this in the place of the servers in {}:",
        output.display(),
        from.display()
    ));
    terminal::say(&format!("{entry:#}"));
    let wrong = loaded.diagnostics.iter().any(|found| found.is_error());
    Ok(if wrong {
        ExitCode::from(USAGE)
    } else {
        ExitCode::SUCCESS
    })
}

/// Never over a file that is there, and for the user's eyes only: it may hold keys.
pub(super) fn create(path: &Path, text: &str) -> anyhow::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path).with_context(|| {
        format!(
            "cannot create {}: remove it first if it is there, or choose another with --output",
            path.display()
        )
    })?;
    file.write_all(text.as_bytes())
        .with_context(|| format!("cannot write {}", path.display()))
}

fn convert(file: ClientFile) -> anyhow::Result<(Written, Vec<String>)> {
    let mut service: Vec<WrittenService> = Vec::new();
    let mut notes = Vec::new();
    for (name, entry) in file.servers {
        let entry: ClientServer = serde_json::from_value(entry)
            .with_context(|| format!("the server {name:?} is not written as clients write them"))?;
        if entry.disabled {
            notes.push(format!("{name:?} is left out: the client has it disabled"));
            continue;
        }
        if entry.kind.as_deref() == Some("sse") {
            notes.push(format!(
                "{name:?} is written with `type: sse`, the transport of 2024-11-05, which backstop does not speak: its url must answer streamable HTTP"
            ));
        }
        if entry.command.is_none() == entry.url.is_none() {
            bail!("the server {name:?} needs either `command` or `url`");
        }
        let name = plain_name(&name, &service);
        let mut expand = |text: String| expanded(&text, &name, &mut notes);
        service.push(WrittenService {
            url: entry.url.map(&mut expand),
            env: entry.env.into_iter().map(|(k, v)| (k, expand(v))).collect(),
            headers: (entry.headers.into_iter())
                .map(|(k, v)| (k, expand(v)))
                .collect(),
            command: entry.command,
            args: entry.args,
            cwd: entry.cwd,
            group: name.clone(),
            name,
        });
    }
    if service.is_empty() {
        bail!("the client has no server that is in use");
    }
    Ok((Written { service }, notes))
}

/// A name without blanks, and no other's.
fn plain_name(name: &str, others: &[WrittenService]) -> String {
    let plain: String = name
        .chars()
        .map(|c| {
            if c.is_whitespace() || c.is_control() {
                '-'
            } else {
                c
            }
        })
        .take(120)
        .collect();
    let plain = if plain.is_empty() {
        "server".into()
    } else {
        plain
    };
    let taken = |name: &str| others.iter().any(|other| other.name == name);
    (1..)
        .map(|n| {
            if n == 1 {
                plain.clone()
            } else {
                format!("{plain}-{n}")
            }
        })
        .find(|name| !taken(name))
        .unwrap_or(plain)
}

/// What clients fill in, as backstop's configuration writes it: `${NAME}` is a variable of the
/// environment in both; VS Code writes `${env:NAME}`, and `${input:id}` for what it asks the user.
fn expanded(text: &str, server: &str, notes: &mut Vec<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        out.push_str(before);
        let Some((inner, tail)) = after.split_once('}') else {
            rest = after;
            out.push_str("$${");
            continue;
        };
        rest = tail;
        let is_name = |name: &str| {
            !name.is_empty()
                && !name.starts_with(|c: char| c.is_ascii_digit())
                && name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_')
        };
        let name = inner.strip_prefix("env:").unwrap_or(inner);
        if let Some(id) = inner.strip_prefix("input:") {
            let name: String = id
                .chars()
                .map(|c| {
                    if c.is_ascii_alphanumeric() {
                        c.to_ascii_uppercase()
                    } else {
                        '_'
                    }
                })
                .collect();
            notes.push(format!(
                "{server:?}: the client asks the user for {id:?}; set the environment variable {name} instead"
            ));
            out.push_str(&format!("${{{name}}}"));
        } else if is_name(name) {
            out.push_str(&format!("${{{name}}}"));
        } else {
            notes.push(format!(
                "{server:?}: nothing is put in the place of ${{{inner}}}; correct it by hand"
            ));
            out.push_str(&format!("$${{{inner}}}"));
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn converted(text: &str) -> anyhow::Result<(Written, Vec<String>)> {
        convert(serde_json::from_str(text)?)
    }

    #[test]
    fn every_server_becomes_a_service_and_a_group() {
        let (written, notes) = converted(
            r#"{ "theme": "dark", "mcpServers": {
                "my files": { "command": "npx", "args": ["-y", "fs", "/tmp"], "env": { "A": "1${B}" } },
                "web": { "type": "http", "url": "https://x.example/mcp", "headers": { "X-Key": "${env:KEY}" } },
                "off": { "command": "x", "disabled": true } } }"#,
        )
        .unwrap();
        let text = toml::to_string_pretty(&written).unwrap();
        let folder = std::env::temp_dir().join(format!("backstop-init-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("backstop.toml");
        std::fs::write(&path, text).unwrap();
        let config = Config::load(&path).config;
        std::fs::remove_dir_all(&folder).unwrap();
        let named: Vec<_> = written
            .service
            .iter()
            .map(|s| (&*s.name, &*s.group))
            .collect();
        assert_eq!(named, [("my-files", "my-files"), ("web", "web")]);
        assert_eq!(written.service[0].env["A"], "1${B}");
        assert_eq!(written.service[1].headers["X-Key"], "${KEY}");
        assert_eq!(notes.len(), 1, "{notes:?}");
        // What needs a variable that is not set is refused by name, and not by the file's form.
        assert!(config.services.len() <= 2);
    }

    #[test]
    fn what_the_client_asks_its_user_for_becomes_a_variable_and_is_told() {
        let mut notes = Vec::new();
        let text = expanded(
            "Bearer ${input:api-key} ${workspaceFolder:x} ${",
            "s",
            &mut notes,
        );
        assert_eq!(text, "Bearer ${API_KEY} $${workspaceFolder:x} $${");
        assert_eq!(notes.len(), 2, "{notes:?}");
    }

    #[test]
    fn what_is_no_server_is_refused_by_name() {
        for text in [
            r#"{ "mcpServers": { "odd": {} } }"#,
            r#"{ "mcpServers": { "odd": { "command": "x", "url": "http://y" } } }"#,
            r#"{ "mcpServers": { "odd": { "command": 7 } } }"#,
        ] {
            let error = converted(text).unwrap_err();
            assert!(format!("{error:#}").contains("odd"), "{error:#}");
        }
        assert!(converted(r#"{ "mcpServers": {} }"#).is_err());
    }
}
