//! The parties of a block that have clocks: its warps, and the units that work beside them.
//!
//! What an asynchronous unit does is ordered before a warp once the warp has observed its completion:
//! the warp's clock then knows the unit's.
//!
//! - A warpgroup's tensor operations complete in the order of their issue; the clock counts them.
//! - Bulk groups of a warp: one party counts the copies whose sources have been read, one those whose
//!   bytes have been written.
//! - An mbarrier that tracks bulk copies: the clock counts its phases. Whoever has seen a phase complete
//!   has seen every copy that completed in it or before.

use std::collections::HashMap;

/// How many mbarriers of a block can track bulk copies.
pub(in crate::exec) const MAX_TRACKING: usize = 64;

#[derive(Debug)]
pub(in crate::exec) struct Parties {
    warps: usize,
    /// Whether the kernel has asynchronous units at all.
    units: bool,
    /// Of each mbarrier that tracks copies, the warp that last gave it one and the phases completed.
    tracking_of: Vec<(usize, u32)>,
    tracking: HashMap<u32, usize>,
}

impl Parties {
    pub fn new(warps: usize, units: bool) -> Self {
        Self {
            warps,
            units,
            tracking_of: Vec::new(),
            tracking: HashMap::new(),
        }
    }

    fn groups(&self) -> usize {
        self.warps.div_ceil(4)
    }

    /// Length of a clock.
    pub fn len(&self) -> usize {
        match self.units {
            false => self.warps,
            true => self.first_mbarrier() + MAX_TRACKING,
        }
    }

    pub fn warpgroup(&self, group: usize) -> usize {
        self.warps + group
    }

    pub fn bulk_reads(&self, warp: usize) -> usize {
        self.warps + self.groups() + warp
    }

    pub fn bulk_writes(&self, warp: usize) -> usize {
        self.bulk_reads(self.warps) + warp
    }

    fn first_mbarrier(&self) -> usize {
        self.bulk_writes(self.warps)
    }

    /// The party of the mbarrier at an address, to which a warp gives work. `None` when there are too
    /// many.
    pub fn mbarrier(&mut self, address: u32, warp: usize) -> Option<usize> {
        let next = self.tracking_of.len();
        let i = *self.tracking.entry(address).or_insert(next);
        if i == next {
            self.tracking_of.push((warp, 0));
        }
        self.tracking_of[i].0 = warp;
        (i < MAX_TRACKING).then(|| self.first_mbarrier() + i)
    }
    /// A phase of an mbarrier completes: the party and its clock, if it tracks copies.
    pub fn complete_phase(&mut self, address: u32) -> Option<(usize, u32)> {
        let i = *self.tracking.get(&address)?;
        let phases = &mut self.tracking_of[i].1;
        *phases += 1;
        let clock = *phases;
        Some((self.first_mbarrier() + i, clock))
    }

    /// What the clock of an mbarrier's party will be when its current phase is complete.
    pub fn current_phase(&self, party: usize) -> u32 {
        let i = party - self.first_mbarrier();
        self.tracking_of.get(i).map_or(0, |t| t.1) + 1
    }
    /// The warp that stands for a party in a report.
    pub fn warp(&self, party: usize) -> usize {
        if party < self.warps {
            party
        } else if party < self.bulk_reads(0) {
            4 * (party - self.warps)
        } else if party < self.first_mbarrier() {
            (party - self.bulk_reads(0)) % self.warps
        } else {
            self.tracking_of
                .get(party - self.first_mbarrier())
                .map_or(0, |t| t.0)
        }
    }
}
