//! What follows the transformer: pooling, then dense layers and normalization in the order of modules.json.

use super::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::folder::Folder;
use crate::kernels::{Activation, Gate, Pooling, activate, pool, product};
use candle_core::{D, Device, Tensor};
use serde::Deserialize;
use std::path::PathBuf;
use std::sync::Arc;

/// From hidden states to one vector a sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct Pipeline {
    /// One or more; several are concatenated.
    pub(super) poolings: Vec<Pooling>,
    /// After pooling, in order.
    pub(super) steps: Vec<Step>,
}

/// One module after pooling.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    /// `f(x W + b)`.
    Dense(Arc<Dense>),
    /// To unit length.
    Normalize,
}

/// A linear layer on pooled vectors; equal to another where it is the same file's.
#[derive(Debug)]
pub(super) struct Dense {
    folder: PathBuf,
    /// `[in, out]`.
    weight: Tensor,
    bias: Option<Tensor>,
    activation: Option<Activation>,
}

impl Default for Pipeline {
    /// Mean pooling and nothing more.
    fn default() -> Self {
        Self { poolings: vec![Pooling::Mean], steps: Vec::new() }
    }
}

impl Pipeline {
    /// Width of its vectors over hidden states of `hidden`.
    pub fn dimension(&self, hidden: usize) -> usize {
        self.steps.iter().fold(self.poolings.len() * hidden, |width, step| match step {
            Step::Dense(dense) => dense.weight.dims()[1],
            Step::Normalize => width,
        })
    }

    /// Whether it can follow hidden states of `hidden`; the reason where it cannot.
    pub fn check(&self, hidden: usize) -> Result<()> {
        let mut width = self.poolings.len() * hidden;
        for step in &self.steps {
            let Step::Dense(dense) = step else { continue };
            let [inputs, outputs] = [dense.weight.dims()[0], dense.weight.dims()[1]];
            if inputs != width {
                let reason = format!("it takes {inputs} numbers, but what stands before it gives {width}");
                return Err(Error::load(dense.folder.join("config.json"), reason));
            }
            width = outputs;
        }
        Ok(())
    }

    /// `hidden [tokens, hidden]` and the sequences' offsets -> `[sequences, dimension]`.
    pub fn forward(&self, hidden: &Tensor, offsets: &[usize]) -> Result<Tensor> {
        let pooled: Vec<Tensor> =
            self.poolings.iter().map(|mode| pool(hidden, offsets, *mode)).collect::<candle_core::Result<_>>()?;
        let mut x = Tensor::cat(&pooled, 1)?;
        for step in &self.steps {
            x = match step {
                Step::Dense(dense) => dense.forward(&x)?,
                // torch.nn.functional.normalize divides by the larger of the norm and 1e-12.
                Step::Normalize => x.broadcast_div(&x.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?.maximum(1e-12)?)?,
            };
        }
        Ok(x)
    }
}

impl Dense {
    /// As sentence-transformers saves it: config.json, and `linear.weight` and `linear.bias` in model.safetensors.
    pub fn load(folder: &Folder, device: &Device) -> Result<Self> {
        #[derive(Deserialize)]
        struct Config {
            in_features: usize,
            out_features: usize,
            #[serde(default = "yes")]
            bias: bool,
            activation_function: Option<String>,
            #[serde(default)]
            use_residual: bool,
            module_input_name: Option<String>,
            module_output_name: Option<String>,
        }
        fn yes() -> bool {
            true
        }
        let config: Config = folder.require_json("config.json")?;
        let fail = |reason: String| Error::load(folder.path().join("config.json"), reason);
        if config.use_residual {
            return Err(fail("use_residual = true is not supported".into()));
        }
        for name in [&config.module_input_name, &config.module_output_name].into_iter().flatten() {
            if name != "sentence_embedding" {
                return Err(fail(format!("a Dense module on '{name}' is not supported, only on 'sentence_embedding'")));
            }
        }
        // A dotted path into torch; its last part is the class.
        let class =
            config.activation_function.as_deref().map_or("Tanh", |path| path.rsplit('.').next().unwrap_or(path));
        let activation = match class {
            "Identity" => None,
            "Tanh" => Some(Activation::Tanh),
            "GELU" => Some(Activation::Gelu),
            "ReLU" => Some(Activation::Relu),
            "SiLU" => Some(Activation::Silu),
            other => return Err(fail(format!("activation_function '{other}' is not supported"))),
        };
        let checkpoint = Checkpoint::of_model(folder, "")?;
        let shape = [config.out_features, config.in_features];
        let weight = checkpoint.take("linear.weight", &shape, device)?.t()?.contiguous()?;
        let bias = match config.bias {
            true => Some(checkpoint.take("linear.bias", &[config.out_features], device)?),
            false => None,
        };
        checkpoint.finish()?;
        Ok(Self { folder: folder.path().to_owned(), weight, bias, activation })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = product(x, &self.weight, self.bias.as_ref())?;
        match self.activation {
            Some(activation) => Ok(activate(&y, activation, Gate::Absent)?),
            None => Ok(y),
        }
    }
}

impl PartialEq for Dense {
    fn eq(&self, other: &Self) -> bool {
        self.folder == other.folder
    }
}
