//! The feed-forward network, plain or gated.

use super::{Linear, Loader};
use crate::error::Result;
use crate::kernels::{Active, Tensor};
use crate::model::delta::Plan;
use crate::model::spec;

/// `down(f(up(x)))`, or `down(f(gate(x)) * up(x))`.
pub struct Mlp {
    up: Linear,
    active: Active,
    down: Linear,
}

impl Mlp {
    /// From its spec.
    pub fn load(spec: &spec::Mlp, loader: &mut Loader) -> Result<Self> {
        let (up, down) = (Linear::load(&spec.up, loader)?, Linear::load(&spec.down, loader)?);
        Ok(Self { up, active: Active { activation: spec.activation, gate: spec.gate }, down })
    }

    /// `[tokens, hidden]` -> `[tokens, hidden]`.
    pub fn forward(&self, x: &Tensor, plan: &Plan) -> Result<Tensor> {
        let inner = self.up.forward_active(x, plan, Some(self.active))?;
        self.down.forward(&inner, plan)
    }
}
