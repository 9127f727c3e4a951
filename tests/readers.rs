//! Token ids beside those of the `tokenizers` library, whichever way a text is read: for all families' tokenizers and for
//! changed ones, on texts put together by chance from what is easily read wrong.

mod support;

use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use support::chance::Chance;
use support::{fixture, read};
use tokenizers::Tokenizer;
use veneer::text::Reader;

/// The tokenizers of all fixtures, by the names of their folders.
fn tokenizers() -> Vec<(String, Tokenizer)> {
    let mut files: Vec<PathBuf> = fs::read_dir(fixture("")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let read = |folder: PathBuf| {
        let mut tokenizer = Tokenizer::from_file(folder.join("base/tokenizer.json")).ok()?;
        tokenizer.with_truncation(None).unwrap();
        tokenizer.with_padding(None);
        Some((folder.file_name().unwrap().to_string_lossy().into_owned(), tokenizer))
    };
    files.into_iter().filter_map(read).collect()
}

/// Of parts, and now and then any character, more often one of the first thousands.
fn text(chance: &mut Chance, parts: &[String]) -> String {
    let (length, end) = (chance.below(24), *chance.one(&[0x600, 0x3100, 0x20000]));
    let mut part = || match chance.below(6) {
        0 => char::from_u32(chance.below(end) as u32).map(String::from).unwrap_or_default(),
        _ => chance.one(parts).clone(),
    };
    (0..length).map(|_| part()).collect()
}

/// Parts that texts are put together from: what a way may take for a border and is none, or the other way round.
fn parts(library: &Tokenizer) -> Vec<String> {
    let mut parts: Vec<String> = (1..=126u8).map(|byte| char::from(byte).to_string()).collect();
    let odd = "é e\u{301} \u{301} ß İ ﬁ Ａ ； ’ “ ” – … \u{a0} \u{2003} \u{200b} \u{ad} \u{fffd} \u{1f600} 你好 ｡ ー が ำ \u{600} \
        \u{915}\u{94d} \u{17f} \u{212a} \u{37e} \u{2581} Ġ ## 'S 'STOP 'll 'RE 's 1234567 xyzzy ab the, of library package";
    parts.extend(odd.split(' ').map(str::to_owned));
    parts.extend(["\r\n", "\n\n", "  ", " \n ", "\n x", "!\n", "\t ", " 's", " the", " of", " A"].map(str::to_owned));
    parts.extend(["a".repeat(99), "é".repeat(60), "я".repeat(99)]);
    // Spaces and common words come often.
    parts.extend(std::iter::repeat_n(" ".to_owned(), 60));
    for token in library.get_added_vocabulary().get_added_tokens_decoder().values() {
        parts.extend([token.content.clone(), token.content.to_uppercase(), token.content.chars().skip(1).collect()]);
    }
    let vocabulary = library.get_vocab(false);
    let mut pieces: Vec<&String> = vocabulary.keys().collect();
    pieces.sort();
    parts.extend(pieces.into_iter().map(|piece| piece.replace(['Ġ', '▁'], " ").replace("##", "")));
    parts
}

fn named(name: &str) -> Value {
    read(&format!("{name}/base/tokenizer.json"))
}

fn tokenizer(content: &Value) -> Tokenizer {
    Tokenizer::from_bytes(content.to_string()).unwrap()
}

/// With more added tokens; flags are those that are true.
fn with_tokens(mut content: Value, tokens: &[(&str, &[&str])]) -> Value {
    let added = content["added_tokens"].as_array_mut().unwrap();
    for (text, flags) in tokens {
        let mut token = json!({"id": 2000 + added.len(), "content": text});
        ["single_word", "lstrip", "rstrip", "normalized", "special"].iter().for_each(|flag| {
            token[flag] = json!(flags.contains(flag));
        });
        added.push(token);
    }
    content
}

/// A normalization of SentencePiece's with these rules: tab, line ends, U+A0, U+2003 and U+3000 to a space, U+FB01 to fi,
/// U+FF21 to A, U+FF1B to ;, U+2026 to three dots, U+200B to nothing, U+2122 to TM, e and U+301 to U+E9, U+304B and U+3099 to
/// U+304C (`spm_train --normalization_rule_tsv`).
const CHARSMAP: &str = "\
    AAQAAAAgAAAJCQAACgUAAAEAAIDMDAIADRkAAIEFAAARAACAoC0AAIBoAgAAAACAAwAAgKIJAACEjAIACwAAgIAxAACDTQAAi5gDAIB0AgCBJA\
    IA4wwCAIJsAgAUAACAmQUAAItJAACBDQAADgAAgJsdAAAHAACACQAAgB8AAAAeAAAArOACAKHxAAAjAAAAIgAAACUAAAAkAAAAJwAAACYAAAAp\
    AAAAKAAAACsAAAAqAAAALQAAACwAAAAvAAAALgAAALzAAgAwAAAAMwAAADIAAAA1AAAApvkAADcAAAA2AAAAOQAAADgAAAA7AAAAOgAAAD0AAA\
    A8AAAAPwAAAD4AAABBAAAAQAAAAEMAAABCAAAARQAAAEQAAABHAAAARgAAAEkAAABIAAAASwAAAEoAAABNAAAATAAAAE8AAABOAAAAUQAAAFAA\
    AABTAAAAUgAAAFUAAABUAAAAVwAAAFYAAABZAAAAWAAAAFsAAABaAAAAXQAAAFwAAABfAAAAXgAAAGEAAABgAAAAYwAAAGIAAABlAAAAZAAAAG\
    cAAABmAAAAaQAAAGgAAABrAAAAagAAAG0AAABllAIAbwAAAG4AAABxAAAAcAAAAHMAAAByAAAAdQAAAHQAAAB3AAAAdgAAAHkAAAB4AAAAewAA\
    AHoAAAB9AAAAfAAAAH8AAAB+AAAAgQAAAIAAAACDAAAAggAAAIUAAACEAAAAhwAAAIYAAACJAAAAiAAAAIsAAACKAAAAjQAAAIwAAACPAAAAjg\
    AAAJEAAACQAAAAkwAAAJIAAACVAAAAlAAAAJcAAACWAAAAmQAAAJgAAACbAAAAmgAAAJ0AAACcAAAAnwAAAJ4AAAChAAAAoAAAAKMAAACiAAAA\
    pQAAAKQAAACnAAAApgAAAKkAAACoAAAAqwAAAKoAAACtAAAArAAAAK8AAACuAAAAsQAAALAAAACzAAAAsgAAALUAAAC0AAAAtwAAALYAAAC5AA\
    AAuAAAALsAAAC6AAAAvQAAALwAAAC/AAAAvgAAAMEAAADAAAAAwwAAAMIAAADFAAAAxAAAAMcAAADGAAAAyQAAAMgAAADCiAEAygAAAM0AAADM\
    AAAAzwAAAM4AAADRAAAA0AAAANMAAADSAAAA1QAAANQAAADXAAAA1gAAANkAAADYAAAA2wAAANoAAADdAAAA3AAAAN8AAADeAAAA4QAAAOAAAA\
    DjAAAA4gAAAOUAAADkAAAA5wAAAO+sAQDpAAAA6AAAAOKMAQDj5AEA7QAAAOwAAADvAAAA7gAAAPEAAADwAAAA8wAAAPIAAAD1AAAA9AAAAPcA\
    AAD2AAAA+QAAAPgAAAD7AAAA+gAAAP0AAAD8AAAA/wAAAP4AAAAAIAAuLi4AOwBBAFRNAGZpAMOpAOOBjAA=";

fn assert_alike(name: &str, library: &Tokenizer, is_by_itself: bool) {
    let reader = Reader::new(library.clone()).unwrap();
    let (parts, mut chance) = (parts(library), Chance::new(1));
    let by_chance: Vec<String> = (0..3000).map(|_| text(&mut chance, &parts)).collect();
    for text in parts.into_iter().chain(by_chance) {
        let (ours, theirs) = (reader.read(&text).unwrap(), library.encode_fast(text.as_str(), false).unwrap());
        assert_eq!(ours, theirs.get_ids(), "{name}: {text:?}");
    }
    assert_eq!(reader.reads_by_itself(), is_by_itself, "{name}");
}

#[test]
fn ids_are_those_of_the_library() {
    let by_library = ["albert", "deberta-v2", "gemma3", "llama-bidirectional", "mistral"];
    for (name, library) in tokenizers() {
        assert_alike(&name, &library, !by_library.iter().any(|other| name.starts_with(other)));
    }
}

#[test]
fn ids_are_the_librarys_whatever_the_parts_are() {
    let lower = json!({"type": "Lowercase"});
    let bert = |normalizer: Value| {
        let mut content = named("bert");
        content["normalizer"] = normalizer;
        content
    };
    let normalizer = |flags: [Option<bool>; 4]| {
        let [clean, chinese, accents, lowercase] = flags;
        json!({"type": "BertNormalizer", "clean_text": clean, "handle_chinese_chars": chinese, "strip_accents": accents,
            "lowercase": lowercase})
    };
    let (yes, no) = (Some(true), Some(false));
    let cased = normalizer([yes, yes, None, no]);
    for (name, content) in [
        ("cased", bert(cased.clone())),
        ("lowered before", bert(json!({"type": "Sequence", "normalizers": [lower, cased]}))),
        ("with accents", bert(normalizer([yes, yes, no, yes]))),
        ("cased without accents", bert(normalizer([yes, no, yes, no]))),
        ("not cleaned", bert(normalizer([no, no, None, yes]))),
        ("not normalized", bert(Value::Null)),
    ] {
        assert_alike(name, &tokenizer(&content), true);
    }
    let mut wide = named("bert");
    wide["model"]["vocab"]["я"] = json!(1000);
    wide["model"]["vocab"]["##я"] = json!(1001);
    assert_alike("words of more bytes than characters", &tokenizer(&wide), true);
    let mut mapped = named("xlm-roberta");
    mapped["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": CHARSMAP});
    assert_alike("charsmap", &tokenizer(&mapped), true);
    mapped["pre_tokenizer"]["pretokenizers"][1]["prepend_scheme"] = json!("never");
    assert_alike("no mark", &tokenizer(&mapped), true);
    mapped["pre_tokenizer"]["pretokenizers"][1]["prepend_scheme"] = json!("first");
    assert_alike("a mark at the first", &tokenizer(&mapped), false);
    for scheme in ["always", "never"] {
        let metaspace = json!({"type": "Metaspace", "replacement": "_", "prepend_scheme": scheme, "split": true});
        mapped["pre_tokenizer"]["pretokenizers"][1] = metaspace;
        assert_alike("a mark of ASCII", &tokenizer(&mapped), false);
    }
    for (normalizer, by_itself) in [("NFKC", true), ("NFD", true), ("StripAccents", false)] {
        let mut content = named("roberta");
        content["normalizer"] = json!({"type": normalizer});
        content["pre_tokenizer"]["add_prefix_space"] = json!(true);
        assert_alike(normalizer, &tokenizer(&content), by_itself);
    }
}

