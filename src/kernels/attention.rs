//! Softmax attention within each sequence of packed rows. Memory grows with the length, never with its square.

use super::math::{exp, maximum, sum, vectorized};
use super::sequences::Sequences;
use super::small::{has_pairs, multiply, multiply_pairs, pairs, pairs_of_rows, transpose};
use super::softmax::softmax;
use super::threads::share_items;
use super::view::{Matrix, MatrixMut, Rows, with_dense};
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use std::cell::Cell;
use std::ops::Range;

/// What a token may look at, and how its scores are formed; tensors of `T`.
pub struct Attention<'a, T> {
    /// First token of every sequence, and the total.
    pub offsets: &'a Sequences,
    /// Factor on every score, 1 / sqrt(head width) as a rule.
    pub scale: f32,
    /// A token sees itself and what stands before it only.
    pub causal: bool,
    /// How many tokens away the farthest is that a token sees; none: it sees all.
    pub window: Option<usize>,
    /// Added to the scaled score: `[heads, 2 * span - 1]`, column `span - 1 + (key - query)`.
    pub bias: Option<&'a T>,
    /// Whether what is multiplied may be rounded to bf16; it is where the machine multiplies that faster.
    pub is_half: bool,
}

/// `q [tokens, heads, width]`, `k`, `v [tokens, kv_heads, width]` -> `[tokens, heads * width]`.
/// Heads share keys in groups of `heads / kv_heads` (GQA). All three may be windows with dense rows.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, attention: &Attention<Tensor>) -> Result<Tensor> {
    q.apply_op3_no_bwd(k, v, attention)
}

/// Keys that are looked at together: scores of a task stay in cache.
const TILE: usize = 512;

/// Tokens of a sequence for which it is worth rounding them.
const HALF_MIN: usize = 32;

/// Queries of one task. A short sequence makes more tasks than one; in a long one, every tile of keys is used more often.
fn block(length: usize) -> usize {
    if length <= TILE { 64 } else { 128 }
}

