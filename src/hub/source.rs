//! Where a model or an adapter comes from, as the user wrote it.

use std::fmt;
use std::path::{Path, PathBuf};

use hf_hub::RepoType;

use crate::error::Error;

/// A folder on this machine or a repo on the Hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A folder that existed when the source was parsed.
    Folder(PathBuf),
    /// A repo whose name the Hub would accept.
    Repo(Repo),
}

/// A model repo of the Hub, at a revision. Its parts are safe in a URL and in a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repo {
    id: String,
    revision: Option<String>,
}

impl Source {
    /// Reads a folder's path, or a repo as `name` or `org/name`, with `@revision` (which may hold
    /// `/`) or without. A folder that exists wins over a repo of its name, and what looks like a
    /// path is never taken for a repo.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let path = Path::new(text);
        if path.is_dir() {
            return Ok(Self::Folder(path.to_owned()));
        }
        let (id, revision) = text.split_once('@').map_or((text, None), |(id, revision)| (id, Some(revision)));
        if id.starts_with(['/', '.', '~']) || id.matches('/').count() > 1 {
            return Err(Error::Config(format!("the folder `{text}` does not exist")));
        }
        if !is_repo_id(id) {
            return Err(Error::Config(format!(
                "`{text}` is neither a folder nor a repo of the Hub, such as `org/name@revision`"
            )));
        }
        if let Some(revision) = revision.filter(|revision| !is_revision(revision)) {
            return Err(Error::Config(format!("`{revision}`, in `{text}`, is no branch, tag or commit")));
        }
        Ok(Self::Repo(Repo { id: id.to_owned(), revision: revision.map(str::to_owned) }))
    }
}

impl Repo {
    /// `org/name` or `name`.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// A branch, tag or commit; `main` unless the user named one.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }

    /// The repo at another revision, as hf-hub names it.
    pub(super) fn at(&self, revision: &str) -> hf_hub::Repo {
        hf_hub::Repo::with_revision(self.id.clone(), RepoType::Model, revision.to_owned())
    }
}

/// The rules of `huggingface_hub.utils.validate_repo_id`.
fn is_repo_id(id: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let is_part = |part: &str| {
        let bytes = part.as_bytes();
        bytes.len() <= 96
            && bytes.first().is_some_and(|&byte| is_word(byte))
            && bytes.last().is_some_and(|&byte| is_word(byte))
            && bytes.iter().all(|&byte| is_word(byte) || matches!(byte, b'-' | b'.'))
    };
    let refused = id.contains("--") || id.contains("..") || id.ends_with(".git");
    !refused && id.split('/').all(is_part)
}

/// A git ref made of characters that mean nothing in a URL.
fn is_revision(revision: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b'+');
    revision.split('/').all(|part| !part.is_empty() && !part.starts_with('.') && part.bytes().all(is_plain))
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Folder(path) => path.display().fmt(f),
            Self::Repo(repo) => repo.fmt(f),
        }
    }
}

impl fmt::Display for Repo {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match &self.revision {
            Some(revision) => write!(f, "{}@{revision}", self.id),
            None => f.write_str(&self.id),
        }
    }
}
