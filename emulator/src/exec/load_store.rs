//! Loads and stores: address resolution, checks, data.

use super::address::{Target, param_bytes};
use super::block::Block;
use super::shared::Who;
use super::warp::{Flow, Warp};
use super::{Exec, banks, raise};
use crate::error::{Access, FaultKind, Space};
use crate::ir::regs::{LANES, lanes};
use crate::ir::{Load, MemSpace, Order, Row, Store};

/// Largest access of one lane: eight words or four doubles.
const MAX_BYTES: usize = 32;

impl Warp {
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
