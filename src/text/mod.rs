//! Text to token ids: prompts, the tokenizer, limits and truncation, as sentence-transformers does it.

mod load;
mod reader;
mod settings;
mod tokenizer;

pub use load::{Capacity, Source, Tokenizers};
pub use reader::Reader;

use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::sync::Arc;

/// How one model or adapter reads text.
#[derive(Clone)]
pub struct Text {
    reader: Arc<Reader>,
    tokens_max: usize,
    /// Whether texts are wrapped in special tokens where a request does not say; a text without them may be empty.
    specials: bool,
    /// Which end is cut where a request does not say.
    cut_left: bool,
    prompts: BTreeMap<String, String>,
    default_prompt: Option<String>,
    /// Whether a kind of text may be one that no prompt is for: it chooses a route of the model.
    routed: bool,
}

/// What a request may ask of the reading of one input.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    /// Put before the text.
    pub prompt: Prompt,
    /// Whether `[CLS]`, `</s>` and their like are added; none: to a text as the model wants it, to token ids no.
    pub add_special_tokens: Option<bool>,
    /// Cut to so many tokens instead of refusing what is longer.
    pub truncate: Option<Truncation>,
}

/// The prompt that a request asks for.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Prompt {
    /// The model's `default_prompt_name`, where it has one.
    #[default]
    Default,
    /// This text.
    Text(String),
    /// The model's prompt of this name; that there is none is the caller's error.
    Named(String),
    /// The one for this kind of text: query, document, or a name of the model's own. Without one for it, queries and
    /// documents have none, not even the default. A model without any prompt reads every kind alike; one with prompts,
    /// but none of this name, cannot be asked for it, unless the name is a route's.
    Kind(String),
}

/// Where and to what length an input is cut.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Truncation {
    /// Tokens to keep, specials included; none: what the model reads at most.
    pub tokens: Option<usize>,
    /// Drop the beginning, not the end; none: as the model's tokenizer does.
    pub left: Option<bool>,
}

impl Text {
    /// Tokens it reads at most, specials included.
    pub fn tokens_max(&self) -> usize {
        self.tokens_max
    }

