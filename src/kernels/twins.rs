//! Each operation where its arguments lie: the CPU's twin or the GPU's. What a file of this folder documents of the one
//! holds for the other, but for types: on a GPU products give rows of their weight's type, what has no weight gives rows of
//! its argument's type, and sums with a residual, in which layers pass hidden states on, are f32, or 24 bits of it. And but for
//! GELU of products in bf16 there, see `cuda::matmul::Epilogue`.

use super::attention::Attention;
use super::cuda::{self, Array, Late};
use super::disentangled::Disentangled;
use super::sequences::Sequences;
use super::tensor::Tensor;
use super::updates::Updates;
use super::{Activation, Active, Gate, Normalization, Pooling};
use super::{activation, columns, lookup, pooling, rotary};
use crate::error::{Error, Result};
use candle_core::{DType, Device};
use std::ops::Range;

pub(super) fn elsewhere() -> Error {
    Error::Internal("an operation's arguments lie on different devices".into())
}

/// What may be missing, on the CPU.
fn on_cpu(tensor: Option<&Tensor>) -> Result<Option<&candle_core::Tensor>> {
    tensor.map(Tensor::cpu).transpose()
}

/// What may be missing, on a GPU.
fn on_gpu(tensor: Option<&Tensor>) -> Result<Option<&Array>> {
    tensor.map(Tensor::array).transpose()
}

/// See the twins.
pub fn norm(x: &Tensor, residual: Option<&Tensor>, norm: &Normalization<Tensor>) -> Result<Tensor> {
    let Normalization { kind, weight, bias, eps, rounded } = *norm;
    Ok(match x {
        Tensor::Cpu(x) => super::norm::norm(x, on_cpu(residual)?, kind, weight.cpu()?, on_cpu(bias)?, eps)?.into(),
        Tensor::Gpu(x) => {
            let norm = Normalization { kind, weight: weight.array()?, bias: on_gpu(bias)?, eps, rounded };
            Tensor::Gpu(cuda::norm(x, on_gpu(residual)?, &norm)?)
        }
    })
}

/// See the twins.
pub fn unit(x: &Tensor) -> Result<Tensor> {
    Ok(match x {
        Tensor::Cpu(x) => super::norm::unit(x)?.into(),
        Tensor::Gpu(x) => Tensor::Gpu(cuda::unit(x)?),
    })
}

/// See the twins.
pub fn activate(x: &Tensor, activation: Activation, gate: Gate) -> Result<Tensor> {
    Ok(match x {
        Tensor::Cpu(x) => activation::activate(x, activation, gate)?.into(),
        Tensor::Gpu(x) => Tensor::Gpu(cuda::activate(x, activation, gate)?),
    })
}

/// See the twins. Nothing is left to attention on the CPU.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, op: &Attention<Tensor>, late: Option<&Late>) -> Result<Tensor> {
    let Attention { offsets, scale, causal, window, bias, is_half } = *op;
    Ok(match q {
        Tensor::Cpu(_) if late.is_some() => return Err(elsewhere()),
        Tensor::Cpu(q) => {
            let op = Attention { offsets, scale, causal, window, bias: on_cpu(bias)?, is_half };
            super::attention::attention(q, k.cpu()?, v.cpu()?, &op)?.into()
        }
        Tensor::Gpu(q) => {
            let op = Attention { offsets, scale, causal, window, bias: on_gpu(bias)?, is_half };
            Tensor::Gpu(cuda::attention(q, k.array()?, v.array()?, &op, late)?)
        }
    })
}

/// See the twins.
pub fn disentangled(q: &Tensor, k: &Tensor, v: &Tensor, op: &Disentangled<Tensor>) -> Result<Tensor> {
    let Disentangled { offsets, scale, keys, queries, places } = *op;
    Ok(match q {
        Tensor::Cpu(q) => {
            let op = Disentangled { offsets, scale, keys: on_cpu(keys)?, queries: on_cpu(queries)?, places };
            super::disentangled::disentangled(q, k.cpu()?, v.cpu()?, &op)?.into()
        }
        Tensor::Gpu(q) => {
            let op = Disentangled { offsets, scale, keys: on_gpu(keys)?, queries: on_gpu(queries)?, places };
            Tensor::Gpu(cuda::disentangled(q, k.array()?, v.array()?, &op)?)
        }
    })
}

