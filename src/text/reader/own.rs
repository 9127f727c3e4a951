//! Reading without the library's bookkeeping: for every character it keeps where it came from, and for every token its text,
//! which nobody here asks for.

use super::byte_level::ByteLevel;
use super::unigram::Unigram;
use super::word_piece::WordPiece;
use aho_corasick::AhoCorasick;
use std::collections::HashMap;
use std::ops::Range;
use tokenizers::{AddedToken, NormalizedString, Normalizer, NormalizerWrapper, Result, Tokenizer};

/// Something of pieces or words, by their bytes.
pub type ByBytes<T> = HashMap<Box<[u8]>, T, foldhash::fast::RandomState>;

/// A way to find the ids of texts that have no added tokens.
pub trait Way: Send + Sync {
    /// Whether it knows what the library makes of this character beyond ASCII, wherever it stands.
    fn knows(&self, _character: char, _library: &Tokenizer) -> bool {
        false
    }

    /// Adds the ids of a text of characters that are plain or that it knows: those that the library gives.
    fn add_ids(&self, text: &str, library: &Tokenizer, ids: &mut Vec<u32>) -> Result<()>;
}

/// A way, and what it does not reach.
pub struct Own {
    way: Box<dyn Way>,
    /// Finds, in a text of any case, what may be an added token.
    added: AhoCorasick,
}

/// Bytes of the longest text that is not left to the library: in longer ones its regular expressions may give up, whereupon it
/// cuts no more.
const TEXT_MAX: usize = 1_000_000;

/// Bytes of plain text that are worth two calls of the library, one before and one after them.
const PLAIN_MIN: usize = 64;

impl Own {
    /// None where it is not known how this tokenizer reads, or where its added tokens may lie across parts of a text.
    pub fn of(library: &Tokenizer) -> Result<Option<Self>> {
        let mut patterns = Vec::new();
        for token in library.get_added_vocabulary().get_added_tokens_decoder().values() {
            patterns.push(token.content.clone());
            if token.normalized {
                let normalized = normalized(library.get_normalizer(), &token.content)?;
                if may_lie_across(token, &normalized, library.get_normalizer()) {
                    return Ok(None);
                }
                patterns.push(normalized);
            }
        }
        let added = AhoCorasick::builder().ascii_case_insensitive(true).build(&patterns)?;
        Ok(way(library)?.map(|way| Self { way, added }))
    }

    /// A text's ids, part by part; none where `library` must read it whole.
    pub fn ids(&self, text: &str, library: &Tokenizer) -> Result<Option<Vec<u32>>> {
        if text.len() > TEXT_MAX || self.added.is_match(text) {
            return Ok(None);
        }
        let (mut ids, mut rest) = (Vec::with_capacity(text.len() / 4), text);
        while let Some(odd) = self.odd(rest, library) {
            let begin = seams(rest, 0..odd).next_back().unwrap_or(0);
            let end = self.end(rest, odd, library);
            self.way.add_ids(&rest[..begin], library, &mut ids)?;
            ids.extend(library.encode_fast(&rest[begin..end], false)?.get_ids());
            rest = &rest[end..];
        }
        self.way.add_ids(rest, library, &mut ids)?;
        Ok(Some(ids))
    }

    /// Whether the library reads nothing of a text.
    pub fn reaches(&self, text: &str) -> bool {
        text.len() <= TEXT_MAX && text.chars().all(is_plain) && !self.added.is_match(text)
    }

    /// Where the first character stands that is neither plain nor known.
    fn odd(&self, text: &str, library: &Tokenizer) -> Option<usize> {
        text.find(|character: char| {
            !is_plain(character) && (character.is_ascii() || !self.way.knows(character, library))
        })
    }

    /// Where the library's part ends that has such a character: at the next seam after which it is a while to another.
    fn end(&self, text: &str, mut odd: usize, library: &Tokenizer) -> usize {
        while let Some(end) = seams(text, odd..text.len()).next() {
            let near = &text[end..text.floor_char_boundary(end + PLAIN_MIN)];
            let Some(another) = self.odd(near, library) else { return end };
            odd = end + another;
        }
        text.len()
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

/// Whether a character is plain: a graphic one of ASCII, or what parts words and lines.
pub fn is_plain(character: char) -> bool {
    matches!(character, ' '..='~' | '\t' | '\n' | '\r')
}

/// Where a text may be parted: before a space that follows a graphic character of ASCII. No normalization that is known here
/// reaches over it, every way parts words there, and that a part begins with a space tells that it is not the first.
fn seams(text: &str, places: Range<usize>) -> impl DoubleEndedIterator<Item = usize> {
    let bytes = text.as_bytes();
    places.filter(|place| bytes[*place] == b' ' && *place > 0 && bytes[place - 1].is_ascii_graphic())
}

/// Whether a token that is looked for in what comes of normalization, and there by the library alone, may lie across a seam,
/// or in spaces that were none before, or everywhere.
fn may_lie_across(token: &AddedToken, normalized: &str, normalizer: Option<&NormalizerWrapper>) -> bool {
    let is_of_spaces = normalized.trim().is_empty() && !token.single_word && keeps_ascii(normalizer);
    normalized.is_empty() || token.rstrip || normalized.contains(char::is_whitespace) && !is_of_spaces
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
