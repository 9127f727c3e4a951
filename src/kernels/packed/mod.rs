//! Weights as this machine multiplies with them, made once at load: `x W + b`, and what follows it.
//!
//! Where there is a matrix unit ([`amx`]) they lie in its tiles, and its products go to the result through the epilogue
//! while they are in cache. Elsewhere they stay as they are, and the `gemm` crate multiplies.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
mod rows;
mod run;
mod tiles;

use super::activation::Activation;
use super::columns::assign;
use super::product::{product, set_product};
use super::{Gate, activate};
use candle_core::{DType, Result, Tensor};
use run::Tiled;
use std::sync::Arc;
use tiles::{Columns, Kind};

/// How the matrices of a model lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// 32 bits.
    Float32,
    /// The upper 16 of these. Where the machine multiplies them faster, rows are rounded likewise.
    Bfloat16,
    /// 16 bits, of which 10 are the fraction's.
    Float16,
    /// Linear weights in 8 bits, with a scale for every output; rows that are multiplied by them in 15, each with a scale of
    /// its own. Other matrices in f32.
    Int8,
}

impl Format {
    /// That of matrices which are not multiplied.
    pub fn dtype(self) -> DType {
        match self {
            Self::Float32 | Self::Int8 => DType::F32,
            Self::Bfloat16 => DType::BF16,
            Self::Float16 => DType::F16,
        }
    }
}

/// A weight `[in, out]`, or some of its columns. Clones share it.
#[derive(Clone)]
pub struct Packed {
    form: Form,
    first: usize,
    columns: usize,
}

#[derive(Clone)]
enum Form {
    Plain(Tensor),
    Tiles(Arc<Columns>),
}

impl Packed {
    /// A tensor `[in, out]` as it is.
    pub fn plain(weight: Tensor) -> Self {
        Self { first: 0, columns: weight.dims()[1], form: Form::Plain(weight) }
    }

    /// A tensor `[in, out]` in a number format, packed for this machine or, where it has nothing better, as it is.
    pub fn new(weight: Tensor, format: Format) -> Result<Self> {
        match format {
            Format::Float32 if has_tiles(&weight) => Self::tiled(Kind::Exact, &weight),
            Format::Bfloat16 if has_tiles(&weight) => Self::tiled(Kind::Half, &weight),
            Format::Int8 => Self::tiled(Kind::Integers, &weight),
            _ => Ok(Self::plain(weight.to_dtype(format.dtype())?)),
        }
    }

    fn tiled(kind: Kind, weight: &Tensor) -> Result<Self> {
        let (inputs, outputs) = weight.dims2()?;
        let weight = weight.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let columns = Columns::pack(kind, &weight, inputs, outputs);
        Ok(Self { form: Form::Tiles(Arc::new(columns)), first: 0, columns: outputs })
    }

    /// Inputs.
    pub fn inputs(&self) -> usize {
        match &self.form {
            Form::Plain(weight) => weight.dims()[0],
            Form::Tiles(columns) => columns.inputs,
        }
    }

    /// Outputs.
    pub fn outputs(&self) -> usize {
        self.columns
    }

    /// Some of its outputs.
    pub fn columns(&self, first: usize, columns: usize) -> Self {
        assert!(first + columns <= self.columns, "columns of a weight");
        Self { form: self.form.clone(), first: self.first + first, columns }
    }

    /// `[in, out]`, in f32 or as it was given.
    pub fn tensor(&self) -> Result<Tensor> {
        match &self.form {
            Form::Plain(weight) => weight.narrow(1, self.first, self.columns),
            Form::Tiles(tiles) => {
                let outputs = self.first..self.first + self.columns;
                let places = (0..tiles.inputs).flat_map(|input| outputs.clone().map(move |output| (input, output)));
                let elements: Vec<f32> = places.map(|(input, output)| tiles.get(input, output)).collect();
                Tensor::from_vec(elements, (tiles.inputs, self.columns), &candle_core::Device::Cpu)
            }
        }
    }

    /// The tensor that it is, where it is not packed.
    pub fn as_tensor(&self) -> Option<&Tensor> {
        match &self.form {
            Form::Plain(weight) => Some(weight),
            Form::Tiles(_) => None,
        }
    }

