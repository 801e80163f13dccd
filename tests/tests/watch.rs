//! The plugin folder while the engine runs: what is put there takes part, what is taken away does not,
//! and no call is lost meanwhile.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use backstop::call::{Call, RepeatSafety};
use backstop::config::Config;
use backstop::event::{Event, EventKind};
use backstop::plugins::{PluginLock, WatchOptions};
use backstop::strategy::{Action, Decision, Entry, Situation, Strategy, StrategyInfo};
use backstop::{Kind, Outcome};
use backstop_tests::engines::{RUNTIME, Started, services, start_in, steps_of, taken};
use backstop_tests::plugins::{fixture, patched};
use backstop_tests::script::{Request, Script, bad, good};
use tokio::sync::broadcast::Receiver;

/// How long anything may take on a machine that is busy with other tests.
const LONG: Duration = Duration::from_secs(20);

/// A folder with a configuration and a plugin folder in it, and the engine made of them.
struct Home {
    home: tempfile::TempDir,
    started: Started,
    events: Receiver<Arc<Event>>,
}

const PREFER_C: &str = "[[strategy]]\nplugin = \"prefer-named\"\nconfig = { target = \"c\" }\n";

/// Every call fails first here: neither a circuit nor a budget shall keep the strategies from being
/// asked.
const ALWAYS: &str = "[circuit]\nconsecutive_failures = 10000\nminimum_throughput = 10000\n[budget]\nreserve_per_second = 100000\n";

fn text(more: &str) -> String {
    format!(
        "plugins = \"plugins\"\n{}{ALWAYS}{more}",
        services(&["a", "b", "c"])
    )
}

fn put(folder: &Path, name: &str, bytes: &[u8]) {
    // Under a name that is nobody's, then renamed: as a careful program does.
    let unfinished = folder.join(format!(".{name}"));
    std::fs::write(&unfinished, bytes).unwrap();
    std::fs::rename(unfinished, folder.join(name)).unwrap();
}

/// The same strategy in other words, so another file.
fn reworded() -> Vec<u8> {
    patched(&fixture("prefer-named"), " is preferred", " is the first")
}

impl Home {
    async fn new(files: &[(&str, &[u8])], text: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("plugins");
        std::fs::create_dir(&folder).unwrap();
        for (name, bytes) in files {
            put(&folder, name, bytes);
        }
        let started = start_in(home.path(), text).await;
        let events = started.engine.subscribe();
        Self {
            home,
            started,
            events,
        }
    }

    fn folder(&self) -> PathBuf {
        self.home.path().join("plugins")
    }

    fn put(&self, name: &str, bytes: &[u8]) {
        put(&self.folder(), name, bytes);
    }

    fn remove(&self, name: &str) {
        std::fs::remove_file(self.folder().join(name)).unwrap();
    }

    /// The next event about a strategy: what happened, and to whom or why.
    async fn next(&mut self) -> (&'static str, String) {
        tokio::time::timeout(LONG, async {
            loop {
                let event = self.events.recv().await.unwrap();
                match &event.what {
                    EventKind::StrategyLoaded { strategy, .. } => {
                        return ("loaded", strategy.to_string());
                    }
                    EventKind::StrategyReloaded { strategy, .. } => {
                        return ("reloaded", strategy.to_string());
                    }
                    EventKind::StrategyRemoved { strategy, .. } => {
                        return ("removed", strategy.to_string());
                    }
                    EventKind::StrategyRejected { reason, .. } => {
                        return ("rejected", reason.clone());
                    }
                    _ => {}
                }
            }
        })
        .await
        .expect("nothing happened")
    }

    async fn expect(&mut self, what: &'static str, who: &str) {
        assert_eq!(self.next().await, (what, who.to_owned()));
    }

    async fn expect_rejected(&mut self, parts: &[&str]) {
        let (what, why) = self.next().await;
        assert_eq!(what, "rejected", "{why}");
        for part in parts {
            assert!(why.contains(part), "no {part:?} in: {why}");
        }
    }

