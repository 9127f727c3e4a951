//! LoRA (arXiv:2106.09685), with DoRA's magnitudes and biases of the update.

use super::super::keys::{Keys, Ranks, Reading};
use super::super::module::Module;
use super::super::ways_out::MERGE;
use super::Method;
use super::residual::Residual;
use crate::error::Result;
use crate::model::{Delta, LinearDelta, LowRank, Magnitude, SiteKind, TableDelta};
use candle_core::Tensor;
use serde_json::Value;

/// PEFT's `LoraConfig`.
#[derive(Debug)]
struct Lora {
    ranks: Ranks,
    /// `lora_bias`: whether the second half of each update has a bias.
    has_bias: bool,
    /// `use_dora`: whether each update has lengths of its own.
    is_dora: bool,
    /// `init_lora_weights` "olora" or "pissa": what was taken out of the base's weight.
    residual: Option<Residual>,
}

/// Initializations that leave the base as it is.
const PLAIN_INITIALIZATIONS: [&str; 4] = ["gaussian", "eva", "orthogonal", "mica"];

/// Keys that change nothing here once the adapter is trained: PEFT's, settings of initializations and of training, and
/// some of trainers that are built on it.
const INERT: [&str; 11] = [
    "lora_dropout",
    "qalora_group_size",
    "ensure_weight_tying",
    "corda_config",
    "eva_config",
    "loftq_config",
    "lora_ga_config",
    "lora_dtype",
    "lorap_emb_lr",
    "lorap_lr_ratio",
    "model_key_mapping",
];

/// Reads its keys.
pub fn read(keys: &mut Keys) -> Reading<Box<dyn Method>> {
    let by_root = keys.or("use_rslora", false)?;
    let lora = Lora {
        ranks: Ranks::read(keys, "lora_alpha", by_root)?,
        has_bias: keys.or("lora_bias", false)?,
        is_dora: keys.or("use_dora", false)?,
        residual: residual(&keys.or("init_lora_weights", Value::Null)?)?,
    };
    if lora.has_bias && lora.is_dora {
        return Err("lora_bias with use_dora is not supported, nor by PEFT: one of them must be false".into());
    }
    keys.leave(&INERT);
    Ok(Box::new(lora))
}

/// Initializations that put other weights in place of the base's, which neither it nor the adapter's file has.
fn changes_the_base(name: &str) -> bool {
    ["corda", "loftq", "lora_ga"].contains(&name) || name.starts_with("pissa_niter_")
}

/// What the initialization takes out of the base's weights; what cannot be known from the weights is refused.
fn residual(initialization: &Value) -> Reading<Option<Residual>> {
    match initialization {
        Value::Null | Value::Bool(_) => Ok(None),
        Value::String(name) if PLAIN_INITIALIZATIONS.contains(&name.to_lowercase().as_str()) => Ok(None),
        Value::String(name) if name.to_lowercase() == "olora" => Ok(Some(Residual::Olora)),
        Value::String(name) if name == "pissa" => Ok(Some(Residual::Pissa)),
        Value::String(name) if changes_the_base(name) => {
            let convert = match name.starts_with("pissa") || name.starts_with("corda") {
                true => "save the adapter with PEFT's path_initial_model_for_weight_conversion, or ",
                false => "",
            };
            Err(format!(
                "init_lora_weights = \"{name}\" changes the base in ways that its weights do not tell; {convert}{MERGE}"
            ))
        }
        other => Err(format!(
            "init_lora_weights = {other} is no initialization that is known; true where the base was left as it is, else \
             {MERGE}"
        )),
    }
}

impl Method for Lora {
    fn parts(&self) -> &'static [&'static str] {
        &[
            "lora_A.weight",
            "lora_B.weight",
            "lora_B.bias",
            "lora_magnitude_vector",
            "lora_embedding_A",
            "lora_embedding_B",
        ]
    }

    fn changes(&self, kind: SiteKind) -> bool {
        matches!(kind, SiteKind::Linear | SiteKind::Table)
    }

    /// DoRA measures what other adapters gave before it, a residual what they left of the weight.
    fn is_sum(&self) -> bool {
        !self.is_dora && self.residual.is_none()
    }

    fn summary(&self) -> String {
        let dora = if self.is_dora { " (DoRA)" } else { "" };
        format!("{}{dora}", self.ranks.summary())
    }

    fn delta(&self, module: &Module) -> Result<Delta> {
        let (rank, scale) = module.checked(self.ranks.of(module.name))?;
        let [outer, inner] = module.shape;
        let (a, b, outputs) = match module.kind {
            SiteKind::Table => (
                module.take("lora_embedding_A", &[rank, outer])?,
                module.take("lora_embedding_B", &[inner, rank])?,
                inner,
            ),
            _ => (module.take("lora_A.weight", &[rank, inner])?, module.take("lora_B.weight", &[outer, rank])?, outer),
        };
        let (mut a, mut b) = (a.t()?, (b * scale)?.t()?);
        if let Some(residual) = self.residual.filter(|_| module.kind == SiteKind::Linear && module.site.is_some()) {
            let [taken_a, taken_b] = residual.taken(module, rank, scale)?;
            a = Tensor::cat(&[a, taken_a], 1)?;
            b = Tensor::cat(&[b, taken_b.neg()?], 0)?;
        }
        let update = LowRank::new(a, b);
        let update = if module.kind == SiteKind::Table { update.dense()? } else { update };
        let magnitude = match self.is_dora {
            true => {
                let m = module.take("lora_magnitude_vector", &[outputs])?;
                Some(Magnitude::new(&m, &update, &module.weight()?)?)
            }
            false => None,
        };
        if module.kind == SiteKind::Table {
            return Ok(Delta::Table(TableDelta { update: Some(update), magnitude, ..TableDelta::default() }));
        }
        let mut delta = LinearDelta::low_rank(update);
        if let Some(magnitude) = &magnitude {
            delta = delta.with_magnitude(magnitude, module.base()?.host_bias()?.as_ref())?;
        }
        if self.has_bias {
            delta = delta.shifted(&(module.take("lora_B.bias", &[outputs])? * scale)?)?;
        }
        Ok(Delta::Linear(delta))
    }
}
