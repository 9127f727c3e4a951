//! tokenizer.json as transformers 5 reads it: most of its classes take vocabulary, merges and added tokens from the file
//! and build the rest anew, so that what the file says of it does not count.

mod classes;
mod parts;
mod specials;

use crate::model::tokenizers::{self, AS_STORED};
use classes::{Class, NONE};
use serde_json::{Map, Value, json};
use specials::Specials;

/// What a folder says of its tokenizer beside tokenizer.json.
pub struct Sayings<'a> {
    /// tokenizer_config.json, with arguments laid over.
    pub tokenizer: &'a Map<String, Value>,
    /// special_tokens_map.json of older versions.
    pub specials_map: Option<&'a Map<String, Value>>,
    /// config.json; null where there is none.
    pub model: &'a Value,
    /// Rows of the model's word embedding.
    pub vocabulary: usize,
}

/// Classes that build their own or are no reader of tokenizer.json at all, and are not built here.
const NOT_BUILT: &str = "Barthez Bartpho BertGeneration BertJapanese BertTokenizerLegacy Bertweet BigBird BioGpt Blenderbot \
    BlenderbotSmall ByT5 CLIP CTRL Canine Clvp CodeGen CodeLlama Cohere Cpm CpmAnt DPRContextEncoder DPRQuestionEncoder \
    DPRReader Esm Esmc FSMT Flaubert Funnel GPTNeoX GPTNeoXJapanese GPTSw3 Herbert LayoutLMv2 LayoutLMv3 LayoutXLM Luke \
    M2M100 MBart MBart50 MLuke Marian MarkupLM MyT5 Nllb Nougat OpenAIGPT PLBart Pegasus Perceiver Phobert ProphetNet \
    Qwen3_5 Reformer RemBert RoCBert RoFormer SeamlessM4T Siglip Siglip2 Splinter Tapas Udop Whisper XGLM XLM XLNet";

/// Makes of a file's content what transformers makes of it; an error names the key that it cannot be made for.
pub fn rebuild(content: &mut Value, sayings: &Sayings) -> Result<(), String> {
    let mut keys = sayings.tokenizer.clone();
    if let Some(map) = sayings.specials_map.filter(|_| !keys.contains_key("added_tokens_decoder")) {
        keys.extend(map.clone());
    }
    let name = class_of(content, &keys, sayings.model);
    let Some(class) = classes::find(&name) else {
        let is_known = NOT_BUILT.split_whitespace().any(|known| known == name || format!("{known}Tokenizer") == name);
        // Whoever writes this key has written what its class builds.
        if is_known && keys.get("backend") != Some(&json!("tokenizers")) {
            return Err(format!("tokenizer_class '{name}' is not supported; load and save it with transformers 5"));
        }
        let stored = content["added_tokens"].as_array().cloned().unwrap_or_default();
        let specials = Specials::of(stored, &keys, &NONE, content)?;
        content["added_tokens"] = specials.fit(content, sayings.vocabulary)?;
        return Ok(());
    };
    let specials = Specials::of(Vec::new(), &keys, class, content)?;
    build(content, &keys, class, &specials)?;
    content["added_tokens"] = specials.fit(content, sayings.vocabulary)?;
    let ends = class.ends.filter(|_| class.ends_always || content["post_processor"].is_null());
    if let Some((first, last)) = ends {
        content["post_processor"] = specials.template(content, first, last)?;
    }
    Ok(())
}

/// The name of the class, without the suffix that it once had, by the rules of AutoTokenizer.
fn class_of(content: &Value, keys: &Map<String, Value>, model: &Value) -> String {
    let named = |value: Option<&Value>| {
        let name = value.and_then(Value::as_str).filter(|name| !name.is_empty())?;
        Some(name.strip_suffix("Fast").unwrap_or(name).to_owned())
    };
    let own = named(keys.get("tokenizer_class"));
    let declared = own.or_else(|| named(model.get("tokenizer_class")));
    let registered = tokenizers::tokenizer(model);
    let is_remote = match keys.get("auto_map") {
        Some(Value::Object(map)) => map.get("AutoTokenizer").is_some_and(|code| !code.is_null()),
        other => other.is_some_and(Value::is_array),
    };
    let (class, prevails) = match registered {
        Some(registered) => (Some(registered.class), registered.prevails),
        None => (None, false),
    };
    match (declared, class) {
        (None, class) => class.unwrap_or(AS_STORED).to_owned(),
        (Some(declared), _) if is_remote => declared,
        (Some(declared), class)
            if declared == "LlamaTokenizer" && class != Some(AS_STORED) && !prevails && is_byte_level(content) =>
        {
            AS_STORED.to_owned()
        }
        (Some(declared), Some(class)) if class != declared && (class == AS_STORED || prevails) => class.to_owned(),
        (Some(declared), _) => declared,
    }
}

/// Whether anything but the vocabulary is byte-level.
fn is_byte_level(content: &Value) -> bool {
    let parts = ["normalizer", "pre_tokenizer", "post_processor", "decoder"];
    parts.iter().any(|part| content[*part].to_string().contains("\"ByteLevel\""))
}

/// Lays what a class builds over a file's content.
fn build(content: &mut Value, keys: &Map<String, Value>, class: &Class, specials: &Specials) -> Result<(), String> {
    let kind = content["model"]["type"].as_str().unwrap_or(class.model).to_owned();
    if kind != class.model {
        let name = class.names[0];
        return Err(format!(
            "its model is of type '{kind}', but the tokenizer_class {name} is of type '{}'",
            class.model
        ));
    }
    let parts = (class.build)(&parts::Said { keys, content, specials })?;
    let mut model = parts.model;
    model["type"] = json!(kind);
    for kept in ["vocab", "merges"] {
        if let Some(value) = content["model"].get_mut(kept) {
            model[kept] = value.take();
        }
    }
    content["model"] = model;
    content["normalizer"] = parts.normalizer;
    content["pre_tokenizer"] = parts.pre_tokenizer;
    Ok(())
}
