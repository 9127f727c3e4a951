//! Weights as this machine multiplies with them, made once at load: `x W + b`, and what follows it.
//!
//! They lie in tiles, which a matrix unit ([`amx`]) or vectors ([`avx512`], [`avx2`]) multiply; what these sum up goes to
//! the result through the epilogue while it is in cache. On other machines, and in f16, they stay as they are, and the
//! `gemm` crate multiplies.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod memory;
mod plain;
mod rows;
mod run;
mod tiles;
mod unit;
mod update;
#[cfg(target_arch = "x86_64")]
mod vectors;

use super::activation::{Activation, Active, Gate};
use super::cuda;
use super::device::Device;
use super::small;
use super::tensor::Tensor;
use super::twins::{activated, assign, operand, project, project_apart, set_product};
use super::updates::Updates;
use crate::error::Result;
use candle_core::DType;
pub use memory::Memory;
pub(super) use rows::rounded;
use run::Tiled;
use std::ops::Range;
use std::sync::Arc;
use tiles::{Columns, Kind};
use unit::Unit;
pub use update::Update;

/// Inputs whose products of integers cannot overflow: 255 * 127 * inputs < 2^31.
const INPUTS_MAX: usize = 66_000;

/// How the matrices of a model lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// 32 bits.
    Float32,
    /// The upper 16 of these; rows that are multiplied by linear weights are rounded likewise.
    Bfloat16,
    /// 16 bits, of which 10 are the fraction's.
    Float16,
    /// Linear weights in 8 bits, with a scale for every output; rows that are multiplied by them likewise, each with a scale
    /// and a lowest number of its own. Other matrices in f32.
    Int8,
}

impl Format {
    /// Whether what its linear weights multiply is rounded, and so is what attention does.
    pub fn rounds(self) -> bool {
        matches!(self, Self::Bfloat16 | Self::Int8)
    }

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
    pub fn plain(weight: impl Into<Tensor>) -> Self {
        let weight = weight.into();
        Self { first: 0, columns: weight.dims()[1], form: Form::Plain(weight) }
    }

    /// A host's tensor `[in, out]` in a number format, packed for this machine or, where it has nothing better, as it is.
    pub fn new(weight: &candle_core::Tensor, format: Format, memory: &mut Memory) -> Result<Self> {
        match Unit::new().kind(format).filter(|_| weight.dims()[0] <= INPUTS_MAX) {
            Some(kind) => Self::tiled(kind, weight, memory),
            None => Ok(Self::plain(weight.to_dtype(format.dtype())?)),
        }
    }

    /// A host's tensor `[in, out]` on a device: packed, see [`Packed::new`], or in a GPU's memory.
    pub fn on(device: &Device, weight: &candle_core::Tensor, format: Format, memory: &mut Memory) -> Result<Self> {
        match device {
            Device::Cpu => Self::new(weight, format, memory),
            Device::Gpu(_) => Ok(Self::plain(device.place_weight(weight, format.dtype())?)),
        }
    }

    /// The same there, in `dtype` where it has to be moved.
    pub fn placed(&self, device: &Device, dtype: DType) -> Result<Self> {
        match (device, &self.form) {
            (Device::Cpu, _) | (_, Form::Plain(Tensor::Gpu(_))) => Ok(self.clone()),
            _ => Ok(Self::plain(device.place_weight(&self.tensor()?, dtype)?)),
        }
    }

    fn tiled(kind: Kind, weight: &candle_core::Tensor, memory: &mut Memory) -> Result<Self> {
        let (inputs, outputs) = weight.dims2()?;
        let weight = weight.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let columns = Columns::pack(kind, &weight, inputs, memory).map_err(candle_core::Error::from)?;
        Ok(Self { form: Form::Tiles(Arc::new(columns)), first: 0, columns: outputs })
    }

