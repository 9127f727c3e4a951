//! What an initialization took out of the base's weights: PEFT takes it out again whenever it loads such an adapter.

use crate::adapters::modules::Module;
use crate::error::Result;
use crate::model::LowRank;
use candle_core::Tensor;

/// OLoRA's (arXiv:2406.01775) first `rank` terms `Q R` of the QR decomposition of a module's weight `[out, in]`: the weight
/// projected on its first columns.
pub fn of_olora(module: &Module, rank: usize) -> Result<LowRank> {
    // [in, out], so that the weight's columns are rows.
    let weight = module.weight()?;
    if rank > module.inputs().min(module.outputs()) {
        return Err(module.fail(&format!("OLoRA of rank {rank} does not fit its weight {:?}", module.shape)));
    }
    let mut q: Vec<Vec<f64>> = Vec::with_capacity(rank);
    for column in weight.narrow(0, 0, rank)?.to_vec2::<f32>()? {
        let mut column: Vec<f64> = column.into_iter().map(f64::from).collect();
        let before = length(&column);
        // Twice, since what is nearly parallel loses digits the first time.
        for known in q.iter().chain(&q) {
            let along: f64 = known.iter().zip(&column).map(|(a, b)| a * b).sum();
            column.iter_mut().zip(known).for_each(|(x, known)| *x -= along * known);
        }
        let after = length(&column);
        if after <= before * 1e-7 {
            return Err(
                module.fail("OLoRA of a weight whose first columns depend on each other has no definite residual")
            );
        }
        column.iter_mut().for_each(|x| *x /= after);
        q.push(column);
    }
    let elements = q.into_iter().flatten().map(|x| x as f32).collect();
    let b = Tensor::from_vec(elements, (rank, module.outputs()), module.device())?;
    Ok(LowRank { a: weight.matmul(&b.t()?)?, b })
}

fn length(vector: &[f64]) -> f64 {
    vector.iter().map(|x| x * x).sum::<f64>().sqrt()
}
