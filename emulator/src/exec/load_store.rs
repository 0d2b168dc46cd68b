//! Loads and stores: address resolution, checks, data.

use super::block::Block;
use super::regs::{LANES, lanes};
use super::shared::Who;
use super::warp::{Flow, Warp};
use super::warps_global::Span;
use super::window::Window;
use super::{Exec, banks, raise};
use crate::error::{Access, FaultKind, Space};
use crate::memory::Allocation;
use crate::op::{Addr, Load, MemSpace, Order, Row, Store};

/// A lane's address after resolving the space.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target {
    Global(u64),
    Shared(u64),
    Local(u64),
    Param(u64),
}

/// Largest access of one lane: eight words or four doubles.
const MAX_BYTES: usize = 32;

impl Warp {
    pub fn addresses(&self, a: &Addr) -> [u64; LANES] {
        let off = a.offset as u64;
        match a.base {
            // Addresses of at most 32 bits wrap there.
            Row::W(w) => self
                .regs
                .w(w)
                .map(|x| u64::from(x.wrapping_add(off as u32))),
            Row::D(d) => self.regs.d(d).map(|x| x.wrapping_add(off)),
        }
    }

    /// An address in the shared window or a generic one that points there.
    pub fn shared_address(&self, a: &Addr, lane: usize) -> u64 {
        let off = a.offset as u64;
        let x = match a.base {
            Row::W(w) => u64::from(self.regs.w(w)[lane].wrapping_add(off as u32)),
            Row::D(d) => self.regs.d(d)[lane].wrapping_add(off),
        };
        if x >= Window::SHARED && x - Window::SHARED < Window::SIZE {
            x - Window::SHARED
        } else {
            x
        }
    }

    pub fn target(space: MemSpace, a: u64) -> Target {
        let inside = |base: u64| a >= base && a - base < Window::SIZE;
        match space {
            MemSpace::Shared => Target::Shared(a),
            MemSpace::Local => Target::Local(a),
            MemSpace::Param => Target::Param(a),
            MemSpace::Global | MemSpace::Const => Target::Global(a),
            MemSpace::Generic if inside(Window::SHARED) => Target::Shared(a - Window::SHARED),
            MemSpace::Generic if inside(Window::LOCAL) => Target::Local(a - Window::LOCAL),
            MemSpace::Generic if inside(Window::PARAM) => Target::Param(a - Window::PARAM),
            MemSpace::Generic => Target::Global(a),
        }
    }

    /// The lane's bytes of local memory.
    fn local_range(
        &self,
        at: u64,
        len: u32,
        access: Access,
        lane: usize,
    ) -> Exec<std::ops::Range<usize>> {
        let size = u64::from(self.local_bytes);
        if at.checked_add(u64::from(len)).is_none_or(|end| end > size) {
            let detail = format!("the thread has {size} bytes of local memory");
            return raise(
                FaultKind::OutOfBounds {
                    space: Space::Local,
                    access,
                    address: at,
                    len,
                    detail,
                },
                Some(lane),
            );
        }
        if !at.is_multiple_of(u64::from(len)) {
            return raise(
                FaultKind::Misaligned {
                    space: Space::Local,
                    address: at,
                    align: len,
                },
                Some(lane),
            );
        }
        let from = lane * self.local_bytes as usize + at as usize;
        Ok(from..from + len as usize)
    }

    pub fn load_param(
        &mut self,
        b: &Block<'_>,
        offset: u32,
        width: u32,
        signed: bool,
        dst: &[Option<Row>],
        mask: u32,
    ) -> Exec<()> {
        for (k, d) in dst.iter().enumerate() {
            let at = u64::from(offset) + k as u64 * u64::from(width);
            let mut bytes = [0; 8];
            param_bytes(b, at, &mut bytes[..width as usize], None)?;
            let v = widen(u64::from_le_bytes(bytes), width, signed);
            match d {
                Some(Row::W(w)) => self.regs.put_w(*w, &[v as u32; LANES], mask),
                Some(Row::D(d)) => self.regs.put_d(*d, &[v; LANES], mask),
                None => {}
            }
        }
        Ok(())
    }

