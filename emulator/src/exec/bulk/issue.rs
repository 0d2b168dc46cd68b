//! The issue of bulk copies: everything is checked here.

use super::super::block::Block;
use super::super::shared::{Entry, Kind, UnitRead, Who};
use super::super::warp::Warp;
use super::super::warps_global::Span;
use super::super::{Exec, raise};
use super::{PARTS, Part, Work, pieces};
use crate::error::{Access, FaultKind};
use crate::ir::regs::lanes;
use crate::ir::{BulkCopy, BulkDirection};
use crate::tensor_map::Chunk;

impl Warp {
    /// Each lane issues a copy.
    pub(in crate::exec) fn bulk_copy(
        &mut self,
        b: &mut Block<'_>,
        c: &BulkCopy,
        mask: u32,
    ) -> Exec<()> {
        for lane in lanes(mask) {
            let who = Who {
                warp: self.id,
                lane,
                pc: self.pc,
            };
            if let Some(ranks) = c.multicast {
                let ranks = self.regs.w(ranks)[lane];
                if ranks & 0xffff != 1 {
                    let text = format!("multicast to blocks {ranks:#06x} of a cluster of one");
                    return raise(FaultKind::Unsupported(text), Some(lane));
                }
            }
            let (chunks, fill) = self.bulk_chunks(b, c, lane)?;
            b.counters[self.pc].bulk_bytes += 16 * chunks.len() as u64;
            match &c.direction {
                BulkDirection::Load { barrier } => {
                    let at = self.shared_address(barrier, lane);
                    let at = b.shared.check(at, 8, Access::Atomic, lane)?;
                    b.issue_load(at, chunks, fill, who)?;
                }
                BulkDirection::Store => {
                    self.bulk_copies += 1;
                    b.issue_store(self.bulk_groups[lane], self.bulk_copies, chunks, who)?;
                }
                // The chunks were worked out for their checks.
                BulkDirection::Prefetch => {}
            }
        }
        Ok(())
    }

    pub(in crate::exec) fn bulk_commit(&mut self, mask: u32) {
        lanes(mask).for_each(|l| self.bulk_groups[l] += 1);
    }

    /// `wait_group n`: at most `n` groups are pending after it.
    pub(in crate::exec) fn bulk_wait(
        &mut self,
        b: &mut Block<'_>,
        n: u32,
        read_only: bool,
        mask: u32,
    ) -> Exec<()> {
        for lane in lanes(mask) {
            let group = self.bulk_groups[lane].saturating_sub(n);
            b.await_bulk(self.id, lane, group, read_only)?;
        }
        Ok(())
    }
}

impl Block<'_> {
    fn issue_load(
        &mut self,
        barrier: u32,
        chunks: Vec<Chunk>,
        fill: [u8; 16],
        who: Who,
    ) -> Exec<()> {
        let party = self.track(barrier, who)?;
        let clock = self.shared.parties.current_phase(party);
        let early = self.rng.below(2) == 0;
        for c in &chunks {
            self.guard_mbarrier(c.shared, 16, who.lane)?;
            if let Err(conflict) = self.shared.note_bulk_write(c.shared, 16, who, party) {
                return self.conflict(conflict, Access::AsyncWrite, 16, who.lane);
            }
            self.unit_reads_global(c, who, party, clock)?;
        }
        for part in parts(chunks) {
            let early = early.then(|| part.iter().map(|c| self.fetch(c, &fill)).collect());
            self.bulk.parts.push(Part {
                who,
                chunks: part,
                work: Work::Load {
                    barrier,
                    party,
                    early,
                    fill,
                },
            });
        }
        Ok(())
    }

    fn issue_store(&mut self, group: u32, number: u32, chunks: Vec<Chunk>, who: Who) -> Exec<()> {
        let read = UnitRead {
            party: self.shared.parties.bulk_reads(who.warp),
            clock: number,
            column: self.shared.bulk_column(),
        };
        for c in &chunks {
            if let Err(conflict) = self.shared.note_unit_read(c.shared, 16, who, read) {
                return self.conflict(conflict, Access::AsyncRead, 16, who.lane);
            }
            self.unit_writes_global(c, who, number)?;
        }
        for part in parts(chunks) {
            self.bulk.parts.push(Part {
                who,
                chunks: part,
                work: Work::Store {
                    group,
                    number,
                    read: None,
                    awaited: false,
                },
            });
        }
        Ok(())
    }

    /// Checks and notes what a copy reads of global memory: it may do so until its mbarrier's phase is
    /// complete.
    fn unit_reads_global(&mut self, c: &Chunk, who: Who, party: usize, clock: u32) -> Exec<()> {
        let from = c.global;
        for (at, len) in pieces(from, c.inside.len()) {
            let address = from + at as u64;
            let (index, a, offset) = self.global(address, len as u32, Access::Read, who.lane)?;
            self.written_before(a, address, offset, len as u32, who.lane)?;
            if let Some(races) = &self.launch.races
                && !a.constant
            {
                let thread = (who.warp * 32 + who.lane) as u32;
                let r = races.read(
                    &self.party,
                    index,
                    offset,
                    len as u32,
                    thread,
                    who.pc,
                    false,
                );
                if let Err(o) = r {
                    return self.global_race(address, Access::AsyncRead, o, who.lane);
                }
            }
            let entry = Entry::new(Who { warp: party, ..who }, clock, Kind::Bulk);
            let span = Span {
                allocation: index,
                offset,
                len: len as u32,
            };
            if let Some(warps) = &mut self.warps_global
                && !a.constant
                && let Err(c) = warps.unit_read(&self.shared, span, who, entry)
            {
                return self.unit_conflict(address, Access::AsyncRead, c, who.lane);
            }
        }
        Ok(())
    }

    /// The same of what a copy writes there, until its group is waited for.
    fn unit_writes_global(&mut self, c: &Chunk, who: Who, number: u32) -> Exec<()> {
        let party = self.shared.parties.bulk_writes(who.warp);
        let entry = Entry::new(Who { warp: party, ..who }, number, Kind::Bulk);
        for (at, len) in pieces(c.global, c.inside.len()) {
            let address = c.global + at as u64;
            let (index, _, offset) =
                self.global(address, len as u32, Access::AsyncWrite, who.lane)?;
            let span = Span {
                allocation: index,
                offset,
                len: len as u32,
            };
            if let Some(warps) = &mut self.warps_global
                && let Err(c) = warps.unit_write(&self.shared, span, who, entry)
            {
                return self.unit_conflict(address, Access::AsyncWrite, c, who.lane);
            }
        }
        Ok(())
    }
}

/// A copy in parts that move one by one.
fn parts(mut chunks: Vec<Chunk>) -> Vec<Vec<Chunk>> {
    if chunks.is_empty() {
        return Vec::new();
    }
    let size = chunks.len().div_ceil(PARTS);
    let mut out = Vec::with_capacity(PARTS);
    while chunks.len() > size {
        let rest = chunks.split_off(size);
        out.push(std::mem::replace(&mut chunks, rest));
    }
    out.push(chunks);
    out
}
