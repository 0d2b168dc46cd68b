//! Operations with resolved operands.

use super::operand::{Addr, MemSpace, Order, Row};
use super::regs::{Alu, D, P, W};

#[derive(Debug)]
pub(crate) struct Load {
    pub space: MemSpace,
    pub order: Order,
    pub addr: Addr,
    /// Bytes per element.
    pub width: u32,
    pub signed: bool,
    /// One to eight destinations; `None` is `_`.
    pub dst: Vec<Option<Row>>,
}

#[derive(Debug)]
pub(crate) struct Store {
    pub space: MemSpace,
    pub order: Order,
    pub addr: Addr,
    pub width: u32,
    pub src: Vec<Row>,
}

/// Old value and operands to new value; 64-bit containers for every width.
pub(crate) type AtomFn = Box<dyn Fn(u64, u64, u64) -> u64 + Send + Sync>;

pub(crate) struct Atom {
    pub space: MemSpace,
    pub order: Order,
    pub addr: Addr,
    pub width: u32,
    pub dst: Option<Row>,
    pub b: Row,
    pub c: Option<Row>,
    pub f: AtomFn,
    /// `add.f32`: in global memory, and there alone, subnormals are flushed.
    pub flush_global: bool,
}

#[derive(Debug)]
pub(crate) struct CpAsync {
    pub dst: Addr,
    pub src: Addr,
    pub size: u32,
    pub src_size: Option<W>,
    pub ignore_src: Option<(P, bool)>,
}

#[derive(Debug)]
pub(crate) struct MatrixMove {
    pub addr: Addr,
    pub trans: bool,
    pub regs: Vec<W>,
    pub store: bool,
}

/// Element type of the operands of `mma`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MmaType {
    F16,
    Bf16,
    Tf32,
    S8,
    U8,
}

#[derive(Debug)]
pub(crate) struct Mma {
    pub k: u32,
    pub a_type: MmaType,
    pub b_type: MmaType,
    /// Accumulators are f16 pairs rather than 32-bit.
    pub acc_f16: bool,
    pub int: bool,
    pub saturate: bool,
    pub d: Vec<W>,
    pub a: Vec<W>,
    pub b: Vec<W>,
    pub c: Vec<W>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ShflMode {
    Up,
    Down,
    Bfly,
    Idx,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReduxOp {
    Add,
    MinS,
    MaxS,
    MinU,
    MaxU,
    And,
    Or,
    Xor,
}

/// Operations on the lanes of a member mask.
#[derive(Debug)]
pub(crate) enum Collective {
    Shfl {
        mode: ShflMode,
        d: Option<W>,
        pred: Option<P>,
        a: W,
        b: W,
        c: W,
    },
    VoteAll {
        d: P,
        p: P,
        neg: bool,
    },
    VoteAny {
        d: P,
        p: P,
        neg: bool,
    },
    VoteUni {
        d: P,
        p: P,
        neg: bool,
    },
    Ballot {
        d: W,
        p: P,
        neg: bool,
    },
    MatchAny {
        d: W,
        a: Row,
    },
    MatchAll {
        d: W,
        pred: Option<P>,
        a: Row,
    },
    Redux {
        op: ReduxOp,
        d: W,
        a: W,
    },
    Elect {
        d: Option<W>,
        p: P,
    },
    Sync,
    Matrix(MatrixMove),
    MovMatrix {
        d: W,
        a: W,
    },
    Mma(Box<Mma>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RedOp {
    And,
    Or,
    Popc,
}

#[derive(Debug)]
pub(crate) enum BarKind {
    Sync,
    Arrive,
    Red {
        op: RedOp,
        p: P,
        neg: bool,
        dw: Option<W>,
        dp: Option<P>,
    },
}

#[derive(Debug)]
pub(crate) struct Bar {
    pub kind: BarKind,
    pub aligned: bool,
    pub id: W,
    pub count: Option<W>,
}

#[derive(Debug)]
pub(crate) enum MbarOp {
    Init {
        count: W,
    },
    Inval,
    /// Arrival; `tx` bytes are expected first.
    Arrive {
        state: Option<D>,
        count: Option<W>,
        tx: Option<W>,
        drop: bool,
        no_complete: bool,
    },
    ExpectTx {
        tx: W,
    },
    CompleteTx {
        tx: W,
    },
    TestWait {
        done: P,
        state: Option<D>,
        parity: Option<W>,
    },
    CpAsyncArrive {
        no_inc: bool,
    },
}

/// One operation.
pub(crate) enum Op {
    Alu(Alu),
    /// `%clock`, `%clock64`, `%globaltimer`: counts the warp-instructions of the block.
    Clock(Row),
    ActiveMask(W),
    Load(Load),
    /// A kernel parameter at a constant offset.
    LoadParam {
        offset: u32,
        width: u32,
        signed: bool,
        dst: Vec<Option<Row>>,
    },
    Store(Store),
    Atom(Box<Atom>),
    CpAsync(Box<CpAsync>),
    CpCommit,
    /// Waits until at most this many groups are pending; `None` is all, uncommitted copies too.
    CpWait(Option<u32>),
    Collective {
        mask: Option<W>,
        op: Collective,
    },
    Bar(Bar),
    Fence,
    Mbar {
        op: MbarOp,
        addr: Addr,
    },
    IsSpace {
        d: P,
        a: Row,
        space: MemSpace,
    },
    Branch {
        target: u32,
    },
    BranchIndexed {
        index: W,
        targets: Vec<u32>,
    },
    Exit,
    Trap,
    /// `__assertfail(message, file, line, function, ...)` with the local offsets of its parameters.
    AssertFail {
        params: Vec<u32>,
    },
    Nop,
}
