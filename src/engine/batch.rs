//! Which sequences go together, and how they lie in rows. Pure: no clock, no channel, no device.

use super::{Sequence, Target};
use crate::model::{Adapter, Batch, Segment};
use std::collections::VecDeque;
use std::sync::Arc;

/// How many sequences are looked at for what still fits.
const LOOKS: usize = 512;

/// Takes from the queue what runs next: the oldest item, and after it, oldest first, whatever is for the same model and
/// still fits into `tokens_max`, as far as it looks. The oldest is taken whatever its length. What is left keeps its order.
pub fn take<T>(queue: &mut VecDeque<T>, tokens_max: usize, sequence: impl Fn(&T) -> &Sequence) -> Vec<T> {
    let (mut taken, mut left) = (Vec::new(), Vec::new());
    let (mut model, mut room) = (None, tokens_max);
    while room > 0 && left.len() < LOOKS {
        let Some(item) = queue.pop_front() else { break };
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
            left.push(item);
        }
    }
    left.into_iter().rev().for_each(|item| queue.push_front(item));
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

/// Tokens that are worth a thread of their own.
const PART_MIN: usize = 48;

/// Tokens whose hidden states stay in a core's cache from one product to the next.
const PART_MAX: usize = 128;

/// Whether sequences of so many tokens each are worth a batch for every thread: no product waits for another thread, and
/// what a batch makes stays in its core's cache. Too few for that are not, nor are those of which one is longer than a
/// thread's fair share, for which the others would wait.
pub fn is_worth_threads(tokens: impl Iterator<Item = usize>, threads: usize) -> bool {
    let (total, longest) = tokens.fold((0, 0), |(total, longest), tokens| (total + tokens, tokens.max(longest)));
    threads > 1 && total >= threads * PART_MIN && longest * threads <= total
}

/// How many of so many waiting tokens one of so many idle threads takes.
pub fn part(tokens: usize, idle: usize) -> usize {
    tokens.div_ceil(idle.max(1)).clamp(PART_MIN, PART_MAX)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_worth_it_where_each_has_its_share() {
        let is_worth = |tokens: &[usize], threads| is_worth_threads(tokens.iter().copied(), threads);
        assert!(is_worth(&[12; 20], 2));
        assert!(!is_worth(&[12; 20], 8));
        assert!(!is_worth(&[12, 12, 12], 2));
        assert!(!is_worth(&[600, 5, 40], 2));
        assert!(!is_worth(&[100; 10], 1));
        assert!(is_worth(&[100; 5], 4));
    }

    #[test]
    fn an_idle_thread_takes_its_share_and_no_more_than_its_cache_holds() {
        assert_eq!((part(200, 2), part(120, 1), part(20, 2), part(9000, 2)), (100, 120, PART_MIN, PART_MAX));
    }
}
