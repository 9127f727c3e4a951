//! The class of tokenizers that transformers has for an architecture, where a checkpoint names none, or a wrong one.

use serde_json::Value;

/// What transformers has for an architecture.
pub struct Registered {
    /// The class of tokenizers.
    pub class: &'static str,
    /// Whether it counts whatever class a checkpoint names: for some architectures most name a wrong one.
    pub prevails: bool,
}

/// The class that does nothing but read tokenizer.json.
pub const AS_STORED: &str = "TokenizersBackend";

/// By `model_type`, as in transformers 5.23; those that are not here have none.
const CLASSES: &[(&str, &str)] = &[
    ("albert", "AlbertTokenizer"),
    ("bert", "BertTokenizer"),
    ("camembert", "CamembertTokenizer"),
    ("deberta", "DebertaTokenizer"),
    ("deberta-v2", "DebertaV2Tokenizer"),
    ("distilbert", "BertTokenizer"),
    ("gemma3_text", "GemmaTokenizer"),
    ("gte", "XLMRobertaTokenizer"),
    ("jina_embeddings_v3", "XLMRobertaTokenizer"),
    ("mistral", AS_STORED),
    ("modernbert", AS_STORED),
    ("mpnet", "MPNetTokenizer"),
    ("nomic_bert", "BertTokenizer"),
    ("qwen2", "Qwen2Tokenizer"),
    ("qwen3", "Qwen2Tokenizer"),
    ("roberta", "RobertaTokenizer"),
    ("t5", "T5Tokenizer"),
    ("xlm-roberta", "XLMRobertaTokenizer"),
];
const PREVAILING: [&str; 2] = ["modernbert", "qwen2"];

/// The tokenizer of the architecture that a config.json names.
pub fn tokenizer(config: &Value) -> Option<Registered> {
    let named = config["model_type"].as_str()?;
    let (_, class) = CLASSES.iter().find(|(known, _)| *known == named)?;
    Some(Registered { class, prevails: PREVAILING.contains(&named) })
}
