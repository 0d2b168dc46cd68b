//! One warp: lanes that run together, part at branches and meet again.
//!
//! A warp is a set of splits, each a program counter with the lanes there. A divergent branch makes two
//! splits and a meeting point at its immediate post-dominator; splits that arrive there wait and merge.
//! Splits take turns, so lanes that wait for other lanes of their warp do not hang it.

use super::block::Block;
use super::copy::PendingCopy;
use super::regs::{FULL, LANES, Regs, lanes};
use super::window::Window;
use super::{Exec, raise};
use crate::error::FaultKind;
use crate::op::{Const, LaneMask, MemSpace, NONE, Op, Row};

/// What a split is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Ready,
    /// At the meeting point of its branch.
    Arrived,
    /// At a warp-wide instruction whose members are not all here.
    Member {
        need: u32,
    },
    /// At an aligned barrier that not all lanes of the warp have reached.
    PartialBarrier,
    /// Waits for a generation of a barrier to complete.
    Barrier {
        id: u32,
        generation: u64,
    },
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Split {
    pub pc: u32,
    pub mask: u32,
    /// Meeting point it belongs to, or `NONE`.
    meeting: u32,
    pub state: State,
}

#[derive(Debug, Clone, Copy)]
struct Meeting {
    pc: u32,
    mask: u32,
    parent: u32,
}

/// After so many instructions without anybody arriving, lanes at a meeting point go on alone: the
/// others may be waiting for them.
const PATIENCE: u64 = 1_000_000;

pub(crate) struct Warp {
    pub id: usize,
    pub regs: Regs,
    pub live: u32,
    pub splits: Vec<Split>,
    meetings: Vec<Meeting>,
    free: Vec<u32>,
    /// Local memory, lane after lane.
    pub local: Vec<u8>,
    pub local_bytes: u32,
    pub copies: Vec<PendingCopy>,
    /// Groups each lane has committed.
    pub groups: [u32; LANES],
    /// Program counter of the instruction in execution, for faults.
    pub pc: usize,
    patience: u64,
    pub failed_waits: u32,
    /// The block's progress when a wait last failed.
    pub seen: u64,
    /// The mbarrier of the last failed wait.
    pub waits_on: Option<u32>,
}

/// How the warp goes on after an instruction.
pub(crate) enum Flow {
    Next,
    /// Next instruction, but let others run first.
    Yield,
}

impl Warp {
    pub fn new(block: &Block<'_>, id: usize) -> Self {
        let launch = block.launch;
        let k = launch.kernel;
        let left = launch.threads - id as u32 * 32;
        let live = if left >= 32 { FULL } else { (1 << left) - 1 };
        let mut regs = Regs {
            w: vec![[0; LANES]; k.w_rows as usize],
            d: vec![[0; LANES]; k.d_rows as usize],
            p: vec![0; k.p_rows as usize],
        };
        for &(w, c) in &k.w_consts {
            regs.w[w.0 as usize] = std::array::from_fn(|lane| constant(block, id, lane, c) as u32);
        }
        for &(d, c) in &k.d_consts {
            regs.d[d.0 as usize] = std::array::from_fn(|lane| constant(block, id, lane, c));
        }
        Self {
            id,
            regs,
            live,
            splits: vec![Split {
                pc: 0,
                mask: live,
                meeting: NONE,
                state: State::Ready,
            }],
            meetings: Vec::new(),
            free: Vec::new(),
            local: vec![0; k.local_bytes as usize * LANES],
            local_bytes: k.local_bytes,
            copies: Vec::new(),
            groups: [0; LANES],
            pc: 0,
            patience: PATIENCE,
            failed_waits: 0,
            seen: 0,
            waits_on: None,
        }
    }

    pub fn has_ready(&self) -> bool {
        self.splits.iter().any(|s| s.state == State::Ready)
    }

    /// Lets go splits whose barrier completed; whether anything can run.
    pub fn wake(&mut self, b: &mut Block<'_>) -> bool {
        for i in 0..self.splits.len() {
            if let State::Barrier { id, generation } = self.splits[i].state
                && b.bars[id as usize].generation > generation
            {
                let (pc, mask) = (self.splits[i].pc, self.splits[i].mask);
                b.pass_barrier(self, pc as usize, id, mask);
                self.splits[i].pc += 1;
                self.splits[i].state = State::Ready;
            }
        }
        if self.patience == 0 {
            self.patience = PATIENCE;
            self.release_arrived();
        }
        self.has_ready()
    }

    fn release_arrived(&mut self) {
        for s in &mut self.splits {
            if s.state == State::Arrived {
                let m = &mut self.meetings[s.meeting as usize];
                m.mask &= !s.mask;
                s.meeting = m.parent;
                s.state = State::Ready;
            }
        }
    }

