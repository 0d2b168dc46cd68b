//! Races on global memory between the blocks of a launch.
//!
//! Every grain of touched memory remembers its last plain writer, a plain reader and, if it saw any
//! atomic, volatile or relaxed accesses, one that wrote and one that loaded. Blocks are ordered only by
//! synchronising through atomics: an atomic (or volatile or relaxed access) publishes what its block
//! did before its last fence and takes over what earlier ones published there. Threads of one block
//! count as one party, so ordering inside the block is left to the shared-memory rules.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard, OnceLock};

use crate::error::Access;
use crate::memory::{PAGE, Snapshot, Sparse};

/// `block+1:20 many:1 epoch:11 unused:2 thread:10 pc:20`
#[derive(Clone, Copy)]
struct Entry(u64);

const MANY: u64 = 1 << 43;
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

/// A slot per grain.
type Slots = Box<[AtomicU64]>;

fn slots(n: usize) -> Slots {
    (0..n).map(|_| AtomicU64::new(0)).collect()
}

/// Plain accesses and, once there are any, the others: these need no order to each other, so none of
/// them may take a plain one's slot.
struct Page {
    writes: Slots,
    reads: Slots,
    strong_writes: OnceLock<Slots>,
    strong_reads: OnceLock<Slots>,
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

    /// An access that must be ordered after the one in a slot, if there was one.
    #[inline]
    fn after(&self, slot: u64, access: Access) -> Result<(), Other> {
        let e = Entry(slot);
        // Of many only one is remembered; a block that has acquired anything is given the benefit of
        // the doubt.
        let ordered = match e.0 & MANY {
            0 => e.0 == 0 || self.ordered(e),
            _ => !self.known.is_empty(),
        };
        if ordered {
            return Ok(());
        }
        Err(other(e, access))
    }

    /// The same of a grain of slots that may not be there.
    #[inline]
    fn after_strong(
        &self,
        slots: &OnceLock<Slots>,
        grain: usize,
        access: Access,
    ) -> Result<(), Other> {
        match slots.get() {
            Some(s) => self.after(s[grain].load(SeqCst), access),
            None => Ok(()),
        }
    }

    /// Notes an access that others may do at the same time.
    #[inline]
    fn announce(&self, slot: &AtomicU64, thread: u32, pc: usize) {
        let seen = slot.load(SeqCst);
        let e = Entry(seen);
        let swap = |me| slot.compare_exchange(seen, me, SeqCst, SeqCst);
        if seen == 0 {
            if swap(self.entry(thread, pc)).is_err() {
                slot.fetch_or(MANY, SeqCst);
            }
        } else if e.block() == self.id {
            if e.epoch() != self.epoch && seen & MANY == 0 {
                // If it fails, another block has made it many.
                swap(self.entry(thread, pc)).ok();
            }
        } else if seen & MANY == 0 {
            slot.fetch_or(MANY, SeqCst);
        }
    }

    pub fn fence(&mut self) {
        self.fenced = Some(self.epoch);
        self.epoch = (self.epoch + 1).min(MAX_EPOCH as u32);
    }

    fn entry(&self, thread: u32, pc: usize) -> u64 {
        u64::from(self.id) << 44
            | u64::from(self.epoch) << 32
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
                writes: slots(n),
                reads: slots(n),
                strong_writes: OnceLock::new(),
                strong_reads: OnceLock::new(),
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
            if atomic {
                let slots = page.strong_reads.get_or_init(|| slots(page.reads.len()));
                p.announce(&slots[g], thread, pc);
            } else {
                p.announce(&page.reads[g], thread, pc);
                p.after_strong(&page.strong_writes, g, Access::Atomic)?;
            }
            p.after(page.writes[g].load(SeqCst), Access::Write)?;
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
        for g in self.grains(offset, len) {
            let slot = &page.writes[g];
            if atomic {
                let slots = page.strong_writes.get_or_init(|| slots(page.reads.len()));
                p.announce(&slots[g], thread, pc);
                p.after(slot.load(SeqCst), Access::Write)?;
            } else {
                let seen = Entry(slot.load(SeqCst));
                if seen.block() != p.id || seen.epoch() != p.epoch {
                    p.after(slot.swap(p.entry(thread, pc), SeqCst), Access::Write)?;
                }
                p.after_strong(&page.strong_writes, g, Access::Atomic)?;
                p.after_strong(&page.strong_reads, g, Access::Read)?;
            }
            p.after(page.reads[g].load(SeqCst), Access::Read)?;
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
