//! What transformers' classes of tokenizers build around a vocabulary, as in version 5.23: their parts, in the words of
//! tokenizer.json.

use super::specials::Specials;
use serde_json::{Map, Value, json};

/// What files say.
pub struct Said<'a> {
    /// Of the tokenizer.
    pub keys: &'a Map<String, Value>,
    /// tokenizer.json.
    pub content: &'a Value,
    pub specials: &'a Specials,
}

/// Parts of a tokenizer.json; the model's without vocabulary and merges.
pub struct Parts {
    pub model: Value,
    pub normalizer: Value,
    pub pre_tokenizer: Value,
}

type Built = Result<Parts, String>;

impl Said<'_> {
    /// What a key means to an `if`.
    fn flag(&self, key: &str, default: bool) -> bool {
        match self.keys.get(key) {
            None => default,
            Some(Value::Bool(flag)) => *flag,
            Some(Value::Null) => false,
            Some(other) => other != &json!(0) && other != &json!(""),
        }
    }

    /// The normalization that SentencePiece was trained with.
    fn charsmap(&self) -> Option<Value> {
        let normalizer = &self.content["normalizer"];
        let sequence = normalizer["normalizers"].as_array().map_or(std::slice::from_ref(normalizer), Vec::as_slice);
        sequence.iter().find(|one| one["type"] == "Precompiled" && one["precompiled_charsmap"].is_string()).cloned()
    }

    fn unknown(&self) -> Value {
        json!(self.specials.named("unk_token"))
    }

    /// The place of a piece, at any score or this one.
    fn place(&self, piece: &Value, score: Option<f64>) -> Option<usize> {
        let pieces = self.content["model"]["vocab"].as_array()?;
        pieces.iter().position(|known| known[0] == *piece && score.is_none_or(|score| known[1].as_f64() == Some(score)))
    }

    /// How pieces are marked that begin a word.
    fn metaspace(&self, otherwise: &str) -> Value {
        metaspace(if self.flag("add_prefix_space", true) { "always" } else { otherwise })
    }
}

fn sequence(of: &str, parts: Vec<Value>) -> Value {
    json!({"type": "Sequence", of: parts})
}

fn metaspace(scheme: &str) -> Value {
    json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": true})
}

fn by_words(metaspace: Value) -> Value {
    sequence("pretokenizers", vec![json!({"type": "WhitespaceSplit"}), metaspace])
}

fn unigram(unk_id: impl Into<Value>) -> Value {
    json!({"unk_id": unk_id.into(), "byte_fallback": false})
}

fn bpe(unk_token: Value, affix: Option<&str>, falls_back: bool) -> Value {
    json!({
        "dropout": null,
        "unk_token": unk_token,
        "continuing_subword_prefix": affix,
        "end_of_word_suffix": affix,
        "fuse_unk": falls_back,
        "byte_fallback": falls_back,
        "ignore_merges": false,
    })
}

pub fn albert(said: &Said) -> Built {
    let quote = |quotes: &str| json!({"type": "Replace", "pattern": {"String": quotes}, "content": "\""});
    let mut steps = vec![quote("``"), quote("''")];
    if !said.flag("keep_accents", false) {
        steps.extend([json!({"type": "NFKD"}), json!({"type": "StripAccents"})]);
    }
    if said.flag("do_lower_case", true) {
        steps.push(json!({"type": "Lowercase"}));
    }
    steps.extend(said.charsmap());
    let pre_tokenizer = by_words(said.metaspace("never"));
    Ok(Parts { model: unigram(1), normalizer: sequence("normalizers", steps), pre_tokenizer })
}

pub fn bert(said: &Said) -> Built {
    let accents = said.keys.get("strip_accents").filter(|strip| strip.is_boolean());
    Ok(Parts {
        model: json!({
            "unk_token": said.specials.named("unk_token").ok_or("unk_token names no token")?,
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
        }),
        normalizer: json!({
            "type": "BertNormalizer",
            "clean_text": true,
            "handle_chinese_chars": said.flag("tokenize_chinese_chars", true),
            "strip_accents": accents,
            "lowercase": said.flag("do_lower_case", true),
        }),
        pre_tokenizer: json!({"type": "BertPreTokenizer"}),
    })
}

