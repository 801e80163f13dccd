//! The compile cache: what is ours saves the compilation; what was damaged, exchanged or brought from
//! elsewhere never runs, and costs a compilation.
#![cfg(feature = "component")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, dead_code)]

mod component_guest;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use backstop::strategy::Situation;
use backstop::strategy::component::{
    ComponentStrategy, LoadError, Runtime, RuntimeError, RuntimeOptions, StrategyOptions,
};
use backstop::{Failure, Kind};
use component_guest::Guest;

fn runtime(folder: &Path) -> Runtime {
    Runtime::new(RuntimeOptions::default().with_cache(folder)).unwrap()
}

async fn load(
    runtime: &Runtime,
    plugin: &str,
    bytes: &[u8],
) -> Result<Arc<ComponentStrategy>, LoadError> {
    ComponentStrategy::load(runtime, plugin, bytes.to_vec(), StrategyOptions::default()).await
}

/// Loads it in a program of its own, as it were, and lets it decide.
async fn decide(folder: &Path, bytes: &[u8]) -> backstop::strategy::component::Compilations {
    let runtime = runtime(folder);
    let strategy = load(&runtime, "p", bytes).await.unwrap();
    let situation = Situation::of(Failure::new(Kind::TIMEOUT_ERROR, "no answer"));
    assert!(strategy.decide(&situation).await.unwrap().is_some());
    runtime.compilations()
}

fn counts(compilations: backstop::strategy::component::Compilations) -> [u64; 3] {
    [
        compilations.compiled,
        compilations.from_cache,
        compilations.refused,
    ]
}

const COMPILED: [u64; 3] = [1, 0, 0];
const FOUND: [u64; 3] = [0, 1, 0];
const REFUSED: [u64; 3] = [1, 0, 1];

/// The entries of a cache: all its files but the key.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let inside = folder.join("components-1");
    let mut list: Vec<_> = std::fs::read_dir(inside)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap() != "key")
        .collect();
    list.sort();
    list
}

fn entry(folder: &Path) -> PathBuf {
    let list = entries(folder);
    assert_eq!(list.len(), 1, "{list:?}");
    list[0].clone()
}

#[tokio::test]
async fn a_component_is_compiled_once_and_then_found() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = Guest::default().build();
    assert_eq!(counts(decide(folder.path(), &bytes).await), COMPILED);
    assert_eq!(counts(decide(folder.path(), &bytes).await), FOUND);
    entry(folder.path());
}

#[tokio::test]
async fn an_entry_with_any_bit_changed_or_any_byte_missing_is_compiled_again_and_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = Guest::default().build();
    decide(folder.path(), &bytes).await;
    let entry = entry(folder.path());
    let whole = std::fs::read(&entry).unwrap();
    let flipped = |at: usize| {
        let mut changed = whole.clone();
        changed[at] ^= 1 << (at % 8);
        changed
    };
    let mut damaged: Vec<Vec<u8>> = (0..8).map(|n| flipped(n * (whole.len() - 1) / 7)).collect();
    damaged.extend([0, 31, 32, whole.len() / 2, whole.len() - 1].map(|n| whole[..n].to_vec()));
    damaged.push([whole.as_slice(), b"more"].concat());
    damaged.push(vec![0; whole.len()]);
    for (case, content) in damaged.into_iter().enumerate() {
        std::fs::write(&entry, content).unwrap();
        assert_eq!(
            counts(decide(folder.path(), &bytes).await),
            REFUSED,
            "case {case}"
        );
        assert_eq!(counts(decide(folder.path(), &bytes).await), FOUND);
    }
}

#[tokio::test]
async fn an_entry_of_another_component_or_from_another_folder_is_compiled_again() {
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let bytes = Guest::default().build();
    let other = Guest {
        name: "other",
        ..Guest::default()
    }
    .build();
    decide(ours.path(), &bytes).await;
    let own = entry(ours.path());
    decide(ours.path(), &other).await;
    let list = entries(ours.path());
    let exchanged = list.iter().find(|path| **path != own).unwrap();
    std::fs::copy(exchanged, &own).unwrap();
    assert_eq!(counts(decide(ours.path(), &bytes).await), REFUSED);

    // The same component, compiled by the same program: only the key is another's.
    decide(theirs.path(), &bytes).await;
    std::fs::copy(entry(theirs.path()), &own).unwrap();
    assert_eq!(counts(decide(ours.path(), &bytes).await), REFUSED);
    assert_eq!(counts(decide(ours.path(), &bytes).await), FOUND);
}

