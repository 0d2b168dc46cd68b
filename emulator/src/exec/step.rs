//! One instruction after the other: what each operation does with the lanes that execute it.

use super::block::Block;
use super::divergence::{Split, State};
use super::warp::{Flow, Warp};
use super::{Exec, raise};
use crate::error::FaultKind;
use crate::fidelity::perturb;
use crate::ir::regs::{FULL, LANES, W, lanes};
use crate::ir::{Approximate, Collective, MemSpace, NONE, Op, Row};
use crate::window::Window;

/// An instruction's place in a slice of time, for `%clock`.
const QUANTUM_MAX: u32 = 1 << 10;

/// An instruction of a split: where, the lanes of the split, and those whose predicate holds.
#[derive(Clone, Copy)]
pub(super) struct Here {
    pub pc: u32,
    pub mask: u32,
    pub exec: u32,
}

impl Warp {
    /// Runs one split until it waits, parts, or the quantum ends.
    pub(super) fn run_split(&mut self, b: &mut Block<'_>, i: usize, left: &mut u32) -> Exec<()> {
        let launch = b.launch;
        let code = &launch.kernel.code[..];
        let Split {
            mut pc,
            mask,
            meeting,
            ..
        } = self.splits[i];
        let meet = if meeting == NONE {
            NONE
        } else {
            self.meetings[meeting as usize].pc
        };
        loop {
            if pc == meet {
                self.splits[i].pc = pc;
                self.splits[i].state = State::Arrived;
                self.settle();
                return Ok(());
            }
            if *left == 0 {
                self.splits[i].pc = pc;
                return Ok(());
            }
            *left -= 1;
            let at = pc as usize;
            let inst = &code[at];
            let exec = match inst.guard {
                None => mask,
                Some((p, negated)) => mask & (self.regs.p(p) ^ if negated { FULL } else { 0 }),
            };
            self.pc = at;
            let c = &mut b.counters[at];
            c.warp_instructions += 1;
            c.lane_instructions += u64::from(exec.count_ones());
            if exec == 0 {
                pc += 1;
                continue;
            }
            if inst.tracked != NONE {
                self.touch(b, &launch.kernel.tracked[inst.tracked as usize], at)?;
            }
            let flow = match &inst.op {
                Op::Alu(f) => {
                    f(&mut self.regs, exec);
                    pc += 1;
                    continue;
                }
                Op::Approximate(a) => {
                    (a.alu)(&mut self.regs, exec);
                    if let Some(seed) = self.regs.perturb {
                        self.perturb(a, seed, exec);
                    }
                    pc += 1;
                    continue;
                }
                Op::Branch { target } => {
                    if exec == mask {
                        pc = *target;
                        continue;
                    }
                    self.part(
                        i,
                        &[(*target, exec), (pc + 1, mask & !exec)],
                        inst.reconverge,
                    );
                    return Ok(());
                }
                Op::Load(l) => self.load(b, l, exec)?,
                Op::LoadParam {
                    offset,
                    width,
                    signed,
                    dst,
                } => {
                    self.load_param(b, *offset, *width, *signed, dst, exec)?;
                    Flow::Next
                }
                Op::Store(s) => self.store(b, s, exec)?,
                Op::Collective { mask: members, op } => {
                    let at = Here { pc, mask, exec };
                    match self.warp_wide(b, i, at, *members, op)? {
                        Some(flow) => flow,
                        None => return Ok(()),
                    }
                }
                Op::Bar(bar) => {
                    self.splits[i].pc = pc;
                    if exec != mask {
                        self.split_off(i, mask & !exec, pc + 1);
                        self.splits[i].mask = exec;
                    }
                    return self.at_barrier(b, i, bar);
                }
                Op::Atom(a) => self.atom(b, a, exec)?,
                Op::CpAsync(c) => {
                    self.copy(b, c, exec)?;
                    Flow::Next
                }
                Op::CpCommit => {
                    lanes(exec).for_each(|l| self.groups[l] += 1);
                    Flow::Next
                }
                Op::CpWait(n) => {
                    self.copy_wait(b, *n, exec);
                    Flow::Next
                }
                Op::Fence => {
                    b.shared.fence(self.id);
                    b.party.fence();
                    Flow::Next
                }
                Op::ProxyFence(f) => {
                    b.shared.proxy_fence(self.id, exec, *f);
                    Flow::Next
                }
                Op::Bulk(c) => {
                    self.bulk_copy(b, c, exec)?;
                    Flow::Next
                }
                Op::BulkCommit => {
                    self.bulk_commit(exec);
                    Flow::Next
                }
                Op::BulkWait { pending, read_only } => {
                    self.bulk_wait(b, *pending, *read_only, exec)?;
                    Flow::Next
                }
                Op::Mbar { op, addr } => self.mbar(b, op, addr, exec)?,
                Op::Clock(row) => {
                    let now = b.executed + u64::from(QUANTUM_MAX - *left);
                    match *row {
                        Row::W(w) => self.regs.put_w(w, &[now as u32; LANES], exec),
                        Row::D(d) => self.regs.put_d(d, &[now; LANES], exec),
                    }
                    Flow::Next
                }
                Op::ActiveMask(w) => {
                    self.regs.put_w(*w, &[exec; LANES], exec);
                    Flow::Next
                }
                Op::IsSpace { d, a, space } => {
                    let out = self.in_space(b, *a, *space, exec);
                    self.regs.put_p(*d, out, exec);
                    Flow::Next
                }
                Op::BranchIndexed { index, targets } => {
                    let at = Here { pc, mask, exec };
                    match self.branch_indexed(i, at, *index, targets, inst.reconverge)? {
                        Some(to) => {
                            pc = to;
                            continue;
                        }
                        None => return Ok(()),
                    }
                }
                Op::Exit => {
                    self.leave(b, i, Here { pc, mask, exec });
                    if self.live == 0 {
                        self.end_tensor(b)?;
                    }
                    return Ok(());
                }
                Op::Trap => {
                    return raise(
                        FaultKind::Trap("the kernel executed trap".into()),
                        lanes(exec).next(),
                    );
                }
                Op::AssertFail { params } => return self.assert_fail(b, params, exec),
                Op::Nop => Flow::Next,
            };
            match flow {
                Flow::Next => pc += 1,
                Flow::Yield => {
                    self.splits[i].pc = pc + 1;
                    *left = 0;
                    return Ok(());
                }
            }
        }
    }

