//! The prebuilt stock strategies are what the contract says a strategy is.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use wasmparser::{Parser, Payload};

const STOCK: [&str; 6] = [
    "data-fallback",
    "fail-fast",
    "model-failover",
    "operation-fallback",
    "retry",
    "service-failover",
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../host/engine/stock")
}

/// The names a component imports and exports at its border.
fn border(component: &[u8]) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut imports, mut exports) = (BTreeSet::new(), BTreeSet::new());
    let mut depth = 0_u32;
    for payload in Parser::new(0).parse_all(component) {
        match payload.unwrap() {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ComponentImportSection(section) if depth == 0 => {
                imports.extend(
                    section
                        .into_iter()
                        .map(|import| import.unwrap().name.name.to_owned()),
                );
            }
            Payload::ComponentExportSection(section) if depth == 0 => {
                exports.extend(
                    section
                        .into_iter()
                        .map(|export| export.unwrap().name.name.to_owned()),
                );
            }
            _ => {}
        }
    }
    (imports, exports)
}

#[test]
fn every_stock_strategy_is_there_and_small() {
    let mut found: Vec<_> = fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "wasm")
        })
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    found.sort();
    assert_eq!(found, STOCK);
    for name in STOCK {
        let size = fs::metadata(folder().join(name).with_extension("wasm"))
            .unwrap()
            .len();
        assert!(size < 200_000, "{name}: {size} bytes");
    }
}

#[test]
fn a_stock_strategy_exports_the_policy_and_imports_no_files_clocks_or_network() {
    for name in STOCK {
        let (imports, exports) =
            border(&fs::read(folder().join(name).with_extension("wasm")).unwrap());
        assert_eq!(
            exports,
            BTreeSet::from(["backstop:strategy/policy@0.1.0".to_owned()]),
            "{name}"
        );
        for import in &imports {
            let ours = import.starts_with("backstop:strategy/") && import.ends_with("@0.1.0");
            // What the start-up of std links in, used or not.
            let wasi = import.starts_with("wasi:cli/") || import.starts_with("wasi:io/");
            assert!(ours || wasi, "{name} imports {import}");
        }
    }
}
