//! Tokens a second of one thread that reads texts, beside what the `tokenizers` library alone does, whose ids they must be.
//!
//!     cargo bench --bench texts -- target/all-MiniLM-L6-v2/tokenizer.json WORKLOAD
//!
//! WORKLOAD is a JSON object of sets, each a list of objects with a "text". Figures are medians of rounds that take turns.

use std::hint::black_box;
use std::time::Instant;
use tokenizers::Tokenizer;
use veneer::text::Reader;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROUNDS: usize = 9;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let [tokenizer, workload] = &arguments[..] else { panic!("a tokenizer.json and a workload") };
    let mut library = Tokenizer::from_file(tokenizer).expect("a tokenizer.json");
    library.with_truncation(None).expect("without truncation there is nothing to check");
    library.with_padding(None);
    let began = Instant::now();
    let reader = Reader::new(library.clone()).expect("a tokenizer as models have it");
    println!("made in {:.1} ms", began.elapsed().as_secs_f64() * 1e3);
    let workload: serde_json::Value =
        serde_json::from_slice(&std::fs::read(workload).expect("a workload")).expect("a workload in JSON");
    println!("{:<12} {:>10} {:>14} {:>14} {:>7}", "set", "tokens", "tokens/s", "library", "ratio");
    for (set, rows) in workload.as_object().expect("sets") {
        let rows = rows.as_array().expect("a list of texts");
        let texts: Vec<&str> = rows.iter().map(|row| row["text"].as_str().expect("a text")).collect();
        let theirs = |text: &str| library.encode_fast(text, false).expect("the library reads it").get_ids().to_vec();
        let ours = |text: &str| reader.read(text).expect("it is read");
        texts.iter().for_each(|text| assert_eq!(ours(text), theirs(text), "{text}"));
        let tokens: usize = texts.iter().map(|text| ours(text).len()).sum();
        let seconds = |read: &dyn Fn(&str) -> Vec<u32>| {
            let began = Instant::now();
            texts.iter().for_each(|text| drop(black_box(read(text))));
            began.elapsed().as_secs_f64()
        };
        let rounds: Vec<[f64; 2]> = (0..ROUNDS).map(|_| [seconds(&ours), seconds(&theirs)]).collect();
        let [ours, theirs] = [0, 1].map(|which| tokens as f64 / median(rounds.iter().map(|round| round[which])));
        println!("{set:<12} {tokens:>10} {ours:>14.0} {theirs:>14.0} {:>7.1}", ours / theirs);
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
