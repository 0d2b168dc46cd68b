//! Races on global memory between the blocks of a launch.
//!
//! Every grain of touched memory remembers its last writer and a reader. Blocks are ordered only by
//! synchronising through atomics: an atomic (or volatile or relaxed access) publishes what its block
//! did before its last fence and takes over what earlier ones published there. Threads of one block
//! count as one party, so ordering inside the block is left to the shared-memory rules.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard};

use crate::error::Access;
use crate::memory::{PAGE, Snapshot, Sparse};

/// `block+1:20 many:1 epoch:11 atomic:1 thread:10 pc:20`
#[derive(Clone, Copy)]
struct Entry(u64);

const MANY: u64 = 1 << 43;
const ATOMIC: u64 = 1 << 31;
const MAX_EPOCH: u64 = (1 << 11) - 1;
pub(crate) const MAX_BLOCKS: u64 = (1 << 20) - 2;

impl Entry {
    fn block(self) -> u32 {
        (self.0 >> 44) as u32
    }
    fn epoch(self) -> u32 {
        (self.0 >> 32) as u32 & MAX_EPOCH as u32
    }
}

struct Page {
    writes: Box<[AtomicU64]>,
    reads: Box<[AtomicU64]>,
}

/// The shadow of a launch.
pub(crate) struct GlobalRaces {
    allocations: Vec<Sparse<Page>>,
    grain_shift: u32,
    published: Mutex<Published>,
}

/// Epochs published per address of an atomic: block to epoch.
pub(crate) type Published = HashMap<u64, HashMap<u32, u32>>;

/// While it lives no other block synchronises: what an access publishes and takes over is one step
/// with the value that it reads or writes.
pub(crate) type OneStep<'a> = MutexGuard<'a, Published>;

/// The other side of a race.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Other {
    pub block: u32,
    pub thread: u32,
    pub pc: usize,
    pub access: Access,
}

/// One block as a party.
#[derive(Debug, Default)]
pub(crate) struct Party {
    /// Linear block index plus one.
    pub id: u32,
    epoch: u32,
    /// Epochs of other blocks that are ordered before what this block does now.
    known: HashMap<u32, u32>,
    fenced: Option<u32>,
}

impl Party {
    pub fn new(block: u32) -> Self {
        Self {
            id: block + 1,
            ..Self::default()
        }
    }

    fn ordered(&self, e: Entry) -> bool {
        // Beyond the last epoch number, publications cannot be told apart: silent rather than wrong.
        e.block() == self.id
            || self
                .known
                .get(&e.block())
                .is_some_and(|&k| k >= e.epoch() || u64::from(e.epoch()) == MAX_EPOCH)
    }

    /// Whether an access now, atomic or not, is ordered after the write `w`, if there was one; two atomics need no order.
    #[inline]
    fn after_write(&self, w: Entry, atomic: bool) -> Result<(), Other> {
        let access = match w.0 & ATOMIC {
            0 => Access::Write,
            _ => Access::Atomic,
        };
        if w.0 == 0 || self.ordered(w) || (atomic && access == Access::Atomic) {
            return Ok(());
        }
        Err(other(w, access))
    }

    pub fn fence(&mut self) {
        self.fenced = Some(self.epoch);
        self.epoch = (self.epoch + 1).min(MAX_EPOCH as u32);
    }

    fn entry(&self, thread: u32, pc: usize, flags: u64) -> u64 {
        u64::from(self.id) << 44
            | u64::from(self.epoch) << 32
            | flags
            | u64::from(thread.min(1023)) << 20
            | pc.min((1 << 20) - 1) as u64
    }
}

impl GlobalRaces {
    pub fn new(memory: &Snapshot, grain: u32) -> Self {
        Self {
            allocations: memory
                .iter()
                .map(|a| {
                    Sparse::new(if a.constant || a.is_freed() {
                        0
                    } else {
                        a.size.div_ceil(PAGE)
                    })
                })
                .collect(),
            grain_shift: grain.clamp(1, 16).trailing_zeros(),
            published: Mutex::default(),
        }
    }

    fn page(&self, allocation: usize, offset: u64) -> Option<&Page> {
        let n = (PAGE >> self.grain_shift) as usize;
        self.allocations
            .get(allocation)?
            .touch(offset / PAGE, || Page {
                writes: (0..n).map(|_| AtomicU64::new(0)).collect(),
                reads: (0..n).map(|_| AtomicU64::new(0)).collect(),
            })
    }

