//! One error type, its variants named after who must act: the operator, the caller, or us.
//! Status codes are not its business (`http/error.rs`).

use std::path::{Path, PathBuf};
use std::time::Duration;

/// Short for a result with this crate's error.
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that can go wrong, by who must act.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The operator: a key, flag or source is wrong.
    #[error("{0}")]
    Config(String),
    /// The operator: a file of a model or an adapter is missing, broken, or says what is not understood.
    #[error("{}: {reason}", path.display())]
    Load {
        /// The file (or folder) at fault.
        path: PathBuf,
        /// What is wrong with it, in one line.
        reason: String,
    },
    /// The operator: a repo could not be had from the Hub or its cache.
    #[error("{repo}: {reason}")]
    Hub {
        /// The repo as the user wrote it.
        repo: String,
        /// Why, and the way out.
        reason: String,
    },
    /// The caller: a field of the request is wrong.
    #[error("{message}")]
    Invalid {
        /// The field, as a path into the request body; none when it is the body as a whole.
        param: Option<String>,
        /// What is wrong, in one sentence.
        message: String,
    },
    /// The caller: an input is longer than the model reads. Clients match on this very sentence.
    #[error(
        "This model's maximum context length is {max} tokens, however you requested {requested} tokens \
         ({requested} in your prompt; 0 for the completion). Please reduce your prompt; or completion length."
    )]
    ContextLength {
        /// Tokens the model reads at most.
        max: usize,
        /// Tokens the input has.
        requested: usize,
    },
    /// The caller: no model or adapter of that name.
    #[error("The model `{0}` does not exist.")]
    UnknownModel(String),
    /// The caller: other bits would answer than those that the request expects.
    #[error("What is served now is \"{now}\", which is none of the entity tags in 'If-Match'.")]
    Changed {
        /// The tag of what is served now.
        now: String,
    },
    /// The caller: the API key is missing or wrong.
    #[error("Incorrect API key provided.")]
    Unauthorized,
    /// The caller, later: the queue is full.
    #[error("The server is busy: {what}. Please try again later.")]
    Busy {
        /// Which bound was reached.
        what: &'static str,
        /// When to come back.
        retry_after: Duration,
    },
    /// The caller, later: the server is loading or draining, or to be started anew.
    #[error("The server is {0}.")]
    Unavailable(&'static str),
    /// The caller, later: the deadline passed before the vectors were ready.
    #[error("The request took longer than {} s.", .0.as_secs_f64())]
    Deadline(Duration),
    /// Us: a batch is too large for what is free of a device's memory; a smaller one may not be.
    #[error("the device has no {0} bytes left")]
    OutOfMemory(usize),
    /// Us: a device that can do nothing more until the process starts anew.
    #[error("the device is lost: {0}")]
    Lost(String),
    /// Us: a bug or a broken device. The text is for the log, never for the caller.
    #[error("{0}")]
    Internal(String),
}

impl Error {
    /// A file of a model or an adapter is at fault.
    pub fn load(path: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        Self::Load { path: path.as_ref().to_owned(), reason: reason.into() }
    }

    /// A field of a request is at fault.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid { param: Some(param.into()), message: message.into() }
    }
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::Internal(error.to_string())
    }
}
