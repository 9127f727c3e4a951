//! Projections in one launch: the product, its bias, what the batch's adapters change, and the activation. The device must
//! have products of warpgroups, and a block must hold 128 whole rows of the weight.

use super::activation::{code, gated};
use super::array::Array;
use super::launch::{Blocks, Launch, suffix};
use super::product::Projection;
use super::trials::{Kind, Trial};
use crate::error::Result;
use crate::kernels::{Activation, Gate};
use candle_core::DType;

/// Columns of `x` that lie together, and rows of a stage.
const DEPTH: usize = 64;
const ROWS: usize = 64;
/// Columns of the result that a block has.
const COLUMNS: usize = 128;
/// Threads of a block.
const THREADS: u32 = 384;
/// What a block may share.
const SHARED_BYTES: usize = 227 << 10;
/// Two counters a stage, and two more.
const COUNTERS_BYTES: usize = 16;
/// Stages of rows of `x`: three are on their way while one is read. With fewer both sides would wait for each other, and
/// more than so many gain nothing.
const STAGES: std::ops::RangeInclusive<usize> = 4..=12;
/// Numbers that are read and written at once.
const PIECE: usize = 8;

/// A projection that can be one launch.
pub struct Fused<'a> {
    projection: &'a Projection<'a>,
    bias: Option<Array>,
    activation: i32,
    gate: i32,
    /// Rows, inputs and outputs of the product, and columns of the result.
    sizes: [usize; 4],
    blocks: Blocks,
    stages: usize,
    strides: [usize; 2],
}

impl<'a> Fused<'a> {
    /// None where its types, its shape or the device do not allow it.
    pub fn of(projection: &'a Projection<'a>) -> Result<Option<Self>> {
        let Projection { x, weight, bias, active, .. } = *projection;
        let ([rows, inputs, x_stride], &[_, outputs]) = (x.matrix()?, weight.dims()) else { return Ok(None) };
        let &[1, w_stride] = weight.strides() else { return Ok(None) };
        let Some(multiprocessors) = x.gpu().warpgroups() else { return Ok(None) };
        let bias = bias.map(|bias| bias.to_dtype(weight.dtype())).transpose()?;
        let (gate, width) = gated(active.map_or(Gate::Absent, |active| active.gate), outputs);
        let addresses = [Some(x), Some(weight), bias.as_ref()].map(|array| array.map_or(0, Array::address));
        let is_aligned = addresses.iter().all(|address| address % 16 == 0)
            && [outputs, width, x_stride, w_stride].iter().all(|count| count % PIECE == 0);
        let is_half = weight.dtype() != DType::F32 && x.dtype() == weight.dtype();
        let Some(activation) = active.map_or(Some(-1), |active| known(active.activation)) else { return Ok(None) };
        let number = DType::BF16.size_in_bytes();
        let (weights, stage) = (inputs * COLUMNS * number, ROWS * DEPTH * number);
        let stages = SHARED_BYTES.saturating_sub(weights + COUNTERS_BYTES) / (stage + COUNTERS_BYTES);
        let is_deep = inputs > 0 && inputs % DEPTH == 0;
        if rows == 0 || !is_aligned || !is_half || !is_deep || stages < *STAGES.start() {
            return Ok(None);
        }
        let stages = stages.min(*STAGES.end());
        // Of a gate and what it multiplies a block has half as many each.
        let blocks = width.div_ceil(if gate == 0 { COLUMNS } else { COLUMNS / 2 });
        let grid = [blocks, (multiprocessors / blocks).clamp(1, rows.div_ceil(ROWS))];
        let blocks =
            Blocks { grid, threads: THREADS, shared: weights + stages * (stage + COUNTERS_BYTES) + COUNTERS_BYTES };
        let sizes = [rows, inputs, outputs, width];
        Ok(Some(Self { projection, bias, activation, gate, sizes, blocks, stages, strides: [x_stride, w_stride] }))
    }

