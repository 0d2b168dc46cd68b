//! A block: its warps, its shared memory, and the order in which warps run.

use super::access::Site;
use super::barrier::CtaBarrier;
use super::counters::Counters;
use super::mbarrier::MbarState;
use super::rng::Rng;
use super::shared::Shared;
use super::warp::{Call, Dims, Point, Split, State, Warp};
use super::{Launch, Outcome, Trouble, trouble};
use crate::decode::{FUNCTION_BASE_ADDRESS, Inst, Op, Program, Src};
use crate::fault::{Fault, FaultKind, Waiter};
use std::collections::HashMap;

/// Times that all waiters on mbarriers are woken in vain before it is a deadlock.
const FUTILE: u32 = 64;
/// Turns after an uninitialised read until it is reported.
const SUSPECT: u32 = 1 << 14;
/// Deepest nesting of calls.
const MAX_CALLS: usize = 256;
/// Most registers and local memory of a warp's whole stack.
const MAX_ROWS: u32 = 1 << 18;
const MAX_FRAME: u64 = 1 << 20;

pub struct Block<'l, 'a> {
    pub launch: &'l Launch<'a>,
    pub program: &'l Program,
    pub index: u32,
    pub warps: Vec<Warp<'l>>,
    pub shared: Shared,
    /// Vector clocks: what each warp knows of the others.
    pub clocks: Vec<Vec<u32>>,
    pub barriers: Vec<CtaBarrier>,
    pub mbarriers: HashMap<u32, MbarState>,
    pub counters: &'l mut Counters,
    pub site: Site,
    rng: Rng,
    futile: u32,
    /// Something happened that an mbarrier's waiter may wait for.
    pub progress: bool,
    /// A barrier opened.
    pub opened: bool,
    /// An uninitialised read whose report waits for the race that may be its cause.
    pub uninitialised: Option<Box<Fault>>,
    /// What each warp knew at its last fence, and what strong writes have published of it.
    pub fenced: Vec<Option<Vec<u32>>>,
    pub published: HashMap<u64, Vec<u32>>,
    /// Global accesses are tracked.
    pub track_global: bool,
    /// What this block knows of other blocks, for races in global memory.
    pub global: super::global_race::View,
}

/// What became of the running split.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// On to the next instruction.
    Next,
    /// The program counter is set.
    Jump,
    /// Another split or warp should run; the program counter is set.
    Yield,
}

impl<'l, 'a> Block<'l, 'a> {
    pub fn new(launch: &'l Launch<'a>, index: u32, counters: &'l mut Counters) -> Self {
        let (g, b) = (launch.config.grid, launch.config.block);
        let threads = b.0 * b.1 * b.2;
        let warps = threads.div_ceil(32);
        let dims = Dims {
            ntid: [b.0, b.1, b.2],
            ctaid: [index % g.0, index / g.0 % g.1, index / g.0 / g.1],
            nctaid: [g.0, g.1, g.2],
            warps,
            block: index,
            dynamic: launch.config.shared_bytes,
            total: launch.shared_bytes as u32,
        };
        Block {
            launch,
            program: launch.program,
            index,
            warps: (0..warps)
                .map(|w| Warp::new(launch, w, threads, dims))
                .collect(),
            shared: Shared::new(launch.shared_bytes, warps as usize, launch.config.checks),
            // A warp's own clock starts at 1, so that 0 means "knows nothing".
            clocks: (0..warps as usize)
                .map(|w| (0..warps as usize).map(|v| u32::from(v == w)).collect())
                .collect(),
            barriers: (0..16).map(|_| CtaBarrier::new(warps as usize)).collect(),
            mbarriers: HashMap::new(),
            counters,
            site: Site::default(),
            rng: Rng::new(launch.config.seed, u64::from(index) + 1),
            futile: 0,
            progress: false,
            opened: false,
            uninitialised: None,
            fenced: vec![None; warps as usize],
            published: HashMap::new(),
            track_global: launch.races.on(),
            global: launch.races.view(index),
        }
    }