    pub fn load(&mut self, b: &mut Block<'_>, l: &Load, mask: u32) -> Exec<Flow> {
        let addrs = self.addresses(&l.addr);
        let n = l.dst.len();
        let total = l.width * n as u32;
        let relaxed = l.order != Order::Weak;
        let mut values = [[0u64; LANES]; MAX_BYTES / 4];
        let mut shared_mask = 0;
        let mut shared_addrs = [0u32; LANES];
        let mut global_mask = 0;
        let space = l.space;
        for lane in lanes(mask) {
            let mut bytes = [0u8; MAX_BYTES];
            let bytes = &mut bytes[..total as usize];
            let who = Who {
                warp: self.id,
                lane,
                pc: self.pc,
            };
            match Self::target(space, addrs[lane]) {
                Target::Shared(a) => {
                    let at = b.shared.check(a, total, Access::Read, lane)?;
                    if relaxed {
                        b.shared.observe(u64::from(at), self.id);
                    }
                    if let Err(c) = b.shared.note_read(at, total, who, relaxed) {
                        return b.conflict(c, Access::Read, total, lane);
                    }
                    bytes.copy_from_slice(&b.shared.bytes[at as usize..(at + total) as usize]);
                    shared_mask |= 1 << lane;
                    shared_addrs[lane] = at;
                }
                Target::Global(a) => {
                    global_mask |= 1 << lane;
                    if relaxed {
                        b.shared.observe(a, self.id);
                    }
                    let races = b.launch.races.as_ref().filter(|_| relaxed);
                    let _one_step = races.map(|r| r.observe(&mut b.party, a));
                    b.read_global(a, bytes, total, who, relaxed, l.space == MemSpace::Const)?;
                }
                Target::Local(a) => {
                    let r = self.local_range(a, total, Access::Read, lane)?;
                    bytes.copy_from_slice(&self.local[r]);
                }
                Target::Param(a) => param_bytes(b, a, bytes, Some(lane))?,
            }
            match l.width {
                4 => {
                    for k in 0..n {
                        let c: [u8; 4] = [
                            bytes[4 * k],
                            bytes[4 * k + 1],
                            bytes[4 * k + 2],
                            bytes[4 * k + 3],
                        ];
                        values[k][lane] = u64::from(u32::from_le_bytes(c));
                    }
                }
                w => {
                    for (k, c) in bytes.chunks_exact(w as usize).enumerate() {
                        let mut v = [0; 8];
                        v[..c.len()].copy_from_slice(c);
                        values[k][lane] = u64::from_le_bytes(v);
                    }
                }
            }
        }
        for (k, d) in l.dst.iter().enumerate() {
            match d {
                Some(Row::W(w)) => {
                    let row = values[k].map(|v| widen(v, l.width, l.signed) as u32);
                    self.regs.put_w(*w, &row, mask);
                }
                Some(Row::D(d)) => {
                    let row = values[k].map(|v| widen(v, l.width, l.signed));
                    self.regs.put_d(*d, &row, mask);
                }
                None => {}
            }
        }
        if shared_mask != 0 {
            banks::shared(&mut b.counters[self.pc], &shared_addrs, shared_mask, total);
        }
        if global_mask != 0 && l.space != MemSpace::Const {
            banks::global(&mut b.counters[self.pc], &addrs, global_mask, total);
        }
        // A polling loop must let the others run.
        Ok(if relaxed { Flow::Yield } else { Flow::Next })
    }

