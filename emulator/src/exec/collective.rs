//! Warp-wide instructions, and the meeting of the lanes that they name.

use super::access::Site;
use super::block::{Block, Flow};
use super::warp::State;
use super::{Outcome, trouble};
use crate::decode::{LANES, Op, Row, ShflMode, Src, VoteMode};
use crate::fault::FaultKind;

impl Block<'_, '_> {
    /// Whether all lanes of `member` are here. If not, the split waits for them, and is merged
    /// with them when the last one comes.
    pub fn gather(&mut self, member: u32, aligned: bool) -> Outcome<bool> {
        let Site { w, s, active, pc } = self.site;
        if active == member {
            if self.split().mask != active {
                self.isolate();
            }
            return Ok(true);
        }
        let lane = active.trailing_zeros();
        if active & !member != 0 {
            let detail = format!("lanes {:#010x} are not in it", active & !member);
            let kind = FaultKind::MemberMask {
                mask: member,
                detail,
            };
            return trouble(kind, (active & !member).trailing_zeros());
        }
        let live = self.warps[w].live;
        if member & !live != 0 {
            let detail = format!("lanes {:#010x} have exited", member & !live);
            let kind = FaultKind::MemberMask {
                mask: member,
                detail,
            };
            return trouble(kind, lane);
        }
        self.isolate();
        let state = if aligned {
            State::Aligned
        } else {
            State::Members(member)
        };
        let warp = &mut self.warps[w];
        let others: Vec<usize> = (0..warp.splits.len())
            .filter(|&i| i != s && warp.splits[i].state == state && warp.splits[i].pc == pc)
            .collect();
        let have = others.iter().fold(active, |m, &i| m | warp.splits[i].mask);
        if have == member {
            warp.merge(s, others);
            self.site.s = self.warps[w].current;
            self.site.active = member;
            self.tick();
            return Ok(true);
        }
        warp.splits[s].state = state;
        Ok(false)
    }

    /// Runs `f` for the lanes of each member mask that the split's lanes name.
    fn by_mask(
        &mut self,
        mask: Src,
        mut f: impl FnMut(&mut Self, u32) -> Outcome<()>,
    ) -> Outcome<Flow> {
        let Site { w, s, active, .. } = self.site;
        let masks = self.warps[w].row(mask, s);
        let first = masks[active.trailing_zeros().min(31) as usize] as u32;
        let uniform = (0..LANES).all(|l| active >> l & 1 == 0 || masks[l] as u32 == first);
        if uniform {
            if first != active || self.warps[w].splits[s].mask != active {
                // With a guard, the lanes that it disables need not part if nobody is missing.
                if first == active {
                    f(self, active)?;
                    return Ok(Flow::Next);
                }
                if !self.gather(first, false)? {
                    return Ok(Flow::Jump);
                }
            }
            let active = self.site.active;
            f(self, active)?;
            return Ok(Flow::Next);
        }
        let mut groups: Vec<u32> = Vec::new();
        let mut left = active;
        while left != 0 {
            let mask = masks[left.trailing_zeros() as usize] as u32;
            let group = (0..LANES)
                .filter(|&l| left >> l & 1 == 1 && masks[l] as u32 == mask)
                .fold(0u32, |m, l| m | 1 << l);
            if group & !mask != 0 {
                let detail = format!("lanes {:#010x} are not in it", group & !mask);
                return trouble(
                    FaultKind::MemberMask { mask, detail },
                    group.trailing_zeros(),
                );
            }
            if group != mask {
                // Some of its lanes are elsewhere: this group waits for them on its own.
                if group == active {
                    break;
                }
                self.tick();
                let (clock, pc) = (self.clock(), self.site.pc);
                self.warps[w].part(s, group, pc, clock);
                self.site.active &= !group;
            } else {
                groups.push(group);
            }
            left &= !group;
        }
        if groups.is_empty() {
            // Every group was parted; the empty split vanishes.
            self.warps[w].sweep();
            return Ok(Flow::Jump);
        }
        for g in groups {
            f(self, g)?;
        }
        Ok(Flow::Next)
    }

