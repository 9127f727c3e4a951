//! Safetensors files: tensors under their canonical names, each to be taken once.
#![expect(unsafe_code, reason = "weights are mapped, not read")]

use super::pickle;
use crate::error::{Error, Result};
use crate::folder::Folder;
use crate::kernels::all_finite;
use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device, Tensor};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

/// One or more safetensors files, mapped.
pub struct Checkpoint {
    path: PathBuf,
    files: MmapedSafetensors,
    /// Canonical name -> name in the file.
    names: BTreeMap<String, String>,
    left: RefCell<BTreeSet<String>>,
    /// Tensors made of others, by canonical name.
    made: RefCell<HashMap<String, Tensor>>,
    bytes: Cell<usize>,
}

impl Checkpoint {
    /// The base weights of a folder: `model.safetensors`, or the shards that its index lists.
    pub fn of_model(folder: &Folder, nested_as: &str) -> Result<Self> {
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: HashMap<String, String>,
        }
        if let Some(file) = folder.file("model.safetensors")? {
            return Self::open(&[file], nested_as);
        }
        let Some(index) = folder.json::<Index>("model.safetensors.index.json")? else {
            let found = folder.file("pytorch_model.bin")?.is_some();
            let hint = if found { "; pytorch_model.bin is not read, convert it to safetensors" } else { "" };
            return Err(Error::load(folder.path().join("model.safetensors"), format!("no such file{hint}")));
        };
        let shards: BTreeSet<String> = index.weight_map.into_values().collect();
        let shards: Vec<PathBuf> = shards.iter().map(|name| folder.require(name)).collect::<Result<_>>()?;
        Self::open(&shards, nested_as)
    }

    /// A pickle of tensors, as torch saves it; nothing in it is run.
    pub fn of_pickle(path: PathBuf, nested_as: &str) -> Result<Self> {
        let mut checkpoint = Self::open(&[], nested_as)?;
        for (name, tensor) in pickle::tensors(&path)? {
            let canonical = canonical(&name, nested_as);
            if checkpoint.names.insert(canonical.clone(), name.clone()).is_some() {
                return Err(Error::load(&path, format!("'{name}' and another tensor name the same weight")));
            }
            checkpoint.put(&canonical, tensor.contiguous()?);
            checkpoint.left.get_mut().insert(canonical);
        }
        Ok(Self { path, ..checkpoint })
    }

    /// Maps the files. `nested_as`: see [`canonical`].
    pub fn open(files: &[PathBuf], nested_as: &str) -> Result<Self> {
        let path = files.first().cloned().unwrap_or_default();
        // SAFETY: nobody may change or cut the files short while they are mapped, which is until loading ends; an
        // operator who does breaks this process (a file cut short is SIGBUS), as with every mapped format.
        let mapped = unsafe { MmapedSafetensors::multi(files) };
        let mapped = mapped.map_err(|e| Error::load(&path, format!("not a safetensors file: {e}")))?;
        let mut names = BTreeMap::new();
        for (name, _) in mapped.tensors() {
            if let Some(other) = names.insert(canonical(&name, nested_as), name.clone()) {
                return Err(Error::load(&path, format!("tensors '{name}' and '{other}' name the same weight")));
            }
        }
        let left = RefCell::new(names.keys().cloned().collect());
        Ok(Self { path, files: mapped, names, left, made: RefCell::default(), bytes: Cell::new(0) })
    }

    /// The (first) file, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Canonical names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.keys().map(String::as_str)
    }

    /// The name that the file itself uses.
    pub fn name_in_file<'a>(&'a self, name: &'a str) -> &'a str {
        self.names.get(name).map_or(name, String::as_str)
    }

    /// A tensor's shape, where there is such a tensor.
    pub fn shape(&self, name: &str) -> Option<Vec<usize>> {
        if let Some(made) = self.made.borrow().get(name) {
            return Some(made.dims().to_vec());
        }
        let name = self.names.get(name)?;
        Some(self.files.get(name).ok()?.shape().to_vec())
    }

    /// A tensor in f32; it must be there, have this shape and be finite.
    pub fn take(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let tensor = self.take_as(DType::F32, name, shape)?;
        if !all_finite(&tensor)? {
            let in_file = self.name_in_file(name);
            return Err(Error::load(&self.path, format!("tensor '{in_file}' is not finite")));
        }
        self.bytes.set(self.bytes.get() + tensor.elem_count() * tensor.dtype().size_in_bytes());
        Ok(tensor)
    }

    /// Puts a tensor, made of others, where [`Checkpoint::take`] finds it under a name.
    pub fn put(&self, name: &str, tensor: Tensor) {
        self.made.borrow_mut().insert(name.to_owned(), tensor);
    }

    /// A tensor in some number format; it must be there and have this shape.
    pub fn take_as(&self, dtype: DType, name: &str, shape: &[usize]) -> Result<Tensor> {
        let Some(found) = self.shape(name) else {
            return Err(Error::load(&self.path, format!("tensor '{name}' is missing")));
        };
        let in_file = self.name_in_file(name);
        if found != shape {
            return Err(Error::load(&self.path, format!("tensor '{in_file}' has shape {found:?}, expected {shape:?}")));
        }
        self.left.borrow_mut().remove(name);
        self.read(name, dtype)
    }

    fn read(&self, name: &str, dtype: DType) -> Result<Tensor> {
        let in_file = self.name_in_file(name);
        let made = self.made.borrow().get(name).map(|made| Ok(made.clone()));
        let tensor = made.unwrap_or_else(|| self.files.load(in_file, &Device::Cpu)).and_then(|t| t.to_dtype(dtype));
        tensor.map_err(|e| Error::load(&self.path, format!("tensor '{in_file}': {e}")))
    }

    /// Whether two tensors are of one shape and hold the same numbers.
    pub fn are_equal(&self, a: &str, b: &str) -> Result<bool> {
        let mapped = |name: &str| self.names.get(name).and_then(|name| self.files.get(name).ok());
        if let (Some(a), Some(b)) = (mapped(a), mapped(b)) {
            return Ok(a.dtype() == b.dtype() && a.shape() == b.shape() && a.data() == b.data());
        }
        if self.shape(a) != self.shape(b) {
            return Ok(false);
        }
        let numbers = |name| Ok::<_, Error>(self.read(name, DType::F32)?.flatten_all()?.to_vec1::<f32>()?);
        Ok(numbers(a)? == numbers(b)?)
    }

    /// Bytes of all tensors taken.
    pub fn bytes_taken(&self) -> usize {
        self.bytes.get()
    }

    /// Sets aside what stands under a module that no forward pass runs.
    pub fn leave(&self, module: &str) {
        let inside =
            |name: &str| name.strip_prefix(module).is_some_and(|rest| rest.starts_with('.') || rest.is_empty());
        self.left.borrow_mut().retain(|name| !inside(name));
    }

    /// Sets aside tables that follow from the configuration, which older versions of transformers saved.
    pub fn leave_computed(&self) {
        const COMPUTED: [&str; 3] = [".inv_freq", ".original_inv_freq", ".position_ids"];
        self.left.borrow_mut().retain(|name| !COMPUTED.iter().any(|computed| name.ends_with(computed)));
    }

    /// Fails, naming them, where tensors were neither taken nor left aside.
    pub fn finish(&self) -> Result<()> {
        let left = self.left.borrow();
        if left.is_empty() {
            return Ok(());
        }
        let shown: Vec<&str> = left.iter().take(5).map(|name| self.name_in_file(name)).collect();
        let more = left.len().saturating_sub(shown.len());
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        Err(Error::load(&self.path, format!("tensors that nothing reads: {}{more}", shown.join(", "))))
    }
}

