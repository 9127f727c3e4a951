//! Texts to token ids: the `tokenizers` library, and ways around it for the most common tokenizers, which give the same ids
//! in a quarter to a twentieth of the time.

mod byte_level;
mod chars;
mod own;
mod unigram;
mod word_piece;

use own::Own;
use std::panic::{AssertUnwindSafe, catch_unwind};
use tokenizers::{Encoding, Result, Token, Tokenizer};

/// A tokenizer, and the special tokens that it puts around a text. It neither cuts nor pads.
pub struct Reader {
    library: Tokenizer,
    own: Option<Own>,
    /// Those before a text, and those after it.
    ends: std::result::Result<[Vec<u32>; 2], String>,
    id_max: u32,
}

impl Reader {
    /// An error where the library would not do without truncation.
    pub fn new(mut library: Tokenizer) -> Result<Self> {
        library.with_truncation(None)?;
        library.with_padding(None);
        let own = Own::of(&library).unwrap_or_else(|error| {
            tracing::warn!(error, "texts are read by the library alone");
            None
        });
        // The library panics where it has not thought of a combination.
        let ends = catch_unwind(AssertUnwindSafe(|| ends(&library)));
        let ends = ends.unwrap_or_else(|_| Err("post_processor is not one that the tokenizers library can run".into()));
        let id_max = library.get_vocab(true).into_values().max().unwrap_or_default();
        Ok(Self { library, own, ends, id_max })
    }

    /// Whether it knows how the library reads, and leaves to it only what it does not know.
    pub fn reads_by_itself(&self) -> bool {
        self.own.is_some()
    }

    /// Whether it reads all of a text by itself.
    pub fn is_fast(&self, text: &str) -> bool {
        self.own.as_ref().is_some_and(|own| own.reaches(text))
    }

    /// The highest id that it gives.
    pub fn id_max(&self) -> u32 {
        self.id_max
    }

    /// A text's ids, without special tokens.
    pub fn read(&self, text: &str) -> Result<Vec<u32>> {
        let ids = self.own.as_ref().map(|own| own.ids(text, &self.library)).transpose()?.flatten();
        ids.map_or_else(|| Ok(self.library.encode_fast(text, false)?.get_ids().to_vec()), Ok)
    }

    /// Special tokens before a text and after it; an error where they do not stand around it.
    pub fn ends(&self) -> std::result::Result<&[Vec<u32>; 2], String> {
        self.ends.as_ref().map_err(String::clone)
    }

    /// Whether an id is a special token's.
    pub fn is_special(&self, id: u32) -> bool {
        let token = self.library.id_to_token(id);
        token.is_some_and(|token| self.library.get_added_vocabulary().is_special_token(&token))
    }
}

/// What is put around the ids of a text, whatever they are.
fn ends(library: &Tokenizer) -> std::result::Result<[Vec<u32>; 2], String> {
    const TEXT: u32 = u32::MAX;
    let text = Encoding::from_tokens(vec![Token::new(TEXT, String::new(), (0, 0))], 0);
    let whole = library.post_process(text, None, true).map_err(|error| format!("post_processor: {error}"))?;
    let mut parts = whole.get_ids().split(|id| *id == TEXT).map(<[u32]>::to_vec);
    match (parts.next(), parts.next(), parts.next()) {
        (Some(before), Some(after), None) => Ok([before, after]),
        _ => Err("post_processor does not hold the text once".into()),
    }
}