    pub fn run(mut self) -> Result<(), Box<Fault>> {
        match self.schedule() {
            // Whatever went wrong after an uninitialised read may have come of it; not a race.
            Err(fault) if !matches!(fault.kind, FaultKind::Race { .. }) => {
                Err(self.uninitialised.take().unwrap_or(fault))
            }
            Ok(()) => self.uninitialised.take().map_or(Ok(()), Err),
            race => race,
        }
    }

    fn schedule(&mut self) -> Result<(), Box<Fault>> {
        let mut ready: Vec<usize> = Vec::new();
        let mut suspect = 0;
        loop {
            if self.uninitialised.is_some() {
                suspect += 1;
                if std::mem::take(&mut self.opened) && suspect > 1 || suspect > SUSPECT {
                    return Ok(());
                }
            }
            self.opened = false;
            ready.clear();
            ready.extend(
                (0..self.warps.len())
                    .filter(|&w| self.warps[w].splits.iter().any(|s| s.state == State::Ready)),
            );
            if ready.is_empty() {
                if self.warps.iter().all(|w| w.live == 0) {
                    return Ok(());
                }
                if !self.wake() {
                    return Err(self.deadlock());
                }
                continue;
            }
            let w = ready[self.rng.below(ready.len() as u64) as usize];
            // Mostly short turns, sometimes long ones: both ends of what may happen.
            let turn = match self.rng.below(8) {
                0 => 4096,
                1 | 2 => 1 + self.rng.below(4),
                _ => 16 + self.rng.below(256),
            };
            self.turn(w, turn)?;
        }
    }

    /// Nothing can run: lets go those whose wait is not binding.
    fn wake(&mut self) -> bool {
        for w in 0..self.warps.len() {
            let warp = &mut self.warps[w];
            if let Some(s) = warp
                .splits
                .iter()
                .position(|s| s.state == State::Reconverge)
            {
                warp.abandon(s);
                return true;
            }
        }
        if std::mem::take(&mut self.progress) {
            self.futile = 0;
        }
        self.futile += 1;
        let mut woken = false;
        if self.futile <= FUTILE {
            for s in self.warps.iter_mut().flat_map(|w| &mut w.splits) {
                if matches!(s.state, State::Mbarrier(_)) {
                    s.state = State::Ready;
                    woken = true;
                }
            }
        }
        woken
    }

    /// Who waits where.
    pub fn waiters(&self, only: Option<usize>) -> Vec<Waiter> {
        let mut out = Vec::new();
        for (w, warp) in self.warps.iter().enumerate() {
            if only.is_some_and(|o| o != w) {
                continue;
            }
            for s in &warp.splits {
                let waits_for = match s.state {
                    State::Ready => "nothing".to_owned(),
                    State::Reconverge => "reconvergence".to_owned(),
                    State::Members(m) => format!("the lanes of mask {m:#010x}"),
                    State::Aligned => "the rest of the warp".to_owned(),
                    State::Barrier(id) => {
                        let b = &self.barriers[id as usize];
                        format!(
                            "barrier {id} ({} of {} threads arrived)",
                            b.arrived,
                            self.barrier_goal(b)
                        )
                    }
                    State::Mbarrier(at) => match self.mbarriers.get(&at) {
                        Some(m) => format!(
                            "mbarrier at shared {at:#x} (phase {}, {} arrivals and {} bytes pending)",
                            m.phase, m.pending, m.tx
                        ),
                        None => format!("mbarrier at shared {at:#x}"),
                    },
                };
                let thread = warp.index * 32 + s.mask.trailing_zeros().min(31);
                out.push(Waiter {
                    warp: warp.index,
                    lanes: s.mask,
                    waits_for,
                    place: self.launch.place(s.pc, Some(self.index), Some(thread)),
                });
            }
        }
        out
    }

    fn deadlock(&self) -> Box<Fault> {
        let waiters = self.waiters(None);
        let place = waiters.first().map(|w| w.place.clone()).unwrap_or_default();
        Box::new(Fault {
            kind: FaultKind::Deadlock { waiters },
            kernel: self.program.kernel.clone(),
            place,
        })
    }

