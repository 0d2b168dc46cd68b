//! One block: its warps in seeded random order, until they are done or stuck.

use std::collections::BTreeMap;

use super::barrier::Barrier;
use super::bulk::Bulk;
use super::copy::PendingCopy;
use super::divergence::State;
use super::global::Party;
use super::launch::Launch;
use super::mbarrier::Mbarrier;
use super::rng::Rng;
use super::shared::{Conflict, Parties, SharedMemory, Who};
use super::warp::Warp;
use super::warps_global::WarpsGlobal;
use super::wgmma::Warpgroup;
use super::{Exec, Raised, raise};
use crate::error::{Access, Fault, FaultKind, Place, Space, Waiter};
use crate::ir::CLUSTER_BARRIER;
use crate::ir::regs::lanes;
use crate::report::Counters;

/// Warps switch after a random number of instructions below this.
const QUANTUM: usize = 192;
/// Failed mbarrier waits of every live warp, with nothing else happening, that mean a deadlock.
const SPINS: u32 = 4096;

/// What the warps of a block share.
pub(crate) struct Block<'l> {
    pub launch: &'l Launch<'l>,
    pub index: (u32, u32, u32),
    pub shared: SharedMemory,
    /// Global memory as the warps of this block touched it.
    pub warps_global: Option<WarpsGlobal>,
    pub party: Party,
    pub bars: Vec<Barrier>,
    pub mbars: BTreeMap<u32, Mbarrier>,
    pub counters: Vec<Counters>,
    pub rng: Rng,
    pub live_threads: u32,
    /// Counts stores, atomics and arrivals: what could end another warp's wait.
    pub progress: u64,
    pub executed: u64,
    pub retries: u64,
    /// The allocation the last global access hit.
    pub cache: usize,
    /// Copies whose completion an mbarrier tracks, with the number of their tie.
    pub tied: Vec<(u64, PendingCopy)>,
    pub ties: u64,
    pub bulk: Bulk,
    pub groups: Vec<Warpgroup>,
    /// Registers that warps have given back and others may take.
    pub free_registers: u32,
}

pub(crate) enum Progress {
    Done,
    More,
}

/// A block that can be run in slices.
pub(crate) struct BlockRun<'l> {
    block: Block<'l>,
    warps: Vec<Warp>,
}

impl<'l> BlockRun<'l> {
    pub fn new(launch: &'l Launch<'l>, linear: u64) -> Self {
        let checks = launch.config.checks;
        let warps = launch.warps as usize;
        let parties = Parties::new(warps, launch.kernel.units).len();
        let mut block = Block {
            launch,
            index: launch.block_index(linear),
            shared: SharedMemory::new(
                launch.shared_bytes,
                launch.kernel.shared_grain,
                warps,
                launch.kernel.units,
                checks,
            ),
            warps_global: (checks.global_races && warps > 1)
                .then(|| WarpsGlobal::new(launch.kernel.global_grain)),
            party: Party::new(linear.min(u64::from(u32::MAX - 1)) as u32),
            bars: (0..=CLUSTER_BARRIER)
                .map(|_| Barrier::new(parties))
                .collect(),
            mbars: BTreeMap::new(),
            counters: vec![Counters::default(); launch.kernel.code.len()],
            rng: Rng::new(launch.config.seed, linear + 1),
            live_threads: launch.threads,
            progress: 0,
            executed: 0,
            retries: 0,
            cache: 0,
            tied: Vec::new(),
            ties: 0,
            bulk: Bulk::default(),
            groups: (0..warps.div_ceil(4))
                .map(|_| Warpgroup::default())
                .collect(),
            free_registers: 0,
        };
        if launch.kernel.units {
            block.bulk = Bulk::new(&mut block.rng);
        }
        let warps = (0..warps).map(|id| Warp::new(&block, id)).collect();
        Self { block, warps }
    }

    pub fn add_to(&self, counters: &mut [Counters], retries: &mut u64) {
        for (a, b) in counters.iter_mut().zip(&self.block.counters) {
            *a += *b;
        }
        *retries += self.block.retries;
    }

