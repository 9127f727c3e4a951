//! A model with no transformer: a row a token, averaged by the pipeline (sentence-transformers' `StaticEmbedding`, and
//! the files of model2vec).

use super::checkpoint::Checkpoint;
use super::spec::{Embedding, Spec, Table};
use crate::error::{Error, Result};
use crate::folder::Folder;
use candle_core::{DType, Tensor};

/// Checkpoint path of the table.
const TABLE: &str = "embedding";

/// The architecture has no limit; model2vec writes this one.
const TOKENS_MAX: usize = 1_000_000;

/// The spec, and a checkpoint that has what it names.
pub fn open(folder: &Folder) -> Result<(Spec, Checkpoint)> {
    let checkpoint = Checkpoint::of_model(folder, "")?;
    let name = format!("{TABLE}.weight");
    if checkpoint.shape(&name).is_none() {
        let table = fold(&checkpoint)?;
        checkpoint.put(&name, table);
    }
    let [rows, width] = matrix(&checkpoint, &name)?;
    let spec = Spec {
        hidden: width,
        tokens_max: TOKENS_MAX,
        embedding: Embedding::of_words(Table { path: TABLE.into(), rows }, width),
        layers: Vec::new(),
        final_norm: None,
        nested_as: "",
        idle: Vec::new(),
        tasks: None,
    };
    if rows == 0 || width == 0 {
        return Err(Error::load(checkpoint.path(), format!("'{name}' is empty")));
    }
    Ok((spec, checkpoint))
}

/// model2vec's table: rows that several tokens share, each weighted by its token.
fn fold(checkpoint: &Checkpoint) -> Result<Tensor> {
    let shape = matrix(checkpoint, "embeddings")?;
    let mut rows = checkpoint.take("embeddings", &shape)?;
    if let Some(tokens) = checkpoint.shape("mapping") {
        let mapping = checkpoint.take_as(DType::I64, "mapping", &tokens)?;
        let outside = |row: &i64| usize::try_from(*row).map_or(true, |row| row >= shape[0]);
        if let Some(row) = mapping.to_vec1::<i64>()?.iter().find(|row| outside(row)) {
            let reason = format!("'mapping' names row {row} of 'embeddings', which has {}", shape[0]);
            return Err(Error::load(checkpoint.path(), reason));
        }
        rows = rows.index_select(&mapping, 0)?;
    }
    if checkpoint.shape("weights").is_some() {
        let weights = checkpoint.take_as(DType::F64, "weights", &rows.dims()[..1])?.unsqueeze(1)?;
        rows = rows.to_dtype(DType::F64)?.broadcast_mul(&weights)?.to_dtype(DType::F32)?;
    }
    Ok(rows)
}

fn matrix(checkpoint: &Checkpoint, name: &str) -> Result<[usize; 2]> {
    match checkpoint.shape(name).as_deref() {
        Some(&[rows, width]) => Ok([rows, width]),
        Some(other) => Err(Error::load(checkpoint.path(), format!("tensor '{name}' is no matrix: {other:?}"))),
        None => Err(Error::load(checkpoint.path(), format!("tensor '{name}' is missing"))),
    }
}