    pub fn store(&mut self, b: &mut Block<'_>, s: &Store, mask: u32) -> Exec<Flow> {
        let addrs = self.addresses(&s.addr);
        let total = s.width * s.src.len() as u32;
        let relaxed = s.order != Order::Weak;
        let release = matches!(s.order, Order::Release | Order::AcqRel);
        let rows: Vec<[u64; LANES]> = s.src.iter().map(|r| self.wide(*r)).collect();
        let mut data = [[0u8; MAX_BYTES]; LANES];
        for lane in lanes(mask) {
            for (k, row) in rows.iter().enumerate() {
                let at = k * s.width as usize;
                data[lane][at..at + s.width as usize]
                    .copy_from_slice(&row[lane].to_le_bytes()[..s.width as usize]);
            }
        }
        let mut shared_mask = 0;
        let mut shared_addrs = [0u32; LANES];
        let mut global_mask = 0;
        b.progress += 1;
        if !relaxed && (b.launch.config.checks.shared_races || b.launch.races.is_some()) {
            self.lane_conflict(b, s.space, &addrs, &data, mask, total)?;
        }
        for lane in lanes(mask) {
            let bytes = &data[lane][..total as usize];
            let who = Who {
                warp: self.id,
                lane,
                pc: self.pc,
            };
            match Self::target(s.space, addrs[lane]) {
                Target::Shared(a) => {
                    let at = b.shared.check(a, total, Access::Write, lane)?;
                    b.guard_mbarrier(at, total, lane)?;
                    if relaxed {
                        b.shared.synchronise(u64::from(at), self.id, release);
                    }
                    if let Err(c) = b.shared.note_write(at, total, who, relaxed) {
                        return b.conflict(c, Access::Write, total, lane);
                    }
                    b.shared.bytes[at as usize..(at + total) as usize].copy_from_slice(bytes);
                    shared_mask |= 1 << lane;
                    shared_addrs[lane] = at;
                }
                Target::Global(a) => {
                    global_mask |= 1 << lane;
                    if relaxed {
                        b.shared.synchronise(a, self.id, release);
                    }
                    let races = b.launch.races.as_ref().filter(|_| relaxed);
                    let _one_step = races.map(|r| r.synchronise(&mut b.party, a, release));
                    b.write_global(a, bytes, who, relaxed)?;
                }
                Target::Local(a) => {
                    let r = self.local_range(a, total, Access::Write, lane)?;
                    self.local[r].copy_from_slice(bytes);
                }
                Target::Param(a) => {
                    let detail = "kernel parameters are read-only".to_owned();
                    return raise(
                        FaultKind::OutOfBounds {
                            space: Space::Param,
                            access: Access::Write,
                            address: a,
                            len: total,
                            detail,
                        },
                        Some(lane),
                    );
                }
            }
        }
        if shared_mask != 0 {
            banks::shared(&mut b.counters[self.pc], &shared_addrs, shared_mask, total);
        }
        if global_mask != 0 {
            banks::global(&mut b.counters[self.pc], &addrs, global_mask, total);
        }
        Ok(Flow::Next)
    }

    /// Two lanes that store different values to one address in one instruction: which wins is
    /// undefined.
    fn lane_conflict(
        &self,
        b: &Block<'_>,
        space: MemSpace,
        addrs: &[u64; LANES],
        data: &[[u8; MAX_BYTES]; LANES],
        mask: u32,
        len: u32,
    ) -> Exec<()> {
        if space == MemSpace::Local {
            return Ok(());
        }
        // Ascending or descending by at least the width is the usual case.
        let (mut up, mut down, mut last) = (true, true, None);
        for lane in lanes(mask) {
            if let Some(l) = last {
                let step = addrs[lane].wrapping_sub(addrs[l]) as i64;
                up &= step >= i64::from(len);
                down &= step <= -i64::from(len);
            }
            last = Some(lane);
        }
        if up || down {
            return Ok(());
        }
        let mut order: Vec<usize> = lanes(mask).collect();
        order.sort_by_key(|&l| (addrs[l], l));
        for pair in order.windows(2) {
            let (x, y) = (pair[0], pair[1]);
            let gap = addrs[y] - addrs[x];
            if gap == 0 && data[x] != data[y] {
                let (space, address) = match Self::target(space, addrs[x]) {
                    Target::Shared(a) => (Space::Shared, a),
                    Target::Global(a) => (Space::Global, a),
                    _ => continue,
                };
                let other = b.place_of(Who {
                    warp: self.id,
                    lane: x,
                    pc: self.pc,
                });
                return raise(
                    FaultKind::Race {
                        space,
                        address,
                        access: Access::Write,
                        other_access: Access::Write,
                        other,
                    },
                    Some(y),
                );
            }
        }
        Ok(())
    }
}

fn param_bytes(b: &Block<'_>, at: u64, out: &mut [u8], lane: Option<usize>) -> Exec<()> {
    let params = &b.launch.params;
    let end = at
        .checked_add(out.len() as u64)
        .filter(|e| *e <= params.len() as u64);
    let Some(end) = end else {
        let detail = format!("the kernel has {} bytes of parameters", params.len());
        let len = out.len() as u32;
        return raise(
            FaultKind::OutOfBounds {
                space: Space::Param,
                access: Access::Read,
                address: at,
                len,
                detail,
            },
            lane,
        );
    };
    if !at.is_multiple_of(out.len() as u64) {
        return raise(
            FaultKind::Misaligned {
                space: Space::Param,
                address: at,
                align: out.len() as u32,
            },
            lane,
        );
    }
    out.copy_from_slice(&params[at as usize..end as usize]);
    Ok(())
}

