//! Products, also of what adapters change.

use super::updates::{changes, one_by_one, residents, spans};
use super::{BOUND, Case, Shape, Work, case};
use crate::kernels::sample::normal;
use crate::kernels::twins::{activate_rows, activated, add_product, product, project, set_product};
use crate::kernels::{Activation, Active, Gate, Packed};
use candle_core::{DType, Device, Tensor as Host};

/// Every case.
pub fn all(shape: &Shape) -> Vec<Case> {
    let mut cases = products(shape);
    cases.extend(projections(shape));
    cases.push(apart(shape, Activation::Gelu, true));
    cases.push(apart(shape, Activation::GeluTanh, false));
    cases
}

/// Of a product of all rows with so many outputs.
fn work(shape: &Shape, outputs: usize) -> Work {
    let (tokens, width) = (shape.tokens(), shape.width);
    Work {
        operations: 2.0 * (tokens * width * outputs) as f64,
        numbers: (tokens * (width + outputs) + width * outputs) as f64,
    }
}

fn products(shape: &Shape) -> Vec<Case> {
    let (tokens, width, outputs) = (shape.tokens(), shape.width, 4 * shape.width);
    let (x, w, b) = (shape.rows(), normal(0.05, (width, outputs)), normal(1.0, outputs));
    let work = work(shape, outputs);
    let arguments = (x.clone(), w.clone());
    let plain = case("product, bias", BOUND, work, move |side| {
        let (x, w, b) = (side.rounded(&x)?, side.weight(&w)?, side.rounded(&b)?);
        Ok(Box::new(move || product(&x, &w, Some(&b))))
    });
    let (x, w) = arguments;
    let into = case("product added to a window", BOUND, work, move |side| {
        let (x, w) = (side.rounded(&x)?, side.weight(&w)?);
        let y = side.exact(&Host::zeros((tokens + 3, outputs + 5), DType::F32, &Device::Cpu)?)?;
        Ok(Box::new(move || {
            let window = y.narrow(0, 2, tokens)?.narrow(1, 5, outputs)?;
            set_product(&window, &x, &w)?;
            add_product(&window, &x, &w)?;
            y.narrow(0, 0, tokens)
        }))
    });
    vec![plain, into]
}

/// An activation of twice as many columns, of which each half is a site that adapters change or leave; once of one half,
/// which the other multiplies.
fn projections(shape: &Shape) -> Vec<Case> {
    let (width, outputs) = (shape.width, 2 * shape.width);
    let (plain, gated) = (Active::plain(Activation::Gelu), Active { activation: Activation::Silu, gate: Gate::First });
    let kinds = [
        ("", false, false, plain),
        (" with updates", true, false, plain),
        (" with magnitudes", true, true, plain),
        (" of a gate with updates", true, false, gated),
    ];
    let (x, w, b) = (shape.rows(), normal(0.05, (width, outputs)), normal(1.0, outputs));
    let case_of = |(what, has_ranks, has_columns, active): (&str, bool, bool, Active)| {
        let changes = if has_ranks { changes(shape, true, has_columns) } else { Vec::new() };
        let work = work(shape, outputs);
        let (x, w, b, offsets) = (x.clone(), w.clone(), b.clone(), shape.offsets.clone());
        let bound = if has_ranks { 2.0 * BOUND } else { BOUND };
        case(format!("projection{what}"), bound, work, move |side| {
            let (x, w, b) = (side.rounded(&x)?, side.weight(&w)?, side.rounded(&b)?);
            if side.device.is_cpu() {
                let changed = one_by_one(side, &changes, x.clone(), product(&x, &w, Some(&b))?)?;
                return Ok(Box::new(move || activated(changed()?, Some(active))));
            }
            let (touched, spans) = (residents(side, &changes, &offsets)?, spans(width));
            Ok(Box::new(move || {
                let (updates, _) = touched()?.updates(&spans, &x, None)?;
                project(&x, &w, Some(&b), &updates, Some(active))
            }))
        })
    };
    kinds.into_iter().map(case_of).collect()
}

/// Where a product activates its own sums, some rows apart: the first, one, and the last.
fn apart(shape: &Shape, activation: Activation, has_bias: bool) -> Case {
    let (tokens, outputs) = (shape.tokens(), 2 * shape.width);
    let (x, w) = (shape.rows(), normal(0.05, (shape.width, outputs)));
    let bias = has_bias.then(|| normal(1.0, outputs));
    case(format!("some rows apart of {activation:?}"), BOUND, work(shape, outputs), move |side| {
        let (x, w) = (side.rounded(&x)?, Packed::plain(side.weight(&w)?));
        let bias = bias.as_ref().map(|bias| side.rounded(bias)).transpose()?;
        Ok(Box::new(move || {
            let active = Active::plain(activation);
            if !w.activates(active) {
                return w.product(&x, bias.as_ref(), Some(activation));
            }
            let apart = [0..2, 5..6, tokens - 3..tokens];
            let y = w.product_apart(&x, bias.as_ref(), active, &apart)?;
            activate_rows(&y, activation, &apart)?;
            Ok(y)
        }))
    })
}