    /// `x` as its products take it, so that several of them need not round it each.
    pub fn operand(&self, x: &Tensor) -> Result<Tensor> {
        match &self.form {
            Form::Plain(weight) => operand(x, weight.dtype()),
            Form::Tiles(_) => Ok(x.clone()),
        }
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

    /// `[in, out]` on the host, in f32 or as it was given.
    pub fn tensor(&self) -> Result<candle_core::Tensor> {
        match &self.form {
            Form::Plain(_) => self.narrowed()?.to_host(),
            Form::Tiles(tiles) => {
                let outputs = self.first..self.first + self.columns;
                let places = (0..tiles.inputs).flat_map(|input| outputs.clone().map(move |output| (input, output)));
                let elements: Vec<f32> = places.map(|(input, output)| tiles.get(input, output)).collect();
                let shape = (tiles.inputs, self.columns);
                Ok(candle_core::Tensor::from_vec(elements, shape, &candle_core::Device::Cpu)?)
            }
        }
    }

    /// What its numbers are, where it is not packed.
    pub fn dtype(&self) -> Option<DType> {
        self.as_tensor().map(Tensor::dtype)
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
            Form::Plain(weight) => weight.bytes(),
            Form::Tiles(tiles) => tiles.bytes(),
        }
    }

    /// `x [rows, in]` -> `f(x W + b)`, `[rows, out]`, `f` the activation.
    pub fn product(&self, x: &Tensor, bias: Option<&Tensor>, activation: Option<Activation>) -> Result<Tensor> {
        self.updated_product(x, bias, &Updates::none(), activation.map(Active::plain))
    }

    /// The same with updates before the activation, which may gate.
    pub fn updated_product(
        &self,
        x: &Tensor,
        bias: Option<&Tensor>,
        updates: &Updates,
        active: Option<Active>,
    ) -> Result<Tensor> {
        let Form::Tiles(tiles) = &self.form else {
            return project(x, &self.narrowed()?, bias, updates, active);
        };
        let outputs = self.first..self.first + self.columns;
        let (x, bias) = (x.cpu()?, bias.map(Tensor::cpu).transpose()?);
        let multiplied = |updates: &[Update], activation: Option<Activation>| -> Result<Tensor> {
            let outputs = outputs.clone();
            Ok(x.apply_op1_no_bwd(&Tiled { tiles, outputs, bias, updates, activation })?.into())
        };
        let is_gated = |active: &Active| active.gate != Gate::Absent;
        match updates.each().filter(|updates| updates.is_empty() || small::has_kernel()) {
            Some(updates) => {
                let within = active.filter(|active| !is_gated(active)).map(|active| active.activation);
                activated(multiplied(updates, within)?, active.filter(is_gated))
            }
            None => {
                let y = multiplied(&[], None)?;
                updates.add_to(&y)?;
                activated(y, active)
            }
        }
    }

    /// Whether its products make an activation, on a GPU, of sums that they have not rounded. Then rows that something changes
    /// before are activated apart, whatever shares their batch, see [`Packed::product_apart`].
    pub fn activates(&self, active: Active) -> bool {
        matches!(&self.form, Form::Plain(Tensor::Gpu(weight)) if cuda::activates(weight, active))
    }

    /// `x [rows, in]` -> `f(x W + b)`, `[rows, out]`, but that some rows, in order, are `x W + b`; where it
    /// [activates](Packed::activates).
    pub fn product_apart(
        &self,
        x: &Tensor,
        bias: Option<&Tensor>,
        active: Active,
        apart: &[Range<usize>],
    ) -> Result<Tensor> {
        project_apart(x, &self.narrowed()?, bias, active, apart)
    }

    /// What is plain, as it multiplies: on the CPU a weight in half precision must be dense.
    fn narrowed(&self) -> Result<Tensor> {
        match &self.form {
            Form::Plain(Tensor::Cpu(weight)) => {
                let weight = weight.narrow(1, self.first, self.columns)?;
                Ok(if weight.dtype() == DType::F32 { weight } else { weight.contiguous()? }.into())
            }
            Form::Plain(weight) => weight.narrow(1, self.first, self.columns),
            Form::Tiles(_) => Ok(self.tensor()?.into()),
        }
    }

    /// `y = x W` in place; `y [rows, out]` may be a window of a larger tensor. A weight that is not packed must be f32.
    pub fn product_into(&self, y: &Tensor, x: &Tensor) -> Result<()> {
        match &self.form {
            Form::Tiles(_) => assign(y, &self.product(x, None, None)?),
            Form::Plain(_) => set_product(y, x, &self.narrowed()?),
        }
    }
}

