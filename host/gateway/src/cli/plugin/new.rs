//! `backstop plugin new`: a project that builds and passes its tests.
//!
//! The templates are the examples of `plugins/examples`, which the tests build and run; only the name
//! is another one.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};

use super::Language;
use crate::cli::{USAGE, terminal};

/// The name the examples have.
const EXAMPLE: &str = "next-best";
/// How the Rust example finds the SDK, which is beside it.
const SDK: &str = "path = \"../../../sdk\"";

type File = (&'static str, &'static str);

macro_rules! files {
    ($folder:literal: $($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../../../../plugins/examples/", $folder, "/", $name)))),*]
    };
}

const RUST: &[File] =
    files!("rust": ".gitignore", "Cargo.toml", "README.md", "schema.json", "src/lib.rs");
const JAVASCRIPT: &[File] =
    files!("javascript": ".gitignore", "README.md", "build.mjs", "package.json", "strategy.js");
const PYTHON: &[File] =
    files!("python": ".gitignore", "README.md", "app.py", "requirements.txt", "schema.json");
const C: &[File] = files!(
    "c": ".gitignore", "README.md", "bindings/strategy.c", "bindings/strategy.h", "build.sh", "strategy.c",
);
/// The contract's types as an object file, which the linker puts into the component.
const C_TYPES: (&str, &[u8]) = (
    "bindings/strategy_component_type.o",
    include_bytes!("../../../../../plugins/examples/c/bindings/strategy_component_type.o"),
);

const CASES: File = (
    "cases.toml",
    include_str!("../../../../../plugins/examples/cases.toml"),
);

/// The contract. Rust has it in the SDK.
const WIT: &[File] = &[
    (
        "wit/host.wit",
        include_str!("../../../../../wit/0.1.0/host.wit"),
    ),
    (
        "wit/strategy.wit",
        include_str!("../../../../../wit/0.1.0/strategy.wit"),
    ),
    (
        "wit/types.wit",
        include_str!("../../../../../wit/0.1.0/types.wit"),
    ),
];

pub(super) fn run(name: &str, language: Language, sdk: Option<&Path>) -> anyhow::Result<ExitCode> {
    if let Err(why) = usable(name) {
        terminal::complain(&format!(
            "backstop: {name:?} cannot be the strategy's name: {why}"
        ));
        return Ok(ExitCode::from(USAGE));
    }
    let folder = PathBuf::from(name);
    if folder.exists() {
        bail!(
            "{} is there already: remove it, or choose another name",
            folder.display()
        );
    }
    let sdk = match (language, sdk) {
        (Language::Rust, Some(path)) => {
            let path = path
                .canonicalize()
                .with_context(|| format!("the SDK's folder {} cannot be found", path.display()))?;
            if !path.join("Cargo.toml").is_file() {
                bail!("{} is not the SDK: it has no Cargo.toml", path.display());
            }
            format!("path = {:?}", path.display().to_string())
        }
        (Language::Rust, None) => format!("version = {:?}", env!("CARGO_PKG_VERSION")),
        (_, None) => String::new(),
        (_, Some(_)) => {
            terminal::complain(
                "backstop: --sdk is for --lang rust: the others use the contract's WIT files",
            );
            return Ok(ExitCode::from(USAGE));
        }
    };
    let own = match language {
        Language::Rust => RUST,
        Language::JavaScript => JAVASCRIPT,
        Language::Python => PYTHON,
        Language::C => C,
    };
    let wit = if language == Language::Rust { &[] } else { WIT };
    for (path, text) in own.iter().chain(wit).chain([&CASES]) {
        let text = text.replace(EXAMPLE, name).replace(SDK, &sdk);
        let text = text.replace(&camel(EXAMPLE), &camel(name));
        write(&folder.join(path), text.as_bytes())?;
    }
    if language == Language::C {
        write(&folder.join(C_TYPES.0), C_TYPES.1)?;
    }
    terminal::say(&format!(
        "{name} is made. Next:\n  cd {name}\n  backstop plugin build\n  backstop plugin test"
    ));
    Ok(ExitCode::SUCCESS)
}

fn write(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let parent = path.parent().unwrap_or(Path::new(""));
    std::fs::create_dir_all(parent)
        .and_then(|()| std::fs::write(path, content))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// What is a strategy's name, a package's name in every language's registry, and a folder.
fn usable(name: &str) -> Result<(), &'static str> {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    if name.is_empty() || name.len() > 64 {
        return Err("use 1 to 64 characters");
    }
    if !name.starts_with(|c: char| c.is_ascii_lowercase()) {
        return Err("begin with a lower-case letter");
    }
    if !name.chars().all(good) {
        return Err("use lower-case letters, digits, `-` and `_`");
    }
    if RESERVED.contains(&name) {
        return Err("it is a word of Rust, or a crate's that every program has");
    }
    Ok(())
}

/// What cargo refuses as a package's name.
const RESERVED: &[&str] = &[
    "abstract",
    "alloc",
    "as",
    "async",
    "await",
    "become",
    "box",
    "break",
    "const",
    "continue",
    "core",
    "crate",
    "do",
    "dyn",
    "else",
    "enum",
    "extern",
    "false",
    "final",
    "fn",
    "for",
    "gen",
    "if",
    "impl",
    "in",
    "let",
    "loop",
    "macro",
    "match",
    "mod",
    "move",
    "mut",
    "override",
    "priv",
    "proc_macro",
    "pub",
    "ref",
    "return",
    "self",
    "static",
    "std",
    "struct",
    "super",
    "test",
    "trait",
    "true",
    "try",
    "type",
    "typeof",
    "unsafe",
    "unsized",
    "use",
    "virtual",
    "where",
    "while",
    "yield",
];

/// `next-best` as a type: `NextBest`.
fn camel(name: &str) -> String {
    let words = name.split(['-', '_']).filter(|word| !word.is_empty());
    words
        .map(|word| word[..1].to_ascii_uppercase() + &word[1..])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_turned_into_a_type() {
        assert_eq!(camel("next-best"), "NextBest");
        assert_eq!(camel("a_2-b--c"), "A2BC");
    }

    #[test]
    fn a_name_that_is_no_package_or_no_strategy_is_refused() {
        for name in [
            "",
            "A",
            "-a",
            "9a",
            "a b",
            "../a",
            "a.b",
            "self",
            "ä",
            &"a".repeat(65),
        ] {
            assert!(usable(name).is_err(), "{name}");
        }
        for name in ["a", "next-best", "a_9"] {
            assert_eq!(usable(name), Ok(()));
        }
    }

    #[test]
    fn the_templates_say_nothing_of_where_they_come_from() {
        let all = RUST.iter().chain(JAVASCRIPT).chain(PYTHON).chain(C);
        for (path, text) in all {
            let text = text
                .replace(EXAMPLE, "mine")
                .replace(SDK, "version = \"1\"");
            assert!(!text.contains("../.."), "{path} leads out of the project");
        }
        assert!(RUST.iter().any(|(_, text)| text.contains(SDK)));
    }
}