    fn has(&self, name: &str) -> bool {
        self.started.engine.strategies().get(name).is_some()
    }

    /// Who saved a call whose best target refuses the connection, and why.
    async fn save(&self) -> (String, String) {
        let outcome = save(&self.started).await;
        let steps = steps_of(&outcome);
        let reason = steps
            .iter()
            .find(|(_, verdict, _)| *verdict == "taken")
            .map(|(_, _, reason)| reason.clone());
        (outcome.served_by.unwrap().to_string(), reason.unwrap())
    }
}

async fn save(started: &Started) -> Outcome<String> {
    let script = Script::default()
        .on("a", bad(Kind::CONNECTION_ERROR))
        .on("b", good("b's"))
        .on("c", good("c's"));
    let call = Call::new("g", "search").repeat_safety(RepeatSafety::ReadOnly);
    let request = Request::new("search", "{}");
    started.engine.call(&script, call, &request).await.unwrap()
}

#[tokio::test]
async fn what_is_added_replaced_renamed_and_removed_takes_effect_within_a_second() {
    let mut home = Home::new(&[], &text("")).await;
    let _watch = home.started.set.watch(WatchOptions::default());
    let prefer = fixture("prefer-named");
    // A strategy without a required configuration, so that it may have any name.
    let stock = stock("fail-fast");
    let mut took = Vec::new();
    for _ in 0..3 {
        let began = Instant::now();
        home.put("mine.wasm", stock);
        home.expect("loaded", "mine").await;
        took.push(began.elapsed());
        assert!(home.has("mine"));

        home.put("mine.wasm", &reworded_stock());
        home.expect("reloaded", "mine").await;

        std::fs::rename(
            home.folder().join("mine.wasm"),
            home.folder().join("yours.wasm"),
        )
        .unwrap();
        home.expect("loaded", "yours").await;
        home.expect("removed", "mine").await;

        let began = Instant::now();
        home.remove("yours.wasm");
        home.expect("removed", "yours").await;
        took.push(began.elapsed());
        assert_eq!(home.started.strategies().len(), 6);
    }
    // The best of them shows what it takes; the others may have waited for the machine.
    assert!(
        *took.iter().min().unwrap() < Duration::from_secs(1),
        "{took:?}"
    );

    // A plugin that does not run without a configuration says so.
    home.put("prefer-named.wasm", &prefer);
    home.expect_rejected(&["prefer-named", "config.target"])
        .await;
}

fn stock(name: &str) -> &'static [u8] {
    let all = backstop::strategy::component::stock();
    all.iter().find(|(known, _)| *known == name).unwrap().1
}

fn reworded_stock() -> Vec<u8> {
    // A custom section changes the file and nothing else.
    let mut bytes = stock("fail-fast").to_vec();
    bytes.extend([0, 4, 1, b'x', b'y', b'z']);
    bytes
}

#[tokio::test]
async fn an_entry_whose_file_is_missing_takes_part_when_it_appears_and_not_after_it_is_gone() {
    let mut home = Home::new(&[], &text(PREFER_C)).await;
    let _watch = home.started.set.watch(WatchOptions::default());
    assert_eq!(home.started.diagnostics.len(), 1);
    assert_eq!(home.save().await.0, "b");

    home.put("prefer-named.wasm", &fixture("prefer-named"));
    home.expect("loaded", "prefer-named").await;
    assert_eq!(home.started.set.diagnostics().await, []);
    assert_eq!(home.save().await, ("c".into(), "c is preferred".into()));

    home.put("prefer-named.wasm", &reworded());
    home.expect("reloaded", "prefer-named").await;
    assert_eq!(home.save().await, ("c".into(), "c is the first".into()));

    home.remove("prefer-named.wasm");
    home.expect("removed", "prefer-named").await;
    assert_eq!(home.save().await.0, "b");
    let said = home.started.set.diagnostics().await[0].to_string();
    assert!(said.contains("there is no plugin"), "{said}");
}

