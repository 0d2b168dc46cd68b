//! Atomic, volatile and relaxed accesses, as the race check remembers them.
//!
//! They need no order to each other, so the last one says nothing of those before it, nor of the plain
//! accesses before them: they are kept apart from these, the last load and the last store or atomic of
//! each warp. Few words of a kernel see any.

use std::collections::HashMap;

use super::{Clock, Entry, Who};

#[derive(Default)]
pub(in crate::exec) struct Strong {
    /// By grain; a store's or an atomic's entry is marked `ATOMIC`, a load's is not.
    grains: HashMap<usize, Vec<Entry>>,
}

impl Strong {
    pub fn note(&mut self, grain: usize, me: Entry) {
        let list = self.grains.entry(grain).or_default();
        let same = |e: &&mut Entry| e.party() == me.party() && e.atomic() == me.atomic();
        match list.iter_mut().find(same) {
            Some(e) => *e = me,
            None => list.push(me),
        }
    }

    /// What a plain access now is not ordered after: a write must be ordered after loads too.
    #[inline]
    pub fn unordered(&self, grain: usize, known: &Clock, who: Who, write: bool) -> Option<Entry> {
        if self.grains.is_empty() {
            return None;
        }
        let list = self.grains.get(&grain)?;
        list.iter()
            .filter(|e| (write || e.atomic()) && e.unordered(known, who))
            .max_by_key(|e| e.atomic())
            .copied()
    }

    /// The latest store or atomic.
    pub fn last_write(&self, grain: usize) -> Option<Entry> {
        if self.grains.is_empty() {
            return None;
        }
        self.grains
            .get(&grain)?
            .iter()
            .rfind(|e| e.atomic())
            .copied()
    }

    /// A plain write was ordered after everything: what is ordered after it is so too.
    #[inline]
    pub fn forget(&mut self, grain: usize) {
        if !self.grains.is_empty() {
            self.grains.remove(&grain);
        }
    }
}
