//! The sixteen barriers of a block.

use super::access::Site;
use super::block::{Block, Flow};
use super::warp::State;
use super::{Outcome, Trouble, trouble};
use crate::decode::{Barrier, Op, Reduce};
use crate::fault::FaultKind;

/// A barrier's present phase.
pub struct CtaBarrier {
    /// Threads arrived, in whole warps.
    pub arrived: u32,
    /// The count that the participants gave; `None` is all threads of the block.
    pub count: Option<Option<u32>>,
    /// Lanes of each warp that arrived while others of it have not.
    partial: Vec<u32>,
    /// What the arrived knew.
    clocks: Vec<u32>,
    popc: u32,
    all: bool,
}

impl CtaBarrier {
    pub fn new(warps: usize) -> Self {
        CtaBarrier {
            arrived: 0,
            count: None,
            partial: vec![0; warps],
            clocks: vec![0; warps],
            popc: 0,
            all: true,
        }
    }
}

pub fn join(into: &mut [u32], from: &[u32]) {
    for (a, &b) in into.iter_mut().zip(from) {
        *a = (*a).max(b);
    }
}

impl Block<'_, '_> {
    /// Threads that complete a barrier.
    pub fn barrier_goal(&self, b: &CtaBarrier) -> u32 {
        match b.count {
            Some(Some(n)) => n,
            _ => 32 * self.warps.iter().filter(|w| w.live != 0).count() as u32,
        }
    }

    pub fn barrier(&mut self, b: &Barrier) -> Outcome<Flow> {
        let Site { w, s, active, pc } = self.site;
        let live = self.warps[w].live;
        let lane = active.trailing_zeros();
        if b.aligned && active != live {
            // Lanes that only lag behind at a reconvergence point may catch up; others diverge.
            let lagging = self.warps[w].broken && self.split().mask == active;
            if !lagging {
                let others = self
                    .waiters(Some(w))
                    .into_iter()
                    .filter(|x| x.lanes & active == 0)
                    .collect();
                let kind = FaultKind::DivergentBarrier {
                    arrived: active,
                    live,
                    others,
                };
                return trouble(kind, lane);
            }
            if !self.gather(live, true)? {
                return Ok(Flow::Jump);
            }
        } else if self.split().mask != active {
            self.isolate();
        }
        let active = self.site.active;
        let s = if self.site.s == s { s } else { self.site.s };
        let uniform = |row: [u64; 32]| -> Option<u32> {
            let first = row[active.trailing_zeros().min(31) as usize] as u32;
            (0..32)
                .all(|l| active >> l & 1 == 0 || row[l] as u32 == first)
                .then_some(first)
        };
        let id = uniform(self.warps[w].row(b.id, s)).filter(|&id| id < 16);
        let Some(id) = id else {
            let text = "the barrier's number differs among lanes, or is not below 16".to_owned();
            return trouble(FaultKind::BarrierCount(text), lane);
        };
        let mut count = None;
        if let Some(c) = b.count {
            let n = uniform(self.warps[w].row(c, s));
            let all = 32 * self.warps.len() as u32;
            match n {
                Some(n) if n != 0 && n % 32 == 0 && n <= all => count = Some(n),
                Some(n) => {
                    let text =
                        format!("{n} is not a multiple of 32 from 32 to the block's {all} threads");
                    return trouble(FaultKind::BarrierCount(text), lane);
                }
                None => {
                    let text = "the count differs among lanes".to_owned();
                    return trouble(FaultKind::BarrierCount(text), lane);
                }
            }
        }
        let bar = &mut self.barriers[id as usize];
        match bar.count {
            None => bar.count = Some(count),
            Some(have) if have != count => {
                let name = |c: Option<u32>| match c {
                    Some(n) => format!("{n} threads"),
                    None => "all threads".to_owned(),
                };
                let text = format!(
                    "barrier {id} is waited for with a count of {}, here with {}",
                    name(have),
                    name(count)
                );
                return trouble(FaultKind::BarrierCount(text), lane);
            }
            Some(_) => {}
        }
        if let Some((_, p, _)) = b.reduce {
            let warp = &self.warps[w];
            let p = warp.pred(p, warp.splits[s].pbase) & active;
            bar.popc += p.count_ones();
            bar.all &= p == active;
        }
        join(&mut bar.clocks, &self.clocks[w]);
        self.clocks[w][w] = self.clocks[w][w].saturating_add(1);
        bar.partial[w] |= active;
        if bar.partial[w] & live == live {
            bar.partial[w] = 0;
            bar.arrived += 32;
        }
        let split = &mut self.warps[w].splits[s];
        if b.arrive {
            split.pc = pc + 1;
        } else {
            split.state = State::Barrier(id);
        }
        self.complete(id as usize).map_err(|kind| Trouble {
            kind,
            lane: Some(lane),
        })?;
        Ok(Flow::Yield)
    }

    /// Opens the barrier if enough have arrived.
    fn complete(&mut self, id: usize) -> Result<(), FaultKind> {
        let goal = self.barrier_goal(&self.barriers[id]);
        let warps = self.warps.len();
        let bar = &mut self.barriers[id];
        if bar.arrived == 0 || bar.arrived < goal {
            return Ok(());
        }
        if bar.arrived > goal {
            return Err(FaultKind::BarrierCount(format!(
                "{} threads arrived at barrier {id}, which {goal} complete",
                bar.arrived
            )));
        }
        let bar = std::mem::replace(bar, CtaBarrier::new(warps));
        self.opened = true;
        let program = self.program;
        for (w, warp) in self.warps.iter_mut().enumerate() {
            let mut waited = false;
            for s in 0..warp.splits.len() {
                if warp.splits[s].state != State::Barrier(id as u32) {
                    continue;
                }
                waited = true;
                let (pc, mask) = (warp.splits[s].pc, warp.splits[s].mask);
                let (base, pbase) = (warp.splits[s].base, warp.splits[s].pbase);
                if let Op::Barrier(Barrier {
                    reduce: Some((op, _, dst)),
                    ..
                }) = program.code[pc as usize].op
                {
                    let bits = |b: bool| if b { u32::MAX } else { 0 };
                    match op {
                        Reduce::Popc => warp.set(dst, base, mask, &[u64::from(bar.popc); 32]),
                        Reduce::And => warp.set_pred(dst, pbase, mask, bits(bar.all)),
                        Reduce::Or => warp.set_pred(dst, pbase, mask, bits(bar.popc != 0)),
                    }
                }
                warp.splits[s].state = State::Ready;
                warp.splits[s].pc = pc + 1;
            }
            if waited {
                join(&mut self.clocks[w], &bar.clocks);
                self.clocks[w][w] = self.clocks[w][w].saturating_add(1);
            }
        }
        Ok(())
    }

    /// Lanes have exited: barriers may have waited only for them.
    pub fn after_exit(&mut self, w: usize) -> Outcome<()> {
        let live = self.warps[w].live;
        for id in 0..self.barriers.len() {
            let bar = &mut self.barriers[id];
            if bar.partial[w] != 0 && live != 0 && bar.partial[w] & live == live {
                bar.partial[w] = 0;
                bar.arrived += 32;
            }
            self.complete(id)
                .map_err(|kind| Trouble { kind, lane: None })?;
        }
        Ok(())
    }
}
