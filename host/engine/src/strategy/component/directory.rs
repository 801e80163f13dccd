//! The plugin folder: every `*.wasm` in it is a plugin, named by the file's stem.
//!
//! The folder is opened once for each look at it, and files are only opened through it, so that a
//! link that leaves the folder is not followed. Looking ([`PluginFolder::list`]) is apart from reading
//! ([`PluginFolder::read`]), because most looks find nothing new. A bad file never hides the good
//! ones: each has a result of its own.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bytes::Bytes;
use cap_std::ambient_authority;
use cap_std::fs::{Dir, Metadata};

use super::capabilities::{FolderError, open_within};
use super::error::LoadError;

/// A plugin folder, opened. Everything here blocks: call it off the async threads.
#[derive(Debug)]
pub struct PluginFolder {
    path: PathBuf,
    dir: Dir,
}

/// One `*.wasm` of a plugin folder.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PluginFile {
    /// The plugin's name in a configuration: the file's name without `.wasm`.
    pub plugin: String,
    /// The file.
    pub path: PathBuf,
    /// What tells one content of it from another.
    pub stamp: Stamp,
}

/// What is known of a file without reading it. Two contents of one file have two stamps, unless
/// somebody sets the clock back and writes as many bytes as there were.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    length: u64,
    modified: Option<SystemTime>,
    identity: Identity,
}

/// The file's number, and the last change of anything about it, permissions included.
type Identity = (u64, u64, i64, i64);

impl Stamp {
    fn of(about: &Metadata) -> Self {
        Self {
            length: about.len(),
            modified: about
                .modified()
                .ok()
                .map(cap_std::time::SystemTime::into_std),
            identity: identity(about),
        }
    }

    /// When the content was last written, where the system tells.
    pub fn modified(&self) -> Option<SystemTime> {
        self.modified
    }
}

#[cfg(unix)]
fn identity(about: &Metadata) -> Identity {
    use cap_std::fs::MetadataExt;
    (about.dev(), about.ino(), about.ctime(), about.ctime_nsec())
}

#[cfg(not(unix))]
fn identity(_: &Metadata) -> Identity {
    Identity::default()
}

/// What lies in a plugin folder.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Listing {
    /// The plugins, by name.
    pub files: Vec<PluginFile>,
    /// One error for each `*.wasm` whose name no plugin can have.
    pub misnamed: Vec<LoadError>,
}

impl PluginFolder {
    /// Opens a folder.
    ///
    /// # Errors
    /// [`LoadError::Folder`] if it is none, or may not be read.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        let dir = Dir::open_ambient_dir(path, ambient_authority())
            .map_err(|source| unreadable(path, source))?;
        Ok(Self {
            path: path.to_owned(),
            dir,
        })
    }

    /// Every `*.wasm`, without opening one. Files whose name begins with a dot are nobody's: that is
    /// how editors and copying programs call what is not finished.
    ///
    /// # Errors
    /// [`LoadError::Folder`] if the folder cannot be read.
    pub fn list(&self) -> Result<Listing, LoadError> {
        let unreadable = |source| unreadable(&self.path, source);
        let mut listing = Listing::default();
        for entry in self.dir.entries().map_err(unreadable)? {
            let name = PathBuf::from(entry.map_err(unreadable)?.file_name());
            let is_hidden = name.as_os_str().as_encoded_bytes().starts_with(b".");
            if is_hidden || name.extension().is_none_or(|extension| extension != "wasm") {
                continue;
            }
            let path = self.path.join(&name);
            let stem = name.file_stem().and_then(|stem| stem.to_str());
            let Some(plugin) = stem.filter(|stem| is_name(stem)) else {
                listing.misnamed.push(LoadError::FileName { path });
                continue;
            };
            // A link that leaves the folder, or leads nowhere, is known by itself.
            let about = self.dir.metadata(&name);
            let Ok(about) = about.or_else(|_| self.dir.symlink_metadata(&name)) else {
                continue; // Gone since.
            };
            listing.files.push(PluginFile {
                plugin: plugin.to_owned(),
                path,
                stamp: Stamp::of(&about),
            });
        }
        listing.files.sort_by(|a, b| a.plugin.cmp(&b.plugin));
        Ok(listing)
    }

    /// Reads a plugin of at most `limit` bytes, whole: a file that changes while it is read is an
    /// error.
    ///
    /// # Errors
    /// [`LoadError::File`], [`LoadError::Escape`], [`LoadError::TooLarge`] or
    /// [`LoadError::Changing`].
    pub fn read(&self, file: &PluginFile, limit: usize) -> Result<Bytes, LoadError> {
        let (plugin, path) = (&file.plugin, &file.path);
        let name = Path::new(path.file_name().unwrap_or_default());
        let io = |source| LoadError::File {
            plugin: plugin.clone(),
            path: path.clone(),
            source,
        };
        let (mut opened, before) =
            open_within(&self.dir, name, limit).map_err(|error| match error {
                FolderError::Forbidden if is_link(&self.dir, name) => LoadError::Escape {
                    plugin: plugin.clone(),
                    path: path.clone(),
                },
                FolderError::TooLarge(limit) => LoadError::TooLarge {
                    plugin: plugin.clone(),
                    limit,
                },
                FolderError::Forbidden => io(std::io::Error::other("it is not a file")),
                FolderError::NotFound => io(std::io::ErrorKind::NotFound.into()),
                FolderError::Failed(why) => io(std::io::Error::other(why)),
            })?;
        let mut content = Vec::with_capacity(usize::try_from(before.len()).unwrap_or(0));
        let length = (&mut opened)
            .take(before.len().saturating_add(1))
            .read_to_end(&mut content)
            .map_err(io)?;
        let after = opened.metadata().map_err(io)?;
        if length as u64 != before.len() || Stamp::of(&before) != Stamp::of(&after) {
            return Err(LoadError::Changing {
                plugin: plugin.clone(),
                path: path.clone(),
            });
        }
        Ok(content.into())
    }
}

