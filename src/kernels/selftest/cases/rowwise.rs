//! What goes row by row.

use super::{BOUND, Case, Shape, Work, case};
use crate::kernels::sample::normal;
use crate::kernels::selftest::Side;
use crate::kernels::twins::{
    activate, add_difference, add_to_each, look_up, norm, operand, pick, pool, scale_columns, scatter_add, sum, unit,
};
use crate::kernels::{Activation, Gate, NormKind, Normalization, Pooling};
use candle_core::DType;

/// Every case.
pub fn all(shape: &Shape) -> Vec<Case> {
    let groups = [rows(shape), columns(shape), norms(shape), activations(shape), pools(shape)];
    groups.into_iter().flatten().collect()
}

fn rows(shape: &Shape) -> Vec<Case> {
    let (table, onto, rows) = (shape.rows(), shape.rows(), shape.tokens() as u32);
    let ids: Vec<u32> = (0..rows).map(|i| (i * 7 + 3) % rows).collect();
    let (other, mut gaps) = (table.clone(), ids.clone());
    gaps[1] = rows;
    let found = case("look_up", BOUND, shape.passes(4), move |side| {
        let (table, other, ids) = (side.rounded(&table)?, side.rounded(&onto)?, ids.clone());
        let others: Vec<u32> = ids.iter().map(|id| id / 2).collect();
        Ok(Box::new(move || look_up(&[(&table, &ids), (&other, &others), (&table, &others)])))
    });
    let picked = case("pick", BOUND, shape.passes(2), move |side| {
        let (table, ids) = (side.rounded(&other)?, gaps.clone());
        Ok(Box::new(move || pick(&table, &ids)))
    });
    vec![found, picked]
}

fn columns(shape: &Shape) -> Vec<Case> {
    let (tokens, width) = (shape.tokens(), shape.width);
    let (a, b) = (shape.rows(), shape.rows());
    let (factor, shift) = (normal(1.0, width), normal(1.0, width));
    let (heads, by_head) = (shape.heads, normal(1.0, (shape.heads, width / shape.heads)));
    let mut cases = Vec::new();
    {
        let (a, b) = (a.clone(), b.clone());
        cases.push(case("sum", BOUND, shape.passes(3), move |side| {
            let (a, b) = (side.exact(&a)?, side.rounded(&b)?);
            Ok(Box::new(move || sum(&a, &b)))
        }));
    }
    {
        let a = a.clone();
        cases.push(case("add_to_each", BOUND, shape.passes(2), move |side| {
            let (x, by_head) = (side.rounded(&a)?.reshape([tokens, heads, width / heads])?, side.exact(&by_head)?);
            Ok(Box::new(move || add_to_each(&x, &by_head)))
        }));
    }
    {
        let a = a.clone();
        cases.push(case("scale_columns", BOUND, shape.passes(4), move |side| {
            let (a, factor, shift) = (side.rounded(&a)?, side.exact(&factor)?, side.exact(&shift)?);
            Ok(Box::new(move || {
                let y = a.copy()?;
                scale_columns(
                    &y.narrow(1, 3, width - 3)?,
                    &factor.narrow(0, 3, width - 3)?,
                    &shift.narrow(0, 3, width - 3)?,
                )?;
                Ok(y)
            }))
        }));
    }
    {
        let (a, b) = (a.clone(), b.clone());
        cases.push(case("add_difference", BOUND, shape.passes(5), move |side| {
            let (a, b) = (side.rounded(&a)?, side.rounded(&b)?);
            Ok(Box::new(move || {
                let y = a.copy()?;
                add_difference(&y, &b, &a, 0.3)?;
                Ok(y)
            }))
        }));
    }
    cases.push(case("scatter_add", BOUND, shape.passes(4), move |side| {
        let (a, b) = (side.exact(&a)?, side.rounded(&b)?);
        let rows: Vec<u32> = (0..tokens as u32).rev().collect();
        let shares: Vec<f32> = rows.iter().map(|row| *row as f32 / tokens as f32).collect();
        Ok(Box::new(move || scatter_add(a.copy()?, &b, &rows, &shares)))
    }));
    cases
}

