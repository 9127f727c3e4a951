//! A stand-in for the Hub on 127.0.0.1: the routes that models are downloaded through.
//!
//! Commits and content hashes are made up, but stable. Safetensors are the large files: they are
//! redirected to the same server under another host name, as the Hub redirects to its file hosts.

#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::{fs, io, thread};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request as HttpRequest, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use serde_json::json;
use tokio::sync::oneshot;

/// A server of repos, until it is dropped.
pub struct StandIn {
    /// What `HF_ENDPOINT` would be.
    pub endpoint: String,
    served: Arc<Mutex<Served>>,
    _stop: oneshot::Sender<()>,
}

/// What is served, and how; a test may change it at any time.
#[derive(Default)]
pub struct Served {
    repos: Vec<Repo>,
    requests: Vec<Request>,
    /// Names that listings show beside the files there are.
    pub listed_too: Vec<String>,
    /// Listings show bare names, no sizes and hashes.
    pub is_terse: bool,
    /// Without this token every request is refused.
    pub token: Option<String>,
    /// Files are for those whom the owner lets in.
    pub is_gated: bool,
    /// Every request fails.
    pub is_down: bool,
    /// Files are sent whole, whatever range is asked for.
    pub ignores_ranges: bool,
    /// So many file requests end in the middle of the file.
    pub breaks: usize,
}

/// A request as it came in.
#[derive(Debug, Clone)]
pub struct Request {
    pub path: String,
    /// The host it was sent to, with the port.
    pub host: String,
    pub authorization: Option<String>,
    pub range: Option<String>,
}

struct Repo {
    id: String,
    revision: String,
    commit: String,
    files: BTreeMap<String, Vec<u8>>,
}

impl StandIn {
    /// Serves each folder as a repo's revision: `(id, revision, folder)`.
    pub fn start(repos: &[(&str, &str, &Path)]) -> Self {
        let repos = repos.iter().map(|(id, revision, folder)| Repo::read(id, revision, folder));
        let served = Served { repos: repos.collect(), ..Served::default() };
        let served = Arc::new(Mutex::new(served));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let (stop, stopped) = oneshot::channel::<()>();
        let router = Router::new().fallback(answer).with_state(Arc::clone(&served));
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                tokio::select! {
                    served = axum::serve(listener, router) => served.unwrap(),
                    _ = stopped => {}
                }
            });
        });
        Self { endpoint, served, _stop: stop }
    }

    /// Everything asked so far, in order.
    pub fn requests(&self) -> Vec<Request> {
        self.served().requests.clone()
    }

    /// The requests for files so far, wherever they were sent.
    pub fn file_requests(&self) -> Vec<Request> {
        let mut requests = self.requests();
        requests.retain(|request| !request.path.starts_with("/api/"));
        requests
    }

    /// What is served, to be changed. Let go of it before the next request.
    pub fn served(&self) -> MutexGuard<'_, Served> {
        self.served.lock().unwrap()
    }

    /// Serves another folder, from now on, as a repo's revision.
    pub fn replace(&self, id: &str, revision: &str, folder: &Path) {
        let mut served = self.served();
        served.repos.retain(|repo| repo.id != id || repo.revision != revision);
        served.repos.push(Repo::read(id, revision, folder));
    }
}

impl Repo {
    fn read(id: &str, revision: &str, folder: &Path) -> Self {
        let mut files = BTreeMap::new();
        read_into(&mut files, folder, "");
        let commit = hash(&(id, revision, &files));
        Self { id: id.to_owned(), revision: revision.to_owned(), commit, files }
    }
}

fn read_into(files: &mut BTreeMap<String, Vec<u8>>, folder: &Path, prefix: &str) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = format!("{prefix}{}", path.file_name().unwrap().to_str().unwrap());
        match path.is_dir() {
            true => read_into(files, &path, &format!("{name}/")),
            false => {
                files.insert(name, fs::read(&path).unwrap());
            }
        }
    }
}

/// 40 hex digits, as long as a commit's.
fn hash(value: &impl Hash) -> String {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    format!("{:040x}", hasher.finish())
}

async fn answer(State(served): State<Arc<Mutex<Served>>>, http: HttpRequest) -> Response {
    let text = |name: HeaderName| Some(http.headers().get(name)?.to_str().ok()?.to_owned());
    let request = Request {
        path: http.uri().path().to_owned(),
        host: text(header::HOST).unwrap_or_default(),
        authorization: text(header::AUTHORIZATION),
        range: text(header::RANGE),
    };
    let mut served = served.lock().unwrap();
    served.requests.push(request.clone());
    served.answer(&request)
}

impl Served {
    fn answer(&mut self, request: &Request) -> Response {
        if self.is_down {
            return StatusCode::SERVICE_UNAVAILABLE.into_response();
        }
        if let Some(hash) = request.path.strip_prefix("/large/") {
            return self.large_file(hash, request);
        }
        let bearer = self.token.as_ref().map(|token| format!("Bearer {token}"));
        if bearer.is_some() && bearer != request.authorization {
            return (StatusCode::UNAUTHORIZED, [("x-error-code", "RepoNotFound")]).into_response();
        }
        if let Some(rest) = request.path.strip_prefix("/api/models/") {
            let (id, revision) = rest.split_once("/revision/").unwrap_or((rest, "main"));
            return self.listing(id, revision);
        }
        let Some((id, rest)) = request.path[1..].split_once("/resolve/") else {
            return StatusCode::NOT_FOUND.into_response();
        };
        if self.is_gated {
            return (StatusCode::FORBIDDEN, [("x-error-code", "GatedRepo")]).into_response();
        }
        let (revision, name) = rest.split_once('/').unwrap_or((rest, ""));
        self.file(id, revision, name, request)
    }

