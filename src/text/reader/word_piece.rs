//! BERT's way: words in lower case between spaces and punctuation, each the fewest long pieces from its left.

use super::chars::Chars;
use super::own::{ByBytes, Way};
use std::borrow::Cow;
use tokenizers::{Model, ModelWrapper, NormalizerWrapper, PreTokenizerWrapper, Result, Tokenizer};

/// Pieces of words, by their bytes.
pub struct WordPiece {
    /// Those that begin a word.
    first: ByBytes<u32>,
    /// Those that go on with one, without the mark of it.
    later: ByBytes<u32>,
    /// Bytes of the longest.
    piece_max: usize,
    /// The id of a word that has no pieces, or more than `word_max` characters.
    unknown: u32,
    word_max: usize,
    lowers: bool,
    /// None where added tokens are looked for in what comes of normalization.
    chars: Option<Chars>,
}

impl WordPiece {
    /// None where the tokenizer reads in another way.
    pub fn of(library: &Tokenizer) -> Option<Self> {
        let ModelWrapper::WordPiece(model) = library.get_model() else { return None };
        let Some(PreTokenizerWrapper::BertPreTokenizer(_)) = library.get_pre_tokenizer() else { return None };
        let lowers = library.get_normalizer().map_or(Some(false), lowers)?;
        let (mut first, mut later) = (ByBytes::default(), ByBytes::default());
        let mark = &model.continuing_subword_prefix;
        for (piece, id) in model.get_vocab() {
            if let Some(piece) = piece.strip_prefix(mark.as_str()) {
                later.insert(piece.as_bytes().into(), id);
            }
            first.insert(piece.into_bytes().into(), id);
        }
        let piece_max = first.keys().map(|piece| piece.len()).max()?;
        let unknown = model.token_to_id(&model.unk_token)?;
        let added = library.get_added_vocabulary().get_added_tokens_decoder();
        let chars = added.values().all(|token| !token.normalized).then(Chars::new);
        Some(Self { first, later, piece_max, unknown, word_max: model.max_input_chars_per_word, lowers, chars })
    }

    /// Text with spaces, or punctuation of ASCII, at all places where words are cut.
    fn spaced<'a>(&self, text: &'a str, library: &Tokenizer) -> Cow<'a, str> {
        let lower = match self.lowers {
            true => Cow::Owned(text.to_ascii_lowercase()),
            false => Cow::Borrowed(text),
        };
        let Some(chars) = self.chars.as_ref().filter(|_| !text.is_ascii()) else { return lower };
        let mut made = String::with_capacity(text.len());
        for character in lower.chars() {
            match character.is_ascii() {
                true => made.push(character),
                false => made.push_str(chars.get(character, library).unwrap_or_default()),
            }
        }
        made.into()
    }

    /// Adds the ids of a word; of an empty one there are none.
    fn word(&self, word: &str, ids: &mut Vec<u32>) {
        if word.len() > self.word_max && word.chars().count() > self.word_max {
            return ids.push(self.unknown);
        }
        let (before, mut rest, mut pieces) = (ids.len(), word.as_bytes(), &self.first);
        while !rest.is_empty() {
            let longest = (1..=rest.len().min(self.piece_max)).rev();
            let Some((length, id)) = longest.filter_map(|length| Some((length, *pieces.get(&rest[..length])?))).next()
            else {
                ids.truncate(before);
                return ids.push(self.unknown);
            };
            ids.push(id);
            (rest, pieces) = (&rest[length..], &self.later);
        }
    }
}

impl Way for WordPiece {
    fn knows(&self, character: char, library: &Tokenizer) -> bool {
        self.chars.as_ref().is_some_and(|chars| chars.get(character, library).is_some())
    }

    fn add_ids(&self, text: &str, library: &Tokenizer, ids: &mut Vec<u32>) -> Result<()> {
        let text = self.spaced(text, library);
        let mut begin = 0;
        for (place, byte) in text.bytes().enumerate() {
            let is_sign = byte.is_ascii_punctuation();
            if is_sign || byte.is_ascii_whitespace() {
                self.word(&text[begin..place], ids);
                self.word(if is_sign { &text[place..=place] } else { "" }, ids);
                begin = place + 1;
            }
        }
        self.word(&text[begin..], ids);
        Ok(())
    }
}

/// Whether plain text is made lower case, which is all that it may do with it.
fn lowers(normalizer: &NormalizerWrapper) -> Option<bool> {
    match normalizer {
        NormalizerWrapper::BertNormalizer(bert) => Some(bert.lowercase),
        NormalizerWrapper::Lowercase(_) => Some(true),
        NormalizerWrapper::Sequence(steps) => {
            steps.as_ref().iter().map(lowers).try_fold(false, |any, lowers| Some(any | lowers?))
        }
        _ => None,
    }
}
