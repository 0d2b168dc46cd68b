//! One warp: lanes that run together, part at branches and meet again.
//!
//! A warp is a set of splits, each a program counter with the lanes there. A divergent branch makes two
//! splits and a meeting point at its immediate post-dominator; splits that arrive there wait and merge.
//! Splits take turns, so lanes that wait for other lanes of their warp do not hang it.

use super::Exec;
use super::block::Block;
use super::copy::PendingCopy;
use super::divergence::{Meeting, PATIENCE, Split, State};
use super::mbarrier::PhaseWait;
use super::special::constant;
use super::stall::Stall;
use super::wgmma::WarpTensor;
use crate::ir::regs::{FULL, LANES, Regs};
use crate::ir::{NONE, Row};

pub(crate) struct Warp {
    pub id: usize,
    pub regs: Regs,
    pub live: u32,
    pub splits: Vec<Split>,
    pub(super) meetings: Vec<Meeting>,
    pub(super) free: Vec<u32>,
    /// Local memory, lane after lane.
    pub local: Vec<u8>,
    pub local_bytes: u32,
    pub copies: Vec<PendingCopy>,
    /// Groups each lane has committed.
    pub groups: [u32; LANES],
    /// Bulk groups each lane has committed.
    pub bulk_groups: [u32; LANES],
    /// Bulk copies to global memory that the warp has issued.
    pub bulk_copies: u32,
    pub tensor: WarpTensor,
    /// Lanes that have arrived at the barrier of the cluster and not waited, and its generation then.
    pub cluster_arrived: u32,
    pub cluster_generation: [u64; LANES],
    /// What the whole warp waits for.
    pub stall: Option<Stall>,
    /// Registers of each thread (`setmaxnreg`).
    pub registers: u32,
    /// Program counter of the instruction in execution, for faults.
    pub pc: usize,
    pub(super) patience: u64,
    pub failed_waits: u32,
    /// The block's progress when a wait last failed.
    pub seen: u64,
    /// What the last failed wait was for.
    pub waits_on: Option<PhaseWait>,
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
            bulk_groups: [0; LANES],
            bulk_copies: 0,
            tensor: WarpTensor::default(),
            cluster_arrived: 0,
            cluster_generation: [0; LANES],
            stall: None,
            registers: launch.registers,
            pc: 0,
            patience: PATIENCE,
            failed_waits: 0,
            seen: 0,
            waits_on: None,
        }
    }

    pub fn has_ready(&self) -> bool {
        self.stall.is_none() && self.splits.iter().any(|s| s.state == State::Ready)
    }

    /// Lets go splits whose barrier completed; whether anything can run.
    pub fn wake(&mut self, b: &mut Block<'_>) -> bool {
        if self.stall.is_some() && !self.resume(b) {
            return false;
        }
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

    /// Runs up to `quantum` instructions.
    pub fn run(&mut self, b: &mut Block<'_>, quantum: u32) -> Exec<()> {
        let mut left = quantum;
        while left > 0 && self.stall.is_none() {
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

    /// A row as 64-bit values.
    pub fn wide(&self, r: Row) -> [u64; LANES] {
        match r {
            Row::W(w) => self.regs.w(w).map(u64::from),
            Row::D(d) => *self.regs.d(d),
        }
    }
}
