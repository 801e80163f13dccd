//! Reads texts that must be something: a name, a URL, a pattern, an address, a folder.

use std::net::SocketAddr;
use std::path::PathBuf;

use toml::de::DeValue;

use super::reader::{Cx, Issue};
use super::units::{ExpandError, Expanded};
use super::value::{Read, text};

/// A name of a target or a group: what shows up in logs, metrics and URLs.
pub(super) fn name(value: &DeValue<'_>, cx: &Cx<'_>) -> Read<String> {
    let text = text(value, cx)?;
    let good = !text.is_empty()
        && text.chars().count() <= 128
        && !text.chars().any(|c| c.is_whitespace() || c.is_control());
    let issue = || {
        let reason = format!(
            "{text:?} is empty, longer than 128 characters, or has a blank or control character"
        );
        Issue::error(
            "not a name",
            reason,
            "Write 1 to 128 characters without blanks.",
        )
    };
    if good { Ok(text) } else { Err(issue()) }
}

/// A name of a strategy: the rule of the contract's metadata.
pub(super) fn identifier(value: &DeValue<'_>, cx: &Cx<'_>) -> Read<String> {
    let text = text(value, cx)?;
    let good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if !text.is_empty() && text.len() <= 64 && text.chars().all(good) {
        return Ok(text);
    }
    let reason = format!("{text:?} is not 1 to 64 letters, digits, `-` or `_`");
    Err(Issue::error(
        "not a strategy's name",
        reason,
        "Write the name without folder and without \".wasm\".",
    ))
}

pub(super) fn expanded(value: &DeValue<'_>, cx: &Cx<'_>) -> Read<Expanded> {
    let text = text(value, cx)?;
    Expanded::new(&text, &cx.folder, cx.env).map_err(|error| {
        let remedy = match &error {
            ExpandError::Unset(name) => {
                format!("Set {name} before the start, or write the value itself.")
            }
            ExpandError::File { .. } => {
                "Create it, or correct the path (it is relative to this file).".into()
            }
            ExpandError::Malformed => {
                "Write ${NAME} or ${file:PATH}; for a literal ${ write $${.".into()
            }
        };
        Issue::error("cannot be expanded", error.to_string(), remedy)
    })
}

/// An `http` or `https` URL.
pub(super) fn url(value: &DeValue<'_>, cx: &Cx<'_>) -> Read<Expanded> {
    const REMEDY: &str = "Write a URL such as \"https://example.com/mcp\".";
    url_where(value, cx, REMEDY, |url| {
        matches!(url.scheme(), "http" | "https") && url.has_host()
    })
}

/// An `http` or `https` URL, or `tcp` with a host and a port and nothing else.
pub(super) fn health_url(value: &DeValue<'_>, cx: &Cx<'_>) -> Read<Expanded> {
    const REMEDY: &str =
        "Write a URL such as \"https://example.com/health\" or \"tcp://example.com:8443\".";
    url_where(value, cx, REMEDY, |url| match url.scheme() {
        "http" | "https" => url.has_host(),
        "tcp" => {
            let only_address = matches!(url.path(), "" | "/") && url.query().is_none();
            url.has_host() && url.port().is_some() && url.username().is_empty() && only_address
        }
        _ => false,
    })
}

fn url_where(
    value: &DeValue<'_>,
    cx: &Cx<'_>,
    remedy: &'static str,
    good: impl FnOnce(&url::Url) -> bool,
) -> Read<Expanded> {
    let expanded = expanded(value, cx)?;
    // The text as written: the value may hold a secret.
    let shown = expanded.written();
    match url::Url::parse(expanded.value()) {
        Ok(url) if good(&url) => Ok(expanded),
        Ok(url) if url.scheme() == "tcp" => Err(Issue::error(
            "not an address to connect to",
            format!("{shown:?} is not tcp:// with a host and a port"),
            remedy,
        )),
        Ok(_) => Err(Issue::error(
            "not an HTTP URL",
            format!("{shown:?} does not begin with http:// or https://"),
            remedy,
        )),
        Err(error) => Err(Issue::error(
            "not a URL",
            format!("{shown:?}: {error}"),
            remedy,
        )),
    }
}

pub(super) fn listen(value: &DeValue<'_>, cx: &Cx<'_>) -> Read<SocketAddr> {
    let text = text(value, cx)?;
    text.parse().map_err(|_| {
        let reason = format!("{text:?} is not an IP address and a port");
        Issue::error(
            "not a listen address",
            reason,
            "Write an address such as \"127.0.0.1:8808\" or \"[::1]:8808\".",
        )
    })
}

/// A file that may be there, relative to the file.
pub(super) fn path(value: &DeValue<'_>, cx: &Cx<'_>) -> Read<PathBuf> {
    let text = text(value, cx)?;
    if text.is_empty() {
        let reason = "it is empty".to_owned();
        return Err(Issue::error(
            "not a path",
            reason,
            "Write the path of a file.",
        ));
    }
    Ok(cx.folder.join(text))
}

/// A folder that is there, relative to the file.
pub(super) fn folder(value: &DeValue<'_>, cx: &Cx<'_>) -> Read<PathBuf> {
    let path = cx.folder.join(text(value, cx)?);
    if path.is_dir() {
        return Ok(path);
    }
    let shown = path.display();
    let reason = if path.exists() {
        format!("{shown} is not a folder")
    } else {
        format!("{shown} does not exist")
    };
    Err(Issue::error(
        "no such folder",
        reason,
        "Create it, or correct the path (it is relative to this file).",
    ))
}

/// A file that is there, relative to this one.
pub(super) fn file(value: &DeValue<'_>, cx: &Cx<'_>) -> Read<PathBuf> {
    let path = cx.folder.join(text(value, cx)?);
    if path.is_file() {
        return Ok(path);
    }
    let reason = format!("{} is no file", path.display());
    Err(Issue::error(
        "no such file",
        reason,
        "Create it, or correct the path (it is relative to this file).",
    ))
}

/// A pattern over names, with `*` and `?`.
pub(super) fn glob(value: &DeValue<'_>, cx: &Cx<'_>) -> Read<String> {
    let text = text(value, cx)?;
    match globset::Glob::new(&text) {
        Ok(_) => Ok(text),
        Err(error) => {
            let reason = format!("{text:?}: {}", error.kind());
            Err(Issue::error(
                "not a glob",
                reason,
                "Write a pattern such as \"search_*\"; escape [ and { with a backslash.",
            ))
        }
    }
}

/// A regular expression; the position of a mistake is counted in characters of the pattern.
pub(super) fn regex(value: &DeValue<'_>, cx: &Cx<'_>) -> Read<String> {
    const REMEDY: &str =
        "Correct the expression (the syntax is that of the Rust crate `regex`; no look-around).";
    let text = text(value, cx)?;
    let at = |offset: usize| text.get(..offset).unwrap_or_default().chars().count() + 1;
    let reason = match regex_syntax::Parser::new().parse(&text) {
        Err(regex_syntax::Error::Parse(error)) => {
            format!(
                "at character {}: {}",
                at(error.span().start.offset),
                error.kind()
            )
        }
        Err(regex_syntax::Error::Translate(error)) => {
            format!(
                "at character {}: {}",
                at(error.span().start.offset),
                error.kind()
            )
        }
        Err(error) => error.to_string(),
        // What is well formed may still be too large to compile.
        Ok(_) => match regex::Regex::new(&text) {
            Ok(_) => return Ok(text),
            Err(error) => error.to_string(),
        },
    };
    Err(Issue::error("not a regular expression", reason, REMEDY))
}
