//! A mixture of experts: each token's row goes through the few networks that the router scores highest.

use super::{Linear, Loader, Mlp};
use crate::error::Result;
use crate::kernels::{Activation, Format, Packed, Tensor, look_up, pick, scatter_add};
use crate::model::delta::Plan;
use crate::model::spec;
use candle_core::Tensor as Host;

/// A block's second half.
pub enum FeedForward {
    /// One network for every token.
    Dense(Box<Mlp>),
    /// Several, of which each token takes some.
    Experts(Box<Experts>),
}

impl FeedForward {
    /// From its spec.
    pub fn load(spec: &spec::FeedForward, loader: &mut Loader) -> Result<Self> {
        match spec {
            spec::FeedForward::Dense(mlp) => Ok(Self::Dense(Box::new(Mlp::load(mlp, loader)?))),
            spec::FeedForward::Experts(experts) => Ok(Self::Experts(Box::new(Experts::load(experts, loader)?))),
        }
    }

    /// `[tokens, hidden]` -> `[tokens, hidden]`.
    pub fn forward(&self, x: &Tensor, plan: &Plan) -> Result<Tensor> {
        match self {
            Self::Dense(mlp) => mlp.forward(x, plan),
            Self::Experts(experts) => experts.forward(x, plan),
        }
    }
}

/// The router and its experts.
pub struct Experts {
    router: Linear,
    active: usize,
    /// Each expert's `[hidden, inner]` and `[inner, hidden]`.
    experts: Vec<(Packed, Packed)>,
    /// `[1, hidden]`.
    bias: Tensor,
    activation: Activation,
}

impl Experts {
    fn load(spec: &spec::Experts, loader: &mut Loader) -> Result<Self> {
        let (count, inner, hidden) = (spec.router.rows(), spec.inner, spec.router.columns);
        let up = loader.parameter(&spec.up, &[count * inner, hidden])?;
        let down = loader.parameter(&spec.down, &[count * inner, hidden])?;
        let experts = (0..count).map(|expert| -> Result<_> {
            let rows = |t: &Host| t.narrow(0, expert * inner, inner);
            let place = |t: Host, path: &str| {
                Packed::plain(loader.convert(t, path)?).placed(loader.device, loader.format.dtype())
            };
            let down = place(rows(&down)?.contiguous()?, &spec.down)?;
            Ok((place(rows(&up)?.t()?.contiguous()?, &spec.up)?, down))
        });
        Ok(Self {
            experts: experts.collect::<Result<_>>()?,
            router: router(&spec.router, loader)?,
            active: spec.active,
            bias: loader.place(&loader.parameter(&spec.bias, &[hidden])?.unsqueeze(0)?)?,
            activation: spec.activation,
        })
    }

    fn forward(&self, x: &Tensor, plan: &Plan) -> Result<Tensor> {
        let scores = self.router.forward(x, plan)?.to_host()?.to_vec2::<f32>()?;
        // [tokens, hidden], each row starting at the bias.
        let mut y = look_up(&[(&self.bias, &vec![0; x.dims()[0]])])?;
        let mut taken = vec![Vec::new(); self.experts.len()];
        for (token, scores) in scores.iter().enumerate() {
            let shares = softmax(scores);
            best(scores, self.active).for_each(|expert| taken[expert].push((token as u32, shares[expert])));
        }
        for (tokens, (up, down)) in taken.iter().zip(&self.experts).filter(|(tokens, _)| !tokens.is_empty()) {
            let (rows, shares): (Vec<u32>, Vec<f32>) = tokens.iter().copied().unzip();
            let inner = up.product(&pick(x, &rows)?, None, Some(self.activation))?;
            y = scatter_add(y, &down.product(&inner, None, None)?, &rows, &shares)?;
        }
        Ok(y)
    }
}

/// With all precision: a score that is a little off sends a token elsewhere.
fn router(spec: &spec::Projection, loader: &mut Loader) -> Result<Linear> {
    let format = std::mem::replace(&mut loader.format, Format::Float32);
    let router = Linear::load(spec, loader);
    loader.format = format;
    router
}

fn softmax(scores: &[f32]) -> Vec<f32> {
    let highest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f32> = scores.iter().map(|score| (score - highest).exp()).collect();
    let total: f32 = powers.iter().sum();
    powers.into_iter().map(|power| power / total).collect()
}

/// Places of the `count` highest scores; of equal ones the first.
fn best(scores: &[f32], count: usize) -> impl Iterator<Item = usize> {
    let mut places: Vec<usize> = (0..scores.len()).collect();
    places.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    places.into_iter().take(count)
}

#[cfg(test)]
mod tests {
    use super::best;

    #[test]
    fn the_highest_are_taken_and_of_equals_the_first() {
        assert_eq!(best(&[0.1, 0.4, 0.1, 0.4], 3).collect::<Vec<_>>(), [1, 3, 0]);
    }
}
