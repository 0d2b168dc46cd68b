//! Shared memory of one block: bytes, and who touched them last.
//!
//! Ordering is by vector clocks of warps. A warp's own clock ticks when it releases (a barrier, an
//! mbarrier arrival, a fence before an atomic); what others learn of it they learn by acquiring. Lanes
//! of one warp are ordered by program order, converged or not: only two lanes that store different
//! values to one address in one instruction are reported.

mod asynchronous;
mod entry;
mod fences;
mod parties;
mod strong;

use std::collections::HashMap;

use super::{Exec, raise};
use crate::config::Checks;
use crate::error::{Access, FaultKind, Space};
pub(super) use asynchronous::UnitRead;
pub(super) use entry::Entry;
use entry::written;
pub(crate) use entry::{Conflict, Kind, Who};
pub(super) use fences::{Fences, Reach};
pub(super) use parties::Parties;
pub(super) use strong::Strong;

pub(crate) type Clock = Vec<u32>;

pub(crate) fn join(into: &mut [u32], from: &[u32]) {
    for (a, b) in into.iter_mut().zip(from) {
        *a = (*a).max(*b);
    }
}

pub(crate) struct SharedMemory {
    pub bytes: Vec<u8>,
    grain_shift: u32,
    warps: usize,
    races: bool,
    uninit: bool,
    /// Per grain: its last plain write, whose bytes are there or on their way. An atomic
    /// store to bytes that nobody wrote leaves an entry that everybody knows.
    writes: Vec<Entry>,
    /// Per grain and warp: its last plain read.
    reads: Vec<Entry>,
    /// Per grain: the last reads of asynchronous units; a column per warpgroup and one for bulk copies.
    unit_reads: Vec<Entry>,
    columns: usize,
    strong: Strong,
    pub parties: Parties,
    pub fences: Fences,
    /// `vc[warp]`: what each warp knows of the others; its own slot is its clock.
    pub vc: Vec<Clock>,
    /// What a warp had done at its last fence.
    fenced: Vec<Option<Clock>>,
    /// Clocks published through atomics, by address.
    published: HashMap<u64, Clock>,
    /// Whether anybody needs the clocks.
    clocks: bool,
}

impl SharedMemory {
    /// `units`: whether the kernel has instructions of the asynchronous proxy.
    pub fn new(size: u32, grain: u32, warps: usize, units: bool, checks: Checks) -> Self {
        let grain_shift = grain.clamp(1, 16).trailing_zeros();
        let grains = (size as usize).div_ceil(1 << grain_shift);
        let Checks {
            shared_races: races,
            uninit_shared: uninit,
            global_races,
            ..
        } = checks;
        let shadow = if races || uninit { grains } else { 0 };
        let parties = Parties::new(warps, units);
        let columns = if units && races {
            warps.div_ceil(4) + 1
        } else {
            0
        };
        let mut vc = vec![vec![0; parties.len()]; warps];
        for (w, c) in vc.iter_mut().enumerate() {
            c[w] = 1;
        }
        Self {
            bytes: vec![0; size as usize],
            grain_shift,
            warps,
            races,
            uninit,
            writes: vec![Entry::NONE; shadow],
            reads: vec![Entry::NONE; if races { shadow * warps } else { 0 }],
            unit_reads: vec![Entry::NONE; shadow * columns],
            columns,
            strong: Strong::default(),
            parties,
            fences: Fences::new(warps),
            vc,
            fenced: vec![None; warps],
            published: HashMap::new(),
            clocks: races || global_races,
        }
    }

    fn grains(&self, offset: u32, len: u32) -> std::ops::Range<usize> {
        (offset >> self.grain_shift) as usize..((offset + len - 1) >> self.grain_shift) as usize + 1
    }

    /// Checks and notes a read, plain or atomic.
    #[inline]
    pub fn note_read(
        &mut self,
        offset: u32,
        len: u32,
        who: Who,
        atomic: bool,
    ) -> Result<(), (u32, Conflict)> {
        if self.writes.is_empty() {
            return Ok(());
        }
        let known = &self.vc[who.warp];
        let me = Entry::new(who, known[who.warp], Kind::Plain);
        for g in self.grains(offset, len) {
            let at = (g << self.grain_shift) as u32;
            let e = self.writes[g];
            if e == Entry::NONE && self.uninit {
                return Err((at, Conflict::Uninitialised));
            }
            if !self.races {
                continue;
            }
            written(e, known, who).map_err(|c| (at, c))?;
            if atomic {
                self.strong.note(g, me);
                continue;
            }
            if let Some(e) = self.strong.unordered(g, known, who, false) {
                return Err((at, Conflict::race(e, Access::Read)));
            }
            self.reads[g * self.warps + who.warp] = me;
        }
        Ok(())
    }

