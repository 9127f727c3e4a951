//! OFT (arXiv:2306.07280) and BOFT (arXiv:2311.06243): inputs rotated, block by block, by rotations that skew-symmetric
//! matrices give; the effective weight is held whole.

use super::super::keys::{Keys, Reading};
use super::super::module::Module;
use super::{Method, blocks::Blocks};
use crate::error::Result;
use crate::kernels::Packed;
use crate::model::{Delta, LinearDelta, Weight};

/// Most terms of the series of a rotation; where it comes to an end at all, later ones are below rounding.
const TERMS_MAX: usize = 256;

#[derive(Debug)]
struct Oft {
    /// `block_share`: one rotation for all blocks.
    is_shared: bool,
    /// `eps` of `coft`: how far from no rotation a block may be.
    reach: Option<f64>,
    /// `num_cayley_neumann_terms`, where the rotation is a series; none: exact.
    terms: Option<usize>,
}

/// Reads PEFT's `OFTConfig`.
pub fn read_oft(keys: &mut Keys) -> Reading<Box<dyn Method>> {
    // Block count and size are what the tensors have.
    keys.leave(&["r", "oft_block_size", "module_dropout", "init_weights", "alpha_pattern", "rank_pattern"]);
    let (constrained, reach) = (keys.or("coft", false)?, keys.or("eps", 6e-5)?);
    let (series, terms) = (keys.or("use_cayley_neumann", true)?, keys.number("num_cayley_neumann_terms", 5)?);
    if series && terms > TERMS_MAX {
        return Err(format!("num_cayley_neumann_terms = {terms} is more than {TERMS_MAX}"));
    }
    Ok(Box::new(Oft {
        is_shared: keys.or("block_share", false)?,
        reach: constrained.then_some(reach),
        terms: series.then_some(terms),
    }))
}

impl Method for Oft {
    fn parts(&self) -> &'static [&'static str] {
        &["oft_R.weight"]
    }

    fn is_sum(&self) -> bool {
        false
    }

    fn delta(&self, module: &Module) -> Result<Delta> {
        let part = self.parts()[0];
        let (name, inputs) = (module.tensor(part), module.inputs());
        let fail = |shape: &[usize]| module.fail(&format!("tensor '{name}' of {shape:?} does not fit {inputs} inputs"));
        let shape = module.shape_of(part)?;
        let &[rows, elements] = shape.as_slice() else { return Err(fail(&shape)) };
        // Above the diagonal of a block are size * (size - 1) / 2 elements.
        let size = (1..).find(|size| size * (size - 1) / 2 >= elements).unwrap_or(1);
        let blocks = module.inputs() / size;
        let fits = elements > 0 && size * (size - 1) / 2 == elements && blocks * size == module.inputs();
        if !fits || rows != if self.is_shared { 1 } else { blocks } {
            return Err(fail(&shape));
        }
        let upper = module.take(part, &shape)?.to_vec2::<f32>()?;
        let mut skew = Blocks::skew_from_upper(&upper, size);
        if let Some(reach) = self.reach {
            skew.shorten(reach / (rows as f64).sqrt());
        }
        let rotations = match self.terms {
            Some(terms) => skew.cayley_series(terms),
            None => skew.cayley(),
        };
        let rotations = rotations.ok_or_else(|| module.fail("its rotation is not finite"))?;
        let Weight { weight, bias } = module.base()?;
        let rotated = Packed::plain(rotations.repeated(blocks).times(&weight.tensor()?)?);
        Ok(Delta::Linear(LinearDelta::own(Weight { weight: rotated, bias })?))
    }
}

#[derive(Debug)]
struct Boft {
    block_size: usize,
    block_count: usize,
    /// Butterfly stages; where PEFT has no GPU it makes one, whatever the configuration says.
    stages: usize,
}

/// Reads PEFT's `BOFTConfig`.
pub fn read_boft(keys: &mut Keys) -> Reading<Box<dyn Method>> {
    keys.leave(&["boft_dropout", "init_weights"]);
    let (block_size, block_count) = (keys.or("boft_block_size", 4)?, keys.or("boft_block_num", 0)?);
    if (block_size == 0) == (block_count == 0) {
        return Err("one of boft_block_size and boft_block_num must be 0, and only one".into());
    }
    Ok(Box::new(Boft { block_size, block_count, stages: keys.count("boft_n_butterfly_factor", 1)? }))
}

impl Method for Boft {
    fn parts(&self) -> &'static [&'static str] {
        &["boft_R", "boft_s"]
    }

    fn is_sum(&self) -> bool {
        false
    }

    fn delta(&self, module: &Module) -> Result<Delta> {
        let [outputs, inputs] = module.shape;
        let size = if self.block_size == 0 { inputs / self.block_count } else { self.block_size };
        let blocks = inputs.checked_div(size).unwrap_or_default();
        let stages = if module.shape_of("boft_R")?.first() == Some(&1) { 1 } else { self.stages };
        let halves = stages == 1 || (size.is_multiple_of(2) && blocks.is_multiple_of(1 << (stages - 1).min(62)));
        if blocks * size != inputs || !halves {
            return Err(
                module.fail(&format!("{blocks} blocks of {size} in {stages} stages do not fit {inputs} inputs"))
            );
        }
        let parameters = module.take("boft_R", &[stages, blocks, size, size])?;
        let scale = module.take("boft_s", &[outputs, 1])?.reshape(outputs)?;
        let Weight { weight, bias } = module.base()?;
        let mut weight = weight.tensor()?;
        for stage in 0..stages {
            let parameters = parameters.get(stage)?.reshape((blocks * size, size))?.to_vec2::<f32>()?;
            let rotations = Blocks::skew_part(&parameters, size).cayley();
            let rotations = rotations.ok_or_else(|| module.fail("its rotation is not finite"))?;
            weight = match stages {
                1 => rotations.times(&weight)?,
                _ => rotations.permuted_times(&butterfly(inputs, blocks >> stage, size / 2), &weight)?,
            };
        }
        let weight = Packed::plain(weight.broadcast_mul(&scale)?);
        Ok(Delta::Linear(LinearDelta::own(Weight { weight, bias })?))
    }
}

/// Which input stands where before a stage's blocks: in each of `groups`, chunks of `chunk` at even places, then the others.
fn butterfly(inputs: usize, groups: usize, chunk: usize) -> Vec<u32> {
    let group = inputs / groups.max(1);
    let chunks = group / chunk;
    let order = (0..chunks).step_by(2).chain((1..chunks).step_by(2));
    let order: Vec<usize> = order.flat_map(|place| place * chunk..(place + 1) * chunk).collect();
    let groups = (0..inputs).step_by(group);
    groups.flat_map(|start| order.iter().map(move |place| (start + place) as u32)).collect()
}
