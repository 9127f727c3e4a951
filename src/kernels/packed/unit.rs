//! What multiplies tiles on this machine.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use super::amx;
use super::rows::Block;
use super::tiles::{Kind, PANEL, Sums, TILE, Tile, WIDTH};
use super::{Format, plain};
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};

/// A unit, for the calling thread.
pub enum Unit {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    Amx(amx::Tiles),
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Plain,
}

impl Unit {
    /// The fastest that there is.
    pub fn new() -> Self {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if amx::is_there() {
            return Self::Amx(amx::Tiles::new());
        }
        #[cfg(target_arch = "x86_64")]
        if avx512::is_there() {
            return Self::Avx512;
        } else if avx2::is_there() {
            return Self::Avx2;
        }
        Self::Plain
    }

    /// The numbers by which it multiplies with a matrix of a format; none: it leaves that to others.
    pub fn kind(&self, format: Format) -> Option<Kind> {
        match (format, self) {
            (Format::Int8, _) => Some(Kind::Integers),
            (Format::Float16, _) | (_, Self::Plain) => None,
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            (Format::Bfloat16, Self::Amx(_)) => Some(Kind::Half),
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            (Format::Float32, Self::Amx(_)) => Some(Kind::Planes),
            #[cfg(target_arch = "x86_64")]
            (Format::Bfloat16, Self::Avx512) if avx512::multiplies_bf16_fast() => Some(Kind::Half),
            #[cfg(target_arch = "x86_64")]
            (Format::Bfloat16, _) => Some(Kind::Widened),
            #[cfg(target_arch = "x86_64")]
            (Format::Float32, _) => Some(Kind::Single),
            #[cfg(not(target_arch = "x86_64"))]
            _ => None,
        }
    }

    /// `y = rows columns`: the first `count` of some blocks of rows times a panel of columns. The panel holds a pair of tiles
    /// after the other along the inputs, a block that is laid out a tile; of several planes those of one place together. What
    /// `y` has behind these rows is left in any state.
    ///
    /// # Panics
    /// Where lengths do not fit, or the unit has no such kind.
    pub fn multiply(&self, kind: Kind, rows: &[Block], count: usize, columns: &[Tile], y: &mut [Sums]) {
        assert!(
            (1..=2).contains(&rows.len()) && y.len() == rows.len() * WIDTH && count <= y.len(),
            "a row of sums for every row"
        );
        let by_block = rows.iter().zip(y.chunks_exact_mut(WIDTH)).enumerate();
        let counted =
            by_block.map(|(block, (rows, y))| (*rows, &mut y[..count.saturating_sub(block * WIDTH).min(WIDTH)]));
        match self {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Self::Amx(tiles) => {
                let both = [rows[0].tiles(), rows[rows.len() - 1].tiles()];
                tiles.multiply(kind, &both[..rows.len()], columns, y);
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => counted.for_each(|(rows, y)| avx512::multiply(kind, rows, columns, y)),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => counted.for_each(|(rows, y)| avx2::multiply(kind, rows, columns, y)),
            Self::Plain => counted.for_each(|(rows, y)| plain::multiply(rows.tiles(), columns, y)),
        }
    }
}

/// A block of rows, a panel of columns and their sums, by the first bytes of each; how many pairs of tiles there are.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub struct Task {
    pub rows: *const u8,
    /// Bytes from a row to the next, and from what of it is multiplied by a pair of tiles to what is by the next.
    pub row: usize,
    pub step: usize,
    pub columns: *const u8,
    pub steps: usize,
    pub y: *mut f32,
}

/// What runs a task of so many rows, where the machine has its instructions.
#[cfg(target_arch = "x86_64")]
pub type Kernel = unsafe fn(Task, usize);

#[cfg(target_arch = "x86_64")]
impl Task {
    /// One of as many rows as there are sums.
    ///
    /// # Panics
    /// Where lengths do not fit.
    pub fn new(kind: Kind, rows: Block, columns: &[Tile], y: &mut [Sums]) -> (Self, usize) {
        let (steps, count) = (columns.len() / 2, y.len());
        let (rows, row, step) = match rows {
            Block::Tiles(tiles) => {
                let has_tiles = kind != Kind::Widened && tiles.len() == steps;
                assert!(has_tiles && count <= WIDTH, "a block of rows and a panel of columns");
                (tiles.as_ptr().cast(), TILE / WIDTH, TILE)
            }
            Block::Plain(numbers, stride) => {
                let reach = count.saturating_sub(1) * stride + steps * kind.depth();
                assert!(kind.has_plain_rows() && (count == 0 || reach <= numbers.len()), "rows as a panel's columns");
                (numbers.as_ptr().cast(), size_of::<f32>() * stride, size_of::<f32>() * kind.depth())
            }
        };
        (Self { rows, row, step, columns: columns.as_ptr().cast(), steps, y: y.as_mut_ptr().cast() }, count)
    }

    /// The same from a row on, and from a vector of 16 columns on.
    pub fn at(self, row: usize, vector: usize) -> Self {
        Self {
            rows: self.rows.wrapping_add(row * self.row),
            columns: self.columns.wrapping_add(vector * TILE),
            y: self.y.wrapping_add(row * PANEL + vector * WIDTH),
            ..self
        }
    }
}
