//! Tensors in a file of torch.save. Its pickle is read as data: nothing in it is called, and what is no tensor is refused.

use crate::error::{Error, Result};
use candle_core::Tensor;
use candle_core::pickle::{Object, Stack, read_all};
use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use zip::ZipArchive;

/// The way out for any file that is not read.
const SAVE_ANEW: &str = "load it with torch and save it with safetensors.torch.save_file as adapter_model.safetensors";

/// What a state_dict of a module has beside its tensors.
const VERSIONS: &str = "_metadata";

/// All of a file's tensors by name.
pub fn tensors(path: &Path) -> Result<Vec<(String, Tensor)>> {
    let fail = |reason: String| {
        // The reader's own reasons may have a backtrace below them.
        let reason = reason.lines().next().unwrap_or_default();
        Error::load(path, format!("not a file of tensors alone: {reason}; {SAVE_ANEW}"))
    };
    let names = names(path).map_err(fail)?;
    let tensors = read_all(path).map_err(|e| fail(e.to_string()))?;
    let read: HashSet<&str> = tensors.iter().map(|(name, _)| name.as_str()).collect();
    match names.iter().find(|name| !read.contains(name.as_str()) && *name != VERSIONS) {
        Some(other) => Err(fail(format!("'{other}' is none"))),
        None if names.is_empty() => Err(fail("it is empty".into())),
        None => Ok(tensors),
    }
}

/// The keys of the dictionary that the file holds.
fn names(path: &Path) -> std::result::Result<Vec<String>, String> {
    let mut file = BufReader::new(File::open(path).map_err(|e| e.to_string())?);
    if !file.fill_buf().map_err(|e| e.to_string())?.starts_with(b"PK") {
        return Err("it is no zip archive, as torch before 1.6 or another program saves".into());
    }
    let mut archive = ZipArchive::new(file).map_err(|e| e.to_string())?;
    let inside: Vec<String> = archive.file_names().flatten().map(|name| name.into_owned()).collect();
    let mut pickles = inside.iter().filter(|name| name.ends_with("data.pkl"));
    let (Some(pickle), None) = (pickles.next(), pickles.next()) else {
        return Err("it holds no data.pkl, or several".into());
    };
    let mut stack = Stack::empty();
    let pickle = archive.by_name(pickle).map_err(|e| e.to_string())?;
    stack.read_loop(&mut BufReader::new(pickle)).map_err(|e| e.to_string())?;
    match stack.finalize().map_err(|e| e.to_string())? {
        Object::Dict(entries) => {
            let name = |(key, _): (Object, Object)| key.unicode().map_err(|key| format!("a key is {key:?}"));
            entries.into_iter().map(name).collect()
        }
        _ => Err("it is no dictionary of names".into()),
    }
}
