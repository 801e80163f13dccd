//! The lock file: which plugins are trusted, each by the SHA-256 of its file.
//!
//! A plugin folder takes what is put there. Where that is too much trust, `plugins_lock = "FILE"`
//! names a file, kept where only the operator writes (usually beside the configuration, under version
//! control), and only plugins it names take part:
//!
//! ```toml
//! version = 1
//!
//! [plugins]
//! prefer-local = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
//! ```
//!
//! Stock strategies lie inside the program and need no entry; a file that would take the place of one
//! does.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::strategy::component::{Digest, DigestError, Limits, Listing, LoadError, PluginFolder};

/// The form of the file.
const VERSION: u32 = 1;
/// Bytes a lock file may have: more than ten thousand plugins need.
const MAX_BYTES: u64 = 4 << 20;

/// Which plugins are trusted. Its text form is the lock file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PluginLock {
    /// The digest of each plugin's file, by the plugin's name.
    pub plugins: BTreeMap<String, Digest>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    version: u32,
    #[serde(default)]
    plugins: BTreeMap<String, String>,
}

impl PluginLock {
    /// What lies in a folder now. Blocks: call it off the async threads.
    ///
    /// # Errors
    /// [`LoadError`] if the folder or one of its plugins cannot be read, or a file has a name no
    /// plugin can have: what is not understood is not trusted.
    pub fn of_folder(folder: &Path) -> Result<Self, LoadError> {
        let folder = PluginFolder::open(folder)?;
        let Listing { files, misnamed } = folder.list()?;
        if let Some(error) = misnamed.into_iter().next() {
            return Err(error);
        }
        let limit = Limits::default().component_bytes;
        let digest = |file| Ok(Digest::of(&folder.read(file, limit)?));
        let plugins = files
            .iter()
            .map(|file| Ok((file.plugin.clone(), digest(file)?)))
            .collect::<Result<_, LoadError>>()?;
        Ok(Self { plugins })
    }

    /// Reads a lock file. Blocks.
    ///
    /// # Errors
    /// [`LockError`] if it cannot be read, or is no lock file of this version.
    pub fn read(path: &Path) -> Result<Self, LockError> {
        let unreadable = |source| LockError::Read {
            path: path.to_owned(),
            source,
        };
        let file = std::fs::File::open(path).map_err(unreadable)?;
        let mut text = String::new();
        file.take(MAX_BYTES)
            .read_to_string(&mut text)
            .map_err(unreadable)?;
        Self::parse(&text, path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self, LockError> {
        let malformed = |reason: String| LockError::Malformed {
            path: path.to_owned(),
            reason,
        };
        let Text { version, plugins } = toml::from_str(text)
            .map_err(|error| malformed(error.message().lines().collect::<Vec<_>>().join(" ")))?;
        if version != VERSION {
            return Err(malformed(format!(
                "it has the version {version}, and this program knows {VERSION}"
            )));
        }
        let digest = |(name, text): (String, String)| match text.parse() {
            Ok(digest) => Ok((name, digest)),
            Err(error @ DigestError { .. }) => Err(malformed(format!("plugin {name}: {error}"))),
        };
        let plugins = plugins.into_iter().map(digest).collect::<Result<_, _>>()?;
        Ok(Self { plugins })
    }

    /// Writes the lock file, in one step: a reader sees the old one or the new one. Blocks.
    ///
    /// # Errors
    /// [`LockError::Write`].
    pub fn write(&self, path: &Path) -> Result<(), LockError> {
        let failed = |source| LockError::Write {
            path: path.to_owned(),
            source,
        };
        let name = path
            .file_name()
            .ok_or_else(|| failed(std::io::Error::other("the path names no file")))?;
        let mut unfinished = std::ffi::OsString::from(".");
        unfinished.push(name);
        unfinished.push(format!(".{}", std::process::id()));
        let unfinished = path.with_file_name(unfinished);
        let written = std::fs::File::create(&unfinished).and_then(|mut file| {
            file.write_all(self.to_string().as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&unfinished, path)
        });
        written.map_err(|source| {
            // Whatever went wrong is told; a file left behind is no second error.
            let _ = std::fs::remove_file(&unfinished);
            failed(source)
        })
    }

    /// Whether a plugin's file is the one that is trusted.
    pub(super) fn check(&self, plugin: &str, found: Digest, path: &Path) -> Result<(), LoadError> {
        let (plugin_name, lock) = (plugin.to_owned(), path.to_owned());
        match self.plugins.get(plugin) {
            Some(locked) if *locked == found => Ok(()),
            Some(locked) => Err(LoadError::LockMismatch {
                plugin: plugin_name,
                lock,
                locked: *locked,
                found,
            }),
            None => Err(LoadError::NotLocked {
                plugin: plugin_name,
                lock,
            }),
        }
    }
}

impl fmt::Display for PluginLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "# The plugins that are trusted, each by the SHA-256 of its file."
        )?;
        writeln!(f, "version = {VERSION}\n\n[plugins]")?;
        // Names are letters, digits, `-` and `_`: bare keys.
        self.plugins
            .iter()
            .try_for_each(|(name, digest)| writeln!(f, "{name} = \"{digest}\""))
    }
}