    /// Runs about `slice` warp-instructions.
    pub fn run(&mut self, slice: u64) -> Result<Progress, Box<Fault>> {
        let end = self.block.executed + slice;
        let mut runnable = Vec::with_capacity(self.warps.len());
        loop {
            runnable.clear();
            for (i, w) in self.warps.iter_mut().enumerate() {
                if w.wake(&mut self.block) {
                    runnable.push(i);
                }
            }
            if runnable.is_empty() {
                if self.warps.iter().all(|w| w.splits.is_empty()) {
                    return self.finish();
                }
                return Err(self.stuck());
            }
            // Every runnable warp once, in random order, rather than one at random: less bookkeeping
            // per instruction, and no warp starves.
            for n in (1..=runnable.len()).rev() {
                let i = runnable.swap_remove(self.block.rng.below(n));
                let quantum = 1 + self.block.rng.below(QUANTUM) as u32;
                let warp = &mut self.warps[i];
                if let Err(raised) = warp.run(&mut self.block, quantum) {
                    return Err(self.fault(i, *raised));
                }
                if let Some(fault) = self.divergent(i) {
                    return Err(fault);
                }
            }
            if self.block.bulk.busy()
                && let Err(failed) = self.block.advance_copies()
            {
                return Err(self.unit_fault(failed));
            }
            if self.block.executed > self.block.launch.config.max_warp_instructions {
                let limit = self.block.launch.config.max_warp_instructions;
                return Err(self.fault_at(
                    FaultKind::Timeout { limit },
                    Place {
                        block: self.block.index,
                        ..Place::default()
                    },
                ));
            }
            if self.spinning() {
                return Err(self.stuck());
            }
            if self.block.executed >= end {
                return Ok(Progress::More);
            }
        }
    }

    /// Whether all that is left is warps that wait, some of them by polling mbarriers in vain.
    fn spinning(&self) -> bool {
        let progress = self.block.progress;
        !self.block.bulk.loading()
            && self
                .warps
                .iter()
                .filter(|w| w.has_ready())
                .all(|w| w.seen == progress && w.failed_waits > SPINS)
            && self.warps.iter().any(Warp::has_ready)
    }

    fn fault_at(&self, kind: FaultKind, place: Place) -> Box<Fault> {
        Box::new(Fault {
            kind,
            kernel: self.block.launch.kernel.name.clone(),
            place,
        })
    }

    fn fault(&self, warp: usize, raised: Raised) -> Box<Fault> {
        let w = &self.warps[warp];
        let thread = raised.lane.map(|l| (warp * 32 + l) as u32);
        let place = self.block.launch.place(self.block.index, thread, w.pc);
        self.fault_at(raised.kind, place)
    }

    /// All warps have ended.
    fn finish(&mut self) -> Result<Progress, Box<Fault>> {
        if let Err(failed) = self.block.finish_copies() {
            return Err(self.unit_fault(failed));
        }
        if let Some(pc) = self.block.uneven_registers() {
            let text = "not every warp of the warpgroup executed this setmaxnreg".to_owned();
            let place = self.block.launch.place(self.block.index, None, pc);
            return Err(self.fault_at(FaultKind::AsyncMisuse(text), place));
        }
        Ok(Progress::Done)
    }

    /// A fault of an asynchronous unit, at the instruction that gave it its work.
    fn unit_fault(&self, (who, raised): (Who, Box<Raised>)) -> Box<Fault> {
        self.fault_at(raised.kind, self.block.place_of(who))
    }

    fn waiter(&self, w: &Warp, pc: u32, lanes_mask: u32, waits_for: String) -> Waiter {
        let thread = lanes(lanes_mask).next().map(|l| (w.id * 32 + l) as u32);
        Waiter {
            warp: w.id as u32,
            lanes: lanes_mask,
            place: self
                .block
                .launch
                .place(self.block.index, thread, pc as usize),
            waits_for,
        }
    }