#[inline(always)]
fn widen(v: u64, width: u32, signed: bool) -> u64 {
    if !signed {
        return v;
    }
    match width {
        1 => v as u8 as i8 as u64,
        2 => v as u16 as i16 as u64,
        4 => v as u32 as i32 as u64,
        _ => v,
    }
}

impl<'l> Block<'l> {
    /// The allocation and offset of a global access, checked.
    #[inline]
    pub fn global(
        &mut self,
        address: u64,
        len: u32,
        access: Access,
        lane: usize,
    ) -> Exec<(usize, &'l Allocation, u64)> {
        let list = &self.launch.memory;
        let hit = |i: usize| {
            let a = list.get(i)?;
            let offset = address.wrapping_sub(a.base);
            (offset < a.size && u64::from(len) <= a.size - offset && !a.is_freed())
                .then_some((i, &**a, offset))
        };
        let found = match hit(self.cache) {
            Some(found) => found,
            None => {
                let i = list.partition_point(|a| a.base <= address);
                match i.checked_sub(1).and_then(hit) {
                    Some(found) => {
                        self.cache = found.0;
                        found
                    }
                    None => return self.outside(address, len, access, lane),
                }
            }
        };
        if !address.is_multiple_of(u64::from(len)) {
            return raise(
                FaultKind::Misaligned {
                    space: Space::Global,
                    address,
                    align: len,
                },
                Some(lane),
            );
        }
        if access != Access::Read && found.1.constant {
            let detail = "a constant variable is read-only".to_owned();
            return raise(
                FaultKind::OutOfBounds {
                    space: Space::Const,
                    access,
                    address,
                    len,
                    detail,
                },
                Some(lane),
            );
        }
        Ok(found)
    }

    #[cold]
    fn outside<T>(&self, address: u64, len: u32, access: Access, lane: usize) -> Exec<T> {
        let list = &self.launch.memory;
        let i = list.partition_point(|a| a.base <= address);
        let below = i.checked_sub(1).and_then(|i| list.get(i));
        if let Some(a) = below
            && a.is_freed()
            && address - a.base < a.size
        {
            return raise(FaultKind::UseAfterFree { address, len }, Some(lane));
        }
        let mut detail = match below {
            Some(a) => format!(
                "{} bytes into an allocation of {} bytes at {:#x}",
                address - a.base,
                a.size,
                a.base
            ),
            None => "below every allocation".to_owned(),
        };
        if let Some(a) = list.get(i) {
            let gap = a.base - address;
            // Only a close one says something.
            if gap < 1 << 20 {
                detail += &format!(
                    "; {gap} bytes before one of {} bytes at {:#x}",
                    a.size, a.base
                );
            }
        }
        raise(
            FaultKind::OutOfBounds {
                space: Space::Global,
                access,
                address,
                len,
                detail,
            },
            Some(lane),
        )
    }

    /// Reads a global (or constant) value of `len` bytes, a power of two.
    pub fn read_global(
        &mut self,
        address: u64,
        out: &mut [u8],
        len: u32,
        who: Who,
        relaxed: bool,
        constant: bool,
    ) -> Exec<()> {
        let (index, a, offset) = self.global(address, len, Access::Read, who.lane)?;
        if constant && !a.constant {
            let detail = "not a constant variable".to_owned();
            let kind = FaultKind::OutOfBounds {
                space: Space::Const,
                access: Access::Read,
                address,
                len,
                detail,
            };
            return raise(kind, Some(who.lane));
        }
        let launch = self.launch;
        let page = a.page(offset);
        if launch.config.checks.uninit_global && a.tracked() {
            let step = len.min(4);
            for k in (0..len).step_by(step as usize) {
                if !a.is_written(offset + u64::from(k), step) {
                    let kind = FaultKind::Uninitialised {
                        space: Space::Global,
                        address: address + u64::from(k),
                        len: step,
                    };
                    return raise(kind, Some(who.lane));
                }
            }
        }
        if let Some(races) = &launch.races
            && !a.constant
        {
            let thread = (who.warp * 32 + who.lane) as u32;
            if let Err(o) = races.read(&self.party, index, offset, len, thread, who.pc, relaxed) {
                return self.global_race(address, Access::Read, o, who.lane);
            }
        }
        if let Some(warps) = &mut self.warps_global
            && !a.constant
            && let Err(o) = warps.read(
                &self.shared.vc,
                Span {
                    allocation: index,
                    offset,
                    len,
                },
                who,
                relaxed,
            )
        {
            return self.warps_race(address, Access::Read, o, who.lane);
        }
        let Some(page) = page else { return Ok(()) };
        if len >= 4 {
            for (k, c) in out.chunks_exact_mut(4).enumerate() {
                c.copy_from_slice(&page.load(offset + 4 * k as u64, 4).to_le_bytes());
            }
        } else {
            out.copy_from_slice(&page.load(offset, len).to_le_bytes()[..len as usize]);
        }
        Ok(())
    }

