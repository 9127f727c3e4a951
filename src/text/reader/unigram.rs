//! SentencePiece's way, as XLM-RoBERTa and T5 have it: words between spaces, each in the pieces whose scores have the
//! highest sum.

use super::own::{ByBytes, Way, is_plain, keeps_ascii, normalized};
use foldhash::fast::RandomState;
use std::collections::HashMap;
use tokenizers::pre_tokenizers::metaspace::PrependScheme;
use tokenizers::{Model, ModelWrapper, NormalizerWrapper, PreTokenizerWrapper, Result, Tokenizer};

/// How much less a character without a piece of its own scores than the worst of pieces, as the library has it.
const UNKNOWN_PENALTY: f64 = 10.0;

/// Pieces with their scores.
pub struct Unigram {
    pieces: Trie,
    /// In place of a character that has none.
    unknown: Piece,
    /// What a word begins with.
    mark: String,
    /// Words, without their mark, that are one piece.
    whole: ByBytes<u32>,
}

#[derive(Clone, Copy)]
struct Piece {
    id: u32,
    score: f64,
}

/// The last step of the best way from a word's begin to some place of it.
#[derive(Clone, Copy)]
struct Step {
    /// Of the whole way.
    score: f64,
    begin: usize,
    id: u32,
}

impl Unigram {
    /// None where the tokenizer reads in another way.
    pub fn of(library: &Tokenizer) -> Result<Option<Self>> {
        let (ModelWrapper::Unigram(model), Some(mark)) = (library.get_model(), mark(library)) else { return Ok(None) };
        if model.byte_fallback() || model.alpha.is_some() || !keeps_words(library.get_normalizer())? {
            return Ok(None);
        }
        // With greater scores, several unknown characters could be better than the piece that they are together.
        let Some(unknown) = unknown(library, model).filter(|_| model.min_score < UNKNOWN_PENALTY) else {
            return Ok(None);
        };
        let unknown = Piece { id: unknown, score: model.min_score - UNKNOWN_PENALTY };
        let mut way = Self { pieces: Trie::default(), unknown, mark, whole: ByBytes::default() };
        // Of two that are the same, the last counts; what no word has is left out.
        for (id, (piece, score)) in (0..).zip(model.iter()) {
            if is_graphic(piece.strip_prefix(&way.mark).unwrap_or(piece)) {
                way.pieces.insert(piece, Piece { id, score: *score });
            }
        }
        for (piece, _) in model.iter() {
            let Some(word) = piece.strip_prefix(&way.mark).filter(|word| is_graphic(word)) else { continue };
            let mut ids = Vec::new();
            way.pieces(piece.as_bytes(), &mut ids);
            if let [id] = ids[..] {
                way.whole.insert(word.as_bytes().into(), id);
            }
        }
        Ok(Some(way))
    }

    /// Adds the ids of a word's pieces, its mark included: Viterbi's search, which of equal ways keeps the first.
    fn pieces(&self, word: &[u8], ids: &mut Vec<u32>) {
        let mut steps: Vec<Option<Step>> = vec![None; word.len() + 1];
        let mut begin = 0;
        while begin < word.len() {
            let so_far = steps[begin].map_or(0.0, |step| step.score);
            let mut reach = |length: usize, piece: Piece| {
                let (step, score) = (&mut steps[begin + length], so_far + piece.score);
                if step.is_none_or(|other| score > other.score) {
                    *step = Some(Step { score, begin, id: piece.id });
                }
            };
            let rest = &word[begin..];
            let character = if rest.starts_with(self.mark.as_bytes()) { self.mark.len().max(1) } else { 1 };
            let mut is_known = false;
            for (length, piece) in self.pieces.along(rest) {
                is_known |= length == character;
                reach(length, piece);
            }
            if !is_known {
                reach(character, self.unknown);
            }
            begin += character;
        }
        let (before, mut end) = (ids.len(), word.len());
        while let Some(step) = steps[end] {
            // Unknown characters beside each other are one token.
            if step.id != self.unknown.id || ids[before..].last() != Some(&step.id) {
                ids.push(step.id);
            }
            end = step.begin;
        }
        ids[before..].reverse();
    }
}

