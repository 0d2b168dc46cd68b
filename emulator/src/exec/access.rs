//! Loads, stores and atomics: addresses, checks, counters.

use super::block::{Block, Flow};
use super::shared::{Clash, Who};
use super::warp::Warp;
use super::{LOCAL_WINDOW, Outcome, PARAM_WINDOW, SHARED_WINDOW, Trouble, WINDOW, trouble};
use crate::decode::{Access, Address, LANES, Mem, Order, Row, Scalar, Src};
use crate::fault::{AccessKind, Fault, FaultKind, Place, Space};
use crate::numeric::extend;

/// What is being executed: warp, split, program counter, active lanes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Site {
    pub w: usize,
    pub s: usize,
    pub pc: u32,
    pub active: u32,
}

/// A lane's address in a definite space: the space, and the offset in it (global and const keep
/// the address).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    pub space: Space,
    pub at: u64,
}

impl Default for Target {
    fn default() -> Self {
        Target {
            space: Space::Global,
            at: 0,
        }
    }
}

pub type Targets = [Target; LANES];

#[inline(always)]
fn resolve(mem: Mem, base: u64, offset: i64) -> Target {
    let mut at = base.wrapping_add(offset as u64);
    // Offsets into windows are 32-bit values, and wrap as such.
    let narrow = base <= u64::from(u32::MAX);
    let t = |space, at| Target { space, at };
    match mem {
        Mem::Global => t(Space::Global, at),
        Mem::Const => t(Space::Const, at),
        Mem::Shared => {
            if narrow {
                at &= 0xffff_ffff;
            }
            t(Space::Shared, at)
        }
        Mem::Param => {
            if at.wrapping_sub(PARAM_WINDOW) < WINDOW {
                at -= PARAM_WINDOW;
            }
            t(Space::Param, at)
        }
        Mem::Local => t(Space::Local, at.wrapping_sub(LOCAL_WINDOW)),
        Mem::Generic => {
            if at < SHARED_WINDOW {
                t(Space::Global, at)
            } else if at < LOCAL_WINDOW {
                t(Space::Shared, at - SHARED_WINDOW)
            } else if at < PARAM_WINDOW {
                t(Space::Local, at - LOCAL_WINDOW)
            } else {
                t(Space::Param, at - PARAM_WINDOW)
            }
        }
    }
}

impl Warp<'_> {
    /// Zeroes bytes of the lanes' frames.
    pub fn clear_local(&mut self, mask: u32, at: u64, size: u64) {
        for l in (0..LANES).filter(|l| mask >> l & 1 == 1) {
            let from = l * self.local_stride + at as usize;
            if let Some(b) = self.local.get_mut(from..from + size as usize) {
                b.fill(0);
                self.local_init[from..from + size as usize].fill(true);
            }
        }
    }

    /// Copies bytes between frames, for calls.
    pub fn copy_local(&mut self, mask: u32, from: u64, to: u64, size: u64) {
        for l in 0..LANES {
            if mask >> l & 1 == 1 {
                let row = l * self.local_stride;
                let (from, to, n) = (row + from as usize, row + to as usize, size as usize);
                if from + n <= self.local.len() && to + n <= self.local.len() {
                    self.local.copy_within(from..from + n, to);
                    self.local_init.copy_within(from..from + n, to);
                }
            }
        }
    }
}

impl Block<'_, '_> {
    pub fn targets(&mut self, mem: Mem, address: &Address) -> Targets {
        let Site { w, s, .. } = self.site;
        let warp = &mut self.warps[w];
        let split = &warp.splits[s];
        let (base, frame) = (split.base, split.frame);
        warp.prepare(0, address.base, frame);
        let row = warp.get(0, address.base, base);
        let mut out = [Target::default(); LANES];
        for (t, &base) in out.iter_mut().zip(row) {
            *t = resolve(mem, base, address.offset);
        }
        out
    }

