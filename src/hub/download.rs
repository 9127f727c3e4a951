//! Files of a repo -> blobs and snapshot of the Hub's cache, as `huggingface_hub` lays them out.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
#[cfg(unix)]
use std::os::unix::fs::symlink;
#[cfg(windows)]
use std::os::windows::fs::symlink_file as symlink;
use std::path::Path;
use std::thread;
use std::time::Duration;

use hf_hub::{Cache, Repo};
use indicatif::{ProgressBar, ProgressStyle};

use super::listing::{Listing, RemoteFile};
use super::remote::{Failure, Remote};

/// Between the attempts at one file.
const PAUSES: [Duration; 3] = [Duration::from_millis(500), Duration::from_secs(2), Duration::from_secs(5)];
/// Smaller files are there before a bar could be read.
const BAR_BYTES_MIN: u64 = 1 << 20;
const BAR: &str = "{msg} [{wide_bar}] {bytes}/{total_bytes} {bytes_per_sec} ({eta})";

/// Completes the snapshot of `repo`, whose revision is the listed commit.
pub(super) fn files(remote: &Remote, cache: &Cache, repo: &Repo, listing: &Listing) -> Result<(), Failure> {
    let locks = cache.path().join(".locks").join(repo.folder_name());
    let layout = cache.repo(repo.clone());
    let snapshot = layout.pointer_path(&listing.commit);
    for file in listing.needed() {
        let pointer = snapshot.join(&file.name);
        if pointer.exists() {
            continue;
        }
        let name = file.blob(&listing.commit);
        let blob = layout.blob_path(&name);
        let _lock = lock(&locks, &name)?;
        // Other commits hold the same files, and another process may just have been here.
        if !blob.exists() {
            make_folder(&layout.blob_path(""))?;
            let part = layout.blob_path(&format!("{name}.incomplete"));
            let failed = |why| Failure::Final(format!("cannot download `{}`: {why}", file.name));
            download(remote, file, &part).map_err(failed)?;
            fs::rename(&part, &blob).map_err(|error| on_disk(&blob, error))?;
        }
        link(&name, &pointer, &snapshot)?;
    }
    Ok(())
}

/// Waits while another process downloads the same content. The lock ends with the file returned.
fn lock(locks: &Path, blob: &str) -> Result<File, Failure> {
    make_folder(locks)?;
    let path = locks.join(format!("{blob}.lock"));
    let acquire = || {
        let file = append_to(&path)?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => {
                tracing::info!(lock = %path.display(), "waiting for another process's download");
                file.lock().map(|()| file)
            }
            Err(TryLockError::Error(error)) => Err(error),
        }
    };
    acquire().map_err(|error| on_disk(&path, error))
}

/// Completes `part`, in a few attempts.
fn download(remote: &Remote, file: &RemoteFile, part: &Path) -> Result<(), Failure> {
    for pause in PAUSES {
        match append_rest(remote, file, part) {
            Err(Failure::Transient(reason)) => {
                tracing::warn!(file = file.name, reason, "a download broke off, going on");
                thread::sleep(pause);
            }
            outcome => return outcome,
        }
    }
    append_rest(remote, file, part)
}

/// Requests what `part` lacks of a file. `Ok` when it is complete.
fn append_rest(remote: &Remote, file: &RemoteFile, part: &Path) -> Result<(), Failure> {
    let failed = |error| on_disk(part, error);
    let mut sink = append_to(part).map_err(failed)?;
    let mut bytes = sink.metadata().map_err(failed)?.len();
    if file.size == Some(bytes) {
        return Ok(());
    }
    let can_resume = file.size.is_some_and(|size| bytes < size);
    let response = remote.open(&file.name, if can_resume { bytes } else { 0 })?;
    if response.status().as_u16() != 206 {
        sink.set_len(0).map_err(failed)?;
        bytes = 0;
    }
    let bar = progress(file).with_position(bytes);
    let mut reader = bar.wrap_read(response.into_body().into_reader());
    let copied = io::copy(&mut reader, &mut sink);
    bar.finish_and_clear();
    bytes += copied.map_err(|error| Failure::Transient(error.to_string()))?;
    match file.size {
        Some(size) if size != bytes => {
            let reason = format!("{bytes} bytes came where {size} were listed");
            Err(Failure::Transient(reason))
        }
        _ => Ok(()),
    }
}

/// A bar on a terminal, a line in the log elsewhere.
fn progress(file: &RemoteFile) -> ProgressBar {
    let bar = match file.size {
        Some(bytes) if bytes >= BAR_BYTES_MIN => ProgressBar::new(bytes),
        _ => ProgressBar::hidden(),
    };
    if bar.is_hidden() {
        tracing::info!(file = file.name, bytes = file.size, "downloading");
    }
    let style = ProgressStyle::with_template(BAR).expect("the template is a constant");
    bar.with_style(style).with_message(file.name.clone())
}

/// Points a name in the snapshot at a blob: relatively, as the cache may be mounted elsewhere.
fn link(blob: &str, pointer: &Path, snapshot: &Path) -> Result<(), Failure> {
    if pointer.exists() {
        return Ok(());
    }
    let folder = pointer.parent().unwrap_or(snapshot);
    make_folder(folder)?;
    let depth = folder.strip_prefix(snapshot).map_or(0, |inner| inner.components().count());
    // A link whose blob was deleted would be in the way.
    let _ = fs::remove_file(pointer);
    symlink(format!("{}blobs/{blob}", "../".repeat(depth + 2)), pointer).map_err(|error| on_disk(pointer, error))
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

fn make_folder(path: &Path) -> Result<(), Failure> {
    fs::create_dir_all(path).map_err(|error| on_disk(path, error))
}

fn on_disk(path: &Path, error: io::Error) -> Failure {
    Failure::Final(format!("{}: {error}", path.display()))
}