    /// Checks and notes a write, an atomic or a copy's issue.
    #[inline]
    fn note_write_kind(
        &mut self,
        offset: u32,
        len: u32,
        who: Who,
        kind: Kind,
    ) -> Result<(), (u32, Conflict)> {
        if self.writes.is_empty() {
            return Ok(());
        }
        let known = &self.vc[who.warp];
        let me = Entry::new(who, known[who.warp], kind);
        for g in self.grains(offset, len) {
            let at = (g << self.grain_shift) as u32;
            let e = self.writes[g];
            if self.races {
                written(e, known, who).map_err(|c| (at, c))?;
                let reads = &self.reads[g * self.warps..(g + 1) * self.warps];
                if let Some(r) = reads.iter().find(|r| r.unordered(known, who)) {
                    return Err((at, Conflict::race(*r, Access::Read)));
                }
                self.units_done(g, known, who).map_err(|c| (at, c))?;
            }
            if me.atomic() {
                if self.races {
                    self.strong.note(g, me);
                }
                if e == Entry::NONE {
                    self.writes[g] = Entry::KNOWN_ATOMIC;
                }
                continue;
            }
            if let Some(e) = self.strong.unordered(g, known, who, true) {
                return Err((at, Conflict::race(e, Access::Read)));
            }
            self.strong.forget(g);
            self.writes[g] = me;
        }
        Ok(())
    }

    pub fn note_write(
        &mut self,
        offset: u32,
        len: u32,
        who: Who,
        atomic: bool,
    ) -> Result<(), (u32, Conflict)> {
        self.note_write_kind(
            offset,
            len,
            who,
            if atomic { Kind::Atomic } else { Kind::Plain },
        )
    }

    pub fn note_async(&mut self, offset: u32, len: u32, who: Who) -> Result<(), (u32, Conflict)> {
        // Without the race check nothing is marked pending; the late landing alone shows the bug.
        if self.races {
            self.note_write_kind(offset, len, who, Kind::Pending)
        } else {
            Ok(())
        }
    }

    /// A copy lands: its bytes appear, written by the thread that issued it.
    pub fn land(&mut self, offset: u32, data: &[u8], who: Who) {
        self.bytes[offset as usize..offset as usize + data.len()].copy_from_slice(data);
        if !self.writes.is_empty() {
            let entry = Entry::new(who, self.vc[who.warp][who.warp], Kind::Plain);
            for g in self.grains(offset, data.len() as u32) {
                self.writes[g] = entry;
            }
        }
    }

    /// The warp's clock as others may learn it; later accesses are not covered.
    pub fn release(&mut self, warp: usize) -> &Clock {
        self.vc[warp][warp] += 1;
        &self.vc[warp]
    }

    /// A snapshot for release: what the warp did so far.
    pub fn release_clock(&mut self, warp: usize) -> Clock {
        let c = self.vc[warp].clone();
        self.release(warp);
        c
    }

    /// Whether a warp knows all that a clock knows.
    pub fn knows(&self, warp: usize, clock: &[u32]) -> bool {
        self.vc[warp].iter().zip(clock).all(|(mine, c)| mine >= c)
    }

    pub fn acquire(&mut self, warp: usize, clock: &[u32]) {
        join(&mut self.vc[warp], clock);
    }

    pub fn fence(&mut self, warp: usize) {
        if self.clocks {
            let c = self.release_clock(warp);
            self.fenced[warp] = Some(c);
        }
    }

    /// An atomic on an address of shared or global memory: releases what a fence (or `.release`) covered, acquires what others did.
    pub fn synchronise(&mut self, address: u64, warp: usize, release: bool) {
        if !self.clocks {
            return;
        }
        let mine = if release {
            Some(self.release_clock(warp))
        } else {
            self.fenced[warp].clone()
        };
        if let Some(c) = mine {
            match self.published.get_mut(&address) {
                Some(p) => join(p, &c),
                None => {
                    self.published.insert(address, c);
                }
            }
        }
        self.observe(address, warp);
    }

    /// A relaxed or acquiring load.
    pub fn observe(&mut self, address: u64, warp: usize) {
        if let Some(p) = self.published.get(&address) {
            join(&mut self.vc[warp], p);
        }
    }

    /// Bounds and alignment of `len` bytes.
    #[inline(always)]
    pub fn check(&self, offset: u64, len: u32, access: Access, lane: usize) -> Exec<u32> {
        if offset
            .checked_add(u64::from(len))
            .is_none_or(|end| end > self.bytes.len() as u64)
        {
            return raise(
                FaultKind::OutOfBounds {
                    space: Space::Shared,
                    access,
                    address: offset,
                    len,
                    detail: format!("the block has {} bytes of shared memory", self.bytes.len()),
                },
                Some(lane),
            );
        }
        if !offset.is_multiple_of(u64::from(len)) {
            return raise(
                FaultKind::Misaligned {
                    space: Space::Shared,
                    address: offset,
                    align: len,
                },
                Some(lane),
            );
        }
        Ok(offset as u32)
    }
}