/// See the twins.
pub fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor, sequences: &Sequences) -> Result<Tensor> {
    Ok(match x {
        Tensor::Cpu(x) => rotary::rotate(x, cos.cpu()?, sin.cpu()?, sequences)?.into(),
        Tensor::Gpu(x) => Tensor::Gpu(cuda::rotate(x, cos.array()?, sin.array()?, &sequences.spread()?.positions)?),
    })
}

/// See the twins.
pub fn pool(hidden: &Tensor, offsets: &[usize], left_out: &[usize], mode: Pooling) -> Result<Tensor> {
    Ok(match hidden {
        Tensor::Cpu(hidden) => pooling::pool(hidden, offsets, left_out, mode)?.into(),
        Tensor::Gpu(hidden) => Tensor::Gpu(cuda::pool(hidden, offsets, left_out, mode)?),
    })
}

/// The sum of the rows that each table's ids name, see the twins.
pub fn look_up(tables: &[(&Tensor, &[u32])]) -> Result<Tensor> {
    let Some((Tensor::Gpu(_), _)) = tables.first() else {
        let add = |sum: Option<candle_core::Tensor>, (table, ids): &(&Tensor, &[u32])| {
            Ok::<_, Error>(Some(lookup::look_up(table.cpu()?, ids, sum.as_ref())?))
        };
        let sum = tables.iter().try_fold(None, add)?;
        return Ok(sum.ok_or_else(|| Error::Internal("rows of no table".into()))?.into());
    };
    let arrays = tables.iter().map(|(table, ids)| Ok((table.array()?, *ids))).collect::<Result<Vec<_>>>()?;
    Ok(Tensor::Gpu(cuda::look_up(&arrays)?))
}

/// See the twins.
pub fn pick(x: &Tensor, ids: &[u32]) -> Result<Tensor> {
    Ok(match x {
        Tensor::Cpu(x) => lookup::pick(x, ids)?.into(),
        Tensor::Gpu(x) => Tensor::Gpu(cuda::pick(x, ids)?),
    })
}

/// See the twins.
pub fn product(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    project(x, weight, bias, &Updates::none(), None)
}

/// `f(x W + b)`, see the twins of both, with what adapters change before `f`.
pub fn project(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    updates: &Updates,
    active: Option<Active>,
) -> Result<Tensor> {
    match x {
        Tensor::Cpu(x) => {
            let y = super::product::product(x, weight.cpu()?, on_cpu(bias)?)?.into();
            updates.add_to(&y)?;
            activated(y, active)
        }
        Tensor::Gpu(x) => {
            let (weight, updates) = (weight.array()?, updates.grouped()?);
            let x = &x.to_dtype(weight.dtype())?;
            let projection = cuda::Projection { x, weight, bias: on_gpu(bias)?, updates, active };
            Ok(Tensor::Gpu(projection.run()?))
        }
    }
}

/// The same on a GPU, but that some rows, in order, are `x W + b`; see [`Packed::activates`](super::Packed::activates).
pub fn project_apart(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    active: Active,
    apart: &[Range<usize>],
) -> Result<Tensor> {
    let (weight, x) = (weight.array()?, x.array()?);
    let x = &x.to_dtype(weight.dtype())?;
    let projection = cuda::Projection { x, weight, bias: on_gpu(bias)?, updates: None, active: Some(active) };
    Ok(Tensor::Gpu(projection.run_apart(apart)?))
}

/// Activates some rows of what is dense where they lie, on a GPU.
pub fn activate_rows(x: &Tensor, activation: Activation, rows: &[Range<usize>]) -> Result<()> {
    cuda::activate_rows(x.array()?, activation, rows)
}

