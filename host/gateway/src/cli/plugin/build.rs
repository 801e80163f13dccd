//! `backstop plugin build`: the right tools for the project's language, and one place for the result.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, bail};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::{Language, built, shown_size};
use crate::cli::terminal;

pub(super) fn run(project: &Path) -> anyhow::Result<ExitCode> {
    let project = project
        .canonicalize()
        .with_context(|| format!("there is no project in {}", project.display()))?;
    let component = match language(&project)? {
        Language::Rust => rust(&project),
        Language::JavaScript => javascript(&project),
        Language::Python => python(&project),
        Language::C => c(&project),
    }?;
    let bytes = std::fs::read(&component)
        .with_context(|| format!("the tools made no {}", component.display()))?;
    let shown = component.strip_prefix(&project).unwrap_or(&component);
    terminal::say(&format!(
        "{}  {}  sha256:{}",
        shown.display(),
        shown_size(bytes.len()),
        hex(&Sha256::digest(&bytes))
    ));
    Ok(ExitCode::SUCCESS)
}

pub(super) fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A project is recognised by the file its language's tools begin with.
fn language(project: &Path) -> anyhow::Result<Language> {
    let known = [
        ("Cargo.toml", Language::Rust),
        ("package.json", Language::JavaScript),
        ("requirements.txt", Language::Python),
        ("strategy.c", Language::C),
    ];
    let found = known.iter().find(|(file, _)| project.join(file).is_file());
    match found {
        Some((_, language)) => Ok(*language),
        None => bail!(
            "{} is no project: it has no Cargo.toml, package.json, requirements.txt or strategy.c; \
             `backstop plugin new` starts one",
            project.display()
        ),
    }
}

/// The name of a project is its folder's.
fn name(project: &Path) -> anyhow::Result<String> {
    let name = project
        .file_name()
        .context("the project's folder has no name")?;
    Ok(name.to_string_lossy().into_owned())
}

/// Runs a tool, its output shown as it comes. What it says on standard output goes to standard error,
/// which leaves the result alone on the former.
fn tool(command: &mut Command, missing: &str) -> anyhow::Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).stdout(std::io::stderr());
    let status = command
        .status()
        .with_context(|| format!("cannot run {program}: {missing}"))?;
    if !status.success() {
        bail!("{program} failed ({status}): its output is above");
    }
    Ok(())
}

const RUST_TARGET: &str = "wasm32-wasip2";

fn rust(project: &Path) -> anyhow::Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(&cargo)
        .args(["build", "--release", "--target", RUST_TARGET, "--lib"])
        .arg("--message-format=json-render-diagnostics")
        .current_dir(project)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo: install Rust from https://rustup.rs")?;
    if !output.status.success() {
        bail!(
            "cargo failed ({}): its output is above; where it says that `core` cannot be found, \
             run `rustup target add {RUST_TARGET}`",
            output.status
        );
    }
    // One message a line; the last artifact is the project's own.
    let component = output
        .stdout
        .split(|byte| *byte == b'\n')
        .filter_map(|line| serde_json::from_slice::<Value>(line).ok())
        .filter(|message| message["reason"] == "compiler-artifact")
        .flat_map(|message| {
            let files = message["filenames"].as_array().cloned().unwrap_or_default();
            files
                .into_iter()
                .filter_map(|file| file.as_str().map(PathBuf::from))
        })
        .rfind(|file| {
            file.extension()
                .is_some_and(|extension| extension == "wasm")
        })
        .context(
            "cargo made no component: write crate-type = [\"cdylib\"] under [lib] in Cargo.toml",
        )?;
    let name = component.file_name().unwrap_or_default().to_string_lossy();
    let to = project.join("dist").join(name.replace('_', "-"));
    place(&to, &std::fs::read(&component)?)?;
    Ok(to)
}

/// Writes a component beside its place and renames it: whoever watches the folder never sees half of
/// it.
pub(super) fn place(to: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let folder = to.parent().unwrap_or(Path::new("."));
    let aside = to.with_extension("wasm.new");
    std::fs::create_dir_all(folder)
        .and_then(|()| std::fs::write(&aside, bytes))
        .and_then(|()| std::fs::rename(&aside, to))
        .with_context(|| format!("cannot write {}", to.display()))
}

fn javascript(project: &Path) -> anyhow::Result<PathBuf> {
    const NODE: &str = "install Node 20 or newer";
    // Node looks for packages in the folders above as well.
    let package = "node_modules/@bytecodealliance/componentize-js";
    if !project
        .ancestors()
        .any(|folder| folder.join(package).is_dir())
    {
        let mut npm = Command::new("npm");
        npm.args(["install", "--no-audit", "--no-fund"])
            .current_dir(project);
        tool(&mut npm, NODE)?;
    }
    let mut npm = Command::new("npm");
    npm.args(["run", "--silent", "build"]).current_dir(project);
    tool(&mut npm, NODE)?;
    built(project)
}

fn python(project: &Path) -> anyhow::Result<PathBuf> {
    const PYTHON: &str = "install Python 3.10 or newer";
    let own = project.join(".venv/bin/componentize-py");
    let ready = |program: &Path| {
        let mut version = Command::new(program);
        version
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        version.status().is_ok_and(|status| status.success())
    };
    let program = if own.is_file() {
        own
    } else if ready(Path::new("componentize-py")) {
        "componentize-py".into()
    } else {
        let mut venv = Command::new("python3");
        venv.args(["-m", "venv", ".venv"]).current_dir(project);
        tool(&mut venv, PYTHON)?;
        let mut pip = Command::new(project.join(".venv/bin/python"));
        pip.args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
        ]);
        pip.args(["--requirement", "requirements.txt"])
            .current_dir(project);
        tool(&mut pip, PYTHON)?;
        own
    };
    let to = project
        .join("dist")
        .join(format!("{}.wasm", name(project)?));
    std::fs::create_dir_all(project.join("dist"))
        .with_context(|| format!("cannot write {}", to.display()))?;
    let aside = to.with_extension("wasm.new");
    let mut componentize = Command::new(program);
    componentize
        .args(["--quiet", "--wit-path", "wit", "--world", "strategy"])
        // A strategy gets no sockets, and its clock, chance and log are the contract's own. What Python
        // itself would ask of WASI is answered while the component is made.
        .args(["componentize", "--stub-wasi", "app", "--output"])
        .arg(&aside)
        .current_dir(project);
    tool(&mut componentize, PYTHON)?;
    std::fs::rename(&aside, &to).with_context(|| format!("cannot write {}", to.display()))?;
    Ok(to)
}

/// There is no one way to compile C for WebAssembly, so the project's own script knows it.
fn c(project: &Path) -> anyhow::Result<PathBuf> {
    let mut script = Command::new("sh");
    script.arg("build.sh").current_dir(project);
    tool(&mut script, "it needs a POSIX shell")?;
    built(project)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_no_project_is_refused_with_what_would_be_one() {
        let folder = std::env::temp_dir();
        let error = language(&folder.join("no-such-project"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("Cargo.toml") && error.contains("plugin new"),
            "{error}"
        );
    }
}
