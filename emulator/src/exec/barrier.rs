//! The sixteen named barriers of a block.

use super::block::Block;
use super::shared::{Clock, join};
use super::warp::Warp;
use super::{Exec, raise};
use crate::error::FaultKind;
use crate::ir::regs::lanes;
use crate::ir::{Bar, BarKind, CLUSTER_BARRIER, Op, RedOp};

#[derive(Debug, Clone)]
pub(crate) struct Barrier {
    pub generation: u64,
    /// Threads that arrived in this generation.
    pub arrived: u32,
    /// The count this generation was used with; `None` is all live threads of the block.
    pub expected: Option<u32>,
    in_use: bool,
    clock: Clock,
    done_clock: Clock,
    any: bool,
    all: bool,
    count: u32,
    done: (bool, bool, u32),
}

impl Barrier {
    pub fn new(parties: usize) -> Self {
        Self {
            generation: 0,
            arrived: 0,
            expected: None,
            in_use: false,
            clock: vec![0; parties],
            done_clock: vec![0; parties],
            any: false,
            all: true,
            count: 0,
            done: (false, false, 0),
        }
    }

    fn complete(&mut self) {
        self.generation += 1;
        self.arrived = 0;
        self.in_use = false;
        self.done_clock.copy_from_slice(&self.clock);
        self.clock.fill(0);
        self.done = (self.any, self.all, self.count);
        (self.any, self.all, self.count) = (false, true, 0);
    }
}

