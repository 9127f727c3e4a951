//! A product with tiles: rows laid out, tasks shared out, results written once.
#![expect(unsafe_code, reason = "tasks write windows of columns of one result, which is not cleared first")]

use super::rows::{Block, Rows, SAME_PLACE, Span};
use super::tiles::{Columns, Kind, PANEL, Sums, WIDTH};
use super::unit::Unit;
use super::update::{Lending, Matrices, Update};
use crate::kernels::activation::Activation;
use crate::kernels::math::vectorized;
use crate::kernels::threads::{share, threads};
use crate::kernels::view::{self, Matrix, with_dense};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use std::cell::Cell;
use std::ops::Range;

/// Sums whose vectors lie in one line of a cache each.
#[repr(align(64))]
struct Aligned([Sums; 2 * WIDTH]);

/// Bytes of rows that stay in a core's cache while weights pass by.
const CHUNK: usize = 768 << 10;

/// One product with tiles.
pub struct Tiled<'a> {
    pub tiles: &'a Columns,
    pub outputs: Range<usize>,
    pub bias: Option<&'a Tensor>,
    pub updates: &'a [Update],
    pub activation: Option<Activation>,
}

thread_local! {
    /// The memory in which a thread lays out rows.
    static ROWS: Cell<Rows> = Cell::default();
}

impl CustomOp1 for Tiled<'_> {
    fn name(&self) -> &'static str {
        "tiled_product"
    }

    fn cpu_fwd(&self, x: &CpuStorage, x_l: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = view::Rows::of(x, x_l)?;
        if x.width != self.tiles.inputs {
            bail!("shapes of a product: rows of {} and {} inputs", x.width, self.tiles.inputs)
        }
        let mut y = Vec::with_capacity(x.count * self.outputs.len());
        let mut rows = ROWS.take();
        let plain = x.all().filter(|x| self.tiles.kind == Kind::Single && is_well_laid_out(x));
        if plain.is_none() {
            rows.fill(self.tiles.kind, x.count, x.width, |row| x.row(row));
        }
        let block = |block: usize| match plain {
            Some(x) => Block::Plain(&x.data[block * WIDTH * x.row_stride..], x.row_stride),
            None => rows.block(block),
        };
        let updates: Vec<Lending> = self.updates.iter().map(Lending::of).collect();
        let updates = updates.iter().map(Lending::matrices).collect::<Result<Vec<_>>>()?;
        with_dense(self.bias, |bias| {
            let sheet = Sheet::new(&mut y, x.count, self.outputs.len());
            self.run(block, &rows.spans, &sheet, (bias, &updates));
            Ok(())
        })?;
        ROWS.set(rows);
        // SAFETY: the vector has that capacity, and `run` has written every element of the sheet over it.
        unsafe {
            y.set_len(x.count * self.outputs.len());
        }
        Ok((CpuStorage::F32(y), Shape::from((x.count, self.outputs.len()))))
    }
}

/// Whether rows can be multiplied where they are: as whole tiles would hold them, and so far apart that a cache has room for a
/// dozen of them side by side.
fn is_well_laid_out(x: &Matrix) -> bool {
    x.columns.is_multiple_of(WIDTH) && !x.row_stride.is_multiple_of(SAME_PLACE)
}

impl Tiled<'_> {
    /// Writes the whole sheet, in tasks of some blocks of 16 rows and some panels of outputs.
    fn run<'r>(
        &self,
        rows: impl Fn(usize) -> Block<'r> + Sync,
        spans: &[Span],
        sheet: &Sheet,
        after: (Option<&[f32]>, &[Matrices]),
    ) {
        let (blocks, threads) = (sheet.rows.div_ceil(WIDTH), threads());
        let panels = self.outputs.start / PANEL..self.outputs.end.div_ceil(PANEL);
        let kind = self.tiles.kind;
        let block_bytes = kind.block_bytes(self.tiles.inputs);
        // As many chunks for one thread as for another, and of nearly one size.
        let fitting = (CHUNK / block_bytes.max(1)).max(2);
        let chunk =
            blocks.div_ceil(blocks.div_ceil(fitting).next_multiple_of(threads).max(1)).next_multiple_of(2).max(2);
        let chunks = blocks.div_ceil(chunk.max(2));
        // Few rows: the panels are shared out, one part a thread.
        let parts = if chunks >= threads { 1 } else { threads.div_ceil(chunks.max(1)) };
        let part = panels.len().div_ceil(parts).max(1);
        let tasks: Vec<(usize, usize)> =
            (0..chunks).flat_map(|c| panels.clone().step_by(part).map(move |p| (c, p))).collect();
        share(tasks.len(), |task| {
            let (c, p) = tasks[task];
            let unit = Unit::new();
            let Aligned(sums) = &mut Aligned([[0.0; PANEL]; 2 * WIDTH]);
            for panel in p..(p + part).min(panels.end) {
                let below = Panel::new(self, panel, after);
                for block in (c * chunk..((c + 1) * chunk).min(blocks)).step_by(2) {
                    let pair = [rows(block), rows((block + 1).min(blocks - 1))];
                    let pair = &pair[..(blocks - block).min(2)];
                    let first = block * WIDTH;
                    let count = (sheet.rows - first).min(pair.len() * WIDTH);
                    unit.multiply(kind, pair, count, self.tiles.panel(panel), &mut sums[..pair.len() * WIDTH]);
                    self.write(&mut sums[..count], spans.get(first..).unwrap_or_default(), first, &below, sheet);
                }
            }
        });
    }

    /// What follows a product, for some rows and a panel, to its place.
    fn write(&self, sums: &mut [Sums], spans: &[Span], first: usize, panel: &Panel, sheet: &Sheet) {
        vectorized(
            #[inline(always)]
            || match self.tiles.kind {
                Kind::Integers => sums.iter_mut().zip(spans).for_each(|(sums, span)| panel.numbers(sums, *span)),
                _ => {
                    // A copy, so that no store can change it.
                    let biases = panel.biases;
                    sums.iter_mut().for_each(|sums| (0..PANEL).for_each(|output| sums[output] += biases[output]));
                }
            },
        );
        panel.updates.iter().for_each(|update| update.add(sums, first, panel.start, panel.inside.start));
        if let Some(activation) = self.activation {
            activation.change(sums.as_flattened_mut());
        }
        vectorized(
            #[inline(always)]
            || {
                let rows = sums.iter().enumerate();
                match panel.inside.len() {
                    // A length that the compiler knows is no call.
                    PANEL => rows.for_each(|(place, sums)| sheet.write(first + place, panel.start, sums)),
                    _ => rows.for_each(|(place, sums)| {
                        sheet.write_some(first + place, panel.start, &sums[panel.inside.clone()]);
                    }),
                }
            },
        );
    }
}