impl std::fmt::Debug for Packed {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "Packed[{}, {}]", self.inputs(), self.outputs())
    }
}

#[cfg(test)]
mod tests {
    use super::rows::{Block, Rows};
    use super::tiles::{PANEL, Sums, Tile, WIDTH, number, seat};
    use super::*;
    use crate::kernels::product::product;
    use crate::kernels::sample::normal;
    use candle_core::{Device, Tensor};
    use half::bf16;

    fn random(shape: (usize, usize)) -> Tensor {
        normal(1.0, shape)
    }

    fn difference(a: &Tensor, b: &Tensor) -> f32 {
        (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
    }

    fn elements(t: &Tensor) -> Vec<f32> {
        t.flatten_all().unwrap().to_vec1().unwrap()
    }

    fn packed(weight: &Tensor, format: Format) -> Result<Packed> {
        Packed::new(weight, format, &mut Memory::default())
    }

    /// `f(x W + b)` of tensors of the CPU.
    fn multiplied(packed: &Packed, x: &Tensor, bias: Option<&Tensor>, activation: Option<Activation>) -> Tensor {
        updated(packed, x, bias, &Updates::none(), activation)
    }

    fn updated(
        packed: &Packed,
        x: &Tensor,
        bias: Option<&Tensor>,
        updates: &Updates,
        activation: Option<Activation>,
    ) -> Tensor {
        let bias = bias.map(|bias| bias.clone().into());
        let y =
            packed.updated_product(&x.clone().into(), bias.as_ref(), updates, activation.map(Active::plain)).unwrap();
        y.cpu().unwrap().clone()
    }

    const FORMATS: [Format; 3] = [Format::Float32, Format::Bfloat16, Format::Int8];

    /// Rows and widths that fill no tile, some tiles, and many.
    const SHAPES: [[usize; 3]; 7] =
        [[1, 5, 3], [2, 33, 32], [16, 64, 70], [17, 100, 33], [45, 384, 96], [35, 1020, 40], [300, 200, 130]];

    /// What a unit's tiles sum up to, by plain loops.
    fn twin(kind: Kind, rows: Block, columns: &[Tile], y: &mut [Sums]) {
        let (planes, depth) = (kind.planes(), kind.depth());
        let row_number = |place: usize, input: usize, plane: usize| match rows {
            Block::Plain(numbers, stride) => numbers[place * stride + input],
            Block::Tiles(tiles) => {
                let (Tile(tile), at) =
                    (&tiles[input / depth * planes + plane], place * 64 + input % depth * 64 / depth);
                match kind {
                    Kind::Single | Kind::Widened => f32::from_le_bytes(tile[at..at + 4].try_into().unwrap()),
                    Kind::Planes | Kind::Half => bf16::from_le_bytes([tile[at], tile[at + 1]]).to_f32(),
                    Kind::Integers => f32::from(tile[at]),
                }
            }
        };
        for (place, y) in y.iter_mut().enumerate() {
            for (output, y) in y.iter_mut().enumerate() {
                let mut sum = 0f64;
                for input in 0..columns.len() / 2 / planes * depth {
                    let (tile, byte) = seat(kind, input, output);
                    for i in 0..planes {
                        for j in 0..planes - i {
                            let column = number(kind, &columns[tile + 2 * j].0[byte..]);
                            sum += f64::from(row_number(place, input, i)) * f64::from(column);
                        }
                    }
                }
                *y = if kind == Kind::Integers { f32::from_bits(sum as i32 as u32) } else { sum as f32 };
            }
        }
    }

    fn laid_out(kind: Kind, x: &Tensor, w: &Tensor) -> (Rows, Columns) {
        let (count, inputs) = x.dims2().unwrap();
        let (x, mut rows) = (elements(x), Rows::default());
        rows.fill(kind, count, inputs, |row| &x[row * inputs..(row + 1) * inputs]);
        (rows, Columns::pack(kind, &elements(w), inputs, &mut Memory::default()).unwrap())
    }

    /// Holds what multiplies a block of rows to the plain loops, for every number of rows.
    pub fn check_unit(kind: Kind, multiply: impl Fn(Block, &[Tile], &mut [Sums])) {
        let (rows, columns) = laid_out(kind, &random((40, 150)), &random((150, 64)));
        for count in 1..=WIDTH {
            let (mut ours, mut plain) = ([[7f32; PANEL]; WIDTH], [[7f32; PANEL]; WIDTH]);
            multiply(rows.block(1), columns.panel(1), &mut ours[..count]);
            twin(kind, rows.block(1), columns.panel(1), &mut plain[..count]);
            for (ours, plain) in ours.as_flattened().iter().zip(plain.as_flattened()) {
                let same = ours.to_bits() == plain.to_bits();
                assert!(same || kind != Kind::Integers && (ours - plain).abs() < 1e-4, "{kind:?} {ours} {plain}");
            }
        }
    }

    #[test]
    fn tiles_hold_the_numbers_of_every_kind() {
        for kind in [Kind::Single, Kind::Planes, Kind::Half, Kind::Widened, Kind::Integers] {
            let (x, w) = (random((16, 150)), random((150, 32)));
            let (rows, columns) = laid_out(kind, &x, &w);
            let mut sums = [[0f32; PANEL]; WIDTH];
            twin(kind, rows.block(0), columns.panel(0), &mut sums);
            if kind == Kind::Integers {
                for (sums, span) in sums.iter_mut().zip(&rows.spans) {
                    for (output, sum) in sums.iter_mut().enumerate() {
                        let whole = sum.to_bits() as i32 as f32;
                        *sum = whole * span.scale * columns.scales[output] + span.lowest * columns.sums[output];
                    }
                }
            }
            let exact = elements(&x.matmul(&w).unwrap());
            let gap = exact.iter().zip(sums.as_flattened()).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            let allowed = match kind {
                Kind::Single | Kind::Planes => 1e-4,
                Kind::Half | Kind::Widened | Kind::Integers => 0.5,
            };
            assert!(gap < allowed, "{kind:?}: {gap}");
        }
    }

    #[test]
    fn this_machines_unit_is_the_plain_loops() {
        for kind in FORMATS.into_iter().filter_map(|format| Unit::new().kind(format)) {
            check_unit(kind, |rows, columns, y| {
                let mut all = [[0f32; PANEL]; 2 * WIDTH];
                Unit::new().multiply(kind, &[rows, rows], WIDTH + y.len(), columns, &mut all);
                y.copy_from_slice(&all[WIDTH..WIDTH + y.len()]);
            });
            check_unit(kind, |rows, columns, y| {
                let mut all = [[0f32; PANEL]; WIDTH];
                Unit::new().multiply(kind, &[rows], y.len(), columns, &mut all);
                y.copy_from_slice(&all[..y.len()]);
            });
        }
        check_unit(Kind::Integers, |rows, columns, y| plain::multiply(rows.tiles(), columns, y));
    }

    #[test]
    fn rows_where_they_are_give_what_tiles_of_them_do() {
        if Unit::new().kind(Format::Float32) != Some(Kind::Single) {
            return println!("skipped: rows of f32 are laid out");
        }
        let x = random((40, 160));
        let (rows, columns) = laid_out(Kind::Single, &x, &random((160, 32)));
        let x = elements(&x);
        for count in 1..=WIDTH {
            let product = |block| {
                let mut y = [[7f32; PANEL]; WIDTH];
                Unit::new().multiply(Kind::Single, &[block], count, columns.panel(0), &mut y);
                y
            };
            let plain = Block::Plain(&x[WIDTH * 160..], 160);
            assert_eq!(product(plain)[..count], product(rows.block(1))[..count], "{count} rows");
        }
    }

    #[test]
    fn f32_loses_no_precision() {
        for [rows, inputs, outputs] in SHAPES {
            let (x, w, b) =
                (random((rows, inputs)), random((inputs, outputs)), random((1, outputs)).squeeze(0).unwrap());
            let exact = x.to_dtype(DType::F64).unwrap().matmul(&w.to_dtype(DType::F64).unwrap()).unwrap();
            let exact = exact.to_dtype(DType::F32).unwrap().broadcast_add(&b).unwrap();
            let packed = packed(&w, Format::Float32).unwrap();
            let ours = multiplied(&packed, &x, Some(&b), None);
            let plain = difference(&product(&x, &w, Some(&b)).unwrap(), &exact);
            assert!(difference(&ours, &exact) <= 2e-6 + 2.0 * plain, "{rows} {inputs} {outputs}");
            assert_eq!(difference(&packed.tensor().unwrap(), &w), 0.0);
            let active = multiplied(&packed, &x, Some(&b), Some(Activation::Silu));
            assert!(difference(&active, &ours.silu().unwrap()) < 1e-6);
        }
    }

    #[test]
    fn bf16_is_the_product_of_rounded_numbers() {
        let round = |t: &Tensor| t.to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap();
        for [rows, inputs, outputs] in SHAPES {
            let (x, w) = (random((rows, inputs)), random((inputs, outputs)));
            let ours = multiplied(&packed(&w, Format::Bfloat16).unwrap(), &x, None, None);
            // Where no unit has it, weights alone are rounded.
            let x = if Unit::new().kind(Format::Bfloat16).is_some() { round(&x) } else { x };
            assert!(difference(&ours, &x.matmul(&round(&w)).unwrap()) < 1e-3, "{rows} {inputs} {outputs}");
        }
    }

    /// By vectors, also where this machine has something better.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn widened_weights_give_products_of_rounded_numbers_whatever_was_multiplied_before() {
        if !matches!(Unit::new(), Unit::Avx512 | Unit::Avx2) {
            return println!("skipped: another unit multiplies");
        }
        let round = |t: &Tensor| t.to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap();
        for [rows, inputs, outputs] in SHAPES.into_iter().chain(SHAPES.into_iter().rev()) {
            let (x, w) = (random((rows, inputs)), random((inputs, outputs)));
            let widened = Packed::tiled(Kind::Widened, &w, &mut Memory::default()).unwrap();
            let exact = round(&x).matmul(&round(&w)).unwrap();
            let last = outputs.min(3);
            let ours = multiplied(&widened.columns(outputs - last, last), &x, None, None);
            assert!(
                difference(&ours, &exact.narrow(1, outputs - last, last).unwrap()) < 1e-3,
                "{rows} {inputs} {outputs}"
            );
            assert!(difference(&multiplied(&widened, &x, None, None), &exact) < 1e-3, "{rows} {inputs} {outputs}");
            // Leaves rows of another kind where those of the next product come.
            multiplied(&packed(&w, Format::Int8).unwrap(), &x, None, None);
        }
    }

