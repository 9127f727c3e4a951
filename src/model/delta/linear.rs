//! Changes of a linear module.

use crate::error::{Error, Result};
use crate::kernels::{Change, Device, Packed, Tensor, add_product, product, scale_columns};
use crate::model::sites::Weight;
use candle_core::{DType, Tensor as Host};

/// How an adapter changes `y = x W + b`: to `y = (f(x) + (x a) b') * factor + shift`, where `f` is the base's, or one with
/// a weight of its own, and every other part may be missing.
#[derive(Clone, Debug, Default)]
pub struct LinearDelta {
    own: Option<Own>,
    low_rank: Option<LowRank>,
    columns: Option<Columns>,
}

/// `y = (x * inputs) weight`, in place of the base's product.
#[derive(Clone, Debug)]
struct Own {
    /// A factor for every input, and no shift.
    inputs: Option<Columns>,
    /// `[in, out]`; none: the base's, until it is [prepared](LinearDelta::over) or placed.
    weight: Option<Packed>,
}

/// A product of two thin matrices; of an embedding, where `x` picks rows of `a`, the same.
#[derive(Clone, Debug)]
pub struct LowRank {
    /// `[in, rank]`, or `[rows, rank]`.
    pub a: Tensor,
    /// `[rank, out]`, or `[rank, width]`, the scale already in it.
    pub b: Tensor,
}

/// A factor and a shift for every output, `[out]` each.
#[derive(Clone, Debug)]
pub(super) struct Columns {
    pub factor: Tensor,
    pub shift: Tensor,
}

/// New lengths of a weight's rows, or of an embedding's columns (DoRA, arXiv:2402.09353): `m / n`, with `n` the lengths that
/// `W + s B A` has.
#[derive(Clone, Debug)]
pub struct Magnitude {
    /// `m / n`, `[out]`.
    pub(super) factor: Tensor,
}

impl LowRank {
    /// Factors on the host. Those of a linear module may be views of what lies otherwise.
    pub fn new(a: Host, b: Host) -> Self {
        Self { a: a.into(), b: b.into() }
    }

    /// The same as the CPU multiplies them, and as tables have them.
    pub fn dense(&self) -> Result<Self> {
        Ok(Self::new(self.a.cpu()?.contiguous()?, self.b.cpu()?.contiguous()?))
    }

    /// The same on a device, in `dtype` there.
    pub(super) fn placed(&self, device: &Device, dtype: DType) -> Result<Self> {
        let place = |t: &Tensor| device.place_weight(t.cpu()?, dtype);
        Ok(Self { a: place(&self.a)?, b: place(&self.b)? })
    }
}

impl Columns {
    fn placed(&self, device: &Device) -> Result<Self> {
        let place = |t: &Tensor| device.place(t.cpu()?, None);
        Ok(Self { factor: place(&self.factor)?, shift: place(&self.shift)? })
    }
}

impl Magnitude {
    pub(super) fn placed(&self, device: &Device) -> Result<Self> {
        Ok(Self { factor: device.place(self.factor.cpu()?, None)? })
    }

    /// From `m [out]` and the update of a weight `[in, out]`.
    pub fn new(m: &Host, update: &LowRank, weight: &Host) -> Result<Self> {
        let whole = (weight.to_dtype(DType::F32)? + update.a.cpu()?.matmul(update.b.cpu()?)?)?;
        Ok(Self { factor: (m / whole.sqr()?.sum(0)?.sqrt()?)?.into() })
    }
}

impl LinearDelta {
    /// `y += (x a) b`.
    pub fn low_rank(update: LowRank) -> Self {
        Self { low_rank: Some(update), ..Self::default() }
    }

    /// A weight of its own, and a bias of its own or none.
    pub fn own(weight: Weight) -> Result<Self> {
        let (weight, bias) = (&weight.weight, weight.host_bias()?);
        let delta = Self { own: Some(Own { inputs: None, weight: Some(plain(weight)?) }), ..Self::default() };
        bias.map_or(Ok(delta.clone()), |bias| delta.shifted(&bias))
    }

    /// The base's weight and bias on inputs times `inputs [in]`.
    pub fn of_scaled_inputs(inputs: &Host, bias: Option<&Host>) -> Result<Self> {
        let inputs = Columns { factor: inputs.clone().into(), shift: inputs.zeros_like()?.into() };
        let delta = Self { own: Some(Own { inputs: Some(inputs), weight: None }), ..Self::default() };
        bias.map_or(Ok(delta.clone()), |bias| delta.shifted(bias))
    }

    /// The same over what the base has, and as the CPU multiplies it.
    pub(super) fn over(mut self, base: Option<&Weight>) -> Result<Self> {
        if let (Some(own), Some(base)) = (&mut self.own, base) {
            own.weight.get_or_insert(plain(&base.weight)?);
        }
        let low_rank = self.low_rank.as_ref().map(LowRank::dense).transpose()?;
        Ok(Self { low_rank, ..self })
    }

    /// The base's outputs times `factor [out]`.
    pub fn of_scaled_outputs(factor: &Host) -> Result<Self> {
        let columns = Columns { factor: factor.clone().into(), shift: factor.zeros_like()?.into() };
        Ok(Self { columns: Some(columns), ..Self::default() })
    }

