//! The decoded form that the executor runs.

use crate::ast;
use crate::report::Class;
use std::collections::HashMap;
use std::fmt;

/// Lanes of a warp.
pub const LANES: usize = 32;
/// A register of a warp: one value per lane, zero-extended.
pub type Row = [u64; LANES];

/// A pure function of up to four rows.
pub type Alu = Box<dyn Fn(&Row, &Row, &Row, &Row, &mut Row) + Send + Sync>;
/// A comparison of two rows: one bit per lane.
pub type Compare = Box<dyn Fn(&Row, &Row) -> u32 + Send + Sync>;
/// A scalar function of two values, for atomics and warp reductions.
pub type Scalar = Box<dyn Fn(u64, u64) -> u64 + Send + Sync>;

/// What a comparison's result is combined with, and how.
pub type Combine = Option<(fn(u32, u32) -> u32, PSrc)>;

/// A source operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Src {
    /// A register of the function.
    Reg(u32),
    /// An entry of the constant pool.
    Const(u32),
    Special(Special),
    /// The generic address of a byte of the frame.
    Frame(u64),
    /// The address of a module variable, plus an offset.
    Variable(u32, i64),
}

/// A predicate operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PSrc {
    /// `u32::MAX` is the constant true.
    pub index: u32,
    pub not: bool,
}

/// Special registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    LaneId,
    WarpId,
    NWarpId,
    SmId,
    NSmId,
    GridId,
    /// Masks of lanes relative to this one.
    LaneMask(MaskKind),
    Clock,
    Clock64,
    GlobalTimer,
    DynamicShared,
    TotalShared,
    ClusterId(u8),
    NClusterId(u8),
    ClusterCtaId(u8),
    ClusterNCtaId(u8),
    ClusterCtaRank,
    ClusterNCtaRank,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaskKind {
    Eq,
    Le,
    Lt,
    Ge,
    Gt,
}

/// Address spaces as instructions name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mem {
    Generic,
    Global,
    Shared,
    Local,
    Const,
    /// Kernel parameters; those of functions live in the frame.
    Param,
}

/// An address operand.
#[derive(Clone, Copy, Debug)]
pub struct Address {
    pub base: Src,
    pub offset: i64,
}

/// Ordering of a memory operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Order {
    /// `.volatile`, `.relaxed`, `.acquire`, `.release` and atomics: exempt among themselves.
    pub strong: bool,
    pub acquire: bool,
    pub release: bool,
}

