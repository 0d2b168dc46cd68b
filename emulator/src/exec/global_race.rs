//! Races between the blocks of a launch, in global memory.
//!
//! # Policy
//!
//! Blocks of one launch are unordered, except by this: a block that executes a fence and then an
//! atomic (or volatile, or otherwise strong) write publishes what it did before the fence; a
//! block that then reads that location by an atomic or a strong load has seen it. So the usual "last
//! block done" pattern is no race, and without its fence it is one. `.release` counts as fence.
//! Accesses that are both strong do not race with each other. Within a block global accesses are
//! not checked.
//!
//! Per word the shadow remembers the last writer and one reader, or that there were several; a
//! write after several readers is a race unless its block has seen every other block's work.

use super::Launch;
use crate::decode::Order;
use crate::fault::{AccessKind, Fault, FaultKind, Space};
use crate::memory::{Allocation, PAGE};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock};

const WORDS: usize = (PAGE / 4) as usize;
const DIR: usize = 1024;
/// Saturated clocks order everything.
const MAX_CLOCK: u32 = (1 << 12) - 1;
const MANY: u64 = u64::MAX;

struct Shadow {
    writer: [AtomicU64; WORDS],
    reader: [AtomicU64; WORDS],
}

type Dir = [OnceLock<Box<Shadow>>; DIR];

/// An access: 27 bits of block plus one, 20 of program counter, 12 of clock, 4 of byte mask, one
/// for strong; 0 is none. The thread is left out: the instruction and the block say enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry(u64);

impl Entry {
    fn new(block: u32, pc: u32, clock: u32, bytes: u8, strong: bool) -> Entry {
        Entry(
            u64::from(block + 1) << 37
                | u64::from(pc.min((1 << 20) - 1)) << 17
                | u64::from(clock.min(MAX_CLOCK)) << 5
                | u64::from(bytes & 15) << 1
                | u64::from(strong),
        )
    }

    fn block(self) -> u32 {
        ((self.0 >> 37) as u32).wrapping_sub(1)
    }

    fn pc(self) -> u32 {
        (self.0 >> 17) as u32 & 0xf_ffff
    }

    fn clock(self) -> u32 {
        (self.0 >> 5) as u32 & MAX_CLOCK
    }

    fn bytes(self) -> u8 {
        (self.0 >> 1) as u8 & 15
    }

    fn strong(self) -> bool {
        self.0 & 1 == 1
    }
}

/// A race found; of several the one at the lowest address is reported.
#[derive(Clone, Debug)]
struct Found {
    address: u64,
    block: u32,
    thread: u32,
    pc: u32,
    access: AccessKind,
    other: (u32, u32, AccessKind),
}

/// The shadow of one launch.
pub struct GlobalRaces {
    on: bool,
    blocks: AtomicU32,
    shadows: Vec<Box<[OnceLock<Box<Dir>>]>>,
    /// What each synchronising location carries: clocks by block.
    published: Mutex<HashMap<u64, Vec<u32>>>,
    any_published: AtomicBool,
    found: Mutex<Option<Found>>,
}

/// What one block knows of the others.
pub struct View {
    block: u32,
    clock: u32,
    fenced: u32,
    knows: Vec<u32>,
}

impl View {
    /// What was done before may now be published.
    pub fn fence(&mut self) {
        self.fenced = self.clock;
        self.clock = (self.clock + 1).min(MAX_CLOCK);
    }

    fn ordered(&self, e: Entry) -> bool {
        e.block() == self.block
            || self
                .knows
                .get(e.block() as usize)
                .is_some_and(|&c| c >= e.clock())
    }
}

impl GlobalRaces {
    pub fn new(allocations: &[Arc<Allocation>], on: bool) -> Self {
        GlobalRaces {
            on,
            blocks: AtomicU32::new(0),
            shadows: if on {
                allocations
                    .iter()
                    .map(|a| {
                        (0..a.size.div_ceil(PAGE * DIR as u64))
                            .map(|_| OnceLock::new())
                            .collect()
                    })
                    .collect()
            } else {
                Vec::new()
            },
            published: Mutex::new(HashMap::new()),
            any_published: AtomicBool::new(false),
            found: Mutex::new(None),
        }
    }

    pub fn set_blocks(&self, n: u32) {
        self.blocks.store(n, SeqCst);
    }

    pub fn view(&self, block: u32) -> View {
        View {
            block,
            clock: 1,
            fenced: 0,
            knows: Vec::new(),
        }
    }

    pub fn on(&self) -> bool {
        // One block has nobody to race with.
        self.on && self.blocks.load(SeqCst) > 1
    }

