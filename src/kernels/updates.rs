//! What adapters add to a product, on a GPU also how they scale and shift its columns: row range by row range on the CPU,
//! for all of a batch at once on a GPU.

use super::cuda::{self, Attended, Change, HostFactors, Late, Spans};
use super::device::Device;
use super::packed::Update;
use super::tensor::Tensor;
use super::twins::elsewhere;
use crate::error::Result;
use std::ops::Range;

/// How a product is changed before what follows it.
pub enum Updates {
    /// One by one.
    Each(Vec<Update>),
    /// All at once, columns too.
    Grouped(Box<cuda::Grouped>),
}

impl Updates {
    /// Nothing.
    pub fn none() -> Self {
        Self::Each(Vec::new())
    }

    /// Whether there are none.
    pub fn is_none(&self) -> bool {
        matches!(self, Self::Each(updates) if updates.is_empty())
    }

    /// Those that are added one by one.
    pub(super) fn each(&self) -> Option<&[Update]> {
        match self {
            Self::Each(updates) => Some(updates),
            Self::Grouped(_) => None,
        }
    }

    /// Those of all adapters at once, on a GPU; none where nothing is changed.
    pub(super) fn grouped(&self) -> Result<Option<&cuda::Grouped>> {
        match self {
            Self::Grouped(grouped) => Ok(Some(grouped)),
            Self::Each(_) if self.is_none() => Ok(None),
            Self::Each(_) => Err(elsewhere()),
        }
    }

    /// Changes what the base made, in place.
    pub fn add_to(&self, y: &Tensor) -> Result<()> {
        match self {
            Self::Grouped(grouped) => grouped.expand(y.array()?),
            Self::Each(updates) => updates.iter().try_for_each(|Update { rows, outputs, left, right }| {
                let y = y.narrow(0, rows.start, rows.len())?.narrow(1, outputs.start, outputs.len())?;
                Ok(super::product::add_product(y.cpu()?, left, right)?)
            }),
        }
    }
}

/// An adapter's changes where a GPU reads them all in one launch.
#[derive(Clone, Debug)]
pub struct Factors(cuda::Factors);

impl Factors {
    /// Brings them there; none to the CPU, which adds updates one by one.
    pub fn new(device: &Device, host: &HostFactors) -> Result<Option<Self>> {
        let Device::Gpu(gpu) = device else { return Ok(None) };
        Ok(Some(Self(cuda::Factors::new(gpu, host)?)))
    }

    /// Whether there is a change of a site.
    pub fn changes(&self, site: usize) -> bool {
        self.0.changes(site)
    }

    /// The change of one of the sites, in the order in which they came.
    pub fn windows(&self, place: usize) -> Result<Change<Tensor>> {
        self.0.windows(place)?.map(|window| Ok(Tensor::Gpu(window)), |window| Ok(Tensor::Gpu(window)))
    }
}

/// Which rows of a batch are whose, where a GPU reads it.
#[derive(Default)]
pub struct Touched(Option<cuda::Touched>);

impl Touched {
    /// Row ranges of adapters, of whole sequences with these offsets.
    pub fn new<'a>(segments: impl Iterator<Item = (Range<usize>, &'a Factors)>, offsets: &[usize]) -> Result<Self> {
        Ok(Self(cuda::Touched::new(segments.map(|(rows, factors)| (rows, &factors.0)), offsets)?))
    }

    /// How the product of `x [tokens, in]` is changed at these sites, but for what is left to the attention that reads it.
    pub fn updates(&self, spans: &Spans, x: &Tensor, attended: Option<&Attended>) -> Result<(Updates, Option<Late>)> {
        let (Some(touched), Tensor::Gpu(x)) = (&self.0, x) else { return Ok((Updates::none(), None)) };
        let Some(mut grouped) = touched.shrink(spans, x)? else { return Ok((Updates::none(), None)) };
        let late = attended.and_then(|attended| touched.leave(&mut grouped, spans, attended));
        Ok((Updates::Grouped(grouped.into()), late))
    }
}
