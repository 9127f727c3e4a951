//! Several adapters of one base as one name, for one request.

use super::{Lease, Provenance, Report, Served};
use crate::engine::Target;
use crate::error::{Error, Result};
use crate::model::Adapter;
use std::sync::Arc;

/// Adapters of one base at once: what each adds to it, times its weight. They must be sums with the base, and read text
/// and end alike.
pub fn blend(shares: &[(Lease, f32)]) -> Result<Lease> {
    let fail = |message: String| Err(Error::invalid("adapters", message));
    let Some((first, _)) = shares.first() else { return fail("'adapters' blends nothing.".into()) };
    let mut parts = Vec::with_capacity(shares.len());
    for (index, (lease, weight)) in shares.iter().enumerate() {
        let name = &lease.name;
        let Some(adapter) = &lease.target.adapter else { return fail(format!("'{name}' is no adapter.")) };
        if shares[..index].iter().any(|(other, _)| Arc::ptr_eq(other, lease)) {
            return fail(format!("'{name}' is in the blend twice."));
        }
        let unchanged = shares.len() == 1 && *weight == 1.0;
        if !adapter.is_sum() && !unchanged {
            let reason = "it does not add to the base, it replaces or multiplies something of it";
            return fail(format!("'{name}' cannot be weighted or blended: {reason}."));
        }
        let pipeline = !Arc::ptr_eq(&lease.target.pipeline, &first.target.pipeline);
        let differences: Vec<&str> =
            pipeline.then_some("pipeline").into_iter().chain(lease.text.differences(&first.text)).collect();
        if !differences.is_empty() {
            let differences = differences.join(" and ");
            return fail(format!("'{}' and '{name}' cannot be blended: they differ in {differences}.", first.name));
        }
        parts.push((adapter.clone(), *weight));
    }
    let adapter = match parts.as_slice() {
        [(one, 1.0)] => one.clone(),
        _ => Arc::new(Adapter::blend(&parts)),
    };
    let target = &first.target;
    let parent = first.parent.clone().unwrap_or_default();
    Ok(Arc::new(Served {
        name: parent.clone(),
        parent: first.parent.clone(),
        root: first.root.clone(),
        created: first.created,
        target: Arc::new(Target {
            model: target.model.clone(),
            adapter: Some(adapter),
            pipeline: target.pipeline.clone(),
            // Metrics have a bounded number of names.
            label: parent,
        }),
        text: first.text.clone(),
        report: Report::default(),
        provenance: Provenance::blended(shares.iter().map(|(lease, weight)| (&lease.provenance, *weight))),
    }))
}
