//! Products and what adapters change of them.

use super::{BOUND, Case, Run, Shape, Work, case};
use crate::error::Result;
use crate::kernels::sample::normal;
use crate::kernels::selftest::Side;
use crate::kernels::twins::{activated, add_product, product, project, scale_columns, set_product};
use crate::kernels::{Activation, Active, Change, Factors, Gate, HostFactors, Spans, Tensor, Touched};
use candle_core::{DType, Device, Tensor as Host};
use std::ops::Range;

/// Every case.
pub fn all(shape: &Shape) -> Vec<Case> {
    let mut cases = products(shape);
    cases.extend(projections(shape));
    cases.push(updates("updates of all adapters", shape, true, false));
    cases.push(updates("updates with magnitudes", shape, true, true));
    cases.push(updates("magnitudes of all adapters", shape, false, true));
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

/// An activation of twice as many columns, of which each half is a site that adapters change or leave; once of one half,
/// which the other multiplies.
fn projections(shape: &Shape) -> Vec<Case> {
    let (width, tokens, outputs) = (shape.width, shape.tokens(), 2 * shape.width);
    let (plain, gated) = (Active::plain(Activation::Gelu), Active { activation: Activation::Silu, gate: Gate::First });
    let kinds = [
        ("", false, false, plain),
        (" with updates", true, false, plain),
        (" with magnitudes", true, true, plain),
        (" of a gate with updates", true, false, gated),
    ];
    let (x, w, b) = (shape.rows(), normal(0.05, (width, outputs)), normal(1.0, outputs));
    let case_of = |(what, has_ranks, has_columns, active): (&str, bool, bool, Active)| {
        let changes = if has_ranks { changes(shape, true, has_columns) } else { Vec::new() };
        let work = Work {
            operations: 2.0 * (tokens * width * outputs) as f64,
            numbers: (tokens * (width + outputs) + width * outputs) as f64,
        };
        let (x, w, b) = (x.clone(), w.clone(), b.clone());
        let bound = if has_ranks { 2.0 * BOUND } else { BOUND };
        case(format!("projection{what}"), bound, work, move |side| {
            let (x, w, b) = (side.rounded(&x)?, side.weight(&w)?, side.rounded(&b)?);
            if side.device.is_cpu() {
                let changed = one_by_one(side, &changes, x.clone(), product(&x, &w, Some(&b))?)?;
                return Ok(Box::new(move || activated(changed()?, Some(active))));
            }
            let (touched, spans) = (residents(side, &changes)?, spans(width));
            Ok(Box::new(move || {
                let updates = touched()?.updates(&spans, &x)?;
                project(&x, &w, Some(&b), &updates, Some(active))
            }))
        })
    };
    kinds.into_iter().map(case_of).collect()
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
    let (touched, spans) = (residents(side, changes)?, spans(x.dims()[1]));
    Ok(Box::new(move || {
        let y = y.copy()?;
        touched()?.updates(&spans, &x)?.add_to(&y)?;
        Ok(y)
    }))
}

/// Two sites side by side.
fn spans(width: usize) -> Spans {
    Spans::new(&[(0, 0, width), (1, width, width)])
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
