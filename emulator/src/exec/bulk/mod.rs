//! Bulk copies: `cp.async.bulk` and `cp.async.bulk.tensor`, both ways.
//!
//! A copy is checked when it is issued, and its bytes move later, in parts: between the issue and the
//! completion that somebody observes, at moments that the seed chooses; parts of different copies
//! overtake each other. To the race detector the bytes are on their way until then, whatever has moved.

mod issue;
mod tile;

use super::block::Block;
use super::rng::Rng;
use super::shared::Who;
use super::{Exec, Raised, raise};
use crate::error::FaultKind;
use crate::tensor_map::Chunk;

/// Parts that a copy moves in, at most.
const PARTS: usize = 4;
/// The longest that the units of a block pause: of so many rounds of its warps they work in one.
const PAUSES: [usize; 4] = [1, 2, 4, 16];

/// A part of a copy that has been issued and is not over.
pub(super) struct Part {
    who: Who,
    chunks: Vec<Chunk>,
    work: Work,
}

enum Work {
    Load {
        barrier: u32,
        party: usize,
        /// The bytes, if they were read when the copy was issued.
        early: Option<Vec<[u8; 16]>>,
        fill: [u8; 16],
    },
    Store {
        /// The group of its lane that it is or will be part of.
        group: u32,
        /// Its number among the copies of the warp.
        number: u32,
        /// The bytes, once they have been read.
        read: Option<Vec<[u8; 16]>>,
        /// Whether a wait has covered the reading.
        awaited: bool,
    },
}

/// The asynchronous copies of a block.
#[derive(Default)]
pub(crate) struct Bulk {
    parts: Vec<Part>,
    pause: usize,
}

impl Bulk {
    pub fn new(rng: &mut Rng) -> Self {
        Self {
            parts: Vec::new(),
            pause: PAUSES[rng.below(PAUSES.len())],
        }
    }

    /// Whether copies to shared memory are on their way.
    pub fn loading(&self) -> bool {
        let load = |p: &Part| matches!(p.work, Work::Load { .. });
        self.parts.iter().any(load)
    }

    /// Whether there is anything to move.
    pub fn busy(&self) -> bool {
        !self.parts.is_empty()
    }
}