    #[test]
    fn integers_are_the_product_with_weights_rounded_to_127ths_of_the_largest() {
        for [rows, inputs, outputs] in SHAPES {
            let (x, w) = (random((rows, inputs)), random((inputs, outputs)));
            let scale = (w.abs().unwrap().max_keepdim(0).unwrap() / 127.0).unwrap();
            let packed = packed(&w, Format::Int8).unwrap();
            let stored = packed.tensor().unwrap();
            // Whole 127ths, the nearest ones.
            let steps = stored.broadcast_div(&scale).unwrap();
            assert!(difference(&steps, &steps.round().unwrap()) < 1e-4, "{rows} {inputs} {outputs}");
            assert!(difference(&steps, &w.broadcast_div(&scale).unwrap()) < 0.5001, "{rows} {inputs} {outputs}");
            let ours = multiplied(&packed, &x, None, None);
            // Of a row 255ths of its span are kept: each number is off by half of one at most.
            let span = (x.max_keepdim(1).unwrap() - x.min_keepdim(1).unwrap()).unwrap();
            let half = elements(&span).into_iter().fold(0f32, f32::max) / 510.0;
            let weight = elements(&stored.abs().unwrap().sum(0).unwrap()).into_iter().fold(0f32, f32::max);
            let error = difference(&ours, &x.matmul(&stored).unwrap());
            assert!(error < 1.001 * half * weight + 1e-4, "{rows} {inputs} {outputs}: {error}");
        }
    }