    /// Reads `out.len()` bytes, at most `align` of them, from an address aligned to `align`: the source
    /// of an asynchronous copy.
    pub fn read_global_bytes(
        &mut self,
        address: u64,
        out: &mut [u8],
        align: u32,
        who: Who,
    ) -> Exec<()> {
        let len = out.len() as u32;
        if len == align {
            return self.read_global(address, out, len, who, false, false);
        }
        if !address.is_multiple_of(u64::from(align)) {
            return raise(
                FaultKind::Misaligned {
                    space: Space::Global,
                    address,
                    align,
                },
                Some(who.lane),
            );
        }
        // A short source: as words, then as bytes. The shadow's grain may be a word.
        let mut at = 0;
        while at < out.len() {
            let n = if out.len() - at >= 4 { 4 } else { 1 };
            self.read_global(
                address + at as u64,
                &mut out[at..at + n],
                n as u32,
                who,
                false,
                false,
            )?;
            at += n;
        }
        Ok(())
    }

    pub fn write_global(
        &mut self,
        address: u64,
        bytes: &[u8],
        who: Who,
        relaxed: bool,
    ) -> Exec<()> {
        let len = bytes.len() as u32;
        let (index, a, offset) = self.global(address, len, Access::Write, who.lane)?;
        if let Some(races) = &self.launch.races {
            let thread = (who.warp * 32 + who.lane) as u32;
            if let Err(o) = races.write(&self.party, index, offset, len, thread, who.pc, relaxed) {
                return self.global_race(address, Access::Write, o, who.lane);
            }
        }
        let access = if relaxed {
            Access::Atomic
        } else {
            Access::Write
        };
        self.warps_write(
            address,
            Span {
                allocation: index,
                offset,
                len,
            },
            who,
            access,
        )?;
        let Some(page) = a.touch(offset) else {
            return Ok(());
        };
        if len >= 4 {
            for (k, c) in bytes.chunks_exact(4).enumerate() {
                page.store(
                    offset + 4 * k as u64,
                    4,
                    u32::from_le_bytes([c[0], c[1], c[2], c[3]]),
                );
            }
        } else {
            let v = bytes.iter().rev().fold(0, |v, &x| v << 8 | u32::from(x));
            page.store(offset, len, v);
        }
        Ok(())
    }

    /// Notes a write or atomic for the other warps of the block.
    pub fn warps_write(&mut self, address: u64, span: Span, who: Who, access: Access) -> Exec<()> {
        if let Some(warps) = &mut self.warps_global
            && let Err(o) = warps.write(&self.shared.vc, span, who, access == Access::Atomic)
        {
            return self.warps_race(address, access, o, who.lane);
        }
        Ok(())
    }

    #[cold]
    fn warps_race<T>(
        &self,
        address: u64,
        access: Access,
        (other, other_access): (Who, Access),
        lane: usize,
    ) -> Exec<T> {
        let other = self.place_of(other);
        raise(
            FaultKind::Race {
                space: Space::Global,
                address,
                access,
                other_access,
                other,
            },
            Some(lane),
        )
    }

    #[cold]
    pub fn global_race<T>(
        &self,
        address: u64,
        access: Access,
        o: super::global::Other,
        lane: usize,
    ) -> Exec<T> {
        let block = self.launch.block_index(u64::from(o.block));
        let other = self.launch.place(block, Some(o.thread), o.pc);
        raise(
            FaultKind::Race {
                space: Space::Global,
                address,
                access,
                other_access: o.access,
                other,
            },
            Some(lane),
        )
    }
}