    fn fault(&self, t: Trouble, w: usize, pc: u32, mask: u32) -> Box<Fault> {
        let lane = t.lane.unwrap_or_else(|| mask.trailing_zeros().min(31));
        Box::new(Fault {
            kind: t.kind,
            kernel: self.program.kernel.clone(),
            place: self
                .launch
                .place(pc, Some(self.index), Some(w as u32 * 32 + lane)),
        })
    }

    /// Runs a warp for up to `turn` instructions.
    fn turn(&mut self, w: usize, turn: u64) -> Result<(), Box<Fault>> {
        let program = self.program;
        let mut left = turn;
        while left > 0 {
            left -= 1;
            let warp = &mut self.warps[w];
            if warp
                .splits
                .get(warp.current)
                .is_none_or(|s| s.state != State::Ready)
            {
                // The next ready split in turn, so that none starves.
                let n = warp.splits.len();
                let from = warp.current;
                let Some(next) = (1..=n)
                    .map(|i| (from + i) % n)
                    .find(|&i| warp.splits[i].state == State::Ready)
                else {
                    return Ok(());
                };
                warp.current = next;
            }
            let s = warp.current;
            let split = &warp.splits[s];
            if split.pc == split.meet
                && split
                    .points
                    .last()
                    .is_some_and(|&p| warp.points[p as usize].depth as usize == split.calls.len())
            {
                warp.arrive(s);
                continue;
            }
            let (pc, mask, pbase) = (split.pc, split.mask, split.pbase);
            let Some(inst) = program.code.get(pc as usize) else {
                let kind = FaultKind::InvalidInstruction("execution left the kernel".to_owned());
                return Err(self.fault(Trouble { kind, lane: None }, w, pc, mask));
            };
            let active = match inst.guard {
                Some(p) => mask & warp.pred(p, pbase),
                None => mask,
            };
            warp.executed += 1;
            if warp.executed > self.launch.config.max_warp_instructions {
                let kind = FaultKind::InstructionLimit(self.launch.config.max_warp_instructions);
                return Err(self.fault(Trouble { kind, lane: None }, w, pc, mask));
            }
            let issued = &mut self.counters.issued[pc as usize];
            issued.0 += 1;
            issued.1 += u64::from(active.count_ones());
            if active == 0 {
                warp.splits[s].pc += 1;
            } else {
                self.site = Site { w, s, pc, active };
                match self.step(inst) {
                    Ok(Flow::Next) => {
                        let warp = &mut self.warps[w];
                        let s = warp.current;
                        warp.splits[s].pc += 1;
                    }
                    Ok(Flow::Jump) => {}
                    Ok(Flow::Yield) => left = 0,
                    Err(t) => return Err(self.fault(*t, w, pc, active)),
                }
            }
            let warp = &mut self.warps[w];
            if warp.splits.len() > 1 {
                self.rotate(w);
            }
        }
        Ok(())
    }

    /// With several splits: now and then another one runs, and those that waited too long at a
    /// reconvergence point go on.
    fn rotate(&mut self, w: usize) {
        let switch = self.rng.below(32) == 0;
        let warp = &mut self.warps[w];
        let (now, patience) = (warp.executed, warp.patience);
        let late = |s: &Split| s.state == State::Reconverge && now > s.since + patience;
        if let Some(s) = warp.splits.iter().position(late) {
            warp.abandon(s);
            // It will happen again: the lanes take turns at a lock.
            warp.patience = (patience / 2).max(64);
        }
        if switch {
            let n = warp.splits.len();
            let from = warp.current;
            if let Some(next) = (1..=n)
                .map(|i| (from + i) % n)
                .find(|&i| warp.splits[i].state == State::Ready)
            {
                warp.current = next;
            }
        }
    }

    /// The running split.
    pub fn split(&mut self) -> &mut Split {
        let Site { w, s, .. } = self.site;
        &mut self.warps[w].splits[s]
    }

    /// This warp's own time.
    pub fn clock(&self) -> u32 {
        let w = self.site.w;
        self.clocks[w][w]
    }

