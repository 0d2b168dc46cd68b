//! Runs decoded kernels: blocks in parallel on host threads, the warps of a block interleaved.

mod access;
mod alu;
mod barrier;
mod block;
mod collective;
mod copy;
mod counters;
mod global_race;
mod matrix;
mod mbarrier;
mod rng;
mod shared;
mod warp;

use crate::decode::Program;
use crate::fault::{Fault, FaultKind, Place};
use crate::memory::{Allocation, Memory};
use crate::module::LaunchConfig;
use crate::report::Report;
use block::Block;
use counters::Counters;
use global_race::GlobalRaces;
use rayon::prelude::*;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

/// Generic addresses of shared memory begin here.
pub const SHARED_WINDOW: u64 = 1 << 56;
/// Generic addresses of local memory begin here.
pub const LOCAL_WINDOW: u64 = 2 << 56;
/// Generic addresses of kernel parameters begin here.
pub const PARAM_WINDOW: u64 = 3 << 56;
/// Bytes of a window.
pub const WINDOW: u64 = 1 << 56;

/// The most shared memory a block may have: that of the largest devices.
const MAX_SHARED: u64 = 227 * 1024;

/// What all blocks of a launch share.
pub struct Launch<'a> {
    pub program: &'a Program,
    pub memory: &'a Memory,
    pub allocations: Vec<Arc<Allocation>>,
    /// Addresses of module variables, by the program's numbers.
    pub variables: Vec<u64>,
    pub config: &'a LaunchConfig,
    pub params: &'a [u8],
    pub shared_bytes: u64,
    pub races: GlobalRaces,
    /// The lowest block that faulted: later ones need not run.
    stop: AtomicU32,
}

/// A fault before it is told where it stands.
#[derive(Debug)]
pub struct Trouble {
    pub kind: FaultKind,
    pub lane: Option<u32>,
}

pub type Outcome<T> = Result<T, Box<Trouble>>;

/// A fault of one lane.
pub fn trouble<T>(kind: FaultKind, lane: u32) -> Outcome<T> {
    Err(Box::new(Trouble {
        kind,
        lane: Some(lane),
    }))
}

impl Launch<'_> {
    /// Names a place in the program.
    pub fn place(&self, pc: u32, block: Option<u32>, thread: Option<u32>) -> Place {
        let split = |i: u32, d: (u32, u32, u32)| {
            let (x, y) = (d.0.max(1), d.1.max(1));
            (i % x, i / x % y, i / x / y)
        };
        let info = self.program.info.get(pc as usize);
        Place {
            instruction: info.map(|i| i.text.clone()).unwrap_or_default(),
            ptx_line: info.map_or(0, |i| i.line),
            source: info
                .and_then(|i| i.loc)
                .and_then(|(f, l)| Some((self.program.files.get(&f)?.clone(), l))),
            block: block.map(|b| split(b, self.config.grid)),
            thread: thread.map(|t| split(t, self.config.block)),
        }
    }

    fn validate(&self) -> Result<u32, String> {
        let (g, b) = (self.config.grid, self.config.block);
        let count = |d: (u32, u32, u32)| u64::from(d.0) * u64::from(d.1) * u64::from(d.2);
        let product = |d: (u32, u32, u32)| {
            if d.0 == 0 || d.1 == 0 || d.2 == 0 {
                None
            } else {
                (u64::from(d.0) * u64::from(d.1)).checked_mul(u64::from(d.2))
            }
        };
        let blocks = product(g)
            .filter(|&n| n < 1 << 26 && g.1 <= 65535 && g.2 <= 65535)
            .ok_or_else(|| format!("a grid of {g:?}"))?;
        product(b)
            .filter(|&n| n <= 1024 && b.2 <= 64)
            .ok_or_else(|| format!("blocks of {b:?} threads"))?;
        if self.shared_bytes > MAX_SHARED {
            return Err(format!(
                "{} bytes of shared memory, more than the {MAX_SHARED} that any device has",
                self.shared_bytes
            ));
        }
        if let Some(r) = self.program.required_block
            && (r[0], r[1], r[2]) != b
        {
            return Err(format!("the kernel requires blocks of {r:?} threads"));
        }
        if let Some(m) = self.program.max_block {
            let most: u64 = m.iter().map(|&x| u64::from(x)).product();
            if count(b) > most {
                return Err(format!(
                    "the kernel allows at most {most} threads in a block"
                ));
            }
        }
        Ok(blocks as u32)
    }
}

pub fn launch(
    program: &Program,
    memory: &Memory,
    variables: &HashMap<String, u64>,
    config: &LaunchConfig,
    params: &[u8],
) -> Result<Report, Box<Fault>> {
    let allocations = memory.snapshot();
    let races = GlobalRaces::new(&allocations, config.checks.global_races);
    let launch = Launch {
        program,
        memory,
        allocations,
        variables: program
            .variables
            .iter()
            .map(|n| variables.get(n).copied().unwrap_or(0))
            .collect(),
        config,
        params,
        shared_bytes: program.static_shared + u64::from(config.shared_bytes),
        races,
        stop: AtomicU32::new(u32::MAX),
    };
    let blocks = launch.validate().map_err(|s| {
        Box::new(Fault {
            kind: FaultKind::InvalidLaunch(s),
            kernel: program.kernel.clone(),
            place: Place::default(),
        })
    })?;
    launch.races.set_blocks(blocks);
    let first: Mutex<Option<(u32, Box<Fault>)>> = Mutex::new(None);
    // Racing blocks would make other faults a matter of luck, so of several the lowest block's
    // is reported.
    let counters = (0..blocks)
        .into_par_iter()
        .with_max_len(1)
        .fold(
            || Counters::new(program.code.len()),
            |mut counters, index| {
                if index > launch.stop.load(Ordering::Relaxed) {
                    return counters;
                }
                if let Err(fault) = Block::new(&launch, index, &mut counters).run() {
                    launch.stop.fetch_min(index, Ordering::Relaxed);
                    if let Ok(mut first) = first.lock()
                        && first.as_ref().is_none_or(|(b, _)| *b > index)
                    {
                        *first = Some((index, fault));
                    }
                }
                counters
            },
        )
        .reduce(|| Counters::new(program.code.len()), Counters::merge);
    if let Some(fault) = launch.races.fault(&launch) {
        return Err(fault);
    }
    if let Some((_, fault)) = first.into_inner().ok().flatten() {
        return Err(fault);
    }
    Ok(counters.report(program, u64::from(blocks)))
}
