//! A normalization with its weights.

use super::Loader;
use crate::error::Result;
use crate::kernels::{NormKind, Normalization, Tensor, norm, sum};
use crate::model::delta::{Delta, NormDelta, Plan};
use crate::model::sites::Site;
use crate::model::spec;
use candle_core::DType;

/// LayerNorm or RMSNorm over the last dimension.
pub struct Norm {
    kind: NormKind,
    /// As it is applied.
    weight: Tensor,
    /// What checkpoints hold the weight less of, where they do: 1 everywhere.
    less: Option<Tensor>,
    bias: Option<Tensor>,
    eps: f32,
    /// See [`Normalization`].
    rounded: Option<DType>,
    /// None: adapters cannot change it.
    site: Option<Site>,
}

impl Norm {
    /// Over rows of `width`; a site for adapters.
    pub fn load(spec: &spec::Norm, width: usize, loader: &mut Loader) -> Result<Self> {
        let site = loader.sites.add_norm(&spec.path, width, spec.bias);
        Ok(Self { site: Some(site), ..Self::load_fixed(spec, width, loader)? })
    }

    /// The same that no adapter can change.
    pub fn load_fixed(spec: &spec::Norm, width: usize, loader: &Loader) -> Result<Self> {
        let weight = loader.tensor(&spec.path, "weight", &[width])?;
        let rounded = Some(loader.format.dtype()).filter(|dtype| *dtype != DType::F32);
        let less = if spec.less_one { Some(loader.place(&weight.ones_like()?)?) } else { None };
        let weight = loader.place(&weight)?;
        let weight = less.as_ref().map_or_else(|| Ok(weight.clone()), |ones| sum(&weight, ones))?;
        let bias = if spec.bias { Some(loader.place(&loader.tensor(&spec.path, "bias", &[width])?)?) } else { None };
        Ok(Self { kind: spec.kind, weight, less, bias, eps: spec.eps as f32, rounded, site: None })
    }

    /// `norm(x)`, shaped as `x [tokens, ...]`.
    pub fn forward(&self, x: &Tensor, plan: &Plan) -> Result<Tensor> {
        self.run(x, None, plan)
    }

    /// `norm(x + residual)`, shaped as `x [tokens, ...]`.
    pub fn forward_sum(&self, x: &Tensor, residual: &Tensor, plan: &Plan) -> Result<Tensor> {
        self.run(x, Some(residual), plan)
    }

    fn with<'a>(&self, weight: &'a Tensor, bias: Option<&'a Tensor>) -> Normalization<'a, Tensor> {
        Normalization { kind: self.kind, weight, bias, eps: self.eps, rounded: self.rounded }
    }

    fn run(&self, x: &Tensor, residual: Option<&Tensor>, plan: &Plan) -> Result<Tensor> {
        let Some(site) = self.site.filter(|site| plan.changes(*site)) else {
            return norm(x, residual, &self.with(&self.weight, self.bias.as_ref()));
        };
        plan.by_range(x.dims()[0], site, |rows, delta| {
            let part = |t: &Tensor| t.narrow(0, rows.start, rows.len());
            let residual = residual.map(part).transpose()?;
            let (mut weight, mut bias) = (self.weight.clone(), self.bias.as_ref());
            if let Some(Delta::Norm(NormDelta { weight: own_weight, bias: own_bias })) = delta {
                if let Some(own) = own_weight {
                    weight = self.less.as_ref().map_or_else(|| Ok(own.clone()), |ones| sum(own, ones))?;
                }
                bias = own_bias.as_ref().or(bias);
            }
            norm(&part(x)?, residual.as_ref(), &self.with(&weight, bias))
        })
    }
}
