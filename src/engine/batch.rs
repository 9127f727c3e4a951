//! Which sequences go together, and how they lie in rows. Pure: no clock, no channel, no device.

use super::{Sequence, Target};
use crate::model::{Adapter, Batch, Segment};
use std::collections::VecDeque;
use std::ops::Range;
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

/// Tokens that are worth a thread of their own.
const PART_MIN: usize = 48;

/// Tokens whose hidden states stay in a core's cache from one product to the next.
const PART_MAX: usize = 128;

/// Ordered sequences of so many tokens each, as parts that `threads` run side by side: no product waits for another thread,
/// and what a part makes stays in its core's cache. Too few for that are one part, whose products the threads share, and so
/// are those of which one is longer than a thread's fair share, for which the others would wait.
pub fn parts(tokens: &[usize], threads: usize) -> Vec<Range<usize>> {
    let total: usize = tokens.iter().sum();
    let longest = tokens.iter().max().copied().unwrap_or_default();
    let is_one = total < threads * PART_MIN || longest * threads > total;
    let count = if threads < 2 || is_one { 1 } else { total.div_ceil(PART_MAX).next_multiple_of(threads) };
    let (mut parts, mut start, mut sum) = (Vec::with_capacity(count), 0, 0);
    for (index, tokens) in tokens.iter().enumerate() {
        // A part ends with the sequence after which it is nearest to its share.
        let end = total * (parts.len() + 1) / count;
        if index > start && sum + tokens / 2 > end {
            parts.push(start..index);
            start = index;
        }
        sum += tokens;
    }
    parts.push(start..tokens.len());
    parts
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
    fn parts_are_of_nearly_one_size_and_leave_nothing_out() {
        for tokens in [vec![12; 32], vec![200, 10, 10, 180, 16, 90], vec![30; 3], vec![600, 5], vec![0; 4], vec![9]] {
            let parts = parts(&tokens, 2);
            let all: Vec<usize> = parts.iter().flat_map(Clone::clone).collect();
            assert_eq!(all, (0..tokens.len()).collect::<Vec<_>>());
            let longest = tokens.iter().max().copied().unwrap_or_default();
            let sums: Vec<usize> = parts.iter().map(|part| tokens[part.clone()].iter().sum()).collect();
            let fair = tokens.iter().sum::<usize>() / parts.len();
            assert!(sums.iter().all(|sum| *sum <= fair + longest && fair <= sum + longest), "{sums:?}");
        }
        assert_eq!(parts(&[12; 20], 2), [0..10, 10..20]);
        assert_eq!(parts(&[12, 12, 12], 2).len(), 1);
        assert_eq!(parts(&[600, 5, 40], 2).len(), 1);
        assert_eq!(parts(&[100; 10], 1).len(), 1);
        assert_eq!(parts(&[100; 5], 4).len(), 4);
        assert_eq!(parts(&[16; 64], 2).len(), 8);
    }
}
