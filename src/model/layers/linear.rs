//! The one linear layer: a matrix stacked from checkpoint modules, each of them a site for deltas.

use super::Loader;
use crate::error::Result;
use crate::kernels::product;
use crate::model::delta::{Adapter, Plan};
use crate::model::sites::Site;
use crate::model::spec::Projection;
use candle_core::Tensor;

/// `x W + b`, plus the deltas of the batch's adapters.
pub struct Linear {
    /// `[in, out]`, in the model's number format.
    weight: Tensor,
    /// `[out]`.
    bias: Option<Tensor>,
    /// Each site's columns of the output: first and count.
    sites: Vec<(Site, usize, usize)>,
}

impl Linear {
    /// Stacks the projection's modules.
    pub fn load(spec: &Projection, loader: &mut Loader) -> Result<Self> {
        let (mut sites, mut start) = (Vec::new(), 0);
        for part in &spec.parts {
            sites.push((loader.sites.add_linear(&part.path, [part.rows, spec.columns], spec.bias), start, part.rows));
            start += part.rows;
        }
        for span in &spec.also {
            sites.push((
                loader.sites.add_alias(&span.path, [span.rows, spec.columns], spec.bias),
                span.first,
                span.rows,
            ));
        }
        let paths: Vec<&str> = spec.parts.iter().map(|part| part.path.as_str()).collect();
        let stacked = loader.shared(format!("linear {}", paths.join(" ")), |loader| stack(spec, loader))?;
        let (weight, bias) = (stacked[0].clone(), stacked.get(1).cloned());
        loader.sites.hold(&sites, &weight, bias.as_ref())?;
        Ok(Self { weight, bias, sites })
    }

    /// Input width.
    pub fn inputs(&self) -> usize {
        self.weight.dims()[0]
    }

    /// `x [tokens, in]` -> `[tokens, out]`.
    pub fn forward(&self, x: &Tensor, plan: &Plan) -> Result<Tensor> {
        let y = product(x, &self.weight, self.bias.as_ref())?;
        for (site, start, columns) in &self.sites {
            plan.change(*site, x, &y.narrow(1, *start, *columns)?)?;
        }
        Ok(y)
    }

    /// Some columns of what the base alone makes of `x`: `[tokens, in]` -> `[tokens, columns]`.
    pub fn base_columns(&self, x: &Tensor, first: usize, columns: usize) -> Result<Tensor> {
        let weight = self.weight.narrow(1, first, columns)?.contiguous()?;
        let bias = self.bias.as_ref().map(|bias| bias.narrow(0, first, columns)).transpose()?;
        Ok(product(x, &weight, bias.as_ref())?)
    }

    /// Changes `y [rows, columns]`, made by [`Linear::base_columns`], as one adapter changes it.
    pub fn change_columns(&self, y: &Tensor, x: &Tensor, first: usize, adapter: &Adapter) -> Result<()> {
        let end = first + y.dims()[1];
        for (site, start, columns) in self.sites.iter().filter(|(_, start, _)| (first..end).contains(start)) {
            adapter.change(*site, x, &y.narrow(1, start - first, *columns)?)?;
        }
        Ok(())
    }

    /// Whether an adapter changes some of those columns.
    pub fn is_changed_at(&self, first: usize, columns: usize, adapter: &Adapter) -> bool {
        let mut within = self.sites.iter().filter(|(_, start, _)| (first..first + columns).contains(start));
        within.any(|(site, ..)| adapter.delta(*site).is_some())
    }
}

/// The modules' weights as one, `[in, out]`, and their biases, `[out]`.
fn stack(spec: &Projection, loader: &mut Loader) -> Result<Vec<Tensor>> {
    let (mut weights, mut biases) = (Vec::new(), Vec::new());
    for part in &spec.parts {
        weights.push(loader.weight(&part.path, "weight", &[part.rows, spec.columns])?.t()?);
        if spec.bias {
            biases.push(loader.tensor(&part.path, "bias", &[part.rows])?);
        }
    }
    let weight = Tensor::cat(&weights, 1)?.contiguous()?;
    Ok(if spec.bias { vec![weight, Tensor::cat(&biases, 0)?] } else { vec![weight] })
}