    /// Checks alignment and bounds of `bytes` at a lane's address; for global and const, the
    /// allocation's number. `hint` is the allocation found last.
    #[inline]
    pub fn check(
        &self,
        t: Target,
        bytes: u32,
        align: u32,
        access: AccessKind,
        lane: u32,
        hint: &mut usize,
    ) -> Outcome<()> {
        if t.at & u64::from(align - 1) != 0 {
            let kind = FaultKind::Misaligned {
                space: t.space,
                access,
                address: t.at,
                align,
            };
            return trouble(kind, lane);
        }
        let inside = match t.space {
            Space::Global | Space::Const => {
                let allocations = &self.launch.allocations;
                let hit = |i: usize| {
                    allocations
                        .get(i)
                        .is_some_and(|a| t.at >= a.base && a.holds(t.at - a.base, u64::from(bytes)))
                };
                if !hit(*hint) {
                    *hint = allocations
                        .partition_point(|a| a.base <= t.at)
                        .wrapping_sub(1);
                }
                hit(*hint)
            }
            Space::Shared => self.shared.holds(t.at, bytes),
            Space::Local => {
                t.at.checked_add(u64::from(bytes))
                    .is_some_and(|end| end <= self.warps[self.site.w].local_stride as u64)
            }
            Space::Param => {
                t.at.checked_add(u64::from(bytes))
                    .is_some_and(|end| end <= self.launch.params.len() as u64)
            }
        };
        if inside {
            return Ok(());
        }
        let detail = match t.space {
            Space::Global | Space::Const => self.nearest(t.at),
            Space::Shared => format!("the block has {} bytes", self.shared.bytes),
            Space::Local => format!(
                "the thread's frame has {} bytes",
                self.warps[self.site.w].local_stride
            ),
            Space::Param => format!("there are {} bytes", self.launch.params.len()),
        };
        let kind = FaultKind::OutOfBounds {
            space: t.space,
            access,
            address: t.at,
            bytes,
            detail,
        };
        trouble(kind, lane)
    }

    /// Says which allocation an address misses, and by how much.
    fn nearest(&self, at: u64) -> String {
        let all = &self.launch.allocations;
        let i = all.partition_point(|a| a.base <= at);
        if let Some(a) = i.checked_sub(1).and_then(|i| all.get(i))
            && at - a.base < a.size + (1 << 25)
        {
            let offset = at - a.base;
            return format!(
                "offset {offset} of an allocation of {} bytes at {:#x}",
                a.size, a.base
            );
        }
        match all.get(i) {
            Some(a) if a.base - at < 1 << 25 => format!(
                "{} bytes before an allocation of {} bytes at {:#x}",
                a.base - at,
                a.size,
                a.base
            ),
            _ => "in no allocation".to_owned(),
        }
    }

    pub fn clash(&self, c: Clash, at: u64, access: AccessKind, lane: u32) -> Box<Trouble> {
        let thread = |w: u32, l: u32| Some(w * 32 + l);
        let kind = match c {
            Clash::Race(e, other_access) => FaultKind::Race {
                space: Space::Shared,
                address: at,
                access,
                other_access,
                other: Box::new(self.launch.place(
                    e.pc(),
                    Some(self.index),
                    thread(e.warp(), e.lane()),
                )),
            },
            Clash::Pending => {
                let word = at & !3;
                let copy = self.warps.iter().find_map(|w| {
                    let c = w.copies.iter().find(|c| {
                        u64::from(c.offset) < word + 4 && u64::from(c.offset + c.bytes) > word
                    })?;
                    Some(
                        self.launch
                            .place(c.pc, Some(self.index), thread(w.index, c.lane)),
                    )
                });
                FaultKind::PendingCopy {
                    address: at,
                    access,
                    other: Box::new(copy.unwrap_or_else(Place::default)),
                }
            }
        };
        Box::new(Trouble {
            kind,
            lane: Some(lane),
        })
    }

    /// An uninitialised read is only reported once every warp has come to its next barrier: the
    /// write that it should have waited for may still come, and then the race is the cause.
    fn defer_uninitialised(&mut self, t: Target, bytes: u32, lane: u32) {
        if self.uninitialised.is_none() {
            let Site { w, pc, .. } = self.site;
            self.uninitialised = Some(Box::new(Fault {
                kind: FaultKind::Uninitialised {
                    space: t.space,
                    address: t.at,
                    bytes,
                },
                kernel: self.program.kernel.clone(),
                place: self
                    .launch
                    .place(pc, Some(self.index), Some(w as u32 * 32 + lane)),
            }));
        }
    }

