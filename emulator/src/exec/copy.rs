//! `cp.async`: the source is read at issue, the bytes appear as late as the waits allow.

use super::block::Block;
use super::shared::Who;
use super::warp::Warp;
use super::{Exec, banks};
use crate::error::Access;
use crate::ir::CpAsync;
use crate::ir::regs::{FULL, lanes};

/// A copy that has been issued and not waited for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PendingCopy {
    pub who: Who,
    /// The group it is or will be part of.
    group: u32,
    dst: u32,
    len: u8,
    data: [u8; 16],
}

impl Warp {
    pub fn copy(&mut self, b: &mut Block<'_>, c: &CpAsync, mask: u32) -> Exec<()> {
        let src = self.addresses(&c.src);
        let mut read = 0;
        for lane in lanes(mask) {
            let who = Who {
                warp: self.id,
                lane,
                pc: self.pc,
            };
            let address = self.shared_address(&c.dst, lane);
            let dst = b.shared.check(address, c.size, Access::AsyncWrite, lane)?;
            b.guard_mbarrier(dst, c.size, lane)?;
            if let Err(conflict) = b.shared.note_async(dst, c.size, who) {
                return b.conflict(conflict, Access::AsyncWrite, c.size, lane);
            }
            let ignored = c.ignore_src.is_some_and(|(p, neg)| {
                (self.regs.p(p) ^ if neg { FULL } else { 0 }) >> lane & 1 != 0
            });
            let len = match c.src_size {
                _ if ignored => 0,
                Some(w) => self.regs.w(w)[lane].min(c.size),
                None => c.size,
            };
            let mut data = [0; 16];
            if len > 0 {
                read |= 1 << lane;
                b.read_global_bytes(src[lane], &mut data[..len as usize], c.size, who)?;
            }
            self.copies.push(PendingCopy {
                who,
                group: self.groups[lane],
                dst,
                len: c.size as u8,
                data,
            });
        }
        if read != 0 {
            banks::global(&mut b.counters[self.pc], &src, read, c.size);
        }
        Ok(())
    }

    /// `wait_group n`, or `wait_all`.
    pub fn copy_wait(&mut self, b: &mut Block<'_>, n: Option<u32>, mask: u32) {
        let groups = self.groups;
        let done = |c: &PendingCopy| {
            mask >> c.who.lane & 1 != 0
                && match n {
                    None => true,
                    Some(n) => c.group < groups[c.who.lane].saturating_sub(n),
                }
        };
        let shared = &mut b.shared;
        self.copies.retain(|c| {
            let done = done(c);
            if done {
                shared.land(c.dst, &c.data[..usize::from(c.len)], c.who);
            }
            !done
        });
        if !b.tied.is_empty() {
            let warp = self.id;
            b.tied.retain(|(_, c)| {
                let done = c.who.warp == warp && done(c);
                if done {
                    shared.land(c.dst, &c.data[..usize::from(c.len)], c.who);
                }
                !done
            });
        }
    }

    /// An mbarrier tracks the lane's copies so far: the block keeps them, numbered.
    pub fn tie_copies(&mut self, b: &mut Block<'_>, lane: usize) -> u64 {
        b.ties += 1;
        let (ties, tied) = (b.ties, &mut b.tied);
        self.copies.retain(|c| {
            let mine = c.who.lane == lane;
            if mine {
                tied.push((ties, *c));
            }
            !mine
        });
        ties
    }
}

impl Block<'_> {
    /// The copies of a thread up to a tie land.
    pub fn land_tied(&mut self, warp: usize, lane: usize, tie: u64) {
        let shared = &mut self.shared;
        self.tied.retain(|(t, c)| {
            let done = c.who.warp == warp && c.who.lane == lane && *t <= tie;
            if done {
                shared.land(c.dst, &c.data[..usize::from(c.len)], c.who);
            }
            !done
        });
    }
}