fn norms(shape: &Shape) -> Vec<Case> {
    let (x, residual, weight, bias) = (shape.rows(), shape.rows(), normal(1.0, shape.width), normal(1.0, shape.width));
    let mut cases = Vec::new();
    for (name, kind, with_residual) in
        [("norm, layer, of a sum", NormKind::Layer, true), ("norm, root mean square", NormKind::Rms, false)]
    {
        let (x, residual, weight, bias) = (x.clone(), residual.clone(), weight.clone(), bias.clone());
        cases.push(case(name, BOUND, shape.passes(3), move |side| {
            let (x, weight, bias) = (side.rounded(&x)?, side.exact(&weight)?, side.exact(&bias)?);
            let residual = if with_residual { Some(side.exact(&residual)?) } else { None };
            let bias = with_residual.then_some(bias);
            let rounded = Some(side.dtype).filter(|dtype| *dtype != DType::F32);
            Ok(Box::new(move || {
                let norm_of = Normalization { kind, weight: &weight, bias: bias.as_ref(), eps: 1e-5, rounded };
                let y = norm(&x, residual.as_ref(), &norm_of)?;
                // What products take.
                if with_residual { rounded.map_or(Ok(y.clone()), |dtype| operand(&y, dtype)) } else { Ok(y) }
            }))
        }));
    }
    // A sum that the next sum is of.
    let arguments = (x.clone(), residual, weight, bias);
    cases.push(case("norm, layer, of a sum twice", 2.0 * BOUND, shape.passes(6), move |side| {
        let (x, residual, weight, bias) = &arguments;
        let (x, residual) = (side.rounded(x)?, side.exact(residual)?);
        let (weight, bias) = (side.exact(weight)?, side.exact(bias)?);
        let rounded = Some(side.dtype).filter(|dtype| *dtype != DType::F32);
        Ok(Box::new(move || {
            let (kind, bias) = (NormKind::Layer, Some(&bias));
            let norm_of = Normalization { kind, weight: &weight, bias, eps: 1e-5, rounded };
            norm(&x, Some(&norm(&x, Some(&residual), &norm_of)?), &norm_of)
        }))
    }));
    // As many columns as a warp keeps, more, an odd number, and more than a block keeps.
    for width in [1000, 1100, 1101, 4100] {
        let (x, weight) = (normal(1.0, (shape.tokens(), width)), normal(1.0, width));
        let work = Work { operations: 0.0, numbers: (2 * shape.tokens() * width) as f64 };
        cases.push(case(format!("norm, layer, of {width} columns"), BOUND, work, move |side| {
            let (x, weight) = (side.rounded(&x)?, side.exact(&weight)?);
            Ok(Box::new(move || {
                let kind = NormKind::Layer;
                norm(&x, None, &Normalization { kind, weight: &weight, bias: None, eps: 1e-5, rounded: None })
            }))
        }));
    }
    cases.push(case("unit", BOUND, shape.passes(2), move |side| {
        let x = side.exact(&x)?;
        Ok(Box::new(move || unit(&x)))
    }));
    cases
}

fn activations(shape: &Shape) -> Vec<Case> {
    let (x, width) = (normal(3.0, (shape.tokens(), shape.width)), shape.width);
    let mut every = vec![(Activation::Silu, Gate::First), (Activation::Gelu, Gate::Second)];
    every.extend(Activation::SOME.map(|activation| (activation, Gate::Absent)));
    let case = |(activation, gate)| {
        let x = x.clone();
        case(format!("{activation:?}, gate {gate:?}"), 2.0 * BOUND, shape.passes(2), move |side: &Side| {
            let x = side.rounded(&x)?;
            Ok(Box::new(move || activate(&x.narrow(1, 0, width)?, activation, gate)))
        })
    };
    every.into_iter().map(case).collect()
}

fn pools(shape: &Shape) -> Vec<Case> {
    let hidden = shape.rows();
    let case = |mode| {
        let (hidden, offsets) = (hidden.clone(), shape.offsets.clone());
        let left_out: Vec<usize> = offsets.windows(2).map(|span| (span[1] - span[0]) / 2).collect();
        case(format!("pool, {mode:?}"), BOUND, shape.passes(1), move |side: &Side| {
            let (hidden, offsets, left_out) = (side.exact(&hidden)?, offsets.clone(), left_out.clone());
            Ok(Box::new(move || pool(&hidden, &offsets, &left_out, mode)))
        })
    };
    let mut cases: Vec<Case> = Pooling::ALL.map(case).into();
    cases.extend([odd_pool(shape), pool_of_sum(shape)]);
    cases
}

/// Of what the last norm of a model makes.
fn pool_of_sum(shape: &Shape) -> Case {
    let (x, residual, weight, offsets) = (shape.rows(), shape.rows(), normal(1.0, shape.width), shape.offsets.clone());
    case("pool, of a sum", BOUND, shape.passes(1), move |side| {
        let (x, residual, weight) = (side.rounded(&x)?, side.exact(&residual)?, side.exact(&weight)?);
        let rounded = Some(side.dtype).filter(|dtype| *dtype != DType::F32);
        let norm_of = Normalization { kind: NormKind::Layer, weight: &weight, bias: None, eps: 1e-5, rounded };
        let (hidden, offsets) = (norm(&x, Some(&residual), &norm_of)?, offsets.clone());
        Ok(Box::new(move || pool(&hidden, &offsets, &[], Pooling::Mean)))
    })
}

/// Of columns that are neither aligned nor of an even number.
fn odd_pool(shape: &Shape) -> Case {
    let (hidden, offsets, width) = (shape.rows(), shape.offsets.clone(), shape.width);
    case("pool, odd columns", BOUND, shape.passes(1), move |side| {
        let (hidden, offsets) = (side.exact(&hidden)?, offsets.clone());
        Ok(Box::new(move || pool(&hidden.narrow(1, 1, width - 1)?, &offsets, &[], Pooling::Mean)))
    })
}
