//! Proxy fences: which writes of the generic proxy the asynchronous proxy can see.
//!
//! A write is visible to an asynchronous access when the thread that wrote executed a proxy fence after
//! it, and the fence is ordered before whoever starts the access.

use super::Clock;
use super::entry::Entry;

/// What a proxy fence reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::exec) enum Reach {
    Shared,
    Global,
    /// The initialisation of mbarriers.
    Init,
}

/// The fences of one warp: its clock then, and the lanes.
type List = Vec<(u32, u32)>;

#[derive(Debug, Default)]
pub(in crate::exec) struct Fences {
    warps: Vec<[List; 3]>,
}

impl Fences {
    pub fn new(warps: usize) -> Self {
        Self {
            warps: vec![Default::default(); warps],
        }
    }

    pub fn note(&mut self, warp: usize, clock: u32, mask: u32, reach: Reach) {
        self.warps[warp][reach as usize].push((clock, mask));
    }

    /// Whether an asynchronous access of somebody who knows `known` can see a write.
    pub fn cover(&self, write: Entry, known: &Clock, reach: Reach) -> bool {
        let Some(lists) = self.warps.get(write.party()) else {
            return true;
        };
        let list = &lists[reach as usize];
        let first = list.partition_point(|&(clock, _)| clock < write.clock());
        list[first..]
            .iter()
            .take_while(|&&(clock, _)| clock < known[write.party()])
            .any(|&(_, mask)| mask >> write.lane() & 1 != 0)
    }
}
