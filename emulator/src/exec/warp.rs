//! A warp: registers by lane, and the groups of lanes that run together.
//!
//! Lanes are scheduled independently. A *split* is a set of lanes at one place of the program.
//! A branch that diverges makes two, which meet again at the branch's immediate post-dominator.
//! That meeting is a preference, not a promise: if the others do not come, because they wait for
//! something that the lanes already there must do, those go on alone.

use super::{LOCAL_WINDOW, Launch};
use crate::decode::{Func, LANES, MaskKind, PSrc, Program, Row, Special, Src};

/// How long lanes wait at a reconvergence point at first.
const PATIENCE: u64 = 1 << 14;

/// What a split waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Ready,
    /// The other lanes of a reconvergence point.
    Reconverge,
    /// The other lanes of a member mask, at this very instruction or (`bar.warp.sync`) another.
    Members(u32),
    /// The other lanes of the warp, which were left behind at a reconvergence point.
    Aligned,
    /// A barrier of the block.
    Barrier(u32),
    /// The phase of an mbarrier at this shared-memory offset.
    Mbarrier(u32),
}

/// A return address.
#[derive(Clone, Debug)]
pub struct Call {
    pub pc: u32,
    pub base: u32,
    pub pbase: u32,
    pub frame: u64,
    pub function: u32,
    /// Where the caller wants the results.
    pub results: Vec<u64>,
}

/// Lanes that run together.
#[derive(Clone, Debug)]
pub struct Split {
    pub pc: u32,
    pub mask: u32,
    pub state: State,
    /// First register of the current function's window.
    pub base: u32,
    pub pbase: u32,
    pub frame: u64,
    pub function: u32,
    pub calls: Vec<Call>,
    /// Reconvergence points to come, innermost last, by number.
    pub points: Vec<u32>,
    /// The innermost one's place, or `u32::MAX`.
    pub meet: u32,
    /// The warp's clock when these lanes last parted from others.
    pub parted: u32,
    /// Instruction count of the warp when the wait began.
    pub since: u64,
}

/// Where lanes that diverged meet.
#[derive(Clone, Debug)]
pub struct Point {
    pub pc: u32,
    pub depth: u32,
    pub mask: u32,
}

/// An asynchronous copy that has not landed.
#[derive(Clone, Debug)]
pub struct Pending {
    pub lane: u32,
    pub pc: u32,
    pub offset: u32,
    pub bytes: u32,
    pub data: [u8; 16],
    /// The thread's commit group, or `u32::MAX` before it is committed.
    pub group: u32,
    /// The warp's instruction count when it was issued.
    pub when: u64,
    /// The warp's clock at the first mbarrier arrival that covers it: who sees that arrival sees
    /// the copy.
    pub arrived: Option<u32>,
}

pub struct Warp<'a> {
    pub index: u32,
    pub program: &'a Program,
    pub variables: &'a [u64],
    pub regs: Vec<Row>,
    pub preds: Vec<u32>,
    pub carry: u32,
    /// Lanes that exist and have not exited.
    pub live: u32,
    pub splits: Vec<Split>,
    pub current: usize,
    pub points: Vec<Point>,
    pub executed: u64,
    /// Instructions after which lanes no longer wait at a reconvergence point.
    pub patience: u64,
    /// Lanes went on alone past a reconvergence point.
    pub broken: bool,
    pub local: Vec<u8>,
    pub local_init: Vec<bool>,
    pub local_stride: usize,
    pub copies: Vec<Pending>,
    pub groups: [u32; LANES],
    pub scratch: [Row; 4],
    tid: [Row; 3],
    dims: Dims,
}

/// What special registers read.
#[derive(Clone, Copy)]
pub struct Dims {
    pub ntid: [u32; 3],
    pub ctaid: [u32; 3],
    pub nctaid: [u32; 3],
    pub warps: u32,
    pub block: u32,
    pub dynamic: u32,
    pub total: u32,
}

