//! Changes of low rank that attention makes itself of the queries, keys and values that it reads. Nobody goes through these only
//! to change them then, which takes longer than the changes' products. late.cuh says how.

use super::array::Array;
use super::launch::Launch;
use crate::error::{Error, Result};
use candle_core::DType;
use std::ops::Range;

/// Widths of heads that there are kernels for.
const WIDTHS: [usize; 2] = [32, 64];

/// What attention reads of a projection: columns of heads of one width, where nothing happens to them between.
pub struct Attended {
    /// All queries.
    pub queries: Option<Range<usize>>,
    /// All keys.
    pub keys: Option<Range<usize>>,
    /// All values.
    pub values: Option<Range<usize>>,
    /// Of a head of any.
    pub head_width: usize,
}

impl Attended {
    /// Whether there are kernels that change numbers of such a type.
    pub(super) fn can_change(&self, dtype: DType) -> bool {
        dtype != DType::F32 && WIDTHS.contains(&self.head_width)
    }
}

/// What is left to attention.
pub struct Late {
    /// `[tokens, ranks]` of a whole projection.
    left: Array,
    /// Of every sequence the address of its adapter's table.
    owners: Array,
    /// As kernels are told of it: numbers of a row of `left`, and of queries, keys and values their site, or -1, and where its
    /// ranks begin.
    sites: Vec<i32>,
    head_width: usize,
}

impl Late {
    /// Of queries, keys and values their site and where its ranks begin.
    pub(super) fn new(left: Array, owners: Array, sites: [Option<[usize; 2]>; 3], head_width: usize) -> Self {
        let numbers = |site: Option<[usize; 2]>| site.map_or([-1, 0], |numbers| numbers.map(|number| number as i32));
        let width = left.dims()[1] as i32;
        Self { left, owners, sites: [&[width], sites.map(numbers).as_flattened()].concat(), head_width }
    }

    /// Whether it is of what attention is asked for: so many sequences and tokens, of heads so wide, which kernels can change
    /// only where every row of a head begins at 16 bytes.
    pub(super) fn check(
        &self,
        sequences: usize,
        [tokens, width]: [usize; 2],
        dtype: DType,
        are_wide: bool,
    ) -> Result<()> {
        let is_so = 2 * sequences == self.owners.elements()
            && [tokens, width] == [self.left.dims()[0], self.head_width]
            && dtype == self.left.dtype()
            && are_wide;
        if is_so { Ok(()) } else { Err(Error::Internal(format!("late changes {:?} of other heads", self.left))) }
    }

    /// Tells a kernel.
    pub(super) fn told<'a>(&self, launch: Launch<'a>) -> Launch<'a> {
        launch.array(&self.left).array(&self.owners).structure(self.sites.clone())
    }
}

#[cfg(test)]
#[cfg(feature = "emulated")]
mod tests {
    use super::super::array::Array;
    use super::super::delta::{Spans, Touched};
    use super::super::{Change, Factors, Gpu, HostFactors, asked, attention};
    use super::Attended;
    use crate::kernels::sample::{below, normal};
    use crate::kernels::{Attention, Device, Sequences};
    use candle_core::{DType, Tensor};
    use std::ops::Range;

    const INPUTS: usize = 40;

    /// Packed sequences of which some have an adapter of queries, keys or values, or of several, of a rank that is changed late,
    /// of a higher one, or one that changes columns too.
    struct Case {
        round: usize,
        dtype: DType,
        /// Of queries, of keys, and how wide.
        heads: [usize; 3],
        offsets: Vec<usize>,
        x: Tensor,
        stacked: Tensor,
        bias: Tensor,
        adapters: Vec<Vec<(usize, Change<Tensor>)>>,
    }