/// What stands below a panel of outputs.
struct Panel<'a> {
    /// Which of them are asked for.
    inside: Range<usize>,
    /// The place of the first of these in the result.
    start: usize,
    biases: [f32; PANEL],
    /// Of integers; see [`Columns`].
    scales: [f32; PANEL],
    sums: [f32; PANEL],
    updates: Vec<Matrices<'a>>,
}

impl<'a> Panel<'a> {
    fn new(product: &Tiled, panel: usize, (bias, updates): (Option<&[f32]>, &[Matrices<'a>])) -> Self {
        let (first, outputs) = (panel * PANEL, &product.outputs);
        let inside = outputs.start.max(first) - first..outputs.end.min(first + PANEL) - first;
        let start = first + inside.start - outputs.start;
        let mut biases = [0f32; PANEL];
        if let Some(bias) = bias {
            biases[inside.clone()].copy_from_slice(&bias[start..start + inside.len()]);
        }
        let part = |all: &[f32]| {
            let mut part = [0f32; PANEL];
            part.iter_mut().zip(all.get(first..).unwrap_or_default()).for_each(|(part, x)| *part = *x);
            part
        };
        let outputs = start..start + inside.len();
        updates.iter().for_each(|update| update.foresee(&(outputs.end..outputs.end + PANEL)));
        let updates = updates.iter().filter_map(|update| update.at(&outputs)).collect();
        Self { inside, start, updates, biases, scales: part(&product.tiles.scales), sums: part(&product.tiles.sums) }
    }

    /// What the sums of a row's integers stand for, with the bias.
    #[inline(always)]
    fn numbers(&self, sums: &mut Sums, Span { scale, lowest }: Span) {
        for (output, sum) in sums.iter_mut().enumerate() {
            let whole = sum.to_bits() as i32 as f32;
            *sum = whole * (scale * self.scales[output]) + (lowest * self.sums[output] + self.biases[output]);
        }
    }
}

/// A result `[rows, columns]` that is not there yet; tasks write its places, each its own.
struct Sheet {
    start: *mut f32,
    rows: usize,
    columns: usize,
}

// SAFETY: tasks write through `write` and `write_some` alone, no two of them the same place.
unsafe impl Sync for Sheet {}

impl Sheet {
    /// Over the capacity of a vector, which must outlive it.
    fn new(target: &mut Vec<f32>, rows: usize, columns: usize) -> Self {
        assert!(target.capacity() >= rows * columns, "room for the result");
        Self { start: target.as_mut_ptr(), rows, columns }
    }

    /// Writes a panel's part of a row.
    #[inline(always)]
    fn write(&self, row: usize, first: usize, y: &Sums) {
        assert!(row < self.rows && first + PANEL <= self.columns, "inside the result");
        // SAFETY: the place is inside the vector's capacity, by the assertions here and in `new`.
        unsafe { self.start.add(row * self.columns + first).cast::<Sums>().write(*y) };
    }

    /// The same of a panel of which a part is asked for.
    fn write_some(&self, row: usize, first: usize, y: &[f32]) {
        assert!(row < self.rows && first + y.len() <= self.columns, "inside the result");
        // SAFETY: as above.
        unsafe { self.start.add(row * self.columns + first).copy_from_nonoverlapping(y.as_ptr(), y.len()) };
    }
}
