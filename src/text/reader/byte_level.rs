//! GPT-2's way, as RoBERTa, ModernBERT, Llama 3 and Qwen have it: words with the space before them, each of whose bytes is
//! written as a character, and then merged. The library merges what is not known as one piece.

use super::own::{ByBytes, Way, keeps_ascii};
use tokenizers::pre_tokenizers::split::SplitPattern;
use tokenizers::{Model, ModelWrapper, PreTokenizerWrapper, Result, SplitDelimiterBehavior, Tokenizer};

/// Words that are one piece, and how text is cut to words.
pub struct ByteLevel {
    whole: ByBytes<u32>,
    cut: Cut,
    /// Whether a text begins with a space, if not with its own then with one that is put there.
    adds_space: bool,
}

/// The length of the first word of a text that is plain and not empty.
type Cut = fn(&[u8]) -> usize;

impl ByteLevel {
    /// None where the tokenizer reads in another way.
    pub fn of(library: &Tokenizer) -> Result<Option<Self>> {
        let ModelWrapper::BPE(model) = library.get_model() else { return Ok(None) };
        let Some((cut, adds_space)) = cut(library) else { return Ok(None) };
        if model.dropout.is_some() || !keeps_ascii(library.get_normalizer()) {
            return Ok(None);
        }
        let one = |(piece, id): (String, u32)| {
            let word = piece.chars().map(byte).collect::<Option<Box<[u8]>>>()?;
            let tokens = model.tokenize(&piece).ok()?;
            matches!(&tokens[..], [token] if token.id == id).then_some((word, id))
        };
        // The model remembers on each thread what it has read there, up to a number: this thread is not to be filled with it.
        let whole =
            std::thread::scope(|scope| scope.spawn(|| model.get_vocab().into_iter().filter_map(one).collect()).join());
        let whole = whole.map_err(|_| "reading the vocabulary failed")?;
        Ok(Some(Self { whole, cut, adds_space }))
    }
}

impl Way for ByteLevel {
    fn add_ids(&self, text: &str, library: &Tokenizer, ids: &mut Vec<u32>) -> Result<()> {
        let spaced;
        let mut rest = match self.adds_space && !text.is_empty() && !text.starts_with(' ') {
            true => {
                spaced = format!(" {text}");
                spaced.as_bytes()
            }
            false => text.as_bytes(),
        };
        while !rest.is_empty() {
            let (word, later) = rest.split_at((self.cut)(rest));
            match self.whole.get(word) {
                Some(id) => ids.push(*id),
                None => {
                    let spelled: String = word.iter().copied().map(character).collect();
                    ids.extend(library.get_model().tokenize(&spelled)?.iter().map(|token| token.id));
                }
            }
            rest = later;
        }
        Ok(())
    }
}

/// From here on stand characters for bytes that cannot be seen.
const UNSEEN: u32 = 256;

/// How a byte of plain text is written: a space, and what ends lines, by characters that can be seen.
fn character(byte: u8) -> char {
    match byte {
        b'!'..=b'~' => char::from(byte),
        _ => char::from_u32(UNSEEN + u32::from(byte)).expect("there are no surrogates so early"),
    }
}

/// What a character writes; none where that is neither plain nor a control character.
fn byte(written: char) -> Option<u8> {
    match written {
        '!'..='~' => u8::try_from(written).ok(),
        _ => u32::from(written).checked_sub(UNSEEN).filter(|byte| *byte <= 32).map(|byte| byte as u8),
    }
}

/// How it cuts, and whether it puts a space before a text; none where that is not known.
fn cut(library: &Tokenizer) -> Option<(Cut, bool)> {
    let steps = match library.get_pre_tokenizer()? {
        PreTokenizerWrapper::Sequence(steps) => steps.as_ref(),
        one => std::slice::from_ref(one),
    };
    match steps {
        [PreTokenizerWrapper::ByteLevel(bytes)] if bytes.use_regex => Some((gpt2, bytes.add_prefix_space)),
        [PreTokenizerWrapper::Split(split), PreTokenizerWrapper::ByteLevel(bytes)]
            if !bytes.use_regex && !bytes.add_prefix_space && !split.invert =>
        {
            let SplitPattern::Regex(pattern) = &split.pattern else { return None };
            let isolates = matches!(split.behavior, SplitDelimiterBehavior::Isolated);
            let by_digits: [(&str, Cut); 2] = [(r"\p{N}", tiktoken::<1>), (r"\p{N}{1,3}", tiktoken::<3>)];
            let known = by_digits.into_iter().find(|(digits, _)| *pattern == tiktoken_pattern(digits));
            known.filter(|_| isolates).map(|(_, cut)| (cut, false))
        }
        _ => None,
    }
}

/// The pattern of Qwen 2 and, with up to three digits, of Llama 3.
fn tiktoken_pattern(digits: &str) -> String {
    let letters = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+";
    let others = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    format!("{letters}|{digits}|{others}")
}

/// What [`tiktoken_pattern`] matches, of up to so many digits.
fn tiktoken<const DIGITS: usize>(text: &[u8]) -> usize {
    if let Some(length) = contraction(text, <[u8]>::eq_ignore_ascii_case) {
        return length;
    }
    let before = usize::from(!text[0].is_ascii_digit() && !is_line_end(&text[0]) && !text[0].is_ascii_alphabetic());
    match run(&text[before..], u8::is_ascii_alphabetic) {
        0 => {}
        letters => return before + letters,
    }
    if text[0].is_ascii_digit() {
        return run(text, u8::is_ascii_digit).min(DIGITS);
    }
    let before = usize::from(text[0] == b' ');
    match run(&text[before..], u8::is_ascii_punctuation) {
        0 => {}
        signs => return before + signs + run(&text[before + signs..], is_line_end),
    }
    let spaces = &text[..run(text, u8::is_ascii_whitespace)];
    match spaces.iter().rposition(is_line_end) {
        Some(last) => last + 1,
        None => before_word(text),
    }
}

/// What GPT-2's pattern matches: `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`.
fn gpt2(text: &[u8]) -> usize {
    if let Some(length) = contraction(text, |a, b| a == b) {
        return length;
    }
    let before = usize::from(text[0] == b' ');
    let kind = match text.get(before) {
        Some(first) if first.is_ascii_alphabetic() => u8::is_ascii_alphabetic,
        Some(first) if first.is_ascii_digit() => u8::is_ascii_digit,
        Some(first) if first.is_ascii_punctuation() => u8::is_ascii_punctuation,
        _ => return before_word(text),
    };
    before + run(&text[before..], kind)
}

/// The length of the English ending that a text begins with, if with any.
fn contraction(text: &[u8], is_same: fn(&[u8], &[u8]) -> bool) -> Option<usize> {
    let endings: [&[u8]; 7] = [b"'s", b"'t", b"'re", b"'ve", b"'m", b"'ll", b"'d"];
    let is_here = |ending: &&[u8]| text.get(..ending.len()).is_some_and(|begin| is_same(begin, ending));
    endings.into_iter().filter(|_| text[0] == b'\'').find(is_here).map(<[u8]>::len)
}

/// Of the spaces that a text begins with, all, or all but the last where a word follows; one at least.
fn before_word(text: &[u8]) -> usize {
    match run(text, u8::is_ascii_whitespace) {
        all if all == text.len() => all,
        some => (some - 1).max(1),
    }
}

fn is_line_end(byte: &u8) -> bool {
    matches!(byte, b'\r' | b'\n')
}

fn run(text: &[u8], is_one: fn(&u8) -> bool) -> usize {
    text.iter().position(|byte| !is_one(byte)).unwrap_or(text.len())
}
