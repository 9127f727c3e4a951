//! How matrices lie for the units that multiply them: in tiles of 16 rows of 64 bytes.
//!
//! A number of f32 is the sum of three of bf16, its planes, each with the 8 highest bits that those before it left
//! (arXiv:1904.06376). The products of planes are exact in f32, and all but the smallest three are summed up.

use super::memory::{Memory, Part};
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

/// Columns that are multiplied at once.
pub const PANEL: usize = 2 * WIDTH;

/// What a row sums up to over a panel: f32, or the bits of i32.
pub type Sums = [f32; PANEL];

/// What numbers a product is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// f32 as it is.
    Single,
    /// Three planes of either side: all the precision of f32 from a unit that multiplies bf16.
    Planes,
    /// One plane of either side: numbers of bf16.
    Half,
    /// The same numbers, but of the rows as f32: what has no fast products of bf16 widens a weight once for several rows.
    Widened,
    /// 8 bits: of the weight with a sign, and a scale for every column; of the rows without, and a scale and the lowest
    /// number for every row.
    Integers,
}

impl Kind {
    /// Tiles that a place takes.
    pub fn planes(self) -> usize {
        if self == Self::Planes { 3 } else { 1 }
    }

    /// Inputs that stand together in 4 bytes.
    fn together(self) -> usize {
        match self {
            Self::Single => 1,
            Self::Planes | Self::Half | Self::Widened => 2,
            Self::Integers => 4,
        }
    }

    /// Whether it takes rows as f32, one behind the other.
    #[cfg(target_arch = "x86_64")]
    pub fn has_plain_rows(self) -> bool {
        matches!(self, Self::Single | Self::Widened)
    }

    /// Inputs that a tile covers.
    pub fn depth(self) -> usize {
        WIDTH * self.together()
    }

    /// Tiles of 16 columns, or of 16 rows that are laid out in tiles, of so many inputs.
    pub fn tiles(self, inputs: usize) -> usize {
        inputs.div_ceil(self.depth()) * self.planes()
    }

    /// Bytes of 16 rows of so many inputs.
    pub fn block_bytes(self, inputs: usize) -> usize {
        let wider = if self == Self::Widened { 2 } else { 1 };
        self.tiles(inputs) * TILE * wider
    }
}

/// A weight `[in, out]`: for every panel of outputs, along the inputs, for every plane, two tiles. A tile has a row for
/// every 4 bytes of inputs, in which they stand output by output. What is not there is 0.
pub struct Columns {
    pub kind: Kind,
    pub inputs: usize,
    tiles: Part,
    /// Of integers: what each output's are multiplied by.
    pub scales: Vec<f32>,
    /// Of integers: the sum of each output's, so multiplied.
    pub sums: Vec<f32>,
}

impl Columns {
    /// From the elements of `[in, out]`.
    pub fn pack(kind: Kind, weight: &[f32], inputs: usize, memory: &mut Memory) -> std::io::Result<Self> {
        let outputs = weight.len() / inputs.max(1);
        let scales = if kind == Kind::Integers { scales(weight, outputs) } else { Vec::new() };
        let per_panel = 2 * kind.tiles(inputs);
        let fill = |tiles: &mut [Tile]| {
            tiles.par_chunks_exact_mut(per_panel.max(1)).enumerate().for_each(|(panel, tiles)| {
                let columns = panel * PANEL..outputs.min((panel + 1) * PANEL);
                for input in 0..inputs {
                    for output in columns.clone() {
                        let x = weight[input * outputs + output];
                        place(kind, tiles, input, output - columns.start, x, scales.get(output));
                    }
                }
            });
        };
        let tiles = memory.take(outputs.div_ceil(PANEL) * per_panel, fill)?;
        let mut columns = Self { kind, inputs, tiles, scales, sums: Vec::new() };
        let sum = |output| (0..inputs).map(|input| columns.get(input, output)).sum();
        columns.sums = (0..columns.scales.len()).into_par_iter().map(sum).collect();
        Ok(columns)
    }

    /// All tiles of a panel of outputs.
    pub fn panel(&self, panel: usize) -> &[Tile] {
        let per_panel = 2 * self.kind.tiles(self.inputs);
        &self.tiles[panel * per_panel..(panel + 1) * per_panel]
    }

    /// The number at a place, as it is in a product.
    pub fn get(&self, input: usize, output: usize) -> f32 {
        let tiles = self.panel(output / PANEL);
        let (tile, byte) = seat(self.kind, input, output % PANEL);
        let number = |plane: usize| number(self.kind, &tiles[tile + 2 * plane].0[byte..]);
        let whole: f32 = (0..self.kind.planes()).map(number).sum();
        whole * self.scales.get(output).unwrap_or(&1.0)
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        self.tiles.len() * TILE + 4 * (self.scales.len() + self.sums.len())
    }
}

/// For every output what makes its largest number 127.
fn scales(weight: &[f32], outputs: usize) -> Vec<f32> {
    let mut most = vec![0f32; outputs];
    for row in weight.chunks_exact(outputs) {
        // What is not finite must stay so, which `max` would not have it.
        most.iter_mut()
            .zip(row)
            .filter(|(most, x)| x.is_nan() || x.abs() > **most)
            .for_each(|(most, x)| *most = x.abs());
    }
    most.into_iter().map(|most| most / 127.0).collect()
}

/// The number that starts some bytes of a weight.
pub fn number(kind: Kind, bytes: &[u8]) -> f32 {
    match kind {
        Kind::Single => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
        Kind::Planes | Kind::Half | Kind::Widened => bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
        Kind::Integers => f32::from(bytes[0] as i8),
    }
}

/// The tile of the first plane in a panel, and the byte there, of an input and an output of the panel.
pub fn seat(kind: Kind, input: usize, output: usize) -> (usize, usize) {
    let (step, input) = (input / kind.depth(), input % kind.depth());
    let (together, size) = (kind.together(), 4 / kind.together());
    let tile = step * 2 * kind.planes() + output / WIDTH;
    (tile, input / together * 64 + output % WIDTH * 4 + input % together * size)
}

fn place(kind: Kind, tiles: &mut [Tile], input: usize, output: usize, x: f32, scale: Option<&f32>) {
    let (tile, byte) = seat(kind, input, output);
    match (kind, scale) {
        (Kind::Single, _) => tiles[tile].0[byte..byte + 4].copy_from_slice(&x.to_le_bytes()),
        (Kind::Integers, Some(scale)) if *scale > 0.0 => {
            tiles[tile].0[byte] = nearest(x / scale).clamp(-127, 127) as u8;
        }
        (Kind::Integers, _) => {}
        (Kind::Planes | Kind::Half | Kind::Widened, _) => {
            let mut left = x;
            for plane in 0..kind.planes() {
                let high = bf16::from_f32(left);
                tiles[tile + 2 * plane].0[byte..byte + 2].copy_from_slice(&high.to_le_bytes());
                left -= high.to_f32();
            }
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