/// Of bytes, with merges of pairs that show where text is cut, and a piece that no merge makes.
fn with_merges(mut content: Value) -> Value {
    let pairs = "Ġ Ġ,Ċ Ċ,Ġ Ċ,Ċ Ġ,Ċ x,1 2,3 4,12 34,12 3,5 6,' S,' s,'S T,S T,T O,ST O,O P,! Ċ,! !,. Ċ,a !,Ġ !";
    let model = &mut content["model"];
    let mut next = 1000..;
    let mut add = |model: &mut Value, piece: String| {
        let pieces = model["vocab"].as_object_mut().unwrap();
        pieces.entry(piece).or_insert_with(|| json!(next.next()));
    };
    for pair in pairs.split(',') {
        add(model, pair.replace(' ', ""));
        model["merges"].as_array_mut().unwrap().push(json!(pair.split(' ').collect::<Vec<_>>()));
    }
    add(model, "xyzzy".into());
    content
}

#[test]
fn text_is_cut_where_the_library_cuts_it() {
    for name in ["roberta", "qwen2", "llama"] {
        assert_alike(name, &tokenizer(&with_merges(named(name))), true);
    }
    let mut qwen = named("qwen2");
    qwen["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = json!(true);
    assert_alike("spaces before every word", &tokenizer(&qwen), false);
    qwen["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = json!(false);
    qwen["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = json!(r"\p{L}+|[^\p{L}]");
    assert_alike("a pattern of its own", &tokenizer(&qwen), false);
}

#[test]
fn of_ways_with_equal_scores_it_is_the_librarys() {
    let mut content = named("xlm-roberta");
    let pieces = content["model"]["vocab"].as_array_mut().unwrap();
    for piece in &mut *pieces {
        piece[1] = json!(-(piece[0].as_str().unwrap().chars().count() as f64));
    }
    assert_alike("equal", &tokenizer(&content), true);
    for piece in content["model"]["vocab"].as_array_mut().unwrap() {
        if piece[0] == "▁" {
            piece[0] = json!("another");
        }
        piece[1] = json!(5.5);
    }
    assert_alike("without a mark of its own", &tokenizer(&content), true);
    content["model"]["vocab"].as_array_mut().unwrap().iter_mut().for_each(|piece| piece[1] = json!(30.0));
    assert_alike("too high", &tokenizer(&content), false);
}

#[test]
fn an_unknown_piece_may_be_in_words() {
    let mut content = named("xlm-roberta");
    content["added_tokens"] = json!([]);
    content["model"]["vocab"].as_array_mut().unwrap().push(json!(["<unk><unk>", -5.0]));
    content["post_processor"] = Value::Null;
    assert_alike("unknown twice", &tokenizer(&content), false);
}

#[test]
fn long_texts_are_the_librarys_too() {
    // Its pattern gives up on so many spaces, and this merge then shows that it does not cut what comes after them.
    let mut qwen = named("qwen2");
    qwen["model"]["vocab"]["aĠ"] = json!(1000);
    qwen["model"]["merges"].as_array_mut().unwrap().insert(0, json!(["a", "Ġ"]));
    for (name, content) in [("bert", named("bert")), ("xlm-roberta", named("xlm-roberta")), ("qwen2", qwen)] {
        let library = tokenizer(&content);
        let reader = Reader::new(library.clone()).unwrap();
        let odd = "é\u{915} ".repeat(2000);
        for text in [format!("z{}a b a b", " ".repeat(1_000_010)), "a".repeat(200_000), format!("a b{odd}c d {odd}")] {
            let theirs = library.encode_fast(text.as_str(), false).unwrap();
            assert_eq!(reader.read(&text).unwrap(), theirs.get_ids(), "{name}: {} bytes", text.len());
        }
        assert!(
            reader.is_fast("plain text")
                && !reader.is_fast("plain\u{915}")
                && !reader.is_fast("a [SEP] </s> <|endoftext|>")
        );
    }
}

#[test]
fn ids_are_the_librarys_whatever_tokens_were_added() {
    let mut mapped = named("xlm-roberta");
    mapped["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": CHARSMAP});
    let composed = || {
        let mut content = named("roberta");
        content["normalizer"] = json!({"type": "NFKC"});
        content
    };
    for (name, content, tokens, by_itself) in [
        ("a name", named("bert"), &[("Café", &["normalized"][..])][..], true),
        ("a part of words", named("bert"), &[("TH", &["normalized"]), ("in", &[]), ("É", &["normalized"])], true),
        ("a word", named("bert"), &[("of", &["normalized", "single_word", "lstrip"])], true),
        ("to the right", named("bert"), &[("the", &["normalized", "rstrip"])], false),
        ("two words", named("bert"), &[("of the", &["normalized"])], false),
        ("two words as they are", named("bert"), &[("of the", &["special"])], true),
        ("spaces that are made", named("bert"), &[("  ", &["normalized"])], false),
        ("spaces", composed(), &[("  ", &["normalized"])], true),
        ("spaces that are words", composed(), &[("  ", &["normalized", "single_word"])], false),
        ("a sign that becomes a space", composed(), &[("´", &["normalized", "single_word"])], false),
        ("a letter and such a sign", composed(), &[("x´", &["normalized"])], false),
        ("nothing, as it is", named("bert"), &[("\u{ad}", &[])], true),
        ("a sign", composed(), &[(";", &["normalized"]), ("fi", &["normalized"])], true),
        ("of a map", mapped.clone(), &[("fi", &["normalized"]), ("<TM>", &["normalized", "lstrip"])], true),
        ("spaces of a map", mapped, &[(" ", &["normalized"])], false),
    ] {
        assert_alike(name, &tokenizer(&with_tokens(content, tokens)), by_itself);
    }
    // The library finds what normalization makes nothing of between all bytes, and fails where they are one character's.
    let nothing = tokenizer(&with_tokens(named("bert"), &[("\u{ad}", &["normalized"])]));
    assert!(!Reader::new(nothing).unwrap().reads_by_itself());
}

#[test]
fn special_tokens_stand_around_a_text() {
    for (name, library) in tokenizers() {
        let reader = Reader::new(library.clone()).unwrap();
        let whole = library.encode_fast("The library of packages.", true).unwrap();
        let [before, after] = reader.ends().unwrap();
        assert_eq!(
            [before, &reader.read("The library of packages.").unwrap()[..], after].concat(),
            whole.get_ids(),
            "{name}"
        );
    }
    let mut twice = named("bert");
    let single = twice["post_processor"]["single"].as_array_mut().unwrap();
    single.push(single[1].clone());
    assert_eq!(
        Reader::new(tokenizer(&twice)).unwrap().ends().unwrap_err(),
        "post_processor does not hold the text once"
    );
    let mut nested = named("bert");
    let one = nested["post_processor"].clone();
    nested["post_processor"] = json!({"type": "Sequence", "processors": [one, one]});
    let reader = Reader::new(tokenizer(&nested)).unwrap();
    assert!(reader.ends().unwrap_err().contains("not one that the tokenizers library can run"));
}
