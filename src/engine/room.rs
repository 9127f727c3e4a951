//! What lies in a bounded room or is on its way there, and who goes when another one comes. Pure: no thread, no device.

use crate::error::{Error, Result};
use std::collections::HashMap;

/// Things by their keys, of so many bytes together.
pub struct Known<T> {
    entries: HashMap<usize, Entry<T>>,
    /// Of all entries.
    bytes: usize,
    bytes_max: usize,
    /// Which look through the queue it is.
    look: u64,
    /// The last look that had no room for something.
    full: u64,
    /// What failed, and during which look.
    failed: Vec<(usize, u64)>,
    /// What has gone and is not dropped yet, which takes a while.
    gone: Vec<T>,
}

struct Entry<T> {
    /// What was asked for; held, it keeps its key.
    _asked: T,
    state: State<T>,
    bytes: usize,
    /// The last look that found somebody who wants it.
    wanted: u64,
}

enum State<T> {
    Coming,
    Here(T),
    Failed(Error),
}

impl<T: Clone> Known<T> {
    /// Nothing yet.
    pub fn new(bytes_max: usize) -> Self {
        let (failed, gone) = (Vec::new(), Vec::new());
        Self { entries: HashMap::new(), bytes: 0, bytes_max, look: 1, full: 0, failed, gone }
    }

    /// Begins another look through the queue: what is found from now on stays until the next. What had failed before the
    /// last one, where all who wanted it have heard so, may be asked for again.
    pub fn look(&mut self) {
        self.look += 1;
        let (old, new) = std::mem::take(&mut self.failed).into_iter().partition(|(_, look)| look + 1 < self.look);
        self.failed = new;
        let old: Vec<(usize, u64)> = old;
        old.into_iter().for_each(|(key, _)| self.remove(key));
    }

    /// What has gone, to be dropped when nobody waits for this.
    pub fn gone(&mut self) -> Vec<T> {
        std::mem::take(&mut self.gone)
    }

    /// What is there, or nothing while it is on its way; none where it was not asked for yet.
    pub fn find(&mut self, key: usize) -> Option<Result<Option<T>>> {
        let entry = self.entries.get_mut(&key)?;
        entry.wanted = self.look;
        match &entry.state {
            State::Coming => Some(Ok(None)),
            State::Here(there) => Some(Ok(Some(there.clone()))),
            State::Failed(error) => Some(Err(error.clone())),
        }
    }

    /// Lets those go that were not wanted for the longest, until there is room for so many bytes; whether there is. One that
    /// is larger than all room gets that and more, alone.
    pub fn make_room(&mut self, bytes: usize) -> bool {
        // Who comes after one that has found no room finds none either.
        if self.full == self.look {
            return false;
        }
        while self.bytes + bytes > self.bytes_max && self.let_one_go() {}
        let is_there = self.bytes + bytes <= self.bytes_max || self.bytes == 0;
        self.full = if is_there { self.full } else { self.look };
        is_there
    }

    /// Lets so many bytes go, or all that this look does not want; whether there were any.
    pub fn let_go(&mut self, bytes: usize) -> bool {
        let before = self.bytes;
        while before - self.bytes < bytes && self.let_one_go() {}
        before > self.bytes
    }

    fn let_one_go(&mut self) -> bool {
        let can_go = |entry: &Entry<T>| entry.wanted < self.look && matches!(entry.state, State::Here(_));
        let oldest = self.entries.iter().filter(|(_, entry)| can_go(entry)).min_by_key(|(_, entry)| entry.wanted);
        let oldest = oldest.map(|(key, _)| *key);
        oldest.map(|key| self.remove(key)).is_some()
    }

    fn remove(&mut self, key: usize) {
        if let Some(entry) = self.entries.remove(&key) {
            self.bytes -= entry.bytes;
            if let State::Here(there) = entry.state {
                self.gone.push(there);
            }
        }
    }

