//! Tokens a second of whole passes through the queue, of the base and of adapters that take turns, without HTTP and without
//! a tokenizer: what the device does.
//!
//!     cargo bench --bench passes -- --model m=FOLDER --adapters FOLDER        # arguments as of `veneer serve`
//!
//! `LENGTHS=32,512` before it are the tokens of a text, `ADAPTERS=1,64` how many adapters take turns, `ZIPF=10000` of how
//! many each text has one by chance, the first most often, `SECONDS` how long one round of one row takes, `ROUNDS` how many
//! there are. The base is the first row. Rows take turns too; figures are medians. Where a GPU's thread is never idle, the GPU
//! waits for it. `TURNS=FILE` lets several of these take turns on one device, with what is loaded in each.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;
use veneer::cli::{Action, parse};
use veneer::engine::{Engine, Sequence, Target, received};
use veneer::http::Serving;
use veneer::hub::{Hub, HubConfig};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let arguments = std::env::args_os().skip(1).filter(|argument| argument != "--bench");
    let words = ["veneer", "serve"].map(Into::into);
    let Ok(Action::Serve(mut config)) = parse(words.into_iter().chain(arguments), &BTreeMap::new()) else {
        panic!("arguments as of `veneer serve`");
    };
    config.limits.max_queued_tokens = 1 << 30;
    // What is measured is to be measured even where `veneer selftest` finds fault with it.
    config.server.self_test = false;
    veneer::telemetry::log(&config.server.log_level, false).expect("logging starts");
    veneer::telemetry::metrics();
    let hub =
        Hub::new(HubConfig { home: "/".into(), token: None, endpoint: config.hub.endpoint.clone(), offline: true });
    // As in the server, where answers are given from where callers wait.
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let _within = runtime.enter();
    let began = Instant::now();
    let turn = Turn::wait();
    let (serving, workers) = Serving::load(&config, &hub.expect("a folder needs no Hub")).expect("all of it loads");
    drop(turn);
    let places = serving.registry.places(&config.limits).expect("they were found before");
    println!(
        "{} names in {:.1} s, batches of {} tokens",
        serving.registry.iter().count(),
        began.elapsed().as_secs_f64(),
        places[0].batch_tokens_max
    );
    for length in numbers("LENGTHS", "32,128,512") {
        report(&serving, length);
    }
    drop(serving);
    workers.join().expect("workers end");
}

/// The numbers that a variable lists.
fn numbers(name: &str, default: &str) -> Vec<usize> {
    let listed = std::env::var(name).unwrap_or_else(|_| default.into());
    listed.split(',').map(|n| n.parse().expect("a number")).collect()
}

/// What is asked for, again and again.
struct Row<'a> {
    name: String,
    targets: &'a [Arc<Target>],
    /// After Zipf's law, not in turn.
    is_by_chance: bool,
    rates: Vec<f64>,
    latencies: Vec<f64>,
    /// Shares of the time in which a GPU's thread waited for it.
    idle: Vec<f64>,
}

impl<'a> Row<'a> {
    fn new(name: String, targets: &'a [Arc<Target>], is_by_chance: bool) -> Self {
        Self { name, targets, is_by_chance, rates: Vec::new(), latencies: Vec::new(), idle: Vec::new() }
    }

    fn target(&self, text: usize) -> &Arc<Target> {
        let count = self.targets.len();
        if !self.is_by_chance {
            return &self.targets[text % count];
        }
        // Even shares of the logarithm: place k comes about as often as 1 / k says.
        let chance = (text as f64 * 0.618_033_988_749_894_9).fract();
        &self.targets[(((count as f64 + 1.0).powf(chance)) as usize - 1).min(count - 1)]
    }

