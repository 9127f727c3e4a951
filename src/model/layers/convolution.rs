//! A convolution over the tokens of each sequence (DeBERTa-v2).

use super::{Loader, Norm};
use crate::error::Result;
use crate::kernels::{Activation, Gate, Packed, Sequences, Tensor, activate, pick};
use crate::model::delta::Plan;
use crate::model::sites::{Site, Weight};
use crate::model::spec;

/// `norm(x + f(conv(first hidden states)))`.
pub struct Convolution {
    kernel: usize,
    /// `[kernel * hidden, hidden]`: the neighbours' rows side by side times this.
    weight: Packed,
    bias: Tensor,
    activation: Activation,
    norm: Norm,
    site: Site,
}

impl Convolution {
    /// From its spec.
    pub fn load(spec: &spec::Convolution, hidden: usize, loader: &mut Loader) -> Result<Self> {
        // [out, in, kernel], as torch's Conv1d.
        let weight = loader.tensor(&spec.path, "weight", &[hidden, hidden, spec.kernel])?;
        let weight = weight.permute((2, 1, 0))?.reshape((spec.kernel * hidden, hidden))?.contiguous()?;
        let weight = Packed::plain(loader.convert(weight, &spec.path)?).placed(loader.device, loader.format.dtype())?;
        let bias = loader.device.place(&loader.tensor(&spec.path, "bias", &[hidden])?, Some(loader.format.dtype()))?;
        let base = Weight { weight: weight.clone(), bias: Some(bias.clone()) };
        Ok(Self {
            kernel: spec.kernel,
            site: loader.sites.add_convolution(&spec.path, [hidden, spec.kernel * hidden], base),
            weight,
            bias,
            activation: spec.activation,
            norm: Norm::load(&spec.norm, hidden, loader)?,
        })
    }

    /// `x` and the model's `first` hidden states, `[tokens, hidden]` -> `[tokens, hidden]`.
    pub fn forward(&self, x: &Tensor, first: &Tensor, offsets: &Sequences, plan: &Plan) -> Result<Tensor> {
        let (tokens, hidden) = (first.dims()[0], first.dims()[1]);
        let reach = (self.kernel / 2) as isize;
        let neighbours: Vec<u32> = offsets
            .windows(2)
            .flat_map(|span| (span[0]..span[1]).map(move |token| (token, span[0]..span[1])))
            .flat_map(|(token, sequence)| (-reach..=reach).map(move |step| (token, step, sequence.clone())))
            .map(|(token, step, sequence)| match token.checked_add_signed(step) {
                Some(neighbour) if sequence.contains(&neighbour) => neighbour as u32,
                // Zeros stand for what lies beyond a sequence's ends.
                _ => tokens as u32,
            })
            .collect();
        let neighbours = pick(first, &neighbours)?.reshape([tokens, self.kernel * hidden])?;
        let y = self.weight.product(&neighbours, Some(&self.bias), None)?;
        // Adapters change its bias alone, which is no update.
        plan.change_otherwise(self.site, &neighbours, &y)?;
        let y = activate(&y, self.activation, Gate::Absent)?;
        self.norm.forward_sum(&y, x, plan)
    }
}
