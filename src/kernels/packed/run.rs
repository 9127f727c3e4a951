//! A product with tiles: rows laid out, tasks shared out, results written once.
#![expect(unsafe_code, reason = "tasks write windows of columns of one result, which is not cleared first")]

use super::rows::{Rows, UPPER};
use super::tiles::{Columns, Kind, TILE, Tile, WIDTH};
use crate::kernels::activation::Activation;
use crate::kernels::math::vectorized;
use crate::kernels::view::{self, with_dense};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;
use std::cell::Cell;
use std::ops::Range;

/// Bytes of rows that stay in a core's cache while weights pass by.
const CHUNK: usize = 768 << 10;

/// What a row of a block sums up to: f32, or the bits of i32.
pub type Sums = [f32; 2 * WIDTH];

/// One product with tiles.
pub struct Tiled<'a> {
    pub tiles: &'a Columns,
    pub outputs: Range<usize>,
    pub bias: Option<&'a Tensor>,
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
        rows.fill(self.tiles.kind, x.count, x.width, |row| x.row(row));
        with_dense(self.bias, |bias| {
            self.run(&rows, &Sheet::new(&mut y, x.count, self.outputs.len()), bias);
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

impl Tiled<'_> {
    /// Writes the whole sheet, in tasks of some blocks of 16 rows and some panels of 32 outputs.
    fn run(&self, rows: &Rows, sheet: &Sheet, bias: Option<&[f32]>) {
        let (blocks, threads) = (sheet.rows.div_ceil(WIDTH), rayon::current_num_threads());
        let panels = self.outputs.start / (2 * WIDTH)..self.outputs.end.div_ceil(2 * WIDTH);
        let kind = self.tiles.kind;
        let block_bytes = kind.per_block(self.tiles.inputs) * TILE;
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
        tasks.into_par_iter().for_each(|(c, p)| {
            let unit = Unit::new();
            let mut sums = [[0.0; 2 * WIDTH]; 2 * WIDTH];
            for panel in p..(p + part).min(panels.end) {
                let below = Panel::new(self, panel, bias);
                // Of integers the two numbers of a row stand where elsewhere two rows do.
                let together = if kind == Kind::Integers { 1 } else { 2 };
                for block in (c * chunk..((c + 1) * chunk).min(blocks)).step_by(together) {
                    let tiles = rows.block(block);
                    let pair = match together {
                        1 => tiles.split_at(tiles.len() / 2),
                        _ => (tiles, rows.block((block + 1).min(blocks - 1))),
                    };
                    let is_pair = together == 1 || block + 1 < blocks;
                    let pair = if is_pair { &[pair.0, pair.1][..] } else { &[pair.0][..] };
                    let sums = &mut sums[..pair.len() * WIDTH];
                    unit.multiply(kind, pair, self.tiles.panel(panel), sums);
                    self.write(sums, rows, block * WIDTH, &below, sheet);
                }
            }
        });
    }

    /// What follows a product, for some rows and a panel, to its place.
    fn write(&self, sums: &mut [Sums], rows: &Rows, first: usize, panel: &Panel, sheet: &Sheet) {
        let sums = if self.tiles.kind == Kind::Integers { whole(sums, &rows.scales[first..], panel) } else { sums };
        vectorized(
            #[inline(always)]
            || {
                for sums in sums.iter_mut() {
                    sums.iter_mut().zip(&panel.biases).for_each(|(sum, bias)| *sum += bias);
                }
            },
        );
        if let Some(activation) = self.activation {
            activation.change(sums.as_flattened_mut());
        }
        for (place, sums) in sums.iter().enumerate().take(sheet.rows - first) {
            sheet.write(first + place, panel.start, &sums[panel.inside.clone()]);
        }
    }
}

/// What the integers of 16 rows, upper ones first, sum up to, as numbers.
fn whole<'a>(sums: &'a mut [Sums], scales: &[f32], panel: &Panel) -> &'a mut [Sums] {
    let (upper, lower) = sums.split_at_mut(WIDTH);
    vectorized(
        #[inline(always)]
        || {
            for ((upper, lower), scale) in upper.iter_mut().zip(lower).zip(scales) {
                for ((y, low), output) in upper.iter_mut().zip(lower).zip(&panel.scales) {
                    let number = |sum: f32| sum.to_bits() as i32 as f32;
                    *y = (number(*y) * UPPER + number(*low)) * (scale * output);
                }
            }
        },
    );
    upper
}

/// What stands below 32 outputs.
struct Panel {
    /// Which of them are asked for.
    inside: Range<usize>,
    /// The place of the first of these in the result.
    start: usize,
    biases: [f32; 2 * WIDTH],
    /// Of integers.
    scales: [f32; 2 * WIDTH],
}

impl Panel {
    fn new(product: &Tiled, panel: usize, bias: Option<&[f32]>) -> Self {
        let (first, outputs) = (panel * 2 * WIDTH, &product.outputs);
        let inside = outputs.start.max(first) - first..outputs.end.min(first + 2 * WIDTH) - first;
        let start = first + inside.start - outputs.start;
        let (mut biases, mut scales) = ([0f32; 2 * WIDTH], [0f32; 2 * WIDTH]);
        if let Some(bias) = bias {
            biases[inside.clone()].copy_from_slice(&bias[start..start + inside.len()]);
        }
        if let Some(all) = product.tiles.scales.get(first..) {
            scales.iter_mut().zip(all).for_each(|(scale, x)| *scale = *x);
        }
        Self { inside, start, biases, scales }
    }
}

/// What multiplies tiles on this machine.
pub struct Unit {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    amx: Option<super::amx::Tiles>,
}

impl Unit {
    pub fn new() -> Self {
        Self {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            amx: super::amx::is_there().then(super::amx::Tiles::new),
        }
    }

    pub fn multiply(&self, kind: Kind, rows: &[&[Tile]], b: &[Tile], y: &mut [Sums]) {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if let Some(amx) = &self.amx {
            return amx.multiply(kind, rows, b, y);
        }
        super::tiles::multiply(kind, rows, b, y);
    }
}

/// A result `[rows, columns]` that is not there yet; tasks write its places, each its own.
struct Sheet {
    start: *mut f32,
    rows: usize,
    columns: usize,
}

// Tasks write through `write` alone, no two of them the same place.
unsafe impl Sync for Sheet {}

impl Sheet {
    /// Over the capacity of a vector, which must outlive it.
    fn new(target: &mut Vec<f32>, rows: usize, columns: usize) -> Self {
        assert!(target.capacity() >= rows * columns, "room for the result");
        Self { start: target.as_mut_ptr(), rows, columns }
    }

    /// Writes a part of a row.
    #[inline(always)]
    fn write(&self, row: usize, first: usize, y: &[f32]) {
        assert!(row < self.rows && first + y.len() <= self.columns, "inside the result");
        // SAFETY: the place is inside the vector's capacity, by the assertions here and in `new`.
        unsafe {
            let target = self.start.add(row * self.columns + first);
            match y.len() {
                // A length that the compiler knows is no call.
                32 => std::ptr::copy_nonoverlapping(y.as_ptr(), target, 32),
                length => std::ptr::copy_nonoverlapping(y.as_ptr(), target, length),
            }
        }
    }
}
