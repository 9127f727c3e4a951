//! What threads share: chunks and rows of a slice, items, a supply that lasts for a while.
#![expect(unsafe_code, reason = "threads write parts of a slice that their leader lent them")]

use super::{share, threads};
use crate::error::Result;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Calls `f` with each chunk of a slice and its number, as [`share`] does.
pub fn share_chunks<T: Send>(slice: &mut [T], length: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    /// A slice's start, for all threads.
    struct Start<T>(*mut T);
    // SAFETY: threads make of it parts that do not overlap.
    unsafe impl<T: Send> Sync for Start<T> {}
    impl<T> Start<T> {
        /// # Safety
        /// The part lies in the slice, and nobody else has any of it.
        unsafe fn part<'a>(&self, first: usize, length: usize) -> &'a mut [T] {
            // SAFETY: as the caller has it.
            unsafe { std::slice::from_raw_parts_mut(self.0.add(first), length) }
        }
    }
    let (start, total, length) = (Start(slice.as_mut_ptr()), slice.len(), length.max(1));
    share(total.div_ceil(length), |chunk| {
        let first = chunk * length;
        // SAFETY: each number comes once, so no two parts overlap, and the slice is borrowed until all are done.
        f(chunk, unsafe { start.part(first, length.min(total - first)) });
    });
}

/// Elements whose work is worth a thread's while.
pub const WORTH: usize = 16384;

/// Calls `f` with each row of so many elements and its number, as [`share`] does.
pub fn share_rows<T: Send>(rows: &mut [T], width: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    let width = width.max(1);
    let together = 1 + WORTH / width;
    share_chunks(rows, together * width, |chunk, rows| {
        rows.chunks_exact_mut(width).enumerate().for_each(|(row, y)| f(chunk * together + row, y));
    });
}

/// New rows of so many elements, which `f` finds full of zeros and then changes, as [`share`] does. (Zeros that are written
/// row by row, where they are needed next, cost next to nothing; those of a whole matrix as much as a small product.)
pub fn made_rows(count: usize, width: usize, f: impl Fn(usize, &mut [f32]) + Sync) -> Vec<f32> {
    let mut all = Vec::with_capacity(count * width);
    share_rows(&mut all.spare_capacity_mut()[..count * width], width, |row, y| f(row, zeros(y)));
    // SAFETY: every row was there once, and was filled.
    unsafe { all.set_len(count * width) };
    all
}

/// Memory, made zeros.
fn zeros(memory: &mut [MaybeUninit<f32>]) -> &mut [f32] {
    memory.fill(MaybeUninit::new(0.0));
    // SAFETY: all elements have been written.
    unsafe { memory.assume_init_mut() }
}

/// Calls `f` with each item, as [`share`] does.
pub fn share_items<T: Send>(items: Vec<T>, f: impl Fn(T) + Sync) {
    let mut items: Vec<Option<T>> = items.into_iter().map(Some).collect();
    share_chunks(&mut items, 1, |_, item| item.iter_mut().filter_map(Option::take).for_each(&f));
}

/// What `f` makes of each item, in their order, as [`share`] does; up to the first item that it fails for, with that one's
/// error. After a failure no later item is begun.
pub fn share_results<T: Sync, R: Send>(items: &[T], f: impl Fn(&T) -> Result<R> + Sync) -> (Vec<R>, Result<()>) {
    let first_failed = AtomicUsize::new(items.len());
    let mut results: Vec<Option<Result<R>>> = items.iter().map(|_| None).collect();
    share_chunks(&mut results, 1, |number, result| {
        if number < first_failed.load(Ordering::Relaxed) {
            let made = f(&items[number]);
            if made.is_err() {
                // One before it may fail later.
                first_failed.fetch_min(number, Ordering::Relaxed);
            }
            result[0] = Some(made);
        }
    });
    let mut made = Vec::with_capacity(items.len());
    for result in results.into_iter().flatten() {
        match result {
            Ok(one) => made.push(one),
            Err(error) => return (made, Err(error)),
        }
    }
    (made, Ok(()))
}

/// Looks in a row at which nobody was busy, before a thread leaves. One would not do: who has just taken an item says so a
/// moment later, and may be interrupted before.
const QUIET: u32 = 16;

