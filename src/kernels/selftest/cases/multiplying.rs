//! What multiplies: products, updates of low rank, attention.

use super::{BOUND, Case, Run, Shape, Work, case};
use crate::error::Result;
use crate::kernels::sample::normal;
use crate::kernels::selftest::Side;
use crate::kernels::twins::{
    activate, add_product, attention, disentangled, product, project, rotate, scale_columns, set_product,
};
use crate::kernels::{
    Activation, Attention, Change, Disentangled, Factors, Gate, HostFactors, Places, Sequences, Spans, Tensor, Touched,
};
use candle_core::{DType, Device, Tensor as Host};
use std::ops::Range;

/// Every case.
pub fn all(shape: &Shape) -> Vec<Case> {
    let mut cases = products(shape);
    cases.extend(projections(shape));
    cases.push(updates("updates of all adapters", shape, true, false));
    cases.push(updates("updates with magnitudes", shape, true, true));
    cases.push(updates("magnitudes of all adapters", shape, false, true));
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

/// What a case's name ends with.
fn how(by_warpgroups: bool) -> &'static str {
    if by_warpgroups { ", by warpgroups" } else { "" }
}

/// An activation of twice as many columns, of which each half is a site that adapters change or leave.
fn projections(shape: &Shape) -> Vec<Case> {
    let (width, tokens, outputs) = (shape.width, shape.tokens(), 2 * shape.width);
    let kinds = [("", false, false), (" with updates", true, false), (" with magnitudes", true, true)];
    let cases = kinds.into_iter().flat_map(|kind| [false, true].map(|by_warpgroups| (kind, by_warpgroups)));
    let (x, w, b) = (shape.rows(), normal(0.05, (width, outputs)), normal(1.0, outputs));
    let case_of = |((what, has_ranks, has_columns), by_warpgroups): ((&str, bool, bool), bool)| {
        let changes = if has_ranks { changes(shape, true, has_columns) } else { Vec::new() };
        let work = Work {
            operations: 2.0 * (tokens * width * outputs) as f64,
            numbers: (tokens * (width + outputs) + width * outputs) as f64,
        };
        let (x, w, b) = (x.clone(), w.clone(), b.clone());
        let bound = if has_ranks { 2.0 * BOUND } else { BOUND };
        case(format!("projection{what}{}", how(by_warpgroups)), bound, work, move |side| {
            let side = &side.using(by_warpgroups);
            let (x, w, b) = (side.rounded(&x)?, side.weight(&w)?, side.rounded(&b)?);
            if side.device.is_cpu() {
                let changed = one_by_one(side, &changes, x.clone(), product(&x, &w, Some(&b))?)?;
                return Ok(Box::new(move || activate(&changed()?, Activation::Gelu, Gate::Absent)));
            }
            let (touched, spans) = (residents(side, &changes)?, spans(side, width)?);
            Ok(Box::new(move || {
                let updates = touched()?.updates(&spans, &x)?;
                project(&x, &w, Some(&b), &updates, Some(Activation::Gelu))
            }))
        })
    };
    cases.map(case_of).collect()
}

/// An adapter's change of one of two sites that stand side by side.
struct Changed {
    rows: Range<usize>,
    site: usize,
    change: Change<Host>,
}

/// Every sequence but the first has an adapter of its own, some of which leave out a site, or one part of its change.
fn changes(shape: &Shape, has_ranks: bool, has_columns: bool) -> Vec<Changed> {
    let width = shape.width;
    let change = |i: usize, site: usize| {
        let rank = match site {
            _ if !has_ranks => 0,
            0 if has_columns && i % 3 == 1 => 0,
            0 => shape.rank + i % 3,
            _ if i % 4 == 1 => 0,
            _ => shape.rank,
        };
        let low_rank = (rank > 0).then(|| [normal(0.05, (width, rank)), normal(1.0, (rank, width))]);
        let has_columns = has_columns && (i + site) % 3 != 2;
        Change { low_rank, columns: has_columns.then(|| [normal(1.0, width), normal(1.0, width)]) }
    };
    let adapters = shape.offsets.windows(2).map(|span| span[0]..span[1]).enumerate().skip(1);
    adapters
        .flat_map(|(i, rows)| [0, 1].map(|site| Changed { rows: rows.clone(), site, change: change(i, site) }))
        .filter(|changed| changed.change.low_rank.is_some() || changed.change.columns.is_some())
        .collect()
}

