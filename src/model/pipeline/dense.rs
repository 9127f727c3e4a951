//! sentence-transformers' `Dense`: a linear layer, an activation, and where it says so a residual.

use crate::error::{Error, Result};
use crate::folder::Folder;
use crate::kernels::{Activation, Device, Packed, Tensor, sum};
use crate::model::checkpoint::Checkpoint;
use candle_core::DType;
use serde::Deserialize;
use std::path::PathBuf;

/// `f(x W + b)`, plus the residual; equal to another where it is the same file's.
#[derive(Debug)]
pub struct Dense {
    folder: PathBuf,
    /// `[in, out]`.
    weight: Packed,
    bias: Option<Tensor>,
    activation: Option<Activation>,
    residual: Option<Residual>,
}

/// What is added to a dense layer's result.
#[derive(Debug)]
enum Residual {
    /// Its input.
    Input,
    /// That times a matrix, `[in, out]`.
    Projected(Packed),
}

/// Elementwise modules of torch.nn that need no argument and learn nothing, with torch's defaults.
const ACTIVATIONS: [(&str, Option<Activation>); 22] = [
    ("Identity", None),
    ("Tanh", Some(Activation::Tanh)),
    ("ReLU", Some(Activation::Relu)),
    ("GELU", Some(Activation::Gelu)),
    ("SiLU", Some(Activation::Silu)),
    ("Sigmoid", Some(Activation::Sigmoid)),
    ("LogSigmoid", Some(Activation::LogSigmoid)),
    ("LeakyReLU", Some(Activation::LeakyRelu(0.01))),
    // Its slope is random in training, and the mean of 1/8 and 1/3 afterwards.
    ("RReLU", Some(Activation::LeakyRelu(11.0 / 48.0))),
    ("ELU", Some(Activation::Elu)),
    ("CELU", Some(Activation::Elu)),
    ("SELU", Some(Activation::Selu)),
    ("Softplus", Some(Activation::Softplus)),
    ("Mish", Some(Activation::Mish)),
    ("Hardtanh", Some(Activation::Clamp(-1.0, 1.0))),
    ("ReLU6", Some(Activation::Clamp(0.0, 6.0))),
    ("Hardsigmoid", Some(Activation::HardSigmoid)),
    ("Hardswish", Some(Activation::HardSwish)),
    ("Softsign", Some(Activation::Softsign)),
    ("Softshrink", Some(Activation::Softshrink)),
    ("Hardshrink", Some(Activation::Hardshrink)),
    ("Tanhshrink", Some(Activation::Tanhshrink)),
];

#[derive(Deserialize)]
struct Config {
    in_features: usize,
    out_features: usize,
    #[serde(default = "yes")]
    bias: bool,
    #[serde(default = "tanh")]
    activation_function: String,
    #[serde(default)]
    use_residual: bool,
}

fn yes() -> bool {
    true
}

fn tanh() -> String {
    "torch.nn.Tanh".into()
}

impl Dense {
    /// As sentence-transformers saves it: config.json, and `linear.weight`, `linear.bias` and `residual.weight` in
    /// model.safetensors.
    pub fn load(folder: &Folder, device: &Device) -> Result<Self> {
        let config: Config = folder.require_json("config.json")?;
        let activation = activation(&config.activation_function).ok_or_else(|| {
            let reason = format!("activation_function '{}' is not supported", config.activation_function);
            Error::load(folder.path().join("config.json"), reason)
        })?;
        let checkpoint = Checkpoint::of_model(folder, "")?;
        let shape = [config.out_features, config.in_features];
        let matrix = |name: &str| -> Result<Packed> {
            let weight = checkpoint.take(name, &shape)?.t()?.contiguous()?;
            Packed::plain(weight).placed(device, DType::F32)
        };
        let weight = matrix("linear.weight")?;
        let bias = match config.bias {
            true => Some(device.place(&checkpoint.take("linear.bias", &shape[..1])?, None)?),
            false => None,
        };
        let residual = match config.use_residual {
            false => None,
            true if config.in_features == config.out_features => Some(Residual::Input),
            true => Some(Residual::Projected(matrix("residual.weight")?)),
        };
        checkpoint.finish()?;
        Ok(Self { folder: folder.path().to_owned(), weight, bias, activation, residual })
    }

    /// Width of what it gives.
    pub fn outputs(&self) -> usize {
        self.weight.outputs()
    }

    /// Whether it takes rows of `width`.
    pub fn check(&self, width: usize) -> Result<()> {
        let inputs = self.weight.inputs();
        if inputs == width {
            return Ok(());
        }
        let reason = format!("it takes {inputs} numbers, but what stands before it gives {width}");
        Err(Error::load(self.folder.join("config.json"), reason))
    }

    /// `[rows, in]` -> `[rows, out]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.weight.product(x, self.bias.as_ref(), self.activation)?;
        match &self.residual {
            Some(Residual::Input) => sum(&y, x),
            Some(Residual::Projected(matrix)) => sum(&y, &matrix.product(x, None, None)?),
            None => Ok(y),
        }
    }
}

/// By its dotted path into torch. Of another library's sentence-transformers would make Tanh unless it may run code, so
/// there is no telling what is meant.
fn activation(path: &str) -> Option<Option<Activation>> {
    let rest = path.strip_prefix("torch.nn.")?;
    let class = ["modules.activation.", "modules.linear.", "modules."].iter().find_map(|room| rest.strip_prefix(room));
    let class = class.unwrap_or(rest);
    ACTIVATIONS.iter().find(|(name, _)| *name == class).map(|(_, activation)| *activation)
}

impl PartialEq for Dense {
    fn eq(&self, other: &Self) -> bool {
        self.folder == other.folder
    }
}
