use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use redb::StorageBackend;

use super::*;

async fn state(store: &StateStore, name: &str) -> State {
    let store = store.clone();
    let state = store.state("p", name.into(), 1 << 20, 1 << 10).await;
    state.unwrap()
}

fn number(state: &State, key: &str) -> Option<u64> {
    let value = state.get(key)?;
    Some(String::from_utf8(value).unwrap().parse().unwrap())
}

#[tokio::test]
async fn what_was_set_is_there_after_a_restart_and_what_was_deleted_or_has_ended_is_not() {
    let folder = tempfile::tempdir().unwrap();
    {
        let store = StateStore::open(folder.path()).unwrap();
        let one = state(&store, "one").await;
        one.set("for good", b"1".to_vec(), None).unwrap();
        one.set("for long", b"2".to_vec(), Some(3_600_000)).unwrap();
        one.set("for short", b"3".to_vec(), Some(1)).unwrap();
        one.set("deleted", b"4".to_vec(), None).unwrap();
        assert!(one.delete("deleted"));
        one.increment("count", 5, None).unwrap();
        let other = state(&store, "other").await;
        other.set("for good", vec![9], None).unwrap();
    }
    std::thread::sleep(Duration::from_millis(5));
    let store = StateStore::open(folder.path()).unwrap();
    let one = state(&store, "one").await;
    let held: Vec<_> = one.list().into_iter().map(|(key, _)| key).collect();
    assert_eq!(held, ["count", "for good", "for long"]);
    assert_eq!(one.increment("count", 1, None), Ok(6));
    let other = state(&store, "other").await;
    assert_eq!(other.list(), [("for good".to_owned(), vec![9])]);
    let prefix = state(&store, "on").await;
    assert_eq!(prefix.list(), [], "a name is not a prefix");
}

#[tokio::test]
async fn the_quota_counts_what_an_earlier_run_has_left() {
    let folder = tempfile::tempdir().unwrap();
    let small = async |store: StateStore| store.state("p", "s".into(), 200, 100).await.unwrap();
    {
        let kept = small(StateStore::open(folder.path()).unwrap()).await;
        kept.set("a", vec![0; 100], None).unwrap();
    }
    let kept = small(StateStore::open(folder.path()).unwrap()).await;
    let refused = kept.set("b", vec![0; 100], None);
    assert!(refused.is_err());
    assert!(kept.delete("a"));
    assert_eq!(kept.set("b", vec![0; 100], None), Ok(()));
}

#[tokio::test]
async fn a_strategy_that_takes_the_place_of_another_of_its_name_sees_its_state_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let store = StateStore::open(folder.path()).unwrap();
    let old = state(&store, "s").await;
    old.increment("n", 1, None).unwrap();
    let new = state(&store, "s").await;
    assert_eq!(new.increment("n", 1, None), Ok(2));
    assert_eq!(old.increment("n", 1, None), Ok(3), "while both are in use");
    drop((old, new));
    assert_eq!(state(&store, "s").await.increment("n", 1, None), Ok(4));
}

#[tokio::test]
async fn changes_reach_the_disk_by_themselves() {
    let (folder, after) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = StateStore::open(folder.path()).unwrap();
    let before = state(&store, "s").await;
    before.set("k", b"v".to_vec(), None).unwrap();
    // What lies on the disk while the program runs is what its death would leave.
    let mut found = Vec::new();
    for _ in 0..100 {
        std::thread::sleep(GATHER);
        std::fs::copy(folder.path().join(FILE), after.path().join(FILE)).unwrap();
        // A copy made in the middle of a write may be no database.
        let Ok(copy) = StateStore::open(after.path()) else {
            continue;
        };
        found = state(&copy, "s").await.list();
        if !found.is_empty() {
            break;
        }
    }
    assert_eq!(found, [("k".to_owned(), b"v".to_vec())]);
}