    /// Bytes of all its outputs.
    pub fn bytes(&self) -> usize {
        match &self.form {
            Form::Plain(weight) => weight.elem_count() * weight.dtype().size_in_bytes(),
            Form::Tiles(tiles) => tiles.bytes(),
        }
    }

    /// `x [rows, in]` -> `f(x W + b)`, `[rows, out]`, `f` the activation.
    pub fn product(&self, x: &Tensor, bias: Option<&Tensor>, activation: Option<Activation>) -> Result<Tensor> {
        match &self.form {
            Form::Tiles(tiles) => {
                let outputs = self.first..self.first + self.columns;
                x.apply_op1_no_bwd(&Tiled { tiles, outputs, bias, activation })
            }
            Form::Plain(_) => {
                let weight = self.tensor()?;
                let weight = if weight.dtype() == DType::F32 { weight } else { weight.contiguous()? };
                let y = product(x, &weight, bias)?;
                activation.map_or(Ok(y.clone()), |activation| activate(&y, activation, Gate::Absent))
            }
        }
    }

    /// `y = x W` in place; `y [rows, out]` may be a window of a larger tensor. A weight that is not packed must be f32.
    pub fn product_into(&self, y: &Tensor, x: &Tensor) -> Result<()> {
        match &self.form {
            Form::Tiles(_) => assign(y, &self.product(x, None, None)?),
            Form::Plain(_) => set_product(y, x, &self.tensor()?),
        }
    }
}

