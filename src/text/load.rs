//! The files that say how text is read: the tokenizer, limits, prompts.

use super::Text;
use crate::error::{Error, Result};
use crate::folder::{Folder, says_nothing};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tokenizers::normalizers::{Lowercase, Sequence};
use tokenizers::{NormalizerWrapper, Tokenizer};

/// Where a reader's files lie.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    /// The model's or adapter's folder, with its prompts.
    pub folder: &'a Folder,
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

/// Tokenizers by content, so that adapters which ship a copy of their base's share it.
#[derive(Default)]
pub struct Tokenizers {
    known: HashMap<String, Arc<Tokenizer>>,
}

/// tokenizer_config.json, as far as it changes what a fast tokenizer does.
#[derive(Default, Deserialize)]
struct TokenizerConfig {
    /// 1e30 where there is no limit.
    model_max_length: Option<f64>,
    truncation_side: Option<String>,
    do_lower_case: Option<bool>,
    strip_accents: Option<bool>,
    tokenize_chinese_chars: Option<bool>,
    add_prefix_space: Option<bool>,
}

#[derive(Default, Deserialize)]
struct SentenceTransformers {
    #[serde(default)]
    prompts: BTreeMap<String, String>,
    default_prompt_name: Option<String>,
}

/// The names under which sentence-transformers looks for its transformer's settings, in its order.
const SETTINGS: [&str; 7] = [
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
];

/// Those settings.
#[derive(Default)]
struct Settings {
    tokens_max: Option<usize>,
    lower_case: bool,
}

impl Settings {
    /// Reads the first of [`SETTINGS`] that is there. A key may be there only with a value that is reproduced.
    fn of(folder: &Folder) -> Result<Self> {
        let mut settings = Self::default();
        for name in SETTINGS {
            let Some(file) = folder.json::<Map<String, Value>>(name)? else { continue };
            for (key, value) in file {
                let plain = match key.as_str() {
                    "max_seq_length" => {
                        settings.tokens_max = value.as_u64().map(|max| max as usize);
                        value.is_null() || value.as_u64().is_some_and(|max| max > 0)
                    }
                    "do_lower_case" => {
                        settings.lower_case = value.as_bool().unwrap_or_default();
                        value.is_null() || value.is_boolean()
                    }
                    "transformer_task" => value == "feature-extraction",
                    "module_output_name" => value == "token_embeddings",
                    "modality_config" => {
                        value == json!({"text": {"method": "forward", "method_output_name": "last_hidden_state"}})
                    }
                    // Arguments for Python's loaders; that of running a model's own code is ours to ignore.
                    "model_args" | "config_args" | "tokenizer_args" => {
                        value.as_object().is_some_and(|args| args.keys().all(|key| key == "trust_remote_code"))
                    }
                    _ => says_nothing(&value),
                };
                if !plain {
                    let reason = format!("{key} = {value} is not supported");
                    return Err(Error::load(folder.path().join(name), reason));
                }
            }
            break;
        }
        Ok(settings)
    }
}

impl Text {
    /// Reads a folder's tokenizer, limits and prompts; what the folder lacks comes from `base`.
    pub fn of(source: Source, base: Option<&Text>, capacity: Capacity, tokenizers: &mut Tokenizers) -> Result<Self> {
        let Source { folder, body, specials } = source;
        let settings = if specials { Settings::of(body)? } else { Settings::default() };
        // Without specials sentence-transformers reads tokenizer.json alone.
        let config = if specials { body.json::<TokenizerConfig>("tokenizer_config.json")? } else { None };
        let own = tokenizers.of(body, &settings, config.as_ref(), capacity)?;
        let (tokenizer, truncation) = match (own, base) {
            (Some(own), _) => own,
            (None, Some(base)) => (base.tokenizer.clone(), None),
            (None, None) => {
                return Err(Error::load(body.path().join("tokenizer.json"), "there is no such file"));
            }
        };
        let declared = config.as_ref().and_then(|config| config.model_max_length);
        let declared = declared.filter(|max| *max >= 1.0 && *max < 1e9).map(|max| max as usize);
        let declared = if specials { declared } else { truncation };
        let tokens_max = settings.tokens_max.or(declared).or(base.map(|base| base.tokens_max));
        let tokens_max = tokens_max.unwrap_or(capacity.positions).min(capacity.positions);
        let cut_left = match &config {
            Some(config) => config.truncation_side.as_deref() == Some("left"),
            None => base.is_some_and(|base| base.cut_left),
        };
        let (prompts, default_prompt) = match folder.json::<SentenceTransformers>(PROMPTS)? {
            Some(config) => {
                let prompt = |name: String| {
                    let unknown = format!("default_prompt_name '{name}' is not among the prompts");
                    config.prompts.get(&name).cloned().ok_or_else(|| Error::load(folder.path().join(PROMPTS), unknown))
                };
                let default_prompt = config.default_prompt_name.map(prompt).transpose()?;
                (config.prompts, default_prompt)
            }
            None => base.map(|base| (base.prompts.clone(), base.default_prompt.clone())).unwrap_or_default(),
        };
        Ok(Self { tokenizer, tokens_max, specials, cut_left, prompts, default_prompt })
    }
}

