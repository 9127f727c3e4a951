//! DeBERTa's disentangled attention (arXiv:2006.03654, section 3.1) within each sequence of packed rows: beside content
//! to content, queries attend to where a key stands and keys to where a query stands, by relative position. Memory grows
//! with the length times the number of relative positions, never with the length's square.

use super::attention::{Heads, Scores};
use super::product::multiply;
use super::sequences::{Places, Sequences};
use super::softmax::softmax;
use super::threads::share_items;
use super::view::{Matrix, MatrixMut, Rows, with_dense};
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use std::cell::Cell;
use std::ops::Range;

/// What a score is made of beside `q k`; tensors of `T`.
pub struct Disentangled<'a, T> {
    /// First token of every sequence, and the total.
    pub offsets: &'a Sequences,
    /// Factor on the whole score.
    pub scale: f32,
    /// Keys of relative positions, `[positions, heads * width]`, dense.
    pub keys: Option<&'a T>,
    /// Queries of relative positions, `[positions, heads * width]`, dense.
    pub queries: Option<&'a T>,
    /// Place in both of `query - key`, from `1 - span` to `span - 1`; it never falls.
    pub places: &'a Places,
}

/// `q`, `k`, `v [tokens, heads, width]` -> `[tokens, heads * width]`. All three may be windows with dense rows.
pub fn disentangled(q: &Tensor, k: &Tensor, v: &Tensor, attention: &Disentangled<Tensor>) -> Result<Tensor> {
    let (tokens, heads, width) = q.dims3()?;
    q.apply_op3_no_bwd(k, v, attention)?.transpose(0, 1)?.contiguous()?.reshape((tokens, heads * width))
}

/// Queries whose scores are formed at once.
const BLOCK: usize = 32;

impl CustomOp3 for Disentangled<'_, Tensor> {
    fn name(&self) -> &'static str {
        "disentangled"
    }

    /// To `[heads, tokens, width]`.
    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_l: &Layout,
        k: &CpuStorage,
        k_l: &Layout,
        v: &CpuStorage,
        v_l: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let heads = Heads::of((q, q_l), (k, k_l), (v, v_l))?;
        let (tokens, width) = (q_l.dims()[0], heads.q.width);
        let mut y = vec![0f32; heads.count * tokens * width];
        with_dense(self.keys, |keys| {
            with_dense(self.queries, |queries| {
                share_items(tasks(&mut y, heads.count, width, self.offsets), |task| {
                    let mut scratch = SCRATCH.take();
                    self.sequence(&mut scratch, task, heads, keys, queries);
                    SCRATCH.set(scratch);
                });
                Ok(())
            })
        })?;
        Ok((CpuStorage::F32(y), Shape::from((heads.count, tokens, width))))
    }
}

thread_local! {
    static SCRATCH: Cell<Scratch> = Cell::default();
}

/// Memory that the tasks of a thread use in turn.
#[derive(Default)]
struct Scratch {
    scores: Scores,
    /// Each query with every place, and each key.
    by_query: Vec<f32>,
    by_key: Vec<f32>,
}

/// One head of one sequence, and its rows of the result.
struct Task<'a> {
    y: &'a mut [f32],
    head: usize,
    sequence: Range<usize>,
}

fn tasks<'a>(mut y: &'a mut [f32], heads: usize, width: usize, offsets: &[usize]) -> Vec<Task<'a>> {
    let mut tasks = Vec::new();
    for head in 0..heads {
        for span in offsets.windows(2) {
            let (rows, rest) = y.split_at_mut((span[1] - span[0]) * width);
            tasks.push(Task { y: rows, head, sequence: span[0]..span[1] });
            y = rest;
        }
    }
    tasks
}

impl Disentangled<'_, Tensor> {
    fn sequence(
        &self,
        Scratch { scores, by_query, by_key }: &mut Scratch,
        task: Task,
        heads: Heads,
        keys: Option<&[f32]>,
        queries: Option<&[f32]>,
    ) {
        let Task { y, head, sequence } = task;
        let (length, width, middle) = (sequence.len(), heads.q.width, self.places.len() / 2);
        if length == 0 {
            return;
        }
        by_query.clear();
        by_key.clear();
        // The places that this length can meet lie side by side.
        let places = &self.places[middle + 1 - length..middle + length];
        let (first, last) = (places[0] as usize, places[places.len() - 1] as usize);
        let met = |positions: &[f32]| positions.len() / (heads.count * width);
        let table = |positions| Table { positions, head, heads: heads.count, width, places: first..last + 1 };
        if let Some(keys) = keys {
            debug_assert!(last < met(keys));
            table(keys).times(by_query, heads.q, sequence.clone());
        }
        if let Some(queries) = queries {
            debug_assert!(last < met(queries));
            table(queries).times(by_key, heads.k, sequence.clone());
        }
        let columns = last + 1 - first;
        for start in (0..length).step_by(BLOCK) {
            let block = start..(start + BLOCK).min(length);
            let rows = sequence.start + block.start..sequence.start + block.end;
            let padded = heads.scores(scores, head, rows, sequence.clone());
            for (query, scores) in block.clone().zip(scores.rows.chunks_exact_mut(padded)) {
                let scores = &mut scores[..length];
                // Keys from first to last are passed with falling distance.
                let places = places[query..query + length].iter().rev().map(|place| *place as usize - first);
                for (key, (score, place)) in scores.iter_mut().zip(places).enumerate() {
                    let of_query = by_query.get(query * columns + place).copied().unwrap_or_default();
                    let of_key = by_key.get(key * columns + place).copied().unwrap_or_default();
                    *score = (*score + of_query + of_key) * self.scale;
                }
            }
            softmax(&mut scores.rows, padded, length, 1.0);
            let y = &mut y[block.start * width..block.end * width];
            heads.weigh((y, width), false, scores, head, sequence.clone());
        }
    }
}

