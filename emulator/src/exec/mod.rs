//! Execution: launches, blocks, warps and their memories.

mod address;
mod atomics;
mod banks;
mod barrier;
mod block;
mod bulk;
mod collective;
mod copy;
mod divergence;
mod global;
mod global_access;
mod launch;
mod load_store;
mod mbarrier;
mod regs_pool;
mod rng;
mod shared;
mod special;
mod stall;
mod step;
mod tensor;
mod warp;
mod warps_global;
mod wgmma;

pub(crate) use launch::launch;

use crate::error::FaultKind;

/// A fault on its way up; the warp loop adds kernel, block and instruction.
#[derive(Debug)]
pub(crate) struct Raised {
    pub kind: FaultKind,
    pub lane: Option<usize>,
}

pub(crate) type Exec<T> = Result<T, Box<Raised>>;

#[cold]
pub(crate) fn raise<T>(kind: FaultKind, lane: Option<usize>) -> Exec<T> {
    Err(Box::new(Raised { kind, lane }))
}