    /// Reads up to eight bytes, which do not straddle more than two words, from shared memory.
    pub fn read_shared(&mut self, at: u64, bytes: u32, lane: u32, strong: bool) -> Outcome<u64> {
        let Site { w, s, pc, .. } = self.site;
        let split = &self.warps[w].splits[s];
        let who = Who {
            warp: w as u32,
            lane,
            pc,
            clock: self.clocks[w][w],
            mask: split.mask,
            parted: split.parted,
            strong,
            copy: false,
            knows: &self.clocks[w],
        };
        let first = (at & 3) as u32;
        let mut value = 0u64;
        let mut init = true;
        let mut done = 0;
        while done < bytes {
            let n = (4 - (first + done) % 4).min(bytes - done);
            let shift = if done == 0 { first } else { 0 };
            let mask = (((1u32 << n) - 1) << shift) as u8;
            match self.shared.read(at + u64::from(done), mask, &who) {
                Ok((v, i)) => {
                    init &= i;
                    let v = u64::from(v >> (8 * shift));
                    value |= extend(v, 8 * n, false) << (8 * done);
                }
                Err(c) => {
                    let kind = if strong {
                        AccessKind::Atomic
                    } else {
                        AccessKind::Read
                    };
                    return Err(self.clash(c, at, kind, lane));
                }
            }
            done += n;
        }
        if !init {
            let t = Target {
                space: Space::Shared,
                at,
            };
            self.defer_uninitialised(t, bytes, lane);
        }
        Ok(value)
    }

    /// Reads a 16-byte row of a matrix.
    pub fn read_row(&mut self, at: u64, lane: u32) -> Outcome<[u32; 4]> {
        let Site { w, s, pc, .. } = self.site;
        let split = &self.warps[w].splits[s];
        let who = Who {
            warp: w as u32,
            lane,
            pc,
            clock: self.clocks[w][w],
            mask: split.mask,
            parted: split.parted,
            strong: false,
            copy: false,
            knows: &self.clocks[w],
        };
        let mut out = [0; 4];
        let mut init = true;
        for (i, v) in out.iter_mut().enumerate() {
            let at = at + 4 * i as u64;
            match self.shared.read(at, 15, &who) {
                Ok((x, y)) => (*v, init) = (x, init & y),
                Err(c) => return Err(self.clash(c, at, AccessKind::Read, lane)),
            }
        }
        if !init {
            let t = Target {
                space: Space::Shared,
                at,
            };
            self.defer_uninitialised(t, 16, lane);
        }
        Ok(out)
    }

    pub fn write_shared(
        &mut self,
        at: u64,
        value: u64,
        bytes: u32,
        lane: u32,
        strong: bool,
    ) -> Outcome<()> {
        let Site { w, s, pc, .. } = self.site;
        let split = &self.warps[w].splits[s];
        let who = Who {
            warp: w as u32,
            lane,
            pc,
            clock: self.clocks[w][w],
            mask: split.mask,
            parted: split.parted,
            strong,
            copy: false,
            knows: &self.clocks[w],
        };
        let first = (at & 3) as u32;
        let mut done = 0;
        while done < bytes {
            let n = (4 - (first + done) % 4).min(bytes - done);
            let shift = if done == 0 { first } else { 0 };
            let mask = (((1u32 << n) - 1) << shift) as u8;
            let v = ((value >> (8 * done)) as u32) << (8 * shift);
            if let Err(c) = self.shared.write(at + u64::from(done), v, mask, &who) {
                let kind = if strong {
                    AccessKind::Atomic
                } else {
                    AccessKind::Write
                };
                return Err(self.clash(c, at, kind, lane));
            }
            done += n;
        }
        Ok(())
    }

    /// Marks an mbarrier object as written.
    pub fn store_shared_plain(&mut self, at: u64, lane: u32) -> Outcome<()> {
        self.shared.begin_store();
        self.write_shared(at, 0, 8, lane, true)
    }