    /// Accesses are aligned to their size, so they never leave a page.
    fn grains(&self, offset: u64, len: u32) -> std::ops::Range<usize> {
        let at = offset % PAGE;
        (at >> self.grain_shift) as usize
            ..((at + u64::from(len) - 1) >> self.grain_shift) as usize + 1
    }

    /// Announces the read first and looks for writers after, as a writer does the converse: of two
    /// racing blocks on two host threads at least one sees the other.
    #[allow(
        clippy::too_many_arguments,
        reason = "the hot path; a struct would be built per lane"
    )]
    #[inline]
    pub fn read(
        &self,
        p: &Party,
        allocation: usize,
        offset: u64,
        len: u32,
        thread: u32,
        pc: usize,
        atomic: bool,
    ) -> Result<(), Other> {
        let Some(page) = self.page(allocation, offset) else {
            return Ok(());
        };
        for g in self.grains(offset, len) {
            if !atomic {
                let slot = &page.reads[g];
                let r = slot.load(SeqCst);
                if r == 0 {
                    if slot
                        .compare_exchange(0, p.entry(thread, pc, 0), SeqCst, SeqCst)
                        .is_err()
                    {
                        slot.fetch_or(MANY, SeqCst);
                    }
                } else if Entry(r).block() == p.id {
                    if Entry(r).epoch() != p.epoch && r & MANY == 0 {
                        slot.compare_exchange(r, p.entry(thread, pc, 0), SeqCst, SeqCst)
                            .ok();
                    }
                } else if r & MANY == 0 {
                    slot.fetch_or(MANY, SeqCst);
                }
            }
            p.after_write(Entry(page.writes[g].load(SeqCst)), atomic)?;
        }
        Ok(())
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "the hot path; a struct would be built per lane"
    )]
    #[inline]
    pub fn write(
        &self,
        p: &Party,
        allocation: usize,
        offset: u64,
        len: u32,
        thread: u32,
        pc: usize,
        atomic: bool,
    ) -> Result<(), Other> {
        let Some(page) = self.page(allocation, offset) else {
            return Ok(());
        };
        let entry = p.entry(thread, pc, if atomic { ATOMIC } else { 0 });
        for g in self.grains(offset, len) {
            let slot = &page.writes[g];
            let seen = Entry(slot.load(SeqCst));
            if seen.block() != p.id || seen.epoch() != p.epoch || (seen.0 ^ entry) & ATOMIC != 0 {
                p.after_write(Entry(slot.swap(entry, SeqCst)), atomic)?;
            }
            let r = Entry(page.reads[g].load(SeqCst));
            // Of many readers only one is remembered; a block that has acquired anything is given
            // the benefit of the doubt.
            let ordered = if r.0 & MANY != 0 {
                !p.known.is_empty()
            } else {
                p.ordered(r)
            };
            if r.0 != 0 && !ordered {
                return Err(other(r, Access::Read));
            }
        }
        Ok(())
    }

    /// An atomic or a store at `address`: publishes what this block's last fence covered (all, for
    /// `.release`) and takes over what others published.
    pub fn synchronise(&self, p: &mut Party, address: u64, release: bool) -> OneStep<'_> {
        if release {
            p.fence();
        }
        let mut published = self.published();
        let Some(epoch) = p.fenced else {
            if let Some(there) = published.get(&address) {
                take(p, there);
            }
            return published;
        };
        let there = published.entry(address).or_default();
        take(p, there);
        // What was learned is passed on.
        for (&b, &e) in &p.known {
            let slot = there.entry(b).or_insert(e);
            *slot = (*slot).max(e);
        }
        there.insert(p.id, epoch);
        published
    }

    /// A volatile, relaxed or acquiring load.
    pub fn observe(&self, p: &mut Party, address: u64) -> OneStep<'_> {
        let published = self.published();
        if let Some(there) = published.get(&address) {
            take(p, there);
        }
        published
    }

    fn published(&self) -> OneStep<'_> {
        self.published.lock().unwrap_or_else(|e| e.into_inner())
    }
}

fn take(p: &mut Party, there: &HashMap<u32, u32>) {
    for (&b, &e) in there {
        if b != p.id {
            let slot = p.known.entry(b).or_insert(e);
            *slot = (*slot).max(e);
        }
    }
}

fn other(e: Entry, access: Access) -> Other {
    Other {
        block: e.block() - 1,
        thread: (e.0 >> 20) as u32 & 1023,
        pc: e.0 as usize & ((1 << 20) - 1),
        access,
    }
}