impl<'a> Warp<'a> {
    pub fn new(launch: &'a Launch<'_>, index: u32, threads: u32, dims: Dims) -> Self {
        let program = launch.program;
        let first = index * 32;
        let lanes = (threads - first).min(32);
        let full = u32::MAX >> (32 - lanes);
        let [x, y, _] = dims.ntid;
        let of = |f: &dyn Fn(u32) -> u32| std::array::from_fn(|l| u64::from(f(first + l as u32)));
        let tid = [of(&|t| t % x), of(&|t| t / x % y), of(&|t| t / x / y)];
        let mut w = Warp {
            index,
            program,
            variables: &launch.variables,
            regs: Vec::new(),
            preds: Vec::new(),
            carry: 0,
            live: full,
            splits: Vec::new(),
            current: 0,
            points: Vec::new(),
            executed: 0,
            patience: PATIENCE,
            broken: false,
            local: Vec::new(),
            local_init: Vec::new(),
            local_stride: 0,
            copies: Vec::new(),
            groups: [0; LANES],
            scratch: [[0; LANES]; 4],
            tid,
            dims,
        };
        if let Some(f) = program.functions.first() {
            w.reserve(0, 0, 0, f);
            w.splits.push(Split {
                pc: f.entry,
                mask: full,
                state: State::Ready,
                base: 0,
                pbase: 0,
                frame: 0,
                function: 0,
                calls: Vec::new(),
                points: Vec::new(),
                meet: u32::MAX,
                parted: 0,
                since: 0,
            });
        }
        w
    }

    /// Makes room for a function's registers and frame.
    pub fn reserve(&mut self, base: u32, pbase: u32, frame: u64, f: &Func) {
        let rows = (base + f.rows) as usize;
        if self.regs.len() < rows {
            self.regs.resize(rows, [0; LANES]);
        }
        let preds = (pbase + f.preds) as usize;
        if self.preds.len() < preds {
            self.preds.resize(preds, 0);
        }
        let stride = (frame + f.frame) as usize;
        if self.local_stride < stride {
            let mut local = vec![0; stride * LANES];
            let mut init = vec![false; stride * LANES];
            let old = self.local_stride;
            for l in 0..LANES {
                local[l * stride..l * stride + old]
                    .copy_from_slice(&self.local[l * old..(l + 1) * old]);
                init[l * stride..l * stride + old]
                    .copy_from_slice(&self.local_init[l * old..(l + 1) * old]);
            }
            (self.local, self.local_init, self.local_stride) = (local, init, stride);
        }
    }

    /// Computes a source that is neither register nor constant into a scratch row.
    #[inline]
    pub fn prepare(&mut self, slot: usize, src: Src, frame: u64) {
        match src {
            Src::Reg(_) | Src::Const(_) => {}
            Src::Special(s) => self.scratch[slot] = self.special(s),
            Src::Frame(at) => self.scratch[slot] = [LOCAL_WINDOW + frame + at; LANES],
            Src::Variable(i, offset) => {
                let base = self.variables.get(i as usize).copied().unwrap_or(0);
                self.scratch[slot] = [base.wrapping_add(offset as u64); LANES];
            }
        }
    }

    /// A source's row, after `prepare`.
    #[inline]
    pub fn get(&self, slot: usize, src: Src, base: u32) -> &Row {
        match src {
            Src::Reg(r) => &self.regs[(base + r) as usize],
            Src::Const(c) => &self.program.consts[c as usize],
            _ => &self.scratch[slot],
        }
    }

    /// A source's row.
    pub fn row_ref(&mut self, src: Src, s: usize) -> &Row {
        let (base, frame) = (self.splits[s].base, self.splits[s].frame);
        self.prepare(0, src, frame);
        self.get(0, src, base)
    }

    /// A copy of a source's row.
    pub fn row(&mut self, src: Src, s: usize) -> Row {
        let (base, frame) = (self.splits[s].base, self.splits[s].frame);
        self.prepare(0, src, frame);
        *self.get(0, src, base)
    }

