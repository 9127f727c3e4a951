//! A list of modules, in the order in which they run, to a body and a pipeline.

use super::{Body, Module, Modules};
use crate::error::{Error, Result};
use crate::folder::Folder;
use crate::kernels::Device;
use crate::model::pipeline::{Dense, LayerNorm, LayerWeights, Pipeline, Poolings, Step};
use serde::Deserialize;

/// What modules pass on that is not one vector a text yet.
const TOKENS: &str = "token_embeddings";
/// What they pass on that is.
const VECTOR: &str = "sentence_embedding";

/// Modules that are refused, and what to do instead.
const REFUSED: [(&str, &str); 7] = [
    ("CNN", "its convolution over tokens is not built; train a Dense on 'token_embeddings' in its place"),
    ("LSTM", "its recurrence over tokens is not built; train a Dense on 'token_embeddings' in its place"),
    ("BoW", "it counts words; use a sparse index"),
    ("WordEmbeddings", "it splits words by rules of its own; save its table as a StaticEmbedding"),
    ("WordWeights", "it weighs words of WordEmbeddings; fold the weights into the table of a StaticEmbedding"),
    ("CLIPModel", "it embeds images too; save its text tower as a Transformer"),
    ("MLMTransformer", "it gives sparse vectors"),
];

/// What is built so far.
struct Built<'a> {
    folder: &'a Folder,
    /// Where the body's config.json lies, if not in the body's folder.
    base: Option<&'a Folder>,
    device: &'a Device,
    body: Option<(Folder, Body)>,
    pooled: bool,
    pipeline: Pipeline,
}

/// Builds a route's modules, read from a model's folder, or from an adapter's over a `base`.
pub fn modules(folder: &Folder, list: &[Module], base: Option<&Folder>, device: &Device) -> Result<Modules> {
    let mut built = Built { folder, base, device, body: None, pooled: false, pipeline: Pipeline::default() };
    for module in list {
        built.add(module, &folder.subfolder(&module.path)?)?;
    }
    match built.body {
        Some((folder, body)) if built.pooled => Ok(Modules { folder, body, pipeline: built.pipeline }),
        _ => {
            let reason = "it must list a Transformer and a Pooling module, or a StaticEmbedding";
            Err(Error::load(folder.path().join("modules.json"), reason))
        }
    }
}

impl Built<'_> {
    fn add(&mut self, module: &Module, folder: &Folder) -> Result<()> {
        let class = module.class_name();
        let is_transformer = matches!(self.body, Some((_, Body::Transformer)));
        // A model's own class may be a body that wraps transformers' one, and anything at all elsewhere.
        if class != "Transformer" && !module.class.starts_with("sentence_transformers.") {
            return Err(self.refusal(module, "it is not sentence-transformers' own"));
        }
        if let Some((_, reason)) = REFUSED.iter().find(|(name, _)| *name == class) {
            return Err(self.refusal(module, reason));
        }
        match class {
            "Transformer" | "StaticEmbedding" if self.body.is_some() => {
                return Err(self.refusal(module, "there is a body before it"));
            }
            "Transformer" => self.body = Some((folder.clone(), Body::Transformer)),
            "StaticEmbedding" => {
                self.body = Some((folder.clone(), Body::Static));
                self.pooled = true;
            }
            _ if self.body.is_none() => {
                return Err(self.refusal(module, "no Transformer or StaticEmbedding is before it"));
            }
            "Pooling" | "WeightedLayerPooling" if self.pooled => {
                return Err(self.refusal(module, &format!("'{TOKENS}' is pooled before it")));
            }
            "Pooling" => {
                self.pipeline.poolings = Poolings::load(folder)?;
                self.pooled = true;
            }
            "WeightedLayerPooling" if is_transformer => self.layers(folder)?,
            "Dense" => {
                let on = Names::of(folder)?;
                let step = Step::Dense(Dense::load(folder, self.device)?.into());
                self.step(module, &on, step)?;
            }
            "LayerNorm" => {
                let step = Step::LayerNorm(LayerNorm::load(folder, self.device)?.into());
                self.step(module, &Names::default(), step)?;
            }
            "Normalize" => {
                let on = Names::of(folder)?;
                // What is not there yet, it leaves alone.
                if on.input() != VECTOR || self.pooled {
                    self.step(module, &on, Step::Normalize)?;
                }
            }
            "Dropout" => {}
            _ => return Err(self.refusal(module, "it is not known")),
        }
        Ok(())
    }

    /// A step on what the module names.
    fn step(&mut self, module: &Module, on: &Names, step: Step) -> Result<()> {
        let (input, output) = (on.input(), on.output());
        if input != output || ![TOKENS, VECTOR].contains(&input) {
            let reason = format!("from '{input}' to '{output}' is not supported, only on '{TOKENS}' or '{VECTOR}'");
            return Err(self.refusal(module, &reason));
        }
        match (input == VECTOR, self.pooled) {
            (true, true) => self.pipeline.vector.push(step),
            (false, false) => self.pipeline.tokens.push(step),
            (true, false) => return Err(self.refusal(module, &format!("nothing before it gives '{VECTOR}'"))),
            (false, true) => return Err(self.refusal(module, &format!("nothing after it reads '{TOKENS}'"))),
        }
        Ok(())
    }

    /// sentence-transformers passes the hidden states of all layers on where transformers' configuration asks for them;
    /// where it does not, this module changes nothing. Where it does, earlier steps on tokens are lost.
    fn layers(&mut self, folder: &Folder) -> Result<()> {
        #[derive(Deserialize)]
        struct Config {
            #[serde(default)]
            output_hidden_states: bool,
        }
        let Some((body, _)) = &self.body else { return Ok(()) };
        let config: Config = self.base.unwrap_or(body).require_json("config.json")?;
        if config.output_hidden_states {
            self.pipeline.layers = Some(LayerWeights::load(folder)?.into());
            self.pipeline.tokens.clear();
        }
        Ok(())
    }

    fn refusal(&self, module: &Module, reason: &str) -> Error {
        let Module { class, path, .. } = module;
        let reason = format!("module '{class}' (path '{path}') is not supported here: {reason}");
        Error::load(self.folder.path().join("modules.json"), reason)
    }
}

/// What a module reads and what it writes.
#[derive(Default, Deserialize)]
struct Names {
    module_input_name: Option<String>,
    module_output_name: Option<String>,
}

impl Names {
    /// A folder without a configuration says nothing.
    fn of(folder: &Folder) -> Result<Self> {
        Ok(folder.json("config.json")?.unwrap_or_default())
    }

    fn input(&self) -> &str {
        self.module_input_name.as_deref().unwrap_or(VECTOR)
    }

    fn output(&self) -> &str {
        self.module_output_name.as_deref().unwrap_or(self.input())
    }
}
