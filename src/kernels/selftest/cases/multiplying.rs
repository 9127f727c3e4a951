//! What multiplies: products, updates of low rank, attention.

use super::{BOUND, Case, Run, Shape, Work, case};
use crate::error::Result;
use crate::kernels::sample::normal;
use crate::kernels::selftest::Side;
use crate::kernels::twins::{add_product, attention, disentangled, product, rotate, set_product};
use crate::kernels::{Attention, Disentangled, Factors, HostFactors, Places, Sequences, Spans, Tensor, Touched};
use candle_core::{DType, Device, Tensor as Host};
use std::ops::Range;

/// Every case.
pub fn all(shape: &Shape) -> Vec<Case> {
    let mut cases = products(shape);
    cases.push(updates(shape));
    cases.extend(attentions(shape));
    cases
}

fn products(shape: &Shape) -> Vec<Case> {
    let (tokens, width, outputs) = (shape.tokens(), shape.width, 4 * shape.width);
    let (x, w, b) = (shape.rows(), normal(0.05, (width, outputs)), normal(1.0, outputs));
    let work = Work {
        operations: 2.0 * (tokens * width * outputs) as f64,
        numbers: (tokens * (width + outputs) + width * outputs) as f64,
    };
    let arguments = (x.clone(), w.clone());
    let plain = case("product, bias", BOUND, work, move |side| {
        let (x, w, b) = (side.rounded(&x)?, side.weight(&w)?, side.rounded(&b)?);
        Ok(Box::new(move || product(&x, &w, Some(&b))))
    });
    let (x, w) = arguments;
    let into = case("product added to a window", BOUND, work, move |side| {
        let (x, w) = (side.rounded(&x)?, side.weight(&w)?);
        let y = side.exact(&Host::zeros((tokens + 3, outputs + 5), DType::F32, &Device::Cpu)?)?;
        Ok(Box::new(move || {
            let window = y.narrow(0, 2, tokens)?.narrow(1, 5, outputs)?;
            set_product(&window, &x, &w)?;
            add_product(&window, &x, &w)?;
            y.narrow(0, 0, tokens)
        }))
    });
    vec![plain, into]
}

/// An adapter's factors at one of two sites that stand side by side.
struct Factor {
    rows: Range<usize>,
    site: usize,
    /// `[in, rank]`.
    a: Host,
    /// `[rank, out]`.
    b: Host,
}

/// Every sequence but the first has an adapter of its own, some of which leave out a site.
fn factors(shape: &Shape) -> Vec<Factor> {
    let (width, rank) = (shape.width, shape.rank);
    let adapters = shape.offsets.windows(2).map(|span| span[0]..span[1]).enumerate().skip(1);
    let sites =
        adapters.flat_map(|(i, rows)| [(rows.clone(), 0, rank + i % 3), (rows, 1, if i % 4 == 1 { 0 } else { rank })]);
    let there = sites.filter(|(.., rank)| *rank > 0);
    there
        .map(|(rows, site, rank)| Factor { rows, site, a: normal(0.05, (width, rank)), b: normal(1.0, (rank, width)) })
        .collect()
}

fn updates(shape: &Shape) -> Case {
    let (width, tokens, factors) = (shape.width, shape.tokens(), factors(shape));
    let (x, y) = (shape.rows(), normal(1.0, (tokens, 2 * width)));
    let work = Work {
        operations: 2.0 * (tokens * shape.rank * width * 4) as f64,
        numbers: (tokens * width * 5 + factors.len() * shape.rank * width * 2) as f64,
    };
    case("updates of all adapters", BOUND, work, move |side| {
        let (x, y) = (side.rounded(&x)?, side.rounded(&y)?);
        if side.device.is_cpu() { one_by_one(side, &factors, x, y) } else { together(side, &factors, x, y) }
    })
}

fn one_by_one(side: &Side, factors: &[Factor], x: Tensor, y: Tensor) -> Result<Run> {
    let place = |Factor { rows, site, a, b }: &Factor| Ok((rows.clone(), *site, side.weight(a)?, side.weight(b)?));
    let placed = factors.iter().map(place).collect::<Result<Vec<_>>>()?;
    Ok(Box::new(move || {
        let y = y.copy()?;
        for (rows, site, a, b) in &placed {
            let width = b.dims()[1];
            let window = y.narrow(0, rows.start, rows.len())?.narrow(1, site * width, width)?;
            add_product(&window, &product(&x.narrow(0, rows.start, rows.len())?, a, None)?, b)?;
        }
        Ok(y)
    }))
}

