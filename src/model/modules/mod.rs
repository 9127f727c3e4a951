//! A sentence-transformers folder: what its modules.json lists, or what is made of a folder without one.

mod build;
mod router;

use super::pipeline::{Pipeline, Poolings};
use super::routes::Routes;
use crate::error::{Error, Result};
use crate::folder::Folder;
use crate::kernels::{Device, Pooling};
use serde::Deserialize;
use serde_json::{Map, Value};

/// A folder's modules on one route: where its body lies, and what follows it.
#[derive(Clone)]
pub struct Modules {
    /// The folder of the body's files.
    pub folder: Folder,
    /// What the body is.
    pub body: Body,
    /// What follows.
    pub pipeline: Pipeline,
}

/// What gives the hidden states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// A transformer, as its config.json describes it.
    Transformer,
    /// A row a token and nothing more (sentence-transformers' `StaticEmbedding`, model2vec).
    Static,
}

/// One entry of modules.json, or of a Router's `types`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
struct Module {
    name: Option<String>,
    #[serde(rename = "type")]
    class: String,
    /// Relative to the model's folder.
    path: String,
}

impl Module {
    /// The class without its package, which sentence-transformers has changed over time.
    fn class_name(&self) -> &str {
        self.class.rsplit('.').next().unwrap_or_default()
    }
}

/// config_sentence_transformers.json, as far as it says what becomes of a vector.
#[derive(Default, Deserialize)]
struct Settings {
    model_type: Option<String>,
    truncate_dim: Option<usize>,
}

/// Where those settings are.
const SETTINGS: &str = "config_sentence_transformers.json";

/// Models that sentence-transformers, knowing them by name, pools without their prompts whatever their files say.
const PROMPTS_LEFT_OUT: [&str; 3] = ["hkunlp/instructor-base", "hkunlp/instructor-large", "hkunlp/instructor-xl"];

impl Modules {
    /// As the folder's modules.json says, by route; none where it has no such file. `base` is where the body's
    /// config.json lies, for an adapter's folder that of its base; none: where the modules say that the body is.
    pub fn of(folder: &Folder, base: Option<&Folder>, device: &Device) -> Result<Option<Routes<Self>>> {
        let Some(listed) = listed(folder)? else { return Ok(None) };
        let settings: Settings = folder.json(SETTINGS)?.unwrap_or_default();
        let fail = |reason: String| Error::load(folder.path().join(SETTINGS), reason);
        if let Some(other) = settings.model_type.filter(|model_type| model_type != "SentenceTransformer") {
            return Err(fail(format!("model_type '{other}' is not supported, only 'SentenceTransformer'")));
        }
        if settings.truncate_dim == Some(0) {
            return Err(fail("truncate_dim = 0 leaves nothing of a vector".into()));
        }
        let routes = router::routes(folder, &listed)?.map(|modules| {
            let mut built = build::modules(folder, modules, base, device)?;
            built.pipeline.truncate = settings.truncate_dim;
            built.pipeline.poolings.include_prompt &= !PROMPTS_LEFT_OUT.iter().any(|name| folder.is_repo(name));
            Ok(built)
        })?;
        Ok(Some(routes))
    }

    /// Where the folder's modules.json has transformers, relative to it, each once; none where it has no such file.
    pub fn bodies(folder: &Folder) -> Result<Vec<String>> {
        let Some(listed) = listed(folder)? else { return Ok(Vec::new()) };
        let routes = router::routes(folder, &listed)?;
        let body = |modules: &Vec<Module>| modules.iter().find(|module| module.class_name() == "Transformer").cloned();
        let mut paths: Vec<String> = routes.iter().filter_map(body).map(|module| module.path).collect();
        paths.sort();
        paths.dedup();
        Ok(paths)
    }

    /// What sentence-transformers makes of a folder without modules.json: mean pooling, or the last token of a causal
    /// language model. Where it would apply a chat template, the folder is refused.
    pub fn bare(folder: &Folder) -> Result<Self> {
        #[derive(Deserialize)]
        struct Config {
            #[serde(default)]
            architectures: Vec<String>,
            is_causal: Option<bool>,
        }
        let config: Config = folder.require_json("config.json")?;
        let tokenizer: Map<String, Value> = folder.json("tokenizer_config.json")?.unwrap_or_default();
        if tokenizer.contains_key("chat_template") || folder.file("chat_template.jinja")?.is_some() {
            let reason = "it has a chat template and no modules.json, so texts would be read as chat messages, which is \
                          not supported; save it with sentence-transformers";
            return Err(Error::load(folder.path().join("modules.json"), reason));
        }
        let generates = config.architectures.first().is_some_and(|name| name.ends_with("ForCausalLM"));
        let pooling = if generates && config.is_causal != Some(false) { Pooling::LastToken } else { Pooling::Mean };
        let pipeline = Pipeline { poolings: Poolings::one(pooling), ..Pipeline::default() };
        Ok(Self { folder: folder.clone(), body: Body::Transformer, pipeline })
    }
}

/// The modules of a folder's modules.json. Of several with one name sentence-transformers runs the last, in the place of
/// the first.
fn listed(folder: &Folder) -> Result<Option<Vec<Module>>> {
    let Some(listed) = folder.json::<Vec<Module>>("modules.json")? else { return Ok(None) };
    let mut modules: Vec<Module> = Vec::with_capacity(listed.len());
    for module in listed {
        match modules.iter_mut().find(|known| known.name.is_some() && known.name == module.name) {
            Some(known) => {
                let (name, dropped, kept) = (module.name.as_deref(), &known.class, &module.class);
                tracing::warn!(%folder, name, dropped, kept, "two modules have one name; the last counts");
                *known = module;
            }
            None => modules.push(module),
        }
    }
    Ok(Some(modules))
}
