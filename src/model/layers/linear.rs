//! The one linear layer: a matrix stacked from checkpoint modules, each of them a site for deltas.

use super::Loader;
use crate::error::Result;
use crate::kernels::{Activation, Gate, Packed, Spans, Tensor, activate};
use crate::model::delta::{Adapter, Plan};
use crate::model::sites::Site;
use crate::model::spec::Projection;
use candle_core::Tensor as Host;

/// `x W + b`, plus the deltas of the batch's adapters.
pub struct Linear {
    weight: Packed,
    /// `[out]`.
    bias: Option<Tensor>,
    /// Each site's columns of the output: first and count.
    sites: Vec<(Site, usize, usize)>,
    spans: Spans,
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
        let (weight, bias) = stack(spec, loader)?;
        loader.sites.hold(&sites, &weight, bias.as_ref())?;
        let spans: Vec<_> = sites.iter().map(|(site, first, count)| (site.number(), *first, *count)).collect();
        Ok(Self { spans: Spans::new(loader.device, &spans)?, weight, bias, sites })
    }

    /// Input width.
    pub fn inputs(&self) -> usize {
        self.weight.inputs()
    }

    /// `x [tokens, in]` -> `[tokens, out]`.
    pub fn forward(&self, x: &Tensor, plan: &Plan) -> Result<Tensor> {
        self.forward_active(x, plan, None)
    }

    /// `x [tokens, in]` -> `f([tokens, out])`, `f` the activation, where there is one.
    pub fn forward_active(&self, x: &Tensor, plan: &Plan, activation: Option<Activation>) -> Result<Tensor> {
        let x = &self.weight.operand(x)?;
        let updates = plan.updates(&self.sites, &self.spans, x)?;
        if !self.sites.iter().any(|(site, ..)| plan.changes_otherwise(*site)) {
            return self.weight.updated_product(x, self.bias.as_ref(), &updates, activation);
        }
        let y = self.weight.updated_product(x, self.bias.as_ref(), &updates, None)?;
        for (site, start, columns) in &self.sites {
            plan.change_otherwise(*site, x, &y.narrow(1, *start, *columns)?)?;
        }
        activation.map_or(Ok(y.clone()), |activation| activate(&y, activation, Gate::Absent))
    }

    /// Some columns of what the base alone makes of `x`: `[tokens, in]` -> `[tokens, columns]`.
    pub fn base_columns(&self, x: &Tensor, first: usize, columns: usize) -> Result<Tensor> {
        let bias = self.bias.as_ref().map(|bias| bias.narrow(0, first, columns)).transpose()?;
        self.weight.columns(first, columns).product(x, bias.as_ref(), None)
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
fn stack(spec: &Projection, loader: &mut Loader) -> Result<(Packed, Option<Tensor>)> {
    let key = spec.parts.iter().map(|part| part.path.as_str()).collect::<Vec<_>>().join(" ");
    if let Some(stack) = loader.shared.stacks.get(&key) {
        return Ok(stack.clone());
    }
    let (mut weights, mut biases) = (Vec::new(), Vec::new());
    for part in &spec.parts {
        weights.push(loader.weight(&part.path, "weight", &[part.rows, spec.columns])?.t()?);
        if spec.bias {
            biases.push(loader.tensor(&part.path, "bias", &[part.rows])?);
        }
    }
    let weight = loader.pack(&Host::cat(&weights, 1)?.contiguous()?)?;
    // Of the products' own type, as these take it.
    let place = |bias: &Host| loader.device.place(bias, Some(loader.format.dtype()));
    let bias = if spec.bias { Some(place(&Host::cat(&biases, 0)?)?) } else { None };
    let stack = (weight, bias);
    loader.shared.stacks.insert(key, stack.clone());
    Ok(stack)
}
