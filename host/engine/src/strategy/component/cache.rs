//! Compiled components, kept on disk, so that a large one starts at once the next time.
//!
//! What is found here is machine code that will run in our process, outside every sandbox. So the
//! rule is: an entry runs only if we wrote it ourselves, for this very component and this very
//! compiler, and nothing of it has changed since. All else is a miss: the component is compiled
//! again, and the entry is replaced.
//!
//! - The folder belongs to the user who runs the program, and nobody else may write to it or read it;
//!   it is opened once, and everything happens inside the opened folder, whatever is done to its path.
//! - Each entry begins with an HMAC-SHA-256 over what it was compiled from (the component's digest),
//!   what compiled it (the engine's version, settings, and the processor's features) and the code. The
//!   key is made by chance for each folder. So an entry that was damaged, cut short, renamed to
//!   another's name, or brought from another folder is not ours.
//! - What is checked are the bytes in memory that are then used, not the file.

use std::hash::{Hash, Hasher};
use std::io::{Read, Write};
use std::path::Path;
use std::time::SystemTime;

use cap_std::ambient_authority;
use cap_std::fs::{Dir, Metadata, OpenOptions};
use sha2::{Digest as _, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;

use super::digest::Digest;

/// Named in every tag: what is tagged, and in which form.
const FORM: &[u8] = b"backstop compiled component 1\0";
/// The folder of this form, inside the one the configuration names.
const FOLDER: &str = "components-1";
const KEY: &str = "key";
const KEY_BYTES: usize = 32;
const TAG_BYTES: usize = 32;
/// Bytes all entries may have together: the oldest beyond that are removed.
const MAX_BYTES: u64 = 1 << 30;

/// The folder.
#[derive(Debug)]
pub(super) struct Cache {
    dir: Dir,
    key: [u8; KEY_BYTES],
    compiler: [u8; 32],
}

/// Why an entry was not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Miss {
    /// There is none.
    Absent,
    /// It is not ours, or not any more.
    Foreign,
}

impl Cache {
    /// Opens the folder, and makes it where it is missing.
    pub(super) fn open(folder: &Path, engine: &Engine) -> std::io::Result<Self> {
        if !folder.is_absolute() {
            return Err(std::io::Error::other("it is no absolute path"));
        }
        let folder = folder.join(FOLDER);
        make_private(&folder)?;
        let dir = Dir::open_ambient_dir(&folder, ambient_authority())?;
        check_ours(&dir)?;
        let key = key(&dir)?;
        let mut compiler = Sha256Hasher(Sha256::new());
        engine.precompile_compatibility_hash().hash(&mut compiler);
        let cache = Self {
            dir,
            key,
            compiler: compiler.0.finalize().into(),
        };
        cache.prune(MAX_BYTES)?;
        Ok(cache)
    }

    fn name(&self, component: &Digest) -> String {
        // The compiler is in the tag in full; here it only lets two versions live side by side.
        let compiler = &hexadecimal(&self.compiler)[..16];
        format!("{component}.{compiler}")
    }

    fn tag(&self, component: &Digest, code: &[u8]) -> [u8; TAG_BYTES] {
        hmac(
            &self.key,
            &[FORM, &self.compiler, component.as_bytes(), code],
        )
    }

    /// The compiled component, if there is an entry of ours.
    pub(super) fn load(&self, engine: &Engine, component: &Digest) -> Result<Component, Miss> {
        let name = self.name(component);
        let Ok(file) = self.dir.open(&name) else {
            return Err(Miss::Absent);
        };
        let mut entry = Vec::new();
        let read = file.take(MAX_BYTES).read_to_end(&mut entry);
        let ours = read.is_ok()
            && entry
                .split_at_checked(TAG_BYTES)
                .is_some_and(|(tag, code)| self.tag(component, code) == tag);
        let compiled = if ours {
            code::of_ours(engine, &entry[TAG_BYTES..])
        } else {
            None
        };
        compiled.ok_or_else(|| {
            tracing::warn!(target: "backstop::strategy", entry = name, "an entry of the compile cache is damaged or not this program's; it is removed, and the plugin is compiled again");
            // What cannot be removed is refused each time.
            let _ = self.dir.remove_file(&name);
            Miss::Foreign
        })
    }

