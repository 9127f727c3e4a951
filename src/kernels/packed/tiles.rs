//! How matrices lie for a matrix unit: in tiles of 16 rows of 64 bytes.
//!
//! A number of f32 is the sum of three of bf16, its planes, each with the 8 highest bits that those before it left
//! (arXiv:1904.06376). The products of planes are exact in f32, and all but the smallest three are summed up.

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

/// The nearest whole number of one below 2^22.
#[inline(always)]
pub fn nearest(x: f32) -> i32 {
    // Adding 1.5 * 2^23 rounds.
    const ROUND: f32 = 12_582_912.0;
    ((x + ROUND).to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32)
}
