//! The threads that compute, and how an operation shares its work among them.
//!
//! Between the operations of a forward pass they wait awake: to wake a thread that sleeps takes as long as a small product.
#![expect(unsafe_code, reason = "threads call a closure that their leader lent them")]

mod shares;

use crate::error::{Error, Result};
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{JoinHandle, yield_now};

pub use shares::{WORTH, made_rows, share_chunks, share_items, share_results, share_rows, share_supply};

/// A thread that leads, and others that help it. Dropped, these end.
pub struct Threads {
    team: Arc<Team>,
    helpers: Vec<JoinHandle<()>>,
}

impl Threads {
    /// So many with the one that will lead; 0: one for every core that the process may use.
    ///
    /// # Errors
    /// Where one cannot be started.
    pub fn new(count: usize) -> Result<Self> {
        let count = match count {
            0 => std::thread::available_parallelism().map_or(1, |cores| cores.get()),
            count => count,
        };
        let mut threads = Self { team: Arc::new(Team::new(count)), helpers: Vec::new() };
        for number in 1..count {
            let team = threads.team.clone();
            let helper = std::thread::Builder::new().name(format!("compute-{number}"));
            let helper = helper.spawn(move || team.help());
            threads.helpers.push(helper.map_err(|e| Error::Internal(format!("cannot start compute threads: {e}")))?);
        }
        Ok(threads)
    }

    /// How many, with the one that leads.
    pub fn count(&self) -> usize {
        self.team.count
    }

    /// Runs `f`, in which [`share`] shares work among these threads.
    pub fn run<R>(&self, f: impl FnOnce() -> R) -> R {
        if self.team.is_led.swap(true, Ordering::Acquire) {
            // Two threads cannot lead; the second works alone.
            return f();
        }
        let _leads = Leads::now(&self.team);
        self.helpers.iter().for_each(|helper| helper.thread().unpark());
        f()
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.team.is_over.store(true, Ordering::Release);
        for helper in self.helpers.drain(..) {
            helper.thread().unpark();
            // A task that panicked has been told to its leader.
            let _ = helper.join();
        }
    }
}

/// While it is there, the calling thread leads.
struct Leads<'a>(&'a Team);

impl<'a> Leads<'a> {
    fn now(team: &'a Team) -> Self {
        LED.set(team);
        Self(team)
    }
}

impl Drop for Leads<'_> {
    fn drop(&mut self) {
        LED.set(std::ptr::null());
        self.0.is_led.store(false, Ordering::Release);
    }
}

thread_local! {
    /// The team that this thread leads, where it is not in a task.
    static LED: Cell<*const Team> = const { Cell::new(std::ptr::null()) };
}

/// How many threads share what the calling one now does.
pub fn threads() -> usize {
    match LED.get() {
        team if team.is_null() => 1,
        // SAFETY: a team that is led is there, see `Leads`.
        team => unsafe { (*team).count },
    }
}

/// Calls `f` once with each number below `count`, on all threads of [`Threads::run`]; elsewhere, and within such a call, on
/// this one.
///
/// # Panics
/// Where a call does, after all others.
pub fn share(count: usize, f: impl Fn(usize) + Sync) {
    let team = LED.get();
    if team.is_null() || count < 2 {
        return (0..count).for_each(f);
    }
    LED.set(std::ptr::null());
    // SAFETY: a team that is led is there, and this thread, which leads it, is in no task.
    let result = unsafe { (*team).lead(count, &f) };
    LED.set(team);
    result.unwrap_or_else(|panic| resume_unwind(panic));
}

/// What leader and helpers have in common.
struct Team {
    count: usize,
    is_led: AtomicBool,
    is_over: AtomicBool,
    /// The number of the job, in the upper half; whether it is open to helpers; how many have joined.
    state: AtomicU64,
    job: UnsafeCell<Option<Job>>,
    next: AtomicUsize,
    /// Helpers that had joined and have left.
    left: AtomicUsize,
    has_panicked: AtomicBool,
}

/// A closure and how often it is to be called.
#[derive(Clone, Copy)]
struct Job {
    f: *const (dyn Fn(usize) + Sync),
    count: usize,
}

// SAFETY: `job` is written by the leader while no helper is in it, and read by helpers that have joined.
unsafe impl Sync for Team {}
// SAFETY: the job's closure is `Sync`, and called only while its owner waits.
unsafe impl Send for Team {}

const OPEN: u64 = 1 << 31;
const JOINED: u64 = OPEN - 1;

/// How often a helper looks for a job before it lets others have its core.
const LOOKS: usize = 2000;

impl Team {
    fn new(count: usize) -> Self {
        Self {
            count: count.max(1),
            is_led: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            state: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            next: AtomicUsize::new(0),
            left: AtomicUsize::new(0),
            has_panicked: AtomicBool::new(false),
        }
    }

