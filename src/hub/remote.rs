//! The requests to the Hub, sent by hf-hub's agent.
//!
//! hf-hub 0.5.0's own `download` is not used. It sends the token on to the host that a large file
//! is redirected to; resumes wrongly (a retry after a refused connection appends the whole file to
//! its part, and a part that is complete fails for ever); fetches a file again for every new
//! commit; and waits without a bound. Its agent does keep the token on the endpoint's host, and
//! `info_request` lends that agent.

use std::time::Duration;

use hf_hub::api::sync::{Api, ApiRepo};
use ureq::typestate::WithoutBody;
use ureq::{Body, RequestBuilder, http::Response};

use super::listing::Listing;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

const SET_TOKEN: &str = "set HF_TOKEN to a token that may read it";

/// Why the Hub gave no answer to use.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The same will happen again.
    #[error("{0}")]
    Final(String),
    /// The network or the Hub, for now.
    #[error("{0}")]
    Transient(String),
}

/// A repo at a revision, on the Hub.
pub(super) struct Remote(ApiRepo);

impl Remote {
    pub(super) fn new(api: &Api, repo: hf_hub::Repo) -> Self {
        Self(api.repo(repo))
    }

    /// The files of the repo at the commit that its revision names now.
    pub(super) fn listing(&self) -> Result<Listing, Failure> {
        let mut response = send(self.0.info_request().query("blobs", "true"))?;
        let unread = |error| Failure::Transient(format!("the listing is not readable: {error}"));
        let listing: Listing = response.body_mut().read_json().map_err(unread)?;
        listing.check().map_err(Failure::Final)?;
        Ok(listing)
    }

    /// The bytes of a file from `offset` on, or all of them where the status is not 206.
    pub(super) fn open(&self, name: &str, offset: u64) -> Result<Response<Body>, Failure> {
        let request = self.0.info_request().uri(self.0.url(name)).header("Accept-Encoding", "identity");
        match offset {
            0 => send(request),
            _ => send(request.header("Range", format!("bytes={offset}-"))),
        }
    }
}

fn send(request: RequestBuilder<WithoutBody>) -> Result<Response<Body>, Failure> {
    let config = request.config().http_status_as_error(false);
    let config = config.timeout_connect(Some(CONNECT_TIMEOUT));
    let config = config.timeout_recv_response(Some(ANSWER_TIMEOUT));
    let request = config.timeout_per_read(Some(ANSWER_TIMEOUT)).build();
    let response = request.call().map_err(|error| Failure::Transient(error.to_string()))?;
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let code = response.headers().get("x-error-code").map(|code| code.as_bytes());
    Err(refusal(status.as_u16(), code))
}

/// Why the Hub refused. Who may not know whether a repo exists is told 401.
fn refusal(status: u16, code: Option<&[u8]>) -> Failure {
    match (status, code) {
        (401, Some(b"GatedRepo")) | (403, _) => {
            Failure::Final(format!("access to this repo is restricted: accept its terms on its page, and {SET_TOKEN}"))
        }
        (404, Some(b"RevisionNotFound")) => Failure::Final("no such revision".to_owned()),
        (401 | 404, _) => Failure::Final(format!("no such repo or revision, or it is private: {SET_TOKEN}")),
        (408 | 429 | 500..=599, _) => Failure::Transient(format!("status {status}")),
        _ => Failure::Final(format!("status {status}")),
    }
}
