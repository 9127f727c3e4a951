//! How matrices lie for a matrix unit: in tiles of 16 rows of 64 bytes.
//!
//! A number of f32 is the sum of three of bf16, its planes, each with the 8 highest bits that those before it left
//! (arXiv:1904.06376). The products of planes are exact in f32, and all but the smallest three are summed up.

use crate::kernels::math::{sum, vectorized};
use half::bf16;
use rayon::prelude::*;

/// 16 rows of 64 bytes, where a matrix unit reads them fastest.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub struct Tile(pub [u8; TILE]);

/// Bytes of a tile.
pub const TILE: usize = 1024;

/// Rows, and columns, of what a product of two tiles gives.
pub const WIDTH: usize = 16;

/// What numbers a product is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Three planes of either side: all the precision of f32.
    Exact,
    /// One plane of either side: numbers of bf16.
    Half,
    /// Of the weight 8 bits, and a scale for every column; of the rows 15, as an upper and a lower number of 8, and a scale
    /// for every row.
    Integers,
}

impl Kind {
    /// Tiles that a place of the rows, and of the weight, takes.
    pub fn planes(self) -> (usize, usize) {
        if self == Self::Exact { (3, 3) } else { (1, 1) }
    }

    /// Inputs that a tile covers.
    pub fn depth(self) -> usize {
        if self == Self::Integers { 64 } else { 32 }
    }

    /// Tiles of 16 rows of so many inputs.
    pub fn per_block(self, inputs: usize) -> usize {
        self.steps(inputs)
            * if self == Self::Exact {
                3
            } else if self == Self::Integers {
                2
            } else {
                1
            }
    }

    /// Tiles along so many inputs.
    pub fn steps(self, inputs: usize) -> usize {
        inputs.div_ceil(self.depth())
    }
}

/// A weight `[in, out]`: for every 32 outputs, along the inputs, for every plane, two tiles. A tile has a row for every
/// pair (of 8 bits: four) of inputs, in which they stand together output by output. What is not there is 0.
pub struct Columns {
    pub kind: Kind,
    pub inputs: usize,
    tiles: Vec<Tile>,
    /// Of integers: what each output's are multiplied by.
    pub scales: Vec<f32>,
}

impl Columns {
    /// From the elements of `[in, out]`.
    pub fn pack(kind: Kind, weight: &[f32], inputs: usize, outputs: usize) -> Self {
        let scales = match kind {
            Kind::Integers => {
                let mut most = vec![0f32; outputs];
                weight.chunks_exact(outputs).for_each(|row| {
                    most.iter_mut().zip(row).for_each(|(most, x)| *most = most.max(x.abs()));
                });
                most.into_iter().map(|most| most / 127.0).collect()
            }
            _ => Vec::new(),
        };
        let per_panel = kind.steps(inputs) * 2 * kind.planes().1;
        let mut tiles = vec![Tile([0; TILE]); outputs.div_ceil(2 * WIDTH) * per_panel];
        tiles.par_chunks_exact_mut(per_panel).enumerate().for_each(|(panel, tiles)| {
            let columns = panel * 2 * WIDTH..outputs.min((panel + 1) * 2 * WIDTH);
            for input in 0..inputs {
                for output in columns.clone() {
                    let x = weight[input * outputs + output];
                    place(kind, tiles, input, output - columns.start, x, scales.get(output));
                }
            }
        });
        Self { kind, inputs, tiles, scales }
    }

    /// All tiles of 32 outputs.
    pub fn panel(&self, panel: usize) -> &[Tile] {
        let per_panel = self.kind.steps(self.inputs) * 2 * self.kind.planes().1;
        &self.tiles[panel * per_panel..(panel + 1) * per_panel]
    }

    /// The number at a place, as it is in a product.
    pub fn get(&self, input: usize, output: usize) -> f32 {
        let tiles = self.panel(output / (2 * WIDTH));
        let (tile, byte) = seat(self.kind, input, output % (2 * WIDTH));
        match self.kind {
            Kind::Integers => f32::from(tiles[tile].0[byte] as i8) * self.scales[output],
            kind => (0..kind.planes().1)
                .map(|plane| {
                    let tile = &tiles[tile + 2 * plane];
                    bf16::from_le_bytes([tile.0[byte], tile.0[byte + 1]]).to_f32()
                })
                .sum(),
        }
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        self.tiles.len() * TILE + self.scales.len() * 4
    }
}

/// The tile of the first plane in a panel, and the byte there, of an input and an output of the panel.
fn seat(kind: Kind, input: usize, output: usize) -> (usize, usize) {
    let (step, input) = (input / kind.depth(), input % kind.depth());
    let (together, size) = if kind == Kind::Integers { (4, 1) } else { (2, 2) };
    let tile = step * 2 * kind.planes().1 + output / WIDTH;
    (tile, input / together * 64 + (output % WIDTH * together + input % together) * size)
}

fn place(kind: Kind, tiles: &mut [Tile], input: usize, output: usize, x: f32, scale: Option<&f32>) {
    let (tile, byte) = seat(kind, input, output);
    if let Some(scale) = scale {
        tiles[tile].0[byte] = nearest(x * if *scale > 0.0 { scale.recip() } else { 0.0 }).clamp(-127, 127) as u8;
        return;
    }
    let mut left = x;
    for plane in 0..kind.planes().1 {
        let high = bf16::from_f32(left);
        tiles[tile + 2 * plane].0[byte..byte + 2].copy_from_slice(&high.to_le_bytes());
        left -= high.to_f32();
    }
}

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

/// What the products of tiles sum up to, by plain loops: `y` as [`amx`](super::amx) would give it, in f32 or i32.
pub fn multiply(kind: Kind, rows: &[&[Tile]], b: &[Tile], y: &mut [[f32; 2 * WIDTH]]) {
    let (a_planes, b_planes) = kind.planes();
    let depth = kind.depth();
    for (place, y) in y.iter_mut().enumerate() {
        let a = rows[place / WIDTH];
        let number = |tiles: &[Tile], plane: usize, at: usize| match kind {
            Kind::Integers => f64::from(tiles[plane].0[at] as i8),
            _ => f64::from(bf16::from_le_bytes([tiles[plane].0[at], tiles[plane].0[at + 1]]).to_f32()),
        };
        for (output, y) in y.iter_mut().enumerate() {
            let mut sum = 0f64;
            for (step, a) in a.chunks_exact(a_planes).enumerate() {
                let b = &b[step * 2 * b_planes..];
                for input in 0..depth {
                    let (tile, byte) = seat(kind, input, output);
                    let at = place % WIDTH * 64 + input * 64 / depth;
                    for i in 0..a_planes {
                        for j in 0..b_planes.min(3 - i) {
                            sum += number(a, i, at) * number(b, tile + 2 * j, byte);
                        }
                    }
                }
            }
            *y = if kind == Kind::Integers { f32::from_bits(sum as i32 as u32) } else { sum as f32 };
        }
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

/// The nearest whole number of one below 2^22.
#[inline(always)]
fn nearest(x: f32) -> i32 {
    // Adding 1.5 * 2^23 rounds.
    const ROUND: f32 = 12_582_912.0;
    ((x + ROUND).to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32)
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