    pub fn tick(&mut self) {
        let w = self.site.w;
        self.clocks[w][w] = self.clocks[w][w].saturating_add(1);
    }

    fn step(&mut self, inst: &'l Inst) -> Outcome<Flow> {
        let Site { w, s, active, pc } = self.site;
        match &inst.op {
            Op::Alu { f, dst, src } => {
                let warp = &mut self.warps[w];
                let (base, frame) = (warp.splits[s].base, warp.splits[s].frame);
                for (i, x) in src.iter().enumerate() {
                    warp.prepare(i, *x, frame);
                }
                let mut out = [0; 32];
                f(
                    warp.get(0, src[0], base),
                    warp.get(1, src[1], base),
                    warp.get(2, src[2], base),
                    warp.get(3, src[3], base),
                    &mut out,
                );
                warp.set(*dst, base, active, &out);
                Ok(Flow::Next)
            }
            Op::Bra { target, uniform } => self.branch(active, *target, inst.reconverge, *uniform),
            Op::Brx { index, targets } => self.branch_indexed(*index, targets, inst.reconverge),
            Op::Ld {
                access,
                dst,
                dst_bits,
            } => self.load(access, dst, *dst_bits),
            Op::St { access, src } => self.store(access, src),
            Op::Atom {
                access,
                dst,
                f,
                src,
                cas,
            } => self.atomic(access, *dst, f, *src, *cas),
            Op::Mma { shape, d, a, b, c } => self.mma(shape, d, a, b, c),
            Op::LdMatrix {
                dst,
                address,
                mem,
                transpose,
            } => self.ldmatrix(dst, address, *mem, *transpose),
            Op::StMatrix {
                src,
                address,
                mem,
                transpose,
            } => self.stmatrix(src, address, *mem, *transpose),
            Op::MovMatrix { dst, src } => self.movmatrix(*dst, *src),
            Op::CpAsync {
                dst,
                src,
                bytes,
                size,
                ignore,
                src_mem,
            } => self.cp_async(dst, src, *bytes, *size, *ignore, *src_mem),
            Op::CpCommit => self.cp_commit(),
            Op::CpWait(n) => self.cp_wait(*n),
            Op::Mbar { op, mem, address } => self.mbarrier(op, *mem, address),
            Op::MbarPending { dst, state } => self.mbarrier_pending(*dst, *state),
            Op::Barrier(b) => self.barrier(b),
            Op::Fence => {
                self.fence();
                Ok(Flow::Next)
            }
            Op::Shfl { .. }
            | Op::Vote { .. }
            | Op::Match { .. }
            | Op::Redux { .. }
            | Op::Elect { .. }
            | Op::WarpSync { .. }
            | Op::ActiveMask { .. } => self.collective(&inst.op),
            Op::Call {
                function,
                args,
                results,
            } => self.call(active, *function, args, results),
            Op::CallIndirect {
                target,
                args,
                results,
            } => self.call_indirect(*target, args, results),
            Op::Ret => self.ret(active),
            Op::Exit => self.exit(active),
            Op::Trap => trouble(
                FaultKind::Trap("the kernel executed `trap`".to_owned()),
                active.trailing_zeros(),
            ),
            Op::Assert(text) => trouble(FaultKind::Trap(text.clone()), active.trailing_zeros()),
            Op::Yield => {
                self.split().pc = pc + 1;
                Ok(Flow::Yield)
            }
            Op::Printf { results } => {
                let warp = &mut self.warps[w];
                let frame = warp.splits[s].frame;
                for &at in results {
                    warp.clear_local(active, frame + at, 4);
                }
                Ok(Flow::Next)
            }
            Op::Nop => Ok(Flow::Next),
            op => {
                let warp = &mut self.warps[w];
                warp.simple(op, s, active);
                Ok(Flow::Next)
            }
        }
    }