#[tokio::test]
async fn a_bad_replacement_keeps_the_old_one_and_says_why_once() {
    let good = fixture("prefer-named");
    let mut home = Home::new(&[("prefer-named.wasm", &good)], &text(PREFER_C)).await;
    let _watch = home.started.set.watch(WatchOptions::default());
    for (bytes, says) in [
        (b"# notes".to_vec(), "not a WebAssembly file"),
        (good[..good.len() / 2].to_vec(), "damaged"),
        (stock("retry").to_vec(), "config.target"),
        (Vec::new(), "not a WebAssembly file"),
    ] {
        home.put("prefer-named.wasm", &bytes);
        home.expect_rejected(&["plugin prefer-named", says]).await;
        assert_eq!(home.save().await.0, "c", "the old one decides");
        assert_eq!(home.started.set.diagnostics().await.len(), 1);
    }
    // It is told once, however often the folder is looked at.
    home.started.set.refresh().await;
    home.put("other.wasm", stock("fail-fast"));
    home.expect("loaded", "other").await;

    home.put("prefer-named.wasm", &reworded());
    home.expect("reloaded", "prefer-named").await;
    assert_eq!(home.started.set.diagnostics().await, []);
    assert_eq!(home.save().await.1, "c is the first");
}

#[tokio::test]
async fn a_file_written_in_pieces_is_waited_for() {
    let bytes = fixture("prefer-named");
    let mut home = Home::new(&[], &text(PREFER_C)).await;
    let _watch = home.started.set.watch(WatchOptions::default());
    for _ in 0..5 {
        let path = home.folder().join("prefer-named.wasm");
        let pieces: Vec<Vec<u8>> = bytes.chunks(bytes.len() / 8).map(<[u8]>::to_vec).collect();
        let longest = tokio::task::spawn_blocking(move || {
            use std::io::Write;
            let mut file = std::fs::File::create(path).unwrap();
            let mut longest = Duration::ZERO;
            for piece in pieces {
                let began = Instant::now();
                std::thread::sleep(Duration::from_millis(120));
                file.write_all(&piece).unwrap();
                longest = longest.max(began.elapsed());
            }
            longest
        });
        let next = home.next().await;
        if longest.await.unwrap() < Duration::from_millis(350) {
            assert_eq!(next, ("loaded", "prefer-named".into()));
            assert_eq!(home.save().await.0, "c");
            return;
        }
        // The machine made the writer pause for too long to tell it from one that has finished.
        home.remove("prefer-named.wasm");
        while home.has("prefer-named") {
            home.next().await;
        }
        home.started.set.refresh().await;
        while home.events.try_recv().is_ok() {}
    }
    panic!("the machine is too busy for this test");
}