    /// Reads an element of up to eight bytes whose address has been checked.
    pub fn read_element(
        &mut self,
        t: Target,
        bytes: u32,
        lane: u32,
        order: Order,
        allocation: usize,
    ) -> Outcome<u64> {
        let Site { w, pc, .. } = self.site;
        match t.space {
            Space::Shared => self.read_shared(t.at, bytes, lane, order.strong),
            Space::Global | Space::Const => {
                let a = &self.launch.allocations[allocation];
                let offset = t.at - a.base;
                let track = self.track_global && !a.read_only;
                let mut value = 0u64;
                let mut init = true;
                let mut done = 0;
                while done < bytes {
                    let at = offset + u64::from(done);
                    let shift = (at & 3) as u32;
                    let n = (4 - shift).min(bytes - done);
                    let mask = (((1u32 << n) - 1) << shift) as u8;
                    if track {
                        let thread = w as u32 * 32 + lane;
                        let kind = AccessKind::Read;
                        self.launch.races.access(
                            &self.global,
                            allocation,
                            a.base,
                            at & !3,
                            mask,
                            pc,
                            thread,
                            kind,
                            order.strong,
                        );
                    }
                    let (v, i) = a.load_word(at & !3);
                    init &= i & mask == mask;
                    value |= extend(u64::from(v >> (8 * shift)), 8 * n, false) << (8 * done);
                    done += n;
                }
                if !init && self.launch.config.checks.uninitialised {
                    let kind = FaultKind::Uninitialised {
                        space: t.space,
                        address: t.at,
                        bytes,
                    };
                    return trouble(kind, lane);
                }
                Ok(value)
            }
            Space::Local => {
                let warp = &self.warps[w];
                let at = lane as usize * warp.local_stride + t.at as usize;
                let (mut value, mut init) = (0u64, true);
                for i in 0..bytes as usize {
                    value |= u64::from(warp.local[at + i]) << (8 * i);
                    init &= warp.local_init[at + i];
                }
                if !init && self.launch.config.checks.uninitialised {
                    let kind = FaultKind::Uninitialised {
                        space: t.space,
                        address: t.at,
                        bytes,
                    };
                    return trouble(kind, lane);
                }
                Ok(value)
            }
            Space::Param => {
                let at = t.at as usize;
                let mut b = [0; 8];
                b[..bytes as usize].copy_from_slice(&self.launch.params[at..at + bytes as usize]);
                Ok(u64::from_le_bytes(b))
            }
        }
    }

    fn write_element(
        &mut self,
        t: Target,
        value: u64,
        bytes: u32,
        lane: u32,
        order: Order,
        allocation: usize,
    ) -> Outcome<()> {
        let Site { w, pc, .. } = self.site;
        match t.space {
            Space::Shared => self.write_shared(t.at, value, bytes, lane, order.strong),
            Space::Global => {
                let a = &self.launch.allocations[allocation];
                if a.read_only {
                    return trouble(FaultKind::ReadOnly { address: t.at }, lane);
                }
                let offset = t.at - a.base;
                let mut done = 0;
                while done < bytes {
                    let at = offset + u64::from(done);
                    let shift = (at & 3) as u32;
                    let n = (4 - shift).min(bytes - done);
                    let mask = (((1u32 << n) - 1) << shift) as u8;
                    if self.track_global {
                        let thread = w as u32 * 32 + lane;
                        let kind = AccessKind::Write;
                        self.launch.races.access(
                            &self.global,
                            allocation,
                            a.base,
                            at & !3,
                            mask,
                            pc,
                            thread,
                            kind,
                            order.strong,
                        );
                    }
                    let v = ((value >> (8 * done)) as u32) << (8 * shift);
                    a.store_word(at & !3, v, mask);
                    done += n;
                }
                Ok(())
            }
            Space::Local => {
                let warp = &mut self.warps[w];
                let at = lane as usize * warp.local_stride + t.at as usize;
                for i in 0..bytes as usize {
                    warp.local[at + i] = (value >> (8 * i)) as u8;
                    warp.local_init[at + i] = true;
                }
                Ok(())
            }
            Space::Const | Space::Param => trouble(FaultKind::ReadOnly { address: t.at }, lane),
        }
    }