    /// Launches it.
    pub fn run(&self) -> Result<Array> {
        let Projection { x, weight, updates, .. } = *self.projection;
        let ([rows, inputs, outputs, width], [x_stride, w_stride]) = (self.sizes, self.strides);
        let y = Array::new(x.gpu(), weight.dtype(), &[rows, width])?;
        let launch = Launch::on(x.gpu()).array(&y).array(x).array(weight).optional(self.bias.as_ref());
        let launch = launch.int(self.activation).int(self.gate);
        let launch = launch.sizes([rows, inputs, outputs, x_stride, w_stride, width, self.stages]);
        let launch = match updates {
            Some(updates) => updates.tell(launch, rows, outputs, weight.dtype())?,
            None => launch.optional(None).optional(None).optional(None).optional(None).sizes([0; 4]),
        };
        launch.run_in(&format!("fused_{}", suffix(weight.dtype())), &self.blocks)?;
        Ok(y)
    }

    /// Whether it gives what the projection's [parts](Projection::apart) give, and sooner; see [`Trials::prefers`].
    pub fn is_sooner(&self) -> Result<bool> {
        let Projection { x, weight, updates, .. } = *self.projection;
        let [rows, inputs, outputs, _] = self.sizes;
        let trial = Trial {
            rows,
            kind: Kind::Projection {
                sizes: [inputs, outputs],
                activation: [self.activation, self.gate],
                has_bias: self.bias.is_some(),
                is_changed: updates.is_some(),
            },
            dtype: weight.dtype(),
        };
        x.gpu().trials().prefers(x.gpu(), trial, &|| self.run(), &|| self.projection.apart())
    }
}

/// What the kernel calls an activation, of those that it has.
fn known(activation: Activation) -> Option<i32> {
    use Activation::{Gelu, GeluTanh, Relu, Silu};
    matches!(activation, Gelu | GeluTanh | Relu | Silu).then(|| code(activation))
}

#[cfg(test)]
#[cfg(feature = "emulated")]
mod tests {
    use super::*;
    use crate::kernels::Active;
    use crate::kernels::cuda::{Change, Factors, Gpu, Grouped, HostFactors, Spans, Touched, Warpgroups};
    use crate::kernels::sample::{below, normal};

    type Segment = (std::ops::Range<usize>, Factors);

    /// A weight as checkpoints have it, of which a row is an output.
    fn weight(gpu: &Gpu, inputs: usize, outputs: usize, dtype: DType) -> Array {
        Array::of(gpu, &normal(0.1, (outputs, inputs)).to_dtype(dtype).unwrap()).unwrap().transposed().unwrap()
    }

    /// What adapters of random ranks change of some rows of `x`, at sites that begin and end anywhere.
    fn changes(x: &Array, outputs: usize, adapters: usize) -> Option<(Grouped, Vec<Segment>)> {
        let [rows, inputs] = [x.dims()[0], x.dims()[1]];
        let cut = 1 + below(outputs - 1);
        let spans = [(0, 0, cut), (1, cut, outputs - cut)];
        let (mut end, mut segments) = (0, Vec::new());
        for _ in 0..adapters {
            let first = (end + below(2) * below(40)).min(rows);
            end = (first + 1 + below(70)).min(rows);
            let change = |columns: usize| {
                let (rank, kind) = (1 + below(40), below(3));
                let low_rank = (kind > 0).then(|| [normal(0.1, (inputs, rank)), normal(0.3, (rank, columns))]);
                Change { low_rank, columns: (kind < 2).then(|| [normal(1.0, columns), normal(1.0, columns)]) }
            };
            let changes = spans.map(|(site, _, columns)| (site, change(columns)));
            let changed = &changes[below(2)..];
            let list: Vec<_> = changed.iter().map(|(site, change)| (*site, change.each_ref())).collect();
            let host = HostFactors::new(2, x.dtype(), &list).unwrap();
            segments.push((first..end, Factors::new(x.gpu(), &host).unwrap()));
        }
        let touched = Touched::new(segments.iter().map(|(rows, factors)| (rows.clone(), factors))).unwrap()?;
        let grouped = touched.shrink(&Spans::new(x.gpu(), &spans).unwrap(), x).unwrap()?;
        Some((grouped, segments))
    }

