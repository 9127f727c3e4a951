//! HRA (arXiv:2405.17484): inputs reflected at a few planes, which is a low-rank update of the weight.

use super::super::keys::{ByModule, Keys, Reading};
use super::super::module::Module;
use super::Method;
use crate::error::Result;
use crate::model::{Delta, LinearDelta, LowRank};
use candle_core::{Device, Tensor};

#[derive(Debug)]
struct Householder {
    rank: ByModule,
    /// `apply_GS`: whether the planes are made orthogonal first.
    is_orthogonal: bool,
}

/// Reads PEFT's `HRAConfig`.
pub fn read(keys: &mut Keys) -> Reading<Box<dyn Method>> {
    keys.leave(&["init_weights"]);
    let rank = keys.count("r", 8)?;
    let rank = ByModule::ranks(keys, rank)?;
    Ok(Box::new(Householder { rank, is_orthogonal: keys.or("apply_GS", false)? }))
}

impl Method for Householder {
    fn parts(&self) -> &'static [&'static str] {
        &["hra_u"]
    }

    fn is_sum(&self) -> bool {
        false
    }

    fn summary(&self) -> String {
        self.rank.summary("r")
    }

    /// `W (1 - 2 u u^T) (1 - 2 v v^T) ... = W + sum of (W c) u^T`, where `c = -2 D u` and `D` is the product so far.
    fn delta(&self, module: &Module) -> Result<Delta> {
        let (inputs, rank) = (module.inputs(), module.checked(self.rank.of(module.name))? as usize);
        let columns = module.take("hra_u", &[inputs, rank])?.t()?.to_vec2::<f32>()?;
        let mut planes: Vec<Vec<f64>> = Vec::new();
        let mut changes: Vec<Vec<f64>> = Vec::new();
        for column in columns {
            let mut u: Vec<f64> = column.into_iter().map(f64::from).collect();
            if self.is_orthogonal {
                for plane in &planes {
                    let along = dot(plane, &u);
                    add(&mut u, -along, plane);
                }
            }
            let length = dot(&u, &u).sqrt();
            if length == 0.0 {
                return Err(module.fail("hra_u has a column without a direction"));
            }
            u.iter_mut().for_each(|x| *x /= length);
            let mut change: Vec<f64> = u.iter().map(|x| -2.0 * x).collect();
            for (plane, earlier) in planes.iter().zip(&changes) {
                add(&mut change, -2.0 * dot(plane, &u), earlier);
            }
            planes.push(u);
            changes.push(change);
        }
        // [rank, in] each.
        let matrix = |rows: &[Vec<f64>]| {
            let elements = rows.iter().flatten().map(|x| *x as f32).collect();
            Tensor::from_vec(elements, (rank, inputs), &Device::Cpu)
        };
        let a = matrix(&planes)?.t()?;
        let b = matrix(&changes)?.matmul(&module.weight()?.contiguous()?)?;
        Ok(Delta::Linear(LinearDelta::low_rank(LowRank::new(a, b))))
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(y: &mut [f64], factor: f64, x: &[f64]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y += factor * x);
}
