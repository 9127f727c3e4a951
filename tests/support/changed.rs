//! Copies of fixture adapters that a test changes or breaks.

use super::tensors::{Tensors, change_tensors};
use super::{Door, config, copy_of, edit_json, named};
use serde_json::Value;
use tempfile::TempDir;

/// A copy of a fixture adapter.
pub struct Changed {
    pub folder: TempDir,
}

impl Changed {
    pub fn copy(fixture_name: &str) -> Self {
        Self { folder: copy_of(fixture_name) }
    }

    /// Changes adapter_config.json.
    pub fn config(self, change: impl FnOnce(&mut Value)) -> Self {
        edit_json(&self.folder.path().join("adapter_config.json"), change);
        self
    }

    /// Changes the tensors.
    pub fn tensors(self, change: impl FnOnce(&mut Tensors)) -> Self {
        change_tensors(self.folder.path(), change);
        self
    }

    /// Why it does not load on the base of its family.
    pub fn refusal(&self, family: &str) -> String {
        let adapter = format!("broken={}", self.folder.path().display());
        let config = config(&[named("base", &format!("{family}/base"))], &[adapter], &[]).unwrap();
        let refusal = Door::with(config).err().expect("it must not load").to_string();
        assert_eq!(refusal.lines().count(), 1, "{refusal}");
        refusal
    }

    /// It and the base of its family, as `changed` and `base`.
    pub fn door(&self, family: &str) -> Door {
        let adapter = format!("changed={}", self.folder.path().display());
        Door::open(&[named("base", &format!("{family}/base"))], &[adapter], &[])
    }
}

/// Every one of these must be in the text.
pub fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "'{part}' is not in: {text}");
    }
}
