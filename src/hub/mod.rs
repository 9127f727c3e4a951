//! A local folder or a Hub `repo@revision` -> a folder of files on this machine.
//!
//! [`Hub::fetch`] lists a repo at one commit, downloads what a server needs and the cache lacks,
//! and moves the revision's ref last, so that a ref never names half a download. The cache is the
//! one that `huggingface_hub` keeps.

mod download;
mod listing;
mod remote;
mod source;

use std::fs;
use std::path::PathBuf;

use hf_hub::Cache;
use hf_hub::api::sync::{Api, ApiBuilder};

pub use source::{Repo, Source};

use crate::error::Error;
use crate::folder::Folder;
use listing::is_commit;
use remote::{Failure, Remote};

/// How the Hub and its cache are reached. (No `Debug`: it holds a token.)
pub struct HubConfig {
    /// The folder that `HF_HOME` names. The cache is its `hub`; its file `token`, which a login
    /// leaves, stands in for a missing `token`.
    pub home: PathBuf,
    /// Sent to the endpoint, and to no other host a download is redirected to.
    pub token: Option<String>,
    /// The Hub or a mirror of it.
    pub endpoint: String,
    /// Use the cache only and open no connection.
    pub offline: bool,
}

/// Turns sources into folders. It blocks on disk and network: call it on a blocking thread.
pub struct Hub {
    cache: Cache,
    endpoint: String,
    /// `None`: offline.
    api: Option<Api>,
}

impl Hub {
    /// Opens no connection. Fails on an endpoint that is no URL.
    pub fn new(config: HubConfig) -> Result<Self, Error> {
        let endpoint = config.endpoint.trim_end_matches('/').to_owned();
        if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
            return Err(Error::Config(format!("the Hub's endpoint `{endpoint}` is no http or https URL")));
        }
        let cache = Cache::new(config.home.join("hub"));
        let api = match config.offline {
            true => None,
            false => Some(connect(&cache, &endpoint, config.token)?),
        };
        Ok(Self { cache, endpoint, api })
    }

    /// The files of `source`: the folder itself, or the snapshot of a repo, completed in the cache.
    pub fn fetch(&self, source: &Source) -> Result<Folder, Error> {
        match source {
            Source::Folder(path) => Folder::open(path),
            Source::Repo(repo) => self.fetch_repo(repo),
        }
    }

    fn fetch_repo(&self, repo: &Repo) -> Result<Folder, Error> {
        let fail = |reason| Error::Hub { repo: repo.to_string(), reason };
        let Some(api) = &self.api else {
            let cache = self.cache.path().display();
            let reason = || format!("not in the cache {cache}, and HF_HUB_OFFLINE forbids to download it");
            return self.cached(repo).ok_or_else(|| fail(reason()));
        };
        match self.update(api, repo) {
            Ok(folder) => Ok(folder),
            Err(Failure::Final(reason)) => Err(fail(format!("{reason} (asked {})", self.endpoint))),
            Err(Failure::Transient(reason)) => {
                let reason = format!("{} cannot be used: {reason}", self.endpoint);
                let cached = self.cached(repo);
                let folder = cached.ok_or_else(|| fail(format!("{reason}; the cache lacks it too")))?;
                tracing::warn!(repo = %repo, reason, "using the cached files of a repo");
                Ok(folder)
            }
        }
    }

    /// Completes the commit that the revision names now, then points the cache's ref at it.
    fn update(&self, api: &Api, repo: &Repo) -> Result<Folder, Failure> {
        let listing = Remote::new(api, repo.at(repo.revision())).listing()?;
        let at_commit = repo.at(&listing.commit);
        let remote = Remote::new(api, at_commit.clone());
        download::files(&remote, &self.cache, &at_commit, &listing)?;
        // A cache that is complete may be read-only.
        if self.cached_commit(repo).as_ref() != Some(&listing.commit) {
            let failed = |error| Failure::Final(format!("the cache's refs: {error}"));
            let refs = self.cache.repo(repo.at(repo.revision()));
            refs.create_ref(&listing.commit).map_err(failed)?;
        }
        Ok(self.snapshot(repo, listing.commit))
    }

    fn cached(&self, repo: &Repo) -> Option<Folder> {
        let folder = self.snapshot(repo, self.cached_commit(repo)?);
        folder.path().is_dir().then_some(folder)
    }

    /// The commit that a revision names, as far as the cache knows.
    fn cached_commit(&self, repo: &Repo) -> Option<String> {
        let revision = repo.revision();
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let root = self.cache.path().join(repo.at(revision).folder_name());
        let text = fs::read_to_string(root.join("refs").join(revision)).ok()?;
        Some(text.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    fn snapshot(&self, repo: &Repo, commit: String) -> Folder {
        let path = self.cache.repo(repo.at(&commit)).pointer_path(&commit);
        Folder::snapshot(path, repo.to_string(), commit)
    }
}

fn connect(cache: &Cache, endpoint: &str, token: Option<String>) -> Result<Api, Error> {
    let mut builder = ApiBuilder::from_cache(cache.clone()).with_endpoint(endpoint.to_owned());
    let token = token.map(|token| token.trim().to_owned());
    if token.as_ref().is_some_and(|token| !token.is_empty()) {
        builder = builder.with_token(token);
    }
    let failed = |error| Error::Config(format!("the Hub's client: {error}"));
    builder.build().map_err(failed)
}