    #[cold]
    fn perturb(&mut self, a: &Approximate, seed: u64, exec: u32) {
        let moved = |x| perturb(x, a.format, a.error, seed);
        let out = self.regs.w(a.d).map(moved);
        self.regs.put_w(a.d, &out, exec);
    }

    /// A warp-wide instruction. `None` when the split waits, or parts, for it.
    #[inline]
    fn warp_wide(
        &mut self,
        b: &mut Block<'_>,
        i: usize,
        Here { pc, mask, exec }: Here,
        members: Option<W>,
        op: &Collective,
    ) -> Exec<Option<Flow>> {
        let need = match members {
            None => self.live,
            Some(w) => {
                let row = *self.regs.w(w);
                let need = row[exec.trailing_zeros() as usize];
                if let Some(lane) = lanes(exec).find(|&l| row[l] >> l & 1 == 0) {
                    let text = format!("lane {lane} executes with member mask {:#010x}", row[lane]);
                    return raise(FaultKind::BadMask(text), Some(lane));
                }
                let same = lanes(exec)
                    .filter(|&l| row[l] == need)
                    .fold(0, |m, l| m | 1 << l);
                if same != exec {
                    // Groups with masks of their own go on one after the other.
                    let c = &mut b.counters[pc as usize];
                    c.warp_instructions -= 1;
                    c.lane_instructions -= u64::from(exec.count_ones());
                    self.splits[i].pc = pc;
                    self.part_here(i, same);
                    return Ok(None);
                }
                need & self.live
            }
        };
        if exec & need == need {
            self.collective(b, op, exec)?;
            return Ok(Some(match self.stall {
                None => Flow::Next,
                Some(_) => Flow::Yield,
            }));
        }
        self.splits[i].pc = pc;
        if exec != mask {
            // Lanes whose predicate is off do not wait for the others.
            self.split_off(i, mask & !exec, pc + 1);
            self.splits[i].mask = exec;
        }
        self.gather(b, i, op, need)?;
        Ok(None)
    }

    /// `brx.idx`: where all go, or `None` when they part.
    fn branch_indexed(
        &mut self,
        i: usize,
        Here { pc, mask, exec }: Here,
        index: W,
        targets: &[u32],
        reconverge: u32,
    ) -> Exec<Option<u32>> {
        let row = *self.regs.w(index);
        let mut parts: Vec<(u32, u32)> = Vec::new();
        for lane in lanes(exec) {
            let Some(&t) = targets.get(row[lane] as usize) else {
                let text = format!("branch index {} of {}", row[lane], targets.len());
                return raise(FaultKind::Unsupported(text), Some(lane));
            };
            match parts.iter_mut().find(|(pc, _)| *pc == t) {
                Some((_, m)) => *m |= 1 << lane,
                None => parts.push((t, 1 << lane)),
            }
        }
        if exec != mask {
            match parts.iter_mut().find(|(t, _)| *t == pc + 1) {
                Some((_, m)) => *m |= mask & !exec,
                None => parts.push((pc + 1, mask & !exec)),
            }
        }
        if let [(t, _)] = parts[..] {
            return Ok(Some(t));
        }
        self.part(i, &parts, reconverge);
        Ok(None)
    }

    /// Lanes end.
    fn leave(&mut self, b: &mut Block<'_>, i: usize, Here { pc, mask, exec }: Here) {
        self.live &= !exec;
        b.leave_cluster(self, exec);
        b.exit(exec.count_ones());
        if exec == mask {
            self.splits.swap_remove(i);
        } else {
            self.splits[i].mask &= !exec;
            self.splits[i].pc = pc + 1;
        }
        // Whoever waited for these lanes looks again.
        for s in &mut self.splits {
            if matches!(s.state, State::Member { .. } | State::PartialBarrier) {
                s.state = State::Ready;
            }
        }
        self.settle();
    }

    /// The lanes whose generic address is in a state space.
    fn in_space(&self, b: &Block<'_>, a: Row, space: MemSpace, exec: u32) -> u32 {
        let addrs = self.wide(a);
        lanes(exec)
            .filter(|&lane| is_space(b, addrs[lane], space))
            .fold(0, |m, lane| m | 1 << lane)
    }
}

fn is_space(b: &Block<'_>, a: u64, space: MemSpace) -> bool {
    let within = |base: u64| a >= base && a - base < Window::SIZE;
    let constant = || {
        let i = b.launch.memory.partition_point(|x| x.base <= a);
        i > 0
            && b.launch.memory[i - 1].constant
            && a - b.launch.memory[i - 1].base < b.launch.memory[i - 1].size
    };
    match space {
        MemSpace::Shared => within(Window::SHARED),
        MemSpace::Local => within(Window::LOCAL),
        MemSpace::Param => within(Window::PARAM),
        MemSpace::Const => constant(),
        _ => a < Window::SHARED && !constant(),
    }
}