#[tokio::test]
async fn a_half_written_file_that_stays_is_refused_and_taken_when_it_is_complete() {
    let bytes = fixture("prefer-named");
    let (half, rest) = bytes.split_at(bytes.len() / 2);
    let mut home = Home::new(&[], &text(PREFER_C)).await;
    let _watch = home.started.set.watch(WatchOptions::default());
    let path = home.folder().join("prefer-named.wasm");
    std::fs::write(&path, half).unwrap();
    home.expect_rejected(&["damaged or incomplete"]).await;
    std::fs::write(&path, [half, rest].concat()).unwrap();
    home.expect("loaded", "prefer-named").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_is_lost_while_plugins_come_change_and_go() {
    let mut home = Home::new(&[], &text(PREFER_C)).await;
    let watch = home.started.set.watch(WatchOptions::default());
    let engine = home.started.engine.clone();
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let callers: Vec<_> = (0..4)
        .map(|_| {
            let (engine, stop) = (engine.clone(), stop.clone());
            tokio::spawn(async move {
                let (mut calls, mut by_c) = (0_u32, 0_u32);
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let script = Script::default()
                        .on("a", bad(Kind::CONNECTION_ERROR))
                        .on("b", good("b's"))
                        .on("c", good("c's"));
                    let call = Call::new("g", "search").repeat_safety(RepeatSafety::ReadOnly);
                    let request = Request::new("search", "{}");
                    let outcome = engine.call(&script, call, &request).await;
                    by_c += u32::from(outcome.unwrap().served_by.as_deref() == Some("c"));
                    calls += 1;
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                (calls, by_c)
            })
        })
        .collect();
    let (first, second) = (fixture("prefer-named"), reworded());
    for round in 0..4 {
        home.put("prefer-named.wasm", &first);
        let _ = home.next().await;
        home.put("prefer-named.wasm", &second);
        home.expect("reloaded", "prefer-named").await;
        if round == 2 {
            home.remove("prefer-named.wasm");
            home.expect("removed", "prefer-named").await;
        }
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    for caller in callers {
        let (calls, by_c) = caller.await.unwrap();
        assert!(
            calls > 10 && by_c > 0,
            "{calls} calls, {by_c} saved by the plugin"
        );
    }
    drop(watch);
}

async fn reconfigure(home: &Home, text: &str) -> backstop::plugins::Plan {
    let file = home.home.path().join("backstop.toml");
    let loaded = Config::parse(text, &file, &|_| None);
    assert_eq!(loaded.diagnostics, []);
    home.started.set.plan(Arc::new(loaded.config), &file).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_decision_under_way_finishes_on_the_strategy_it_began_with() {
    let more = "[[strategy]]\nplugin = \"mine\"\nconfig = { when = \"condition\", how = \"loop\" }\nlimits = { decision_deadline = \"3s\" }\n\
                [[strategy]]\nplugin = \"service-failover\"\nconfig = { kinds = [\"Hostile\"] }\n";
    let mut home = Home::new(&[("mine.wasm", &fixture("misbehave"))], &text(more)).await;
    assert_eq!(home.started.diagnostics, []);
    let engine = home.started.engine.clone();
    let call = tokio::spawn(async move {
        let script = Script::default()
            .on("a", bad(Kind::new("Hostile")))
            .on("b", good("b's"));
        let call = Call::new("g", "search").repeat_safety(RepeatSafety::ReadOnly);
        let request = Request::new("search", "{}");
        engine.call(&script, call, &request).await.unwrap()
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    home.remove("mine.wasm");
    home.started.set.refresh().await;
    home.expect("removed", "mine").await;
    assert!(!call.is_finished());
    let outcome = call.await.unwrap();
    let steps = steps_of(&outcome);
    assert_eq!((&*steps[0].0, steps[0].1), ("mine", "faulted"));
    assert!(
        steps[0].2.contains("did not decide within"),
        "{}",
        steps[0].2
    );
    assert_eq!(taken(&steps), ["service-failover"]);
}

#[cfg(unix)]
#[tokio::test]
async fn links_pipes_folders_and_odd_names_are_refused_and_hide_nothing() {
    let mut home = Home::new(&[], &text("")).await;
    let outside = home.home.path().join("outside.wasm");
    std::fs::write(&outside, stock("fail-fast")).unwrap();
    let folder = home.folder();
    std::os::unix::fs::symlink(&outside, folder.join("absolute.wasm")).unwrap();
    std::os::unix::fs::symlink("../outside.wasm", folder.join("dots.wasm")).unwrap();
    std::os::unix::fs::symlink("loop.wasm", folder.join("loop.wasm")).unwrap();
    std::os::unix::fs::symlink("/dev/zero", folder.join("zero.wasm")).unwrap();
    std::fs::create_dir(folder.join("folder.wasm")).unwrap();
    home.put("up\\over.wasm", stock("fail-fast"));
    home.put("inside.wasm", stock("fail-fast"));
    std::os::unix::fs::symlink("inside.wasm", folder.join("link.wasm")).unwrap();
    let made = std::process::Command::new("mkfifo")
        .arg(folder.join("pipe.wasm"))
        .status();
    assert!(made.unwrap().success());

    let changes = home.started.set.refresh().await;
    assert_eq!(changes.diagnostics.len(), 7, "{:#?}", changes.diagnostics);
    home.expect("loaded", "inside").await;
    home.expect("loaded", "link").await;
    let mut said = Vec::new();
    for _ in 0..7 {
        let (what, why) = home.next().await;
        assert_eq!(what, "rejected");
        said.push(why);
    }
    let says = |name: &str, part: &str| {
        let about = said.iter().find(|said| said.contains(name)).unwrap();
        assert!(about.contains(part), "{about}");
    };
    says("absolute.wasm", "leads out of the plugin folder");
    says("dots.wasm", "leads out of the plugin folder");
    says("zero.wasm", "leads out of the plugin folder");
    says("folder.wasm", "it is not a file");
    says("pipe.wasm", "it is not a file");
    says("loop.wasm", "cannot be read");
    says("over.wasm", "rename it");
    assert_eq!(home.started.strategies().len(), 8);
}

#[tokio::test]
async fn a_folder_of_ten_thousand_files_is_looked_at_in_time_and_copies_are_compiled_once() {
    const COPIES: usize = 300;
    let mut home = Home::new(&[], &format!("stock = false\n{}", text(""))).await;
    let folder = home.folder();
    for n in 0..10_000 {
        std::fs::write(folder.join(format!("notes-{n}.txt")), "").unwrap();
    }
    let first = folder.join("copy-0.wasm");
    // A content no other test of this program uses.
    let mut bytes = reworded_stock();
    bytes.extend([0, 3, 1, b'q', b'q']);
    std::fs::write(&first, bytes).unwrap();
    for n in 1..COPIES {
        std::fs::hard_link(&first, folder.join(format!("copy-{n}.wasm"))).unwrap();
    }
    let changes = home.started.set.refresh().await;
    assert_eq!(changes.diagnostics, []);
    assert_eq!(changes.events.len(), COPIES);
    // Other tests of this program have theirs among them.
    let compiled = RUNTIME.compilations().in_use;
    assert!(compiled < 50, "{compiled} compiled components");

    let began = Instant::now();
    let changes = home.started.set.refresh().await;
    assert!(changes.events.is_empty());
    let took = began.elapsed();
    assert!(
        took < Duration::from_secs(2),
        "a look that finds nothing new: {took:?}"
    );

    let _watch = home.started.set.watch(WatchOptions::default());
    while home.events.try_recv().is_ok() {}
    home.remove("copy-7.wasm");
    home.expect("removed", "copy-7").await;
}

#[tokio::test]
async fn a_folder_that_goes_away_changes_nothing_and_one_in_its_place_is_taken() {
    let prefer = fixture("prefer-named");
    let mut home = Home::new(&[("prefer-named.wasm", &prefer)], &text(PREFER_C)).await;
    let _watch = home.started.set.watch(WatchOptions::default());
    let away = home.home.path().join("away");
    std::fs::rename(home.folder(), &away).unwrap();
    tokio::time::timeout(LONG, async {
        while home.started.set.diagnostics().await.is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
    let said = home.started.set.diagnostics().await[0].to_string();
    assert!(
        said.contains("plugins") && said.contains("cannot be read"),
        "{said}"
    );
    assert_eq!(home.save().await.0, "c");

    std::fs::create_dir(home.folder()).unwrap();
    home.put("prefer-named.wasm", &reworded());
    // The empty folder may have been seen.
    while home.next().await.0 == "removed" {}
    assert_eq!(home.save().await.1, "c is the first");
    assert_eq!(home.started.set.diagnostics().await, []);
}

#[tokio::test]
async fn a_file_named_like_a_stock_strategy_stands_in_for_it_and_gives_it_back() {
    let mut home = Home::new(&[], &text("")).await;
    home.put("fail-fast.wasm", &reworded_stock());
    home.started.set.refresh().await;
    home.expect("reloaded", "fail-fast").await;
    home.put("fail-fast.wasm", b"broken");
    home.started.set.refresh().await;
    home.expect_rejected(&["fail-fast"]).await;
    assert!(home.has("fail-fast"));
    home.remove("fail-fast.wasm");
    home.started.set.refresh().await;
    home.expect("reloaded", "fail-fast").await;

    // The same at the start: a bad file does not take the stock strategy away.
    let home = Home::new(&[("retry.wasm", b"broken")], &text("")).await;
    assert_eq!(home.started.diagnostics.len(), 1);
    assert_eq!(home.started.strategies().len(), 6);
}

#[tokio::test]
async fn only_what_the_lock_names_takes_part() {
    let prefer = fixture("prefer-named");
    let home = tempfile::tempdir().unwrap();
    let (folder, lock) = (
        home.path().join("plugins"),
        home.path().join("plugins.lock"),
    );
    std::fs::create_dir(&folder).unwrap();
    put(&folder, "prefer-named.wasm", &prefer);
    let locked = format!("plugins_lock = \"plugins.lock\"\n{}", text(PREFER_C));

    // Without the file nothing of the folder is trusted.
    let started = start_in(home.path(), &locked).await;
    assert_eq!(started.diagnostics.len(), 1, "{:#?}", started.diagnostics);
    assert!(started.diagnostics[0].to_string().contains("plugins.lock"));
    assert_eq!(started.strategies().len(), 6);

    PluginLock::of_folder(&folder)
        .unwrap()
        .write(&lock)
        .unwrap();
    let started = start_in(home.path(), &locked).await;
    assert_eq!(started.diagnostics, []);
    let mut home = Home {
        events: started.engine.subscribe(),
        started,
        home,
    };
    let _watch = home.started.set.watch(WatchOptions::default());
    assert_eq!(home.save().await.0, "c");

    // Another content is refused, and what ran goes on.
    home.put("prefer-named.wasm", &reworded());
    home.expect_rejected(&["prefer-named", "SHA-256", "plugins.lock"])
        .await;
    assert_eq!(home.save().await.1, "c is preferred");
    // One it does not name is refused, stock or not.
    home.put("fail-fast.wasm", &reworded_stock());
    home.expect_rejected(&["fail-fast", "does not name it"])
        .await;
    assert!(home.has("fail-fast"), "the stock one");
    // A lock that is damaged lets nothing in and takes nothing away.
    let good = std::fs::read(&lock).unwrap();
    std::fs::write(&lock, "version = 7").unwrap();
    tokio::time::timeout(LONG, async {
        let is_damaged = |said: &backstop::config::Diagnostic| said.message.contains("damaged");
        while !home.started.set.diagnostics().await.iter().any(is_damaged) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
    assert_eq!(home.save().await.1, "c is preferred");
    std::fs::write(&lock, good).unwrap();

    // The lock is written again: both are taken.
    PluginLock::of_folder(&folder)
        .unwrap()
        .write(&lock)
        .unwrap();
    tokio::time::timeout(LONG, async {
        while home.save().await.1 != "c is the first" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
    // A plugin it names no more ends.
    let mut lock_of = PluginLock::of_folder(&folder).unwrap();
    lock_of.plugins.remove("prefer-named");
    lock_of.write(&lock).unwrap();
    tokio::time::timeout(LONG, async {
        while home.has("prefer-named") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
    assert_eq!(home.save().await.0, "b");
}

#[tokio::test]
async fn a_lock_that_is_no_path_lets_nothing_in() {
    let prefer = fixture("prefer-named");
    let broken = format!("plugins_lock = 7\n{}", text(PREFER_C));
    let home = Home::new(&[("prefer-named.wasm", &prefer)], &broken).await;
    assert!(!home.has("prefer-named"));
    assert!(
        home.started.diagnostics[0]
            .to_string()
            .contains("plugins_lock")
    );
}

/// A strategy of the program itself.
struct Own;

impl Strategy for Own {
    fn info(&self) -> StrategyInfo {
        StrategyInfo::new("own", "service")
    }
    fn condition(&self, _: &Situation) -> bool {
        false
    }
    fn action(&self, _: &Situation) -> Decision {
        Decision::new(Action::Decline, "")
    }
}

#[tokio::test]
async fn strategies_of_the_program_itself_are_left_alone() {
    let mut home = Home::new(&[], &text("")).await;
    let own = Entry::native(Own).unwrap();
    home.started.engine.strategies().add(own).unwrap();
    home.put("own.wasm", stock("fail-fast"));
    home.started.set.refresh().await;
    home.expect_rejected(&["a strategy named \"own\" of its own"])
        .await;
    let is_native = |home: &Home| {
        let entry = home.started.engine.strategies().get("own").unwrap();
        entry.as_component().is_none()
    };
    assert!(is_native(&home));
    home.remove("own.wasm");
    home.started.set.refresh().await;
    assert!(is_native(&home));

    // The name becomes free, and nothing about the file has changed.
    home.put("own.wasm", stock("fail-fast"));
    home.started.set.refresh().await;
    home.expect_rejected(&["of its own"]).await;
    home.started.engine.strategies().remove("own");
    home.started.set.refresh().await;
    home.expect("loaded", "own").await;
}

#[tokio::test]
async fn a_plan_changes_nothing_until_it_is_committed_and_then_everything_at_once() {
    let prefer = fixture("prefer-named");
    let mut home = Home::new(&[("prefer-named.wasm", &prefer)], &text(PREFER_C)).await;
    let to_b = PREFER_C
        .replace("\"c\"", "\"b\"")
        .replace("config", "priority = 500\nconfig");
    let before = home.started.engine.strategies().list();

    let bad = text(&PREFER_C.replace("target", "torget"));
    let plan = reconfigure(&home, &bad).await;
    let said = plan.diagnostics()[0].to_string();
    assert!(said.contains("config.torget"), "{said}");
    drop(plan);
    let plan = reconfigure(&home, &text(&to_b)).await;
    assert_eq!(plan.diagnostics(), []);
    let unchanged = home.started.engine.strategies().list();
    assert!(Arc::ptr_eq(&before, &unchanged));

    let changes = plan.commit();
    assert_eq!(changes.events.len(), 1);
    home.expect("reloaded", "prefer-named").await;
    assert_eq!(home.save().await.0, "b");
    let list = home.started.engine.strategies().list();
    assert_eq!(list[0].priority(), 500);
    // What is wanted as it was is the very same as before, with its state and its record of faults.
    for entry in before
        .iter()
        .filter(|entry| &**entry.name() != "prefer-named")
    {
        assert!(list.iter().any(|other| Arc::ptr_eq(entry, other)));
    }

    // Left out, used twice, and from another folder.
    let off = text("[[strategy]]\nplugin = \"prefer-named\"\nenabled = false\n");
    reconfigure(&home, &off).await.commit();
    home.expect("removed", "prefer-named").await;
    std::fs::rename(home.folder(), home.home.path().join("moved")).unwrap();
    let twice = format!(
        "{}{}",
        PREFER_C.replace("config", "name = \"one\"\nconfig"),
        PREFER_C.replace("config", "name = \"two\"\nconfig")
    );
    let twice = text(&twice).replace("\"plugins\"", "\"moved\"");
    assert_eq!(reconfigure(&home, &twice).await.commit().events.len(), 2);
    assert!(home.has("one") && home.has("two") && !home.has("prefer-named"));
}

#[tokio::test]
async fn an_entry_and_another_plugin_of_its_name_do_not_both_take_part() {
    let prefer = fixture("prefer-named");
    let entry = PREFER_C.replace("config", "name = \"mine\"\nconfig");
    let files: &[(&str, &[u8])] = &[
        ("prefer-named.wasm", &prefer),
        ("mine.wasm", stock("fail-fast")),
    ];
    let home = Home::new(files, &text(&entry)).await;
    assert_eq!(home.started.diagnostics.len(), 1);
    let said = home.started.diagnostics[0].to_string();
    assert!(said.contains("has the name \"mine\" already"), "{said}");
    assert_eq!(home.save().await.0, "c");
}