    /// Counts a request by the spaces that its lanes go to.
    fn count(&mut self, targets: &Targets, bytes: u32, store: bool) {
        let Site { pc, active, .. } = self.site;
        let mask_of = |space| {
            (0..LANES).fold(0u32, |m, l| m | u32::from(targets[l].space == space) << l) & active
        };
        let addresses = std::array::from_fn(|l| targets[l].at);
        let global = mask_of(Space::Global);
        if global != 0 {
            self.counters
                .global_request(&addresses, global, bytes, store);
        }
        let shared = mask_of(Space::Shared);
        if shared != 0 {
            self.counters.shared_request(pc, &addresses, shared, bytes);
        }
    }

    /// Strong operations order warps and blocks.
    fn synchronise(&mut self, t: Target, order: Order, kind: AccessKind) {
        if !order.strong {
            return;
        }
        let w = self.site.w;
        if order.release && kind != AccessKind::Read {
            self.fence();
        }
        if t.space == Space::Global {
            self.launch
                .races
                .synchronise(&mut self.global, t.at, order, kind);
        }
        let key = match t.space {
            Space::Shared => SHARED_WINDOW + t.at,
            _ => t.at,
        };
        if kind == AccessKind::Write {
            if let Some(clocks) = &self.fenced[w] {
                let n = clocks.len();
                let into = self.published.entry(key).or_insert_with(|| vec![0; n]);
                super::barrier::join(into, clocks);
            }
        } else if let Some(clocks) = self.published.get(&key) {
            super::barrier::join(&mut self.clocks[w], clocks);
        }
    }

    /// What the warp has done may now be published by a strong write.
    pub fn fence(&mut self) {
        let w = self.site.w;
        self.fenced[w] = Some(self.clocks[w].clone());
        self.global.fence();
        self.tick();
    }

    pub fn load(&mut self, access: &Access, dst: &[Option<u32>], dst_bits: u32) -> Outcome<Flow> {
        let Site { w, s, active, .. } = self.site;
        let targets = self.targets(access.mem, &access.address);
        let bytes = access.bytes;
        let total = bytes * dst.len() as u32;
        self.count(&targets, total, false);
        let mut out = [[0; LANES]; 8];
        let mut allocation = 0;
        for l in 0..LANES as u32 {
            if active >> l & 1 == 0 {
                continue;
            }
            let t = targets[l as usize];
            self.check(t, total, total, AccessKind::Read, l, &mut allocation)?;
            for (i, row) in out.iter_mut().take(dst.len()).enumerate() {
                let e = Target {
                    space: t.space,
                    at: t.at + i as u64 * u64::from(bytes),
                };
                let v = self.read_element(e, bytes, l, access.order, allocation)?;
                row[l as usize] = extend(extend(v, bytes * 8, access.signed), dst_bits, false);
            }
            self.synchronise(t, access.order, AccessKind::Read);
        }
        let warp = &mut self.warps[w];
        let base = warp.splits[s].base;
        for (d, row) in dst.iter().zip(&out) {
            if let Some(d) = d {
                warp.set(*d, base, active, row);
            }
        }
        Ok(Flow::Next)
    }

    pub fn store(&mut self, access: &Access, src: &[Src]) -> Outcome<Flow> {
        let Site { w, s, active, .. } = self.site;
        let targets = self.targets(access.mem, &access.address);
        let bytes = access.bytes;
        let total = bytes * src.len() as u32;
        self.count(&targets, total, true);
        let mut rows: [Row; 8] = [[0; LANES]; 8];
        for (r, x) in rows.iter_mut().zip(src) {
            *r = self.warps[w].row(*x, s);
        }
        self.shared.begin_store();
        let mut allocation = 0;
        for l in 0..LANES as u32 {
            if active >> l & 1 == 0 {
                continue;
            }
            let t = targets[l as usize];
            self.check(t, total, total, AccessKind::Write, l, &mut allocation)?;
            self.synchronise(t, access.order, AccessKind::Write);
            for (i, row) in rows.iter().take(src.len()).enumerate() {
                let e = Target {
                    space: t.space,
                    at: t.at + i as u64 * u64::from(bytes),
                };
                let v = extend(row[l as usize], bytes * 8, false);
                self.write_element(e, v, bytes, l, access.order, allocation)?;
            }
        }
        if access.order.strong {
            self.progress = true;
        }
        Ok(Flow::Next)
    }

