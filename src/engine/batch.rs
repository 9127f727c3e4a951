//! Which sequences go together, and how they lie in rows. Pure: no clock, no channel, no device.

use super::residents::{Found, Laid};
use super::{Sequence, Target};
use crate::error::Error;
use crate::model::{Adapter, Batch, Segment};
use std::collections::VecDeque;
use std::sync::Arc;

/// How many sequences that do not fit are passed over for one that does.
const PASSED_MAX: usize = 512;

/// How many that wait for their adapters are.
const COMING_MAX: usize = 8192;

/// What runs next, and what cannot.
pub struct Taken<T> {
    /// In the order in which they came.
    pub ready: Vec<(T, Laid)>,
    /// Whose adapter cannot be had.
    pub failed: Vec<(T, Error)>,
}

/// Takes from the queue what runs next: the oldest item whose adapter is `found`, and after it, oldest first, whatever else
/// is for the same model and still fits into `tokens_max`, as far as it looks. The oldest is taken whatever its length.
/// What is left keeps its order. `wanted` are an item's tokens and model.
pub fn take<T, M: PartialEq>(
    queue: &mut VecDeque<T>,
    tokens_max: usize,
    wanted: impl Fn(&T) -> (usize, M),
    mut found: impl FnMut(&T) -> Found,
) -> Taken<T> {
    let (mut taken, mut left) = (Taken { ready: Vec::new(), failed: Vec::new() }, Vec::new());
    let (mut model, mut room) = (None, tokens_max);
    let (mut passed, mut coming) = (0, 0);
    while room > 0 && passed < PASSED_MAX && coming < COMING_MAX {
        let Some(item) = queue.pop_front() else { break };
        let (tokens, of) = wanted(&item);
        let fits = model.as_ref().is_none_or(|model| *model == of && tokens <= room);
        if !fits {
            passed += 1;
            left.push(item);
            continue;
        }
        match found(&item) {
            Found::Here(laid) => {
                room = room.saturating_sub(tokens);
                model = Some(of);
                taken.ready.push((item, laid));
            }
            Found::Coming => {
                coming += 1;
                left.push(item);
            }
            Found::Failed(error) => taken.failed.push((item, error)),
        }
    }
    left.into_iter().rev().for_each(|item| queue.push_front(item));
    taken
}

/// The order in which sequences lie in a batch: pipeline by pipeline, and in each the base first, then adapter by
/// adapter, those side by side that change the same sites. Which pipeline comes first has no meaning.
pub fn order<T>(items: &mut [T], sequence: impl Fn(&T) -> &Sequence) {
    // A key is far from its item, and an item is large: each is looked at, and moved, once.
    items.sort_by_cached_key(|item| {
        let target = &sequence(item).target;
        let footprint = target.adapter.as_ref().map(|adapter| adapter.footprint());
        (Arc::as_ptr(target.pipeline()) as usize, footprint, key(&target.adapter))
    });
}

/// Tokens that are worth a thread of their own.
const PART_MIN: usize = 48;

/// Tokens whose hidden states stay in a core's cache from one product to the next.
const PART_MAX: usize = 128;

/// Sequences of a long queue by which it is decided how it is served.
const DECIDING: usize = 512;

/// Whether sequences of so many tokens each are worth a batch for every thread: no product waits for another thread, and
/// what a batch makes stays in its core's cache. Too few for that are not, nor are those of which one is longer than a
/// thread's fair share, for which the others would wait. Of a long queue the oldest decide.
pub fn is_worth_threads(tokens: impl Iterator<Item = usize>, threads: usize) -> bool {
    let oldest = tokens.take(DECIDING);
    let (total, longest) = oldest.fold((0, 0), |(total, longest), tokens| (total + tokens, tokens.max(longest)));
    threads > 1 && total >= threads * PART_MIN && longest * threads <= total
}

/// How many of the waiting tokens, sequence by sequence, one of so many idle threads takes.
pub fn part(tokens: impl Iterator<Item = usize>, idle: usize) -> usize {
    let idle = idle.max(1);
    let (mut total, enough) = (0, idle * PART_MAX);
    // Of a long queue no more than matters.
    for tokens in tokens {
        total += tokens;
        if total >= enough {
            break;
        }
    }
    total.div_ceil(idle).clamp(PART_MIN, PART_MAX)
}

