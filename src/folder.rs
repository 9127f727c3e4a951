//! A folder of model files on this machine, and its jail: no name that one of its files gives leads out of it.

use crate::error::{Error, Result};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// A user's own folder, or a snapshot in the Hub's cache.
#[derive(Debug, Clone)]
pub struct Folder {
    path: PathBuf,
    origin: String,
    commit: Option<String>,
    found: Arc<Found>,
}

/// The files that were found through a folder, its clones and its sub-folders. Whatever loads from a folder takes the
/// same way where the same files are found, so they are all that it depends on.
#[derive(Debug)]
struct Found {
    root: PathBuf,
    files: Mutex<BTreeSet<PathBuf>>,
}

impl Found {
    fn nothing_in(root: &Path) -> Arc<Self> {
        Arc::new(Self { root: root.to_owned(), files: Mutex::default() })
    }
}

impl Folder {
    /// A folder that exists.
    pub fn open(path: &Path) -> Result<Self> {
        match path.is_dir() {
            true => Ok(Self {
                path: path.to_owned(),
                origin: path.display().to_string(),
                commit: None,
                found: Found::nothing_in(path),
            }),
            false => Err(Error::load(path, "the folder does not exist")),
        }
    }

    /// The files of a repo at one commit; `origin` is the repo as the user wrote it.
    pub fn snapshot(path: PathBuf, origin: String, commit: String) -> Self {
        Self { found: Found::nothing_in(&path), path, origin, commit: Some(commit) }
    }

    /// The same folder, in which nothing was found yet.
    pub fn afresh(&self) -> Self {
        Self { found: Found::nothing_in(&self.path), ..self.clone() }
    }

    /// The files found since [`Folder::afresh`], each once, by their paths inside the folder, in the order of these.
    pub fn found(&self) -> Vec<(String, PathBuf)> {
        let files = self.found.files.lock().unwrap_or_else(PoisonError::into_inner);
        let inside = |path: &PathBuf| {
            let name = path.strip_prefix(&self.found.root).unwrap_or(path);
            (name.to_string_lossy().into_owned(), path.clone())
        };
        files.iter().map(inside).collect()
    }

    /// Where the files lie.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The commit that the files belong to, when they came from the Hub.
    pub fn commit(&self) -> Option<&str> {
        self.commit.as_deref()
    }

    /// Whether it is a snapshot of the Hub's repo of this name, at any revision.
    pub fn is_repo(&self, name: &str) -> bool {
        self.commit.is_some() && self.origin.split('@').next() == Some(name)
    }

    /// The folder `relative` inside this one, such as a module's; `""` is this one. It need not exist.
    pub fn subfolder(&self, relative: &str) -> Result<Self> {
        Ok(Self { path: self.inside(relative)?, ..self.clone() })
    }

    /// The path of a file; none where there is none. A name that leads out of the folder is an error.
    pub fn file(&self, relative: &str) -> Result<Option<PathBuf>> {
        let path = self.inside(relative)?;
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() => {
                self.found.files.lock().unwrap_or_else(PoisonError::into_inner).insert(path.clone());
                Ok(Some(path))
            }
            Ok(_) => Ok(None),
            Err(error) => match error.kind() {
                ErrorKind::NotFound | ErrorKind::NotADirectory => Ok(None),
                _ => Err(Error::load(path, error.to_string())),
            },
        }
    }

    /// Like [`Folder::file`], where a missing file is an error.
    pub fn require(&self, relative: &str) -> Result<PathBuf> {
        self.file(relative)?.ok_or_else(|| Error::load(self.path.join(relative), "there is no such file"))
    }

    /// A JSON file; none where there is none. An error names the file and the key, or line and column.
    pub fn json<T: DeserializeOwned>(&self, relative: &str) -> Result<Option<T>> {
        self.file(relative)?.map(|path| read_json(&path)).transpose()
    }

    /// The bytes of a file, and where it is; none where there is none.
    pub fn bytes(&self, relative: &str) -> Result<Option<(PathBuf, Vec<u8>)>> {
        self.file(relative)?.map(|path| Ok((path.clone(), read(&path)?))).transpose()
    }

    /// Like [`Folder::json`], where a missing file is an error.
    pub fn require_json<T: DeserializeOwned>(&self, relative: &str) -> Result<T> {
        read_json(&self.require(relative)?)
    }

    fn inside(&self, relative: &str) -> Result<PathBuf> {
        match stays_inside(relative) {
            true => Ok(self.path.join(relative)),
            false => Err(Error::load(&self.path, format!("`{relative}` leads out of the folder"))),
        }
    }
}

impl fmt::Display for Folder {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match &self.commit {
            Some(commit) => write!(f, "{} (commit {commit})", self.origin),
            None => f.write_str(&self.origin),
        }
    }
}

/// Whether a relative path stays below where it starts. By its words alone: every file of a snapshot is a symlink to a
/// blob outside it, and symlinks in a user's folder are the user's.
pub fn stays_inside(relative: &str) -> bool {
    Path::new(relative).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}

/// Reads JSON that is parsed already into a type; the reason of a failure names the key.
pub fn typed<T: DeserializeOwned>(value: Value) -> std::result::Result<T, String> {
    serde_path_to_error::deserialize(value).map_err(|error| reason(&error))
}

/// Whether a setting is there without saying anything: null, false, or empty.
pub fn says_nothing(value: &Value) -> bool {
    [json!(null), json!(false), json!({}), json!([])].contains(value)
}

/// The JSON in a file's bytes. An error names the file and the key, or line and column.
pub fn parse_json<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    serde_path_to_error::deserialize(&mut reader).map_err(|error| Error::load(path, reason(&error)))
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    parse_json(path, &read(path)?)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|error| Error::load(path, error.to_string()))
}

fn reason(error: &serde_path_to_error::Error<serde_json::Error>) -> String {
    match error.path().to_string().as_str() {
        "." | "?" => error.inner().to_string(),
        key => format!("{key}: {}", error.inner()),
    }
}
