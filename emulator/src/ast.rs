//! The parsed module: names still unresolved, opcodes still text.

use std::collections::HashMap;

#[derive(Debug, Default)]
pub struct Module {
    /// `.file` numbers.
    pub files: HashMap<u32, String>,
    /// Module-scope `.global` and `.const` variables.
    pub globals: Vec<Var>,
    /// Module-scope `.shared` variables.
    pub shared: Vec<Var>,
    pub functions: Vec<Function>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VarSpace {
    Global,
    Const,
    Shared,
    Local,
    Param,
}

#[derive(Clone, Debug)]
pub struct Var {
    pub name: String,
    pub space: VarSpace,
    pub size: u64,
    pub align: u64,
    pub init: Option<Init>,
    /// `.extern` or of unknown length: dynamic shared memory.
    pub external: bool,
}

/// An initialiser: bytes, and addresses to be filled in.
#[derive(Clone, Debug, Default)]
pub struct Init {
    pub bytes: Vec<u8>,
    /// Byte offset, width, symbol, addend.
    pub symbols: Vec<(usize, usize, String, i64)>,
}

#[derive(Debug)]
pub struct Function {
    pub name: String,
    pub entry: bool,
    pub params: Vec<Var>,
    pub returns: Vec<Var>,
    /// `.reqntid`, if given.
    pub required_block: Option<[u32; 3]>,
    /// `.maxntid`, if given.
    pub max_block: Option<[u32; 3]>,
    pub regs: Vec<RegDecl>,
    /// `.shared`, `.local` and `.param` variables of the body.
    pub vars: Vec<Var>,
    pub body: Option<Vec<Stmt>>,
    /// `.branchtargets` and `.calltargets` lists by label.
    pub targets: HashMap<String, Vec<String>>,
    pub line: u32,
}

#[derive(Debug)]
pub struct RegDecl {
    pub name: String,
    /// For `%r<n>`.
    pub count: Option<u32>,
    pub ty: String,
}

#[derive(Debug)]
pub enum Stmt {
    Label(String),
    Inst(Box<Inst>),
}

#[derive(Debug)]
pub struct Inst {
    /// Predicate name, negated.
    pub guard: Option<(String, bool)>,
    /// Opcode and modifiers, split at the dots.
    pub op: Vec<String>,
    pub args: Vec<Arg>,
    pub line: u32,
    /// `.loc` file number and line.
    pub loc: Option<(u32, u32)>,
    pub text: String,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Arg {
    Name(String),
    /// `!%p`.
    Not(String),
    /// `-%r` in operands that allow it.
    Int(i64),
    F32(u32),
    F64(u64),
    /// `sym+4`.
    Offset(String, i64),
    Vector(Vec<Arg>),
    /// `a|b`.
    Pair(Box<Arg>, Box<Arg>),
    /// `(a, b)` of a call.
    List(Vec<Arg>),
    /// `[base+offset, more...]`.
    Address(Box<Arg>, i64, Vec<Arg>),
    /// `_`.
    Sink,
}
