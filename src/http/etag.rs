//! Entity tags: what a reply says of the bits that made it, and what `If-Match` asks of them (RFC 9110, 13.1.1).

use crate::error::{Error, Result};
use crate::registry::Provenance;
use axum::http::header::{ETAG, IF_MATCH};
use axum::http::{HeaderMap, HeaderName, HeaderValue};

/// The bits by which a caller wants to be answered.
#[derive(Debug, Default)]
pub enum Expected {
    /// Any: there is no `If-Match`, or it is `*`.
    #[default]
    Any,
    /// One of these, by their strong tags.
    OneOf(Vec<String>),
}

impl Expected {
    /// Reads `If-Match`, all lines of it.
    pub fn of(headers: &HeaderMap) -> Result<Self> {
        let malformed = || {
            let message = "'If-Match' must be * or a list of entity tags in double quotes.";
            Error::invalid("If-Match", message)
        };
        if !headers.contains_key(IF_MATCH) {
            return Ok(Self::Any);
        }
        let lines = headers.get_all(IF_MATCH).iter().map(|line| line.to_str().map_err(|_| malformed()));
        let lines = lines.collect::<Result<Vec<_>>>()?.join(",");
        match lines.trim() {
            "*" => Ok(Self::Any),
            list => strong_tags(list).map(Self::OneOf).ok_or_else(malformed),
        }
    }

    /// An error where these bits are not among those expected.
    pub fn check(&self, provenance: &Provenance) -> Result<()> {
        let now = provenance.tag();
        match self {
            Self::OneOf(tags) if !tags.contains(&now) => Err(Error::Changed { now }),
            _ => Ok(()),
        }
    }
}

/// The strong tags of a list without their quotes; none where it is no list of tags. A weak tag never matches.
fn strong_tags(list: &str) -> Option<Vec<String>> {
    let (mut tags, mut rest) = (Vec::new(), list);
    loop {
        // Between tags stands at least one comma; a list may have empty elements.
        rest = rest.trim_start_matches([',', ' ', '\t']);
        if rest.is_empty() {
            return Some(tags);
        }
        let (is_weak, quoted) = rest.strip_prefix("W/").map_or((false, rest), |quoted| (true, quoted));
        let (tag, after) = quoted.strip_prefix('"')?.split_once('"')?;
        if !is_weak {
            tags.push(tag.to_owned());
        }
        rest = after.trim_start_matches([' ', '\t']);
        if !rest.is_empty() && !rest.starts_with(',') {
            return None;
        }
    }
}

/// A strong tag as a header.
pub fn quoted(tag: &str) -> HeaderValue {
    HeaderValue::try_from(format!("\"{tag}\"")).expect("a tag is ASCII")
}

/// What a reply says of the bits that made it.
pub fn headers(provenance: &Provenance) -> HeaderMap {
    let value = |text: String| HeaderValue::try_from(text).expect("hex is ASCII");
    let mut headers = HeaderMap::new();
    headers.insert(ETAG, quoted(&provenance.tag()));
    headers.insert(HeaderName::from_static("x-veneer-fingerprint"), value(provenance.fingerprint.to_string()));
    if let Some(generation) = provenance.generation {
        headers.insert(HeaderName::from_static("x-veneer-generation"), value(generation.to_string()));
    }
    headers
}