    fn branch(&mut self, active: u32, target: u32, meet: u32, uniform: bool) -> Outcome<Flow> {
        let Site { w, s, pc, .. } = self.site;
        let warp = &mut self.warps[w];
        let mask = warp.splits[s].mask;
        if active == mask {
            warp.splits[s].pc = target;
            return Ok(Flow::Jump);
        }
        if uniform {
            let text = "`bra.uni`, taken by some of the lanes only".to_owned();
            return trouble(FaultKind::InvalidInstruction(text), active.trailing_zeros());
        }
        self.counters.divergent += 1;
        self.diverge(&[(active, target), (mask & !active, pc + 1)], meet);
        Ok(Flow::Jump)
    }

    /// Sends groups of the running split's lanes to several places.
    fn diverge(&mut self, groups: &[(u32, u32)], meet: u32) {
        let Site { w, s, .. } = self.site;
        self.tick();
        let clock = self.clock();
        let warp = &mut self.warps[w];
        let depth = warp.splits[s].calls.len() as u32;
        let have = warp.splits[s]
            .points
            .last()
            .map(|&p| &warp.points[p as usize]);
        // Leaving a loop one by one, lanes meet at one point, not at one per iteration.
        if meet != u32::MAX && have.is_none_or(|p| p.pc != meet || p.depth != depth) {
            let mask = warp.splits[s].mask;
            let p = warp.add_point(Point {
                pc: meet,
                depth,
                mask,
            });
            warp.splits[s].points.push(p);
            warp.refresh(s);
        }
        for &(mask, pc) in &groups[1..] {
            if mask != 0 {
                warp.part(s, mask, pc, clock);
            }
        }
        warp.splits[s].pc = groups[0].1;
    }

    fn branch_indexed(&mut self, index: Src, targets: &[u32], meet: u32) -> Outcome<Flow> {
        let Site { w, s, active, pc } = self.site;
        let index = self.warps[w].row(index, s);
        let mut groups: Vec<(u32, u32)> = Vec::new();
        for (l, &i) in index.iter().enumerate() {
            if active >> l & 1 == 0 {
                continue;
            }
            let Some(&t) = targets.get(i as u32 as usize) else {
                let kind = FaultKind::InvalidInstruction(format!(
                    "index {i} beyond {} branch targets",
                    targets.len()
                ));
                return trouble(kind, l as u32);
            };
            match groups.iter_mut().find(|g| g.1 == t) {
                Some(g) => g.0 |= 1 << l,
                None => groups.push((1 << l, t)),
            }
        }
        let rest = self.split().mask & !active;
        if rest != 0 {
            groups.push((rest, pc + 1));
        }
        if groups.len() == 1 {
            self.split().pc = groups[0].1;
        } else {
            self.counters.divergent += 1;
            self.diverge(&groups, meet);
        }
        Ok(Flow::Jump)
    }

    /// Parts the lanes that a guard disabled, so that the rest can act alone.
    pub fn isolate(&mut self) {
        let Site { w, s, pc, active } = self.site;
        let rest = self.warps[w].splits[s].mask & !active;
        if rest != 0 {
            self.tick();
            let clock = self.clock();
            self.warps[w].part(s, rest, pc + 1, clock);
        }
    }

    fn call_indirect(&mut self, target: Src, args: &[u64], results: &[u64]) -> Outcome<Flow> {
        let Site { w, s, active, .. } = self.site;
        let targets = self.warps[w].row(target, s);
        let first = targets[active.trailing_zeros().min(31) as usize];
        let same = (0..32)
            .filter(|&l| active >> l & 1 == 1 && targets[l] == first)
            .fold(0u32, |m, l| m | 1 << l);
        if same != active {
            // Those with another target call it in their own time.
            self.tick();
            let (clock, pc) = (self.clock(), self.site.pc);
            self.warps[w].part(s, active & !same, pc, clock);
            self.site.active = same;
        }
        let place = first.wrapping_sub(FUNCTION_BASE_ADDRESS);
        let Some(&function) = self.program.by_place.get(&place) else {
            let kind =
                FaultKind::InvalidInstruction(format!("{first:#x} is not a function's address"));
            return trouble(kind, same.trailing_zeros());
        };
        self.call(same, function, args, results)
    }