    /// It has been asked for.
    pub fn expect(&mut self, key: usize, asked: T, bytes: usize) {
        self.bytes += bytes;
        self.entries.insert(key, Entry { _asked: asked, state: State::Coming, bytes, wanted: self.look });
    }

    /// It has come, and so many bytes are what it takes; or it cannot.
    pub fn put(&mut self, key: usize, came: Result<(usize, T)>) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        let (bytes, state) = match came {
            Ok((bytes, there)) => (bytes, State::Here(there)),
            Err(error) => {
                self.failed.push((key, self.look));
                (0, State::Failed(error))
            }
        };
        self.bytes = self.bytes - entry.bytes + bytes;
        (entry.bytes, entry.state) = (bytes, state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::below;

    /// Whatever is wanted, in whatever order it comes: everybody gets it in the end, in no more room than there is.
    #[test]
    fn everybody_is_served_and_the_room_is_never_overfull() {
        for _ in 0..200 {
            let bytes_max = 10 + below(100);
            let sizes: Vec<usize> = (0..1 + below(20)).map(|_| 1 + below(30)).collect();
            let mut known = Known::new(bytes_max);
            let mut queue: Vec<usize> = (0..below(200)).map(|_| below(sizes.len())).collect();
            let (mut coming, mut rounds, all) = (Vec::new(), 0, queue.len());
            while !queue.is_empty() {
                rounds += 1;
                assert!(rounds <= 20 * (all + 1), "nobody is served any more");
                known.look();
                queue.retain(|key| match known.find(*key) {
                    Some(Ok(Some(there))) => {
                        assert_eq!(there, *key);
                        false
                    }
                    Some(Ok(None)) => true,
                    Some(Err(_)) => false,
                    None => {
                        if known.make_room(sizes[*key]) {
                            known.expect(*key, *key, sizes[*key]);
                            coming.push(*key);
                        }
                        true
                    }
                });
                while !coming.is_empty() && (below(2) == 0 || queue.is_empty()) {
                    let key = coming.swap_remove(below(coming.len()));
                    let came = if below(10) == 0 { Err(Error::OutOfMemory(1)) } else { Ok((sizes[key], key)) };
                    known.put(key, came);
                }
                let there = known.entries.values().filter(|entry| entry.bytes > 0).count();
                assert!(known.bytes <= bytes_max || there == 1, "{} of {bytes_max}", known.bytes);
                assert_eq!(known.bytes, known.entries.values().map(|entry| entry.bytes).sum::<usize>());
            }
        }
    }

    #[test]
    fn who_was_not_wanted_for_the_longest_goes_and_who_is_wanted_now_stays() {
        let mut known = Known::new(3);
        for key in 0..3 {
            known.look();
            assert!(known.find(key).is_none() && known.make_room(1));
            known.expect(key, key, 1);
            known.put(key, Ok((1, key)));
        }
        known.look();
        assert!(known.find(0).is_some());
        assert!(known.make_room(1) && known.find(1).is_none(), "1 has gone, and not 0");
        assert!(known.make_room(2) && known.find(2).is_none(), "2 has gone");
        assert!(!known.make_room(3) && known.find(0).is_some(), "0 is wanted");
        assert!(!known.make_room(1), "who comes later does not go before");
        known.look();
        assert!(known.make_room(1) && known.let_go(1) && known.find(0).is_none());
        assert_eq!(known.gone(), [1, 2, 0]);
    }

    #[test]
    fn of_what_failed_all_who_wait_for_it_hear_and_the_next_may_try_again() {
        let mut known = Known::new(3);
        known.look();
        known.expect(7, 7, 1);
        known.put(7, Err(Error::OutOfMemory(1)));
        known.look();
        assert!((0..3).all(|_| matches!(known.find(7), Some(Err(Error::OutOfMemory(1))))));
        known.look();
        assert!(known.find(7).is_none() && known.bytes == 0);
    }
}
