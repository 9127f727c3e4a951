//! What BERT's normalization and cutting make of characters beyond ASCII, asked of the library.

use super::own::normalized;
use std::array;
use std::ops::RangeInclusive;
use std::sync::OnceLock;
use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, Tokenizer};

/// Characters of common scripts of which each is read alike wherever it stands. Of others some marks that are kept might
/// change places with their neighbours.
const ALIKE: [RangeInclusive<char>; 9] = [
    // Latin, Greek, Cyrillic.
    '\u{80}'..='\u{2ff}',
    '\u{370}'..='\u{482}',
    '\u{48a}'..='\u{52f}',
    '\u{1e00}'..='\u{1fff}',
    // Punctuation and symbols.
    '\u{2000}'..='\u{20cf}',
    '\u{2100}'..='\u{2bff}',
    // Of Chinese, Japanese and Korean.
    '\u{3000}'..='\u{3029}',
    '\u{3030}'..='\u{d7a3}',
    '\u{ff00}'..='\u{ffef}',
];

/// By pages, made when one of them is asked for.
pub struct Chars([OnceLock<Vec<Option<Box<str>>>>; PAGES]);

const PAGES: usize = 256;
const PAGE: usize = 256;

impl Chars {
    /// Of none yet.
    pub fn new() -> Self {
        Self(array::from_fn(|_| OnceLock::new()))
    }

    /// What a character becomes, with spaces at what is cut; none for one that is not of those scripts.
    pub fn get(&self, character: char, library: &Tokenizer) -> Option<&str> {
        let code = u32::from(character) as usize;
        let page = self.0.get(code / PAGE)?;
        let page = page.get_or_init(|| {
            let codes = (code / PAGE * PAGE..).take(PAGE);
            codes.map(|code| made(char::from_u32(code as u32)?, library).map(Into::into)).collect()
        });
        page[code % PAGE].as_deref()
    }
}

fn made(character: char, library: &Tokenizer) -> Option<String> {
    /// A letter that nothing changes.
    const BESIDE: char = 'a';
    if !ALIKE.iter().any(|range| range.contains(&character)) {
        return None;
    }
    let normalized = normalized(library.get_normalizer(), &format!("{BESIDE}{character}{BESIDE}")).ok()?;
    let mut text = PreTokenizedString::from(normalized);
    library.get_pre_tokenizer()?.pre_tokenize(&mut text).ok()?;
    let words: Vec<&str> =
        text.get_splits(OffsetReferential::Original, OffsetType::None).into_iter().map(|(word, ..)| word).collect();
    words.join(" ").strip_prefix(BESIDE)?.strip_suffix(BESIDE).map(str::to_owned)
}