/// What an activation makes of something, or the same where there is none.
pub fn activated(y: Tensor, active: Option<Active>) -> Result<Tensor> {
    match active {
        Some(Active { activation, gate }) => activate(&y, activation, gate),
        None => Ok(y),
    }
}

/// See the twins.
pub fn add_product(y: &Tensor, x: &Tensor, weight: &Tensor) -> Result<()> {
    match y {
        Tensor::Cpu(y) => Ok(super::product::add_product(y, x.cpu()?, weight.cpu()?)?),
        Tensor::Gpu(y) => cuda::add_product(y, x.array()?, weight.array()?),
    }
}

/// See the twins.
pub fn set_product(y: &Tensor, x: &Tensor, weight: &Tensor) -> Result<()> {
    match y {
        Tensor::Cpu(y) => Ok(super::product::set_product(y, x.cpu()?, weight.cpu()?)?),
        Tensor::Gpu(y) => cuda::set_product(y, x.array()?, weight.array()?),
    }
}

/// See the twins.
pub fn assign(y: &Tensor, x: &Tensor) -> Result<()> {
    match y {
        Tensor::Cpu(y) => Ok(columns::assign(y, x.cpu()?)?),
        Tensor::Gpu(y) => cuda::assign(y, x.array()?),
    }
}

/// See the twins.
pub fn scale_columns(y: &Tensor, factor: &Tensor, shift: &Tensor) -> Result<()> {
    match y {
        Tensor::Cpu(y) => Ok(columns::scale_columns(y, factor.cpu()?, shift.cpu()?)?),
        Tensor::Gpu(y) => cuda::scale_columns(y, factor.array()?, shift.array()?),
    }
}

/// See the twins.
pub fn add_difference(y: &Tensor, after: &Tensor, before: &Tensor, weight: f32) -> Result<()> {
    match y {
        Tensor::Cpu(y) => Ok(columns::add_difference(y, after.cpu()?, before.cpu()?, weight)?),
        Tensor::Gpu(y) => cuda::add_difference(y, after.array()?, before.array()?, weight),
    }
}

/// See the twins.
pub fn sum(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    Ok(match a {
        Tensor::Cpu(a) => columns::sum(a, b.cpu()?)?.into(),
        Tensor::Gpu(a) => Tensor::Gpu(cuda::sum(a, b.array()?)?),
    })
}

/// `x [tokens, heads, width]`, which may be a window, plus `addend [heads, width]` for every token.
pub fn add_to_each(x: &Tensor, addend: &Tensor) -> Result<Tensor> {
    Ok(match x {
        Tensor::Cpu(x) => x.broadcast_add(addend.cpu()?)?.into(),
        Tensor::Gpu(x) => Tensor::Gpu(cuda::add_to_each(x, addend.array()?)?),
    })
}

/// `y` with `shares[i] * x[i, :]` added to its rows `rows[i]`, of which none comes twice.
pub fn scatter_add(y: Tensor, x: &Tensor, rows: &[u32], shares: &[f32]) -> Result<Tensor> {
    let shares = candle_core::Tensor::from_slice(shares, (shares.len(), 1), &Device::Cpu)?;
    Ok(match y {
        Tensor::Cpu(y) => {
            let rows = candle_core::Tensor::new(rows, &Device::Cpu)?;
            y.index_add(&rows, &x.cpu()?.broadcast_mul(&shares)?, 0)?.into()
        }
        Tensor::Gpu(y) => {
            cuda::scatter_add(&y, x.array()?, rows, &Array::of(y.gpu(), &shares)?)?;
            Tensor::Gpu(y)
        }
    })
}

/// `x` as products with a weight of this type take it, so that several of them need not round it each.
pub fn operand(x: &Tensor, dtype: DType) -> Result<Tensor> {
    Ok(match x {
        Tensor::Cpu(x) => x.clone().into(),
        Tensor::Gpu(x) => Tensor::Gpu(x.to_dtype(dtype)?),
    })
}