    /// A warp of which some lanes wait at an aligned barrier that the others cannot reach.
    fn divergent(&self, warp: usize) -> Option<Box<Fault>> {
        let w = &self.warps[warp];
        let at = w.splits.iter().find(|s| s.state == State::PartialBarrier)?;
        if w.splits
            .iter()
            .any(|s| matches!(s.state, State::Ready | State::Barrier { .. }))
        {
            return None;
        }
        Some(self.divergent_fault(w, at.pc, at.mask))
    }

    fn divergent_fault(&self, w: &Warp, pc: u32, mask: u32) -> Box<Fault> {
        let others = w
            .splits
            .iter()
            .filter(|s| s.pc != pc || s.state != State::PartialBarrier)
            .map(|s| self.waiter(w, s.pc, s.mask, "the rest of its warp".into()))
            .collect();
        let present = w
            .splits
            .iter()
            .filter(|s| s.pc == pc && s.state == State::PartialBarrier)
            .fold(0, |m, s| m | s.mask);
        let thread = lanes(mask).next().map(|l| (w.id * 32 + l) as u32);
        let place = self
            .block
            .launch
            .place(self.block.index, thread, pc as usize);
        let barrier = self.block.barrier_id(w, pc as usize, mask);
        self.fault_at(
            FaultKind::DivergentBarrier {
                barrier,
                present,
                absent: w.live & !present,
                others,
            },
            place,
        )
    }

    /// Nobody can go on: who waits where.
    fn stuck(&self) -> Box<Fault> {
        let mut waiters = Vec::new();
        for w in &self.warps {
            for s in &w.splits {
                if s.state == State::PartialBarrier {
                    return self.divergent_fault(w, s.pc, s.mask);
                }
                let what = match s.state {
                    State::Ready if w.stall.is_some() => match w.stall {
                        Some(stall) => w.stall_text(&self.block, stall),
                        None => String::new(),
                    },
                    State::Barrier { id, .. } => {
                        let b = &self.block.bars[id as usize];
                        let name = match id {
                            CLUSTER_BARRIER => "the barrier of the cluster".to_owned(),
                            _ => format!("barrier {id}"),
                        };
                        format!(
                            "{name} ({} of {} threads arrived)",
                            b.arrived,
                            b.expected.unwrap_or(self.block.live_threads)
                        )
                    }
                    State::Member { need } => {
                        format!("lanes {need:#010x} at a warp-wide instruction")
                    }
                    State::Arrived => "the rest of its warp".into(),
                    State::PartialBarrier => "the rest of its warp at a barrier".into(),
                    State::Ready => match w.waits_on {
                        Some(a) => self.block.mbarrier_text(a),
                        None => "an mbarrier".into(),
                    },
                };
                waiters.push(self.waiter(w, s.pc, s.mask, what));
            }
        }
        let place = waiters
            .first()
            .map(|w: &Waiter| w.place.clone())
            .unwrap_or_default();
        self.fault_at(FaultKind::Deadlock { waiters }, place)
    }
}

impl Block<'_> {
    pub fn place_of(&self, who: Who) -> Place {
        let warp = self.shared.parties.warp(who.warp);
        self.launch
            .place(self.index, Some((warp * 32 + who.lane) as u32), who.pc)
    }

    /// A shared-memory conflict as a fault.
    #[cold]
    pub fn conflict<T>(
        &self,
        (address, conflict): (u32, Conflict),
        access: Access,
        len: u32,
        lane: usize,
    ) -> Exec<T> {
        let address = u64::from(address);
        let kind = match conflict {
            Conflict::Uninitialised => FaultKind::Uninitialised {
                space: Space::Shared,
                address,
                len,
            },
            Conflict::Pending(other) => FaultKind::AsyncPending {
                address,
                access,
                other: self.place_of(other),
            },
            Conflict::Unfenced(other) => FaultKind::MissingProxyFence {
                space: Space::Shared,
                address,
                access,
                other: self.place_of(other),
            },
            Conflict::Race {
                other,
                other_access,
            } => FaultKind::Race {
                space: Space::Shared,
                address,
                access,
                other_access,
                other: self.place_of(other),
            },
        };
        raise(kind, Some(lane))
    }
}