pub fn byte_level(said: &Said) -> Built {
    let add_prefix_space = said.flag("add_prefix_space", false);
    let pre_tokenizer =
        json!({"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": true, "use_regex": true});
    Ok(Parts { model: bpe(Value::Null, Some(""), false), normalizer: Value::Null, pre_tokenizer })
}

pub fn camembert(said: &Said) -> Built {
    let unk_id = said.place(&said.unknown(), None).unwrap_or(0);
    Ok(Parts { model: unigram(unk_id), ..xlm_roberta(said)? })
}

pub fn deberta_v2(said: &Said) -> Built {
    let given = said.keys.get("unk_id").and_then(Value::as_u64).unwrap_or(1);
    let unk_id = said.place(&said.unknown(), Some(0.0)).map_or(given, |place| place as u64);
    let mut steps = Vec::new();
    if said.flag("do_lower_case", false) {
        steps.push(json!({"type": "Lowercase"}));
    }
    steps.extend([
        json!({"type": "Replace", "pattern": {"Regex": r"\s{2,}|[\n\r\t]"}, "content": " "}),
        json!({"type": "NFC"}),
        json!({"type": "Strip", "strip_left": false, "strip_right": true}),
    ]);
    let punctuation = json!({"type": "Punctuation", "behavior": "Isolated"});
    let mut splits: Vec<Value> = said.flag("split_by_punct", false).then_some(punctuation).into_iter().collect();
    splits.push(said.metaspace("first"));
    let pre_tokenizer = sequence("pretokenizers", splits);
    Ok(Parts { model: unigram(unk_id), normalizer: sequence("normalizers", steps), pre_tokenizer })
}

pub fn gemma(said: &Said) -> Built {
    let space = json!({"String": " "});
    Ok(Parts {
        model: bpe(said.unknown(), None, true),
        normalizer: json!({"type": "Replace", "pattern": space, "content": "▁"}),
        pre_tokenizer: json!({"type": "Split", "pattern": space, "behavior": "MergedWithPrevious", "invert": false}),
    })
}

pub fn llama(said: &Said) -> Built {
    let prepends = said.keys.get("add_prefix_space") != Some(&json!(false));
    let scheme = match (prepends, said.flag("legacy", false)) {
        (true, true) => "always",
        (true, false) => "first",
        (false, _) => "never",
    };
    let mut pre_tokenizer = metaspace(scheme);
    pre_tokenizer["split"] = json!(false);
    Ok(Parts { model: bpe(Value::Null, None, true), normalizer: Value::Null, pre_tokenizer })
}

/// The file's own pattern is kept: all that are known have the class's.
pub fn qwen2(said: &Said) -> Built {
    let mut pre_tokenizer = said.content["pre_tokenizer"].clone();
    let types = [&pre_tokenizer["pretokenizers"][0]["type"], &pre_tokenizer["pretokenizers"][1]["type"]];
    if types != ["Split", "ByteLevel"] || !pre_tokenizer["pretokenizers"][2].is_null() {
        return Err("pre_tokenizer is not a pattern before bytes, which its class builds".into());
    }
    pre_tokenizer["pretokenizers"][1] = json!({
        "type": "ByteLevel",
        "add_prefix_space": said.flag("add_prefix_space", false),
        "trim_offsets": true,
        "use_regex": false,
    });
    Ok(Parts { model: bpe(Value::Null, Some(""), false), normalizer: json!({"type": "NFC"}), pre_tokenizer })
}

pub fn t5(said: &Said) -> Built {
    let normalizer = said.charsmap().unwrap_or_default();
    Ok(Parts { model: unigram(2), normalizer, pre_tokenizer: by_words(metaspace("always")) })
}

pub fn xlm_roberta(said: &Said) -> Built {
    let normalizer = said.charsmap().unwrap_or_default();
    Ok(Parts { model: unigram(3), normalizer, pre_tokenizer: by_words(said.metaspace("never")) })
}