fn unreadable(path: &Path, source: std::io::Error) -> LoadError {
    LoadError::Folder {
        path: path.to_owned(),
        source,
    }
}

/// The rule for names of strategies, as in the contract's metadata and in a configuration.
fn is_name(text: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    (1..=64).contains(&text.len()) && text.chars().all(good)
}

fn is_link(dir: &Dir, name: &Path) -> bool {
    dir.symlink_metadata(name)
        .is_ok_and(|about| about.is_symlink())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plugins() -> (tempfile::TempDir, PathBuf) {
        let outer = tempfile::tempdir().unwrap();
        let folder = outer.path().join("plugins");
        std::fs::create_dir(&folder).unwrap();
        (outer, folder)
    }

    #[test]
    fn every_component_is_found_in_order_and_a_bad_one_hides_no_other() {
        let (outer, path) = plugins();
        std::fs::write(path.join("b.wasm"), "bb").unwrap();
        std::fs::write(path.join("a.wasm"), "a").unwrap();
        std::fs::write(path.join("large.wasm"), "large").unwrap();
        std::fs::write(path.join("notes.txt"), "").unwrap();
        std::fs::write(path.join(".unfinished.wasm"), "").unwrap();
        std::fs::create_dir(path.join("sub.wasm")).unwrap();
        std::fs::write(outer.path().join("outside.wasm"), "o").unwrap();
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink("../outside.wasm", path.join("link.wasm")).unwrap();
            std::os::unix::fs::symlink("b.wasm", path.join("inside.wasm")).unwrap();
            std::os::unix::fs::symlink("nowhere", path.join("dangling.wasm")).unwrap();
        }

        let folder = PluginFolder::open(&path).unwrap();
        let listing = folder.list().unwrap();
        assert!(listing.misnamed.is_empty());
        let about = |name: &str| {
            let file = listing.files.iter().find(|file| file.plugin == name);
            folder.read(file.unwrap(), 4)
        };
        assert!(listing.files.is_sorted_by(|a, b| a.plugin < b.plugin));
        assert_eq!(about("a").unwrap(), "a");
        assert_eq!(about("b").unwrap(), "bb");
        assert!(matches!(
            about("large"),
            Err(LoadError::TooLarge { limit: 4, .. })
        ));
        assert!(matches!(about("sub"), Err(LoadError::File { .. })));
        #[cfg(unix)]
        {
            assert!(matches!(about("link"), Err(LoadError::Escape { .. })));
            assert!(matches!(about("dangling"), Err(LoadError::File { .. })));
            assert_eq!(about("inside").unwrap(), "bb");
        }
        let other = ["notes", "", ".unfinished"];
        assert!(
            !listing
                .files
                .iter()
                .any(|file| other.contains(&&*file.plugin))
        );
    }

    #[test]
    fn a_name_no_plugin_can_have_is_an_error_that_says_so_on_one_line() {
        let (_outer, path) = plugins();
        for name in [
            "a b.wasm",
            "a\nb.wasm",
            "..wasm.wasm.wasm",
            "a.v2.wasm",
            "ü.wasm",
        ] {
            std::fs::write(path.join(name), "").unwrap();
        }
        std::fs::write(path.join(format!("{}.wasm", "x".repeat(65))), "").unwrap();
        let listing = PluginFolder::open(&path).unwrap().list().unwrap();
        assert_eq!(listing.files, []);
        // The one that begins with a dot is nobody's.
        assert_eq!(listing.misnamed.len(), 5);
        for error in listing.misnamed {
            let said = error.to_string();
            assert!(said.contains("rename it") && !said.contains('\n'), "{said}");
        }
    }

    #[test]
    fn a_content_written_again_or_a_permission_changed_gives_another_stamp() {
        let (_outer, path) = plugins();
        let file = path.join("a.wasm");
        let stamp = || PluginFolder::open(&path).unwrap().list().unwrap().files[0].stamp;
        std::fs::write(&file, "1").unwrap();
        let first = stamp();
        assert_eq!(stamp(), first);
        std::thread::sleep(std::time::Duration::from_millis(20));
        std::fs::write(&file, "2").unwrap();
        let second = stamp();
        assert_ne!(first, second, "as many bytes, later");
        std::fs::rename(&file, path.join("b.wasm")).unwrap();
        std::fs::write(path.join("c"), "2").unwrap();
        std::fs::rename(path.join("c"), path.join("b.wasm")).unwrap();
        assert_ne!(stamp(), second, "another file in its place");
    }

    #[test]
    fn a_missing_folder_is_named_with_a_remedy() {
        let error = PluginFolder::open(Path::new("no/such/folder")).unwrap_err();
        assert!(
            error.to_string().contains("no/such/folder") && error.to_string().contains("create it")
        );
    }
}