    #[test]
    fn some_columns_are_those_of_the_whole() {
        let (x, w, b) = (random((20, 40)), random((40, 100)), random((1, 30)).squeeze(0).unwrap());
        for packed in [Packed::plain(w.clone()), packed(&w, Format::Float32).unwrap()] {
            let some = packed.columns(7, 90).columns(10, 30);
            let plain = x.matmul(&w.narrow(1, 17, 30).unwrap().contiguous().unwrap()).unwrap();
            let y = random((25, 60));
            some.product_into(&y.narrow(0, 5, 20).unwrap().narrow(1, 3, 30).unwrap().into(), &x.clone().into())
                .unwrap();
            let window = y.narrow(0, 5, 20).unwrap().narrow(1, 3, 30).unwrap();
            assert!(difference(&window, &plain) < 1e-4);
            let plain = plain.broadcast_add(&b).unwrap();
            assert!(difference(&multiplied(&some, &x, Some(&b), None), &plain) < 1e-4);
        }
    }

    #[test]
    fn updates_are_added_where_they_belong_and_before_the_activation() {
        let (x, w, b) = (random((70, 40)), random((40, 100)), random((1, 100)).squeeze(0).unwrap());
        let update = |rows: std::ops::Range<usize>, outputs: std::ops::Range<usize>, rank| Update {
            left: random((rows.len(), rank)),
            right: random((rank, outputs.len())),
            rows,
            outputs,
        };
        let updates = [update(0..5, 0..100, 3), update(5..64, 20..60, 16), update(30..70, 60..100, 1)];
        for form in [Packed::plain(w.clone()), packed(&w, Format::Float32).unwrap()] {
            let whole = x.matmul(&w).unwrap().broadcast_add(&b).unwrap();
            for (first, columns) in [(0, 100), (7, 80)] {
                let inside =
                    |outputs: &std::ops::Range<usize>| outputs.start.max(first)..outputs.end.min(first + columns);
                let mut plain = whole.narrow(1, first, columns).unwrap();
                let mut ours = Vec::new();
                for Update { rows, outputs, left, right } in &updates {
                    let inside = inside(outputs);
                    let right =
                        right.narrow(1, inside.start - outputs.start, inside.len()).unwrap().contiguous().unwrap();
                    let outputs = inside.start - first..inside.end - first;
                    let change = left.matmul(&right).unwrap();
                    let change = change.pad_with_zeros(0, rows.start, 70 - rows.end).unwrap();
                    plain = (plain + change.pad_with_zeros(1, outputs.start, columns - outputs.end).unwrap()).unwrap();
                    ours.push(Update { rows: rows.clone(), outputs, left: left.clone(), right });
                }
                let bias = b.narrow(0, first, columns).unwrap();
                let some = form.columns(first, columns);
                let ours = updated(&some, &x, Some(&bias), &Updates::Each(ours), Some(Activation::Tanh));
                assert!(difference(&ours, &plain.tanh().unwrap()) < 1e-4);
            }
        }
    }

