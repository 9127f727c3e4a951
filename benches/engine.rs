//! Where the time of a forward pass goes, and how near each kernel comes to what this machine can do.
//!
//!     cargo bench --bench engine                       # kernels at the sizes of all-MiniLM-L6-v2
//!     cargo bench --bench engine -- 768 3072 12        # hidden width, inner width, heads
//!     cargo bench --bench engine -- 384 1536 12 16,48,128 1500    # texts of these lengths, tokens in all
//!
//! `THREADS=2` before it shares the work. Figures are medians; the ceilings are measured in the same run.

use candle_core::{Device, Tensor as Host};
use std::hint::black_box;
use std::time::Instant;
use veneer::kernels::{
    Activation, Attention, Format, Gate, Memory, NormKind, Normalization, Packed, Pooling, Sequences, Tensor, Threads,
    activate, add_product, attention, norm, pool, product,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let numbers: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let threads = std::env::var("THREADS").map_or(1, |count| count.parse().expect("THREADS is a number"));
    println!("{threads} threads");
    Threads::new(threads).expect("threads start").run(|| report(&numbers));
}

fn report(numbers: &[String]) {
    let number = |place: usize, default: usize| numbers.get(place).map_or(default, |n| n.parse().expect("a number"));
    let (hidden, inner, heads) = (number(0, 384), number(1, 1536), number(2, 12));
    let lengths = numbers.get(3).map_or("12,48,180", String::as_str);
    let tokens = number(4, 1500);
    let ceiling = ceiling();
    println!("f32 products by the gemm crate, [2048, 1536] x [1536, 1536]: {:.0} GFLOP/s", ceiling / 1e9);
    for length in lengths.split(',').map(|n| n.parse().expect("a length")) {
        for format in [Format::Float32, Format::Bfloat16, Format::Int8] {
            if numbers.get(5).is_some_and(|named| !format!("{format:?}").eq_ignore_ascii_case(named)) {
                continue;
            }
            let sizes = Sizes { hidden, inner, heads, length, tokens: tokens / length * length };
            sizes.report(format, ceiling);
        }
    }
}

/// What is multiplied, and for how many tokens.
struct Sizes {
    hidden: usize,
    inner: usize,
    heads: usize,
    length: usize,
    tokens: usize,
}

impl Sizes {
    /// One layer, kernel by kernel.
    fn report(&self, format: Format, ceiling: f64) {
        let Self { hidden, inner, heads, length, tokens } = *self;
        println!("\n{tokens} tokens in texts of {length}, {format:?}:");
        let x = random(tokens, hidden);
        let (wide, qkv) = (random(tokens, inner), random(tokens, 3 * hidden));
        let mut total = 0.0;
        let mut line = |name: &str, seconds: f64, flops: f64| {
            total += seconds;
            let share = if flops > 0.0 {
                format!("{:6.0} GFLOP/s {:5.2}x", flops / seconds / 1e9, flops / seconds / ceiling)
            } else {
                String::new()
            };
            println!("  {name:28} {:9.1} us  {share}", seconds * 1e6);
        };
        let mut multiply = |name: &str, x: &Tensor, outputs: usize, activation: Option<Activation>| {
            let inputs = x.dims()[1];
            let weight = Packed::new(&random_host(inputs, outputs), format, &mut Memory::default()).unwrap();
            let bias = vector(outputs);
            let seconds = median(|| weight.product(x, Some(&bias), activation).unwrap());
            line(name, seconds, 2.0 * (tokens * inputs * outputs) as f64);
        };
        multiply("queries, keys, values", &x, 3 * hidden, None);
        multiply("attention's output", &x, hidden, None);
        multiply("up and GELU", &x, inner, Some(Activation::Gelu));
        multiply("down", &wide, hidden, None);
        let offsets: Vec<usize> = (0..=tokens / length).map(|i| i * length).collect();
        let offsets = Sequences::from(offsets.as_slice());
        let width = hidden / heads;
        let all = qkv.reshape([tokens, 3 * heads, width]).unwrap();
        let part = |first: usize| all.narrow(1, first * heads, heads).unwrap();
        let (q, k, v) = (part(0), part(1), part(2));
        let op = Attention {
            offsets: &offsets,
            scale: 0.2,
            causal: false,
            window: None,
            bias: None,
            is_half: format.rounds(),
        };
        let seconds = median(|| attention(&q, &k, &v, &op, None).unwrap());
        line("attention", seconds, 4.0 * (tokens * length * hidden) as f64);
        let (weight, bias) = (vector(hidden), vector(hidden));
        let (kind, eps) = (NormKind::Layer, 1e-12);
        let op = Normalization { kind, weight: &weight, bias: Some(&bias), eps, rounded: None };
        let normed = || norm(&x, Some(&x), &op).unwrap();
        line("two norms with residuals", 2.0 * median(normed), 0.0);
        println!("  {:28} {:9.1} us  {:.0} tokens/s of 6 layers", "a layer", total * 1e6, tokens as f64 / total / 6.0);
        let (a, b) = (random(hidden, 8), random(8, hidden));
        let y = qkv.narrow(1, 0, hidden).unwrap();
        let seconds = median(|| add_product(&y, &product(&x, &a, None).unwrap(), &b).unwrap());
        println!("  beside: {:20} {:9.1} us", "LoRA of rank 8, one site", seconds * 1e6);
        let seconds = median(|| activate(&wide, Activation::Gelu, Gate::Absent).unwrap());
        println!("  beside: {:20} {:9.1} us", "GELU alone", seconds * 1e6);
        let seconds = median(|| pool(&x, &offsets, &[], Pooling::Mean).unwrap());
        println!("  beside: {:20} {:9.1} us", "mean of the tokens", seconds * 1e6);
    }
}

fn random(rows: usize, columns: usize) -> Tensor {
    random_host(rows, columns).into()
}

fn vector(width: usize) -> Tensor {
    random_host(1, width).squeeze(0).unwrap().into()
}

fn random_host(rows: usize, columns: usize) -> Host {
    Host::randn(0f32, 1.0, (rows, columns), &Device::Cpu).unwrap()
}

/// Operations a second of a large product.
fn ceiling() -> f64 {
    let (x, w) = (random(2048, 1536), random(1536, 1536));
    2.0 * 2048.0 * 1536.0 * 1536.0 / median(|| product(&x, &w, None).unwrap())
}

/// Seconds.
fn median<T>(mut run: impl FnMut() -> T) -> f64 {
    (0..3).for_each(|_| drop(black_box(run())));
    let mut times: Vec<f64> = (0..41)
        .map(|_| {
            let began = Instant::now();
            black_box(run());
            began.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
