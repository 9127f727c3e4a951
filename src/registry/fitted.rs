//! An adapter on the model that it changes.

use super::load::Base;
use super::sources::{place_of_adapter, require_adapter};
use crate::adapters;
use crate::error::{Error, Result};
use crate::folder::Folder;
use crate::model::{Adapter, Model, Pipeline};
use std::sync::Arc;

/// An adapter that is loaded on a base.
pub struct Fitted {
    pub peft: adapters::Config,
    /// The base's, or one of its blocks repeated.
    pub model: Arc<Model>,
    pub adapter: Arc<Adapter>,
    /// Where its files were found.
    pub folder: Folder,
}

impl Fitted {
    /// Lays a folder's adapter on a base.
    pub fn on(base: &Base, folder: &Folder) -> Result<Self> {
        require_adapter(folder)?;
        let place = place_of_adapter(folder)?.unwrap_or_default();
        let folder = folder.afresh();
        let files = folder.subfolder(&place)?;
        let peft = adapters::Config::of(&files)?;
        let model = match peft.blocks.as_slice() {
            [] => base.one_model()?.clone(),
            blocks => {
                let repeated = base.one_model()?.repeating(blocks).map_err(|error| of_repetition(&peft, &error))?;
                Arc::new(repeated)
            }
        };
        let adapter = Arc::new(adapters::load(&files, &peft, &model)?);
        Ok(Self { peft, model, adapter, folder })
    }

    /// Whether a pipeline can follow its model.
    pub fn check(&self, pipeline: &Pipeline) -> Result<()> {
        let fits = pipeline.check(self.model.spec());
        if self.peft.blocks.is_empty() { fits } else { fits.map_err(|error| of_repetition(&self.peft, &error)) }
    }
}

fn of_repetition(peft: &adapters::Config, error: &Error) -> Error {
    Error::load(peft.path(), format!("layer_replication: {error}"))
}