/// Calls `f` with each item that `next` gives, on all threads of [`Threads::run`], until it has none and no call of `f` is
/// left during which more may come. `next` is told how many threads have nothing to do, with the one that asks but without
/// others that ask at the same moment.
pub fn share_supply<T>(next: impl Fn(usize) -> Option<T> + Sync, f: impl Fn(T) + Sync) {
    /// Counts a thread while it is there.
    struct Counted<'a>(&'a AtomicUsize);
    impl<'a> Counted<'a> {
        /// With how many there were before.
        fn among(count: &'a AtomicUsize) -> (Self, usize) {
            let others = count.fetch_add(1, Ordering::AcqRel);
            (Self(count), others)
        }
    }
    impl Drop for Counted<'_> {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::AcqRel);
        }
    }
    // Who asks is not busy: of many threads with nothing to do, one asks at any time, and the others would wait for it.
    let (count, asking, busy) = (threads(), AtomicUsize::new(0), AtomicUsize::new(0));
    share(count, |_| {
        let (mut asked, mut quiet) = (0, 0);
        loop {
            let (asks, others) = Counted::among(&asking);
            if let Some(item) = next(count.saturating_sub(others + busy.load(Ordering::Acquire)).max(1)) {
                let _busy = Counted::among(&busy);
                drop(asks);
                f(item);
                (asked, quiet) = (0, 0);
                continue;
            }
            drop(asks);
            if busy.load(Ordering::Acquire) > 0 {
                quiet = 0;
                look_away(&mut asked);
            } else if quiet < QUIET {
                quiet += 1;
                std::thread::yield_now();
            } else {
                return;
            }
        }
    });
}

/// Before something is asked for again that others want too: longer each time, up to some ten microseconds.
fn look_away(times: &mut u32) {
    (0..1 << (*times).min(8)).for_each(|_| std::hint::spin_loop());
    if *times >= 16 {
        std::thread::yield_now();
    }
    *times = times.saturating_add(1);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::kernels::threads::Threads;
    use std::sync::Mutex;

    #[test]
    fn chunks_are_the_whole_slice() {
        let team = Threads::new(3).unwrap();
        let mut numbers = vec![0; 1001];
        team.run(|| share_chunks(&mut numbers, 10, |chunk, part| part.fill(chunk)));
        assert!(numbers.iter().enumerate().all(|(place, chunk)| *chunk == place / 10));
        let sum = AtomicUsize::new(0);
        team.run(|| share_items(vec![1, 2, 3, 4], |item| _ = sum.fetch_add(item, Ordering::Relaxed)));
        assert_eq!(sum.into_inner(), 10);
    }

    #[test]
    fn results_come_in_order_up_to_the_first_error() {
        let items: Vec<u64> = (0..100).collect();
        for count in [1, 4] {
            let team = Threads::new(count).unwrap();
            let results = |fails: fn(u64) -> bool| {
                let begun = AtomicUsize::new(0);
                let (made, outcome) = team.run(|| {
                    share_results(&items, |item| {
                        begun.fetch_add(1, Ordering::Relaxed);
                        // What comes after it, and fails too, fails sooner.
                        if *item == 20 {
                            std::thread::sleep(std::time::Duration::from_millis(20));
                        }
                        if fails(*item) { Err(Error::Config(item.to_string())) } else { Ok(item * item) }
                    })
                });
                (made, outcome.map_err(|error| error.to_string()), begun.into_inner())
            };
            let squares = |end: u64| (0..end).map(|item| item * item).collect::<Vec<_>>();
            assert_eq!(results(|_| false), (squares(100), Ok(()), 100));
            let (made, outcome, begun) = results(|item| item >= 20);
            assert_eq!((made, outcome), (squares(20), Err("20".to_owned())));
            assert!(begun <= 20 + count, "{begun} of 100 begun by {count}");
        }
    }

    #[test]
    fn a_supply_is_used_up_with_what_comes_meanwhile() {
        let team = Threads::new(3).unwrap();
        for _ in 0..50 {
            let (left, sum) = (Mutex::new(vec![5; 4]), AtomicUsize::new(0));
            team.run(|| {
                let next = |idle| {
                    assert!((1..=3).contains(&idle));
                    left.lock().unwrap().pop()
                };
                // 5 brings 4, and so on.
                share_supply(next, |item| {
                    sum.fetch_add(item, Ordering::Relaxed);
                    left.lock().unwrap().extend((item > 1).then(|| item - 1));
                });
            });
            assert_eq!(sum.into_inner(), 4 * 15);
        }
    }

    #[test]
    fn it_ends_though_some_thread_asks_at_any_time() {
        let team = Threads::new(16).unwrap();
        let (left, sum) = (Mutex::new(vec![1; 40]), AtomicUsize::new(0));
        team.run(|| {
            // Of those that ask, all but one wait for the lock.
            let next = |_| {
                let mut left = left.lock().unwrap();
                std::thread::sleep(std::time::Duration::from_micros(100));
                left.pop()
            };
            share_supply(next, |item| _ = sum.fetch_add(item, Ordering::Relaxed));
        });
        assert_eq!(sum.into_inner(), 40);
    }
}