    #[test]
    fn one_launch_gives_what_its_parts_give() {
        let gpu = Gpu::emulated(512).unwrap().by_warpgroups(Warpgroups::Everywhere);
        for (number, dtype) in [DType::BF16, DType::F16].into_iter().cycle().take(24).enumerate() {
            // Of the deepest, the fewest stages come round.
            let depths = if number % 4 == 0 { 12 } else { 1 + below(4) };
            let (rows, inputs, outputs) = (1 + below(700), 64 * depths, 16 * (1 + below(25)));
            let x = Array::of(&gpu, &normal(1.0, (rows, inputs + 8)).to_dtype(dtype).unwrap()).unwrap();
            let x = x.narrow(1, 8 * below(2), inputs).unwrap();
            let weight = weight(&gpu, inputs, outputs, dtype);
            let bias = Array::of(&gpu, &normal(1.0, outputs)).unwrap();
            let bias = Some(&bias).filter(|_| number % 3 > 0);
            let changes = changes(&x, outputs, number % 4 * 3);
            let updates = changes.as_ref().map(|(updates, _)| updates);
            let all = [
                None,
                Some(Activation::Gelu),
                Some(Activation::GeluTanh),
                Some(Activation::Relu),
                Some(Activation::Silu),
            ];
            let gate = [Gate::Absent, Gate::First, Gate::Second][below(3)];
            let active = all[number % all.len()].map(|activation| Active { activation, gate });
            let projection = Projection { x: &x, weight: &weight, bias, updates, active };
            assert!(Fused::of(&projection).unwrap().is_some(), "{rows} {inputs} {outputs}");
            let [one, apart] = [projection.run(), projection.apart()].map(Result::unwrap);
            let read = |y: &Array| -> Vec<f32> {
                let y = y.depart().unwrap().wait().unwrap().to_dtype(DType::F32).unwrap();
                y.flatten_all().unwrap().to_vec1().unwrap()
            };
            let (one, apart) = (read(&one), read(&apart));
            let ulps = if dtype == DType::F16 { 1.0 / 1024.0 } else { 1.0 / 128.0 };
            let bound = 2.0 * ulps * apart.iter().fold(0f32, |most, number| most.max(number.abs()));
            // One by one: a maximum would leave out NaN.
            for (place, (one, apart)) in one.iter().zip(&apart).enumerate() {
                let what = format!("{place} of {rows} {inputs} {outputs} {dtype:?} {active:?}, round {number}");
                assert!((one - apart).abs() <= bound, "{what}: {one} {apart}, {bound}");
            }
        }
    }

    #[test]
    fn it_is_one_launch_where_the_device_may_try() {
        use crate::kernels::cuda::asked;
        let gpu = Gpu::emulated(64).unwrap();
        let apart = ["multiply", "activate_bf16"].as_slice();
        let ways = [Warpgroups::Nowhere, Warpgroups::WhereSooner, Warpgroups::Everywhere];
        for (warpgroups, expected) in ways.into_iter().zip([apart, &["fused_bf16"], &["fused_bf16"]]) {
            let gpu = gpu.clone().by_warpgroups(warpgroups);
            let x = Array::of(&gpu, &normal(1.0, (9, 64)).to_dtype(DType::BF16).unwrap()).unwrap();
            let weight = weight(&gpu, 64, 16, DType::BF16);
            let active = Some(Active::plain(Activation::Gelu));
            asked::names();
            Projection { x: &x, weight: &weight, bias: None, updates: None, active }.run().unwrap();
            assert_eq!(asked::names(), expected);
        }
    }

    #[test]
    fn what_does_not_fit_goes_in_parts() {
        let gpu = Gpu::emulated(64).unwrap().by_warpgroups(Warpgroups::Everywhere);
        let fits = |rows: usize, inputs: usize, outputs: usize, dtype: DType, activation: Option<Activation>| {
            let x = Array::new(&gpu, dtype, &[rows, inputs]).unwrap();
            let weight = weight(&gpu, inputs, outputs, dtype);
            let active = activation.map(Active::plain);
            let projection = Projection { x: &x, weight: &weight, bias: None, updates: None, active };
            Fused::of(&projection).unwrap().is_some()
        };
        assert!(fits(1, 768, 8, DType::BF16, None) && fits(300, 64, 8, DType::F16, Some(Activation::Silu)));
        assert!(!fits(0, 64, 8, DType::BF16, None) && !fits(9, 832, 8, DType::BF16, None), "rows, or too deep");
        assert!(!fits(9, 96, 8, DType::BF16, None) && !fits(9, 64, 12, DType::BF16, None), "widths");
        assert!(!fits(9, 64, 8, DType::F32, None) && !fits(9, 64, 8, DType::BF16, Some(Activation::Mish)));
    }
}
