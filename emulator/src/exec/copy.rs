//! `cp.async`: what is read is read at once, but it lands only when something waits for it.

use super::Outcome;
use super::access::{Site, Target};
use super::block::{Block, Flow};
use super::shared::Who;
use super::warp::Pending;
use crate::decode::{Address, LANES, Mem, PSrc, Src};
use crate::fault::{AccessKind, FaultKind, Space};

/// A copy that no group contains yet.
const OPEN: u32 = u32::MAX;

impl Block<'_, '_> {
    pub fn cp_async(
        &mut self,
        dst: &Address,
        src: &Address,
        bytes: u32,
        size: Option<Src>,
        ignore: Option<PSrc>,
        src_mem: Mem,
    ) -> Outcome<Flow> {
        let Site { w, s, pc, active } = self.site;
        let to = self.targets(Mem::Shared, dst);
        let from = self.targets(src_mem, src);
        let sizes = match size {
            Some(x) => Some(self.warps[w].row(x, s)),
            None => None,
        };
        let ignored = match ignore {
            Some(p) => self.warps[w].pred(p, self.warps[w].splits[s].pbase),
            None => 0,
        };
        let mut reads = 0u32;
        let mut allocation = 0;
        for l in 0..LANES {
            if active >> l & 1 == 0 {
                continue;
            }
            let lane = l as u32;
            let mut n = sizes.map_or(bytes, |r| r[l] as u32);
            if n > bytes {
                let text = format!("{n} bytes to read of a copy of {bytes}");
                return super::trouble(FaultKind::InvalidInstruction(text), lane);
            }
            if ignored >> l & 1 == 1 {
                n = 0;
            }
            let mut unused = 0;
            self.check(
                to[l],
                bytes,
                bytes,
                AccessKind::AsyncWrite,
                lane,
                &mut unused,
            )?;
            let mut data = [0; 16];
            if n > 0 {
                reads |= 1 << l;
                let t = from[l];
                self.check(t, n, bytes, AccessKind::Read, lane, &mut allocation)?;
                for i in (0..n).step_by(4) {
                    let part = (n - i).min(4);
                    let at = Target {
                        space: t.space,
                        at: t.at + u64::from(i),
                    };
                    let v = self.read_global(at, part, lane, allocation)? as u32;
                    let i = i as usize;
                    data[i..i + part as usize].copy_from_slice(&v.to_le_bytes()[..part as usize]);
                }
            }
            let offset = to[l].at;
            let split = &self.warps[w].splits[s];
            let who = Who {
                warp: w as u32,
                lane,
                pc,
                clock: self.clocks[w][w],
                mask: split.mask,
                parted: split.parted,
                strong: false,
                copy: true,
                knows: &self.clocks[w],
            };
            if let Err(c) = self.shared.begin_copy(offset, bytes, &who) {
                return Err(self.clash(c, offset, AccessKind::AsyncWrite, lane));
            }
            let when = self.warps[w].executed;
            self.warps[w].copies.push(Pending {
                lane,
                pc,
                offset: offset as u32,
                bytes,
                data,
                group: OPEN,
                when,
                arrived: None,
            });
        }
        // One request each, as if the copies were a load and a store.
        let addresses = std::array::from_fn(|l| from[l].at);
        if reads != 0 {
            self.counters
                .global_request(&addresses, reads, bytes, false);
        }
        let addresses = std::array::from_fn(|l| to[l].at);
        self.counters.shared_request(pc, &addresses, active, bytes);
        Ok(Flow::Next)
    }

    pub fn cp_commit(&mut self) -> Outcome<Flow> {
        let Site { w, active, .. } = self.site;
        let warp = &mut self.warps[w];
        for c in &mut warp.copies {
            if c.group == OPEN && active >> c.lane & 1 == 1 {
                c.group = warp.groups[c.lane as usize];
            }
        }
        for l in 0..LANES {
            if active >> l & 1 == 1 {
                warp.groups[l] += 1;
            }
        }
        Ok(Flow::Next)
    }

    pub fn cp_wait(&mut self, most: Option<u32>) -> Outcome<Flow> {
        let Site { w, active, .. } = self.site;
        let groups = self.warps[w].groups;
        self.land_if(w, |c| {
            active >> c.lane & 1 == 1
                && match most {
                    None => true,
                    Some(n) => {
                        c.group != OPEN && c.group.saturating_add(n) < groups[c.lane as usize]
                    }
                }
        })?;
        Ok(Flow::Next)
    }

    /// Lands the copies that lanes of a warp issued before a point in its time.
    pub fn land_closed(&mut self, w: usize, lanes: u32, before: u64) -> Outcome<()> {
        self.land_if(w, |c| lanes >> c.lane & 1 == 1 && c.when < before)
    }

    fn land_if(&mut self, w: usize, ready: impl Fn(&Pending) -> bool) -> Outcome<()> {
        let copies = std::mem::take(&mut self.warps[w].copies);
        let (land, keep): (Vec<_>, Vec<_>) = copies.into_iter().partition(ready);
        self.warps[w].copies = keep;
        for c in land {
            let who = Who {
                warp: w as u32,
                lane: c.lane,
                pc: c.pc,
                clock: c.arrived.unwrap_or(self.clocks[w][w]),
                mask: 1 << c.lane,
                parted: u32::MAX,
                strong: false,
                copy: true,
                knows: &self.clocks[w],
            };
            let data = &c.data[..c.bytes as usize];
            if let Err(clash) = self.shared.land(u64::from(c.offset), data, &who) {
                return Err(self.clash(clash, u64::from(c.offset), AccessKind::AsyncWrite, c.lane));
            }
        }
        Ok(())
    }

    fn read_global(&mut self, t: Target, bytes: u32, lane: u32, hint: usize) -> Outcome<u64> {
        debug_assert!(t.space == Space::Global);
        self.read_element(t, bytes, lane, crate::decode::Order::default(), hint)
    }
}
