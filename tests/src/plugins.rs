//! Components: built from source when a test first wants them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

/// The root of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The folder this test was built in: `target/debug/deps/test` lies in it.
pub fn target_dir() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.ancestors().nth(3).unwrap().to_owned()
}

/// The folder of the stock strategies built from their source: the one that `BACKSTOP_BUILT_PLUGINS`
/// names (`tests/run` has built it), else it is built now.
pub fn rebuilt_stock() -> &'static Path {
    static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
        if let Some(folder) = std::env::var_os("BACKSTOP_BUILT_PLUGINS") {
            return root().join(folder);
        }
        let folder = target_dir().join("plugins");
        let mut tool = Command::new(root().join("tests/tools/build-plugins"));
        run(tool.arg(&folder));
        folder
    });
    &FOLDER
}

/// A strategy of `tests/fixtures`, built from its source.
pub fn fixture(name: &str) -> Vec<u8> {
    static BUILT: LazyLock<PathBuf> = LazyLock::new(|| {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut cargo = Command::new(cargo);
        cargo.args(["build", "--quiet", "--locked", "--profile", "plugin"]);
        cargo.args(["--target", "wasm32-wasip2", "-p", "prefer-named"]);
        for name in ["misbehave", "next-contract", "witness"] {
            cargo.args(["-p", name]);
        }
        run(&mut cargo);
        target_dir().join("wasm32-wasip2/plugin")
    });
    let file = BUILT.join(format!("{}.wasm", name.replace('-', "_")));
    std::fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

fn run(command: &mut Command) {
    let output = command
        .current_dir(root())
        .env("CARGO_TARGET_DIR", target_dir())
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}\ntests/tools/wasm-target provides the target",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A component of the same length in which one text stands for another.
pub fn patched(component: &[u8], old: &str, new: &str) -> Vec<u8> {
    assert_eq!(old.len(), new.len(), "the file's sections have lengths");
    let mut changed = component.to_vec();
    let found: Vec<_> = component
        .windows(old.len())
        .enumerate()
        .filter(|(_, window)| *window == old.as_bytes())
        .map(|(at, _)| at)
        .collect();
    assert!(!found.is_empty(), "{old} is not in the component");
    for at in found {
        changed[at..at + old.len()].copy_from_slice(new.as_bytes());
    }
    changed
}
