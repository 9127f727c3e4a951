//! Every operation of a GPU against its CPU twin, from one body: the tests run it small where kernels are emulated, and
//! `veneer selftest` large on a real device, where it also tells how near each comes to what the device can do.

mod cases;

use super::cuda::Gpu;
use super::device::Device;
use super::sample;
use super::tensor::Tensor;
use super::threads::Threads;
use crate::error::{Error, Result};
use candle_core::{DType, Tensor as Host};
use cases::{Case, Run, Work};
use std::time::Instant;

/// How large the arguments are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// A few hundred rows, of odd widths too.
    Small,
    /// As few, as wide as what reads 16 bytes at once wants them.
    Aligned,
    /// So many parts that a GPU's blocks have several, of the operations that keep something from one part to the next.
    Repeated,
    /// Thousands of rows as wide as BERT-base's.
    Large,
}

impl Size {
    /// All that there are for a device, or only those that take no longer than a moment. One whose kernels are emulated has few
    /// blocks, which have several parts anyway, and would take minutes for large ones.
    pub fn all(device: &Device, is_small: bool) -> Vec<Self> {
        let mut sizes = vec![Self::Small, Self::Aligned];
        if !device.is_emulated() {
            sizes.push(Self::Repeated);
            sizes.extend((!is_small).then_some(Self::Large));
        }
        sizes
    }
}

/// What one operation did.
#[derive(Clone)]
pub struct Finding {
    /// The operation and its type.
    pub name: String,
    /// Largest difference to the CPU twin, over 1 plus the twin's largest number; infinite where the device refused.
    pub difference: f32,
    /// What it may be.
    pub bound: f32,
    /// One run on the device, the median of several; none of small arguments, or where kernels are emulated.
    pub microseconds: Option<f64>,
    /// Of the device's rate of arithmetic or of memory, whichever bounds it, as measured in the same run.
    pub share: Option<f64>,
    /// Why it was not done, where the device refused.
    pub refusal: Option<String>,
}

impl Finding {
    /// Whether the two agree; NaN never does.
    pub fn is_good(&self) -> bool {
        self.difference <= self.bound
    }

    /// How many times what it may be the difference is; NaN is infinitely many.
    fn excess(&self) -> f32 {
        if self.difference.is_nan() { f32::INFINITY } else { self.difference / self.bound }
    }
}

impl std::fmt::Display for Finding {
    /// One line of a table.
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let Self { name, difference, bound, microseconds, share, refusal: _ } = self;
        write!(f, "{name:36} {difference:9.1e} of {bound:7.1e}")?;
        if let Some(time) = microseconds {
            write!(f, " {time:10.1} us")?;
        }
        if let Some(share) = share {
            write!(f, " {:5.1} %", 100.0 * share)?;
        }
        f.write_str(if self.is_good() { "  ok" } else { "  WRONG" })
    }
}

/// A side of the comparison: a device, and the type that its operations are asked for in. The CPU computes in f32 of what
/// was rounded to that type.
pub(super) struct Side {
    device: Device,
    dtype: DType,
}

impl Side {
    /// Rows and tables, which have the type.
    fn rounded(&self, tensor: &Host) -> Result<Tensor> {
        match self.device {
            Device::Cpu => Ok(tensor.to_dtype(self.dtype)?.to_dtype(DType::F32)?.into()),
            Device::Gpu(_) => self.device.place(tensor, Some(self.dtype)),
        }
    }

    /// Weights `[in, out]`, which have it too.
    fn weight(&self, tensor: &Host) -> Result<Tensor> {
        match self.device {
            Device::Cpu => self.rounded(tensor),
            Device::Gpu(_) => self.device.place_weight(tensor, self.dtype),
        }
    }

    /// The same, of which nothing is asked that not every GPU has.
    fn of_warps(&self) -> Self {
        let device = match &self.device {
            Device::Cpu => Device::Cpu,
            Device::Gpu(gpu) => Device::Gpu(gpu.clone().of_warps()),
        };
        Self { device, dtype: self.dtype }
    }

    /// What is f32 whatever the type.
    fn exact(&self, tensor: &Host) -> Result<Tensor> {
        self.device.place(tensor, None)
    }
}

