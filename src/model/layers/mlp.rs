//! The feed-forward network, plain or gated.

use super::{Linear, Loader};
use crate::error::Result;
use crate::kernels::{Activation, Gate, Tensor, activate};
use crate::model::delta::Plan;
use crate::model::spec;

/// `down(f(up(x)))`, or `down(f(gate(x)) * up(x))`.
pub struct Mlp {
    up: Linear,
    activation: Activation,
    gate: Gate,
    down: Linear,
}

impl Mlp {
    /// From its spec.
    pub fn load(spec: &spec::Mlp, loader: &mut Loader) -> Result<Self> {
        let (up, down) = (Linear::load(&spec.up, loader)?, Linear::load(&spec.down, loader)?);
        Ok(Self { up, activation: spec.activation, gate: spec.gate, down })
    }

    /// `[tokens, hidden]` -> `[tokens, hidden]`.
    pub fn forward(&self, x: &Tensor, plan: &Plan) -> Result<Tensor> {
        let inner = match self.gate {
            Gate::Absent => self.up.forward_active(x, plan, Some(self.activation))?,
            gate => activate(&self.up.forward(x, plan)?, self.activation, gate)?,
        };
        self.down.forward(&inner, plan)
    }
}
