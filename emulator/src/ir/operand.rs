//! What instructions name: constants, registers of either width, addresses.

use super::regs::{D, W};

/// A row whose value a warp fills in when it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Const {
    Imm(u64),
    /// Address of a module variable, plus an offset.
    Variable(u32, i64),
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    LaneId,
    WarpId,
    WarpCount,
    LaneMask(LaneMask),
    DynamicShared,
    TotalShared,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum LaneMask {
    Eq,
    Lt,
    Le,
    Gt,
    Ge,
}

/// A register of either width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Row {
    W(W),
    D(D),
}

/// `[base + offset]`
#[derive(Debug, Clone, Copy)]
pub(crate) struct Addr {
    pub base: Row,
    pub offset: i64,
}

/// The state space named by an instruction; generic addresses are resolved per lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MemSpace {
    Generic,
    Global,
    Shared,
    Local,
    Const,
    Param,
}

/// Memory semantics that matter to the race detector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    Weak,
    /// `.volatile`, `.relaxed`: may race with its like.
    Relaxed,
    Acquire,
    Release,
    AcqRel,
}