/// Packs ordered sequences of one model, for the device of so many's replicas.
pub fn pack<'a>(sequences: impl Iterator<Item = (&'a Sequence, &'a Laid)> + Clone, device: usize) -> Batch {
    let tokens = sequences.clone().map(|(sequence, _)| sequence.ids.len()).sum();
    let mut batch =
        Batch { ids: Vec::with_capacity(tokens), offsets: vec![0], prompts: Vec::new(), segments: Vec::new() };
    let mut before: Option<&Target> = None;
    for (index, (Sequence { ids, prompt_tokens, target }, laid)) in sequences.enumerate() {
        batch.ids.extend_from_slice(ids);
        batch.offsets.push(batch.ids.len());
        batch.prompts.push(*prompt_tokens);
        match batch.segments.last_mut().filter(|_| before.is_some_and(|before| same(before, target))) {
            Some(last) => last.sequences.end = index + 1,
            None => batch.segments.push(Segment {
                sequences: index..index + 1,
                adapter: laid.adapter(),
                pipeline: target.replicas[device].pipeline.clone(),
            }),
        }
        before = Some(target);
    }
    batch
}

fn same(one: &Target, other: &Target) -> bool {
    key(&one.adapter) == key(&other.adapter) && Arc::ptr_eq(one.pipeline(), other.pipeline())
}

/// A key that is equal for equal adapters, and smallest for none.
fn key(adapter: &Option<Arc<Adapter>>) -> usize {
    adapter.as_ref().map_or(0, |adapter| Arc::as_ptr(adapter) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tokens, model, and what becomes of looking for the adapter: 0 it is there, 1 it comes, 2 it cannot.
    type Item = (usize, char, u8);

    fn taken(queue: &[Item], tokens_max: usize) -> [Vec<Item>; 3] {
        let mut queue = VecDeque::from(queue.to_vec());
        let found = |item: &Item| match item.2 {
            0 => Found::Here(Laid::Base),
            1 => Found::Coming,
            _ => Found::Failed(Error::OutOfMemory(1)),
        };
        let Taken { ready, failed } = take(&mut queue, tokens_max, |item| (item.0, item.1), found);
        [
            ready.into_iter().map(|(item, _)| item).collect(),
            failed.into_iter().map(|(item, _)| item).collect(),
            queue.into(),
        ]
    }

    #[test]
    fn the_oldest_goes_with_what_fits_beside_it_and_the_rest_keeps_its_order() {
        let queue = [(50, 'a', 0), (10, 'b', 0), (60, 'a', 0), (40, 'a', 0), (20, 'a', 0)];
        let [ready, failed, left] = taken(&queue, 100);
        assert_eq!((ready, failed), (vec![(50, 'a', 0), (40, 'a', 0)], vec![]));
        assert_eq!(left, [(10, 'b', 0), (60, 'a', 0), (20, 'a', 0)]);
        assert_eq!(taken(&[(500, 'a', 0), (1, 'a', 0)], 100)[0], [(500, 'a', 0)], "whatever its length");
    }

    #[test]
    fn who_waits_for_an_adapter_delays_nobody_and_stays_first() {
        let queue = [(50, 'a', 1), (10, 'b', 0), (60, 'a', 0), (40, 'b', 2), (5, 'b', 1), (30, 'b', 0)];
        let [ready, failed, left] = taken(&queue, 100);
        assert_eq!(ready, [(10, 'b', 0), (30, 'b', 0)], "the oldest that is ready says which model");
        assert_eq!(failed, [(40, 'b', 2)]);
        assert_eq!(left, [(50, 'a', 1), (60, 'a', 0), (5, 'b', 1)]);
        assert!(taken(&[(50, 'a', 1)], 100)[0].is_empty());
        // Not even as many as one request may have.
        let many = [vec![(50, 'a', 1); 2048], vec![(10, 'b', 0)]].concat();
        assert_eq!(taken(&many, 100)[0], [(10, 'b', 0)]);
    }

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
        assert_eq!((part([40; 5].into_iter(), 2), part([40; 500].into_iter(), 2)), (100, PART_MAX));
        let part = |tokens, idle| part([tokens].into_iter(), idle);
        assert_eq!((part(200, 2), part(120, 1), part(20, 2), part(9000, 2)), (100, 120, PART_MIN, PART_MAX));
    }
}
