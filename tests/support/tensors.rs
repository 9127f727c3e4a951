//! Files of tensors, and changes of a folder's adapter_model.safetensors.

use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize_to_file};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// By name.
pub type Tensors = BTreeMap<String, Stored>;

/// A tensor as it lies in the file.
#[derive(Clone)]
pub struct Stored {
    dtype: Dtype,
    pub shape: Vec<usize>,
    data: Vec<u8>,
}

impl Stored {
    pub fn f32(shape: Vec<usize>, data: &[f32]) -> Self {
        Self { dtype: Dtype::F32, shape, data: data.iter().flat_map(|x| x.to_le_bytes()).collect() }
    }

    /// Its numbers, which are f32.
    pub fn floats(&self) -> Vec<f32> {
        self.data.as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect()
    }

    /// Changes one number.
    pub fn set(&mut self, index: usize, x: f32) {
        self.data[4 * index..4 * index + 4].copy_from_slice(&x.to_le_bytes());
    }

    /// One more along the first dimension.
    pub fn grow(&mut self) {
        self.shape[0] += 1;
        let bytes = self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8;
        self.data.resize(bytes, 0);
    }
}

/// The tensors of an adapter's folder.
pub fn tensors_of(folder: &Path) -> Tensors {
    tensors_in(&folder.join("adapter_model.safetensors"))
}

/// The tensors in a file.
pub fn tensors_in(file: &Path) -> Tensors {
    let bytes = fs::read(file).unwrap();
    let parsed = SafeTensors::deserialize(&bytes).unwrap();
    let stored = |t: &TensorView| Stored { dtype: t.dtype(), shape: t.shape().to_vec(), data: t.data().to_vec() };
    parsed.iter().map(|(name, tensor)| (name.to_owned(), stored(&tensor))).collect()
}

/// Changes the tensors of a folder.
pub fn change_tensors(folder: &Path, change: impl FnOnce(&mut Tensors)) {
    let mut tensors = tensors_of(folder);
    change(&mut tensors);
    write_tensors(&folder.join("adapter_model.safetensors"), &tensors);
}

/// Writes a file of tensors.
pub fn write_tensors(file: &Path, tensors: &Tensors) {
    let views = tensors.iter().map(|(name, Stored { dtype, shape, data })| {
        (name.clone(), TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    serialize_to_file(views, None, file).unwrap();
}
