//! The one linear layer: a matrix stacked from checkpoint modules, each of them a site for deltas.

use super::Loader;
use crate::error::Result;
use crate::kernels::product;
use crate::model::delta::{Plan, Site};
use crate::model::spec::Projection;
use candle_core::Tensor;

/// `x W + b`, plus the deltas of the batch's adapters.
pub struct Linear {
    /// `[in, out]`.
    weight: Tensor,
    /// `[out]`.
    bias: Option<Tensor>,
    /// Each site's columns of the output: first and count.
    sites: Vec<(Site, usize, usize)>,
}

impl Linear {
    /// Stacks the projection's modules.
    pub fn load(spec: &Projection, loader: &mut Loader) -> Result<Self> {
        let (mut weights, mut biases, mut sites, mut start) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for part in &spec.parts {
            weights.push(loader.tensor(&part.path, "weight", &[part.rows, spec.columns])?.t()?);
            if spec.bias {
                biases.push(loader.tensor(&part.path, "bias", &[part.rows])?);
            }
            sites.push((loader.sites.add(&part.path, [part.rows, spec.columns]), start, part.rows));
            start += part.rows;
        }
        let weight = Tensor::cat(&weights, 1)?.contiguous()?;
        let bias = if spec.bias { Some(Tensor::cat(&biases, 0)?) } else { None };
        Ok(Self { weight, bias, sites })
    }

    /// `x [tokens, in]` -> `[tokens, out]`.
    pub fn forward(&self, x: &Tensor, plan: &Plan) -> Result<Tensor> {
        let y = product(x, &self.weight, self.bias.as_ref())?;
        for (site, start, columns) in &self.sites {
            plan.apply(*site, x, &y.narrow(1, *start, *columns)?)?;
        }
        Ok(y)
    }
}