/// A tensor's name as the bare architecture has it: without the wrappers that trainers leave in front
/// (`base_model.model.`, `_orig_mod.`, `0.auto_model.`, the nested name such as `bert.`), old LayerNorm spellings and
/// torch's parametrizations (a weight and the updates laid over it) renamed.
pub fn canonical(name: &str, nested_as: &str) -> String {
    const WRAPPERS: [&str; 6] = ["base_model", "model", "module", "_orig_mod", "auto_model", "0"];
    let mut rest = name;
    while let Some((head, tail)) = rest.split_once('.') {
        if !WRAPPERS.contains(&head) && head != nested_as {
            break;
        }
        rest = tail;
    }
    if let Some((module, part)) = rest.split_once(".parametrizations.weight.") {
        return format!("{module}.{}", if part == "original" { "weight" } else { part.trim_start_matches("0.") });
    }
    match (rest.strip_suffix("LayerNorm.gamma"), rest.strip_suffix("LayerNorm.beta")) {
        (Some(stem), _) => format!("{stem}LayerNorm.weight"),
        (_, Some(stem)) => format!("{stem}LayerNorm.bias"),
        _ => rest.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::canonical;

    #[test]
    fn wrappers_are_stripped_and_old_names_renamed() {
        for (name, nested, expected) in [
            ("base_model.model.encoder.layer.0.x.lora_A.weight", "bert", "encoder.layer.0.x.lora_A.weight"),
            ("base_model.model.base_model.model.bert.encoder.x", "bert", "encoder.x"),
            ("_orig_mod.model.layers.0.x", "model", "layers.0.x"),
            ("0.auto_model.embeddings.LayerNorm.gamma", "bert", "embeddings.LayerNorm.weight"),
            ("embeddings.LayerNorm.beta", "bert", "embeddings.LayerNorm.bias"),
            ("roberta.encoder.x", "bert", "roberta.encoder.x"),
            ("roberta.x.Wqkv.parametrizations.weight.original", "roberta", "x.Wqkv.weight"),
            ("roberta.x.Wqkv.parametrizations.weight.0.lora_A", "roberta", "x.Wqkv.lora_A"),
        ] {
            assert_eq!(canonical(name, nested), expected);
        }
    }
}