    /// Runs up to `quantum` instructions.
    pub fn run(&mut self, b: &mut Block<'_>, quantum: u32) -> Exec<()> {
        let mut left = quantum;
        while left > 0 {
            let ready = self
                .splits
                .iter()
                .filter(|s| s.state == State::Ready)
                .count();
            if ready == 0 {
                break;
            }
            let pick = if ready == 1 { 0 } else { b.rng.below(ready) };
            let Some(i) = self
                .splits
                .iter()
                .enumerate()
                .filter(|(_, s)| s.state == State::Ready)
                .map(|(i, _)| i)
                .nth(pick)
            else {
                break;
            };
            let before = left;
            let result = self.run_split(b, i, &mut left);
            let used = u64::from(before - left);
            b.executed += used;
            self.patience = self.patience.saturating_sub(used);
            result?;
        }
        Ok(())
    }

    /// Runs one split until it waits, parts, or the quantum ends.
    fn run_split(&mut self, b: &mut Block<'_>, i: usize, left: &mut u32) -> Exec<()> {
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
            let flow = match &inst.op {
                Op::Alu(f) => {
                    f(&mut self.regs, exec);
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
                    let need = match members {
                        None => self.live,
                        Some(w) => {
                            let row = *self.regs.w(*w);
                            let need = row[exec.trailing_zeros() as usize];
                            if let Some(lane) = lanes(exec).find(|&l| row[l] >> l & 1 == 0) {
                                let text = format!(
                                    "lane {lane} executes with member mask {:#010x}",
                                    row[lane]
                                );
                                return raise(FaultKind::BadMask(text), Some(lane));
                            }
                            let same = lanes(exec)
                                .filter(|&l| row[l] == need)
                                .fold(0, |m, l| m | 1 << l);
                            if same != exec {
                                // Groups with masks of their own go on one after the other.
                                let c = &mut b.counters[at];
                                c.warp_instructions -= 1;
                                c.lane_instructions -= u64::from(exec.count_ones());
                                self.splits[i].pc = pc;
                                self.part_here(i, same);
                                return Ok(());
                            }
                            need & self.live
                        }
                    };
                    if exec & need == need {
                        self.collective(b, op, exec)?;
                        Flow::Next
                    } else {
                        self.splits[i].pc = pc;
                        if exec != mask {
                            // Lanes whose predicate is off do not wait for the others.
                            self.split_off(i, mask & !exec, pc + 1);
                            self.splits[i].mask = exec;
                        }
                        return self.gather(b, i, op, need);
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
                    let addrs = self.wide(*a);
                    let mut out = 0;
                    for lane in lanes(exec) {
                        out |= u32::from(self.is_space(b, addrs[lane], *space)) << lane;
                    }
                    self.regs.put_p(*d, out, exec);
                    Flow::Next
                }
                Op::BranchIndexed { index, targets } => {
                    let row = *self.regs.w(*index);
                    let mut parts: Vec<(u32, u32)> = Vec::new();
                    for lane in lanes(exec) {
                        let Some(&t) = targets.get(row[lane] as usize) else {
                            return raise(
                                FaultKind::Unsupported(format!(
                                    "branch index {} of {}",
                                    row[lane],
                                    targets.len()
                                )),
                                Some(lane),
                            );
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
                        pc = t;
                        continue;
                    }
                    self.part(i, &parts, inst.reconverge);
                    return Ok(());
                }
                Op::Exit => {
                    self.live &= !exec;
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

    /// Replaces a split by one per target.
    fn part(&mut self, i: usize, parts: &[(u32, u32)], reconverge: u32) {
        let Split { mask, meeting, .. } = self.splits[i];
        let same = meeting != NONE && self.meetings[meeting as usize].pc == reconverge;
        let meeting = if reconverge == NONE || same {
            meeting
        } else {
            let m = Meeting {
                pc: reconverge,
                mask,
                parent: meeting,
            };
            match self.free.pop() {
                Some(f) => {
                    self.meetings[f as usize] = m;
                    f
                }
                None => {
                    self.meetings.push(m);
                    (self.meetings.len() - 1) as u32
                }
            }
        };
        let mut splits = parts.iter().map(|&(pc, mask)| Split {
            pc,
            mask,
            meeting,
            state: State::Ready,
        });
        if let Some(first) = splits.next() {
            self.splits[i] = first;
        }
        self.splits.extend(splits);
    }

    /// Parts a split without moving it. Its halves meet again right after the instruction: a warp-wide
    /// instruction whose groups name different masks.
    fn part_here(&mut self, i: usize, first: u32) {
        let Split { pc, mask, .. } = self.splits[i];
        self.part(i, &[(pc, first), (pc, mask & !first)], pc + 1);
    }

    /// Some lanes of a split go on elsewhere; they keep its meeting point.
    fn split_off(&mut self, i: usize, mask: u32, pc: u32) {
        let meeting = self.splits[i].meeting;
        self.splits.push(Split {
            pc,
            mask,
            meeting,
            state: State::Ready,
        });
    }

    /// Merges splits whose meeting is complete.
    fn settle(&mut self) {
        'again: loop {
            for i in 0..self.splits.len() {
                let Split {
                    pc,
                    meeting,
                    state: State::Arrived,
                    ..
                } = self.splits[i]
                else {
                    continue;
                };
                let here = |s: &Split| s.state == State::Arrived && s.meeting == meeting;
                let arrived = self
                    .splits
                    .iter()
                    .filter(|s| here(s))
                    .fold(0, |m, s| m | s.mask);
                let m = self.meetings[meeting as usize];
                if m.mask & self.live & !arrived != 0 {
                    continue;
                }
                self.splits.retain(|s| !here(s));
                let parent_here = m.parent != NONE && self.meetings[m.parent as usize].pc == pc;
                self.splits.push(Split {
                    pc,
                    mask: arrived,
                    meeting: m.parent,
                    state: if parent_here {
                        State::Arrived
                    } else {
                        State::Ready
                    },
                });
                self.free.push(meeting);
                self.patience = PATIENCE;
                continue 'again;
            }
            return;
        }
    }

    /// Executes a warp-wide instruction once all its members wait at it.
    fn gather(
        &mut self,
        b: &mut Block<'_>,
        i: usize,
        op: &crate::op::Collective,
        need: u32,
    ) -> Exec<()> {
        let pc = self.splits[i].pc;
        // A warp barrier may be a different instruction for each member.
        let anywhere = matches!(op, crate::op::Collective::Sync);
        let waits = |s: &Split| s.state == State::Member { need } && (s.pc == pc || anywhere);
        let here = self
            .splits
            .iter()
            .filter(|s| waits(s))
            .fold(self.splits[i].mask, |m, s| m | s.mask);
        let c = &mut b.counters[pc as usize];
        if here & need & self.live != need & self.live {
            // It counts when it executes.
            c.warp_instructions -= 1;
            c.lane_instructions -= u64::from(self.splits[i].mask.count_ones());
            self.splits[i].state = State::Member { need };
            return Ok(());
        }
        c.lane_instructions += u64::from((here & !self.splits[i].mask).count_ones());
        self.collective(b, op, here)?;
        for (j, s) in self.splits.iter_mut().enumerate() {
            if waits(s) || j == i {
                s.pc += 1;
                s.state = State::Ready;
            }
        }
        Ok(())
    }

    fn at_barrier(&mut self, b: &mut Block<'_>, i: usize, bar: &crate::op::Bar) -> Exec<()> {
        let Split { pc, mut mask, .. } = self.splits[i];
        if bar.aligned {
            let waits = |s: &Split| s.state == State::PartialBarrier && s.pc == pc;
            let here = self
                .splits
                .iter()
                .filter(|s| waits(s))
                .fold(mask, |m, s| m | s.mask);
            if here != self.live {
                let c = &mut b.counters[pc as usize];
                c.warp_instructions -= 1;
                c.lane_instructions -= u64::from(mask.count_ones());
                self.splits[i].state = State::PartialBarrier;
                return Ok(());
            }
            b.counters[pc as usize].lane_instructions += u64::from((here & !mask).count_ones());
            mask = here;
        }
        let wait = b.arrive_barrier(self, bar, mask)?;
        let aligned = bar.aligned;
        for (j, s) in self.splits.iter_mut().enumerate() {
            if j == i || (aligned && s.state == State::PartialBarrier && s.pc == pc) {
                match wait {
                    Some((id, generation)) => s.state = State::Barrier { id, generation },
                    None => {
                        s.pc += 1;
                        s.state = State::Ready;
                    }
                }
            }
        }
        Ok(())
    }

    /// A row as 64-bit values.
    pub fn wide(&self, r: Row) -> [u64; LANES] {
        match r {
            Row::W(w) => self.regs.w(w).map(u64::from),
            Row::D(d) => *self.regs.d(d),
        }
    }

    fn is_space(&self, b: &Block<'_>, a: u64, space: MemSpace) -> bool {
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
}

/// An instruction's place in a slice of time, for `%clock`.
const QUANTUM_MAX: u32 = 1 << 10;

fn constant(block: &Block<'_>, warp: usize, lane: usize, c: Const) -> u64 {
    let launch = block.launch;
    let thread = (warp * 32 + lane) as u32;
    let axis = |(x, y, z): (u32, u32, u32), a: u8| u64::from([x, y, z][usize::from(a.min(2))]);
    let bit = 1u64 << lane;
    match c {
        Const::Imm(v) => v,
        Const::Variable(i, offset) => launch
            .variables
            .get(i as usize)
            .copied()
            .unwrap_or(0)
            .wrapping_add(offset as u64),
        Const::Tid(a) => axis(launch.thread_index(thread), a),
        Const::Ntid(a) => axis(launch.config.block, a),
        Const::Ctaid(a) => axis(block.index, a),
        Const::Nctaid(a) => axis(launch.config.grid, a),
        Const::LaneId => lane as u64,
        Const::WarpId => warp as u64,
        Const::WarpCount => u64::from(launch.warps),
        Const::LaneMask(m) => match m {
            LaneMask::Eq => bit,
            LaneMask::Lt => bit - 1,
            LaneMask::Le => bit | (bit - 1),
            LaneMask::Gt => !(bit | (bit - 1)) & 0xffff_ffff,
            LaneMask::Ge => !(bit - 1) & 0xffff_ffff,
        },
        Const::DynamicShared => u64::from(launch.config.shared_bytes),
        Const::TotalShared => u64::from(launch.shared_bytes),
    }
}
