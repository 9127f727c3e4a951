//! Text to token ids: prompts, the tokenizer, limits and truncation, as sentence-transformers does it.

mod load;

pub use load::{Capacity, Source, Tokenizers};

use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokenizers::{Encoding, PostProcessor, Token, Tokenizer, TruncationDirection};

/// How one model or adapter reads text.
#[derive(Clone)]
pub struct Text {
    tokenizer: Arc<Tokenizer>,
    tokens_max: usize,
    /// Whether texts are wrapped in special tokens where a request does not say; a text without them may be empty.
    specials: bool,
    /// Which end is cut where a request does not say.
    cut_left: bool,
    prompts: BTreeMap<String, String>,
    default_prompt: Option<String>,
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
    /// The one for this kind of text: query, document, or a name of the model's own. A model without any prompt reads
    /// every kind alike; one with prompts, but none of this name, cannot be asked for it.
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
            (!Arc::ptr_eq(&self.tokenizer, &other.tokenizer), "tokenizer"),
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

    /// A text's token ids; `param` names the input in errors.
    pub fn encode(&self, text: &str, reading: &Reading, param: &str) -> Result<Vec<u32>> {
        let prompt = self.prompt(&reading.prompt)?;
        let prompted;
        let text = match prompt {
            "" => text,
            prompt => {
                prompted = format!("{prompt}{text}");
                &prompted
            }
        };
        let special = reading.add_special_tokens.unwrap_or(self.specials);
        let encoding = self.tokenizer.encode_fast(text, special).map_err(|e| Error::invalid(param, e.to_string()))?;
        let Some(limit) = self.limit(encoding.len(), reading)? else { return self.non_empty(encoding, param) };
        let bare = self.tokenizer.encode_fast(text, false).map_err(|e| Error::invalid(param, e.to_string()))?;
        self.cut(bare, limit, special, reading, param)
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
        let requested = ids.len() + if special { self.added_tokens() } else { 0 };
        let limit = self.limit(requested, reading)?;
        if !special && limit.is_none() {
            return if ids.is_empty() { Err(no_tokens(param)) } else { Ok(ids) };
        }
        let tokens = ids.into_iter().map(|id| Token::new(id, String::new(), (0, 0))).collect();
        self.cut(Encoding::from_tokens(tokens, 0), limit.unwrap_or(requested), special, reading, param)
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

    fn cut(&self, mut bare: Encoding, limit: usize, special: bool, reading: &Reading, param: &str) -> Result<Vec<u32>> {
        let room = limit.checked_sub(if special { self.added_tokens() } else { 0 });
        let room = room.ok_or_else(|| Error::invalid(param, "It cannot be cut to fewer tokens than the specials."))?;
        let left = reading.truncate.and_then(|truncation| truncation.left).unwrap_or(self.cut_left);
        bare.truncate(room, 0, if left { TruncationDirection::Left } else { TruncationDirection::Right });
        let whole = self.tokenizer.post_process(bare, None, special);
        self.non_empty(whole.map_err(|e| Error::invalid(param, e.to_string()))?, param)
    }

    fn non_empty(&self, encoding: Encoding, param: &str) -> Result<Vec<u32>> {
        if encoding.is_empty() && self.specials { Err(no_tokens(param)) } else { Ok(encoding.get_ids().to_vec()) }
    }

    fn added_tokens(&self) -> usize {
        self.tokenizer.get_post_processor().map_or(0, |post| post.added_tokens(false))
    }

    fn prompt<'a>(&'a self, prompt: &'a Prompt) -> Result<&'a str> {
        match prompt {
            Prompt::Default => Ok(self.default_prompt.as_deref().unwrap_or_default()),
            Prompt::Text(text) => Ok(text),
            Prompt::Kind(kind) => {
                let unprompted = self.prompts.values().all(String::is_empty);
                let (names, needs_none) = match names_of(kind) {
                    Some(names) => (names, true),
                    None => (&[kind.as_str()][..], unprompted),
                };
                let known = names.iter().find_map(|name| self.prompts.get(*name));
                match known.or(self.default_prompt.as_ref().filter(|_| needs_none)) {
                    Some(prompt) => Ok(prompt),
                    None if needs_none => Ok(""),
                    None => Err(self.no_prompt("input_type", kind)),
                }
            }
            Prompt::Named(name) => match self.prompts.get(name) {
                Some(prompt) => Ok(prompt),
                None => Err(self.no_prompt("prompt_name", name)),
            },
        }
    }

    fn no_prompt(&self, param: &str, name: &str) -> Error {
        let known: Vec<&str> = self.prompts.keys().map(String::as_str).collect();
        Error::invalid(param, format!("The model has no prompt '{name}'; it has: {}.", known.join(", ")))
    }
}

/// The names under which models have what is for a query or for a document, a prompt or an adapter; none for a kind of
/// text of the model's own.
pub fn names_of(kind: &str) -> Option<&'static [&'static str]> {
    match kind {
        "query" | "search_query" => Some(&["query", "retrieval.query"]),
        "document" | "passage" | "search_document" => Some(&["document", "passage", "corpus", "retrieval.passage"]),
        _ => None,
    }
}

fn no_tokens(param: &str) -> Error {
    Error::invalid(param, "The input has no tokens.")
}
