//! One launch: validation, blocks in parallel, counters summed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use super::block::{BlockRun, Progress};
use super::global::{GlobalRaces, MAX_BLOCKS};
use super::regs_pool::per_thread;
use super::rng::Rng;
use crate::config::LaunchConfig;
use crate::error::{Fault, Place};
use crate::ir::Kernel;
use crate::memory::{Memory, Snapshot};
use crate::report::{Counters, Line, Report};

/// Warp-instructions a block runs before its worker turns to another block, so that blocks that
/// wait for each other through memory make progress.
const SLICE: u64 = 2_000_000;
/// Blocks one worker keeps in flight.
const RESIDENT: usize = 64;

/// What all blocks of a launch share.
pub(crate) struct Launch<'a> {
    pub kernel: &'a Kernel,
    pub config: &'a LaunchConfig,
    pub params: Vec<u8>,
    pub memory: Snapshot,
    pub variables: Arc<Vec<u64>>,
    pub races: Option<GlobalRaces>,
    pub shared_bytes: u32,
    pub threads: u32,
    pub warps: u32,
    /// Registers of each thread.
    pub registers: u32,
}

impl Launch<'_> {
    pub fn block_index(&self, linear: u64) -> (u32, u32, u32) {
        let (x, y, _) = self.config.grid;
        let (x, y) = (u64::from(x), u64::from(y));
        (
            (linear % x) as u32,
            (linear / x % y) as u32,
            (linear / x / y) as u32,
        )
    }

    pub fn thread_index(&self, linear: u32) -> (u32, u32, u32) {
        let (x, y, _) = self.config.block;
        (linear % x, linear / x % y, linear / x / y)
    }

    pub fn place(&self, block: (u32, u32, u32), thread: Option<u32>, pc: usize) -> Place {
        let meta = self.kernel.meta.get(pc);
        Place {
            block,
            thread: thread.map(|t| self.thread_index(t)),
            ptx_line: meta.map_or(0, |m| m.line),
            instruction: meta.map_or_else(String::new, |m| m.text.clone()),
            source: meta.and_then(|m| m.source.clone()),
        }
    }
}

/// Runs a kernel.
pub(crate) fn launch(
    kernel: &Kernel,
    memory: &Memory,
    variables: Arc<Vec<u64>>,
    config: &LaunchConfig,
    params: &[u8],
    limits: (Option<u32>, Option<(u32, u32, u32)>),
) -> Result<Report, Box<Fault>> {
    let bad = |m: String| Err(Fault::bad_launch(&kernel.name, m));
    let (gx, gy, gz) = config.grid;
    let (bx, by, bz) = config.block;
    let threads = u64::from(bx) * u64::from(by) * u64::from(bz);
    if gx == 0 || gy == 0 || gz == 0 || gx > i32::MAX as u32 || gy > 65535 || gz > 65535 {
        return bad(format!("a grid of ({gx},{gy},{gz}) blocks"));
    }
    if threads == 0 || threads > 1024 || bz > 64 {
        return bad(format!("a block of ({bx},{by},{bz}) threads"));
    }
    if let Some(max) = limits.0
        && threads > u64::from(max)
    {
        return bad(format!(
            "{threads} threads in a block; the kernel was compiled for at most {max}"
        ));
    }
    if let Some(required) = limits.1
        && required != config.block
    {
        return bad(format!(
            "a block of {:?}; the kernel requires {required:?}",
            config.block
        ));
    }
    let shared_bytes = kernel.static_shared.saturating_add(config.shared_bytes);
    if shared_bytes > config.shared_limit {
        return bad(format!(
            "{shared_bytes} bytes of shared memory; the limit is {}",
            config.shared_limit
        ));
    }
    if params.len() != kernel.param_bytes as usize {
        return bad(format!(
            "{} bytes of parameters; the kernel takes {} ({})",
            params.len(),
            kernel.param_bytes,
            kernel
                .params
                .iter()
                .map(|p| format!("{} at {}", p.name, p.offset))
                .collect::<Vec<_>>()
                .join(", ")
        ));
    }
    let blocks = u64::from(gx) * u64::from(gy) * u64::from(gz);
    let memory = memory.snapshot();
    // Beyond that many blocks the shadow has no room to name them.
    let race_check = config.checks.global_races && blocks > 1 && blocks <= MAX_BLOCKS;
    let launch = Launch {
        kernel,
        config,
        params: params.to_vec(),
        races: race_check.then(|| GlobalRaces::new(&memory, kernel.global_grain)),
        memory,
        variables,
        shared_bytes,
        threads: threads as u32,
        warps: threads.div_ceil(32) as u32,
        registers: config
            .registers
            .or(kernel.max_registers)
            .unwrap_or_else(|| per_thread(threads as u32)),
    };
    let counters = run_blocks(&launch, blocks)?;
    Ok(report(&launch, blocks, counters))
}