    /// A predicate's lanes.
    #[inline]
    pub fn pred(&self, p: PSrc, pbase: u32) -> u32 {
        let v = if p.index == u32::MAX {
            u32::MAX
        } else {
            self.preds[(pbase + p.index) as usize]
        };
        if p.not { !v } else { v }
    }

    /// Writes the active lanes of a register.
    #[inline]
    pub fn set(&mut self, dst: u32, base: u32, mask: u32, value: &Row) {
        let d = &mut self.regs[(base + dst) as usize];
        if mask == u32::MAX {
            *d = *value;
        } else {
            for i in 0..LANES {
                d[i] = if mask >> i & 1 == 1 { value[i] } else { d[i] };
            }
        }
    }

    #[inline]
    pub fn set_pred(&mut self, dst: u32, pbase: u32, mask: u32, value: u32) {
        let d = &mut self.preds[(pbase + dst) as usize];
        *d = *d & !mask | value & mask;
    }

    fn special(&self, s: Special) -> Row {
        let all = |x: u32| [u64::from(x); LANES];
        let dim = |a: [u32; 3], i: u8| all(a.get(i as usize).copied().unwrap_or(0));
        let d = &self.dims;
        match s {
            Special::Tid(i) => self.tid.get(i as usize).copied().unwrap_or([0; LANES]),
            Special::Ntid(i) => dim(d.ntid, i),
            Special::Ctaid(i) => dim(d.ctaid, i),
            Special::Nctaid(i) => dim(d.nctaid, i),
            // Without clusters every block is a cluster of its own.
            Special::ClusterId(i) => dim(d.ctaid, i),
            Special::NClusterId(i) => dim(d.nctaid, i),
            Special::ClusterCtaId(_) | Special::ClusterCtaRank => all(0),
            Special::ClusterNCtaId(_) | Special::ClusterNCtaRank => all(1),
            Special::LaneId => std::array::from_fn(|l| l as u64),
            Special::WarpId => all(self.index),
            Special::NWarpId => all(d.warps),
            Special::SmId => all(d.block % 2),
            Special::NSmId => all(2),
            Special::GridId => all(1),
            Special::LaneMask(k) => std::array::from_fn(|l| {
                let eq = 1u32 << l;
                let lt = eq - 1;
                u64::from(match k {
                    MaskKind::Eq => eq,
                    MaskKind::Lt => lt,
                    MaskKind::Le => lt | eq,
                    MaskKind::Gt => !(lt | eq),
                    MaskKind::Ge => !lt,
                })
            }),
            Special::Clock => all(self.executed as u32),
            Special::Clock64 | Special::GlobalTimer => [self.executed; LANES],
            Special::DynamicShared => all(d.dynamic),
            Special::TotalShared => all(d.total),
        }
    }

    /// Sets where the split meets others from its innermost reconvergence point.
    pub fn refresh(&mut self, s: usize) {
        let split = &mut self.splits[s];
        split.meet = match split.points.last() {
            Some(&p) => self.points[p as usize].pc,
            None => u32::MAX,
        };
    }

    /// Parts `mask` off as a new split that continues at `pc`.
    pub fn part(&mut self, s: usize, mask: u32, pc: u32, clock: u32) -> usize {
        self.splits[s].mask &= !mask;
        self.splits[s].parted = clock;
        let mut new = self.splits[s].clone();
        new.mask = mask;
        new.pc = pc;
        new.state = State::Ready;
        self.splits.push(new);
        self.splits.len() - 1
    }

