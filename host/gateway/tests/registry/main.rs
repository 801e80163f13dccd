//! `backstop plugin push` and `pull` against a registry that follows the OCI distribution specification,
//! and against one that lies.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    unreachable_pub
)]

mod server;

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Output;

use backstop::plugins::PluginLock;
use backstop::strategy::component::{Digest, stock};
use serde_json::{Value, json};
use server::{Registry, sha256};

fn component(name: &str) -> &'static [u8] {
    let mut all = stock().iter();
    all.find(|(stock, _)| *stock == name).unwrap().1
}

/// A folder to work in, and the registry.
struct Bench {
    home: tempfile::TempDir,
    registry: Registry,
}

impl Bench {
    async fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("retry.wasm"), component("retry")).unwrap();
        Self {
            home,
            registry: Registry::start().await,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// The reference of an artifact in the registry.
    fn reference(&self, artifact: &str) -> String {
        format!("{}/{artifact}", self.registry.host())
    }

    async fn run(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
        tokio::process::Command::new(env!("CARGO_BIN_EXE_backstop"))
            .arg("plugin")
            .args(arguments)
            .arg("--plain-http")
            .current_dir(self.home.path())
            .env("HOME", self.home.path())
            .env_remove("DOCKER_CONFIG")
            .env_remove("BACKSTOP_REGISTRY_USER")
            .env_remove("BACKSTOP_REGISTRY_PASSWORD")
            .env(
                "XDG_CACHE_HOME",
                concat!(env!("CARGO_TARGET_TMPDIR"), "/cache"),
            )
            .envs(environment.iter().copied())
            .output()
            .await
            .unwrap()
    }

    async fn good(&self, arguments: &[&str]) -> Value {
        let output = self.run(&[arguments, &["--json"]].concat(), &[]).await;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// What is said of a command that must fail.
    async fn bad(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments, &[]).await;
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    async fn push(&self, artifact: &str, file: &str) -> Value {
        self.good(&["push", &self.reference(artifact), file]).await
    }
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_pushed_has_the_layout_of_wasm_artifacts_and_is_pulled_byte_for_byte() {
    let bench = Bench::new().await;
    let pushed = bench.push("team/retry:1.0.0", "retry.wasm").await;
    {
        let held = bench.registry.held();
        let place = |reference: &str| ("team/retry".to_owned(), reference.to_owned());
        let (media_type, manifest) = &held.manifests[&place("1.0.0")];
        assert_eq!(media_type, "application/vnd.oci.image.manifest.v1+json");
        let pinned = format!("{}/team/retry@{}", bench.registry.host(), sha256(manifest));
        assert_eq!(pushed["pinned"], pinned);
        let manifest: Value = serde_json::from_slice(manifest).unwrap();
        assert_eq!(manifest["schemaVersion"], 2);
        assert_eq!(
            manifest["config"]["mediaType"],
            "application/vnd.wasm.config.v0+json"
        );
        let layers = manifest["layers"].as_array().unwrap();
        assert_eq!(layers.len(), 1);
        assert_eq!(layers[0]["mediaType"], "application/wasm");
        assert_eq!(layers[0]["digest"], sha256(component("retry")));
        let title = &manifest["annotations"]["org.opencontainers.image.title"];
        assert_eq!(title, "retry");
        let config = &held.blobs[&place(manifest["config"]["digest"].as_str().unwrap())];
        let config: Value = serde_json::from_slice(config).unwrap();
        assert_eq!(
            (
                &config["architecture"],
                &config["os"],
                &config["layerDigests"]
            ),
            (
                &json!("wasm"),
                &json!("wasip2"),
                &json!([layers[0]["digest"]])
            )
        );
        let about = &config["component"];
        assert_eq!(about["target"], "backstop:strategy/strategy@0.1.0");
        assert_eq!(about["exports"], json!(["backstop:strategy/policy@0.1.0"]));
        let imports = about["imports"].as_array().unwrap();
        assert!(
            imports
                .iter()
                .any(|it| it.as_str().unwrap().starts_with("backstop:strategy/"))
        );
        let made = config["created"].as_str().unwrap();
        assert!(made.len() == 20 && made.ends_with('Z'), "{made}");
    }
    let reference = bench.reference("team/retry:1.0.0");
    let pulled = bench
        .good(&[
            "pull",
            &reference,
            "--to",
            "plugins",
            "--lock",
            "plugins.lock",
        ])
        .await;
    assert_eq!(pulled["pinned"], pushed["pinned"]);
    assert_eq!(pulled["plugin"], "retry");
    let file = bench.path("plugins/retry.wasm");
    assert_eq!(std::fs::read(file).unwrap(), component("retry"));
    let lock = PluginLock::read(&bench.path("plugins.lock")).unwrap();
    assert_eq!(lock.plugins["retry"], Digest::of(component("retry")));
    assert_eq!(lock.plugins.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pinned_reference_gives_what_it_gave_when_the_tag_has_moved_on() {
    let bench = Bench::new().await;
    let first = bench.push("p:latest", "retry.wasm").await;
    std::fs::write(bench.path("fail-fast.wasm"), component("fail-fast")).unwrap();
    let second = bench.push("p:latest", "fail-fast.wasm").await;
    assert_ne!(first["pinned"], second["pinned"]);
    for (reference, plugin) in [
        (bench.reference("p:latest"), "fail-fast"),
        (first["pinned"].as_str().unwrap().to_owned(), "retry"),
    ] {
        let pulled = bench.good(&["pull", &reference, "--to", "out"]).await;
        assert_eq!(pulled["plugin"], plugin, "{reference}");
    }
    let text = bench
        .bad(&["push", first["pinned"].as_str().unwrap(), "retry.wasm"])
        .await;
    assert!(text.contains("push to a tag"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_registry_exchanges_is_refused_and_nothing_is_written() {
    let bench = Bench::new().await;
    let pushed = bench.push("p:1", "retry.wasm").await;
    let pinned = pushed["pinned"].as_str().unwrap().to_owned();
    let tag = bench.reference("p:1");
    let out = bench.path("out");
    std::fs::create_dir(&out).unwrap();
    let refuse = async |reference: &str| {
        let arguments = ["pull", reference, "--to", "out", "--lock", "plugins.lock"];
        let text = bench.bad(&arguments).await;
        assert!(is_empty(&out) && !bench.path("plugins.lock").exists());
        text
    };
    // Another component under the digest the manifest says.
    let place = ("p".to_owned(), sha256(component("retry")));
    let other = component("fail-fast").into();
    bench.registry.held().blobs.insert(place.clone(), other);
    for reference in [&tag, &pinned] {
        let text = refuse(reference).await;
        assert!(text.contains("sent something else than"), "{text}");
    }
    // More than the manifest says, and more than any component may have.
    let flood = vec![0; 33 << 20].into();
    bench.registry.held().blobs.insert(place.clone(), flood);
    let text = refuse(&tag).await;
    assert!(text.contains("sends more than"), "{text}");
    bench.registry.held().blobs.remove(&place);
    let text = refuse(&tag).await;
    assert!(
        text.contains("there is no") || text.contains("does not serve"),
        "{text}"
    );
    // Another manifest under the pinned digest.
    let digest = pinned.split_once('@').unwrap().1.to_owned();
    let media_type = "application/vnd.oci.image.manifest.v1+json".to_owned();
    let manifest = br#"{"schemaVersion":2}"#.as_slice().into();
    let place = ("p".to_owned(), digest);
    bench
        .registry
        .held()
        .manifests
        .insert(place, (media_type, manifest));
    let text = refuse(&pinned).await;
    assert!(text.contains("sent something else than"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_strategy_is_neither_pushed_nor_pulled() {
    let bench = Bench::new().await;
    std::fs::write(bench.path("text.wasm"), "text").unwrap();
    let text = bench
        .bad(&["push", &bench.reference("p:1"), "text.wasm"])
        .await;
    assert!(text.contains("not a WebAssembly file"), "{text}");
    assert_eq!(bench.registry.held().asked, Vec::<String>::new());

    bench.push("p:1", "retry.wasm").await;
    let change = |what: &dyn Fn(&mut Value)| {
        let mut held = bench.registry.held();
        let (media_type, content) = held.manifests[&("p".to_owned(), "1".to_owned())].clone();
        let mut manifest = serde_json::from_slice(&content).unwrap();
        what(&mut manifest);
        let changed = (media_type, manifest.to_string().into());
        held.manifests
            .insert(("p".to_owned(), "changed".to_owned()), changed);
    };
    let changed = bench.reference("p:changed");
    let image = "application/vnd.oci.image.layer.v1.tar+gzip";
    change(&|manifest| manifest["layers"][0]["mediaType"] = image.into());
    let text = bench.bad(&["pull", &changed, "--to", "out"]).await;
    assert!(
        text.contains(image) && text.contains("application/wasm"),
        "{text}"
    );
    change(&|manifest| manifest["layers"] = json!([]));
    let text = bench.bad(&["pull", &changed, "--to", "out"]).await;
    assert!(text.contains("it has the layers []"), "{text}");
    change(&|manifest| manifest["layers"][0]["size"] = (1_u64 << 40).into());
    let text = bench.bad(&["pull", &changed, "--to", "out"]).await;
    assert!(text.contains("1099511627776 bytes, and at most"), "{text}");
    change(&|manifest| *manifest = json!({"schemaVersion": 2, "manifests": []}));
    let text = bench.bad(&["pull", &changed, "--to", "out"]).await;
    assert!(text.contains("no image manifest"), "{text}");
    assert!(!bench.path("out").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_wants_to_know_who_we_are_is_told_as_docker_would() {
    let bench = Bench::new().await;
    bench.registry.held().user = Some(("me", "sesame"));
    let reference = bench.reference("p:1");
    let arguments = ["push", &reference, "retry.wasm"];
    let text = bench.bad(&arguments).await;
    assert!(
        text.contains("does not let us") && text.contains("docker login"),
        "{text}"
    );

    let wrong = [
        ("BACKSTOP_REGISTRY_USER", "me"),
        ("BACKSTOP_REGISTRY_PASSWORD", "mustard"),
    ];
    let output = bench.run(&arguments, &wrong).await;
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        !output.status.success() && text.contains("does not let us"),
        "{text}"
    );
    assert!(!text.contains("mustard"), "{text}");

    let right = [
        ("BACKSTOP_REGISTRY_USER", "me"),
        ("BACKSTOP_REGISTRY_PASSWORD", "sesame"),
    ];
    let output = bench.run(&arguments, &right).await;
    assert!(output.status.success(), "{output:?}");

    // As `docker login` leaves it.
    std::fs::create_dir(bench.path(".docker")).unwrap();
    let config = json!({ "auths": { (bench.registry.host()): { "auth": "bWU6c2VzYW1l" } } });
    std::fs::write(bench.path(".docker/config.json"), config.to_string()).unwrap();
    bench.good(&["pull", &reference, "--to", "out"]).await;

    // Where it leaves that to a helper.
    let config = json!({ "credsStore": "backstop-test" });
    std::fs::write(bench.path(".docker/config.json"), config.to_string()).unwrap();
    let helper = bench.path("docker-credential-backstop-test");
    let says = r#"{"Username":"me","Secret":"sesame"}"#;
    std::fs::write(
        &helper,
        format!("#!/bin/sh\ncat >/dev/null\necho '{says}'\n"),
    )
    .unwrap();
    std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:/usr/bin:/bin", bench.path("").display());
    let pull = ["pull", &reference, "--to", "out-2"];
    let output = bench.run(&pull, &[("PATH", &path)]).await;
    assert!(output.status.success(), "{output:?}");
    let output = bench.run(&pull, &[("PATH", "/usr/bin:/bin")]).await;
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("credential helper"), "{text}");

    std::fs::write(bench.path(".docker/config.json"), "{ bWU6c2VzYW1l").unwrap();
    let text = bench.bad(&["pull", &reference, "--to", "out"]).await;
    assert!(
        text.contains("config.json cannot be used") && !text.contains("bWU6"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_there_is_said_with_what_to_look_at() {
    let bench = Bench::new().await;
    let text = bench.bad(&["pull", &bench.reference("p:9")]).await;
    assert!(
        text.contains("there is no") && text.contains("p:9"),
        "{text}"
    );
    let text = bench.bad(&["pull", "127.0.0.1:1/p:1"]).await;
    assert!(text.contains("cannot reach 127.0.0.1:1"), "{text}");
    std::fs::write(bench.path("plugins.lock"), "no lock").unwrap();
    let text = bench
        .bad(&["pull", &bench.reference("p:9"), "--lock", "plugins.lock"])
        .await;
    assert!(text.contains("plugins.lock is damaged"), "{text}");
    let output = bench.run(&["pull", "no reference"], &[]).await;
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}
