//! Which sequences go together, and how they lie in rows. Pure: no clock, no channel, no device.

use super::{Sequence, Target};
use crate::model::{Adapter, Batch, Segment};
use std::collections::VecDeque;
use std::sync::Arc;

/// Takes from the queue what runs next: the oldest item, and after it, oldest first, whatever is for the same model and
/// still fits into `tokens_max`. The oldest is taken whatever its length. What is left keeps its order.
pub fn take<T>(queue: &mut VecDeque<T>, tokens_max: usize, sequence: impl Fn(&T) -> &Sequence) -> Vec<T> {
    let (mut taken, mut left) = (Vec::new(), VecDeque::with_capacity(queue.len()));
    let (mut model, mut room) = (None, tokens_max);
    while let Some(item) = queue.pop_front() {
        let Sequence { ids, target, .. } = sequence(&item);
        let fits = match &model {
            None => true,
            Some(model) => Arc::ptr_eq(model, &target.model) && ids.len() <= room,
        };
        if fits {
            room = room.saturating_sub(ids.len());
            model.get_or_insert_with(|| target.model.clone());
            taken.push(item);
        } else {
            left.push_back(item);
        }
        if room == 0 {
            break;
        }
    }
    left.append(queue);
    *queue = left;
    taken
}

/// The order in which sequences lie in a batch: pipeline by pipeline, and in each the base first, then adapter by
/// adapter. Which pipeline comes first has no meaning.
pub fn order<T>(items: &mut [T], sequence: impl Fn(&T) -> &Sequence) {
    items.sort_by_key(|item| {
        let target = &sequence(item).target;
        (Arc::as_ptr(&target.pipeline) as usize, key(&target.adapter))
    });
}

/// Packs ordered sequences of one model.
pub fn pack<'a>(sequences: impl Iterator<Item = &'a Sequence>) -> Batch {
    let mut batch = Batch { ids: Vec::new(), offsets: vec![0], prompts: Vec::new(), segments: Vec::new() };
    for (index, Sequence { ids, prompt_tokens, target }) in sequences.enumerate() {
        batch.ids.extend_from_slice(ids);
        batch.offsets.push(batch.ids.len());
        batch.prompts.push(*prompt_tokens);
        match batch.segments.last_mut() {
            Some(last) if same(last, target) => last.sequences.end = index + 1,
            _ => batch.segments.push(Segment {
                sequences: index..index + 1,
                adapter: target.adapter.clone(),
                pipeline: target.pipeline.clone(),
            }),
        }
    }
    batch
}

fn same(segment: &Segment, target: &Target) -> bool {
    key(&segment.adapter) == key(&target.adapter) && Arc::ptr_eq(&segment.pipeline, &target.pipeline)
}

/// A key that is equal for equal adapters, and smallest for none.
fn key(adapter: &Option<Arc<Adapter>>) -> usize {
    adapter.as_ref().map_or(0, |adapter| Arc::as_ptr(adapter) as usize)
}