/// Runs itself once more, to have another process that uses the folder.
#[tokio::test]
#[allow(clippy::print_stdout, reason = "its parent listens")]
async fn two_programs_never_share_a_folder_and_what_a_killed_one_has_written_is_found() {
    const CHILD: &str = "BACKSTOP_TEST_STATE_FOLDER";
    const TEST: &str =
        "two_programs_never_share_a_folder_and_what_a_killed_one_has_written_is_found";
    if let Some(folder) = std::env::var_os(CHILD) {
        let store = StateStore::open(Path::new(&folder)).unwrap();
        state(&store, "s").await.increment("n", 7, None).unwrap();
        assert!(store.flush());
        // Lines of its own, whatever the test's program writes.
        println!("\nwritten");
        // Until it is killed.
        let _ = std::io::stdin().read(&mut [0]);
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let module = module_path!().split_once("::").unwrap().1;
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", &format!("{module}::{TEST}")])
        .env(CHILD, folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let said = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut said = said.map(Result::unwrap);
    assert!(said.any(|line| line == "written"));
    let refused = StateStore::open(folder.path()).unwrap_err();
    assert!(
        matches!(refused, StateStoreError::InUse { .. }),
        "{refused}"
    );
    child.kill().unwrap();
    child.wait().unwrap();
    let store = StateStore::open(folder.path()).unwrap();
    assert_eq!(number(&state(&store, "s").await, "n"), Some(7));
}

#[tokio::test]
async fn it_is_waited_for_a_program_that_is_about_to_end() {
    let folder = tempfile::tempdir().unwrap();
    let ending = StateStore::open(folder.path()).unwrap();
    let end = std::thread::spawn(move || {
        std::thread::sleep(GATHER * 3);
        drop(ending);
    });
    let store = StateStore::open(folder.path());
    end.join().unwrap();
    assert!(store.is_ok(), "{store:?}");
}

#[test]
fn a_missing_folder_and_a_file_that_is_no_database_are_refused_by_name_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let refusal = |folder: &Path| {
        let error = StateStore::open(folder).unwrap_err();
        assert!(error.source().is_some(), "{error}");
        error.to_string()
    };
    assert!(refusal(&folder.path().join("missing")).contains("missing"));
    let file = folder.path().join(FILE);
    std::fs::write(&file, "no database at all").unwrap();
    let text = refusal(folder.path());
    assert!(
        text.contains(FILE) && text.contains("move the file away"),
        "{text}"
    );
    assert_eq!(std::fs::read(&file).unwrap(), b"no database at all");
}

#[tokio::test]
async fn a_torn_or_damaged_file_is_refused_or_holds_what_was_written_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let (file, mut written) = (folder.path().join(FILE), Vec::new());
    {
        let store = StateStore::open(folder.path()).unwrap();
        let kept = state(&store, "s").await;
        for at in 0..200 {
            let value = format!("value {at}").into_bytes();
            kept.set(&format!("key {at:03}"), value, None).unwrap();
        }
        written.extend(kept.list());
    }
    let whole = std::fs::read(&file).unwrap();
    let chance = crate::random::seeded(1);
    let somewhere = || usize::try_from(chance() % whole.len() as u64).unwrap();
    let (mut refused, mut good) = (0, 0);
    for round in 0..120 {
        let mut torn = whole.clone();
        match round % 3 {
            // Never empty: that would be a new file.
            0 => torn.truncate(somewhere().max(1)),
            1 => {
                for _ in 0..8 {
                    torn[somewhere()] ^= 0x10;
                }
            }
            _ => {
                let from = somewhere() / 512 * 512;
                let to = (from + 8192).min(torn.len());
                torn[from..to].fill(0);
            }
        }
        std::fs::write(&file, torn).unwrap();
        let Ok(store) = StateStore::open(folder.path()) else {
            refused += 1;
            continue;
        };
        match store.state("p", "s".into(), 1 << 20, 1 << 10).await {
            Ok(kept) => {
                assert_eq!(kept.list(), written, "round {round}");
                good += 1;
            }
            Err(error) => {
                assert!(error.to_string().contains("state"), "{error}");
                refused += 1;
            }
        }
    }
    assert!(refused > 0 && good > 0, "{refused} refused, {good} good");
}

/// A disk that keeps for sure only what was synced, and may break.
#[derive(Debug, Default)]
struct Disk {
    content: Mutex<Content>,
    is_broken: AtomicBool,
}

#[derive(Debug, Default)]
struct Content {
    /// What a reader sees.
    seen: Vec<u8>,
    /// What would be there after a power cut, whatever happens.
    lasting: Vec<u8>,
    /// What was written since.
    since: Vec<(usize, Vec<u8>)>,
    /// Operations until the power is cut.
    left: Option<u32>,
    /// What the power cut has left.
    image: Option<Vec<u8>>,
    chance: u64,
}

impl Content {
    fn next(&mut self) -> u64 {
        // xorshift64
        self.chance ^= self.chance << 13;
        self.chance ^= self.chance >> 7;
        self.chance ^= self.chance << 17;
        self.chance
    }

    /// Each write since the last sync is on the disk, or not, or as far as some sector.
    fn power_cut(&mut self) {
        let mut image = self.lasting.clone();
        for (at, data) in std::mem::take(&mut self.since) {
            let keep = match self.next() % 3 {
                0 => 0,
                1 => data.len(),
                _ => usize::try_from(self.next()).unwrap() % data.len().max(1) / 512 * 512,
            };
            image.resize(image.len().max(at + keep), 0);
            image[at..at + keep].copy_from_slice(&data[..keep]);
        }
        self.image = Some(image);
    }

