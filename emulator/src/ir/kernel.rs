//! A kernel as a list of instructions.

use super::op::Op;
use super::operand::Const;
use super::regs::{D, P, W};
use crate::report::Class;

/// No reconvergence point, no file, ...
pub(crate) const NONE: u32 = u32::MAX;

/// One kernel parameter in the parameter bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParamInfo {
    /// Its name in the PTX.
    pub name: String,
    /// Offset in the parameter bytes.
    pub offset: u32,
    /// Size in bytes.
    pub size: u32,
    /// Alignment in bytes.
    pub align: u32,
}

/// An operation with its predicate.
pub(crate) struct Inst {
    pub op: Op,
    pub guard: Option<(P, bool)>,
    /// Where lanes that part here meet again.
    pub reconverge: u32,
    /// The registers it reads or writes that are accumulators or fragments of A of some `wgmma`, by their
    /// numbers among these.
    pub tracked: Box<[u32]>,
}

/// What the report and faults need of an instruction.
#[derive(Debug, Clone)]
pub(crate) struct Meta {
    pub line: u32,
    pub source: Option<String>,
    pub mnemonic: String,
    pub text: String,
    pub class: Class,
}

/// A kernel ready to run.
pub(crate) struct Kernel {
    pub name: String,
    pub params: Vec<ParamInfo>,
    pub param_bytes: u32,
    pub code: Vec<Inst>,
    pub meta: Vec<Meta>,
    pub w_rows: u32,
    pub d_rows: u32,
    pub p_rows: u32,
    pub w_consts: Vec<(W, Const)>,
    pub d_consts: Vec<(D, Const)>,
    pub static_shared: u32,
    pub local_bytes: u32,
    /// Smallest access to shared and to global memory: the grain of the race shadows.
    pub shared_grain: u32,
    pub global_grain: u32,
    pub registers: u32,
    /// `.maxnreg`.
    pub max_registers: Option<u32>,
    /// Whether it has instructions of asynchronous units: bulk copies, tensor operations of warpgroups.
    pub units: bool,
}
