//! What adapters change: what a product made, and what attention reads of it.

use super::{BOUND, Case, Run, Shape, Work, attention, case};
use crate::error::Result;
use crate::kernels::sample::normal;
use crate::kernels::selftest::Side;
use crate::kernels::twins::{self, add_product, product, scale_columns};
use crate::kernels::{Attended, Attention, Change, Factors, HostFactors, Late, Sequences, Spans, Tensor, Touched};
use candle_core::Tensor as Host;
use std::ops::Range;

/// Every case.
pub fn all(shape: &Shape) -> Vec<Case> {
    let late = |head_width, group, causal, window| late(shape, Heads { head_width, group, causal, window });
    vec![
        updates("updates of all adapters", shape, true, false),
        updates("updates with magnitudes", shape, true, true),
        updates("magnitudes of all adapters", shape, false, true),
        late(32, 1, false, None),
        late(64, 1, false, None),
        late(32, 2, true, None),
        late(64, 2, false, Some(40)),
    ]
}

/// Those whose blocks go through several parts, and come to memory that they had before.
pub fn repeated(shape: &Shape) -> Vec<Case> {
    let heads = Heads { head_width: 64, group: 16, causal: false, window: None };
    // Of so many ranks that there are few blocks for each tile's.
    let many = Shape { offsets: vec![0, 3, 30, 640], width: 384, heads: 1, rank: 240 };
    vec![late(shape, heads), updates("updates of many ranks", &many, true, false)]
}

/// An adapter's change of one of two sites, whose columns begin somewhere.
pub struct Changed {
    rows: Range<usize>,
    site: usize,
    first: usize,
    change: Change<Host>,
}

/// Every sequence but the first has an adapter of its own, some of which leave out a site, or one part of its change.
pub fn changes(shape: &Shape, has_ranks: bool, has_columns: bool) -> Vec<Changed> {
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
        .flat_map(|(i, rows)| {
            [0, 1].map(|site| Changed { rows: rows.clone(), site, first: site * width, change: change(i, site) })
        })
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
    let (bound, offsets) = (if has_ranks { 2.0 * BOUND } else { BOUND }, shape.offsets.clone());
    case(name, bound, work, move |side| {
        let (x, y) = (side.rounded(&x)?, side.rounded(&y)?);
        if side.device.is_cpu() {
            return one_by_one(side, &changes, x, y);
        }
        let (touched, spans) = (residents(side, &changes, &offsets)?, spans(x.dims()[1]));
        Ok(Box::new(move || {
            let y = y.copy()?;
            touched()?.updates(&spans, &x, None)?.0.add_to(&y)?;
            Ok(y)
        }))
    })
}

