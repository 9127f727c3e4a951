//! What the first module's own files say of reading text: sentence-transformers' settings and tokenizer_config.json.

use crate::error::{Error, Result};
use crate::folder::{Folder, says_nothing, typed};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// The names under which sentence-transformers looks for its transformer's settings, in its order.
const FILES: [&str; 7] = [
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
];

/// Arguments of the tokenizer that change nothing here: sides to which nothing is padded, and how Python loads it.
const INERT_OF_TOKENIZER: [&str; 4] = ["padding_side", "use_fast", "clean_up_tokenization_spaces", "local_files_only"];
/// Arguments of the model that change nothing here: how it computes and lies in memory is this server's to say.
const INERT_OF_MODEL: [&str; 6] =
    ["attn_implementation", "torch_dtype", "dtype", "low_cpu_mem_usage", "device_map", "use_safetensors"];
/// That of running a model's own code is ours to ignore.
const IGNORED: &str = "trust_remote_code";

const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

/// Those settings.
#[derive(Default)]
pub struct Settings {
    /// Tokens that are read at most.
    pub tokens_max: Option<usize>,
    /// Whether texts are made lower case.
    pub lower_case: bool,
    /// Arguments that go over tokenizer_config.json.
    tokenizer: Map<String, Value>,
}

/// tokenizer_config.json.
#[derive(Default, Deserialize)]
pub struct TokenizerConfig {
    /// 1e30 where there is no limit.
    pub model_max_length: Option<f64>,
    pub truncation_side: Option<String>,
    /// All keys, for what a class builds of them.
    #[serde(skip)]
    pub keys: Map<String, Value>,
}

/// Arguments of the tokenizer that change what it does.
const TOKENIZER_KEYS: [&str; 6] = [
    "model_max_length",
    "truncation_side",
    "do_lower_case",
    "strip_accents",
    "tokenize_chinese_chars",
    "add_prefix_space",
];

impl Settings {
    /// Reads the first of the files that is there. A key may be there only with a value that is reproduced.
    pub fn of(folder: &Folder) -> Result<Self> {
        let mut settings = Self::default();
        for name in FILES {
            let Some(file) = folder.json::<Map<String, Value>>(name)? else { continue };
            for (key, value) in file {
                if !settings.take(&key, &value) {
                    let reason = format!("{key} = {value} is not supported");
                    return Err(Error::load(folder.path().join(name), reason));
                }
            }
            break;
        }
        // Of both, the tokenizer's own argument counts.
        let own = settings.tokenizer.get("model_max_length").and_then(Value::as_u64);
        settings.tokens_max = own.map(|max| max as usize).or(settings.tokens_max);
        Ok(settings)
    }

    /// Whether a key's value is one that is reproduced.
    fn take(&mut self, key: &str, value: &Value) -> bool {
        match key {
            "max_seq_length" => {
                self.tokens_max = value.as_u64().map(|max| max as usize);
                value.is_null() || value.as_u64().is_some_and(|max| max > 0)
            }
            "do_lower_case" => {
                self.lower_case = value.as_bool().unwrap_or_default();
                value.is_null() || value.is_boolean()
            }
            "transformer_task" => value == "feature-extraction",
            "module_output_name" => value == "token_embeddings",
            "modality_config" => {
                *value == json!({"text": {"method": "forward", "method_output_name": "last_hidden_state"}})
            }
            // Nothing is padded anyway.
            "unpad_inputs" => value.is_null() || value.is_boolean(),
            "tokenizer_args" | "processor_kwargs" => {
                let known = |key: &str| TOKENIZER_KEYS.contains(&key) || INERT_OF_TOKENIZER.contains(&key);
                self.tokenizer = value.as_object().cloned().unwrap_or_default();
                only(value, known) && self.tokenizer.get("model_max_length").is_none_or(|max| max.as_u64() > Some(0))
            }
            "model_args" | "model_kwargs" => only(value, |key| INERT_OF_MODEL.contains(&key)),
            "config_args" | "config_kwargs" => only(value, |_| false),
            _ => says_nothing(value),
        }
    }

    /// The folder's tokenizer_config.json under these settings; none where neither says anything.
    pub fn over(&self, folder: &Folder) -> Result<Option<TokenizerConfig>> {
        let file: Option<Map<String, Value>> = folder.json(TOKENIZER_CONFIG)?;
        if file.is_none() && self.tokenizer.is_empty() {
            return Ok(None);
        }
        let mut config = file.unwrap_or_default();
        config.extend(self.tokenizer.clone());
        let fail = |reason: String| Error::load(folder.path().join(TOKENIZER_CONFIG), reason);
        let typed: TokenizerConfig = typed(Value::Object(config.clone())).map_err(fail)?;
        Ok(Some(TokenizerConfig { keys: config, ..typed }))
    }
}

/// Whether a value is an object with known keys only.
fn only(value: &Value, known: impl Fn(&str) -> bool) -> bool {
    value.as_object().is_some_and(|args| args.keys().all(|key| key == IGNORED || known(key)))
}