    /// Merges other splits, all at the same place, into `s`.
    pub fn merge(&mut self, s: usize, mut others: Vec<usize>) {
        others.sort_unstable();
        for &o in others.iter().rev() {
            let other = self.splits[o].clone();
            let common = self.splits[s]
                .points
                .iter()
                .zip(&other.points)
                .take_while(|(a, b)| a == b)
                .count();
            // Points that only one of them had yet to meet are given up for its lanes.
            for (lanes, points) in [
                (self.splits[s].mask, self.splits[s].points.clone()),
                (other.mask, other.points.clone()),
            ] {
                for &p in &points[common..] {
                    self.points[p as usize].mask &= !lanes;
                }
            }
            let split = &mut self.splits[s];
            split.points.truncate(common);
            split.mask |= other.mask;
            split.parted = split.parted.max(other.parted);
        }
        let keep = self.splits[s].mask;
        let mut i = 0;
        self.splits.retain(|_| {
            i += 1;
            !others.contains(&(i - 1))
        });
        self.current = self.splits.iter().position(|x| x.mask == keep).unwrap_or(0);
        self.refresh(self.current);
        self.settle();
        self.sweep();
    }

    /// Lets go those whose reconvergence points have nobody left to wait for.
    pub fn settle(&mut self) {
        for i in 0..self.splits.len() {
            if self.splits[i].state == State::Reconverge {
                self.try_meet(i);
            }
        }
    }

    /// Merges the lanes waiting at the split's innermost point if all are there. Only marks
    /// splits that vanish, so indices stay valid: they get an empty mask.
    fn try_meet(&mut self, s: usize) {
        let Some(&p) = self.splits[s].points.last() else {
            self.splits[s].state = State::Ready;
            return;
        };
        let want = self.points[p as usize].mask & self.live;
        let here: Vec<usize> = (0..self.splits.len())
            .filter(|&i| {
                let x = &self.splits[i];
                x.state == State::Reconverge && x.points.last() == Some(&p)
            })
            .collect();
        let have = here.iter().fold(0, |m, &i| m | self.splits[i].mask);
        if want & !have != 0 {
            return;
        }
        let parted = here
            .iter()
            .map(|&i| self.splits[i].parted)
            .max()
            .unwrap_or(0);
        for &i in &here {
            if i != s {
                self.splits[i].mask = 0;
                self.splits[i].state = State::Ready;
            }
        }
        let split = &mut self.splits[s];
        split.mask = have;
        split.parted = parted;
        split.state = State::Ready;
        split.points.pop();
        self.refresh(s);
    }

    /// The split has reached its innermost point: it waits, unless all are there.
    pub fn arrive(&mut self, s: usize) {
        let p = self.splits[s].points.last().copied();
        self.splits[s].state = State::Reconverge;
        self.splits[s].since = self.executed;
        if p.is_none() {
            self.splits[s].state = State::Ready;
            return;
        }
        self.try_meet(s);
        self.sweep();
    }

    /// Removes empty splits.
    pub fn sweep(&mut self) {
        if self.splits.iter().all(|x| x.mask != 0) {
            return;
        }
        let keep = self.splits.get(self.current).map_or(0, |x| x.mask);
        self.splits.retain(|x| x.mask != 0);
        self.current = self
            .splits
            .iter()
            .position(|x| x.mask & keep != 0)
            .unwrap_or(0);
    }

    /// A new reconvergence point for `mask`.
    pub fn add_point(&mut self, point: Point) -> u32 {
        // Numbers are reused once no split refers to them.
        if self.points.len() > 64 {
            for i in 0..self.points.len() {
                let used = self.splits.iter().any(|x| x.points.contains(&(i as u32)));
                if !used {
                    self.points[i] = point;
                    return i as u32;
                }
            }
        }
        self.points.push(point);
        (self.points.len() - 1) as u32
    }

    /// Lets a split that waits at a reconvergence point go on alone.
    pub fn abandon(&mut self, s: usize) {
        let mask = self.splits[s].mask;
        if let Some(p) = self.splits[s].points.pop() {
            self.points[p as usize].mask &= !mask;
        }
        self.splits[s].state = State::Ready;
        self.broken = true;
        self.refresh(s);
    }
}