fn together(side: &Side, factors: &[Factor], x: Tensor, y: Tensor) -> Result<Run> {
    let width = x.dims()[1];
    let mut residents = Vec::new();
    for adapter in factors.chunk_by(|one, next| one.rows == next.rows) {
        let list: Vec<_> = adapter.iter().map(|Factor { site, a, b, .. }| (*site, a, b)).collect();
        let resident = Factors::new(&side.device, &HostFactors::new(2, side.dtype, &list)?)?;
        residents.extend(resident.map(|resident| (adapter[0].rows.clone(), resident)));
    }
    let spans = Spans::new(&side.device, &[(0, 0, width), (1, width, width)])?;
    Ok(Box::new(move || {
        let y = y.copy()?;
        let touched = Touched::new(residents.iter().map(|(rows, resident)| (rows.clone(), resident)))?;
        touched.updates(&spans, &x)?.add_to(&y)?;
        Ok(y)
    }))
}

fn attentions(shape: &Shape) -> Vec<Case> {
    let (tokens, heads, width) = (shape.tokens(), shape.heads, shape.width / shape.heads);
    let span = shape.offsets.windows(2).map(|span| span[1] - span[0]).max().unwrap_or_default();
    let pairs: usize = shape.offsets.windows(2).map(|span| (span[1] - span[0]).pow(2)).sum();
    let work = Work { operations: 4.0 * (pairs * shape.width) as f64, ..shape.passes(4) };
    let stacked = normal(1.0, (tokens, 3 * heads, width));
    let bias = normal(1.0, (heads, 2 * span - 1));
    let mut cases = Vec::new();
    for (name, causal, window, biased) in [
        ("attention", false, None, false),
        ("attention, causal", true, None, false),
        ("attention, window", false, Some(7), false),
        ("attention, bias by distance", false, None, true),
    ] {
        let (stacked, bias, offsets) = (stacked.clone(), bias.clone(), shape.offsets.clone());
        cases.push(case(name, BOUND, work, move |side| {
            let stacked = side.rounded(&stacked)?;
            let bias = if biased { Some(side.exact(&bias)?) } else { None };
            let offsets = Sequences::new(offsets.clone(), &side.device)?;
            Ok(Box::new(move || {
                let [q, k, v] = [0, 1, 2].map(|i| stacked.narrow(1, i * heads, heads));
                let (scale, bias) = (0.2, bias.as_ref());
                let op = Attention { offsets: &offsets, scale, causal, window, bias, is_half: false };
                attention(&q?, &k?, &v?, &op)
            }))
        }));
    }
    cases.extend(HEAD_WIDTHS.map(|width| heads_of(shape, width)));
    cases.push(rotation(shape, &stacked));
    cases.push(relative(shape, stacked, work));
    cases
}

/// Widths of heads for which there are different kernels, and others that fill none of them.
const HEAD_WIDTHS: [usize; 8] = [16, 33, 64, 80, 128, 160, 192, 256];

/// Attention of four heads of a width over two of keys and values.
fn heads_of(shape: &Shape, width: usize) -> Case {
    let (offsets, tokens) = (shape.offsets.clone(), shape.tokens());
    let stacked = normal(1.0, (tokens, 8, width));
    let pairs: usize = offsets.windows(2).map(|span| (span[1] - span[0]).pow(2)).sum();
    let work = Work { operations: 16.0 * (pairs * width) as f64, numbers: (12 * tokens * width) as f64 };
    case(format!("attention, heads of {width}"), BOUND, work, move |side| {
        let stacked = side.rounded(&stacked)?;
        let offsets = Sequences::new(offsets.clone(), &side.device)?;
        Ok(Box::new(move || {
            let [q, k, v] = [(0, 4), (4, 2), (6, 2)].map(|(first, count)| stacked.narrow(1, first, count));
            let (scale, window) = (0.1, Some(40));
            let op = Attention { offsets: &offsets, scale, causal: true, window, bias: None, is_half: false };
            attention(&q?, &k?, &v?, &op)
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

fn relative(shape: &Shape, stacked: Host, work: Work) -> Case {
    let (heads, offsets, reach) = (shape.heads, shape.offsets.clone(), 8i64);
    let span = shape.tokens() as i64;
    let places = ((1 - span)..span).map(|d| (d.clamp(-reach, reach - 1) + reach) as u32).collect::<Vec<_>>();
    let tables = [(); 2].map(|()| normal(1.0, (2 * reach as usize, shape.width)));
    case("attention, disentangled", BOUND, work, move |side| {
        let (stacked, offsets) = (side.rounded(&stacked)?, Sequences::new(offsets.clone(), &side.device)?);
        let (keys, queries) = (side.rounded(&tables[0])?, side.rounded(&tables[1])?);
        let places = Places::new(places.clone(), &side.device)?;
        Ok(Box::new(move || {
            let [q, k, v] = [0, 1, 2].map(|i| stacked.narrow(1, i * heads, heads));
            let (keys, queries) = (Some(&keys), Some(&queries));
            let op = Disentangled { offsets: &offsets, scale: 0.1, keys, queries, places: &places };
            disentangled(&q?, &k?, &v?, &op)
        }))
    })
}
