//! Events as lines of JSON, to a file or to standard error.
//!
//! They are written by a thread of their own, so that a slow disk holds up nobody: if it falls too far
//! behind, the oldest events are left out, and a line says how many. A file that cannot be written is
//! tried again with the next event.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backstop::Engine;
use backstop::event::Event;
use serde::Serialize;
use serde_json::json;
use tokio::runtime::Handle;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Where the lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// Standard error.
    Stderr,
    /// A file, which is added to.
    File {
        /// Its path.
        path: PathBuf,
        /// How large it may grow, in bytes. A line that would make it larger begins a new file; the
        /// old one gets the suffix `.1`, the one that had it `.2`, and so on.
        max_bytes: u64,
        /// How many old files are kept.
        keep: u32,
    },
}

/// Writes the events of an engine for as long as it is held.
#[derive(Debug)]
pub struct EventLog {
    stop: CancellationToken,
    writer: JoinHandle<()>,
}

impl EventLog {
    /// Writes everything that happens from now on.
    ///
    /// # Errors
    /// If the file cannot be opened.
    ///
    /// # Panics
    /// Outside a Tokio runtime, as [`tokio::task::spawn_blocking`] does.
    pub fn start(engine: &Engine, destination: Destination) -> io::Result<Self> {
        let mut lines = Lines::open(destination)?;
        let mut events = engine.subscribe();
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let runtime = Handle::current();
        let writer = tokio::task::spawn_blocking(move || {
            loop {
                let first = runtime.block_on(stopped.run_until_cancelled(events.recv()));
                let go_on = match first {
                    Some(Ok(event)) => lines.add(&*event),
                    Some(Err(RecvError::Lagged(count))) => lines.missed(count),
                    Some(Err(RecvError::Closed)) | None => false,
                };
                lines.drain(&mut events);
                if !go_on {
                    return;
                }
            }
        });
        Ok(Self { stop, writer })
    }

    /// Writes what has happened so far, and ends.
    pub async fn end(self) {
        self.stop.cancel();
        // It fails only if the writer panicked, and then there is nothing left to wait for.
        let _ = self.writer.await;
    }
}

/// The lines, as they are written. Errors are told once, until one is written again.
struct Lines {
    destination: Destination,
    out: Option<Out>,
    is_failing: bool,
}

struct Out {
    writer: Box<dyn Write + Send>,
    bytes: u64,
}

impl Lines {
    fn open(destination: Destination) -> io::Result<Self> {
        Ok(Self {
            out: Some(Out::open(&destination)?),
            destination,
            is_failing: false,
        })
    }

    /// Writes what is there already.
    fn drain(&mut self, events: &mut Receiver<Arc<Event>>) {
        loop {
            match events.try_recv() {
                Ok(event) => self.add(&*event),
                Err(TryRecvError::Lagged(count)) => self.missed(count),
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            };
        }
        if let Some(out) = &mut self.out
            && let Err(error) = out.writer.flush()
        {
            self.failed(&error);
        }
    }

    fn missed(&mut self, count: u64) -> bool {
        self.add(&json!({ "event": "events_missed", "count": count }))
    }

    /// Adds a line. Always goes on.
    fn add(&mut self, event: &impl Serialize) -> bool {
        let written = serde_json::to_vec(event)
            .map_err(io::Error::from)
            .and_then(|mut line| {
                line.push(b'\n');
                self.write(&line)
            });
        match written {
            Ok(()) => self.is_failing = false,
            Err(error) => self.failed(&error),
        }
        true
    }

    fn failed(&mut self, error: &io::Error) {
        self.out = None;
        if !std::mem::replace(&mut self.is_failing, true) {
            tracing::error!(%error, "events cannot be written; they are lost until they can be again");
        }
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        let length = line.len() as u64;
        if let Destination::File {
            path,
            max_bytes,
            keep,
        } = &self.destination
            && let Some(out) = &mut self.out
            && out.bytes > 0
            && out.bytes.saturating_add(length) > *max_bytes
        {
            out.writer.flush()?;
            self.out = None;
            rotate(path, *keep)?;
        }
        let out = match &mut self.out {
            Some(out) => out,
            none => none.insert(Out::open(&self.destination)?),
        };
        out.writer.write_all(line)?;
        out.bytes = out.bytes.saturating_add(length);
        Ok(())
    }
}