fn updates(name: &str, shape: &Shape, has_ranks: bool, has_columns: bool) -> Case {
    let (width, tokens, changes) = (shape.width, shape.tokens(), changes(shape, has_ranks, has_columns));
    let (x, y) = (shape.rows(), normal(1.0, (tokens, 2 * width)));
    let rank = if has_ranks { shape.rank } else { 0 };
    let read = if has_ranks { 5 } else { 4 };
    let work = Work {
        operations: 2.0 * (tokens * rank * width * 4) as f64,
        numbers: (tokens * width * read + changes.len() * (rank + usize::from(has_columns)) * width * 2) as f64,
    };
    // The left factors are rounded as well as the result, and what that loses may be scaled too.
    let bound = if has_ranks { 2.0 * BOUND } else { BOUND };
    case(name, bound, work, move |side| {
        let (x, y) = (side.rounded(&x)?, side.rounded(&y)?);
        if side.device.is_cpu() { one_by_one(side, &changes, x, y) } else { together(side, &changes, x, y) }
    })
}

fn one_by_one(side: &Side, changes: &[Changed], x: Tensor, y: Tensor) -> Result<Run> {
    let place = |Changed { rows, site, change }: &Changed| {
        let placed = change.each_ref().map(|matrix| side.weight(matrix), |all| side.exact(all))?;
        Ok((rows.clone(), *site, placed))
    };
    let placed = changes.iter().map(place).collect::<Result<Vec<_>>>()?;
    Ok(Box::new(move || {
        let (y, width) = (y.copy()?, x.dims()[1]);
        for (rows, site, Change { low_rank, columns }) in &placed {
            let window = y.narrow(0, rows.start, rows.len())?.narrow(1, site * width, width)?;
            if let Some([a, b]) = low_rank {
                add_product(&window, &product(&x.narrow(0, rows.start, rows.len())?, a, None)?, b)?;
            }
            if let Some([factor, shift]) = columns {
                scale_columns(&window, factor, shift)?;
            }
        }
        Ok(y)
    }))
}

fn together(side: &Side, changes: &[Changed], x: Tensor, y: Tensor) -> Result<Run> {
    let (touched, spans) = (residents(side, changes)?, spans(side, x.dims()[1])?);
    Ok(Box::new(move || {
        let y = y.copy()?;
        touched()?.updates(&spans, &x)?.add_to(&y)?;
        Ok(y)
    }))
}

/// Two sites side by side.
fn spans(side: &Side, width: usize) -> Result<Spans> {
    Spans::new(&side.device, &[(0, 0, width), (1, width, width)])
}

/// What makes a batch's table of changes, whose adapters are on the device.
fn residents(side: &Side, changes: &[Changed]) -> Result<impl Fn() -> Result<Touched> + use<>> {
    let mut residents = Vec::new();
    for adapter in changes.chunk_by(|one, next| one.rows == next.rows) {
        let list: Vec<_> = adapter.iter().map(|Changed { site, change, .. }| (*site, change.each_ref())).collect();
        let resident = Factors::new(&side.device, &HostFactors::new(2, side.dtype, &list)?)?;
        residents.extend(resident.map(|resident| (adapter[0].rows.clone(), resident)));
    }
    Ok(move || Touched::new(residents.iter().map(|(rows, resident)| (rows.clone(), resident))))
}

fn attentions(shape: &Shape) -> Vec<Case> {
    let (tokens, heads, width) = (shape.tokens(), shape.heads, shape.width / shape.heads);
    let span = shape.offsets.windows(2).map(|span| span[1] - span[0]).max().unwrap_or_default();
    let work = attention_work(&shape.offsets, shape.width, 4 * shape.width);
    let stacked = normal(1.0, (tokens, 3 * heads, width));
    let bias = normal(1.0, (heads, 2 * span - 1));
    let mut cases = Vec::new();
    let kinds = [
        ("attention", false, None, false),
        ("attention, causal", true, None, false),
        ("attention, window", false, Some(7), false),
        ("attention, bias by distance", false, None, true),
    ];
    let kinds = kinds.into_iter().flat_map(|kind| [false, true].map(|by_warpgroups| (kind, by_warpgroups)));
    for ((name, causal, window, biased), by_warpgroups) in kinds {
        let (stacked, bias, offsets) = (stacked.clone(), bias.clone(), shape.offsets.clone());
        cases.push(case(format!("{name}{}", how(by_warpgroups)), BOUND, work, move |side| {
            let side = &side.using(by_warpgroups);
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
    cases.extend(relatives(shape));
    cases
}

/// Of queries so wide together that see every key of their sequence, with so many numbers a token.
fn attention_work(offsets: &[usize], width: usize, numbers: usize) -> Work {
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
    let work = attention_work(&offsets, 4 * width, 12 * width);
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
        let work = attention_work(&offsets, heads * width, 4 * heads * width);
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
