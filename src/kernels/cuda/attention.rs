//! Softmax attention, with biases by distance or DeBERTa's. See the CPU twins `attention` and `disentangled`.

use super::array::{Array, Rows};
use super::gpu::Gpu;
use super::launch::{Launch, suffix};
use crate::error::{Error, Result};
use crate::kernels::{Attention, Disentangled};
use candle_core::DType;

/// Queries of a block.
const TILE: usize = 64;

/// Head widths that attention.cu has kernels for on tensor cores.
const WIDTHS: [usize; 6] = [32, 64, 96, 128, 192, 256];

/// What kernels read of sequences, made once a batch.
#[derive(Clone)]
pub struct Spread {
    /// Four numbers a tile: first query, first and last-plus-one row of its sequence, and nothing.
    tiles: Array,
    /// Every token's place in its sequence.
    pub positions: Array,
}

impl Spread {
    /// Of the sequences' offsets.
    pub fn new(gpu: &Gpu, offsets: &[usize]) -> Result<Self> {
        let positions: Vec<u32> = offsets.windows(2).flat_map(|span| 0..(span[1] - span[0]) as u32).collect();
        Ok(Self { tiles: Array::of_numbers(gpu, &tiles(offsets))?, positions: Array::of_numbers(gpu, &positions)? })
    }

    fn tiles(&self) -> usize {
        self.tiles.elements() / 4
    }
}

fn tiles(offsets: &[usize]) -> Vec<u32> {
    let spans = offsets.windows(2).map(|span| span[0]..span[1]);
    let tiles = spans.flat_map(|span| span.clone().step_by(TILE).map(move |first| [first, span.start, span.end, 0]));
    tiles.flatten().map(|number| number as u32).collect()
}

/// See the CPU twin; `q`, `k`, `v` are of one type, which is the result's, and the bias is f32.
pub fn attention(q: &Array, k: &Array, v: &Array, attention: &Attention<Array>) -> Result<Array> {
    let spread = attention.offsets.spread()?;
    let heads = q.rows()?;
    let y = Array::new(q.gpu(), q.dtype(), &[heads.outer, heads.inner * heads.width])?;
    let span = attention.bias.map_or(0, |bias| bias.dims()[1].div_ceil(2));
    let launch = Launch::on(q.gpu()).array(&y).array(q).array(k).array(v).array(&spread.tiles);
    let launch = launch.optional(attention.bias).sizes([heads.inner / k.dims()[1], heads.width]);
    let launch = strides(launch, [q, k, v])?.float(attention.scale).int(i32::from(attention.causal));
    let window = attention.window.map_or(-1, |window| window.min(i32::MAX as usize) as i32);
    launch.int(window).sizes([span]).run(&kernel(q.dtype(), heads)?, [spread.tiles(), heads.inner])?;
    Ok(y)
}

fn kernel(dtype: DType, heads: Rows) -> Result<String> {
    let width = WIDTHS.into_iter().find(|width| heads.width <= *width);
    let width = width.ok_or_else(|| Error::Internal(format!("heads of width {} on a GPU", heads.width)))?;
    Ok(if dtype == DType::F32 { "attention_f32".into() } else { format!("attention_{}_{width}", suffix(dtype)) })
}

fn strides<'a>(launch: Launch<'a>, arrays: [&Array; 3]) -> Result<Launch<'a>> {
    arrays.into_iter().try_fold(launch, |launch, array| {
        let Rows { outer_stride, inner_stride, .. } = array.rows()?;
        Ok(launch.sizes([outer_stride, inner_stride]))
    })
}

/// See the CPU twin; all but the places are of one type, which is the result's.
pub fn disentangled(q: &Array, k: &Array, v: &Array, attention: &Disentangled<Array>) -> Result<Array> {
    let spread = attention.offsets.spread()?;
    let heads = q.rows()?;
    let of_type = |table: Option<&Array>| table.map(|table| table.to_dtype(q.dtype())).transpose();
    let (keys, queries) = (of_type(attention.keys)?, of_type(attention.queries)?);
    let y = Array::new(q.gpu(), q.dtype(), &[heads.outer, heads.inner * heads.width])?;
    let launch = Launch::on(q.gpu()).array(&y).array(q).array(k).array(v).array(&spread.tiles);
    let launch = launch.optional(keys.as_ref()).optional(queries.as_ref()).array(attention.places.placed()?);
    let launch = strides(launch.sizes([heads.inner, heads.width]), [q, k, v])?;
    let launch = launch.float(attention.scale).sizes([attention.places.len() / 2]);
    launch.run(&format!("disentangled_{}", suffix(q.dtype())), [spread.tiles(), heads.inner])?;
    Ok(y)
}

#[cfg(test)]
mod tests {
    use super::tiles;

    #[test]
    fn every_query_is_in_one_tile_of_its_sequence() {
        let offsets = [0, 3, 3, 131, 195, 260];
        let mut seen = vec![0; 260];
        for tile in tiles(&offsets).chunks(4) {
            let [first, start, end, _] = [0, 1, 2, 3].map(|i| tile[i] as usize);
            assert!(offsets.windows(2).any(|span| span == [start, end]) && (first - start) % super::TILE == 0);
            (first..end.min(first + super::TILE)).for_each(|query| seen[query] += 1);
        }
        assert!(seen.iter().all(|count| *count == 1));
    }
}