    /// Opens a job, takes part in it, and returns once nobody is in it any more.
    ///
    /// # Safety
    /// The caller is the one that leads, and in no job.
    unsafe fn lead(&self, count: usize, f: &(dyn Fn(usize) + Sync)) -> std::thread::Result<()> {
        // SAFETY: the closure outlives this call, and no helper looks at the job after it.
        let f = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), *const (dyn Fn(usize) + Sync)>(f) };
        let job = Job { f, count };
        // SAFETY: the last job is closed, and all who had joined it have left.
        unsafe { *self.job.get() = Some(job) };
        self.next.store(0, Ordering::Relaxed);
        self.left.store(0, Ordering::Relaxed);
        let number = (self.state.load(Ordering::Relaxed) >> 32).wrapping_add(1);
        self.state.store(number << 32 | OPEN, Ordering::Release);
        let result = catch_unwind(AssertUnwindSafe(|| self.work(job)));
        let joined = self.state.fetch_and(!OPEN, Ordering::AcqRel) & JOINED;
        let mut looks = 0;
        while (self.left.load(Ordering::Acquire) as u64) < joined {
            wait(&mut looks);
        }
        match (result, self.has_panicked.swap(false, Ordering::Relaxed)) {
            (Ok(()), true) => Err(Box::new("a thread that helps panicked")),
            (result, _) => result,
        }
    }

    /// Calls a job's closure with the numbers that nobody has taken.
    fn work(&self, job: Job) {
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= job.count {
                return;
            }
            // SAFETY: the closure is there until all who are in the job have left it.
            unsafe { (*job.f)(number) };
        }
    }

    /// What a helper does, until the end.
    fn help(&self) {
        let (mut last, mut looks) = (0, 0);
        while !self.is_over.load(Ordering::Acquire) {
            let state = self.state.load(Ordering::Acquire);
            let is_new = state & OPEN != 0 && state >> 32 != last;
            if is_new && self.state.compare_exchange(state, state + 1, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                // SAFETY: it has joined, so the leader leaves the job as it is.
                let job = unsafe { *self.job.get() };
                let result = catch_unwind(AssertUnwindSafe(|| job.into_iter().for_each(|job| self.work(job))));
                if result.is_err() {
                    self.has_panicked.store(true, Ordering::Relaxed);
                }
                self.left.fetch_add(1, Ordering::Release);
                (last, looks) = (state >> 32, 0);
            } else if self.is_led.load(Ordering::Acquire) {
                wait(&mut looks);
            } else {
                std::thread::park();
            }
        }
    }
}

/// Looks away for a moment; after many times, for as long as others want.
fn wait(looks: &mut usize) {
    *looks += 1;
    if *looks < LOOKS { std::hint::spin_loop() } else { yield_now() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_comes_once() {
        let team = Threads::new(4).unwrap();
        for count in [0, 1, 2, 3, 100, 5000] {
            let seen: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
            for _ in 0..50 {
                team.run(|| share(count, |number| _ = seen[number].fetch_add(1, Ordering::Relaxed)));
            }
            assert!(seen.iter().all(|seen| seen.load(Ordering::Relaxed) == 50));
        }
        assert_eq!((threads(), team.run(threads)), (1, 4));
    }

    #[test]
    fn several_threads_take_part() {
        let team = Threads::new(2).unwrap();
        let names = std::sync::Mutex::new(std::collections::HashSet::new());
        team.run(|| {
            // Ends when two have come.
            share(2, |_| {
                names.lock().unwrap().insert(std::thread::current().id());
                while names.lock().unwrap().len() < 2 {
                    yield_now();
                }
            });
        });
    }

    #[test]
    fn what_is_shared_within_a_task_is_not_shared_again() {
        let team = Threads::new(3).unwrap();
        let inner = AtomicUsize::new(0);
        team.run(|| {
            share(8, |_| {
                assert_eq!(threads(), 1);
                share(8, |_| _ = inner.fetch_add(1, Ordering::Relaxed));
            });
        });
        assert_eq!(inner.into_inner(), 64);
    }

    #[test]
    fn a_panic_reaches_the_leader_and_the_team_goes_on() {
        let team = Threads::new(3).unwrap();
        for bad in 0..20 {
            let result = catch_unwind(AssertUnwindSafe(|| {
                team.run(|| share(20, |number| assert!(number != bad, "one panics")));
            }));
            assert!(result.is_err());
            let sum = AtomicUsize::new(0);
            team.run(|| share(20, |number| _ = sum.fetch_add(number, Ordering::Relaxed)));
            assert_eq!(sum.into_inner(), 190);
        }
    }

    #[test]
    fn a_second_leader_works_alone() {
        let team = Threads::new(2).unwrap();
        team.run(|| {
            std::thread::scope(|scope| {
                let other = scope.spawn(|| team.run(threads));
                assert_eq!(other.join().unwrap(), 1);
            });
            assert_eq!(threads(), 2);
        });
    }
}