    pub fn atomic(
        &mut self,
        access: &Access,
        dst: Option<u32>,
        f: &Scalar,
        src: Src,
        cas: Option<Src>,
    ) -> Outcome<Flow> {
        let Site { w, s, active, .. } = self.site;
        let targets = self.targets(access.mem, &access.address);
        let bytes = access.bytes;
        self.count(&targets, bytes, true);
        let a = self.warps[w].row(src, s);
        let b = match cas {
            Some(c) => Some(self.warps[w].row(c, s)),
            None => None,
        };
        let mut out = [0; LANES];
        let mut allocation = 0;
        for l in 0..LANES {
            if active >> l & 1 == 0 {
                continue;
            }
            let t = targets[l];
            let lane = l as u32;
            self.check(t, bytes, bytes, AccessKind::Atomic, lane, &mut allocation)?;
            self.synchronise(t, access.order, AccessKind::Write);
            let operand = extend(a[l], bytes * 8, false);
            let new = |old: u64| match &b {
                // `cas`: the first operand is compared with, the second is stored.
                Some(b) if old == operand => extend(b[l], bytes * 8, false),
                Some(_) => old,
                None => f(old, operand),
            };
            out[l] = match t.space {
                Space::Global => self.atomic_global(t, bytes, lane, allocation, new)?,
                Space::Shared => {
                    self.shared.begin_store();
                    let old = self.read_shared(t.at, bytes, lane, true)?;
                    self.write_shared(t.at, new(old), bytes, lane, true)?;
                    old
                }
                space => {
                    let text = format!("an atomic on {space} memory");
                    return trouble(FaultKind::InvalidInstruction(text), lane);
                }
            };
            self.synchronise(t, access.order, AccessKind::Read);
        }
        self.progress = true;
        if let Some(d) = dst {
            let warp = &mut self.warps[w];
            let base = warp.splits[s].base;
            warp.set(d, base, active, &out);
        }
        Ok(Flow::Next)
    }

    fn atomic_global(
        &mut self,
        t: Target,
        bytes: u32,
        lane: u32,
        allocation: usize,
        new: impl Fn(u64) -> u64,
    ) -> Outcome<u64> {
        let Site { w, pc, .. } = self.site;
        let a = self.launch.allocations[allocation].clone();
        if a.read_only {
            return trouble(FaultKind::ReadOnly { address: t.at }, lane);
        }
        let offset = t.at - a.base;
        let shift = 8 * (offset & 3) as u32;
        let mask = if bytes >= 4 {
            15
        } else {
            (((1u32 << bytes) - 1) << (offset & 3)) as u8
        };
        let words = bytes.div_ceil(4);
        for i in 0..words {
            let word = (offset & !3) + u64::from(4 * i);
            let (_, init) = a.load_word(word);
            if init & mask != mask && self.launch.config.checks.uninitialised {
                let kind = FaultKind::Uninitialised {
                    space: Space::Global,
                    address: t.at,
                    bytes,
                };
                return trouble(kind, lane);
            }
            if self.track_global {
                let thread = w as u32 * 32 + lane;
                let kind = AccessKind::Atomic;
                self.launch.races.access(
                    &self.global,
                    allocation,
                    a.base,
                    word,
                    mask,
                    pc,
                    thread,
                    kind,
                    true,
                );
            }
        }
        if bytes == 4 {
            let mut old = a.load_word(offset).0;
            loop {
                match a.swap_word(offset, old, new(u64::from(old)) as u32) {
                    Ok(_) => return Ok(u64::from(old)),
                    Err(now) => old = now,
                }
            }
        }
        let _guard = match self.launch.memory.atomics.lock() {
            Ok(g) => g,
            Err(poisoned) => poisoned.into_inner(),
        };
        if bytes == 8 {
            let old = u64::from(a.load_word(offset).0) | u64::from(a.load_word(offset + 4).0) << 32;
            let v = new(old);
            a.store_word(offset, v as u32, 15);
            a.store_word(offset + 4, (v >> 32) as u32, 15);
            return Ok(old);
        }
        let word = offset & !3;
        let old = extend(u64::from(a.load_word(word).0 >> shift), 8 * bytes, false);
        a.store_word(word, (new(old) as u32) << shift, mask);
        Ok(old)
    }
}