    pub fn collective(&mut self, op: &Op) -> Outcome<Flow> {
        let w = self.site.w;
        match op {
            Op::Shfl {
                mode,
                dst,
                pred,
                a,
                b,
                c,
                mask,
            } => self.by_mask(*mask, |block, group| {
                let s = block.site.s;
                let warp = &mut block.warps[w];
                let (a, b, c) = (warp.row(*a, s), warp.row(*b, s), warp.row(*c, s));
                let (out, p, from) = shuffle(*mode, &a, &b, &c);
                for (l, &j) in from.iter().enumerate() {
                    if group >> l & 1 == 1 && p >> l & 1 == 1 && group >> j & 1 == 0 {
                        let detail = format!("lane {j}, which is not in it, is the source");
                        return trouble(
                            FaultKind::MemberMask {
                                mask: group,
                                detail,
                            },
                            l as u32,
                        );
                    }
                }
                let (base, pbase) = (warp.splits[s].base, warp.splits[s].pbase);
                if let Some(d) = dst {
                    warp.set(*d, base, group, &out);
                }
                if let Some(d) = pred {
                    warp.set_pred(*d, pbase, group, p);
                }
                Ok(())
            }),
            Op::Vote { mode, dst, a, mask } => self.by_mask(*mask, |block, group| {
                let s = block.site.s;
                let warp = &mut block.warps[w];
                let (base, pbase) = (warp.splits[s].base, warp.splits[s].pbase);
                let p = warp.pred(*a, pbase) & group;
                let bit = match mode {
                    VoteMode::Ballot => {
                        warp.set(*dst, base, group, &[u64::from(p); LANES]);
                        return Ok(());
                    }
                    VoteMode::All => p == group,
                    VoteMode::Any => p != 0,
                    VoteMode::Uni => p == 0 || p == group,
                };
                warp.set_pred(*dst, pbase, group, if bit { u32::MAX } else { 0 });
                Ok(())
            }),
            Op::Match {
                all,
                dst,
                pred,
                a,
                mask,
            } => self.by_mask(*mask, |block, group| {
                let s = block.site.s;
                let warp = &mut block.warps[w];
                let a = warp.row(*a, s);
                let same: Row = std::array::from_fn(|l| {
                    (0..LANES)
                        .filter(|&j| group >> j & 1 == 1 && a[j] == a[l])
                        .fold(0, |m, j| m | 1 << j)
                });
                let (base, pbase) = (warp.splits[s].base, warp.splits[s].pbase);
                let everyone = same[group.trailing_zeros().min(31) as usize] as u32 == group;
                let out = if !*all {
                    same
                } else if everyone {
                    [u64::from(group); LANES]
                } else {
                    [0; LANES]
                };
                if let Some(d) = dst {
                    warp.set(*d, base, group, &out);
                }
                if let Some(d) = pred {
                    warp.set_pred(*d, pbase, group, if everyone { u32::MAX } else { 0 });
                }
                Ok(())
            }),
            Op::Redux { dst, f, a, mask } => self.by_mask(*mask, |block, group| {
                let s = block.site.s;
                let warp = &mut block.warps[w];
                let a = warp.row(*a, s);
                let v = (0..LANES)
                    .filter(|&l| group >> l & 1 == 1)
                    .map(|l| a[l])
                    .reduce(f)
                    .unwrap_or(0);
                let base = warp.splits[s].base;
                warp.set(*dst, base, group, &[v; LANES]);
                Ok(())
            }),
            Op::Elect { dst, pred, mask } => self.by_mask(*mask, |block, group| {
                let s = block.site.s;
                let warp = &mut block.warps[w];
                let (base, pbase) = (warp.splits[s].base, warp.splits[s].pbase);
                let leader = group.trailing_zeros();
                if let Some(d) = dst {
                    warp.set(*d, base, group, &[u64::from(leader); LANES]);
                }
                if let Some(d) = pred {
                    warp.set_pred(*d, pbase, group, 1u32.checked_shl(leader).unwrap_or(0));
                }
                Ok(())
            }),
            Op::ActiveMask { dst } => {
                let Site { s, active, .. } = self.site;
                let warp = &mut self.warps[w];
                let base = warp.splits[s].base;
                warp.set(*dst, base, active, &[u64::from(active); LANES]);
                Ok(Flow::Next)
            }
            Op::WarpSync { mask } => self.warp_sync(*mask),
            _ => Ok(Flow::Next),
        }
    }

    /// `bar.warp.sync`: unlike the others, lanes may meet at different instructions.
    fn warp_sync(&mut self, mask: Src) -> Outcome<Flow> {
        let Site { w, s, active, pc } = self.site;
        let masks = self.warps[w].row(mask, s);
        let first = masks[active.trailing_zeros().min(31) as usize] as u32;
        let others_here = (0..self.warps[w].splits.len())
            .any(|i| i != s && self.warps[w].splits[i].state == State::Members(first));
        if !others_here {
            return self.by_mask(mask, |_, _| Ok(()));
        }
        let warp = &mut self.warps[w];
        let waiting: Vec<usize> = (0..warp.splits.len())
            .filter(|&i| i != s && warp.splits[i].state == State::Members(first))
            .filter(|&i| {
                matches!(
                    warp.program.code[warp.splits[i].pc as usize].op,
                    Op::WarpSync { .. }
                )
            })
            .collect();
        let have = waiting.iter().fold(active, |m, &i| m | warp.splits[i].mask);
        if have != first || waiting.iter().all(|&i| warp.splits[i].pc == pc) {
            return self.by_mask(mask, |_, _| Ok(()));
        }
        // All are at barriers, but not at the same one: they go on apart, yet ordered.
        self.isolate();
        self.tick();
        let clock = self.clock();
        let warp = &mut self.warps[w];
        for i in waiting {
            warp.splits[i].state = State::Ready;
            warp.splits[i].pc += 1;
            warp.splits[i].parted = clock;
        }
        warp.splits[s].parted = clock;
        Ok(Flow::Next)
    }
}

/// The ISA's pseudocode for `shfl`: values, whether the source is in range, and the source.
fn shuffle(mode: ShflMode, a: &Row, b: &Row, c: &Row) -> (Row, u32, [usize; LANES]) {
    let mut out = [0; LANES];
    let mut from = [0; LANES];
    let mut pred = 0;
    for l in 0..LANES {
        let lane = l as i64;
        let bval = (b[l] & 31) as i64;
        let cval = (c[l] & 31) as i64;
        let segment = (c[l] >> 8 & 31) as i64;
        let max = (lane & segment) | (cval & !segment);
        let min = lane & segment;
        let (j, p) = match mode {
            ShflMode::Up => (lane - bval, lane - bval >= max),
            ShflMode::Down => (lane + bval, lane + bval <= max),
            ShflMode::Bfly => (lane ^ bval, lane ^ bval <= max),
            ShflMode::Idx => {
                let j = min | (bval & !segment);
                (j, j <= max)
            }
        };
        let j = if p { j } else { lane };
        let j = usize::try_from(j).unwrap_or(0) & 31;
        pred |= u32::from(p) << l;
        from[l] = j;
        out[l] = a[j];
    }
    (out, pred, from)
}