/// Changes `y` as each adapter does.
pub fn one_by_one(side: &Side, changes: &[Changed], x: Tensor, y: Tensor) -> Result<Run> {
    let place = |Changed { rows, first, change, .. }: &Changed| {
        let placed = change.each_ref().map(|matrix| side.weight(matrix), |all| side.exact(all))?;
        Ok((rows.clone(), *first, placed))
    };
    let placed = changes.iter().map(place).collect::<Result<Vec<_>>>()?;
    Ok(Box::new(move || {
        let y = y.copy()?;
        for (rows, first, Change { low_rank, columns }) in &placed {
            let outputs = low_rank.as_ref().map(|[_, b]| b.dims()[1]);
            let outputs = outputs.or(columns.as_ref().map(|[factor, _]| factor.dims()[0])).unwrap_or_default();
            let window = y.narrow(0, rows.start, rows.len())?.narrow(1, *first, outputs)?;
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

/// Two sites side by side.
pub fn spans(width: usize) -> Spans {
    Spans::new(&[(0, 0, width), (1, width, width)])
}

/// What makes a batch's table of changes, whose adapters are on the device.
pub fn residents(side: &Side, changes: &[Changed], offsets: &[usize]) -> Result<impl Fn() -> Result<Touched> + use<>> {
    let mut residents = Vec::new();
    for adapter in changes.chunk_by(|one, next| one.rows == next.rows) {
        let list: Vec<_> = adapter.iter().map(|Changed { site, change, .. }| (*site, change.each_ref())).collect();
        let resident = Factors::new(&side.device, &HostFactors::new(3, side.dtype, &list)?)?;
        residents.extend(resident.map(|resident| (adapter[0].rows.clone(), resident)));
    }
    let offsets = offsets.to_vec();
    Ok(move || Touched::new(residents.iter().map(|(rows, resident)| (rows.clone(), resident)), &offsets))
}

/// Ranks of queries, keys and values, by sequence in turns: attention makes those changes up to 16 itself, and not the last,
/// which scale and shift as well.
const LATE: [[usize; 3]; 7] = [[8, 0, 16], [16, 16, 3], [5, 7, 16], [0, 0, 0], [17, 0, 16], [16, 0, 9], [4, 4, 4]];

/// Heads of queries, of which so many have the same keys, and what they see.
#[derive(Clone, Copy)]
struct Heads {
    head_width: usize,
    group: usize,
    causal: bool,
    window: Option<usize>,
}

impl Heads {
    /// Columns of queries, keys and values, of so many heads of these.
    fn columns(&self, keys: usize) -> [Range<usize>; 3] {
        let (keys, queries) = (keys * self.head_width, keys * self.group * self.head_width);
        [0..queries, queries..queries + keys, queries + keys..queries + 2 * keys]
    }

    /// Attention of these columns of `stacked`.
    fn attend(&self, stacked: &Tensor, keys: usize, offsets: &Sequences, late: Option<&Late>) -> Result<Tensor> {
        let Self { head_width, causal, window, .. } = *self;
        let heads = stacked.reshape([stacked.dims()[0], (self.group + 2) * keys, head_width])?;
        let part = |columns: Range<usize>| heads.narrow(1, columns.start / head_width, columns.len() / head_width);
        let [q, k, v] = self.columns(keys).map(part);
        let op = Attention { offsets, scale: 0.1, causal, window, bias: None, is_half: false };
        twins::attention(&q?, &k?, &v?, &op, late)
    }
}

/// What adapters change of queries, keys and values in these columns.
fn late_changes(shape: &Shape, columns: &[Range<usize>; 3]) -> Vec<Changed> {
    // Were scores to lie far apart, the least difference of two would decide which value comes through.
    let spread = 0.4 / (shape.width as f64).sqrt();
    let mut changes = Vec::new();
    for (i, rows) in shape.offsets.windows(2).map(|span| span[0]..span[1]).enumerate() {
        let place = i % LATE.len();
        for ((site, columns), rank) in columns.iter().enumerate().zip(LATE[place]).filter(|(_, rank)| *rank > 0) {
            let outputs = columns.len();
            let low_rank = Some([normal(spread, (shape.width, rank)), normal(1.0, (rank, outputs))]);
            let columns_too = (place + 1 == LATE.len()).then(|| [normal(1.0, outputs), normal(1.0, outputs)]);
            let change = Change { low_rank, columns: columns_too };
            changes.push(Changed { rows: rows.clone(), site, first: columns.start, change });
        }
    }
    changes
}

/// Attention of what adapters change.
fn late(shape: &Shape, heads: Heads) -> Case {
    let (keys, head_width) = (shape.heads, heads.head_width);
    let columns = heads.columns(keys);
    let (tokens, queries, width) = (shape.tokens(), columns[0].len(), columns[2].end);
    let changes = late_changes(shape, &columns);
    let (x, stacked, offsets) = (shape.rows(), normal(1.0, (tokens, width)), shape.offsets.clone());
    let work = attention::work(&offsets, queries, width + queries);
    let seen = if heads.causal { ", causal" } else { heads.window.map_or("", |_| ", window") };
    let name = format!("attention of what adapters change, heads of {head_width}{seen}");
    case(name, 4.0 * BOUND, work, move |side| {
        let (x, stacked) = (side.rounded(&x)?, side.rounded(&stacked)?);
        let sequences = Sequences::new(offsets.clone(), &side.device)?;
        if side.device.is_cpu() {
            let changed = one_by_one(side, &changes, x, stacked)?;
            return Ok(Box::new(move || heads.attend(&changed()?, keys, &sequences, None)));
        }
        let touched = residents(side, &changes, &offsets)?;
        let spans = [0, 1, 2].map(|site| (site, columns[site].start, columns[site].len()));
        let (spans, [queries, own_keys, values]) = (Spans::new(&spans), columns.clone().map(Some));
        let attended = Attended { queries, keys: own_keys, values, head_width };
        Ok(Box::new(move || {
            let y = stacked.copy()?;
            let (updates, late) = touched()?.updates(&spans, &x, Some(&attended))?;
            updates.add_to(&y)?;
            heads.attend(&y, keys, &sequences, late.as_ref())
        }))
    })
}
