//! The rows of a product as a matrix unit takes them: split into planes or rounded to integers, in tiles.

use super::tiles::{Kind, TILE, Tile, WIDTH, nearest};
use crate::kernels::math::{sum, vectorized};
use rayon::prelude::*;

/// Rows of a product: for every 16 of them, along the inputs, for every plane, a tile; of integers first all upper ones,
/// then all lower ones. What is not there is 0.
#[derive(Default)]
pub struct Rows {
    tiles: Vec<Tile>,
    /// Of integers: what each row's are multiplied by.
    pub scales: Vec<f32>,
    per_block: usize,
}

impl Rows {
    /// Takes in `count` rows of `inputs` each.
    pub fn fill<'a>(&mut self, kind: Kind, count: usize, inputs: usize, row: impl Fn(usize) -> &'a [f32] + Sync) {
        self.per_block = kind.per_block(inputs);
        let blocks = count.div_ceil(WIDTH);
        self.tiles.resize(blocks * self.per_block, Tile([0; TILE]));
        self.scales.resize(if kind == Kind::Integers { blocks * WIDTH } else { 0 }, 0.0);
        let per_block = self.per_block;
        let fill = |(block, tiles): (usize, &mut [Tile])| {
            let mut scales = [0f32; WIDTH];
            for (place, scale) in scales.iter_mut().enumerate() {
                let row = if block * WIDTH + place < count { row(block * WIDTH + place) } else { &[] };
                match kind {
                    Kind::Integers => *scale = write_integers(tiles, place, row),
                    Kind::Half => write_planes::<1>(tiles, place, row),
                    Kind::Exact => write_planes::<3>(tiles, place, row),
                }
            }
            scales
        };
        let blocks = self.tiles.par_chunks_exact_mut(per_block).with_min_len(4).enumerate();
        match kind {
            Kind::Integers => {
                let scales = self.scales.par_chunks_exact_mut(WIDTH);
                blocks.zip(scales).for_each(|(block, scales)| scales.copy_from_slice(&fill(block)));
            }
            _ => blocks.for_each(|block| {
                fill(block);
            }),
        }
    }

    /// The tiles of 16 rows.
    pub fn block(&self, block: usize) -> &[Tile] {
        &self.tiles[block * self.per_block..(block + 1) * self.per_block]
    }
}

/// By what an upper number counts more than a lower one.
pub const UPPER: f32 = 128.0;

/// A row as integers, and what they are multiplied by.
fn write_integers(tiles: &mut [Tile], place: usize, row: &[f32]) -> f32 {
    let (upper, lower) = tiles.split_at_mut(tiles.len() / 2);
    vectorized(
        #[inline(always)]
        || {
            let mut most = [0f32; 16];
            let (chunks, rest) = row.as_chunks::<16>();
            let rest = rest.iter().fold(0f32, |most, x| most.max(x.abs()));
            for chunk in chunks {
                most.iter_mut().zip(chunk).for_each(|(most, x)| *most = most.max(x.abs()));
            }
            let most = most.into_iter().fold(rest, f32::max);
            let per_unit = if most > 0.0 { 127.0 * UPPER / most } else { 0.0 };
            for (step, (upper, lower)) in upper.iter_mut().zip(lower).enumerate() {
                let part = row.get(step * 64..).unwrap_or_default();
                let mut numbers = [0f32; 64];
                match part.first_chunk() {
                    Some(whole) => numbers = *whole,
                    None => numbers[..part.len()].copy_from_slice(part),
                }
                let (mut high, mut low) = ([0u8; 64], [0u8; 64]);
                for ((high, low), x) in high.iter_mut().zip(&mut low).zip(numbers) {
                    let whole = nearest(x * per_unit);
                    let above = (whole + 64) >> 7;
                    (*high, *low) = (above as u8, (whole - (above << 7)) as u8);
                }
                upper.0[place * 64..(place + 1) * 64].copy_from_slice(&high);
                lower.0[place * 64..(place + 1) * 64].copy_from_slice(&low);
            }
            // A row that is not finite must not look like one that is.
            most / (127.0 * UPPER) + sum(row, |x| x * 0.0)
        },
    )
}

/// A row in so many planes.
fn write_planes<const PLANES: usize>(tiles: &mut [Tile], place: usize, row: &[f32]) {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if super::amx::is_there() {
        return super::amx::write_planes::<PLANES>(tiles, place, row);
    }
    vectorized(
        #[inline(always)]
        || {
            for (step, tiles) in tiles.chunks_exact_mut(PLANES).enumerate() {
                let part = row.get(step * 32..).unwrap_or_default();
                let mut left = [0f32; 32];
                match part.first_chunk() {
                    Some(whole) => left = *whole,
                    None => left[..part.len()].copy_from_slice(part),
                }
                for tile in tiles {
                    let mut plane = [0u16; 32];
                    for (plane, left) in plane.iter_mut().zip(&mut left) {
                        let high = rounded(*left);
                        *plane = (high.to_bits() >> 16) as u16;
                        *left -= high;
                    }
                    let target = &mut tile.0[place * 64..(place + 1) * 64];
                    target.chunks_exact_mut(2).zip(plane).for_each(|(to, x)| to.copy_from_slice(&x.to_le_bytes()));
                }
            }
        },
    );
}

/// To the nearest number of bf16, of two the even one; what is not finite stays so.
#[inline(always)]
fn rounded(x: f32) -> f32 {
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000;
    let is_special = bits & 0x7f80_0000 == 0x7f80_0000;
    f32::from_bits(if is_special { bits & 0xffff_0000 } else { nearest })
}
