//! What transformers' classes of tokenizers build around a vocabulary, as in version 5.23: the table.

use super::parts::{self, Parts, Said};
use serde_json::{Map, Value};

/// A class of tokenizers.
pub struct Class {
    /// Its names.
    pub names: &'static [&'static str],
    /// The type of its `model`.
    pub model: &'static str,
    /// Everything that comes before special tokens.
    pub build: fn(&Said) -> Result<Parts, String>,
    /// Its special tokens where no file names them, in the order of [`super::specials::NAMES`].
    pub specials: [&'static str; 7],
    /// Those without names.
    pub extra: fn(&Map<String, Value>) -> Vec<String>,
    /// The names of the special tokens that texts are wrapped in, the first perhaps none; none: the file says it.
    pub ends: Option<(Option<&'static str>, &'static str)>,
    /// Whether they are so whatever the file says.
    pub ends_always: bool,
    /// Whether a mask that no list of added tokens has takes the space before it along.
    pub mask_strips: bool,
    /// Whether the flags of special tokens in the files do not count.
    pub specials_are_plain: bool,
}

/// It builds nothing.
pub const NONE: Class = Class {
    names: &[],
    model: "",
    build: |_| Err("it builds nothing".into()),
    specials: [""; 7],
    extra: |_| Vec::new(),
    ends: None,
    ends_always: true,
    mask_strips: false,
    specials_are_plain: false,
};

const BRACKETED: [&str; 7] = ["[CLS]", "[SEP]", "[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"];
const ANGLED: [&str; 7] = ["<s>", "</s>", "<unk>", "</s>", "<pad>", "<s>", "<mask>"];
const END: &str = "<|endoftext|>";
const CLS_SEP: Option<(Option<&str>, &str)> = Some((Some("cls_token"), "sep_token"));
const BOS_EOS: Option<(Option<&str>, &str)> = Some((Some("bos_token"), "eos_token"));

const UNIGRAM: Class = Class { model: "Unigram", ..NONE };
const WORD_PIECE: Class = Class { model: "WordPiece", build: parts::bert, ends: CLS_SEP, ..NONE };
const BYTE_LEVEL: Class = Class { model: "BPE", build: parts::byte_level, ..NONE };

/// All that are built here.
const CLASSES: &[Class] = &[
    Class {
        names: &["AlbertTokenizer"],
        build: parts::albert,
        specials: ["[CLS]", "[SEP]", "<unk>", "[SEP]", "<pad>", "[CLS]", "[MASK]"],
        ends: CLS_SEP,
        ends_always: false,
        ..UNIGRAM
    },
    Class {
        names: &[
            "BertTokenizer",
            "DistilBertTokenizer",
            "ElectraTokenizer",
            "MobileBertTokenizer",
            "LayoutLMTokenizer",
        ],
        specials: ["", "", "[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"],
        ..WORD_PIECE
    },
    Class {
        names: &["CamembertTokenizer"],
        build: parts::camembert,
        specials: ANGLED,
        extra: |_| ["<s>", "</s>", "<unk>"].map(|token| format!("{token}NOTUSED")).into(),
        ends: BOS_EOS,
        mask_strips: true,
        ..UNIGRAM
    },
    Class { names: &["DebertaTokenizer"], specials: BRACKETED, ends: CLS_SEP, ..BYTE_LEVEL },
    Class { names: &["DebertaV2Tokenizer"], build: parts::deberta_v2, specials: BRACKETED, ends: CLS_SEP, ..UNIGRAM },
    Class {
        names: &["GemmaTokenizer"],
        build: parts::gemma,
        specials: ["<bos>", "<eos>", "<unk>", "", "<pad>", "", "<mask>"],
        ..BYTE_LEVEL
    },
    Class { names: &["GPT2Tokenizer"], specials: [END, END, END, "", "", "", ""], ..BYTE_LEVEL },
    Class {
        names: &["LlamaTokenizer"],
        build: parts::llama,
        specials: ["<s>", "</s>", "<unk>", "", "", "", ""],
        ..BYTE_LEVEL
    },
    Class {
        names: &["MPNetTokenizer"],
        specials: ["<s>", "</s>", "[UNK]", "</s>", "<pad>", "<s>", "<mask>"],
        mask_strips: true,
        ..WORD_PIECE
    },
    Class {
        names: &["Qwen2Tokenizer"],
        build: parts::qwen2,
        specials: ["", END, END, "", END, "", ""],
        specials_are_plain: true,
        ..BYTE_LEVEL
    },
    Class { names: &["RobertaTokenizer", "LongformerTokenizer"], specials: ANGLED, ends: CLS_SEP, ..BYTE_LEVEL },
    Class {
        names: &["T5Tokenizer"],
        build: parts::t5,
        specials: ["", "</s>", "<unk>", "", "<pad>", "", ""],
        extra: |keys| {
            let count = keys.get("extra_ids").and_then(Value::as_u64).unwrap_or(100);
            (0..count.min(1000)).map(|id| format!("<extra_id_{id}>")).collect()
        },
        ends: Some((None, "eos_token")),
        ..UNIGRAM
    },
    Class { names: &["XLMRobertaTokenizer"], build: parts::xlm_roberta, specials: ANGLED, ends: BOS_EOS, ..UNIGRAM },
];

/// The class of this name; none where it takes the whole file, or is not built here.
pub fn find(name: &str) -> Option<&'static Class> {
    CLASSES.iter().find(|class| class.names.contains(&name))
}