/// Pieces, byte by byte.
#[derive(Default)]
struct Trie {
    /// From a node, by a byte, to a node. The first is 0.
    steps: HashMap<(u32, u8), u32, RandomState>,
    /// What ends at every node but the first.
    ends: Vec<Option<Piece>>,
}

impl Trie {
    fn insert(&mut self, bytes: &str, piece: Piece) {
        let mut node = 0;
        for byte in bytes.bytes() {
            node = *self.steps.entry((node, byte)).or_insert_with(|| {
                self.ends.push(None);
                self.ends.len() as u32
            });
        }
        if let Some(end) = (node as usize).checked_sub(1) {
            self.ends[end] = Some(piece);
        }
    }

    /// Lengths of the pieces that a text begins with, and these.
    fn along(&self, text: &[u8]) -> impl Iterator<Item = (usize, Piece)> {
        let nodes = text.iter().scan(0, |node, byte| {
            *node = *self.steps.get(&(*node, *byte))?;
            Some(*node as usize)
        });
        (1..).zip(nodes).filter_map(|(length, node)| Some((length, self.ends[node - 1]?)))
    }
}

impl Way for Unigram {
    fn add_ids(&self, text: &str, _: &Tokenizer, ids: &mut Vec<u32>) -> Result<()> {
        let mut marked = Vec::new();
        for word in text.split_ascii_whitespace() {
            match self.whole.get(word.as_bytes()) {
                Some(id) => ids.push(*id),
                None => {
                    marked.clear();
                    marked.extend_from_slice(self.mark.as_bytes());
                    marked.extend_from_slice(word.as_bytes());
                    self.pieces(&marked, ids);
                }
            }
        }
        Ok(())
    }
}

/// What words between spaces begin with; none where they are not what is split.
fn mark(library: &Tokenizer) -> Option<String> {
    let PreTokenizerWrapper::Sequence(steps) = library.get_pre_tokenizer()? else { return None };
    let [PreTokenizerWrapper::WhitespaceSplit(_), PreTokenizerWrapper::Metaspace(mark)] = steps.as_ref() else {
        return None;
    };
    // Words would be split at a replacement of ASCII.
    match (mark.get_prepend_scheme(), mark.get_replacement().is_ascii()) {
        (PrependScheme::Always, false) => Some(mark.get_replacement().to_string()),
        (PrependScheme::Never, false) => Some(String::new()),
        _ => None,
    }
}

/// The id of what the model does not know; none where a word may have its piece, which then is as unknown as what is beside it.
fn unknown(library: &Tokenizer, model: &tokenizers::models::unigram::Unigram) -> Option<u32> {
    /// Not a character, and so no piece.
    const NONE: &str = "\u{10ffff}";
    let tokens = model.token_to_id(NONE).is_none().then(|| model.tokenize(NONE).ok())??;
    let id = tokens.first()?.id;
    let piece = model.id_to_token(id)?;
    let is_added = library.get_added_vocabulary().get_vocab().contains_key(&piece);
    (is_added || !is_graphic(&piece)).then_some(id)
}

/// Whether a normalizer leaves graphic characters of ASCII as they are, and spaces what parts words.
fn keeps_words(normalizer: Option<&NormalizerWrapper>) -> Result<bool> {
    let Some(NormalizerWrapper::Precompiled(_)) = normalizer else { return Ok(keeps_ascii(normalizer)) };
    let keeps = |text: String| -> Result<bool> {
        let made = normalized(normalizer, &text)?;
        let parts = !made.is_empty() && made.chars().all(char::is_whitespace);
        Ok(if text.trim().is_empty() { parts } else { made == text })
    };
    let plain = ('\0'..='\x7f').filter(|character| is_plain(*character)).map(String::from);
    plain.chain(["\r\n".to_owned()]).try_fold(true, |all, text| Ok(all & keeps(text)?))
}

fn is_graphic(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_graphic())
}