    impl Case {
        fn new(round: usize, heads: [usize; 3], lengths: &[usize]) -> Self {
            let mut offsets = vec![0];
            lengths.iter().for_each(|length| offsets.push(offsets[offsets.len() - 1] + length));
            let (tokens, longest) = (offsets[offsets.len() - 1], lengths.iter().max().unwrap());
            let change = |outputs: usize| {
                let rank = if below(4) == 0 { 17 + below(20) } else { 1 + below(16) };
                let low_rank = Some([normal(0.1, (INPUTS, rank)), normal(1.0, (rank, outputs))]);
                Change { low_rank, columns: (below(5) == 0).then(|| [normal(1.0, outputs), normal(1.0, outputs)]) }
            };
            let [count, keys, width] = heads;
            let outputs = [count * width, keys * width, keys * width];
            let sites = |kind: usize| (0..3).filter(move |site| kind >> site & 1 == 1);
            let mut adapters: Vec<Vec<_>> = (0..lengths.len())
                .map(|_| sites(below(8)).map(|site| (site, change(outputs[site]))).collect())
                .collect();
            // Of the first all, or all but keys, are late.
            let late = |site: usize| Some([normal(0.1, (INPUTS, 16)), normal(1.0, (16, outputs[site]))]);
            let first = sites([7, 5][round / 2 % 2]);
            adapters[0] = first.map(|site| (site, Change { low_rank: late(site), columns: None })).collect();
            let (x, stacked) = (normal(1.0, (tokens, INPUTS)), normal(1.0, (tokens, (count + 2 * keys) * width)));
            let dtype = [DType::BF16, DType::F16][round % 2];
            // No number is to be rounded when it comes to the device.
            let rounded = |x: Tensor| x.to_dtype(dtype).unwrap().to_dtype(DType::F32).unwrap();
            for (_, change) in adapters.iter_mut().flatten() {
                change.low_rank = change.low_rank.take().map(|factors| factors.map(rounded));
            }
            let (x, stacked) = (rounded(x), rounded(stacked));
            Self { round, dtype, heads, offsets, x, stacked, bias: normal(1.0, (count, 2 * longest - 1)), adapters }
        }

        /// Some sequences' results in a type, and by which kernels; changed late, or before.
        fn attend(&self, gpu: &Gpu, sequences: Range<usize>, dtype: DType, is_late: bool) -> (Vec<String>, Vec<f32>) {
            let offsets = &self.offsets[sequences.start..=sequences.end];
            let (first, end) = (offsets[0], offsets[offsets.len() - 1]);
            let offsets: Vec<usize> = offsets.iter().map(|offset| offset - first).collect();
            let placed = |x: &Tensor| {
                Array::of(gpu, &x.narrow(0, first, end - first).unwrap().to_dtype(dtype).unwrap()).unwrap()
            };
            let (x, stacked, tokens) = (placed(&self.x), placed(&self.stacked), end - first);
            let factors: Vec<_> = self.adapters[sequences]
                .iter()
                .map(|changes| {
                    let list: Vec<_> = changes.iter().map(|(site, change)| (*site, change.each_ref())).collect();
                    Factors::new(gpu, &HostFactors::new(3, dtype, &list).unwrap()).unwrap()
                })
                .collect();
            let rows = offsets.windows(2).map(|span| span[0]..span[1]);
            let changed = rows.zip(&self.adapters).zip(&factors);
            let segments = changed.filter(|((_, changes), _)| !changes.is_empty()).map(|((rows, _), f)| (rows, f));
            let [count, keys, width] = self.heads;
            let (end, own) = (count * width, keys * width);
            let [q, k, v] = [0..end, end..end + own, end + own..end + 2 * own];
            let spans = Spans::new(&[(0, q.start, q.len()), (1, k.start, k.len()), (2, v.start, v.len())]);
            let mut late = None;
            asked::names();
            let touched = Touched::new(segments, &offsets).unwrap();
            if let Some((touched, mut grouped)) = touched.and_then(|t| t.shrink(&spans, &x).unwrap().map(|g| (t, g))) {
                let attended = Attended { queries: Some(q), keys: Some(k), values: Some(v), head_width: width };
                late = is_late.then(|| touched.leave(&mut grouped, &spans, &attended)).flatten();
                grouped.expand(&stacked).unwrap();
            }
            let heads = stacked.reshape(&[tokens, count + 2 * keys, width]).unwrap();
            let part = |first: usize, count: usize| heads.narrow(1, first, count).unwrap();
            let bias = (self.round % 4 == 1).then(|| Array::of(gpu, &self.bias).unwrap());
            let op = Attention {
                offsets: &Sequences::new(offsets, &Device::Gpu(gpu.clone())).unwrap(),
                scale: 0.05,
                causal: self.round % 4 == 3,
                window: (self.round % 4 == 2).then_some(40),
                bias: bias.as_ref(),
                is_half: false,
            };
            let y = attention(&part(0, count), &part(count, keys), &part(count + keys, keys), &op, late.as_ref());
            let names = asked::names();
            let y = y.unwrap().depart().unwrap().wait().unwrap().to_dtype(DType::F32).unwrap();
            (names, y.flatten_all().unwrap().to_vec1().unwrap())
        }
    }