/// Sums of all blocks.
struct Totals {
    counters: Vec<Counters>,
    retries: u64,
}

fn run_blocks(launch: &Launch<'_>, blocks: u64) -> Result<Totals, Box<Fault>> {
    let total = Mutex::new(Totals {
        counters: vec![Counters::default(); launch.kernel.code.len()],
        retries: 0,
    });
    let fault: Mutex<Option<(u64, Box<Fault>)>> = Mutex::new(None);
    let stop = AtomicBool::new(false);
    let next = AtomicUsize::new(0);
    let order = Order::new(blocks, launch.config.seed);
    let worker = || {
        let mut sum = Totals {
            counters: vec![Counters::default(); launch.kernel.code.len()],
            retries: 0,
        };
        let mut resident: VecDeque<(u64, BlockRun<'_>)> = VecDeque::new();
        let mut more = true;
        while !stop.load(Relaxed) {
            // A new block before an old one that waits.
            let mut run = None;
            if more && resident.len() < RESIDENT {
                let n = next.fetch_add(1, Relaxed) as u64;
                more = n < blocks;
                if more {
                    let linear = order.nth(n);
                    run = Some((n, BlockRun::new(launch, linear)));
                }
            }
            let Some((n, mut block)) = run.or_else(|| resident.pop_front()) else {
                break;
            };
            match block.run(SLICE) {
                Ok(Progress::Done) => block.add_to(&mut sum.counters, &mut sum.retries),
                Ok(Progress::More) => resident.push_back((n, block)),
                Err(f) => {
                    let mut slot = fault.lock().unwrap_or_else(|e| e.into_inner());
                    // Of the faults found, the one of the earliest block in launch order.
                    if slot.as_ref().is_none_or(|(m, _)| n < *m) {
                        *slot = Some((n, f));
                    }
                    stop.store(true, Relaxed);
                }
            }
        }
        let mut total = total.lock().unwrap_or_else(|e| e.into_inner());
        for (a, b) in total.counters.iter_mut().zip(&sum.counters) {
            *a += *b;
        }
        total.retries += sum.retries;
    };
    let threads = match launch.config.threads {
        0 => rayon::current_num_threads(),
        n => n,
    };
    let threads = (threads as u64).min(blocks).max(1) as usize;
    if threads == 1 {
        worker();
    } else {
        rayon::scope(|s| {
            for _ in 0..threads {
                s.spawn(|_| worker());
            }
        });
    }
    match fault.into_inner().unwrap_or_else(|e| e.into_inner()) {
        Some((_, f)) => Err(f),
        None => Ok(total.into_inner().unwrap_or_else(|e| e.into_inner())),
    }
}

/// A seeded order of the blocks that needs no table: an affine map modulo the number of blocks.
struct Order {
    blocks: u64,
    step: u64,
    start: u64,
}

impl Order {
    fn new(blocks: u64, seed: u64) -> Self {
        let mut rng = Rng::new(seed, 0x000b_10c5);
        let start = rng.next() % blocks;
        let mut step = (rng.next() % blocks) | 1;
        while gcd(step, blocks) != 1 {
            step += 1;
        }
        Self {
            blocks,
            step,
            start,
        }
    }

    fn nth(&self, n: u64) -> u64 {
        ((u128::from(n) * u128::from(self.step) + u128::from(self.start)) % u128::from(self.blocks))
            as u64
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn report(launch: &Launch<'_>, blocks: u64, totals: Totals) -> Report {
    let kernel = launch.kernel;
    let lines = kernel
        .meta
        .iter()
        .zip(&totals.counters)
        .filter(|(_, c)| c.warp_instructions > 0)
        .map(|(m, c)| Line {
            ptx_line: m.line,
            source: m.source.clone(),
            mnemonic: m.mnemonic.clone(),
            instruction: m.text.clone(),
            class: m.class,
            counters: *c,
        })
        .collect();
    Report {
        kernel: kernel.name.clone(),
        blocks,
        threads: blocks * u64::from(launch.threads),
        virtual_registers: kernel.registers,
        shared_bytes: launch.shared_bytes,
        lines,
        mbarrier_retries: totals.retries,
    }
}
