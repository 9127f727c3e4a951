//! The operations, their arguments, and what they cost.

mod attention;
mod products;
mod rowwise;
mod updates;

use super::{Side, Size};
use crate::error::Result;
use crate::kernels::Tensor;
use crate::kernels::sample::normal;
use candle_core::Tensor as Host;

/// Makes a run of its arguments' place.
type Prepare = Box<dyn Fn(&Side) -> Result<Run>>;
/// One run.
pub type Run = Box<dyn Fn() -> Result<Tensor>>;

/// One operation with its arguments.
pub struct Case {
    pub name: String,
    /// Largest difference that is allowed in f32, see [`super::Finding::difference`].
    pub bound: f32,
    pub work: Work,
    pub prepare: Prepare,
}

/// What an operation has to do at least.
#[derive(Clone, Copy, Default)]
pub struct Work {
    /// Multiplications and additions.
    pub operations: f64,
    /// Numbers that are read or written.
    pub numbers: f64,
}

/// What bounds operations that multiply little.
const BOUND: f32 = 4e-6;

/// Sizes of arguments.
struct Shape {
    offsets: Vec<usize>,
    width: usize,
    heads: usize,
    rank: usize,
}

impl Shape {
    fn of(size: Size) -> Self {
        match size {
            Size::Small => Self { offsets: vec![0, 1, 6, 70, 71, 133, 270], width: 60, heads: 3, rank: 5 },
            Size::Aligned => Self { offsets: vec![0, 3, 170], width: 128, heads: 2, rank: 16 },
            // Of 32 heads there are more parts than three for every multiprocessor of the largest GPU.
            Size::Repeated => {
                Self { offsets: (0..=7).map(|sequence| 140 * sequence).collect(), width: 64, heads: 2, rank: 16 }
            }
            // So many that every multiprocessor of the largest GPU has several parts of everything.
            Size::Large => {
                Self { offsets: (0..=24).map(|sequence| 512 * sequence).collect(), width: 768, heads: 12, rank: 16 }
            }
        }
    }

    fn tokens(&self) -> usize {
        self.offsets[self.offsets.len() - 1]
    }

    fn rows(&self) -> Host {
        normal(1.0, (self.tokens(), self.width))
    }

    /// So many passes over all rows.
    fn passes(&self, passes: usize) -> Work {
        Work { operations: 0.0, numbers: (passes * self.tokens() * self.width) as f64 }
    }
}

/// Every case.
pub fn all(size: Size) -> Vec<Case> {
    let shape = Shape::of(size);
    if size == Size::Repeated {
        return updates::repeated(&shape);
    }
    // Products first: the others' shares are of their rate.
    let mut cases = products::all(&shape);
    cases.extend(updates::all(&shape));
    cases.extend(attention::all(&shape));
    cases.extend(rowwise::all(&shape));
    cases
}

fn case(name: impl Into<String>, bound: f32, work: Work, prepare: impl Fn(&Side) -> Result<Run> + 'static) -> Case {
    Case { name: name.into(), bound, work, prepare: Box::new(prepare) }
}
