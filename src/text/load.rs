//! The files that say how text is read: the tokenizer, limits, prompts.

use super::reader::Reader;
use super::settings::{Settings, TokenizerConfig};
use super::tokenizer::{self, Sayings};
use super::{Text, UNPROMPTED};
use crate::error::{Error, Result};
use crate::folder::{Folder, parse_json};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokenizers::normalizers::{Lowercase, Sequence};
use tokenizers::{NormalizerWrapper, Tokenizer};

/// Where a reader's files lie.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    /// The model's or adapter's folder, with its prompts; none where the model has no modules.json: then
    /// sentence-transformers reads no file of its own.
    pub folder: Option<&'a Folder>,
    /// The folder of its first module, with tokenizer and limits; often the same.
    pub body: &'a Folder,
    /// Whether texts are wrapped in special tokens, as transformers want it. Where not, a tokenizer's own truncation
    /// counts, and a text may have no tokens.
    pub specials: bool,
}

/// What a model can take.
#[derive(Clone, Copy)]
pub struct Capacity {
    /// Tokens of a sequence.
    pub positions: usize,
    /// Rows of its word embedding.
    pub vocabulary: usize,
}

/// A folder's own tokenizer, and the length to which its file cuts.
type Own = (Arc<Reader>, Option<usize>);

/// Tokenizers by content, so that adapters which ship a copy of their base's share it.
#[derive(Default)]
pub struct Tokenizers {
    /// By what files say: to compare that takes a hundredth of the time of reading it.
    read: Mutex<HashMap<Files, Own>>,
    /// By what is made of the files.
    made: Mutex<HashMap<String, Arc<Reader>>>,
}

/// All that a tokenizer is made of.
#[derive(PartialEq, Eq, Hash)]
struct Files {
    /// Those of tokenizer.json.
    bytes: blake3::Hash,
    /// [`Sayings`], in JSON.
    said: String,
    lower_case: bool,
}

#[derive(Default, Deserialize)]
struct SentenceTransformers {
    /// A prompt that is null is empty.
    #[serde(default)]
    prompts: BTreeMap<String, Option<String>>,
    default_prompt_name: Option<String>,
}

/// Prompts by name, and the one for texts that none is asked for.
type Prompts = (BTreeMap<String, String>, Option<String>);

impl SentenceTransformers {
    /// A folder's prompts; none where it has no such file.
    fn prompts(folder: &Folder) -> Result<Option<Prompts>> {
        const FILE: &str = "config_sentence_transformers.json";
        let Some(Self { prompts, default_prompt_name }) = folder.json(FILE)? else { return Ok(None) };
        let prompts: BTreeMap<String, String> =
            prompts.into_iter().map(|(name, prompt)| (name, prompt.unwrap_or_default())).collect();
        let default = |name: String| match prompts.get(&name) {
            Some(prompt) => Ok(prompt.clone()),
            None if UNPROMPTED.contains(&name.as_str()) => Ok(String::new()),
            None => {
                let unknown = format!("default_prompt_name '{name}' is not among the prompts");
                Err(Error::load(folder.path().join(FILE), unknown))
            }
        };
        let default = default_prompt_name.map(default).transpose()?;
        Ok(Some((prompts, default)))
    }
}

impl Text {
    /// Reads a folder's tokenizer, limits and prompts; what the folder lacks comes from `base`.
    pub fn of(source: Source, base: Option<&Text>, capacity: Capacity, tokenizers: &Tokenizers) -> Result<Self> {
        let Source { folder, body, specials } = source;
        let settings = if specials && folder.is_some() { Settings::of(body)? } else { Settings::default() };
        // Without specials sentence-transformers reads tokenizer.json alone.
        let config = if specials { settings.over(body)? } else { None };
        let rows = specials.then_some(capacity.vocabulary);
        let own = tokenizers.of(body, &settings, config.as_ref(), rows)?;
        let whose = if own.is_some() { "it" } else { "its base's tokenizer" };
        let (reader, truncation) = match (own, base) {
            (Some(own), _) => own,
            (None, Some(base)) => (base.reader.clone(), None),
            (None, None) => return Err(Error::load(body.path().join("tokenizer.json"), "there is no such file")),
        };
        if let (true, Err(reason)) = (specials, reader.ends()) {
            return Err(Error::load(body.path().join("tokenizer.json"), reason));
        }
        let id_max = reader.id_max();
        if id_max as usize >= capacity.vocabulary {
            let end = capacity.vocabulary;
            let reason = format!(
                "{whose} has token id {id_max}, but the model's vocabulary ends at {end}; \
                                  where tokens were added, an embedding that has grown with them must be saved too"
            );
            return Err(Error::load(body.path().join("tokenizer.json"), reason));
        }
        let declared = config.as_ref().and_then(|config| config.model_max_length);
        let declared = declared.filter(|max| *max >= 1.0 && *max < 1e9).map(|max| max as usize);
        let declared = if specials { declared } else { truncation };
        let tokens_max = settings.tokens_max.or(declared).or(base.map(|base| base.tokens_max));
        let tokens_max = tokens_max.unwrap_or(capacity.positions).min(capacity.positions);
        let cut_left = match &config {
            Some(config) => config.truncation_side.as_deref() == Some("left"),
            None => base.is_some_and(|base| base.cut_left),
        };
        let (prompts, default_prompt) = match folder.map(SentenceTransformers::prompts).transpose()?.flatten() {
            Some(own) => own,
            None => base.map(|base| (base.prompts.clone(), base.default_prompt.clone())).unwrap_or_default(),
        };
        Ok(Self { reader, tokens_max, specials, cut_left, prompts, default_prompt, routed: false })
    }
}