    fn find(&self, id: &str, revision: &str) -> Option<&Repo> {
        let revision = revision.replace("%2F", "/");
        let is_asked = |repo: &&Repo| [&repo.revision, &repo.commit].contains(&&revision);
        self.repos.iter().filter(|repo| repo.id == id).find(is_asked)
    }

    fn not_found(&self, id: &str) -> Response {
        let code = match self.repos.iter().any(|repo| repo.id == id) {
            true => "RevisionNotFound",
            false => "RepoNotFound",
        };
        (StatusCode::NOT_FOUND, [("x-error-code", code)]).into_response()
    }

    fn listing(&self, id: &str, revision: &str) -> Response {
        let Some(repo) = self.find(id, revision) else {
            return self.not_found(id);
        };
        let full = repo.files.iter().map(|(name, bytes)| match (self.is_terse, is_large(name)) {
            (true, _) => json!({"rfilename": name}),
            (false, false) => {
                json!({"rfilename": name, "size": bytes.len(), "blobId": hash(bytes)})
            }
            (false, true) => json!({
                "rfilename": name,
                "size": bytes.len(),
                "blobId": hash(&(bytes, "pointer")),
                "lfs": {"sha256": hash(bytes), "size": bytes.len(), "pointerSize": 134},
            }),
        });
        let bare = self.listed_too.iter().map(|name| json!({"rfilename": name}));
        let siblings: Vec<_> = full.chain(bare).collect();
        Body::from(json!({"id": id, "sha": repo.commit, "siblings": siblings}).to_string()).into_response()
    }

    fn file(&mut self, id: &str, revision: &str, name: &str, request: &Request) -> Response {
        let Some(repo) = self.find(id, revision) else {
            return self.not_found(id);
        };
        let commit = repo.commit.parse().unwrap();
        let Some(bytes) = repo.files.get(name).cloned() else {
            return StatusCode::NOT_FOUND.into_response();
        };
        let mut response = match is_large(name) {
            true => {
                let (_, port) = request.host.split_once(':').unwrap();
                let elsewhere = format!("http://localhost:{port}/large/{}", hash(&bytes));
                let linked = HeaderName::from_static("x-linked-etag");
                let quoted = format!("\"{}\"", hash(&bytes));
                let size = (HeaderName::from_static("x-linked-size"), bytes.len().to_string());
                let headers = [(header::LOCATION, elsewhere), (linked, quoted), size];
                (StatusCode::FOUND, headers).into_response()
            }
            false => self.content(bytes, request),
        };
        response.headers_mut().insert("x-repo-commit", commit);
        response
    }

    fn large_file(&mut self, wanted: &str, request: &Request) -> Response {
        let mut contents = self.repos.iter().flat_map(|repo| repo.files.values());
        match contents.find(|bytes| hash(bytes) == wanted).cloned() {
            Some(bytes) => self.content(bytes, request),
            None => StatusCode::NOT_FOUND.into_response(),
        }
    }

    fn content(&mut self, bytes: Vec<u8>, request: &Request) -> Response {
        let etag = (header::ETAG, format!("\"{}\"", hash(&bytes)));
        let total = bytes.len();
        let asked = request.range.as_ref().filter(|_| !self.ignores_ranges);
        let range = asked.and_then(|range| range.strip_prefix("bytes="));
        let start: usize = range.map_or(0, |range| range.split('-').next().unwrap().parse().unwrap());
        if range.is_some() && start >= total {
            return StatusCode::RANGE_NOT_SATISFIABLE.into_response();
        }
        let rest = bytes[start..].to_vec();
        let length = (header::CONTENT_LENGTH, rest.len().to_string());
        let body = match self.breaks.checked_sub(1) {
            None => Body::from(rest),
            Some(breaks) => {
                self.breaks = breaks;
                broken_body(rest[..rest.len() / 2].to_vec())
            }
        };
        match range {
            None => ([etag, length], body).into_response(),
            Some(_) => {
                let range = format!("bytes {start}-{}/{total}", total - 1);
                let headers = [etag, length, (header::CONTENT_RANGE, range)];
                (StatusCode::PARTIAL_CONTENT, headers, body).into_response()
            }
        }
    }
}

/// Sends these bytes and then breaks the connection.
fn broken_body(bytes: Vec<u8>) -> Body {
    let cut = async {
        // Lets the bytes leave first.
        tokio::task::yield_now().await;
        Err(io::Error::other("cut"))
    };
    Body::from_stream(stream::iter([Ok(bytes)]).chain(stream::once(cut)))
}

fn is_large(name: &str) -> bool {
    name.ends_with(".safetensors")
}
