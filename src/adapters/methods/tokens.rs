//! Trainable tokens: rows of an embedding of their own, and nothing more.

use super::super::keys::{Keys, Reading};
use super::super::module::Module;
use super::Method;
use crate::error::Result;
use crate::model::{Delta, SiteKind};

#[derive(Debug)]
struct Tokens;

/// Reads PEFT's `TrainableTokensConfig`, but for the tokens, which other types may have too.
pub fn read(keys: &mut Keys) -> Reading<Box<dyn Method>> {
    keys.leave(&["init_weights"]);
    Ok(Box::new(Tokens))
}

impl Method for Tokens {
    fn parts(&self) -> &'static [&'static str] {
        &[]
    }

    fn changes(&self, kind: SiteKind) -> bool {
        kind == SiteKind::Table
    }

    fn is_sum(&self) -> bool {
        false
    }

    fn delta(&self, module: &Module) -> Result<Delta> {
        Err(module.fail("an adapter of tokens changes nothing else"))
    }
}