const PROMPTS: &str = "config_sentence_transformers.json";

impl Tokenizers {
    /// The folder's own tokenizer, and the length to which its file cuts; none where it ships none. The tokenizer itself
    /// neither cuts nor pads.
    fn of(
        &mut self,
        folder: &Folder,
        settings: &Settings,
        config: Option<&TokenizerConfig>,
        capacity: Capacity,
    ) -> Result<Option<(Arc<Tokenizer>, Option<usize>)>> {
        let Some(mut content) = folder.json::<Value>("tokenizer.json")? else { return Ok(None) };
        let path = folder.path().join("tokenizer.json");
        if !content.is_object() {
            return Err(Error::load(path, "it is no JSON object"));
        }
        let truncation = content["truncation"]["max_length"].as_u64().map(|max| max as usize);
        content["truncation"] = Value::Null;
        content["padding"] = Value::Null;
        if let Some(config) = config {
            overlay(&mut content, config);
        }
        let content = content.to_string();
        let key = format!("{} {content}", settings.lower_case);
        if let Some(tokenizer) = self.known.get(&key) {
            return Ok(Some((tokenizer.clone(), truncation)));
        }
        let fail = |e: tokenizers::Error| Error::load(&path, e.to_string());
        let mut tokenizer = Tokenizer::from_bytes(content).map_err(fail)?;
        if settings.lower_case {
            let lower = NormalizerWrapper::Lowercase(Lowercase);
            let normalizers = std::iter::once(lower).chain(tokenizer.get_normalizer().cloned()).collect();
            tokenizer.with_normalizer(Some(Sequence::new(normalizers))).map_err(fail)?;
        }
        let highest = tokenizer.get_vocab(true).into_values().max().unwrap_or_default();
        if highest as usize >= capacity.vocabulary {
            let end = capacity.vocabulary;
            return Err(Error::load(
                path,
                format!("it has token id {highest}, but the model's vocabulary ends at {end}"),
            ));
        }
        let tokenizer = Arc::new(tokenizer);
        self.known.insert(key, tokenizer.clone());
        Ok(Some((tokenizer, truncation)))
    }
}

/// Lays tokenizer_config.json over tokenizer.json as transformers' fast tokenizers do when they load: the arguments of
/// BERT's normalizer and of byte-level pre-tokenization are the configuration's where it names them.
fn overlay(content: &mut Value, config: &TokenizerConfig) {
    let set = |part: &mut Value, key: &str, value: Option<bool>| {
        if let Some(value) = value {
            part[key] = Value::Bool(value);
        }
    };
    let normalizer = &mut content["normalizer"];
    if normalizer["type"] == "BertNormalizer" {
        set(normalizer, "lowercase", config.do_lower_case);
        set(normalizer, "strip_accents", config.strip_accents);
        set(normalizer, "handle_chinese_chars", config.tokenize_chinese_chars);
    }
    let pre_tokenizer = &mut content["pre_tokenizer"];
    if pre_tokenizer["type"] == "ByteLevel" {
        set(pre_tokenizer, "add_prefix_space", config.add_prefix_space);
    }
}