/// Runs every operation whose name has all of some words, in every type, on a device and on the CPU; `tell` hears each finding
/// as it comes. What the device refuses is a finding too, and the rest goes on.
///
/// # Errors
/// A device that is no GPU, or one that is lost.
pub fn selftest(device: &Device, size: Size, words: &str, mut tell: impl FnMut(&Finding)) -> Result<Vec<Finding>> {
    let wanted = [DType::F32, DType::BF16, DType::F16].map(|dtype| (dtype, words));
    of_size(device, &Threads::new(0)?, size, &wanted, &mut tell)
}

/// Runs every operation, small and in each of some types, whose name has all of the type's words, and says how many there are:
/// whether a device is to be trusted with them. The CPU's part is done by so many threads, see [`Threads::new`].
///
/// # Errors
/// As for [`selftest`], and where one of them is not what the CPU makes of it.
pub fn verify(device: &Device, threads: usize, wanted: &[(DType, &str)]) -> Result<usize> {
    let threads = Threads::new(threads)?;
    let of_size = |size| of_size(device, &threads, size, wanted, &mut |_| ());
    let findings = Size::all(device, true).into_iter().map(of_size).collect::<Result<Vec<_>>>()?.concat();
    let is_wrong = |finding: &&Finding| !finding.is_good();
    let Some(worst) = findings.iter().filter(is_wrong).max_by(|a, b| a.excess().total_cmp(&b.excess())) else {
        return Ok(findings.len());
    };
    let (wrong, all) = (findings.iter().filter(is_wrong).count(), findings.len());
    let Finding { name, difference, bound, refusal, .. } = worst;
    let how = match refusal {
        Some(refusal) => format!("is refused ({refusal})"),
        None => format!("is off by {difference:.1e}, where {bound:.1e} is allowed"),
    };
    Err(Error::Config(format!(
        "{wrong} of {all} operations are not what the CPU makes of them: {name} {how}; `veneer selftest` shows all, and \
         self_test = false goes on in spite of them"
    )))
}

/// What there is to find of one size, of the same numbers in each type: making them takes longer than the CPU's part.
fn of_size(
    device: &Device,
    threads: &Threads,
    size: Size,
    wanted: &[(DType, &str)],
    tell: &mut dyn FnMut(&Finding),
) -> Result<Vec<Finding>> {
    let Device::Gpu(gpu) = device else {
        return Err(Error::Config("a self-test is of a GPU: --device cuda[:N]".into()));
    };
    // A device that is right once is right at every start.
    sample::restart();
    let (cases, mut findings) = (cases::all(size), Vec::new());
    let is_timed = size == Size::Large && !gpu.is_emulated();
    for (dtype, words) in wanted {
        let mut peak = Peak::default();
        for case in &cases {
            let (name, bound) = (format!("{} {dtype:?}", case.name), case.bound * coarseness(*dtype));
            if !words.split_whitespace().all(|word| name.contains(word)) {
                continue;
            }
            let (difference, microseconds, refusal) = match compare(threads, gpu, *dtype, case, is_timed) {
                Ok((difference, microseconds)) => (difference, microseconds, None),
                Err(Error::Lost(text)) => return Err(Error::Lost(format!("{name}: {text}"))),
                Err(error) => {
                    tracing::error!(%error, name, "an operation failed");
                    (f32::INFINITY, None, Some(error.to_string()))
                }
            };
            // A part of the operations does not tell what the device can do.
            let share = microseconds.filter(|_| words.is_empty()).map(|time| peak.share(&case.work, time));
            let finding = Finding { name, difference, bound, microseconds, share, refusal };
            tell(&finding);
            findings.push(finding);
        }
    }
    Ok(findings)
}

