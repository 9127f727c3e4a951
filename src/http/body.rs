//! Request bodies: bytes whatever the Content-Type says, JSON with errors that say what is wrong and where.

use super::embed::Input;
use super::offload::Threads;
use crate::config::INPUTS_MAX;
use crate::error::{Error, Result};
use axum::body::{Body, HttpBody};
use futures_util::StreamExt;
use serde::Deserialize;
use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, SeqAccess, Visitor};
use std::fmt;
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};

/// Why a request is refused.
pub enum Refusal {
    /// Its body is larger than one may be.
    TooLarge,
    /// Anything else.
    Error(Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

/// Reads a body of at most `bytes_max`, with a permit of `room` for each byte that is held.
pub async fn read(
    body: Body,
    bytes_max: usize,
    room: &Semaphore,
) -> std::result::Result<(Vec<u8>, Option<SemaphorePermit<'_>>), Refusal> {
    if body.size_hint().lower() > bytes_max as u64 {
        return Err(Refusal::TooLarge);
    }
    let (mut bytes, mut held, mut chunks) = (Vec::new(), None::<SemaphorePermit>, body.into_data_stream());
    while let Some(chunk) = chunks.next().await {
        let broken = |e| Error::Invalid { param: None, message: format!("The request body broke off: {e}.") };
        let chunk = chunk.map_err(|e| Refusal::Error(broken(e)))?;
        if bytes.len() + chunk.len() > bytes_max {
            return Err(Refusal::TooLarge);
        }
        let more = room.try_acquire_many(chunk.len() as u32).map_err(|_| {
            let retry_after = Duration::from_secs(1);
            Refusal::Error(Error::Busy { what: "too many bytes of requests are held", retry_after })
        })?;
        match &mut held {
            Some(held) => held.merge(more),
            None => held = Some(more),
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok((bytes, held))
}

/// Parses a JSON body.
pub async fn json<T: DeserializeOwned + Send + 'static>(threads: &Threads, body: Vec<u8>) -> Result<T> {
    let bytes = body.len();
    let parse = move || {
        let mut reader = serde_json::Deserializer::from_slice(&body);
        let parsed = serde_path_to_error::deserialize(&mut reader).map_err(|e| {
            let param = Some(e.path().to_string()).filter(|path| path != "." && path != "?");
            let message = match &param {
                Some(param) => format!("Invalid '{param}': {}.", e.inner()),
                None => format!("The request body is no valid JSON for this call: {}.", e.inner()),
            };
            Error::Invalid { param, message }
        })?;
        let trailing = |e| Error::Invalid { param: None, message: format!("After the JSON value: {e}.") };
        reader.end().map_err(trailing)?;
        Ok(parsed)
    };
    threads.run_large(bytes, parse).await
}

/// Puts an element at the end of a list.
///
/// # Errors
/// Where the list has all that one may have.
pub fn push<T, E: serde::de::Error>(list: &mut Vec<T>, element: T) -> std::result::Result<(), E> {
    if list.len() >= INPUTS_MAX {
        return Err(E::custom(format!("there are more than {INPUTS_MAX} elements")));
    }
    list.push(element);
    Ok(())
}

/// OpenAI's `input`: a string, a list of strings, a list of token ids, or a list of lists of token ids.
#[derive(Debug)]
pub struct Inputs(pub Vec<Input>);

impl<'de> Deserialize<'de> for Inputs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_any(InputsVisitor)
    }
}

struct InputsVisitor;

impl<'de> Visitor<'de> for InputsVisitor {
    type Value = Inputs;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a string, a list of strings, a list of token ids or a list of lists of token ids")
    }

    fn visit_str<E>(self, text: &str) -> std::result::Result<Inputs, E> {
        Ok(Inputs(vec![Input::Text(text.to_owned())]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<Inputs, A::Error> {
        let (mut inputs, mut ids, mut first) = (Vec::new(), Vec::new(), None);
        while let Some(element) = list.next_element_seed(Like(first))? {
            first.get_or_insert(element.kind());
            match element {
                Element::Id(id) => ids.push(id),
                Element::Text(text) => push(&mut inputs, Input::Text(text))?,
                Element::Ids(ids) => push(&mut inputs, Input::Tokens(ids))?,
            }
        }
        if !ids.is_empty() {
            inputs.push(Input::Tokens(ids));
        }
        Ok(Inputs(inputs))
    }
}

/// One element of a list.
enum Element {
    Text(String),
    Id(u32),
    Ids(Vec<u32>),
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Text,
    Id,
    Ids,
}

impl Element {
    fn kind(&self) -> Kind {
        match self {
            Self::Text(_) => Kind::Text,
            Self::Id(_) => Kind::Id,
            Self::Ids(_) => Kind::Ids,
        }
    }
}

/// Reads an element that is like the first of its list, where there is a first.
#[derive(Clone, Copy)]
struct Like(Option<Kind>);

impl Like {
    fn check<E: serde::de::Error>(self, element: Element) -> std::result::Result<Element, E> {
        match self.0 {
            Some(first) if first != element.kind() => {
                Err(E::custom("strings, token ids and lists of token ids do not mix in one list"))
            }
            _ => Ok(element),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Like {
    type Value = Element;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Element, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Like {
    type Value = Element;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a string, a token id (0 or more) or a list of token ids")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> std::result::Result<Element, E> {
        self.check(Element::Text(text.to_owned()))
    }

    fn visit_u64<E: serde::de::Error>(self, id: u64) -> std::result::Result<Element, E> {
        let id = u32::try_from(id).map_err(|_| E::custom(format!("token id {id} is too large")))?;
        self.check(Element::Id(id))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<Element, A::Error> {
        let mut ids = Vec::new();
        while let Some(id) = list.next_element::<u32>()? {
            ids.push(id);
        }
        self.check(Element::Ids(ids))
    }
}