    #[test]
    fn a_row_does_not_depend_on_how_many_go_with_it() {
        let (x, w) = (random((200, 384)), random((384, 96)));
        for format in FORMATS {
            let packed = packed(&w, format).unwrap();
            let together = multiplied(&packed, &x, None, None);
            for rows in [1, 7, 30, 64] {
                let alone = multiplied(&packed, &x.narrow(0, 100, rows).unwrap(), None, None);
                assert_eq!(difference(&alone, &together.narrow(0, 100, rows).unwrap()), 0.0, "{format:?} {rows}");
            }
        }
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        let w = random((40, 8));
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut row = vec![0.5f32; 40];
            row[3] = bad;
            let row = Tensor::from_vec(row, (1, 40), &Device::Cpu).unwrap();
            let column = row.reshape((40, 1)).unwrap();
            for format in FORMATS {
                let y = multiplied(&packed(&w, format).unwrap(), &row, None, None);
                assert!(elements(&y).iter().all(|y| !y.is_finite()), "{format:?}");
                let y =
                    multiplied(&packed(&column, format).unwrap(), &w.t().unwrap().contiguous().unwrap(), None, None);
                assert!(elements(&y).iter().all(|y| !y.is_finite()), "{format:?}");
            }
        }
        let nothing = multiplied(&packed(&w, Format::Float32).unwrap(), &random((0, 40)), None, None);
        assert_eq!(nothing.dims(), [0, 8]);
    }
}
