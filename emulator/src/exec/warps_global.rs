//! Races on global memory between the warps of one block, by the vector clocks of shared memory.
//!
//! Accesses of different blocks are `global.rs`'s business; here every block has a shadow of its own
//! that begins empty.

use std::collections::HashMap;

use super::shared::{ATOMIC, Clock, Entry, Who};
use crate::error::Access;

/// Bytes of a shadow page: small, as a block touches little of many rows.
const PAGE: u64 = 1024;
/// Slots of the cache in front of the table of pages.
const CACHE: usize = 64;

struct Page {
    writes: Box<[Entry]>,
    /// The last reader, while one says all; else also an entry of `readers`.
    reads: Box<[Entry]>,
    readers: HashMap<usize, Vec<Entry>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    allocation: usize,
    page: u64,
}

pub(crate) struct WarpsGlobal {
    grain_shift: u32,
    pages: Vec<Page>,
    table: HashMap<Key, usize>,
    cache: Box<[Option<(Key, usize)>]>,
}

/// One access of a lane: `len` bytes, aligned to `len`, at `offset` in an allocation.
#[derive(Clone, Copy)]
pub(crate) struct Span {
    pub allocation: usize,
    pub offset: u64,
    pub len: u32,
}

impl WarpsGlobal {
    pub fn new(grain: u32) -> Self {
        Self {
            grain_shift: grain.clamp(1, 16).trailing_zeros(),
            pages: Vec::new(),
            table: HashMap::new(),
            cache: vec![None; CACHE].into(),
        }
    }

    fn page(&mut self, span: Span) -> &mut Page {
        let key = Key {
            allocation: span.allocation,
            page: span.offset / PAGE,
        };
        let slot = (key.page as usize ^ key.allocation.wrapping_mul(7)) % CACHE;
        let index = match self.cache[slot] {
            Some((k, i)) if k == key => i,
            _ => {
                let (pages, grains) = (&mut self.pages, (PAGE >> self.grain_shift) as usize);
                let i = *self.table.entry(key).or_insert_with(|| {
                    pages.push(Page {
                        writes: vec![Entry::NONE; grains].into(),
                        reads: vec![Entry::NONE; grains].into(),
                        readers: HashMap::new(),
                    });
                    pages.len() - 1
                });
                self.cache[slot] = Some((key, i));
                i
            }
        };
        &mut self.pages[index]
    }

    fn grains(&self, span: Span) -> std::ops::Range<usize> {
        let at = span.offset % PAGE;
        (at >> self.grain_shift) as usize
            ..((at + u64::from(span.len) - 1) >> self.grain_shift) as usize + 1
    }

    /// Checks and notes a read; the error is the unordered write.
    pub fn read(
        &mut self,
        vc: &[Clock],
        span: Span,
        who: Who,
        atomic: bool,
    ) -> Result<(), (Who, Access)> {
        let known = &vc[who.warp];
        let me = Entry::new(who, known[who.warp], 0);
        let grains = self.grains(span);
        let page = self.page(span);
        for g in grains {
            written(page.writes[g], known, who, atomic)?;
            if atomic {
                continue;
            }
            let r = page.reads[g];
            if r == Entry::NONE || r.warp() == who.warp || r.clock() <= known[r.warp()] {
                page.reads[g] = me;
            } else {
                let list = page.readers.entry(g).or_default();
                match list.iter_mut().find(|e| e.warp() == who.warp) {
                    Some(e) => *e = me,
                    None => list.push(me),
                }
            }
        }
        Ok(())
    }

    /// Checks and notes a write or atomic; the error is the unordered access.
    pub fn write(
        &mut self,
        vc: &[Clock],
        span: Span,
        who: Who,
        atomic: bool,
    ) -> Result<(), (Who, Access)> {
        let known = &vc[who.warp];
        let me = Entry::new(who, known[who.warp], if atomic { ATOMIC } else { 0 });
        let grains = self.grains(span);
        let page = self.page(span);
        for g in grains {
            written(page.writes[g], known, who, atomic)?;
            let unordered = |e: &Entry| {
                *e != Entry::NONE && e.warp() != who.warp && e.clock() > known[e.warp()]
            };
            if unordered(&page.reads[g]) {
                return Err((page.reads[g].who(), Access::Read));
            }
            if !page.readers.is_empty()
                && let Some(list) = page.readers.remove(&g)
                && let Some(e) = list.iter().find(|e| unordered(e))
            {
                return Err((e.who(), Access::Read));
            }
            page.writes[g] = me;
        }
        Ok(())
    }
}

fn written(e: Entry, known: &Clock, who: Who, atomic: bool) -> Result<(), (Who, Access)> {
    if e == Entry::NONE
        || e.warp() == who.warp
        || e.clock() <= known[e.warp()]
        || (atomic && e.atomic())
    {
        return Ok(());
    }
    Err((
        e.who(),
        if e.atomic() {
            Access::Atomic
        } else {
            Access::Write
        },
    ))
}
