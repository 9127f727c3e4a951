//! Softmax attention within each sequence of packed rows. Memory grows with the length, never with its square.

use super::math::{exp, maximum, sum, vectorized};
use super::product::multiply;
use super::view::{Matrix, MatrixMut, Rows, with_dense};
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;
use std::ops::Range;

/// What a token may look at, and how its scores are formed.
pub struct Attention<'a> {
    /// First token of every sequence, and the total.
    pub offsets: &'a [usize],
    /// Factor on every score, 1 / sqrt(head width) as a rule.
    pub scale: f32,
    /// A token sees itself and what stands before it only.
    pub causal: bool,
    /// How many tokens away the farthest is that a token sees; none: it sees all.
    pub window: Option<usize>,
    /// Added to the scaled score: `[heads, 2 * span - 1]`, column `span - 1 + (key - query)`.
    pub bias: Option<&'a Tensor>,
}

/// `q [tokens, heads, width]`, `k`, `v [tokens, kv_heads, width]` -> `[tokens, heads * width]`.
/// Heads share keys in groups of `heads / kv_heads` (GQA). All three may be windows with dense rows.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, attention: &Attention) -> Result<Tensor> {
    q.apply_op3_no_bwd(k, v, attention)
}

/// Queries of one task: few enough for the scores to stay in cache, enough to feed a matrix product.
const BLOCK: usize = 32;

impl CustomOp3 for Attention<'_> {
    fn name(&self) -> &'static str {
        "attention"
    }

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
        let width = heads.count * heads.q.width;
        let mut y = vec![0f32; q_l.dims()[0] * width];
        with_dense(self.bias, |bias| {
            let tasks = tasks(&mut y, width, self.offsets);
            tasks.into_par_iter().for_each_init(Vec::new, |scores, task| self.block(scores, task, heads, bias));
            Ok(())
        })?;
        Ok((CpuStorage::F32(y), Shape::from((q_l.dims()[0], width))))
    }
}

/// Queries, keys and values by head.
#[derive(Clone, Copy)]
pub(super) struct Heads<'a> {
    pub q: Rows<'a>,
    pub k: Rows<'a>,
    pub v: Rows<'a>,
    /// Query heads.
    pub count: usize,
    /// Query heads that share one of keys and values.
    pub group: usize,
}

impl<'a> Heads<'a> {
    /// Views of `[tokens, heads, width]` each.
    pub fn of(
        (q, q_l): (&'a CpuStorage, &Layout),
        (k, k_l): (&'a CpuStorage, &Layout),
        (v, v_l): (&'a CpuStorage, &Layout),
    ) -> Result<Self> {
        let (count, group) = (q_l.dims()[1], q_l.dims()[1] / k_l.dims()[1]);
        Ok(Self { q: Rows::of(q, q_l)?, k: Rows::of(k, k_l)?, v: Rows::of(v, v_l)?, count, group })
    }

    /// Plain scores of some queries of a head, `q k`, row by row into `scores`.
    pub fn scores(&self, scores: &mut Vec<f32>, head: usize, queries: Range<usize>, keys: Range<usize>) {
        let (rows, columns) = (queries.len(), keys.len());
        scores.resize(rows * columns, 0.0);
        let k = self.k.matrix(keys, head / self.group).transposed();
        let target = MatrixMut { data: scores, rows, columns, row_stride: columns };
        multiply(target, false, self.q.matrix(queries, head), k, gemm::Parallelism::None);
    }

    /// The sum of a head's values by weights, a row a query, into `y` with its stride.
    pub fn weigh(&self, y: &mut [f32], row_stride: usize, weights: &[f32], head: usize, keys: Range<usize>) {
        let (rows, columns) = (weights.len() / keys.len(), keys.len());
        let weights = Matrix { data: weights, rows, columns, row_stride: columns, column_stride: 1 };
        let target = MatrixMut { data: y, rows, columns: self.v.width, row_stride };
        multiply(target, false, weights, self.v.matrix(keys, head / self.group), gemm::Parallelism::None);
    }
}

/// Scores to attention weights, in place.
#[inline(always)]
pub(super) fn softmax(scores: &mut [f32]) {
    let highest = maximum(scores);
    scores.iter_mut().for_each(|s| *s = exp(*s - highest));
    let total = sum(scores, |s| s);
    scores.iter_mut().for_each(|s| *s /= total);
}

/// Some queries of one sequence, and their rows of the result.
struct Task<'a> {
    y: &'a mut [f32],
    sequence: Range<usize>,
    queries: Range<usize>,
}

fn tasks<'a>(mut y: &'a mut [f32], width: usize, offsets: &[usize]) -> Vec<Task<'a>> {
    let mut tasks = Vec::new();
    for span in offsets.windows(2) {
        for start in (span[0]..span[1]).step_by(BLOCK) {
            let queries = start..(start + BLOCK).min(span[1]);
            let (rows, rest) = y.split_at_mut(queries.len() * width);
            tasks.push(Task { y: rows, sequence: span[0]..span[1], queries });
            y = rest;
        }
    }
    tasks
}