    fn call(&mut self, active: u32, function: u32, args: &[u64], results: &[u64]) -> Outcome<Flow> {
        self.isolate();
        let Site { w, s, pc, .. } = self.site;
        let program = self.program;
        let Some(f) = program.functions.get(function as usize) else {
            let kind = FaultKind::InvalidInstruction("no such function".to_owned());
            return trouble(kind, active.trailing_zeros());
        };
        let warp = &mut self.warps[w];
        let split = &warp.splits[s];
        let caller = &program.functions[split.function as usize];
        let (base, pbase, frame) = (
            split.base + caller.rows,
            split.pbase + caller.preds,
            split.frame + caller.frame,
        );
        let deep = split.calls.len() >= MAX_CALLS
            || base + f.rows > MAX_ROWS
            || frame + f.frame > MAX_FRAME;
        if deep || args.len() != f.params.len() || results.len() > f.returns.len() {
            let text = if deep {
                "the calls nest too deep: stack overflow"
            } else {
                "the arguments are not those of the function"
            };
            let kind = FaultKind::InvalidInstruction(text.to_owned());
            return trouble(kind, active.trailing_zeros());
        }
        let from = split.frame;
        warp.reserve(base, pbase, frame, f);
        for (&at, &(to, size)) in args.iter().zip(&f.params) {
            warp.copy_local(active, from + at, frame + to, size);
        }
        let split = &mut warp.splits[s];
        split.calls.push(Call {
            pc: pc + 1,
            base: split.base,
            pbase: split.pbase,
            frame: split.frame,
            function: split.function,
            results: results.to_vec(),
        });
        (split.base, split.pbase, split.frame) = (base, pbase, frame);
        split.function = function;
        split.pc = f.entry;
        Ok(Flow::Jump)
    }

    fn ret(&mut self, active: u32) -> Outcome<Flow> {
        let program = self.program;
        if self.split().calls.is_empty() {
            return self.exit(active);
        }
        self.isolate();
        let Site { w, s, .. } = self.site;
        let warp = &mut self.warps[w];
        let split = &mut warp.splits[s];
        let (from, function) = (split.frame, split.function);
        let Some(call) = split.calls.pop() else {
            return Ok(Flow::Next);
        };
        split.pc = call.pc;
        (split.base, split.pbase, split.frame) = (call.base, call.pbase, call.frame);
        split.function = call.function;
        // Points inside the callee that are never reached are given up; lanes that return at
        // different places meet again at the call, by the caller's points.
        let depth = split.calls.len() as u32;
        let mask = split.mask;
        while let Some(&p) = warp.splits[s].points.last()
            && warp.points[p as usize].depth > depth
        {
            warp.points[p as usize].mask &= !mask;
            warp.splits[s].points.pop();
        }
        warp.refresh(s);
        if let Some(f) = program.functions.get(function as usize) {
            for (&(at, size), &to) in f.returns.iter().zip(&call.results) {
                warp.copy_local(mask, from + at, call.frame + to, size);
            }
        }
        warp.settle();
        warp.sweep();
        Ok(Flow::Jump)
    }

    fn exit(&mut self, active: u32) -> Outcome<Flow> {
        let Site { w, s, .. } = self.site;
        let warp = &mut self.warps[w];
        warp.live &= !active;
        if let Some(o) = warp
            .splits
            .iter()
            .find(|x| matches!(x.state, State::Members(m) if m & active != 0))
        {
            let State::Members(mask) = o.state else {
                return Ok(Flow::Jump);
            };
            let detail = format!(
                "lanes {:#010x} exited, while {:#010x} wait for them at PTX line {}",
                mask & active,
                o.mask,
                self.program.info[o.pc as usize].line
            );
            return trouble(
                FaultKind::MemberMask { mask, detail },
                active.trailing_zeros(),
            );
        }
        warp.splits[s].mask &= !active;
        warp.splits[s].pc += 1;
        warp.sweep();
        warp.settle();
        warp.sweep();
        self.after_exit(w)?;
        Ok(Flow::Jump)
    }
}
