//! Accesses of the asynchronous proxy: operands of tensor operations, both ends of bulk copies.

use super::entry::{Conflict, Entry, Kind, Who, written};
use super::{Clock, Reach, SharedMemory};
use crate::error::Access;
use crate::ir::ProxyFence;

/// A unit's read, as it is remembered until somebody has observed its end.
#[derive(Debug, Clone, Copy)]
pub(in crate::exec) struct UnitRead {
    pub party: usize,
    /// What the party's clock will be when the read is over.
    pub clock: u32,
    pub column: usize,
}

impl SharedMemory {
    /// The column of bulk copies; those of warpgroups come before it.
    pub fn bulk_column(&self) -> usize {
        self.columns.saturating_sub(1)
    }

    /// Whether the units' reads of a grain are over for `who`.
    #[inline(always)]
    pub(super) fn units_done(&self, grain: usize, known: &Clock, who: Who) -> Result<(), Conflict> {
        if self.columns == 0 {
            return Ok(());
        }
        let reads = &self.unit_reads[grain * self.columns..(grain + 1) * self.columns];
        match reads.iter().find(|r| r.unordered(known, who)) {
            Some(r) => Err(Conflict::Race {
                other: r.who(),
                other_access: Access::AsyncRead,
            }),
            None => Ok(()),
        }
    }

    /// Whether an asynchronous access that `who` starts sees what was last written.
    fn visible(&self, grain: usize, who: Who) -> Result<(), Conflict> {
        let (known, e) = (&self.vc[who.warp], self.writes[grain]);
        written(e, known, who)?;
        let generic = e.kind() == Kind::Plain && e != Entry::NONE;
        if generic && !self.fences.cover(e, known, Reach::Shared) {
            return Err(Conflict::Unfenced(e.who()));
        }
        if let Some(e) = self.strong.unordered(grain, known, who, false) {
            return Err(Conflict::race(e, Access::Read));
        }
        let unfenced = |e: Entry| !self.fences.cover(e, known, Reach::Shared);
        match self.strong.last_write(grain).filter(|e| unfenced(*e)) {
            Some(e) => Err(Conflict::Unfenced(e.who())),
            None => Ok(()),
        }
    }

    /// Checks and notes a read that a unit does for `who`.
    pub fn note_unit_read(
        &mut self,
        offset: u32,
        len: u32,
        who: Who,
        read: UnitRead,
    ) -> Result<(), (u32, Conflict)> {
        if self.writes.is_empty() {
            return Ok(());
        }
        let as_party = Who {
            warp: read.party,
            ..who
        };
        let me = Entry::new(as_party, read.clock, Kind::Plain);
        for g in self.grains(offset, len) {
            let at = (g << self.grain_shift) as u32;
            if self.writes[g] == Entry::NONE && self.uninit {
                return Err((at, Conflict::Uninitialised));
            }
            if !self.races {
                continue;
            }
            self.visible(g, who).map_err(|c| (at, c))?;
            self.unit_reads[g * self.columns + read.column] = me;
        }
        Ok(())
    }

    /// Checks a bulk copy's writes when it is issued, and notes them as on their way.
    pub fn note_bulk_write(
        &mut self,
        offset: u32,
        len: u32,
        who: Who,
        party: usize,
    ) -> Result<(), (u32, Conflict)> {
        if !self.races {
            return Ok(());
        }
        let me = Entry::new(Who { warp: party, ..who }, Entry::NEVER, Kind::Bulk);
        for g in self.grains(offset, len) {
            let at = (g << self.grain_shift) as u32;
            self.visible(g, who).map_err(|c| (at, c))?;
            let known = &self.vc[who.warp];
            let reads = &self.reads[g * self.warps..(g + 1) * self.warps];
            if let Some(r) = reads.iter().find(|r| r.unordered(known, who)) {
                return Err((at, Conflict::race(*r, Access::Read)));
            }
            self.units_done(g, known, who).map_err(|c| (at, c))?;
            if let Some(e) = self.strong.unordered(g, known, who, true) {
                return Err((at, Conflict::race(e, Access::Read)));
            }
            self.strong.forget(g);
            self.writes[g] = me;
        }
        Ok(())
    }

    /// Bytes of a bulk copy land. They are ordered before who has seen `clock` of the party.
    pub fn land_bulk(&mut self, offset: u32, data: &[u8], who: Who, party: usize, clock: u32) {
        self.bytes[offset as usize..offset as usize + data.len()].copy_from_slice(data);
        if !self.writes.is_empty() {
            let entry = Entry::new(Who { warp: party, ..who }, clock, Kind::Bulk);
            for g in self.grains(offset, data.len() as u32) {
                self.writes[g] = entry;
            }
        }
    }

    /// A proxy fence of the lanes of a warp.
    pub fn proxy_fence(&mut self, warp: usize, mask: u32, fence: ProxyFence) {
        let clock = self.vc[warp][warp];
        for (reach, on) in [
            (Reach::Shared, fence.shared),
            (Reach::Global, fence.global),
            (Reach::Init, fence.init),
        ] {
            if on {
                self.fences.note(warp, clock, mask, reach);
            }
        }
        self.release(warp);
    }
}