    /// The same with `shift [out]` added in the end.
    pub fn shifted(self, shift: &Host) -> Result<Self> {
        let columns = match self.columns {
            Some(Columns { factor, shift: before }) => Columns { factor, shift: (before.cpu()? + shift)?.into() },
            None => Columns { factor: shift.ones_like()?.into(), shift: shift.clone().into() },
        };
        Ok(Self { columns: Some(columns), ..self })
    }

    /// The same with outputs of new lengths, but for the base's `bias [out]`, which stays as it is.
    pub fn with_magnitude(self, magnitude: &Magnitude, bias: Option<&Host>) -> Result<Self> {
        let factor = magnitude.factor.cpu()?;
        let shift = match bias {
            Some(bias) => (bias - (bias * factor)?)?,
            None => factor.zeros_like()?,
        };
        let columns = Columns { factor: factor.clone().into(), shift: shift.into() };
        Ok(Self { columns: Some(columns), ..self })
    }

    pub(super) fn change(&self, x: &Tensor, y: &Tensor) -> Result<()> {
        if let Some(Own { inputs, weight }) = &self.own {
            let weight = weight.as_ref().ok_or_else(not_placed)?;
            match inputs {
                Some(Columns { factor, shift }) => {
                    let x = x.copy()?;
                    scale_columns(&x, factor, shift)?;
                    weight.product_into(y, &x)?;
                }
                None => weight.product_into(y, x)?,
            }
        }
        if let Some(LowRank { a, b }) = &self.low_rank {
            add_product(y, &product(x, a, None)?, b)?;
        }
        if let Some(Columns { factor, shift }) = &self.columns {
            scale_columns(y, factor, shift)?;
        }
        Ok(())
    }

    pub(super) fn as_update(&self) -> Option<&LowRank> {
        self.low_rank.as_ref().filter(|_| self.own.is_none() && self.columns.is_none())
    }

    /// What it does to the base's product, where it has none of its own and does something.
    pub(super) fn as_change(&self) -> Option<Change<&Tensor>> {
        let low_rank = self.low_rank.as_ref().map(|LowRank { a, b }| [a, b]);
        let columns = self.columns.as_ref().map(|Columns { factor, shift }| [factor, shift]);
        let is_change = self.own.is_none() && (low_rank.is_some() || columns.is_some());
        is_change.then_some(Change { low_rank, columns })
    }

    /// One that does no more.
    pub(super) fn of_change<T: Into<Tensor>>(Change { low_rank, columns }: Change<T>) -> Self {
        Self {
            own: None,
            low_rank: low_rank.map(|pair| pair.map(T::into)).map(|[a, b]| LowRank { a, b }),
            columns: columns.map(|pair| pair.map(T::into)).map(|[factor, shift]| Columns { factor, shift }),
        }
    }

    /// The same with another matrix in the place of its update's `a`.
    pub(super) fn with_a(self, a: Tensor) -> Self {
        let low_rank = self.low_rank.map(|update| LowRank { a, ..update });
        Self { low_rank, ..self }
    }

    pub(super) fn rank(&self) -> usize {
        self.low_rank.as_ref().map_or(0, |update| update.a.dims()[1])
    }

    /// The same on a device, matrices in `dtype` there, over what the base has there.
    pub(super) fn placed(&self, device: &Device, dtype: DType, base: Option<&Weight>) -> Result<Self> {
        let columns = |columns: &Columns| columns.placed(device);
        let own = |Own { inputs, weight }: &Own| -> Result<_> {
            let inputs = inputs.as_ref().map(columns).transpose()?;
            let weight = match weight {
                Some(weight) => weight.placed(device, dtype)?,
                None => base.ok_or_else(not_placed)?.weight.clone(),
            };
            Ok(Own { inputs, weight: Some(weight) })
        };
        Ok(Self {
            own: self.own.as_ref().map(own).transpose()?,
            low_rank: self.low_rank.as_ref().map(|update| update.placed(device, dtype)).transpose()?,
            columns: self.columns.as_ref().map(columns).transpose()?,
        })
    }

    /// Its own tensors; a base's weight that it uses is not among them.
    pub(super) fn tensors(&self) -> Vec<&Tensor> {
        let own = self.own.iter().filter_map(|own| {
            own.inputs.as_ref().map(|inputs| &inputs.factor).or_else(|| own.weight.as_ref()?.as_tensor())
        });
        let low_rank = self.low_rank.iter().flat_map(|update| [&update.a, &update.b]);
        let columns = self.columns.iter().flat_map(|columns| [&columns.factor, &columns.shift]);
        own.chain(low_rank).chain(columns).collect()
    }
}

fn not_placed() -> Error {
    Error::Internal("a change of a base's weight knows no base".into())
}

/// A weight in f32 or packed, as it lies where it is that already.
fn plain(weight: &Packed) -> Result<Packed> {
    match weight.as_tensor() {
        Some(Tensor::Cpu(tensor)) if tensor.dtype() != DType::F32 => {
            Ok(Packed::plain(weight.tensor()?.to_dtype(DType::F32)?))
        }
        _ => Ok(weight.clone()),
    }
}
