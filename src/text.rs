//! Text to token ids: prompts, the tokenizer, limits and truncation, as sentence-transformers does it.

use crate::error::{Error, Result};
use crate::folder::Folder;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tokenizers::normalizers::{Lowercase, Sequence};
use tokenizers::{Encoding, NormalizerWrapper, PostProcessor, Token, Tokenizer, TruncationDirection};

/// How one model or adapter reads text.
#[derive(Clone)]
pub struct Text {
    tokenizer: Arc<Tokenizer>,
    tokens_max: usize,
    prompts: BTreeMap<String, String>,
    default_prompt: Option<String>,
}

/// Tokenizers by content, so that adapters which ship a copy of their base's share it.
#[derive(Default)]
pub struct Tokenizers {
    known: HashMap<String, Arc<Tokenizer>>,
}

/// What a request may ask of the reading of one input.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    /// Put before the text.
    pub prompt: Prompt,
    /// Whether `[CLS]`, `</s>` and their like are added; none: to a text yes, to token ids no.
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
    /// Drop the beginning, not the end.
    pub left: bool,
}

#[derive(Default, Deserialize)]
struct SentenceBert {
    max_seq_length: Option<usize>,
    #[serde(default)]
    do_lower_case: bool,
}

#[derive(Default, Deserialize)]
struct TokenizerConfig {
    /// 1e30 where there is no limit.
    model_max_length: Option<f64>,
}

#[derive(Default, Deserialize)]
struct SentenceTransformers {
    #[serde(default)]
    prompts: BTreeMap<String, String>,
    default_prompt_name: Option<String>,
}

impl Text {
    /// Reads the folder's tokenizer, limits and prompts; what the folder lacks comes from `base`. `positions` and
    /// `vocabulary` are what the model can take.
    pub fn of(
        folder: &Folder,
        base: Option<&Text>,
        positions: usize,
        vocabulary: usize,
        tokenizers: &mut Tokenizers,
    ) -> Result<Self> {
        let bert = folder.json::<SentenceBert>("sentence_bert_config.json")?.unwrap_or_default();
        let own = tokenizers.of(folder, bert.do_lower_case, vocabulary)?;
        let tokenizer = match (own, base) {
            (Some(tokenizer), _) => tokenizer,
            (None, Some(base)) => base.tokenizer.clone(),
            (None, None) => return Err(Error::load(folder.path().join("tokenizer.json"), "no such file")),
        };
        let declared = folder.json::<TokenizerConfig>("tokenizer_config.json")?.unwrap_or_default().model_max_length;
        let declared = declared.filter(|max| *max >= 1.0 && *max < 1e9).map(|max| max as usize);
        let tokens_max = bert.max_seq_length.or(declared).or(base.map(|base| base.tokens_max));
        let (prompts, default_name) = match folder.json::<SentenceTransformers>("config_sentence_transformers.json")? {
            Some(config) => (config.prompts, config.default_prompt_name),
            None => (base.map(|base| base.prompts.clone()).unwrap_or_default(), None),
        };
        let default_prompt = match default_name {
            Some(name) => Some(prompts.get(&name).cloned().ok_or_else(|| {
                let path = folder.path().join("config_sentence_transformers.json");
                Error::load(path, format!("default_prompt_name '{name}' is not among the prompts"))
            })?),
            None => base.and_then(|base| base.default_prompt.clone().filter(|_| base.prompts == prompts)),
        };
        Ok(Self { tokenizer, tokens_max: tokens_max.unwrap_or(positions).min(positions), prompts, default_prompt })
    }

    /// Tokens it reads at most, specials included.
    pub fn tokens_max(&self) -> usize {
        self.tokens_max
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
        let special = reading.add_special_tokens.unwrap_or(true);
        let encoding = self.tokenizer.encode_fast(text, special).map_err(|e| Error::invalid(param, e.to_string()))?;
        let Some(limit) = self.limit(encoding.len(), reading)? else { return non_empty(encoding, param) };
        let bare = self.tokenizer.encode_fast(text, false).map_err(|e| Error::invalid(param, e.to_string()))?;
        self.cut(bare, limit, special, reading, param)
    }

    /// Token ids as the caller sends them, checked against the vocabulary.
    pub fn check(&self, ids: Vec<u32>, vocabulary: usize, reading: &Reading, param: &str) -> Result<Vec<u32>> {
        if !matches!(reading.prompt, Prompt::Default | Prompt::Kind(_)) {
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
        let left = reading.truncate.is_some_and(|truncation| truncation.left);
        bare.truncate(room, 0, if left { TruncationDirection::Left } else { TruncationDirection::Right });
        let whole = self.tokenizer.post_process(bare, None, special);
        non_empty(whole.map_err(|e| Error::invalid(param, e.to_string()))?, param)
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
                let (names, needs_none): (&[&str], bool) = match kind.as_str() {
                    "query" | "search_query" => (&["query"], true),
                    "document" | "passage" | "search_document" => (&["document", "passage", "corpus"], true),
                    other => (&[other], unprompted),
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

impl Tokenizers {
    /// The folder's own tokenizer; none where it ships none. A file's truncation and padding are its trainer's, not ours.
    fn of(&mut self, folder: &Folder, lower_case: bool, vocabulary: usize) -> Result<Option<Arc<Tokenizer>>> {
        let Some(mut content) = folder.json::<Map<String, Value>>("tokenizer.json")? else { return Ok(None) };
        content.insert("truncation".into(), Value::Null);
        content.insert("padding".into(), Value::Null);
        let key = Value::Object(content).to_string();
        let known = format!("{lower_case} {key}");
        if let Some(tokenizer) = self.known.get(&known) {
            return Ok(Some(tokenizer.clone()));
        }
        let path = folder.path().join("tokenizer.json");
        let mut tokenizer = Tokenizer::from_bytes(key).map_err(|e| Error::load(&path, e.to_string()))?;
        if lower_case {
            let lower = NormalizerWrapper::Lowercase(Lowercase);
            let normalizers = std::iter::once(lower).chain(tokenizer.get_normalizer().cloned()).collect();
            tokenizer
                .with_normalizer(Some(Sequence::new(normalizers)))
                .map_err(|e| Error::load(&path, e.to_string()))?;
        }
        let highest = tokenizer.get_vocab(true).into_values().max().unwrap_or_default();
        if highest as usize >= vocabulary {
            let reason = format!("it has token id {highest}, but the model's vocabulary ends at {vocabulary}");
            return Err(Error::load(path, reason));
        }
        let tokenizer = Arc::new(tokenizer);
        self.known.insert(known, tokenizer.clone());
        Ok(Some(tokenizer))
    }
}

fn non_empty(encoding: Encoding, param: &str) -> Result<Vec<u32>> {
    if encoding.is_empty() { Err(no_tokens(param)) } else { Ok(encoding.get_ids().to_vec()) }
}

fn no_tokens(param: &str) -> Error {
    Error::invalid(param, "The input has no tokens.")
}
