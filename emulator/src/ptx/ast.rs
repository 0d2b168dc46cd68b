//! The syntax tree.

use std::collections::HashMap;
use std::rc::Rc;

/// A whole PTX text.
#[derive(Debug, Default)]
pub(crate) struct Ast {
    pub files: HashMap<u32, String>,
    pub vars: Vec<Var>,
    pub funcs: Vec<Func>,
}

/// Where a variable lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum VarSpace {
    Global,
    Const,
    Shared,
    Local,
    Param,
}

/// One number, or the address of another variable, in an initialiser.
#[derive(Debug, Clone)]
pub(crate) enum Init {
    Bytes(Vec<u8>),
    Symbol {
        name: String,
        offset: i64,
        size: u64,
    },
}

#[derive(Debug, Clone)]
pub(crate) struct Var {
    pub name: String,
    pub line: u32,
    pub space: VarSpace,
    pub align: u64,
    pub size: u64,
    pub external: bool,
    pub init: Vec<Init>,
}

#[derive(Debug)]
pub(crate) struct Func {
    pub name: String,
    pub entry: bool,
    pub params: Vec<Var>,
    pub rets: Vec<Var>,
    /// `None` for a declaration.
    pub body: Option<Vec<Stmt>>,
    pub max_threads: Option<u32>,
    pub required_block: Option<(u32, u32, u32)>,
    pub required_cluster: Option<(u32, u32, u32)>,
    pub max_registers: Option<u32>,
}

#[derive(Debug)]
pub(crate) enum Stmt {
    Label(String),
    /// `label: .branchtargets a, b;`
    Targets(String, Vec<String>),
    Reg {
        line: u32,
        ty: String,
        names: Vec<RegNames>,
    },
    Var(Var),
    Inst(Rc<Inst>),
    Block(Vec<Stmt>),
}

/// `%r<8>` or `%r`.
#[derive(Debug)]
pub(crate) struct RegNames {
    pub name: String,
    pub count: Option<u32>,
}

#[derive(Debug)]
pub(crate) struct Inst {
    /// Predicate and whether it is negated.
    pub guard: Option<(String, bool)>,
    /// The opcode with its modifiers, split at the dots.
    pub op: Vec<String>,
    pub operands: Vec<Operand>,
    pub line: u32,
    /// File number and line, from `.loc`.
    pub loc: Option<(u32, u32)>,
    pub text: String,
}

impl Inst {
    pub fn mnemonic(&self) -> String {
        self.op.join(".")
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Operand {
    /// A register, special register, variable or label; components like `.x` are part of the name.
    Name(String),
    /// `!%p`
    Not(String),
    Int(i128),
    /// Bits of an `0f` literal.
    F32(u32),
    /// Bits of an `0d` literal or a decimal one.
    F64(u64),
    /// `name + offset` outside brackets.
    Offset(String, i64),
    Addr {
        base: AddrBase,
        offset: i64,
        rest: Vec<Operand>,
    },
    Vector(Vec<Operand>),
    /// `a|b`
    Pair(Box<Operand>, Box<Operand>),
    /// `(a, b)`
    List(Vec<Operand>),
    /// `_`
    Sink,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum AddrBase {
    Name(String),
    None,
}

/// Size in bytes of a fundamental type, without its dot.
pub(crate) fn type_size(ty: &str) -> Option<u64> {
    Some(match ty {
        "b8" | "u8" | "s8" | "e4m3" | "e5m2" => 1,
        "b16" | "u16" | "s16" | "f16" | "bf16" => 2,
        "b32" | "u32" | "s32" | "f32" | "f16x2" | "bf16x2" | "tf32" => 4,
        "b64" | "u64" | "s64" | "f64" => 8,
        "b128" => 16,
        _ => return None,
    })
}