    /// In which ways it reads otherwise than another.
    pub fn differences(&self, other: &Self) -> impl Iterator<Item = &'static str> {
        let ways = [
            (!Arc::ptr_eq(&self.reader, &other.reader), "tokenizer"),
            (self.tokens_max != other.tokens_max, "maximum length"),
            (self.cut_left != other.cut_left, "truncation side"),
            (self.specials != other.specials, "special tokens"),
            ((&self.prompts, &self.default_prompt) != (&other.prompts, &other.default_prompt), "prompts"),
        ];
        ways.into_iter().filter_map(|(differs, way)| differs.then_some(way))
    }

    /// The same reader without any prompt, as sentence-transformers reads for a bare PEFT folder.
    pub fn without_prompts(mut self) -> Self {
        self.prompts.clear();
        self.default_prompt = None;
        self
    }

    /// The same reader of a model with routes or without: where there are some, a kind that no prompt is for is read
    /// with the default.
    pub fn routed(self, routed: bool) -> Self {
        Self { routed, ..self }
    }

    /// What a byte of text takes that is not read fast, in bytes that are.
    pub const BY_LIBRARY: usize = 16;

    /// How long a text takes to be read: in bytes of one that is read fast.
    pub fn work(&self, text: &str) -> usize {
        text.len() * if self.reader.is_fast(text) { 1 } else { Self::BY_LIBRARY }
    }

    /// A text's token ids; `param` names the input in errors.
    pub fn encode(&self, text: &str, reading: &Reading, param: &str) -> Result<Vec<u32>> {
        match self.prompt(&reading.prompt)? {
            "" => self.tokens(text, reading, param),
            prompt => self.tokens(&format!("{prompt}{text}"), reading, param),
        }
    }

    /// How many tokens at the start of a text are taken for its prompt's, as sentence-transformers counts: those of the
    /// prompt alone, special tokens included, but for a special one at the end.
    pub fn prompt_tokens(&self, reading: &Reading) -> Result<usize> {
        let prompt = self.prompt(&reading.prompt)?;
        if prompt.is_empty() {
            return Ok(0);
        }
        let whole = Reading { truncate: Some(Truncation { tokens: None, left: None }), ..reading.clone() };
        let ids = self.tokens(prompt, &whole, "prompt")?;
        Ok(ids.len() - usize::from(ids.last().is_some_and(|id| self.reader.is_special(*id))))
    }

    fn tokens(&self, text: &str, reading: &Reading, param: &str) -> Result<Vec<u32>> {
        let ids = self.reader.read(text).map_err(|e| Error::invalid(param, e.to_string()))?;
        self.fit(ids, reading.add_special_tokens.unwrap_or(self.specials), reading, param)
    }

    /// Token ids as the caller sends them, checked against the vocabulary.
    pub fn check(&self, ids: Vec<u32>, vocabulary: usize, reading: &Reading, param: &str) -> Result<Vec<u32>> {
        // A default prompt is the model's, and who sends token ids has put it there; one that is asked for is not.
        if reading.prompt != Prompt::Default && !self.prompt(&reading.prompt)?.is_empty() {
            return Err(Error::invalid(param, "A prompt cannot be put before token ids."));
        }
        if let Some(id) = ids.iter().find(|id| **id as usize >= vocabulary) {
            let message = format!("Token id {id} is beyond the model's vocabulary of {vocabulary}.");
            return Err(Error::invalid(param, message));
        }
        let special = reading.add_special_tokens.unwrap_or(false);
        if ids.is_empty() && !special {
            return Err(no_tokens(param));
        }
        self.fit(ids, special, reading, param)
    }

    /// Cuts bare ids to what may be read, and puts special tokens around them.
    fn fit(&self, mut ids: Vec<u32>, special: bool, reading: &Reading, param: &str) -> Result<Vec<u32>> {
        let none = [Vec::new(), Vec::new()];
        let ends = if special { self.reader.ends() } else { Ok(&none) };
        let [before, after] = ends.map_err(|reason| Error::invalid(param, reason))?;
        let added = before.len() + after.len();
        if let Some(limit) = self.limit(ids.len() + added, reading)? {
            let room = limit.checked_sub(added);
            let room =
                room.ok_or_else(|| Error::invalid(param, "It cannot be cut to fewer tokens than the specials."))?;
            match reading.truncate.and_then(|truncation| truncation.left).unwrap_or(self.cut_left) {
                true => drop(ids.drain(..ids.len() - room)),
                false => ids.truncate(room),
            }
        }
        let ids = if added == 0 { ids } else { [before, &ids[..], after].concat() };
        if ids.is_empty() && self.specials { Err(no_tokens(param)) } else { Ok(ids) }
    }

    /// None: it fits. Otherwise to how many tokens it is cut, or that it may not be.
    fn limit(&self, requested: usize, reading: &Reading) -> Result<Option<usize>> {
        let wanted = match reading.truncate {
            Some(truncation) => truncation.tokens.unwrap_or(self.tokens_max).min(self.tokens_max),
            None if requested > self.tokens_max => {
                return Err(Error::ContextLength { max: self.tokens_max, requested });
            }
            None => return Ok(None),
        };
        Ok((requested > wanted).then_some(wanted))
    }

    fn prompt<'a>(&'a self, prompt: &'a Prompt) -> Result<&'a str> {
        match prompt {
            Prompt::Default => Ok(self.default_prompt.as_deref().unwrap_or_default()),
            Prompt::Text(text) => Ok(text),
            Prompt::Kind(kind) => {
                let known = names_of(kind).find_map(|name| self.prompts.get(name));
                let default = self.default_prompt.as_deref().filter(|_| self.routed).unwrap_or_default();
                match known {
                    Some(prompt) => Ok(prompt),
                    None if is_common(kind) => Ok(""),
                    None if self.routed || self.prompts.values().all(String::is_empty) => Ok(default),
                    None => Err(self.no_prompt("input_type", kind)),
                }
            }
            Prompt::Named(name) => match self.prompts.get(name) {
                Some(prompt) => Ok(prompt),
                None if UNPROMPTED.contains(&name.as_str()) => Ok(""),
                None => Err(self.no_prompt("prompt_name", name)),
            },
        }
    }

    fn no_prompt(&self, param: &str, name: &str) -> Error {
        let known: Vec<&str> = self.prompts.keys().map(String::as_str).collect();
        Error::invalid(param, format!("The model has no prompt '{name}'; it has: {}.", known.join(", ")))
    }
}

/// Prompts that every model of sentence-transformers has; empty, where its files name none.
const UNPROMPTED: [&str; 2] = ["query", "document"];

/// Kinds of text that clients name, and the names under which models have what is for them.
const COMMON: [(&str, &[&str]); 5] = [
    ("query", &["query", "retrieval.query"]),
    ("search_query", &["query", "retrieval.query"]),
    ("document", &["document", "retrieval.passage"]),
    ("search_document", &["document", "retrieval.passage"]),
    ("passage", &["passage", "document", "retrieval.passage"]),
];

/// The names under which models have what is for a kind of text, a prompt, a route or an adapter, in order; the kind's
/// own comes last where it is not among them.
pub fn names_of(kind: &str) -> impl Iterator<Item = &str> {
    let common = COMMON.iter().find(|(name, _)| *name == kind).map_or(&[][..], |(_, names)| *names);
    common.iter().copied().chain(std::iter::once(kind))
}

fn is_common(kind: &str) -> bool {
    COMMON.iter().any(|(name, _)| *name == kind)
}

fn no_tokens(param: &str) -> Error {
    Error::invalid(param, "The input has no tokens.")
}