impl Out {
    fn open(destination: &Destination) -> io::Result<Self> {
        Ok(match destination {
            Destination::Stderr => Self {
                writer: Box::new(BufWriter::new(io::stderr())),
                bytes: 0,
            },
            Destination::File { path, .. } => {
                let file: File = OpenOptions::new().create(true).append(true).open(path)?;
                let bytes = file.metadata()?.len();
                Self {
                    writer: Box::new(BufWriter::new(file)),
                    bytes,
                }
            }
        })
    }
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

/// Makes room for a new file: each old one gets the next number, the last is given up.
fn rotate(path: &Path, keep: u32) -> io::Result<()> {
    if keep == 0 {
        return std::fs::remove_file(path);
    }
    for number in (1..keep).rev() {
        match std::fs::rename(numbered(path, number), numbered(path, number + 1)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    std::fs::rename(path, numbered(path, 1))
}

#[cfg(test)]
mod tests {
    use backstop::event::EventKind;

    use super::*;

    fn to(path: &Path, max_bytes: u64, keep: u32) -> Destination {
        Destination::File {
            path: path.to_owned(),
            max_bytes,
            keep,
        }
    }

    fn announce(engine: &Engine, source: &str) {
        engine.announce(EventKind::ConfigApplied {
            source: source.into(),
        });
    }

    fn sources(path: &Path) -> Vec<String> {
        let text = std::fs::read_to_string(path).unwrap();
        let line = |line: &str| {
            let event: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(event["event"], "config_applied");
            event["source"].as_str().unwrap().to_owned()
        };
        text.lines().map(line).collect()
    }

    #[tokio::test]
    async fn everything_that_happened_before_the_end_is_a_line_of_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.jsonl");
        for source in ["a", "b"] {
            let engine = Engine::builder().build().unwrap();
            let log = EventLog::start(&engine, to(&path, 1 << 20, 1)).unwrap();
            announce(&engine, source);
            log.end().await;
        }
        assert_eq!(sources(&path), ["a", "b"]);
    }

    #[tokio::test]
    async fn a_full_file_makes_room_and_the_oldest_is_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.jsonl");
        let engine = Engine::builder().build().unwrap();
        let log = EventLog::start(&engine, to(&path, 150, 2)).unwrap();
        for number in 0..10 {
            announce(&engine, &number.to_string());
        }
        log.end().await;
        let all: Vec<_> = [numbered(&path, 2), numbered(&path, 1), path.clone()]
            .iter()
            .flat_map(|path| sources(path))
            .collect();
        let newest: Vec<String> = (10 - all.len()..10).map(|n| n.to_string()).collect();
        assert_eq!(all, newest, "in order, the newest last");
        assert!(all.len() < 10);
        assert!(!numbered(&path, 3).exists());
        assert!(std::fs::metadata(&path).unwrap().len() <= 150);
    }

    #[tokio::test]
    async fn a_writer_that_falls_behind_says_how_many_events_it_missed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.jsonl");
        let engine = Engine::builder().build().unwrap();
        let mut events = engine.subscribe();
        let mut lines = Lines::open(to(&path, 1 << 20, 1)).unwrap();
        for number in 0..backstop::event::Events::CAPACITY + 7 {
            announce(&engine, &number.to_string());
        }
        lines.drain(&mut events);
        let text = std::fs::read_to_string(&path).unwrap();
        let first: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        assert_eq!(first, json!({ "event": "events_missed", "count": 7 }));
        assert_eq!(text.lines().count(), backstop::event::Events::CAPACITY + 1);
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_an_error_and_one_that_goes_away_is_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let nowhere = folder.path().join("no").join("events.jsonl");
        assert!(Lines::open(to(&nowhere, 100, 1)).is_err());

        let path = folder.path().join("sub").join("events.jsonl");
        std::fs::create_dir(folder.path().join("sub")).unwrap();
        let mut lines = Lines::open(to(&path, 10, 1)).unwrap();
        assert!(lines.write(b"0123456\n").is_ok());
        std::fs::remove_dir_all(folder.path().join("sub")).unwrap();
        assert!(lines.add(&"too long for the file"));
        assert!(lines.is_failing, "there is nothing to rename");
        std::fs::create_dir(folder.path().join("sub")).unwrap();
        assert!(lines.add(&"again"));
        lines.out.as_mut().unwrap().writer.flush().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "\"again\"\n");
    }
}