    /// Keeps a compiled component. That it cannot be kept costs time, the next time.
    pub(super) fn store(&self, fingerprint: &Digest, component: &Component) {
        let stored = component
            .serialize()
            .map_err(|error| std::io::Error::other(error.to_string()))
            .and_then(|code| {
                let tag = self.tag(fingerprint, &code);
                self.put(&self.name(fingerprint), &[&tag, &code])
            });
        if let Err(error) = stored {
            tracing::debug!(target: "backstop::strategy", %error, "a compiled plugin is not kept");
        }
    }

    /// Writes aside and renames, so that nobody meets half a file.
    fn put(&self, name: &str, parts: &[&[u8]]) -> std::io::Result<()> {
        let aside = write_aside(&self.dir, parts)?;
        let renamed = self.dir.rename(&aside, &self.dir, name);
        if renamed.is_err() {
            let _ = self.dir.remove_file(&aside);
        }
        renamed
    }

    /// Removes the oldest entries beyond this size.
    fn prune(&self, max_bytes: u64) -> std::io::Result<()> {
        let mut entries = Vec::new();
        for entry in self.dir.entries()? {
            let entry = entry?;
            let about = entry.metadata()?;
            if entry.file_name() != KEY && about.is_file() {
                let at = about.modified().map(cap_std::time::SystemTime::into_std);
                let at = at.unwrap_or(SystemTime::UNIX_EPOCH);
                entries.push((at, about.len(), entry.file_name()));
            }
        }
        entries.sort_by_key(|(at, ..)| std::cmp::Reverse(*at));
        let mut total = 0_u64;
        for (_, bytes, name) in entries {
            total = total.saturating_add(bytes);
            if total > max_bytes {
                // Another program may have been faster.
                let _ = self.dir.remove_file(name);
            }
        }
        Ok(())
    }
}

/// HMAC-SHA-256 (RFC 2104) with a key of at most one block. Written out, because the crate of that
/// name changes features of others that the whole runtime is built on.
fn hmac(key: &[u8], message: &[&[u8]]) -> [u8; TAG_BYTES] {
    const BLOCK: usize = 64;
    let padded = |pad: u8| {
        let mut block = [pad; BLOCK];
        block
            .iter_mut()
            .zip(key)
            .for_each(|(byte, key)| *byte ^= key);
        Sha256::new_with_prefix(block)
    };
    let mut inner = padded(0x36);
    for part in message {
        inner.update(part);
    }
    let mut outer = padded(0x5c);
    outer.update(inner.finalize());
    outer.finalize().into()
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn make_private(folder: &Path) -> std::io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    cap_std::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

/// Writes a file under a name nobody else has.
fn write_aside(dir: &Dir, parts: &[&[u8]]) -> std::io::Result<String> {
    let mut chance = [0; 8];
    getrandom::fill(&mut chance).map_err(|error| std::io::Error::other(error.to_string()))?;
    let name = format!("{}.new", hexadecimal(&chance));
    let written = (|| {
        let mut file = dir.open_with(&name, &private())?;
        for part in parts {
            file.write_all(part)?;
        }
        Ok(())
    })();
    match written {
        Ok(()) => Ok(name),
        Err(error) => {
            let _ = dir.remove_file(&name);
            Err(error)
        }
    }
}

/// Refuses a folder that others could write to: who can, chooses what runs here.
fn check_ours(dir: &Dir) -> std::io::Result<()> {
    #[cfg(unix)]
    {
        use cap_std::fs::MetadataExt;

        // A file just made is owned by whoever this process acts for.
        let probe = write_aside(dir, &[])?;
        let own = dir.symlink_metadata(&probe);
        dir.remove_file(&probe)?;
        let (own, about) = (own?.uid(), dir.dir_metadata()?);
        if about.uid() != own {
            return Err(std::io::Error::other("it belongs to another user"));
        }
        if about.mode() & 0o022 != 0 {
            return Err(std::io::Error::other(
                "others may write to it: take that right away with `chmod go-w`",
            ));
        }
    }
    Ok(())
}

/// The folder's key; a new one where there is none that is secret and whole.
fn key(dir: &Dir) -> std::io::Result<[u8; KEY_BYTES]> {
    if let Some(key) = read_key(dir) {
        return Ok(key);
    }
    // Whatever is there is no key. Entries tagged with another one are misses from now on.
    match dir.remove_file(KEY) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut key = [0; KEY_BYTES];
    getrandom::fill(&mut key).map_err(|error| std::io::Error::other(error.to_string()))?;
    let aside = write_aside(dir, &[&key])?;
    // Unlike a rename it fails where another program was faster, and then that one's key counts.
    let linked = dir.hard_link(&aside, dir, KEY);
    dir.remove_file(&aside)?;
    match read_key(dir) {
        Some(key) => Ok(key),
        None => Err(linked
            .err()
            .unwrap_or_else(|| std::io::Error::other("its key cannot be read"))),
    }
}

fn read_key(dir: &Dir) -> Option<[u8; KEY_BYTES]> {
    let about = dir.symlink_metadata(KEY).ok()?;
    if !about.is_file() || !is_secret(&about) {
        return None;
    }
    let mut bytes = Vec::new();
    let file = dir.open(KEY).ok()?;
    file.take(KEY_BYTES as u64 + 1)
        .read_to_end(&mut bytes)
        .ok()?;
    bytes.try_into().ok()
}

#[cfg(unix)]
fn is_secret(about: &Metadata) -> bool {
    cap_std::fs::MetadataExt::mode(about) & 0o077 == 0
}

#[cfg(not(unix))]
fn is_secret(_: &Metadata) -> bool {
    // The folder lies in the user's profile.
    true
}

/// A hasher whose value does not depend on the process.
struct Sha256Hasher(Sha256);

impl Hasher for Sha256Hasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        let digest = self.0.clone().finalize();
        digest
            .iter()
            .take(8)
            .fold(0, |sum, byte| sum << 8 | u64::from(*byte))
    }
}