    #[test]
    fn what_attention_changes_itself_is_what_was_changed_before_and_the_same_bits_alone() {
        let gpu = Gpu::emulated(256).unwrap();
        for round in 0..14 {
            let (keys, group) = (1 + below(2), 1 + below(2));
            // Several items a block, tiles of all sizes, and stages that come round, also within an item; twice with the most
            // queries a block.
            let (lengths, [keys, group, width]): (Vec<usize>, _) = match round % 13 {
                0 => (vec![256 - below(20); 5], [2, 2, 64]),
                3 | 9 | 10 => {
                    (vec![[300, 520][round / 3 % 2] + below(80), 1 + below(20), 200 - below(50), 40], [keys, group, 64])
                }
                _ => {
                    let lengths = (0..1 + below(8)).map(|_| 1 + below([32, 90][round / 2 % 2])).collect();
                    (lengths, [keys, group, [32, 64][round / 4 % 2]])
                }
            };
            let case = Case::new(round, [keys * group, keys, width], &lengths);
            let gpu = if round % 5 == 4 { &gpu.clone().of_warps() } else { &gpu };
            let all = 0..lengths.len();
            let ((names, late), (_, before)) =
                (case.attend(gpu, all.clone(), case.dtype, true), case.attend(gpu, all.clone(), case.dtype, false));
            assert!(names.iter().any(|name| name.contains("_late_")), "{names:?}");
            // By rows of a head, as their length goes by what rounding of scores and of products does to all of it. What is rounded
            // is not the same, but both are as near to what they are to be.
            let (width, bound) = (case.heads[2], if case.dtype == DType::BF16 { 0.005 } else { 0.001 });
            let (_, exact) = case.attend(gpu, all.clone(), DType::F32, false);
            let length = |x: &mut dyn Iterator<Item = f32>| x.map(|x| x * x).sum::<f32>().sqrt();
            let share = |y: &[f32], exact: &[f32]| {
                let difference = length(&mut y.iter().zip(exact).map(|(y, exact)| y - exact));
                difference / length(&mut exact.iter().copied())
            };
            let shares = |y: &[f32]| -> Vec<f32> {
                y.chunks(width).zip(exact.chunks(width)).map(|(y, exact)| share(y, exact)).collect()
            };
            let (of_late, of_before) = (shares(&late), shares(&before));
            for (place, (late, before)) in of_late.iter().zip(&of_before).enumerate() {
                assert!(*late <= before + bound, "row {place} in round {round}: {late}, not {before}");
            }
            let sum = |shares: &[f32]| shares.iter().sum::<f32>();
            let (of_late, of_before) = (sum(&of_late), sum(&of_before));
            assert!(of_late <= 1.1 * of_before, "all in round {round}: {of_late}, not {of_before}");
            let row = late.len() / case.offsets[lengths.len()];
            for sequence in all {
                let (_, alone) = case.attend(gpu, sequence..sequence + 1, case.dtype, true);
                assert!(late[case.offsets[sequence] * row..][..alone.len()] == alone, "{sequence} in round {round}");
            }
        }
    }

    #[test]
    fn zeros_change_no_bit() {
        let gpu = Gpu::emulated(256).unwrap();
        for (round, width) in [(0, 64), (1, 32), (2, 32), (3, 64)] {
            let mut case = Case::new(round, [2, 1, width], &[130, 12, 33]);
            for (_, change) in case.adapters.iter_mut().flatten() {
                change.columns = None;
                change.low_rank.iter_mut().for_each(|[_, b]| *b = b.zeros_like().unwrap());
            }
            let (names, changed) = case.attend(&gpu, 0..3, case.dtype, true);
            assert!(names.iter().any(|name| name.contains("_late_")), "{names:?}");
            case.adapters = vec![Vec::new(); 3];
            assert!(case.attend(&gpu, 0..3, case.dtype, true).1 == changed, "in round {round}");
        }
    }

    #[test]
    fn where_all_is_late_nothing_goes_through_what_is_read() {
        let gpu = Gpu::emulated(64).unwrap();
        let mut case = Case::new(0, [2, 2, 64], &[70, 12, 33]);
        case.adapters.truncate(1);
        case.adapters.extend([Vec::new(), Vec::new()]);
        let (names, _) = case.attend(&gpu, 0..3, case.dtype, true);
        let kernels = ["attention_two_late_bf16_64", "attention_late_bf16_64", "attention_group_late_bf16"];
        assert_eq!(names, [&["shrink_ahead_bf16"][..], &kernels].concat());
    }
}
