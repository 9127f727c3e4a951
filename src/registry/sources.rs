//! What a configuration's words lead to: folders, names, the device.

use crate::config;
use crate::error::{Error, Result};
use crate::folder::Folder;
use crate::hub::Source;
use crate::model::{DType, Device};
use std::path::PathBuf;

/// Sub-folders with an adapter_config.json, as adapters under their folders' names.
pub fn in_folder(path: &str) -> Result<Vec<config::Adapter>> {
    if path.is_empty() {
        return Ok(Vec::new());
    }
    let entries = std::fs::read_dir(path).map_err(|e| Error::load(path, e.to_string()))?;
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| Error::load(path, e.to_string()))?;
        if entry.path().join("adapter_config.json").is_file() {
            let (name, source) = (entry.file_name(), entry.path());
            let (name, source) = (name.to_string_lossy().into_owned(), source.to_string_lossy().into_owned());
            found.push(config::Adapter { name, source, base: None });
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// The folder itself, whatever links lead there.
pub fn real_path(folder: &Folder) -> PathBuf {
    folder.path().canonicalize().unwrap_or_else(|_| folder.path().to_owned())
}

/// The Hub id, or the folder's own name.
pub fn default_name(source: &Source) -> String {
    match source {
        Source::Repo(repo) => repo.id().to_owned(),
        Source::Folder(path) => {
            let whole = path.canonicalize().unwrap_or_else(|_| path.clone());
            whole.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
        }
    }
}

/// The device that the configuration names.
pub fn device(server: &config::Server) -> Result<Device> {
    match server.device.as_str() {
        "auto" | "cpu" => Ok(Device::Cpu),
        cuda if cuda == "cuda" || cuda.starts_with("cuda:") => {
            Err(Error::Config(format!("device '{cuda}': this build has no CUDA support")))
        }
        other => Err(Error::Config(format!("device '{other}' is not known; expected auto, cpu or cuda[:N]"))),
    }
}

/// The number format that the configuration names for a base's matrices.
pub fn dtype(server: &config::Server) -> Result<DType> {
    const SUPPORTED: [(&str, DType); 3] = [("float32", DType::F32), ("bfloat16", DType::BF16), ("float16", DType::F16)];
    let named = SUPPORTED.iter().find(|(name, _)| *name == server.dtype);
    named.map(|(_, dtype)| *dtype).ok_or_else(|| {
        let names = SUPPORTED.map(|(name, _)| name).join(", ");
        Error::Config(format!("dtype '{}' is not supported; supported: {names}", server.dtype))
    })
}