    fn shadow(&self, allocation: usize, offset: u64) -> Option<(&Shadow, usize)> {
        let page = (offset / PAGE) as usize;
        let dir = self
            .shadows
            .get(allocation)?
            .get(page / DIR)?
            .get_or_init(|| Box::new([const { OnceLock::new() }; DIR]));
        let shadow = dir[page % DIR].get_or_init(|| {
            Box::new(Shadow {
                writer: [const { AtomicU64::new(0) }; WORDS],
                reader: [const { AtomicU64::new(0) }; WORDS],
            })
        });
        Some((shadow, (offset % PAGE / 4) as usize))
    }

    /// Checks and records an access to bytes of one word.
    #[allow(clippy::too_many_arguments)]
    pub fn access(
        &self,
        view: &View,
        allocation: usize,
        base: u64,
        offset: u64,
        bytes: u8,
        pc: u32,
        thread: u32,
        kind: AccessKind,
        strong: bool,
    ) {
        let Some((shadow, i)) = self.shadow(allocation, offset) else {
            return;
        };
        let write = kind != AccessKind::Read;
        let me = Entry::new(view.block, pc, view.clock, bytes, strong);
        let report = |e: Entry, access| {
            self.report(Found {
                address: base + offset + u64::from(bytes.trailing_zeros().min(3)),
                block: view.block,
                thread,
                pc,
                access: kind,
                other: (e.block(), e.pc(), access),
            });
        };
        let clashes = |e: Entry| {
            e.0 != 0 && e.bytes() & bytes != 0 && !(e.strong() && strong) && !view.ordered(e)
        };
        let kind_of = |e: Entry| {
            if e.strong() {
                AccessKind::Atomic
            } else {
                AccessKind::Write
            }
        };
        if write {
            let old = Entry(shadow.writer[i].swap(me.0, SeqCst));
            if clashes(old) {
                report(old, kind_of(old));
            }
            let r = shadow.reader[i].load(SeqCst);
            if r == MANY {
                let blocks = self.blocks.load(SeqCst);
                let seen = |b: u32| b == view.block || view.knows.get(b as usize) > Some(&0);
                if let Some(other) = (0..blocks).find(|&b| !seen(b)) {
                    // Which instruction of it read is no longer known.
                    let e = Entry::new(other, (1 << 20) - 1, 0, bytes, false);
                    report(e, AccessKind::Read);
                }
            } else if clashes(Entry(r)) {
                report(Entry(r), AccessKind::Read);
            }
        } else {
            let r = shadow.reader[i].load(SeqCst);
            if r != MANY && r != me.0 {
                let e = Entry(r);
                let new = if r == 0 || e.block() == view.block || view.ordered(e) {
                    me.0
                } else if strong && e.strong() {
                    // Strong readers do not race with the strong writes that they wait for.
                    me.0
                } else {
                    MANY
                };
                // Lost updates only lose one of several readers.
                let _ = shadow.reader[i].compare_exchange(r, new, SeqCst, SeqCst);
            }
            let w = Entry(shadow.writer[i].load(SeqCst));
            if clashes(w) {
                report(w, kind_of(w));
            }
        }
    }

    fn report(&self, f: Found) {
        if let Ok(mut found) = self.found.lock()
            && found.as_ref().is_none_or(|o| f.address < o.address)
        {
            *found = Some(f);
        }
    }

    /// Orders blocks by a strong access.
    pub fn synchronise(&self, view: &mut View, address: u64, order: Order, kind: AccessKind) {
        if !order.strong {
            return;
        }
        if order.release {
            view.fence();
        }
        let writes = kind != AccessKind::Read && view.fenced > 0;
        let reads = kind != AccessKind::Write && self.any_published.load(SeqCst);
        if !writes && !reads {
            return;
        }
        let Ok(mut published) = self.published.lock() else {
            return;
        };
        let n = self.blocks.load(SeqCst) as usize;
        if reads && let Some(clocks) = published.get(&address) {
            view.knows.resize(n, 0);
            for (k, &c) in view.knows.iter_mut().zip(clocks) {
                *k = (*k).max(c);
            }
        }
        if writes {
            let clocks = published.entry(address).or_insert_with(|| vec![0; n]);
            for (k, &c) in clocks.iter_mut().zip(&view.knows) {
                *k = (*k).max(c);
            }
            if let Some(c) = clocks.get_mut(view.block as usize) {
                *c = (*c).max(view.fenced);
            }
            self.any_published.store(true, SeqCst);
        }
    }

    /// The race to report, if any was found.
    pub fn fault(&self, launch: &Launch<'_>) -> Option<Box<Fault>> {
        let f = self.found.lock().ok()?.clone()?;
        let (block, pc, access) = f.other;
        let other = launch.place(pc, Some(block), None);
        Some(Box::new(Fault {
            kind: FaultKind::Race {
                space: Space::Global,
                address: f.address,
                access: f.access,
                other_access: access,
                other: Box::new(other),
            },
            kernel: launch.program.kernel.clone(),
            place: launch.place(f.pc, Some(f.block), Some(f.thread)),
        }))
    }
}
