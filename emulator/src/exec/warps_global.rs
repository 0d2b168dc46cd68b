//! Races on global memory between the warps of one block, by the vector clocks of shared memory.
//!
//! Accesses of different blocks are `global.rs`'s business; here every block has a shadow of its own
//! that begins empty.

use std::collections::HashMap;

use super::shared::{Clock, Conflict, Entry, Kind, Reach, SharedMemory, Strong, Who};
use crate::error::Access;

/// Bytes of a shadow page: small, as a block touches little of many rows.
const PAGE: u64 = 1024;
/// Slots of the cache in front of the table of pages.
const CACHE: usize = 64;

/// Plain accesses, and the others.
struct Page {
    writes: Box<[Entry]>,
    /// The last reader, while one says all; else also an entry of `readers`.
    reads: Box<[Entry]>,
    readers: HashMap<usize, Vec<Entry>>,
    strong: Strong,
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
                        strong: Strong::default(),
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
        let me = Entry::new(who, known[who.warp], Kind::Plain);
        let grains = self.grains(span);
        let page = self.page(span);
        for g in grains {
            ordered(page.writes[g], known, who, Access::Write)?;
            if atomic {
                page.strong.note(g, me);
                continue;
            }
            if let Some(e) = page.strong.unordered(g, known, who, false) {
                return Err((e.who(), e.access(Access::Read)));
            }
            let r = page.reads[g];
            if r == Entry::NONE || !r.unordered(known, who) {
                page.reads[g] = me;
            } else {
                let list = page.readers.entry(g).or_default();
                match list.iter_mut().find(|e| e.party() == who.warp) {
                    Some(e) => *e = me,
                    None => list.push(me),
                }
            }
        }
        Ok(())
    }

    /// Checks and notes a read that an asynchronous unit does for `who`.
    pub fn unit_read(
        &mut self,
        shared: &SharedMemory,
        span: Span,
        who: Who,
        entry: Entry,
    ) -> Result<(), Conflict> {
        let grains = self.grains(span);
        let page = self.page(span);
        for g in grains {
            visible(page, g, shared, who)?;
            let known = &shared.vc[who.warp];
            let r = page.reads[g];
            if r.party() == entry.party() || !r.unordered(known, who) {
                page.reads[g] = entry;
                continue;
            }
            let list = page.readers.entry(g).or_default();
            match list.iter_mut().find(|e| e.party() == entry.party()) {
                Some(e) => *e = entry,
                None => list.push(entry),
            }
        }
        Ok(())
    }

    /// Checks and notes a write that an asynchronous unit does for `who`.
    pub fn unit_write(
        &mut self,
        shared: &SharedMemory,
        span: Span,
        who: Who,
        entry: Entry,
    ) -> Result<(), Conflict> {
        let known = &shared.vc[who.warp];
        let race = |(other, other_access)| Conflict::Race {
            other,
            other_access,
        };
        let grains = self.grains(span);
        let page = self.page(span);
        for g in grains {
            visible(page, g, shared, who)?;
            ordered(page.reads[g], known, who, Access::Read).map_err(race)?;
            for e in page.readers.get(&g).into_iter().flatten() {
                ordered(*e, known, who, Access::Read).map_err(race)?;
            }
            page.readers.remove(&g);
            page.strong.forget(g);
            page.writes[g] = entry;
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
        let me = Entry::new(
            who,
            known[who.warp],
            if atomic { Kind::Atomic } else { Kind::Plain },
        );
        let grains = self.grains(span);
        let page = self.page(span);
        for g in grains {
            ordered(page.writes[g], known, who, Access::Write)?;
            ordered(page.reads[g], known, who, Access::Read)?;
            if !page.readers.is_empty()
                && let Some(list) = page.readers.get(&g)
            {
                for e in list {
                    ordered(*e, known, who, Access::Read)?;
                }
            }
            if atomic {
                page.strong.note(g, me);
                continue;
            }
            if let Some(e) = page.strong.unordered(g, known, who, true) {
                return Err((e.who(), e.access(Access::Read)));
            }
            // What is ordered after this write is ordered after all that was before it.
            page.readers.remove(&g);
            page.strong.forget(g);
            page.writes[g] = me;
        }
        Ok(())
    }
}

/// Whether an asynchronous access that `who` starts sees what was last written.
fn visible(page: &Page, grain: usize, shared: &SharedMemory, who: Who) -> Result<(), Conflict> {
    let (known, e) = (&shared.vc[who.warp], page.writes[grain]);
    if e.unordered(known, who) {
        return Err(Conflict::race(e, Access::Write));
    }
    if let Some(e) = page.strong.unordered(grain, known, who, true) {
        return Err(Conflict::race(e, Access::Read));
    }
    let strong = page.strong.last_write(grain);
    let plain = (e.kind() == Kind::Plain && e != Entry::NONE).then_some(e);
    let unfenced = |e: &Entry| !shared.fences.cover(*e, known, Reach::Global);
    match plain.into_iter().chain(strong).find(unfenced) {
        Some(e) => Err(Conflict::Unfenced(e.who())),
        None => Ok(()),
    }
}

fn ordered(e: Entry, known: &Clock, who: Who, access: Access) -> Result<(), (Who, Access)> {
    if e.unordered(known, who) {
        return Err((e.who(), e.access(access)));
    }
    Ok(())
}