impl Block<'_> {
    /// Lets the copying units work for a while.
    pub fn advance_copies(&mut self) -> Result<(), (Who, Box<Raised>)> {
        if self.rng.below(self.bulk.pause) != 0 {
            return Ok(());
        }
        for _ in 0..1 + self.rng.below(self.bulk.parts.len()) {
            if self.bulk.parts.is_empty() {
                break;
            }
            let i = self.rng.below(self.bulk.parts.len());
            let mut part = self.bulk.parts.swap_remove(i);
            if !self.step(&mut part).map_err(|raised| (part.who, raised))? {
                self.bulk.parts.push(part);
            }
        }
        Ok(())
    }

    /// One step of a part; whether it is over.
    fn step(&mut self, part: &mut Part) -> Exec<bool> {
        match &mut part.work {
            Work::Load { .. } => {
                self.land(part)?;
                Ok(true)
            }
            Work::Store { read: None, .. } => {
                self.read_source(part);
                Ok(false)
            }
            Work::Store { awaited, .. } => {
                // A copy whose end is never awaited is kept until the block ends.
                let over = *awaited;
                if !part.chunks.is_empty() {
                    self.write_back(part)?;
                }
                Ok(over)
            }
        }
    }

    /// Bytes of a load appear in shared memory, and the mbarrier is told.
    fn land(&mut self, part: &Part) -> Exec<()> {
        let Work::Load {
            barrier,
            party,
            early,
            fill,
        } = &part.work
        else {
            return Ok(());
        };
        let clock = self.shared.parties.current_phase(*party);
        for (i, chunk) in part.chunks.iter().enumerate() {
            let bytes = match early {
                Some(all) => all[i],
                None => self.fetch(chunk, fill),
            };
            self.shared
                .land_bulk(chunk.shared, &bytes, part.who, *party, clock);
        }
        if !self.mbars.contains_key(barrier) {
            let text = format!(
                "a bulk copy completes at the mbarrier at {barrier:#x}, which is no longer valid"
            );
            return raise(FaultKind::MbarrierMisuse(text), Some(part.who.lane));
        }
        self.count_bytes(*barrier, -(16 * part.chunks.len() as i64), part.who.lane)
    }

    /// A chunk of global memory; what is outside the tensor is filled.
    fn fetch(&self, chunk: &Chunk, fill: &[u8; 16]) -> [u8; 16] {
        let mut bytes = *fill;
        let inside = chunk.inside.start as usize..chunk.inside.end as usize;
        let list = &self.launch.memory;
        let i = list.partition_point(|a| a.base <= chunk.global);
        if let Some(a) = i.checked_sub(1).and_then(|i| list.get(i)) {
            a.read(chunk.global - a.base, &mut bytes[inside]);
        }
        bytes
    }

    fn read_source(&mut self, part: &mut Part) {
        let Work::Store { read, .. } = &mut part.work else {
            return;
        };
        let bytes = &self.shared.bytes;
        let chunk = |c: &Chunk| {
            let mut out = [0; 16];
            out.copy_from_slice(&bytes[c.shared as usize..c.shared as usize + 16]);
            out
        };
        *read = Some(part.chunks.iter().map(chunk).collect());
    }

    /// The bytes of a store appear in global memory.
    fn write_back(&mut self, part: &mut Part) -> Exec<()> {
        let Work::Store {
            read: Some(data), ..
        } = &part.work
        else {
            return Ok(());
        };
        for (chunk, bytes) in part.chunks.iter().zip(data) {
            let inside = &bytes[chunk.inside.start as usize..chunk.inside.end as usize];
            self.unit_write(chunk.global, inside, part.who)?;
        }
        part.chunks.clear();
        self.progress += 1;
        Ok(())
    }

    /// A wait of a lane: the sources of its groups before `group` have been read; unless `read_only`,
    /// their bytes are written too.
    pub(super) fn await_bulk(
        &mut self,
        warp: usize,
        lane: usize,
        group: u32,
        read_only: bool,
    ) -> Exec<()> {
        let mut i = 0;
        while i < self.bulk.parts.len() {
            let part = &self.bulk.parts[i];
            let mine = part.who.warp == warp && part.who.lane == lane;
            let number = match part.work {
                Work::Store {
                    group: g, number, ..
                } if mine && g < group => number,
                _ => {
                    i += 1;
                    continue;
                }
            };
            let mut part = self.bulk.parts.swap_remove(i);
            if let Work::Store { read: None, .. } = part.work {
                self.read_source(&mut part);
            }
            if let Work::Store { awaited, .. } = &mut part.work {
                *awaited = true;
            }
            let known = &mut self.shared.vc[warp];
            let reads = self.shared.parties.bulk_reads(warp);
            known[reads] = known[reads].max(number);
            if read_only {
                // Back to the same place: swap_remove took the last one there.
                self.bulk.parts.push(part);
                let last = self.bulk.parts.len() - 1;
                self.bulk.parts.swap(i, last);
                i += 1;
                continue;
            }
            let writes = self.shared.parties.bulk_writes(warp);
            known[writes] = known[writes].max(number);
            self.write_back(&mut part)?;
        }
        Ok(())
    }

    /// The block ends: everything it copied to global memory appears there; a copy that still uses its
    /// shared memory is an error.
    pub fn finish_copies(&mut self) -> Result<(), (Who, Box<Raised>)> {
        for mut part in std::mem::take(&mut self.bulk.parts) {
            let who = part.who;
            let text = match part.work {
                Work::Store { awaited: true, .. } => {
                    self.write_back(&mut part).map_err(|raised| (who, raised))?;
                    continue;
                }
                Work::Store { .. } => {
                    "the block ends before cp.async.bulk.wait_group has waited for the source of this copy"
                }
                Work::Load { .. } => {
                    "the block ends while this copy still writes to its shared memory"
                }
            };
            let kind = FaultKind::AsyncMisuse(text.to_owned());
            let raised = Raised {
                kind,
                lane: Some(who.lane),
            };
            return Err((who, Box::new(raised)));
        }
        Ok(())
    }

    /// What a unit writes to global memory, for the other blocks and as data.
    fn unit_write(&mut self, address: u64, bytes: &[u8], who: Who) -> Exec<()> {
        for (at, len) in pieces(address, bytes.len()) {
            let to = address + at as u64;
            let data = &bytes[at..at + len];
            self.write_for_blocks(to, data, who)?;
        }
        Ok(())
    }
}

/// Aligned pieces of a range of bytes, at most 16 long: where each begins, and its length.
fn pieces(address: u64, len: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        if at == len {
            return None;
        }
        let aligned = 1 << (address + at as u64).trailing_zeros().min(4);
        let mut n = aligned.min(16);
        while n > len - at {
            n /= 2;
        }
        let piece = (at, n);
        at += n;
        Some(piece)
    })
}
