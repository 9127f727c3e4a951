//! How many tokens a batch may have: as many as configured or found, and fewer after one that did not fit into the device's
//! memory. What was missing may be there again later, so the bound rises again where batches fit.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Batches in a row after which twice as many tokens are tried: one in so many may fail, and is halved then.
const KEPT: usize = 256;

pub struct Bound {
    most: usize,
    now: AtomicUsize,
    /// Batches since it changed.
    kept: AtomicUsize,
}

impl Bound {
    pub fn new(most: usize) -> Self {
        Self { most, now: AtomicUsize::new(most), kept: AtomicUsize::new(0) }
    }

    /// Tokens of a batch, at most.
    pub fn tokens(&self) -> usize {
        self.now.load(Ordering::Relaxed)
    }

    /// A batch of so many tokens did not fit.
    pub fn exceeded(&self, tokens: usize) {
        self.now.fetch_min((tokens / 2).max(1), Ordering::Relaxed);
        self.kept.store(0, Ordering::Relaxed);
    }

    /// One did.
    pub fn kept(&self) {
        let now = self.tokens();
        if now < self.most && self.kept.fetch_add(1, Ordering::Relaxed) + 1 >= KEPT {
            self.now.store(now.saturating_mul(2).min(self.most), Ordering::Relaxed);
            self.kept.store(0, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_falls_with_what_does_not_fit_and_rises_again_with_what_does() {
        let bound = Bound::new(100);
        let keep = |times: usize| (0..times).for_each(|_| bound.kept());
        keep(3 * KEPT);
        assert_eq!(bound.tokens(), 100);
        bound.exceeded(60);
        bound.exceeded(90);
        assert_eq!(bound.tokens(), 30, "a larger one that fails later does not raise it");
        keep(KEPT - 1);
        assert_eq!(bound.tokens(), 30);
        keep(1);
        assert_eq!(bound.tokens(), 60);
        keep(KEPT);
        assert_eq!(bound.tokens(), 100);
        bound.exceeded(0);
        assert_eq!(bound.tokens(), 1);
    }
}
