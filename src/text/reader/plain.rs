//! Reading what is plain without the library's bookkeeping: for every character it keeps where it came from, and for every
//! token its text, which nobody here asks for.

use super::byte_level::ByteLevel;
use super::unigram::Unigram;
use super::word_piece::WordPiece;
use aho_corasick::AhoCorasick;
use std::collections::HashMap;
use std::ops::Range;
use tokenizers::{AddedToken, NormalizedString, Normalizer, NormalizerWrapper, Result, Tokenizer};

/// Something of pieces or words, by their bytes.
pub type ByBytes<T> = HashMap<Box<[u8]>, T, foldhash::fast::RandomState>;

/// A way to read text that has no added tokens.
pub trait Way: Send + Sync {
    /// Whether it knows, beside what is plain, how the library reads this character beyond ASCII, wherever it stands.
    fn reads(&self, _character: char, _library: &Tokenizer) -> bool {
        false
    }

    /// Adds the ids of a text that is plain but for such characters: those that the library gives.
    fn read(&self, text: &str, library: &Tokenizer, ids: &mut Vec<u32>) -> Result<()>;
}

/// How texts are read whose greater part is plain.
pub struct Plain {
    way: Box<dyn Way>,
    /// Finds, in a text of any case, what may be an added token.
    added: AhoCorasick,
}

impl Plain {
    /// None where it is not known how this tokenizer reads, or where its added tokens may lie across parts of a text.
    pub fn of(library: &Tokenizer) -> Result<Option<Self>> {
        let tokens = library.get_added_vocabulary().get_added_tokens_decoder();
        if tokens.values().any(|token| lies_across(token, library)) {
            return Ok(None);
        }
        let Some(way) = way(library)? else { return Ok(None) };
        let mut contents = Vec::new();
        for token in tokens.values() {
            let normalized = normalized(library.get_normalizer(), &token.content)?;
            contents.extend([token.content.clone(), normalized]);
        }
        contents.retain(|content| !content.is_empty());
        let added = AhoCorasick::builder().ascii_case_insensitive(true).build(&contents)?;
        Ok(Some(Self { way, added }))
    }

    /// A text's ids, part by part; none where `library` must read it whole.
    pub fn read(&self, text: &str, library: &Tokenizer) -> Result<Option<Vec<u32>>> {
        if self.added.is_match(text) {
            return Ok(None);
        }
        let (mut ids, mut rest) = (Vec::with_capacity(text.len() / 4), text);
        while let Some(odd) = rest.find(|character| self.is_odd(character, library)) {
            let seams = |places: Range<usize>| places.filter(|place| is_seam(rest.as_bytes(), *place));
            let begin = seams(0..odd).next_back().unwrap_or(0);
            let end = seams(odd..rest.len()).next().unwrap_or(rest.len());
            self.way.read(&rest[..begin], library, &mut ids)?;
            ids.extend(library.encode_fast(&rest[begin..end], false)?.get_ids());
            rest = &rest[end..];
        }
        self.way.read(rest, library, &mut ids)?;
        Ok(Some(ids))
    }

    fn is_odd(&self, character: char, library: &Tokenizer) -> bool {
        !is_plain(character) && (character.is_ascii() || !self.way.reads(character, library))
    }
}

fn way(library: &Tokenizer) -> Result<Option<Box<dyn Way>>> {
    if let Some(way) = WordPiece::of(library) {
        return Ok(Some(Box::new(way)));
    }
    if let Some(way) = Unigram::of(library)? {
        return Ok(Some(Box::new(way)));
    }
    Ok(ByteLevel::of(library)?.map(|way| Box::new(way) as Box<dyn Way>))
}

/// Graphic characters of ASCII, and those that part words and lines.
pub fn is_plain(character: char) -> bool {
    matches!(character, ' '..='~' | '\t' | '\n' | '\r')
}

/// Whether a text may be parted here, before a space that follows a graphic character of ASCII: no normalization that is
/// known here reaches over it, every way parts words there, and that a part begins with a space tells that it is not the first.
fn is_seam(text: &[u8], place: usize) -> bool {
    text[place] == b' ' && place > 0 && text[place - 1].is_ascii_graphic()
}

/// Whether a token that is looked for in what comes of normalization, and so by the library alone, may lie across a seam,
/// or in spaces that were none of its before.
fn lies_across(token: &AddedToken, library: &Tokenizer) -> bool {
    let has_spaces = token.content.contains(char::is_whitespace);
    let is_safe = token.content.trim().is_empty() && keeps_ascii(library.get_normalizer());
    token.normalized && (token.rstrip || has_spaces && !is_safe)
}

/// Whether a normalizer is one that leaves ASCII as it is.
pub fn keeps_ascii(normalizer: Option<&NormalizerWrapper>) -> bool {
    use NormalizerWrapper::{NFC, NFD, NFKC, NFKD};
    matches!(normalizer, None | Some(NFC(_) | NFD(_) | NFKC(_) | NFKD(_)))
}

/// What a normalizer makes of a text.
pub fn normalized(normalizer: Option<&NormalizerWrapper>, text: &str) -> Result<String> {
    let mut normalized = NormalizedString::from(text);
    normalizer.map(|normalizer| normalizer.normalize(&mut normalized)).transpose()?;
    Ok(normalized.get().to_owned())
}