#[tokio::test]
async fn without_its_key_or_with_one_that_others_could_read_nothing_of_a_cache_is_believed() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = Guest::default().build();
    let key = folder.path().join("components-1/key");
    decide(folder.path(), &bytes).await;
    let old = std::fs::read(&key).unwrap();
    std::fs::write(&key, "short").unwrap();
    assert_eq!(counts(decide(folder.path(), &bytes).await), REFUSED);
    let new = std::fs::read(&key).unwrap();
    assert!(new.len() == 32 && new != old);
    std::fs::remove_file(&key).unwrap();
    assert_eq!(counts(decide(folder.path(), &bytes).await), REFUSED);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;

        std::fs::set_permissions(&key, PermissionsExt::from_mode(0o644)).unwrap();
        assert_eq!(counts(decide(folder.path(), &bytes).await), REFUSED);
        let about = std::fs::metadata(&key).unwrap();
        assert_eq!(about.permissions().mode() & 0o777, 0o600);
    }
    assert_eq!(counts(decide(folder.path(), &bytes).await), FOUND);
}

#[cfg(unix)]
#[test]
fn a_folder_that_others_may_write_to_or_that_is_none_is_refused_with_a_remedy() {
    use std::os::unix::fs::PermissionsExt;

    let refusal = |folder: &Path| {
        let error = Runtime::new(RuntimeOptions::default().with_cache(folder)).unwrap_err();
        assert!(matches!(error, RuntimeError::Cache { .. }), "{error}");
        let source = std::error::Error::source(&error).unwrap().to_string();
        format!("{error}: {source}")
    };
    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().join("components-1");
    std::fs::create_dir(&inside).unwrap();
    for mode in [0o777, 0o770, 0o702] {
        std::fs::set_permissions(&inside, PermissionsExt::from_mode(mode)).unwrap();
        let text = refusal(folder.path());
        assert!(
            text.contains("others may write to it") && text.contains("chmod go-w"),
            "{mode:o}: {text}"
        );
    }
    assert!(refusal(Path::new("relative")).contains("no absolute path"));
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    refusal(&file);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_content_is_compiled_once_however_many_strategies_are_made_of_it() {
    let runtime = Runtime::new(RuntimeOptions::default()).unwrap();
    let bytes = Guest::default().build();
    let loads: Vec<_> = (0..20)
        .map(|n| {
            let (runtime, bytes) = (runtime.clone(), bytes.clone());
            tokio::spawn(async move { load(&runtime, &format!("p{n}"), &bytes).await.unwrap() })
        })
        .collect();
    let mut strategies = Vec::new();
    for load in loads {
        strategies.push(load.await.unwrap());
    }
    let compilations = runtime.compilations();
    assert_eq!((compilations.compiled, compilations.shared), (1, 19));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_plugins_start_from_the_cache_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let plugins: Arc<Vec<Vec<u8>>> = Arc::new(
        (0..100)
            .map(|n| {
                let condition = format!("i32.const {}", n + 1);
                Guest {
                    condition,
                    ..Guest::default()
                }
                .build()
            })
            .collect(),
    );
    let start = async || {
        let runtime = runtime(folder.path());
        let began = Instant::now();
        let loads: Vec<_> = (0..100)
            .map(|n| {
                let (runtime, plugins) = (runtime.clone(), plugins.clone());
                tokio::spawn(async move { load(&runtime, "p", &plugins[n]).await.unwrap() })
            })
            .collect();
        let mut strategies = Vec::new();
        for load in loads {
            strategies.push(load.await.unwrap());
        }
        (began.elapsed(), counts(runtime.compilations()))
    };
    let (_, first) = start().await;
    assert_eq!(first, [100, 0, 0]);
    let (took, second) = start().await;
    assert_eq!(second, [0, 100, 0]);
    // Half a second in a release build on an idle machine; this is neither.
    assert!(took < Duration::from_secs(10), "{took:?}");
}
