//! What a launch counted.

use std::collections::BTreeMap;
use std::fmt;

/// The classes by which instructions are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Class {
    /// Integer arithmetic, logic and shifts.
    Integer,
    /// `f32` arithmetic and comparison.
    F32,
    /// `f64` arithmetic and comparison.
    F64,
    /// `f16` and `bf16` arithmetic, scalar and packed.
    Half,
    /// `ex2`, `lg2`, `rcp`, `rsqrt`, `sqrt`, `sin`, `cos`, `tanh` and divisions.
    Mufu,
    /// `cvt` and its kin.
    Convert,
    /// `mov`, `selp`, `prmt`-free packing, address conversion.
    Move,
    /// Predicate logic.
    Predicate,
    /// Loads of global memory.
    LoadGlobal,
    /// Stores to global memory.
    StoreGlobal,
    /// Loads of shared memory.
    LoadShared,
    /// Stores to shared memory.
    StoreShared,
    /// Loads and stores of local memory.
    Local,
    /// Loads of parameters and constants.
    LoadConst,
    /// Loads and stores by generic address.
    Generic,
    /// Atomics and reductions on memory.
    Atomic,
    /// Shuffles.
    Shuffle,
    /// Votes, matches, warp reductions, elections.
    Vote,
    /// Barriers and mbarriers.
    Barrier,
    /// Fences.
    Fence,
    /// Branches, calls, returns, exits.
    Branch,
    /// Matrix multiply-accumulate.
    Tensor,
    /// `ldmatrix`, `stmatrix`, `movmatrix`.
    MatrixMove,
    /// Asynchronous copies, their commits and waits.
    AsyncCopy,
    /// Everything else.
    Other,
}

/// How often an instruction was issued, and by how many lanes in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Warp-instructions.
    pub warps: u64,
    /// Lane-instructions: the active lanes, summed.
    pub lanes: u64,
}

impl std::ops::AddAssign for Count {
    fn add_assign(&mut self, o: Count) {
        self.warps += o.warps;
        self.lanes += o.lanes;
    }
}

/// The counters of one launch. They do not depend on the number of host threads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Kernel name.
    pub kernel: String,
    /// Blocks run.
    pub blocks: u64,
    /// All instructions.
    pub total: Count,
    /// Instructions by class.
    pub by_class: BTreeMap<Class, Count>,
    /// Instructions by opcode with its modifiers, as the PTX writes it.
    pub by_mnemonic: BTreeMap<String, Count>,
    /// Instructions by PTX line.
    pub by_line: BTreeMap<u32, Count>,
    /// Requests to shared memory (warp-instructions, `ldmatrix` and `stmatrix` included).
    pub shared_requests: u64,
    /// Wavefronts those took.
    pub shared_wavefronts: u64,
    /// Wavefronts beyond the fewest that each request's width needs: bank conflicts.
    pub bank_conflicts: u64,
    /// Bank conflicts by PTX line, where there were any.
    pub conflicts_by_line: BTreeMap<u32, u64>,
    /// Load requests to global memory (asynchronous copies included).
    pub global_load_requests: u64,
    /// 32-byte sectors those touched.
    pub global_load_sectors: u64,
    /// Bytes those asked for.
    pub global_load_bytes: u64,
    /// Store (and reduction) requests to global memory.
    pub global_store_requests: u64,
    /// 32-byte sectors those touched.
    pub global_store_sectors: u64,
    /// Bytes those wrote.
    pub global_store_bytes: u64,
    /// Floating-point operations of the tensor cores (a multiply and an add are two).
    pub tensor_flops: u64,
    /// Branches at which a warp diverged.
    pub divergent_branches: u64,
}

impl Report {
    /// The count of a class; zero if none was issued.
    pub fn class(&self, class: Class) -> Count {
        self.by_class.get(&class).copied().unwrap_or_default()
    }

    /// The sum over the mnemonics that begin with `prefix`, e.g. `"mma.sync"`.
    pub fn mnemonic(&self, prefix: &str) -> Count {
        let mut c = Count::default();
        for (_, v) in self
            .by_mnemonic
            .iter()
            .filter(|(k, _)| k.starts_with(prefix))
        {
            c += *v;
        }
        c
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {} blocks", self.kernel, self.blocks)?;
        writeln!(
            f,
            "{:<14} {:>14} {:>16}",
            "class", "warp-instr", "lane-instr"
        )?;
        for (class, c) in &self.by_class {
            let name = format!("{class:?}");
            writeln!(f, "{name:<14} {:>14} {:>16}", c.warps, c.lanes)?;
        }
        let t = self.total;
        writeln!(f, "{:<14} {:>14} {:>16}", "total", t.warps, t.lanes)?;
        writeln!(
            f,
            "shared: {} requests, {} wavefronts, {} from bank conflicts",
            self.shared_requests, self.shared_wavefronts, self.bank_conflicts
        )?;
        writeln!(
            f,
            "global loads: {} requests, {} sectors, {} bytes",
            self.global_load_requests, self.global_load_sectors, self.global_load_bytes
        )?;
        writeln!(
            f,
            "global stores: {} requests, {} sectors, {} bytes",
            self.global_store_requests, self.global_store_sectors, self.global_store_bytes
        )?;
        write!(
            f,
            "tensor: {} FLOP; divergent branches: {}",
            self.tensor_flops, self.divergent_branches
        )
    }
}