/// The one place in this crate where the compiler is told to trust us.
#[allow(unsafe_code)]
mod code {
    use wasmtime::Engine;
    use wasmtime::component::Component;

    /// Turns machine code into a component; `None` where the engine refuses it.
    ///
    /// To be called only with bytes whose tag was verified.
    pub(super) fn of_ours(engine: &Engine, code: &[u8]) -> Option<Component> {
        // SAFETY: `deserialize` asks that the bytes are what `Component::serialize` gave, unchanged.
        // They are: `load` calls this only after it verified, over these very bytes in memory, a tag
        // that only `store` makes, out of `Component::serialize` alone, with a key that lies in a
        // folder only this user may enter. The tag covers the compiler's fingerprint, so the engine's
        // version, its settings and the processor's features are the same; the engine compares them
        // once more and answers with an error where they differ. Whoever can forge the tag can read
        // this user's files, and could as well replace the program.
        unsafe { Component::deserialize(engine, code) }.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tag_is_that_of_the_standard() {
        // RFC 4231, test cases 1 and 2.
        let tag = |key: &[u8], message: &[&[u8]]| hexadecimal(&hmac(key, message));
        assert_eq!(
            tag(&[0x0b; 20], &[b"Hi ", b"There"]),
            "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"
        );
        assert_eq!(
            tag(b"Jefe", &[b"what do ya want for nothing?"]),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }

    #[test]
    fn the_oldest_entries_make_room_and_the_key_stays() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path(), &Engine::default()).unwrap();
        let inside = folder.path().join(FOLDER);
        for (age, name) in ["new", "older", "oldest"].into_iter().enumerate() {
            let path = inside.join(name);
            std::fs::write(&path, [0; 100]).unwrap();
            let at = SystemTime::now() - std::time::Duration::from_secs(60 * age as u64);
            let file = std::fs::File::options().write(true).open(path).unwrap();
            file.set_modified(at).unwrap();
        }
        cache.prune(250).unwrap();
        let mut left: Vec<_> = std::fs::read_dir(inside)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, [KEY, "new", "older"]);
    }
}