impl CustomOp3 for Attention<'_, Tensor> {
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
        let heads = Heads { is_half: self.is_half && has_pairs(), ..Heads::of((q, q_l), (k, k_l), (v, v_l))? };
        let width = heads.count * heads.q.width;
        let mut y = vec![0f32; q_l.dims()[0] * width];
        with_dense(self.bias, |bias| {
            share_items(tasks(&mut y, width, self.offsets), |task| {
                let heads = Heads { is_half: heads.is_half && task.sequence.len() >= HALF_MIN, ..heads };
                let mut scratch = SCRATCH.take();
                self.attend(&mut scratch, task, heads, bias);
                SCRATCH.set(scratch);
            });
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
    /// Whether products are of numbers of bf16.
    pub is_half: bool,
}

impl<'a> Heads<'a> {
    /// Views of `[tokens, heads, width]` each.
    pub fn of(
        (q, q_l): (&'a CpuStorage, &Layout),
        (k, k_l): (&'a CpuStorage, &Layout),
        (v, v_l): (&'a CpuStorage, &Layout),
    ) -> Result<Self> {
        let (count, group) = (q_l.dims()[1], q_l.dims()[1] / k_l.dims()[1]);
        let (q, k, v) = (Rows::of(q, q_l)?, Rows::of(k, k_l)?, Rows::of(v, v_l)?);
        Ok(Self { q, k, v, count, group, is_half: false })
    }

    /// Plain scores of some queries of a head, `q k`, row by row into `scores`. A row has a place for every key and then,
    /// up to a multiple of 16, some more; its length is returned.
    pub fn scores(&self, scores: &mut Scores, head: usize, queries: Range<usize>, keys: Range<usize>) -> usize {
        let (rows, columns) = (queries.len(), keys.len().next_multiple_of(16));
        let (mut q, mut k) = (self.q.matrix(queries, head), self.k.matrix(keys, head / self.group));
        if self.is_half {
            let width = pairs(&mut scores.left, q);
            q = Matrix::dense(&scores.left, rows, width);
            let width = pairs(&mut scores.right, k);
            k = Matrix::dense(&scores.right, k.rows, width);
        }
        transpose(&mut scores.keys, k, columns);
        scores.rows.resize(rows * columns, 0.0);
        let keys = Matrix::dense(&scores.keys, q.columns, columns);
        let target = MatrixMut { data: &mut scores.rows, rows, columns, row_stride: columns };
        self.multiply(target, false, q, keys);
        columns
    }

    /// The sum of a head's values by weights, a row a query, into or onto `y` with its stride.
    pub fn weigh(
        &self,
        (y, row_stride): (&mut [f32], usize),
        add: bool,
        weights: &mut Scores,
        head: usize,
        keys: Range<usize>,
    ) {
        let Scores { rows: data, left, right, .. } = weights;
        let length = keys.len().next_multiple_of(16);
        let mut weights =
            Matrix { data, rows: data.len() / length, columns: keys.len(), row_stride: length, column_stride: 1 };
        let mut v = self.v.matrix(keys, head / self.group);
        if self.is_half {
            let width = pairs(left, weights);
            weights = Matrix::dense(left, weights.rows, width);
            pairs_of_rows(right, v);
            v = Matrix::dense(right, width, v.columns);
        }
        let target = MatrixMut { data: y, rows: weights.rows, columns: v.columns, row_stride };
        self.multiply(target, add, weights, v);
    }

    fn multiply(&self, y: MatrixMut, add: bool, a: Matrix, b: Matrix) {
        if self.is_half { multiply_pairs(y, add, a, b) } else { multiply(y, add, a, b) }
    }
}

/// Scores of some queries, and then their weights; and the memory in which keys lie as columns.
#[derive(Default)]
pub(super) struct Scores {
    pub rows: Vec<f32>,
    keys: Vec<f32>,
    /// What is multiplied, in pairs of bf16.
    left: Vec<f32>,
    right: Vec<f32>,
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
        let block = block(span[1] - span[0]);
        for start in (span[0]..span[1]).step_by(block) {
            let queries = start..(start + block).min(span[1]);
            let (rows, rest) = y.split_at_mut(queries.len() * width);
            tasks.push(Task { y: rows, sequence: span[0]..span[1], queries });
            y = rest;
        }
    }
    tasks
}

impl Attention<'_, Tensor> {
    /// What some queries of a sequence see, as places in the batch.
    fn visible(&self, queries: Range<usize>, sequence: &Range<usize>) -> Range<usize> {
        let window = self.window.unwrap_or(sequence.len());
        let end = if self.causal { queries.end } else { sequence.end.min(queries.end.saturating_add(window)) };
        sequence.start.max(queries.start.saturating_sub(window))..end
    }

    /// Softmax in one pass over tiles of keys (arXiv:2205.14135): each query keeps its highest score so far and the sum
    /// of its powers, and what it has gathered shrinks when a higher score comes.
    fn attend(&self, Scratch { scores, rows }: &mut Scratch, task: Task, heads: Heads, bias: Option<&[f32]>) {
        let keys = self.visible(task.queries.clone(), &task.sequence);
        let (width, stride) = (heads.q.width, heads.count * heads.q.width);
        for head in 0..heads.count {
            let bias = bias.map(|all| &all[head * all.len() / heads.count..(head + 1) * all.len() / heads.count]);
            let y = &mut task.y[head * width..];
            if bias.is_none() && !self.causal && self.window.is_none() && keys.len() <= TILE {
                let length = heads.scores(scores, head, task.queries.clone(), keys.clone());
                softmax(&mut scores.rows, length, keys.len(), self.scale);
                heads.weigh((&mut *y, stride), false, scores, head, keys.clone());
                continue;
            }
            rows.clear();
            rows.resize(task.queries.len(), Row { highest: f32::NEG_INFINITY, total: 0.0 });
            for start in keys.clone().step_by(TILE) {
                let tile = start..(start + TILE).min(keys.end);
                let length = heads.scores(scores, head, task.queries.clone(), tile.clone());
                for (place, scores) in scores.rows.chunks_exact_mut(length).enumerate() {
                    let query = task.queries.start + place;
                    let visible = self.visible(query..query + 1, &task.sequence);
                    let visible = visible.start.clamp(tile.start, tile.end)..visible.end.clamp(tile.start, tile.end);
                    scores[..visible.start - tile.start].fill(0.0);
                    scores[visible.end - tile.start..].fill(0.0);
                    // What stands behind the last key weighs nothing, and makes whole vectors.
                    let end = if visible.end == tile.end { length } else { visible.end - tile.start };
                    scores[visible.end - tile.start..end].fill(f32::NEG_INFINITY);
                    // The bias of the query itself stands in the middle.
                    let bias = bias.map(|bias| &bias[bias.len() / 2 + visible.start - query..]);
                    if !visible.is_empty() {
                        let gathered = &mut y[place * stride..place * stride + width];
                        rows[place].take(&mut scores[visible.start - tile.start..end], self.scale, bias, gathered);
                    }
                }
                heads.weigh((&mut *y, stride), start > keys.start, scores, head, tile);
            }
            for (place, row) in rows.iter().enumerate() {
                y[place * stride..place * stride + width].iter_mut().for_each(|y| *y /= row.total);
            }
        }
    }
}

thread_local! {
    static SCRATCH: Cell<Scratch> = Cell::default();
}

/// Memory that the tasks of a thread use in turn.
#[derive(Default)]
struct Scratch {
    scores: Scores,
    rows: Vec<Row>,
}

/// What a query has seen of its keys.
#[derive(Clone, Copy)]
struct Row {
    highest: f32,
    /// Sum of e^(score - highest).
    total: f32,
}

impl Row {
    /// More scores, which become weights relative to the highest; `gathered` is made relative to it as well.
    #[inline(always)]
    fn take(&mut self, scores: &mut [f32], scale: f32, bias: Option<&[f32]>, gathered: &mut [f32]) {
        vectorized(
            #[inline(always)]
            || {
                scores.iter_mut().for_each(|s| *s *= scale);
                if let Some(bias) = bias {
                    scores.iter_mut().zip(bias).for_each(|(s, b)| *s += b);
                }
                let highest = maximum(scores).max(self.highest);
                if self.highest < highest {
                    if self.total > 0.0 {
                        let shrink = exp(self.highest - highest);
                        self.total *= shrink;
                        gathered.iter_mut().for_each(|y| *y *= shrink);
                    }
                    self.highest = highest;
                }
                scores.iter_mut().for_each(|s| *s = exp(*s - highest));
                self.total += sum(scores, |s| s);
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::sample::normal;
    use candle_core::{D, Device};

    const HEADS: usize = 4;
    const WIDTH: usize = 8;

    fn random(tokens: usize, heads: usize) -> Tensor {
        normal(1.5, (tokens, heads, WIDTH))
    }

    /// One sequence and one head in candle's own operations, with the whole score matrix.
    fn plain_head(q: &Tensor, k: &Tensor, v: &Tensor, a: &Attention<Tensor>, bias: Option<Vec<f32>>) -> Tensor {
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
        check_over(&[0, 1, 34, 37, 120], kv_heads, causal, window, bias);
    }

    fn check_over(offsets: &[usize], kv_heads: usize, causal: bool, window: Option<usize>, bias: Option<&Tensor>) {
        let tokens = offsets[offsets.len() - 1];
        let (q, k, v) = (random(tokens, HEADS), random(tokens, kv_heads), random(tokens, kv_heads));
        let offsets = &Sequences::from(offsets);
        let op = Attention { offsets, scale: 0.35, causal, window, bias, is_half: false };
        let ours = attention(&q, &k, &v, &op).unwrap().reshape((tokens, HEADS, WIDTH)).unwrap();
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
                assert!(
                    gap.to_scalar::<f32>().unwrap() < 2e-6 + 2e-8 * tokens as f32,
                    "{gap} at {span:?}, head {head}"
                );
            }
        }
    }

    #[test]
    fn tiles_of_keys_are_all_of_them() {
        let offsets = [0, 3, 3 + 2 * TILE + 70];
        let tokens = offsets[2];
        let bias = normal(1.0, (HEADS, 2 * tokens - 1));
        check_over(&offsets, HEADS, false, None, Some(&bias));
        check_over(&offsets, 2, true, Some(TILE + 3), None);
    }

    #[test]
    fn packed_is_each_sequence_alone() {
        check(HEADS, false, None, None);
    }

    #[test]
    fn bf16_is_near() {
        let offsets = [0, 1, 34, 137, 139 + TILE];
        let tokens = offsets[4];
        let (q, k, v) = (random(tokens, HEADS), random(tokens, 2), random(tokens, 2));
        let offsets = Sequences::from(&offsets[..]);
        for causal in [false, true] {
            let op = Attention { offsets: &offsets, scale: 0.35, causal, window: None, bias: None, is_half: false };
            let exact = attention(&q, &k, &v, &op).unwrap();
            let half = attention(&q, &k, &v, &Attention { is_half: true, ..op }).unwrap();
            let gap = (exact - half).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(gap < 0.15, "{gap}");
        }
    }

    #[test]
    fn causal_with_shared_keys_is_the_plain_one() {
        check(2, true, None, None);
    }

    #[test]
    fn relative_bias_is_looked_up_by_distance() {
        let bias = normal(1.0, (HEADS, 2 * 90 - 1));
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
        let offsets = Sequences::from(&[0, 5, 9][..]);
        let stacked = random(9, 3 * HEADS);
        let window = |i: usize| stacked.narrow(1, i * HEADS, HEADS).unwrap();
        let op = Attention { offsets: &offsets, scale: 1.0, causal: false, window: None, bias: None, is_half: false };
        let copies: Vec<Tensor> = (0..3).map(|i| window(i).contiguous().unwrap()).collect();
        let windows = attention(&window(0), &window(1), &window(2), &op).unwrap();
        let dense = attention(&copies[0], &copies[1], &copies[2], &op).unwrap();
        assert_eq!(windows.to_vec2::<f32>().unwrap(), dense.to_vec2::<f32>().unwrap());
    }
}