impl Tokenizers {
    /// The folder's own tokenizer, and the length to which its file cuts; none where it ships none. The tokenizer itself
    /// neither cuts nor pads. `rows` are the model's for tokens where transformers reads the file, none where it is read
    /// as it is.
    fn of(
        &self,
        folder: &Folder,
        settings: &Settings,
        config: Option<&TokenizerConfig>,
        rows: Option<usize>,
    ) -> Result<Option<Own>> {
        let Some((path, bytes)) = folder.bytes("tokenizer.json")? else { return Ok(None) };
        let (mut keys, mut specials, mut model) = (Map::new(), None, Value::Null);
        if rows.is_some() {
            keys.extend(config.map(|config| config.keys.clone()).unwrap_or_default());
            specials = folder.json("special_tokens_map.json")?;
            model = folder.json("config.json")?.unwrap_or_default();
        }
        let said = json!([keys, specials, model, rows]).to_string();
        let files = Files { bytes: blake3::hash(&bytes), said, lower_case: settings.lower_case };
        if let Some(known) = locked(&self.read).get(&files) {
            return Ok(Some(known.clone()));
        }
        let sayings = rows.map(|vocabulary| Sayings {
            tokenizer: &keys,
            specials_map: specials.as_ref(),
            model: &model,
            vocabulary,
        });
        let made = self.make(&path, &bytes, sayings, settings.lower_case)?;
        locked(&self.read).insert(files, made.clone());
        Ok(Some(made))
    }

    /// Reads it, where no file of other bytes made the same.
    fn make(&self, path: &Path, bytes: &[u8], sayings: Option<Sayings>, lower_case: bool) -> Result<Own> {
        let mut content: Value = parse_json(path, bytes)?;
        if !content.is_object() {
            return Err(Error::load(path, "it is no JSON object"));
        }
        let truncation = content["truncation"]["max_length"].as_u64().map(|max| max as usize);
        content["truncation"] = Value::Null;
        content["padding"] = Value::Null;
        if let Some(sayings) = sayings {
            tokenizer::rebuild(&mut content, &sayings).map_err(|reason| Error::load(path, reason))?;
        }
        // As sentence-transformers does: a normalizer with a step that does it is left as it is.
        let lower_case = lower_case && !lowers(&content["normalizer"]);
        let content = content.to_string();
        let key = format!("{lower_case} {content}");
        if let Some(own) = locked(&self.made).get(&key) {
            return Ok((own.clone(), truncation));
        }
        let fail = |e: tokenizers::Error| Error::load(path, e.to_string());
        let mut tokenizer = Tokenizer::from_bytes(content).map_err(fail)?;
        if lower_case {
            let lower = NormalizerWrapper::Lowercase(Lowercase);
            let normalizers = std::iter::once(lower).chain(tokenizer.get_normalizer().cloned()).collect();
            tokenizer.with_normalizer(Some(Sequence::new(normalizers))).map_err(fail)?;
        }
        let own = Arc::new(Reader::new(tokenizer).map_err(fail)?);
        let by = if own.reads_by_itself() { "a way of its own" } else { "the library alone" };
        tracing::debug!(path = %path.display(), "reads texts by {by}");
        // Where another thread was faster, its own is the one that is shared.
        Ok((locked(&self.made).entry(key).or_insert(own).clone(), truncation))
    }
}

fn locked<T>(known: &Mutex<T>) -> MutexGuard<'_, T> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a normalizer, or one in its sequence, is the one that makes lower case.
fn lowers(normalizer: &Value) -> bool {
    let one = |normalizer: &Value| normalizer["type"] == "Lowercase";
    one(normalizer) || normalizer["normalizers"].as_array().is_some_and(|sequence| sequence.iter().any(one))
}
