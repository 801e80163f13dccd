//! The plugin folder: every `*.wasm` in it is a strategy, named by the file's stem.
//!
//! A bad file never hides the good ones, so each file has a result of its own.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use cap_std::ambient_authority;
use cap_std::fs::Dir;

use super::capabilities::{FolderError, read_within};
use super::error::LoadError;

/// One `*.wasm` of a plugin folder.
#[derive(Debug)]
#[non_exhaustive]
pub struct Found {
    /// The file's name without `.wasm`: the plugin's name in a configuration.
    pub stem: String,
    /// The file.
    pub path: PathBuf,
    /// Its content, or why it cannot be read.
    pub bytes: Result<Bytes, LoadError>,
}

/// Reads every `*.wasm` of a folder, sorted by name. Links that leave the folder are not followed; a
/// file larger than `limit` bytes is not read. Blocks: call it off the async threads.
///
/// # Errors
/// [`LoadError::Folder`] if the folder itself cannot be read.
pub fn scan(folder: &Path, limit: usize) -> Result<Vec<Found>, LoadError> {
    let unreadable = |source| LoadError::Folder {
        path: folder.to_owned(),
        source,
    };
    let dir = Dir::open_ambient_dir(folder, ambient_authority()).map_err(unreadable)?;
    let mut found = Vec::new();
    for entry in dir.entries().map_err(unreadable)? {
        let name = PathBuf::from(entry.map_err(unreadable)?.file_name());
        if name.extension().is_none_or(|extension| extension != "wasm") {
            continue;
        }
        let stem = name
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let path = folder.join(&name);
        let bytes = read_within(&dir, &name, limit)
            .map(Bytes::from)
            .map_err(|error| {
                let (plugin, path) = (stem.clone(), path.clone());
                match error {
                    FolderError::Forbidden if is_link(&dir, &name) => {
                        LoadError::Escape { plugin, path }
                    }
                    FolderError::Forbidden => LoadError::File {
                        plugin,
                        path,
                        source: std::io::Error::other("it is not a file"),
                    },
                    FolderError::TooLarge(limit) => LoadError::TooLarge { plugin, limit },
                    FolderError::NotFound => LoadError::File {
                        plugin,
                        path,
                        source: std::io::ErrorKind::NotFound.into(),
                    },
                    FolderError::Failed(why) => LoadError::File {
                        plugin,
                        path,
                        source: std::io::Error::other(why),
                    },
                }
            });
        found.push(Found { stem, path, bytes });
    }
    found.sort_by(|a, b| a.stem.cmp(&b.stem));
    Ok(found)
}

fn is_link(dir: &Dir, name: &Path) -> bool {
    dir.symlink_metadata(name)
        .is_ok_and(|about| about.is_symlink())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_component_is_found_in_order_and_a_bad_one_hides_no_other() {
        let outer = tempfile::tempdir().unwrap();
        let folder = outer.path().join("plugins");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("b.wasm"), "bb").unwrap();
        std::fs::write(folder.join("a.wasm"), "a").unwrap();
        std::fs::write(folder.join("large.wasm"), "large").unwrap();
        std::fs::write(folder.join("notes.txt"), "").unwrap();
        std::fs::create_dir(folder.join("sub.wasm")).unwrap();
        std::fs::write(outer.path().join("outside.wasm"), "o").unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink("../outside.wasm", folder.join("link.wasm")).unwrap();

        let found = scan(&folder, 4).unwrap();
        let about = |stem: &str| &found.iter().find(|found| found.stem == stem).unwrap().bytes;
        assert!(found.is_sorted_by(|a, b| a.stem < b.stem));
        assert_eq!(about("a").as_ref().unwrap(), "a");
        assert_eq!(about("b").as_ref().unwrap(), "bb");
        assert!(matches!(
            about("large"),
            Err(LoadError::TooLarge { limit: 4, .. })
        ));
        assert!(matches!(about("sub"), Err(LoadError::File { .. })));
        #[cfg(unix)]
        assert!(matches!(about("link"), Err(LoadError::Escape { .. })));
        assert!(!found.iter().any(|found| found.stem == "notes"));
    }

    #[test]
    fn a_missing_folder_is_named_with_a_remedy() {
        let error = scan(Path::new("no/such/folder"), 1).unwrap_err();
        assert!(
            error.to_string().contains("no/such/folder") && error.to_string().contains("create it")
        );
    }
}
