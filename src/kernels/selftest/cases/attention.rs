//! Attention, and what turns its queries and keys.

use super::{BOUND, Case, Shape, Work, case};
use crate::kernels::sample::normal;
use crate::kernels::twins::{attention, disentangled, rotate};
use crate::kernels::{Attention, Disentangled, Places, Sequences};
use candle_core::Tensor as Host;

/// Every case.
pub fn all(shape: &Shape) -> Vec<Case> {
    let (tokens, heads, width) = (shape.tokens(), shape.heads, shape.width / shape.heads);
    let span = shape.offsets.windows(2).map(|span| span[1] - span[0]).max().unwrap_or_default();
    let work = work(&shape.offsets, shape.width, 4 * shape.width);
    let stacked = normal(1.0, (tokens, 3 * heads, width));
    let bias = normal(1.0, (heads, 2 * span - 1));
    let mut cases = Vec::new();
    let kinds = [
        ("attention", false, None, false),
        ("attention, causal", true, None, false),
        ("attention, window", false, Some(7), false),
        ("attention, bias by distance", false, None, true),
    ];
    // As the device does it, and as every GPU can.
    let kinds = kinds.into_iter().flat_map(|kind| [("", false), (", by warps", true)].map(|way| (kind, way)));
    for ((name, causal, window, biased), (way, is_of_warps)) in kinds {
        let (stacked, bias, offsets) = (stacked.clone(), bias.clone(), shape.offsets.clone());
        cases.push(case(format!("{name}{way}"), BOUND, work, move |side| {
            let of_warps = side.of_warps();
            let side = if is_of_warps { &of_warps } else { side };
            let stacked = side.rounded(&stacked)?;
            let bias = if biased { Some(side.exact(&bias)?) } else { None };
            let offsets = Sequences::new(offsets.clone(), &side.device)?;
            Ok(Box::new(move || {
                let [q, k, v] = [0, 1, 2].map(|i| stacked.narrow(1, i * heads, heads));
                let (scale, bias) = (0.2, bias.as_ref());
                let op = Attention { offsets: &offsets, scale, causal, window, bias, is_half: false };
                attention(&q?, &k?, &v?, &op, None)
            }))
        }));
    }
    cases.extend(HEAD_WIDTHS.map(|width| heads_of(shape, width)));
    cases.push(rotation(shape, &stacked));
    cases.extend(relatives(shape));
    cases
}

/// Of queries so wide together that see every key of their sequence, with so many numbers a token.
pub fn work(offsets: &[usize], width: usize, numbers: usize) -> Work {
    let pairs: usize = offsets.windows(2).map(|span| (span[1] - span[0]).pow(2)).sum();
    let tokens = offsets[offsets.len() - 1];
    Work { operations: 4.0 * (pairs * width) as f64, numbers: (tokens * numbers) as f64 }
}

/// Widths of heads for which there are different kernels, and others that fill none of them.
const HEAD_WIDTHS: [usize; 8] = [16, 33, 64, 80, 128, 160, 192, 256];

/// Attention of four heads of a width over two of keys and values.
fn heads_of(shape: &Shape, width: usize) -> Case {
    let (offsets, tokens) = (shape.offsets.clone(), shape.tokens());
    let stacked = normal(1.0, (tokens, 8, width));
    let work = work(&offsets, 4 * width, 12 * width);
    case(format!("attention, heads of {width}"), BOUND, work, move |side| {
        let stacked = side.rounded(&stacked)?;
        let offsets = Sequences::new(offsets.clone(), &side.device)?;
        Ok(Box::new(move || {
            let [q, k, v] = [(0, 4), (4, 2), (6, 2)].map(|(first, count)| stacked.narrow(1, first, count));
            let (scale, window) = (0.1, Some(40));
            let op = Attention { offsets: &offsets, scale, causal: true, window, bias: None, is_half: false };
            attention(&q?, &k?, &v?, &op, None)
        }))
    })
}

fn rotation(shape: &Shape, stacked: &Host) -> Case {
    let (heads, width, offsets) = (shape.heads, shape.width / shape.heads, shape.offsets.clone());
    let (stacked, tables) = (stacked.clone(), [(); 2].map(|()| normal(1.0, (shape.tokens(), width / 2))));
    case("rotate", BOUND, shape.passes(2), move |side| {
        let (stacked, [cos, sin]) = (side.rounded(&stacked)?, [side.exact(&tables[0])?, side.exact(&tables[1])?]);
        let offsets = Sequences::new(offsets.clone(), &side.device)?;
        Ok(Box::new(move || rotate(&stacked.narrow(1, heads, heads)?, &cos, &sin, &offsets)))
    })
}

/// Relative positions of heads of a width, as far as they reach, and which tables there are.
struct Relative {
    name: &'static str,
    width: usize,
    reach: i64,
    has_keys: bool,
    has_queries: bool,
}

/// The first is as wide as other attention is, and what it is timed beside.
fn relatives(shape: &Shape) -> Vec<Case> {
    let width = shape.width / shape.heads;
    let of = |name, width, reach, has_keys, has_queries| Relative { name, width, reach, has_keys, has_queries };
    let all = [
        of("attention, disentangled", width, 8, true, true),
        of("attention, disentangled, far", 64, 200, true, true),
        of("attention, disentangled, keys", 64, 8, true, false),
        of("attention, disentangled, queries", 64, 200, false, true),
        of("attention, disentangled, neither", 32, 8, false, false),
        of("attention, disentangled, narrow", 32, 200, true, true),
        of("attention, disentangled, odd", 33, 40, true, true),
        of("attention, disentangled, wide", 80, 40, true, true),
    ];
    all.into_iter().map(|relative| relative.case(shape)).collect()
}

impl Relative {
    fn case(self, shape: &Shape) -> Case {
        let Self { name, width, reach, has_keys, has_queries } = self;
        let (heads, offsets) = (shape.heads, shape.offsets.clone());
        let stacked = normal(1.0, (shape.tokens(), 3 * heads, width));
        let span = shape.offsets.windows(2).map(|span| span[1] - span[0]).max().unwrap_or_default() as i64;
        let places = ((1 - span)..span).map(|d| (d.clamp(-reach, reach - 1) + reach) as u32).collect::<Vec<_>>();
        let tables = [(); 2].map(|()| normal(1.0, (2 * reach as usize, heads * width)));
        let work = work(&offsets, heads * width, 4 * heads * width);
        case(name, BOUND, work, move |side| {
            let (stacked, offsets) = (side.rounded(&stacked)?, Sequences::new(offsets.clone(), &side.device)?);
            let [keys, queries] = [&tables[0], &tables[1]].map(|table| side.rounded(table));
            let (keys, queries) = (keys?, queries?);
            let places = Places::new(places.clone(), &side.device)?;
            Ok(Box::new(move || {
                let [q, k, v] = [0, 1, 2].map(|i| stacked.narrow(1, i * heads, heads));
                let (keys, queries) = (has_keys.then_some(&keys), has_queries.then_some(&queries));
                let op = Disentangled { offsets: &offsets, scale: 0.1, keys, queries, places: &places };
                disentangled(&q?, &k?, &v?, &op)
            }))
        })
    }
}