/// How far a device is from the CPU, whose threads share the work, and its microseconds.
fn compare(threads: &Threads, gpu: &Gpu, dtype: DType, case: &Case, is_timed: bool) -> Result<(f32, Option<f64>)> {
    let on = |device| Side { device, dtype };
    let cpu = threads.run(|| (case.prepare)(&on(Device::Cpu))?())?;
    let run = (case.prepare)(&on(Device::Gpu(gpu.clone())))?;
    // By itself, as a list, and as the graph that the same list is the second time.
    let pass = || gpu.pass(|| run()?.to_host());
    let (ours, cpu) = ([run()?.to_host()?, pass()?, pass()?], cpu.to_host()?);
    let difference = ours.iter().try_fold(0f32, |most, ours| Ok::<_, Error>(most.max(difference(ours, &cpu)?)))?;
    let microseconds = is_timed.then(|| median(gpu, &run)).transpose()?;
    Ok((difference, microseconds))
}

/// What may be lost in a type, over what may be in f32.
fn coarseness(dtype: DType) -> f32 {
    match dtype {
        DType::BF16 => 1000.0,
        DType::F16 => 125.0,
        _ => 1.0,
    }
}

/// The highest rates of one type met so far.
#[derive(Default)]
struct Peak {
    rates: Work,
}

impl Peak {
    /// Takes in that this was done in so many microseconds, and says which share of the highest rates that is.
    fn share(&mut self, work: &Work, time: f64) -> f64 {
        let Self { rates } = self;
        rates.operations = rates.operations.max(work.operations / time);
        rates.numbers = rates.numbers.max(work.numbers / time);
        (work.operations / time / rates.operations.max(1.0)).max(work.numbers / time / rates.numbers.max(1.0))
    }
}

/// Bursts that are timed.
const BURSTS: usize = 11;

/// Runs of a burst: asked for one after the other, they leave the device nothing to wait for.
const RUNS: usize = 20;

/// Microseconds of one run.
fn median(gpu: &Gpu, run: &Run) -> Result<f64> {
    let mut times = Vec::with_capacity(BURSTS);
    for _ in 0..BURSTS {
        gpu.synchronize()?;
        let began = Instant::now();
        for _ in 0..RUNS {
            run()?;
        }
        gpu.synchronize()?;
        times.push(began.elapsed().as_secs_f64() * 1e6 / RUNS as f64);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[BURSTS / 2])
}

/// Largest difference, over 1 plus the largest expected number; infinite where what is finite in one is not in the other.
fn difference(ours: &Host, expected: &Host) -> Result<f32> {
    let numbers = |t: &Host| Ok::<_, Error>(t.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?);
    let (ours, expected) = (numbers(ours)?, numbers(expected)?);
    if ours.len() != expected.len() {
        return Ok(f32::INFINITY);
    }
    let largest = expected.iter().fold(0f32, |largest, x| largest.max(x.abs()));
    let gap = |(a, b): (&f32, &f32)| if (a - b).is_nan() { f32::INFINITY } else { (a - b).abs() };
    Ok(ours.iter().zip(&expected).map(gap).fold(0f32, f32::max) / (1.0 + largest))
}

#[cfg(test)]
#[cfg(feature = "emulated")]
mod tests {
    use super::*;
    use crate::kernels::asked;

    #[test]
    fn every_kernel_does_what_its_cpu_twin_does() {
        let device = Device::named("emulated").unwrap();
        let of_size = |size| selftest(&device, size, "", |finding| println!("{finding}")).unwrap();
        let findings: Vec<_> = Size::all(&device, true).into_iter().flat_map(of_size).collect();
        let bad: Vec<_> = findings.iter().filter(|finding| !finding.is_good()).collect();
        let lines = bad.iter().map(|bad| format!("{}: {} > {} {:?}", bad.name, bad.difference, bad.bound, bad.refusal));
        assert!(bad.is_empty(), "{:#?}", lines.collect::<Vec<_>>());
        assert!(findings.len() > 100);
    }

    #[test]
    fn a_device_that_leaves_a_kernel_out_is_not_trusted() {
        let device = Device::named("emulated").unwrap();
        let verify = |device: &Device| verify(device, 1, &[(DType::BF16, "rotate")]);
        assert!(verify(&device).unwrap() >= 2);
        let error = asked::without("rotate_bf16", || verify(&device)).unwrap_err().to_string();
        assert!(error.contains("rotate BF16 is off by"), "{error}");
        assert!(verify(&Device::Cpu).is_err());
    }
}
