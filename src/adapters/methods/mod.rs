//! The types of adapters, one a file: what each makes of a module's tensors.

mod adalora;
mod blocks;
mod hadamard;
mod hira;
mod householder;
mod kronecker;
mod layer_norm;
mod lora;
mod orthogonal;
mod residual;
mod scales;
mod sparse;
mod tokens;
mod vera;

use super::keys::{Keys, Reading};
use super::module::Module;
use super::ways_out;
use crate::error::Result;
use crate::model::{Delta, SiteKind};
use std::fmt::Debug;

/// One type of adapter with its settings.
pub trait Method: Debug + Send + Sync {
    /// The ends of its tensors' names, `<module>.<part>`, or whole names of what its modules share.
    fn parts(&self) -> &'static [&'static str];

    /// Whether it changes modules of a kind.
    fn changes(&self, kind: SiteKind) -> bool {
        kind == SiteKind::Linear
    }

    /// Whether what it makes of a module is a sum with what the base makes of it, also beside other such adapters.
    fn is_sum(&self) -> bool;

    /// Its rank and scale, or what else it has, in a few words.
    fn summary(&self) -> String {
        String::new()
    }

    /// What it makes of one module; every tensor of the module's is taken.
    fn delta(&self, module: &Module) -> Result<Delta>;
}

type Read = fn(&mut Keys) -> Reading<Box<dyn Method>>;

/// By `peft_type`.
const METHODS: [(&str, Read); 13] = [
    ("LORA", lora::read),
    ("ADALORA", adalora::read),
    ("BOFT", orthogonal::read_boft),
    ("HIRA", hira::read),
    ("HRA", householder::read),
    ("IA3", scales::read),
    ("LN_TUNING", layer_norm::read),
    ("LOHA", hadamard::read),
    ("LOKR", kronecker::read),
    ("OFT", orthogonal::read_oft),
    ("SHIRA", sparse::read),
    ("TRAINABLE_TOKENS", tokens::read),
    ("VERA", vera::read),
];

/// The reader of a type.
pub fn find(kind: &str) -> Reading<(&'static str, Read)> {
    match METHODS.iter().find(|(known, _)| *known == kind) {
        Some(found) => Ok(*found),
        None => {
            let known: Vec<&str> = METHODS.iter().map(|(known, _)| *known).collect();
            let (known, way_out) = (known.join(", "), ways_out::of_type(kind));
            Err(format!("peft_type '{kind}' is not supported; supported: {known}; {way_out}"))
        }
    }
}
