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

/// The first operand of `wgmma`.
#[derive(Debug)]
pub(crate) enum WgmmaA {
    /// Where it is in shared memory.
    Shared(D),
    Registers {
        regs: [W; 4],
        /// Their numbers among the tracked registers of the kernel.
        slots: Vec<u32>,
    },
}

/// `wgmma.mma_async` with 16 columns of A and 16-bit elements.
#[derive(Debug)]
pub(crate) struct Wgmma {
    pub n: u32,
    pub ty: MmaType,
    /// Accumulators are f16 pairs rather than f32.
    pub acc_f16: bool,
    pub d: Vec<W>,
    pub d_slots: Vec<u32>,
    pub a: WgmmaA,
    pub b: D,
    pub scale_d: (P, bool),
    pub negate_a: bool,
    pub negate_b: bool,
    pub trans_a: bool,
    pub trans_b: bool,
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
    Wgmma(Box<Wgmma>),
    WgmmaFence,
    WgmmaCommit,
    /// Waits until at most this many groups are pending.
    WgmmaWait(u32),
    SetMaxRegisters {
        increase: bool,
        count: u32,
    },
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
    ClusterArrive {
        relaxed: bool,
    },
    ClusterWait,
}

/// The number of the barrier of the cluster, after the sixteen of a block.
pub(crate) const CLUSTER_BARRIER: u32 = 16;

#[derive(Debug)]
pub(crate) struct Bar {
    pub kind: BarKind,
    pub aligned: bool,
    pub id: W,
    pub count: Option<W>,
}

/// The phase a thread waits for.
#[derive(Debug)]
pub(crate) enum Phase {
    /// That of the state of an arrival.
    State(D),
    Parity(W),
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
        phase: Phase,
        /// `try_wait`.
        may_suspend: bool,
    },
    CpAsyncArrive {
        no_inc: bool,
    },
}

/// Which way a bulk copy goes.
#[derive(Debug)]
pub(crate) enum BulkDirection {
    /// From global to shared memory; the mbarrier counts the bytes.
    Load { barrier: Addr },
    /// From shared to global memory, in a bulk group.
    Store,
    /// From global memory into the cache: only its operands are checked.
    Prefetch,
}

/// The global side of a bulk copy.
#[derive(Debug)]
pub(crate) enum BulkGlobal {
    Plain { addr: Addr, size: W },
    Tensor { map: Addr, coordinates: Vec<W> },
}

/// `cp.async.bulk`, with and without a tensor map.
#[derive(Debug)]
pub(crate) struct BulkCopy {
    pub direction: BulkDirection,
    pub shared: Option<Addr>,
    pub global: BulkGlobal,
    /// The blocks of the cluster that receive it.
    pub multicast: Option<W>,
}

/// What a proxy fence makes visible to the asynchronous proxy.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ProxyFence {
    pub shared: bool,
    pub global: bool,
    /// The initialisation of mbarriers.
    pub init: bool,
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
    ProxyFence(ProxyFence),
    Bulk(Box<BulkCopy>),
    BulkCommit,
    BulkWait {
        pending: u32,
        /// Only until the sources have been read.
        read_only: bool,
    },
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
