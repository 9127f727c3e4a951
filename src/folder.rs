//! A local folder of model files, and the jail: names in files that strangers wrote never lead out of it.

use crate::error::{Error, Result};
use serde::de::DeserializeOwned;
use std::path::{Component, Path, PathBuf};

/// A folder whose files are asked for by relative names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// A folder that exists.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        match path.is_dir() {
            true => Ok(Self { path }),
            false => Err(Error::load(path, "no such folder")),
        }
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file of that name; none where there is none. A name with `..`, or an absolute one, is refused.
    pub fn file(&self, name: &str) -> Result<Option<PathBuf>> {
        let jailed = Path::new(name).components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
        if !jailed {
            return Err(Error::load(&self.path, format!("the name '{name}' leads out of the folder")));
        }
        let path = self.path.join(name);
        Ok(path.is_file().then_some(path))
    }

    /// The file of that name, or an error that says it is missing.
    pub fn require(&self, name: &str) -> Result<PathBuf> {
        self.file(name)?.ok_or_else(|| Error::load(self.path.join(name), "no such file"))
    }

    /// A JSON file; none where there is none.
    pub fn json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        self.file(name)?.map(|path| read_json(&path)).transpose()
    }

    /// A JSON file that must be there.
    pub fn require_json<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        read_json(&self.require(name)?)
    }
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::load(path, e.to_string()))?;
    let mut reader = serde_json::Deserializer::from_str(&text);
    serde_path_to_error::deserialize(&mut reader).map_err(|e| match e.path().to_string().as_str() {
        "." => Error::load(path, e.inner().to_string()),
        key => Error::load(path, format!("{key}: {}", e.inner())),
    })
}
