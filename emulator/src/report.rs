//! Counters of a launch. All are sums over warps, so they do not depend on host threads.

use std::fmt;

/// Instruction classes, roughly the units that execute them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Class {
    /// Integer arithmetic, logic, shifts and comparisons.
    Integer,
    /// Single-precision arithmetic and comparisons.
    F32,
    /// Double-precision arithmetic and comparisons.
    F64,
    /// Half-precision and bfloat16 arithmetic, scalar and packed.
    Half,
    /// Special functions: `ex2`, `lg2`, `rcp`, `rsqrt`, `sqrt`, `sin`, `cos`, `tanh`.
    Special,
    /// Conversions between types.
    Convert,
    /// Moves, selections and address conversions.
    Move,
    /// Loads of parameters and constants.
    LoadConst,
    /// Global loads.
    LoadGlobal,
    /// Global stores.
    StoreGlobal,
    /// Shared loads.
    LoadShared,
    /// Shared stores.
    StoreShared,
    /// Local loads and stores.
    Local,
    /// Loads and stores through generic addresses.
    Generic,
    /// Atomics and reductions on memory.
    Atomic,
    /// `ldmatrix`, `stmatrix` and `movmatrix`.
    Matrix,
    /// Tensor-core multiply-accumulate.
    Tensor,
    /// Asynchronous copies and their commits and waits.
    AsyncCopy,
    /// Warp shuffles.
    Shuffle,
    /// Votes, matches and warp reductions.
    Vote,
    /// Barriers and fences, `mbarrier` included.
    Barrier,
    /// Branches, calls and exits.
    Branch,
    /// The rest: hints and sleeps.
    Other,
}

impl Class {
    /// Every class, in report order.
    pub const ALL: [Self; 23] = [
        Self::Integer,
        Self::F32,
        Self::F64,
        Self::Half,
        Self::Special,
        Self::Convert,
        Self::Move,
        Self::LoadConst,
        Self::LoadGlobal,
        Self::StoreGlobal,
        Self::LoadShared,
        Self::StoreShared,
        Self::Local,
        Self::Generic,
        Self::Atomic,
        Self::Matrix,
        Self::Tensor,
        Self::AsyncCopy,
        Self::Shuffle,
        Self::Vote,
        Self::Barrier,
        Self::Branch,
        Self::Other,
    ];
}

/// Counters of one PTX instruction, or a sum of several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Times a warp executed it (one with no lane left by its predicate counts too).
    pub warp_instructions: u64,
    /// Lanes that executed it.
    pub lane_instructions: u64,
    /// Shared-memory requests (warp-level).
    pub shared_requests: u64,
    /// Wavefronts those requests took.
    pub shared_wavefronts: u64,
    /// Wavefronts beyond what the width of the requests needs: bank conflicts.
    pub bank_conflicts: u64,
    /// Global-memory requests (warp-level).
    pub global_requests: u64,
    /// 32-byte sectors those requests touched.
    pub global_sectors: u64,
    /// Bytes the lanes asked for.
    pub global_bytes: u64,
    /// Bytes of the boxes and ranges that bulk copies moved, those outside a tensor too.
    pub bulk_bytes: u64,
    /// Tensor-core floating-point operations (a multiply-add is two).
    pub tensor_flops: u64,
}

impl std::ops::AddAssign for Counters {
    fn add_assign(&mut self, o: Self) {
        self.warp_instructions += o.warp_instructions;
        self.lane_instructions += o.lane_instructions;
        self.shared_requests += o.shared_requests;
        self.shared_wavefronts += o.shared_wavefronts;
        self.bank_conflicts += o.bank_conflicts;
        self.global_requests += o.global_requests;
        self.global_sectors += o.global_sectors;
        self.global_bytes += o.global_bytes;
        self.bulk_bytes += o.bulk_bytes;
        self.tensor_flops += o.tensor_flops;
    }
}

/// One PTX instruction with its counters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Line in the PTX text.
    pub ptx_line: u32,
    /// `file:line` of the source, with `-lineinfo`.
    pub source: Option<String>,
    /// The opcode with its modifiers, for example `ld.global.v4.u32`.
    pub mnemonic: String,
    /// The instruction as text.
    pub instruction: String,
    /// Its class.
    pub class: Class,
    /// Its counters.
    pub counters: Counters,
}

