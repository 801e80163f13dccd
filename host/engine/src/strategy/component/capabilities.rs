//! Capabilities: what a strategy gets only when the configuration grants it.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cap_std::ambient_authority;
use cap_std::fs::{Dir, File, Metadata};
use serde::{Deserialize, Serialize};

/// What the configuration grants to one strategy. Default: nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "config", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Grants {
    /// The folder it may read. Everything below it can be read, nothing else.
    pub folder: Option<PathBuf>,
    /// Whether it may keep state.
    pub state: bool,
}

/// Why a file was not read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FolderError {
    NotFound,
    Forbidden,
    TooLarge(usize),
    Failed(String),
}

/// The one folder a strategy may read.
#[derive(Debug, Clone)]
pub(super) struct Folder {
    dir: Arc<Dir>,
    limit: usize,
}

impl Folder {
    /// Opens the folder once; from then on paths are resolved inside it, wherever it may be moved.
    pub(super) fn open(path: &Path, limit: usize) -> std::io::Result<Self> {
        Ok(Self {
            dir: Arc::new(Dir::open_ambient_dir(path, ambient_authority())?),
            limit,
        })
    }

    /// Reads a file, on the present thread.
    pub(super) fn read_here(&self, path: &str) -> Result<Vec<u8>, FolderError> {
        read_within(&self.dir, Path::new(path), self.limit)
    }

    /// Reads a file, off the async threads.
    pub(super) async fn read(&self, path: String) -> Result<Vec<u8>, FolderError> {
        let folder = self.clone();
        match tokio::task::spawn_blocking(move || folder.read_here(&path)).await {
            Ok(read) => read,
            Err(_) => Err(FolderError::Failed("the program is ending".into())),
        }
    }
}

/// Reads a regular file that lies inside the folder and is not larger than `limit` bytes.
pub(super) fn read_within(dir: &Dir, path: &Path, limit: usize) -> Result<Vec<u8>, FolderError> {
    let (file, about) = open_within(dir, path, limit)?;
    let mut content = Vec::with_capacity(usize::try_from(about.len()).unwrap_or(0));
    // The file may have grown since.
    file.take(limit as u64 + 1)
        .read_to_end(&mut content)
        .map_err(refusal)?;
    if content.len() > limit {
        Err(FolderError::TooLarge(limit))
    } else {
        Ok(content)
    }
}

/// Opens a regular file that lies inside the folder and is not larger than `limit` bytes.
pub(super) fn open_within(
    dir: &Dir,
    path: &Path,
    limit: usize,
) -> Result<(File, Metadata), FolderError> {
    // Looked at before it is opened: opening a pipe would wait for its writer.
    if !dir.metadata(path).map_err(refusal)?.is_file() {
        return Err(FolderError::Forbidden);
    }
    let file = dir.open(path).map_err(refusal)?;
    // Looked at again, since another may have taken its place.
    let about = file.metadata().map_err(refusal)?;
    if !about.is_file() {
        return Err(FolderError::Forbidden);
    }
    if about.len() > limit as u64 {
        return Err(FolderError::TooLarge(limit));
    }
    Ok((file, about))
}

fn refusal(error: std::io::Error) -> FolderError {
    match error.kind() {
        std::io::ErrorKind::NotFound => FolderError::NotFound,
        // The operating system's own refusals carry its number, those for leaving the folder do not.
        std::io::ErrorKind::PermissionDenied if error.raw_os_error().is_none() => {
            FolderError::Forbidden
        }
        std::io::ErrorKind::InvalidInput => FolderError::Forbidden,
        kind => FolderError::Failed(kind.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_never_left() {
        let outer = tempfile::tempdir().unwrap();
        let inner = outer.path().join("inner");
        std::fs::create_dir_all(inner.join("sub")).unwrap();
        std::fs::write(outer.path().join("secret"), "s").unwrap();
        std::fs::write(inner.join("sub/a.json"), "{}").unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink("../secret", inner.join("link")).unwrap();
        let dir = Folder::open(&inner, 2).unwrap().dir;
        let read = |path: &str| read_within(&dir, Path::new(path), 2);

        assert_eq!(read("sub/a.json"), Ok(b"{}".to_vec()));
        assert_eq!(
            read("sub/../sub/a.json"),
            Ok(b"{}".to_vec()),
            "inside is inside"
        );
        assert_eq!(read("../secret"), Err(FolderError::Forbidden));
        assert_eq!(
            read(outer.path().join("secret").to_str().unwrap()),
            Err(FolderError::Forbidden)
        );
        #[cfg(unix)]
        assert_eq!(read("link"), Err(FolderError::Forbidden));
        assert_eq!(
            read("sub"),
            Err(FolderError::Forbidden),
            "a folder is no file"
        );
        assert_eq!(read("nothing"), Err(FolderError::NotFound));
        assert_eq!(read("a\0b"), Err(FolderError::Forbidden));
        std::fs::write(inner.join("large"), "123").unwrap();
        assert_eq!(read("large"), Err(FolderError::TooLarge(2)));
    }
}