/// Why a lock file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// It cannot be read.
    #[error("the lock file {} cannot be read: write it, or correct the path", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is no lock file.
    #[error("the lock file {} is damaged: {reason}: write it again", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// It cannot be written.
    #[error("the lock file {} cannot be written: check its folder and the permissions", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_matches_the_folder_it_was_made_of() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("plugins");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("a.wasm"), "abc").unwrap();
        std::fs::write(folder.join("b_2.wasm"), "").unwrap();
        std::fs::write(folder.join("notes.txt"), "").unwrap();
        let lock = PluginLock::of_folder(&folder).unwrap();
        assert_eq!(lock.plugins.len(), 2);

        let path = home.path().join("plugins.lock");
        lock.write(&path).unwrap();
        assert_eq!(PluginLock::read(&path).unwrap(), lock);
        assert_eq!(
            std::fs::read_dir(home.path()).unwrap().count(),
            2,
            "nothing is left over"
        );

        assert!(lock.check("a", Digest::of(b"abc"), &path).is_ok());
        let said = lock
            .check("a", Digest::of(b"abd"), &path)
            .unwrap_err()
            .to_string();
        assert!(
            said.contains("plugin a") && said.contains("plugins.lock"),
            "{said}"
        );
        assert!(said.contains(&Digest::of(b"abd").to_string()), "{said}");
        let said = lock
            .check("c", Digest::of(b""), &path)
            .unwrap_err()
            .to_string();
        assert!(said.contains("does not name it"), "{said}");
    }

    #[test]
    fn a_folder_with_a_file_that_cannot_be_trusted_makes_no_lock() {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("a b.wasm"), "").unwrap();
        assert!(matches!(
            PluginLock::of_folder(home.path()),
            Err(LoadError::FileName { .. })
        ));
    }

    #[test]
    fn a_lock_that_is_none_is_refused_with_the_reason() {
        let path = Path::new("plugins.lock");
        for (text, says) in [
            ("version = 2", "version 2"),
            ("", "version"),
            ("version = 1\n[plugins]\na = 'short'", "plugin a"),
            ("version = 1\n[plugin]", "unknown field"),
            ("{", "damaged"),
        ] {
            let said = PluginLock::parse(text, path).unwrap_err().to_string();
            assert!(
                said.contains(says) && !said.contains('\n'),
                "{text}: {said}"
            );
        }
        let none = PluginLock::read(&Path::new("no/such").join(path)).unwrap_err();
        assert!(none.to_string().contains("cannot be read"));
        assert!(
            PluginLock::default()
                .write(Path::new("no/such/lock"))
                .is_err()
        );
        assert!(PluginLock::default().write(Path::new("/")).is_err());
    }
}
