//! `setmaxnreg`: warpgroups that exchange registers through the pool of their block.
//!
//! The pool begins empty: the registers of a block are those its threads were launched with.

use super::block::Block;
use super::stall::Stall;
use super::warp::Warp;
use super::wgmma::WARPS;
use super::{Exec, raise};
use crate::error::FaultKind;

/// The registers of a multiprocessor.
const FILE: u32 = 64 << 10;
/// Registers of a thread are given in units of this.
const UNIT: u32 = 8;
const MAX_PER_THREAD: u32 = 256;

/// Registers of each thread of a block, when the launch does not say: what a compiler may use that was
/// told the number of threads and nothing else.
pub(super) fn per_thread(threads: u32) -> u32 {
    (FILE / threads.next_multiple_of(32) / UNIT * UNIT).min(MAX_PER_THREAD)
}

/// The `setmaxnreg` instructions of a warpgroup: the program counter of each, and how many each warp has
/// executed.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    executed: Vec<usize>,
    by_warp: [usize; WARPS],
}

impl Warp {
    pub(super) fn set_max_registers(
        &mut self,
        b: &mut Block<'_>,
        increase: bool,
        count: u32,
    ) -> Exec<()> {
        let group = self.warpgroup(b)?;
        let misuse = |text: String| raise(FaultKind::AsyncMisuse(text), Some(0));
        let pool = &mut b.groups[group].pool;
        let turn = pool.by_warp[self.id % WARPS];
        if pool.by_warp.iter().any(|&n| n < turn) {
            return misuse(
                "setmaxnreg again before every warp of the warpgroup has executed the last one"
                    .into(),
            );
        }
        match pool.executed.get(turn) {
            None => pool.executed.push(self.pc),
            Some(&pc) if pc == self.pc => {}
            Some(&pc) => {
                let other = b.launch.place(b.index, None, pc);
                let detail = "they execute different setmaxnreg instructions".to_owned();
                return raise(FaultKind::WarpgroupMismatch { detail, other }, Some(0));
            }
        }
        b.groups[group].pool.by_warp[self.id % WARPS] += 1;
        let have = self.registers;
        if increase && have > count || !increase && have < count {
            let (word, way) = if increase {
                ("inc", "more")
            } else {
                ("dec", "fewer")
            };
            return misuse(format!(
                "setmaxnreg.{word} to {count} registers in a warp that has {way} already: {have}"
            ));
        }
        if increase {
            if !self.take_registers(b, count) {
                self.stall = Some(Stall::Registers { count });
            }
        } else {
            b.free_registers += (have - count) * 32;
            self.registers = count;
        }
        Ok(())
    }

    /// Takes registers from the pool, if there are enough.
    pub(super) fn take_registers(&mut self, b: &mut Block<'_>, count: u32) -> bool {
        let need = (count - self.registers) * 32;
        if need > b.free_registers {
            return false;
        }
        b.free_registers -= need;
        self.registers = count;
        true
    }
}

impl Block<'_> {
    pub fn pool_text(&self, have: u32, count: u32) -> String {
        format!(
            "setmaxnreg.inc from {have} to {count} registers a thread: {} for the warp, and {} are free in the block's pool",
            (count - have) * 32,
            self.free_registers
        )
    }

    /// A warpgroup of which some warps executed more `setmaxnreg` than others, when the block ends: the
    /// instruction.
    pub fn uneven_registers(&self) -> Option<usize> {
        self.groups.iter().find_map(|g| {
            let least = *g.pool.by_warp.iter().min()?;
            g.pool.executed.get(least).copied()
        })
    }
}
