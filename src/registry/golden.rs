//! veneer_golden.json beside a base or an adapter: texts and the vectors that they must have here too.

use super::Loaded;
use super::check::{Prober, cosine, length, read};
use crate::error::{Error, Result};
use crate::folder::Folder;
use crate::text::Prompt;
use serde::Deserialize;

/// The name of the file.
const FILE: &str = "veneer_golden.json";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Golden {
    texts: Vec<String>,
    /// JSON has no number that is not finite, and one beyond f32 is an error of parsing.
    vectors: Vec<Vec<f32>>,
    /// False: the vectors are as the pipeline leaves them, and their lengths count too.
    #[serde(default = "yes")]
    normalize: bool,
    prompt_name: Option<String>,
}

fn yes() -> bool {
    true
}

/// How well a folder's vectors are met.
#[derive(Clone, Copy, Debug)]
pub struct Agreement {
    /// How many there are.
    pub vectors: usize,
    /// The smallest cosine to one; where lengths count, times the shorter length over the longer.
    pub smallest: f64,
}

/// Holds what was loaded to the folder's file, where it has one. A cosine below `cosine_min` is an error.
pub fn verify(folder: &Folder, loaded: &Loaded, prober: &Prober, cosine_min: f64) -> Result<Option<Agreement>> {
    // Expected vectors are no part of what makes vectors.
    let folder = folder.afresh();
    let Some(golden) = folder.json::<Golden>(FILE)? else { return Ok(None) };
    let fail = |reason: String| Error::load(folder.path().join(FILE), reason);
    golden.check(loaded).map_err(fail)?;
    let prompt = golden.prompt_name.map_or(Prompt::Default, Prompt::Named);
    let sequences = read(loaded.routes.main(), &golden.texts, prompt).map_err(|error| fail(error.to_string()))?;
    let vectors = prober.vectors(loaded.routes.main(), loaded.adapter.as_ref(), &sequences);
    let vectors = vectors.map_err(|error| fail(error.to_string()))?;
    let mut smallest = f64::INFINITY;
    for (index, (ours, expected)) in vectors.iter().zip(golden.vectors).enumerate() {
        let expected: Vec<f64> = expected.into_iter().map(f64::from).collect();
        let lengths = [length(ours), length(&expected)];
        let ratio = if golden.normalize { 1.0 } else { lengths[0].min(lengths[1]) / lengths[0].max(lengths[1]) };
        let found = cosine(ours, &expected) * ratio;
        // NaN, where ours has no length.
        if found < cosine_min || found.is_nan() {
            let lengths = if golden.normalize { "" } else { " (times the ratio of their lengths)" };
            return Err(fail(format!(
                "the vector of texts[{index}] under '{}' has cosine {found:.6}{lengths} to the one expected, less than \
                 limits.golden_cosine_min = {cosine_min}",
                loaded.name
            )));
        }
        smallest = smallest.min(found);
    }
    Ok(Some(Agreement { vectors: vectors.len(), smallest }))
}

impl Golden {
    fn check(&self, loaded: &Loaded) -> std::result::Result<(), String> {
        if self.texts.is_empty() || self.texts.len() != self.vectors.len() {
            let (texts, vectors) = (self.texts.len(), self.vectors.len());
            return Err(format!(
                "it has {texts} texts and {vectors} vectors; expected one vector a text, at least one"
            ));
        }
        let main = loaded.routes.main();
        let dimension = main.pipeline.dimension(main.model.spec().hidden);
        for (index, vector) in self.vectors.iter().enumerate() {
            if vector.len() != dimension {
                let found = vector.len();
                return Err(format!("vectors[{index}] has {found} numbers, but '{}' gives {dimension}", loaded.name));
            }
            if vector.iter().all(|element| *element == 0.0) {
                return Err(format!("vectors[{index}] is all zeros"));
            }
        }
        Ok(())
    }
}