impl Block<'_> {
    /// The lanes of `mask` arrive. Those that wait get the barrier and the generation to wait for.
    pub fn arrive_barrier(
        &mut self,
        w: &mut Warp,
        bar: &Bar,
        mask: u32,
    ) -> Exec<Option<(u32, u64)>> {
        match bar.kind {
            BarKind::ClusterArrive { relaxed } => {
                return self.arrive_cluster(w, relaxed, mask).map(|()| None);
            }
            BarKind::ClusterWait => return self.wait_cluster(w, mask),
            _ => {}
        }
        let first = lanes(mask).next().unwrap_or(0);
        let misuse = |barrier: u32, detail: String| {
            raise(FaultKind::BarrierMisuse { barrier, detail }, Some(first))
        };
        let uniform = |row: &[u32; 32]| lanes(mask).all(|l| row[l] == row[first]);
        let ids = w.regs.w(bar.id);
        let id = ids[first];
        if !uniform(ids) {
            return misuse(id, "the threads of a warp name different barriers".into());
        }
        if id >= 16 {
            return misuse(id, "there are 16 barriers".into());
        }
        let expected = match bar.count {
            None => None,
            Some(c) => {
                let row = w.regs.w(c);
                if !uniform(row) {
                    return misuse(id, "the threads of a warp give different counts".into());
                }
                let n = row[first];
                if n == 0 || !n.is_multiple_of(32) {
                    return misuse(
                        id,
                        format!("a count of {n} threads is not a positive multiple of 32"),
                    );
                }
                if n > self.launch.warps * 32 {
                    return misuse(
                        id,
                        format!(
                            "a count of {n} threads in a block of {}",
                            self.launch.threads
                        ),
                    );
                }
                Some(n)
            }
        };
        // With a count the unit is the warp; without, every live thread must come.
        let threads = if expected.is_some() && mask == w.live {
            32
        } else {
            mask.count_ones()
        };
        let live = self.live_threads;
        let b = &mut self.bars[id as usize];
        if b.in_use && b.expected != expected {
            let words = |e: Option<u32>| {
                e.map_or("all threads of the block".to_owned(), |n| {
                    format!("{n} threads")
                })
            };
            let detail = format!(
                "used with {} while others wait for {}",
                words(expected),
                words(b.expected)
            );
            return misuse(id, detail);
        }
        b.in_use = true;
        b.expected = expected;
        b.arrived += threads;
        let target = expected.unwrap_or(live);
        if b.arrived > target {
            let detail = format!("{} threads arrived where {target} are expected", b.arrived);
            return misuse(id, detail);
        }
        if let BarKind::Red { p, neg, .. } = bar.kind {
            let v = (w.regs.p(p) ^ if neg { u32::MAX } else { 0 }) & mask;
            b.any |= v != 0;
            b.all &= v == mask;
            b.count += v.count_ones();
        }
        let generation = b.generation;
        let clock = self.shared.release_clock(w.id);
        join(&mut b.clock, &clock);
        self.progress += 1;
        if b.arrived == target {
            b.complete();
        }
        Ok((!matches!(bar.kind, BarKind::Arrive)).then_some((id, generation)))
    }

    /// Lanes arrive at the barrier of the cluster; they wait for it later.
    fn arrive_cluster(&mut self, w: &mut Warp, relaxed: bool, mask: u32) -> Exec<()> {
        if let Some(lane) = lanes(mask & w.cluster_arrived).next() {
            let detail = "a thread arrives again before it has waited".to_owned();
            let barrier = CLUSTER_BARRIER;
            return raise(FaultKind::BarrierMisuse { barrier, detail }, Some(lane));
        }
        let clock = self.shared.release_clock(w.id);
        let live = self.live_threads;
        let b = &mut self.bars[CLUSTER_BARRIER as usize];
        w.cluster_arrived |= mask;
        lanes(mask).for_each(|l| w.cluster_generation[l] = b.generation);
        if !relaxed {
            join(&mut b.clock, &clock);
        }
        b.in_use = true;
        b.arrived += mask.count_ones();
        if b.arrived == live {
            b.complete();
        }
        self.progress += 1;
        Ok(())
    }

    fn wait_cluster(&mut self, w: &mut Warp, mask: u32) -> Exec<Option<(u32, u64)>> {
        if let Some(lane) = lanes(mask & !w.cluster_arrived).next() {
            let detail = "a thread waits without having arrived".to_owned();
            let barrier = CLUSTER_BARRIER;
            return raise(FaultKind::BarrierMisuse { barrier, detail }, Some(lane));
        }
        w.cluster_arrived &= !mask;
        let generation = lanes(mask).map(|l| w.cluster_generation[l]).max();
        let generation = generation.unwrap_or(0);
        let b = &self.bars[CLUSTER_BARRIER as usize];
        if b.generation > generation {
            self.shared.acquire(w.id, &b.done_clock);
            return Ok(None);
        }
        Ok(Some((CLUSTER_BARRIER, generation)))
    }

    /// Lanes end: what they did at the barrier of the cluster no longer counts.
    pub fn leave_cluster(&mut self, w: &Warp, mask: u32) {
        let b = &mut self.bars[CLUSTER_BARRIER as usize];
        let counted = |l: &usize| w.cluster_generation[*l] == b.generation;
        let n = lanes(mask & w.cluster_arrived).filter(counted).count();
        b.arrived -= n as u32;
    }

    /// A warp passes a completed barrier.
    pub fn pass_barrier(&mut self, w: &mut Warp, pc: usize, id: u32, mask: u32) {
        let b = &self.bars[id as usize];
        self.shared.acquire(w.id, &b.done_clock);
        let (any, all, count) = b.done;
        if let Some(Op::Bar(Bar {
            kind: BarKind::Red { op, dw, dp, .. },
            ..
        })) = self.launch.kernel.code.get(pc).map(|i| &i.op)
        {
            if let Some(d) = dw {
                w.regs.put_w(*d, &[count; 32], mask);
            }
            if let Some(d) = dp {
                let v = if matches!(op, RedOp::And) { all } else { any };
                w.regs.put_p(*d, if v { u32::MAX } else { 0 }, mask);
            }
        }
    }

    /// Threads end: barriers that wait for all live threads may now be complete.
    pub fn exit(&mut self, threads: u32) {
        self.live_threads -= threads;
        self.progress += 1;
        let live = self.live_threads;
        for b in &mut self.bars {
            if b.in_use && b.expected.is_none() && b.arrived >= live {
                b.complete();
            }
        }
    }

    /// The number of the barrier at `pc`, for a report.
    pub fn barrier_id(&self, w: &Warp, pc: usize, mask: u32) -> u32 {
        match self.launch.kernel.code.get(pc).map(|i| &i.op) {
            Some(Op::Bar(bar)) => w.regs.w(bar.id)[lanes(mask).next().unwrap_or(0)],
            _ => 0,
        }
    }
}