/// A vector load or store.
#[derive(Debug)]
pub struct Access {
    pub mem: Mem,
    pub address: Address,
    /// Bytes of an element.
    pub bytes: u32,
    pub signed: bool,
    pub order: Order,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShflMode {
    Up,
    Down,
    Bfly,
    Idx,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VoteMode {
    All,
    Any,
    Uni,
    Ballot,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduce {
    And,
    Or,
    Popc,
}

/// CTA barriers.
#[derive(Clone, Copy, Debug)]
pub struct Barrier {
    pub id: Src,
    pub count: Option<Src>,
    pub aligned: bool,
    /// `.arrive`: does not wait.
    pub arrive: bool,
    /// `.red`: operation, predicate, and where the result goes.
    pub reduce: Option<(Reduce, PSrc, u32)>,
}

/// mbarrier operations.
#[derive(Clone, Copy, Debug)]
pub enum Mbar {
    Init(Src),
    Inval,
    /// Count, dropping, completing, expecting.
    Arrive {
        state: Option<u32>,
        count: Option<Src>,
        drop: bool,
        no_complete: bool,
        /// `.expect_tx`: `count` is a number of bytes.
        expect: bool,
    },
    ExpectTx(Src),
    CompleteTx(Src),
    /// `test_wait` and `try_wait`: result predicate, state or parity.
    Test {
        result: u32,
        state: Src,
        parity: bool,
    },
    /// `cp.async.mbarrier.arrive`.
    CopyArrive {
        noinc: bool,
    },
}

/// A tensor-core operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmaShape {
    /// 8 or 16.
    pub k: usize,
    pub bf16: bool,
    /// f16 accumulation of C and of D.
    pub c_half: bool,
    pub d_half: bool,
}

/// What an instruction does.
pub enum Op {
    Alu {
        f: Alu,
        dst: u32,
        src: [Src; 4],
    },
    /// Additions with carry: `a + b (+ c)`; `mul` adds the product's low or high half.
    Carry {
        dst: u32,
        src: [Src; 3],
        bits: u32,
        kind: CarryKind,
        carry_in: bool,
        carry_out: bool,
    },
    PredLogic {
        dst: u32,
        f: fn(u32, u32) -> u32,
        a: PSrc,
        b: PSrc,
    },
    SetP {
        f: Compare,
        dst: Option<u32>,
        other: Option<u32>,
        a: Src,
        b: Src,
        combine: Combine,
    },
    /// `set`: as `SetP`, but writes `one` or zero.
    Set {
        f: Compare,
        dst: u32,
        one: u64,
        a: Src,
        b: Src,
        combine: Combine,
    },
    /// `set` and `setp` of packed halves: one bit per half.
    SetPair {
        low: Compare,
        high: Compare,
        /// Predicates, or the register for `set`.
        preds: Option<(Option<u32>, Option<u32>)>,
        dst: u32,
        one: u64,
        a: Src,
        b: Src,
        combine: Combine,
    },
    /// `lop3.BoolOp`.
    Lop3Pred {
        f: Alu,
        dst: Option<u32>,
        pred: u32,
        or: bool,
        q: PSrc,
        src: [Src; 4],
    },
    Selp {
        dst: u32,
        a: Src,
        b: Src,
        p: PSrc,
    },
    Pack {
        dst: u32,
        bits: u32,
        src: Vec<Src>,
    },
    Unpack {
        dst: Vec<Option<u32>>,
        bits: u32,
        src: Src,
    },
    IsSpace {
        dst: u32,
        mem: Mem,
        a: Src,
    },
    Ld {
        access: Access,
        dst: Vec<Option<u32>>,
        /// Width of the destination registers.
        dst_bits: u32,
    },
    St {
        access: Access,
        src: Vec<Src>,
    },
    Atom {
        access: Access,
        dst: Option<u32>,
        f: Scalar,
        src: Src,
        /// The second operand of `cas`: `src` is then what is compared with.
        cas: Option<Src>,
    },
    Fence,
    Shfl {
        mode: ShflMode,
        dst: Option<u32>,
        pred: Option<u32>,
        a: Src,
        b: Src,
        c: Src,
        mask: Src,
    },
    Vote {
        mode: VoteMode,
        /// A predicate, or a register for `ballot`.
        dst: u32,
        a: PSrc,
        mask: Src,
    },
    Match {
        all: bool,
        dst: Option<u32>,
        pred: Option<u32>,
        a: Src,
        mask: Src,
    },
    Redux {
        dst: u32,
        f: Scalar,
        a: Src,
        mask: Src,
    },
    ActiveMask {
        dst: u32,
    },
    Elect {
        dst: Option<u32>,
        pred: Option<u32>,
        mask: Src,
    },
    WarpSync {
        mask: Src,
    },
    Barrier(Barrier),
    Mbar {
        op: Mbar,
        mem: Mem,
        address: Address,
    },
    MbarPending {
        dst: u32,
        state: Src,
    },
    CpAsync {
        dst: Address,
        src: Address,
        bytes: u32,
        /// Bytes read, the rest being zeros.
        size: Option<Src>,
        /// Zeros where set.
        ignore: Option<PSrc>,
        src_mem: Mem,
    },
    CpCommit,
    /// Waits until at most this many groups are pending; `None` waits for all copies.
    CpWait(Option<u32>),
    LdMatrix {
        dst: Vec<u32>,
        address: Address,
        mem: Mem,
        transpose: bool,
    },
    StMatrix {
        src: Vec<Src>,
        address: Address,
        mem: Mem,
        transpose: bool,
    },
    MovMatrix {
        dst: u32,
        src: Src,
    },
    Mma {
        shape: MmaShape,
        d: Vec<u32>,
        a: Vec<Src>,
        b: Vec<Src>,
        c: Vec<Src>,
    },
    Bra {
        target: u32,
        /// `.uni` promises that no lane goes elsewhere.
        uniform: bool,
    },
    Brx {
        index: Src,
        targets: Vec<u32>,
    },
    Call {
        function: u32,
        /// Frame offsets of the arguments and of the results.
        args: Vec<u64>,
        results: Vec<u64>,
    },
    /// A call through a register that holds a function's number.
    CallIndirect {
        target: Src,
        args: Vec<u64>,
        results: Vec<u64>,
    },
    /// `vprintf`: prints nothing and returns zero.
    Printf {
        results: Vec<u64>,
    },
    /// `__assertfail` and its kin: a fault with this text.
    Assert(String),
    Ret,
    Exit,
    Trap,
    Yield,
    Nop,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CarryKind {
    Add,
    Sub,
    MadLo { signed: bool },
    MadHi { signed: bool },
}

/// A decoded instruction.
pub struct Inst {
    pub op: Op,
    pub guard: Option<PSrc>,
    /// Where the warp reconverges if this branch diverges.
    pub reconverge: u32,
}

/// What an instruction is called and where it stands; only read by reports.
pub struct Info {
    pub line: u32,
    pub loc: Option<(u32, u32)>,
    pub text: String,
    pub class: Class,
    pub mnemonic: u32,
}

/// A function of the program; the first is the kernel.
#[derive(Debug)]
pub struct Func {
    pub entry: u32,
    pub rows: u32,
    pub preds: u32,
    pub frame: u64,
    /// Frame offset and size.
    pub params: Vec<(u64, u64)>,
    pub returns: Vec<(u64, u64)>,
}

/// A decoded kernel with the functions it calls.
pub struct Program {
    pub kernel: String,
    pub code: Vec<Inst>,
    pub info: Vec<Info>,
    pub consts: Vec<Row>,
    pub functions: Vec<Func>,
    /// Functions by their place in the module, which is what their addresses tell.
    pub by_place: HashMap<u64, u32>,
    pub variables: Vec<String>,
    pub mnemonics: Vec<String>,
    pub static_shared: u64,
    pub required_block: Option<[u32; 3]>,
    pub max_block: Option<[u32; 3]>,
    pub files: HashMap<u32, String>,
}

impl Program {
    pub fn new(kernel: &str, module: &ast::Module) -> Self {
        Program {
            kernel: kernel.to_owned(),
            code: Vec::new(),
            info: Vec::new(),
            consts: Vec::new(),
            functions: Vec::new(),
            by_place: HashMap::new(),
            variables: Vec::new(),
            mnemonics: Vec::new(),
            static_shared: 0,
            required_block: None,
            max_block: None,
            files: module.files.clone(),
        }
    }
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Program")
            .field("kernel", &self.kernel)
            .field("instructions", &self.code.len())
            .finish_non_exhaustive()
    }
}
