//! Several adapters of one base as one name, for one request.

use super::{Lease, Provenance, Report, Route, Served};
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
        let Some(adapter) = &lease.main().target.adapter else { return fail(format!("'{name}' is no adapter.")) };
        if shares[..index].iter().any(|(other, _)| Arc::ptr_eq(other, lease)) {
            return fail(format!("'{name}' is in the blend twice."));
        }
        let unchanged = shares.len() == 1 && *weight == 1.0;
        if !adapter.is_sum() && !unchanged {
            let reason = "it does not add to the base, it replaces or multiplies something of it";
            return fail(format!("'{name}' cannot be weighted or blended: {reason}."));
        }
        if let Some(differences) = differences(first, lease) {
            return fail(format!("'{}' and '{name}' cannot be blended: they differ in {differences}.", first.name));
        }
        parts.push((adapter.clone(), *weight));
    }
    if let [(_, 1.0)] = parts.as_slice() {
        return Ok(first.clone());
    }
    let adapter = Arc::new(Adapter::blend(&parts));
    // Metrics have a bounded number of names.
    let label = first.parent.clone().unwrap_or_default();
    let routes = first.routes.map(|route| {
        let Route { target, text } = &**route;
        let (replicas, adapter) = (target.replicas.clone(), Some(adapter.clone()));
        let target = Arc::new(Target { replicas, adapter, label: label.clone() });
        Ok(Arc::new(Route { target, text: text.clone() }))
    })?;
    Ok(Arc::new(Served {
        name: label,
        parent: first.parent.clone(),
        root: first.root.clone(),
        created: first.created,
        routes,
        report: Report::default(),
        provenance: Provenance::blended(shares.iter().map(|(lease, weight)| (&lease.provenance, *weight))),
    }))
}

/// In what two adapters read text and end differently, on any route.
fn differences(one: &Lease, other: &Lease) -> Option<String> {
    let (mut ones, mut others) = (one.routes.iter(), other.routes.iter());
    let mut differences = Vec::new();
    loop {
        match (ones.next(), others.next()) {
            (Some(a), Some(b)) => {
                let pipeline = !Arc::ptr_eq(a.target.pipeline(), b.target.pipeline());
                differences.extend(pipeline.then_some("pipeline").into_iter().chain(b.text.differences(&a.text)));
            }
            (None, None) => break,
            _ => {
                differences.push("routes");
                break;
            }
        }
    }
    (!differences.is_empty()).then(|| differences.join(" and "))
}