impl std::fmt::Debug for Packed {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "Packed[{}, {}]", self.inputs(), self.outputs())
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn has_tiles(weight: &Tensor) -> bool {
    weight.device().is_cpu() && amx::is_there()
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn has_tiles(_: &Tensor) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::run::Unit;
    use super::tiles::WIDTH;
    use super::*;
    use candle_core::Device;

    fn random(shape: (usize, usize)) -> Tensor {
        Tensor::randn(0f32, 1.0, shape, &Device::Cpu).unwrap()
    }

    fn difference(a: &Tensor, b: &Tensor) -> f32 {
        (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
    }

    /// Rows and widths that fill no tile, some tiles, and many.
    const SHAPES: [[usize; 3]; 6] =
        [[1, 5, 3], [2, 33, 32], [16, 64, 70], [17, 100, 33], [45, 384, 96], [300, 200, 130]];

    #[test]
    fn f32_loses_no_precision() {
        for [rows, inputs, outputs] in SHAPES {
            let (x, w, b) =
                (random((rows, inputs)), random((inputs, outputs)), random((1, outputs)).squeeze(0).unwrap());
            let exact = x.to_dtype(DType::F64).unwrap().matmul(&w.to_dtype(DType::F64).unwrap()).unwrap();
            let exact = exact.to_dtype(DType::F32).unwrap().broadcast_add(&b).unwrap();
            let tiles = Packed::tiled(Kind::Exact, &w).unwrap();
            let ours = tiles.product(&x, Some(&b), None).unwrap();
            let plain = difference(&product(&x, &w, Some(&b)).unwrap(), &exact);
            assert!(difference(&ours, &exact) <= 2e-6 + 2.0 * plain, "{rows} {inputs} {outputs}");
            assert_eq!(difference(&tiles.tensor().unwrap(), &w), 0.0);
            let active = tiles.product(&x, Some(&b), Some(Activation::Silu)).unwrap();
            assert!(difference(&active, &ours.silu().unwrap()) < 1e-6);
        }
    }

    #[test]
    fn bf16_is_the_product_of_rounded_numbers() {
        let round = |t: &Tensor| t.to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap();
        for [rows, inputs, outputs] in SHAPES {
            let (x, w) = (random((rows, inputs)), random((inputs, outputs)));
            let ours = Packed::tiled(Kind::Half, &w).unwrap().product(&x, None, None).unwrap();
            assert!(difference(&ours, &round(&x).matmul(&round(&w)).unwrap()) < 1e-3, "{rows} {inputs} {outputs}");
        }
    }

    #[test]
    fn integers_are_the_product_with_weights_rounded_to_127ths_of_the_largest() {
        for [rows, inputs, outputs] in SHAPES {
            let (x, w) = (random((rows, inputs)), random((inputs, outputs)));
            let scale = (w.abs().unwrap().max_keepdim(0).unwrap() / 127.0).unwrap();
            let rounded = w.broadcast_div(&scale).unwrap().round().unwrap().broadcast_mul(&scale).unwrap();
            let tiles = Packed::tiled(Kind::Integers, &w).unwrap();
            assert!(difference(&tiles.tensor().unwrap(), &rounded) < 1e-6);
            let ours = tiles.product(&x, None, None).unwrap();
            // Of a row 15 bits are kept.
            let error = difference(&ours, &x.matmul(&rounded).unwrap());
            assert!(error < 2e-2, "{rows} {inputs} {outputs}: {error}");
        }
    }

    #[test]
    fn the_unit_is_the_plain_loops() {
        for kind in [Kind::Exact, Kind::Half, Kind::Integers] {
            let (x, w) = (random((40, 150)), random((150, 64)));
            let elements = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let (x, columns) = (elements(&x), Columns::pack(kind, &elements(&w), 150, 64));
            let mut rows = rows::Rows::default();
            rows.fill(kind, 40, 150, |row| &x[row * 150..(row + 1) * 150]);
            for blocks in [&[0usize, 1][..], &[2]] {
                // Of integers a block's first half is a whole operand.
                let steps = kind.steps(150) * kind.planes().0;
                let blocks: Vec<_> = blocks.iter().map(|block| &rows.block(*block)[..steps]).collect();
                let (mut ours, mut plain) = ([[0f32; 2 * WIDTH]; 2 * WIDTH], [[0f32; 2 * WIDTH]; 2 * WIDTH]);
                Unit::new().multiply(kind, &blocks, columns.panel(1), &mut ours[..blocks.len() * WIDTH]);
                tiles::multiply(kind, &blocks, columns.panel(1), &mut plain[..blocks.len() * WIDTH]);
                for (ours, plain) in ours.iter().flatten().zip(plain.iter().flatten()) {
                    let same = ours.to_bits() == plain.to_bits();
                    assert!(same || kind != Kind::Integers && (ours - plain).abs() < 1e-4, "{kind:?} {ours} {plain}");
                }
            }
        }
    }

    #[test]
    fn some_columns_are_those_of_the_whole() {
        let (x, w, b) = (random((20, 40)), random((40, 100)), random((1, 30)).squeeze(0).unwrap());
        for packed in [Packed::plain(w.clone()), Packed::tiled(Kind::Exact, &w).unwrap()] {
            let some = packed.columns(7, 90).columns(10, 30);
            let plain = x.matmul(&w.narrow(1, 17, 30).unwrap().contiguous().unwrap()).unwrap();
            let y = random((25, 60));
            some.product_into(&y.narrow(0, 5, 20).unwrap().narrow(1, 3, 30).unwrap(), &x).unwrap();
            let window = y.narrow(0, 5, 20).unwrap().narrow(1, 3, 30).unwrap();
            assert!(difference(&window, &plain) < 1e-4);
            let plain = plain.broadcast_add(&b).unwrap();
            assert!(difference(&some.product(&x, Some(&b), None).unwrap(), &plain) < 1e-4);
        }
    }

    #[test]
    fn a_row_does_not_depend_on_how_many_go_with_it() {
        let (x, w) = (random((200, 384)), random((384, 96)));
        for kind in [Kind::Exact, Kind::Half, Kind::Integers] {
            let tiles = Packed::tiled(kind, &w).unwrap();
            let together = tiles.product(&x, None, None).unwrap();
            for rows in [1, 7, 30, 64] {
                let alone = tiles.product(&x.narrow(0, 100, rows).unwrap(), None, None).unwrap();
                assert_eq!(difference(&alone, &together.narrow(0, 100, rows).unwrap()), 0.0, "{kind:?} {rows}");
            }
        }
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        let w = random((40, 8));
        for x in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut row = vec![0.5f32; 40];
            row[3] = x;
            let row = Tensor::from_vec(row, (1, 40), &Device::Cpu).unwrap();
            for kind in [Kind::Exact, Kind::Half, Kind::Integers] {
                let y = Packed::tiled(kind, &w).unwrap().product(&row, None, None).unwrap();
                assert!(y.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().all(|y| !y.is_finite()), "{kind:?}");
            }
        }
        let nothing = Packed::tiled(Kind::Exact, &w).unwrap().product(&random((0, 40)), None, None).unwrap();
        assert_eq!(nothing.dims(), [0, 8]);
    }
}