/// What a launch did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Name of the kernel.
    pub kernel: String,
    /// Blocks that ran.
    pub blocks: u64,
    /// Threads that ran.
    pub threads: u64,
    /// Registers the PTX declares and uses, as 32-bit units; not what ptxas would allocate.
    pub virtual_registers: u32,
    /// Shared memory of a block, static and dynamic.
    pub shared_bytes: u32,
    /// Every executed PTX instruction, in program order.
    pub lines: Vec<Line>,
    /// Times an mbarrier wait found its phase incomplete. The order of warps decides this.
    pub mbarrier_retries: u64,
}

impl Report {
    /// The sum over all instructions.
    pub fn total(&self) -> Counters {
        self.sum(|_| true)
    }

    /// The sum over one class.
    pub fn class(&self, class: Class) -> Counters {
        self.sum(|l| l.class == class)
    }

    /// The sum over instructions whose opcode is `prefix` or begins with `prefix` and a dot.
    pub fn mnemonic(&self, prefix: &str) -> Counters {
        self.sum(|l| {
            l.mnemonic
                .strip_prefix(prefix)
                .is_some_and(|r| r.is_empty() || r.starts_with('.'))
        })
    }

    /// The instructions executed most, at most `n`.
    pub fn hottest(&self, n: usize) -> Vec<&Line> {
        let mut lines: Vec<&Line> = self.lines.iter().collect();
        lines.sort_by_key(|l| (std::cmp::Reverse(l.counters.warp_instructions), l.ptx_line));
        lines.truncate(n);
        lines
    }

    /// Warp-instructions per source line, most executed first; empty without `-lineinfo`.
    pub fn by_source(&self) -> Vec<(String, Counters)> {
        let mut map = std::collections::BTreeMap::<&str, Counters>::new();
        for l in &self.lines {
            if let Some(s) = &l.source {
                *map.entry(s).or_default() += l.counters;
            }
        }
        let mut v: Vec<_> = map.into_iter().map(|(k, c)| (k.to_owned(), c)).collect();
        v.sort_by_key(|(_, c)| std::cmp::Reverse(c.warp_instructions));
        v
    }

    fn sum(&self, keep: impl Fn(&Line) -> bool) -> Counters {
        let mut total = Counters::default();
        for l in self.lines.iter().filter(|l| keep(l)) {
            total += l.counters;
        }
        total
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let t = self.total();
        writeln!(
            f,
            "{}: {} blocks, {} threads, {} bytes shared, {} warp-instructions, {} lane-instructions",
            self.kernel,
            self.blocks,
            self.threads,
            self.shared_bytes,
            t.warp_instructions,
            t.lane_instructions
        )?;
        for class in Class::ALL {
            let c = self.class(class);
            if c.warp_instructions > 0 {
                let share = 100.0 * c.warp_instructions as f64 / t.warp_instructions.max(1) as f64;
                writeln!(
                    f,
                    "  {:<12} {:>12} warp  {:>5.1}%",
                    format!("{class:?}"),
                    c.warp_instructions,
                    share
                )?;
            }
        }
        if t.shared_requests > 0 {
            writeln!(
                f,
                "  shared: {} requests, {} wavefronts, {} of them bank conflicts",
                t.shared_requests, t.shared_wavefronts, t.bank_conflicts
            )?;
        }
        if t.global_requests > 0 {
            writeln!(
                f,
                "  global: {} requests, {} sectors ({:.2} per request), {} bytes asked",
                t.global_requests,
                t.global_sectors,
                t.global_sectors as f64 / t.global_requests as f64,
                t.global_bytes
            )?;
        }
        if t.bulk_bytes > 0 {
            writeln!(f, "  bulk copies: {} bytes", t.bulk_bytes)?;
        }
        if t.tensor_flops > 0 {
            writeln!(f, "  tensor: {} flop", t.tensor_flops)?;
        }
        Ok(())
    }
}