    /// Seconds for so many texts of a length.
    fn run(&self, engine: &Engine, length: usize, texts: std::ops::Range<usize>) -> f64 {
        let vocabulary = self.targets[0].model().vocabulary(None) as u32;
        let count = texts.len();
        let sequence = |text: usize| Sequence {
            ids: (0..length).map(|place| (text * 7919 + place * 104_729) as u32 % vocabulary).collect(),
            prompt_tokens: 0,
            target: self.target(text).clone(),
        };
        let sequences: Vec<_> = texts.map(sequence).collect();
        let _turn = Turn::wait();
        let began = Instant::now();
        let admission = engine.admit(count * length).expect("the queue is large");
        let receivers = engine.submit(sequences, admission).expect("the worker is there");
        for receiver in receivers {
            received(receiver.blocking_recv()).expect("a vector");
        }
        began.elapsed().as_secs_f64()
    }

    /// So many texts fill the time, once some have warmed all up.
    fn filling(&self, engine: &Engine, length: usize, seconds: f64) -> usize {
        let mut texts = self.targets.len().max(64);
        self.run(engine, length, 0..texts);
        loop {
            let taken = self.run(engine, length, 0..texts);
            if taken >= seconds / 8.0 {
                return ((seconds / taken) * texts as f64).ceil() as usize;
            }
            texts *= 2;
        }
    }
}

/// Every row at one length.
fn report(serving: &Serving, length: usize) {
    let engine = &serving.engine;
    let served = || serving.registry.iter().map(|served| &served.main().target);
    let bases: Vec<_> = served().filter(|target| target.adapter.is_none()).cloned().collect();
    let adapters: Vec<_> = served().filter(|target| target.adapter.is_some()).cloned().collect();
    let mut rows = vec![Row::new("the base".into(), &bases[..1], false)];
    for (variable, default, is_by_chance) in [("ADAPTERS", "1,64", false), ("ZIPF", "0", true)] {
        for count in numbers(variable, default).into_iter().filter(|count| (1..=adapters.len()).contains(count)) {
            let name = format!("{count} adapters {}", if is_by_chance { "by chance" } else { "in turn" });
            rows.push(Row::new(name, &adapters[..count], is_by_chance));
        }
    }
    let seconds = numbers("SECONDS", "1")[0] as f64;
    let texts: Vec<usize> = rows.iter().map(|row| row.filling(engine, length, seconds)).collect();
    for _ in 0..numbers("ROUNDS", "5")[0] {
        for (row, &texts) in rows.iter_mut().zip(&texts) {
            let before = waited();
            let taken = row.run(engine, length, 0..texts);
            row.rates.push((texts * length) as f64 / taken);
            row.idle.push((waited() - before) / taken);
            let alone: Vec<f64> = (0..100).map(|text| row.run(engine, length, text..text + 1)).collect();
            row.latencies.extend(alone);
        }
    }
    let base = median(&mut rows[0].rates);
    for Row { name, rates, latencies, idle, .. } in &mut rows {
        let rate = median(rates);
        let (share, spread) = (100.0 * rate / base, 100.0 * (rates[rates.len() - 1] - rates[0]) / rate);
        let alone = 1e6 * median(latencies);
        let idle = match serving.registry.is_on_cpu() {
            true => String::new(),
            false => format!(", the GPU's thread idle {:4.1} %", 100.0 * median(idle)),
        };
        println!(
            "{length:4} tokens, {name:24} {rate:12.0} tokens/s, {share:6.1} % of the base (spread {spread:.1} %), one alone {alone:8.1} us{idle}"
        );
    }
}

/// That no other process runs anything.
struct Turn(std::fs::File);

impl Turn {
    /// Waits for it; none where nobody else is there.
    fn wait() -> Option<Self> {
        let path = std::env::var_os("TURNS")?;
        let file = std::fs::File::create(path).expect("a file to take turns by");
        file.lock().expect("its lock");
        Some(Self(file))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.unlock().expect("it is locked");
        // Who waits is sooner than the next round of this.
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

/// Seconds that threads of GPUs have waited for them so far.
fn waited() -> f64 {
    let metrics = veneer::telemetry::metrics().render();
    let sums = metrics.lines().filter(|line| line.starts_with("veneer_gpu_wait_seconds_sum"));
    sums.map(|line| line.rsplit(' ').next().and_then(|sum| sum.parse::<f64>().ok()).expect("a number")).sum()
}

fn median(numbers: &mut [f64]) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}