    fn operation(&mut self) {
        if let Some(left) = &mut self.left {
            *left -= 1;
            if *left == 0 {
                self.left = None;
                self.power_cut();
            }
        }
    }
}

impl Disk {
    fn with(image: Vec<u8>) -> Arc<Self> {
        let content = Content {
            seen: image.clone(),
            lasting: image,
            ..Content::default()
        };
        Arc::new(Self {
            content: Mutex::new(content),
            is_broken: AtomicBool::new(false),
        })
    }

    fn store(self: &Arc<Self>) -> StateStore {
        let disk = self.clone();
        let opener: Opener =
            Box::new(move |builder| builder.create_with_backend(Port(disk.clone())));
        StateStore::of(Kept::open("disk".into(), opener).unwrap()).unwrap()
    }

    fn change(&self, change: impl FnOnce(&mut Content)) -> std::io::Result<()> {
        if self.is_broken.load(Ordering::Relaxed) {
            return Err(std::io::Error::other("broken"));
        }
        let mut content = self.content.lock().unwrap();
        change(&mut content);
        content.operation();
        Ok(())
    }
}

#[derive(Debug)]
struct Port(Arc<Disk>);

impl StorageBackend for Port {
    fn len(&self) -> std::io::Result<u64> {
        Ok(self.0.content.lock().unwrap().seen.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        let offset = usize::try_from(offset).unwrap();
        let content = self.0.content.lock().unwrap();
        let there = content.seen.get(offset..offset + out.len());
        out.copy_from_slice(there.ok_or(std::io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        let len = usize::try_from(len).unwrap();
        // A file's length is changed at once: a journal keeps it.
        self.0.change(|content| {
            content.seen.resize(len, 0);
            content.lasting.resize(len, 0);
        })
    }

    fn sync_data(&self) -> std::io::Result<()> {
        self.0.change(|content| {
            content.lasting = content.seen.clone();
            content.since.clear();
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        let at = usize::try_from(offset).unwrap();
        self.0.change(|content| {
            content.seen[at..at + data.len()].copy_from_slice(data);
            content.since.push((at, data.to_vec()));
        })
    }
}

#[tokio::test]
async fn after_a_power_cut_at_any_moment_what_was_flushed_is_there_and_nothing_is_half_done() {
    let mut cuts = 0;
    for seed in 1..=150 {
        let disk = Disk::with(Vec::new());
        let (mut flushed, mut last) = (0, 0);
        let store = disk.store();
        let (one, other) = (state(&store, "one").await, state(&store, "other").await);
        {
            let mut content = disk.content.lock().unwrap();
            content.chance = seed * 0x9e37_79b9;
            let left = content.next() % 40;
            content.left = Some(u32::try_from(left).unwrap() + 1);
        }
        for n in 1..=12 {
            last = n;
            // Both are in one transaction: the writer begins when it is told of the first, but it
            // waits for more before it writes.
            one.set("n", n.to_string().into_bytes(), None).unwrap();
            other.set("n", n.to_string().into_bytes(), None).unwrap();
            assert!(store.flush());
            if disk.content.lock().unwrap().image.is_some() {
                break;
            }
            flushed = n;
        }
        let Some(image) = disk.content.lock().unwrap().image.take() else {
            continue;
        };
        cuts += 1;
        let store = Disk::with(image).store();
        let (one, other) = (state(&store, "one").await, state(&store, "other").await);
        let found = number(&one, "n").unwrap_or_default();
        assert!(
            found == flushed || found == last,
            "seed {seed}: {found}, and {flushed} was flushed"
        );
        assert_eq!(
            number(&other, "n").unwrap_or_default(),
            found,
            "seed {seed}"
        );
    }
    assert!(cuts > 50, "{cuts}");
}

#[tokio::test]
async fn what_a_broken_disk_refuses_is_served_from_memory_and_written_when_it_is_mended() {
    let disk = Disk::with(Vec::new());
    let store = disk.store();
    let kept = state(&store, "s").await;
    kept.set("before", b"1".to_vec(), None).unwrap();
    assert!(store.flush());
    disk.is_broken.store(true, Ordering::Relaxed);
    kept.set("meanwhile", b"2".to_vec(), None).unwrap();
    assert!(!store.flush());
    assert_eq!(number(&kept, "meanwhile"), Some(2));
    kept.increment("meanwhile", 1, None).unwrap();
    assert!(!store.flush());
    disk.is_broken.store(false, Ordering::Relaxed);
    assert!(store.flush());
    drop((kept, store));
    let image = disk.content.lock().unwrap().seen.clone();
    let kept = state(&Disk::with(image).store(), "s").await;
    assert_eq!(
        (number(&kept, "before"), number(&kept, "meanwhile")),
        (Some(1), Some(3))
    );
}