impl Attention<'_> {
    /// What some queries of a sequence see, as places in the batch.
    fn visible(&self, queries: Range<usize>, sequence: &Range<usize>) -> Range<usize> {
        let window = self.window.unwrap_or(sequence.len());
        let end = if self.causal { queries.end } else { sequence.end.min(queries.end.saturating_add(window)) };
        sequence.start.max(queries.start.saturating_sub(window))..end
    }

    fn block(&self, scores: &mut Vec<f32>, task: Task, heads: Heads, bias: Option<&[f32]>) {
        let keys = self.visible(task.queries.clone(), &task.sequence);
        let width = heads.q.width;
        for head in 0..heads.count {
            heads.scores(scores, head, task.queries.clone(), keys.clone());
            let bias = bias.map(|all| &all[head * all.len() / heads.count..(head + 1) * all.len() / heads.count]);
            for (query, scores) in task.queries.clone().zip(scores.chunks_exact_mut(keys.len())) {
                let visible = self.visible(query..query + 1, &task.sequence);
                // Column of the query itself in a row of biases that starts at the first visible key.
                let bias = bias.map(|bias| &bias[bias.len() / 2 + visible.start - query..]);
                self.weights(scores, visible.start - keys.start..visible.end - keys.start, bias);
            }
            heads.weigh(&mut task.y[head * width..], heads.count * width, scores, head, keys.clone());
        }
    }

    /// Scores of one query to its attention weights, in place.
    fn weights(&self, scores: &mut [f32], visible: Range<usize>, bias: Option<&[f32]>) {
        scores[..visible.start].fill(0.0);
        scores[visible.end..].fill(0.0);
        let scores = &mut scores[visible];
        vectorized(
            #[inline(always)]
            || {
                scores.iter_mut().for_each(|s| *s *= self.scale);
                if let Some(bias) = bias {
                    scores.iter_mut().zip(bias).for_each(|(s, b)| *s += b);
                }
                softmax(scores);
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{D, Device};

    const HEADS: usize = 4;
    const WIDTH: usize = 8;

    fn random(tokens: usize, heads: usize) -> Tensor {
        Tensor::randn(0f32, 1.5, (tokens, heads, WIDTH), &Device::Cpu).unwrap()
    }

    /// One sequence and one head in candle's own operations, with the whole score matrix.
    fn plain_head(q: &Tensor, k: &Tensor, v: &Tensor, a: &Attention, bias: Option<Vec<f32>>) -> Tensor {
        let n = q.dims()[0];
        let mut scores = (q.matmul(&k.t().unwrap()).unwrap() * f64::from(a.scale)).unwrap().to_vec2::<f32>().unwrap();
        for (i, row) in scores.iter_mut().enumerate() {
            for (j, score) in row.iter_mut().enumerate() {
                *score += bias.as_ref().map_or(0.0, |b| b[b.len() / 2 + j - i]);
                if a.causal && j > i || a.window.is_some_and(|window| i.abs_diff(j) > window) {
                    *score = f32::NEG_INFINITY;
                }
            }
        }
        let scores = Tensor::new(scores, &Device::Cpu).unwrap();
        let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1).unwrap()).unwrap().exp().unwrap();
        let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1).unwrap()).unwrap();
        assert_eq!(weights.dims(), [n, n]);
        weights.matmul(v).unwrap()
    }

    fn check(kv_heads: usize, causal: bool, window: Option<usize>, bias: Option<&Tensor>) {
        let offsets = [0, 1, 34, 37, 120];
        let (q, k, v) = (random(120, HEADS), random(120, kv_heads), random(120, kv_heads));
        let op = Attention { offsets: &offsets, scale: 0.35, causal, window, bias };
        let ours = attention(&q, &k, &v, &op).unwrap().reshape((120, HEADS, WIDTH)).unwrap();
        for span in offsets.windows(2) {
            for head in 0..HEADS {
                let part = |t: &Tensor, head: usize| {
                    let t = t.narrow(0, span[0], span[1] - span[0]).unwrap();
                    t.narrow(1, head, 1).unwrap().squeeze(1).unwrap().contiguous().unwrap()
                };
                let kv = head * kv_heads / HEADS;
                let bias = bias.map(|b| b.get(head).unwrap().to_vec1().unwrap());
                let plain = plain_head(&part(&q, head), &part(&k, kv), &part(&v, kv), &op, bias);
                let gap = (part(&ours, head) - plain).unwrap().abs().unwrap().max_all().unwrap();
                assert!(gap.to_scalar::<f32>().unwrap() < 2e-6, "{gap} at {span:?}, head {head}");
            }
        }
    }

    #[test]
    fn packed_is_each_sequence_alone() {
        check(HEADS, false, None, None);
    }

    #[test]
    fn causal_with_shared_keys_is_the_plain_one() {
        check(2, true, None, None);
    }

    #[test]
    fn relative_bias_is_looked_up_by_distance() {
        let bias = Tensor::randn(0f32, 1.0, (HEADS, 2 * 90 - 1), &Device::Cpu).unwrap();
        check(HEADS, false, None, Some(&bias));
        check(HEADS, true, Some(5), Some(&bias));
    }

    #[test]
    fn a_window_ends_at_its_last_token_on_both_sides() {
        for window in [0, 1, 31, 32, 33, 200] {
            check(HEADS, false, Some(window), None);
            check(2, true, Some(window), None);
        }
    }

    #[test]
    fn heads_may_be_windows_of_one_stacked_projection() {
        let offsets = [0, 5, 9];
        let stacked = random(9, 3 * HEADS);
        let window = |i: usize| stacked.narrow(1, i * HEADS, HEADS).unwrap();
        let op = Attention { offsets: &offsets, scale: 1.0, causal: false, window: None, bias: None };
        let copies: Vec<Tensor> = (0..3).map(|i| window(i).contiguous().unwrap()).collect();
        let windows = attention(&window(0), &window(1), &window(2), &op).unwrap();
        let dense = attention(&copies[0], &copies[1], &copies[2], &op).unwrap();
        assert_eq!(windows.to_vec2::<f32>().unwrap(), dense.to_vec2::<f32>().unwrap());
    }
}