/// One head's vectors of some relative positions.
struct Table<'a> {
    positions: &'a [f32],
    head: usize,
    heads: usize,
    width: usize,
    places: Range<usize>,
}

impl Table<'_> {
    /// Products of a head's rows with each position's vector: `[sequence, places]` into `y`.
    fn times(&self, y: &mut Vec<f32>, rows: Rows, sequence: Range<usize>) {
        let Self { positions, head, heads, width, places } = self;
        let (count, columns, row_stride) = (sequence.len(), places.len(), heads * width);
        y.resize(count * columns, 0.0);
        let data = &positions[places.start * row_stride + head * width..];
        let positions = Matrix { data, rows: columns, columns: *width, row_stride, column_stride: 1 };
        let target = MatrixMut { data: y, rows: count, columns, row_stride: columns };
        multiply(target, false, rows.matrix(sequence, *head), positions.transposed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::sample::normal;
    use candle_core::Device;

    const HEADS: usize = 3;
    const WIDTH: usize = 8;
    const SPAN: i64 = 6;

    fn random(rows: usize, columns: usize) -> Tensor {
        normal(1.0, (rows, columns))
    }

    fn dot(a: &Tensor, b: &Tensor) -> f32 {
        (a * b).unwrap().sum_all().unwrap().to_scalar().unwrap()
    }

    /// One head of one sequence, score by score from the formula.
    fn plain(
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        keys: Option<&Tensor>,
        queries: Option<&Tensor>,
        scale: f32,
    ) -> Tensor {
        let n = q.dims()[0];
        let place = |i: usize, j: usize| (i as i64 - j as i64).clamp(-SPAN, SPAN - 1) + SPAN;
        let scores = (0..n).map(|i| {
            let scores = (0..n).map(|j| {
                let (q, k, place) = (q.get(i).unwrap(), k.get(j).unwrap(), place(i, j) as usize);
                let of_query = keys.map_or(0.0, |keys| dot(&q, &keys.get(place).unwrap()));
                let of_key = queries.map_or(0.0, |queries| dot(&k, &queries.get(place).unwrap()));
                ((dot(&q, &k) + of_query + of_key) * scale).exp()
            });
            let scores: Vec<f32> = scores.collect();
            let total: f32 = scores.iter().sum();
            scores.into_iter().map(|score| score / total).collect::<Vec<_>>()
        });
        Tensor::new(scores.collect::<Vec<_>>(), &Device::Cpu).unwrap().matmul(v).unwrap()
    }

    fn check(with_keys: bool, with_queries: bool) {
        let offsets = Sequences::from(&[0, 1, 6, 50][..]);
        let stacked = random(50, 3 * HEADS * WIDTH).reshape((50, 3 * HEADS, WIDTH)).unwrap();
        let part = |i: usize| stacked.narrow(1, i * HEADS, HEADS).unwrap();
        let (q, k, v) = (part(0), part(1), part(2));
        let (keys, queries) = (random(2 * SPAN as usize, HEADS * WIDTH), random(2 * SPAN as usize, HEADS * WIDTH));
        let places = (-63..64).map(|d: i64| (d.clamp(-SPAN, SPAN - 1) + SPAN) as u32).collect();
        let places = Places::new(places, &crate::kernels::Device::Cpu).unwrap();
        let (keys, queries) = (with_keys.then_some(&keys), with_queries.then_some(&queries));
        let op = Disentangled { offsets: &offsets, scale: 0.3, keys, queries, places: &places };
        let ours = disentangled(&q, &k, &v, &op).unwrap();
        for span in offsets.windows(2) {
            for head in 0..HEADS {
                let of = |t: &Tensor| {
                    let t = t.narrow(0, span[0], span[1] - span[0]).unwrap().narrow(1, head, 1).unwrap();
                    t.squeeze(1).unwrap().contiguous().unwrap()
                };
                let table = |t: &Tensor| t.narrow(1, head * WIDTH, WIDTH).unwrap();
                let (keys, queries) = (keys.map(table), queries.map(table));
                let plain = plain(&of(&q), &of(&k), &of(&v), keys.as_ref(), queries.as_ref(), op.scale);
                let rows = ours.narrow(0, span[0], span[1] - span[0]).unwrap();
                let rows = rows.narrow(1, head * WIDTH, WIDTH).unwrap();
                let gap = (rows - plain).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
                assert!(gap < 5e-6, "{gap} at {span:?}, head {head}");
            }
        }
    }

    #[test]
    fn every_score_is_the_formulas() {
        check(true, true);
    }

    #[test]
    fn either_direction_may_be_missing() {
        check(true, false);
        check(false, true);
        check(false, false);
    }
}
