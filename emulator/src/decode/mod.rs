//! Decodes a kernel, and the functions it calls, once into typed instructions.

mod allocate;
mod cfg;
mod control;
mod convert;
mod copy;
mod float;
mod half;
mod int;
mod matrix;
mod memory;
mod operand;
mod program;
mod warp;

pub use operand::FUNCTION_BASE_ADDRESS;
pub use program::*;

use crate::ast::{self, Stmt};
use crate::fault::{Fault, FaultKind, Place};
use crate::report::Class;
use std::collections::HashMap;

/// Why an instruction could not be decoded.
pub enum Bad {
    /// Unknown opcode, modifier or type.
    Unknown(String),
    /// Operands that do not fit.
    Operands(String),
}

pub type Result<T> = std::result::Result<T, Bad>;

/// An operand error.
pub fn bad<T>(s: impl Into<String>) -> Result<T> {
    Err(Bad::Operands(s.into()))
}

/// An unknown opcode or modifier.
pub fn unknown<T>(s: impl Into<String>) -> Result<T> {
    Err(Bad::Unknown(s.into()))
}

/// A type such as `.s32`: kind letter and width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ty {
    pub kind: Kind,
    pub bits: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Untyped bits.
    B,
    U,
    S,
    F,
    /// `bf16`.
    Bf,
    /// Packed pairs.
    F16x2,
    Bf16x2,
    Pred,
    Tf32,
}

impl Ty {
    pub fn parse(s: &str) -> Option<Ty> {
        let (kind, bits) = match s {
            "pred" => (Kind::Pred, 1),
            "f16x2" => (Kind::F16x2, 32),
            "bf16x2" => (Kind::Bf16x2, 32),
            "bf16" => (Kind::Bf, 16),
            "tf32" => (Kind::Tf32, 32),
            "b8" => (Kind::B, 8),
            "b16" => (Kind::B, 16),
            "b32" => (Kind::B, 32),
            "b64" => (Kind::B, 64),
            "u8" => (Kind::U, 8),
            "u16" => (Kind::U, 16),
            "u32" => (Kind::U, 32),
            "u64" => (Kind::U, 64),
            "s8" => (Kind::S, 8),
            "s16" => (Kind::S, 16),
            "s32" => (Kind::S, 32),
            "s64" => (Kind::S, 64),
            "f16" => (Kind::F, 16),
            "f32" => (Kind::F, 32),
            "f64" => (Kind::F, 64),
            _ => return None,
        };
        Some(Ty { kind, bits })
    }

    pub fn signed(self) -> bool {
        self.kind == Kind::S
    }

    pub fn is_int(self) -> bool {
        matches!(self.kind, Kind::B | Kind::U | Kind::S)
    }

    pub fn is_float(self, bits: u32) -> bool {
        self.kind == Kind::F && self.bits == bits
    }
}

/// The modifiers of an opcode; each must be asked for, or the instruction is unknown.
pub struct Mods<'a> {
    pub name: &'a str,
    parts: &'a [String],
    used: u64,
}

impl<'a> Mods<'a> {
    fn new(op: &'a [String]) -> Self {
        Mods {
            name: &op[0],
            parts: &op[1..],
            used: 0,
        }
    }

    /// Whether the modifier is there.
    pub fn has(&mut self, s: &str) -> bool {
        match self.parts.iter().take(64).position(|p| p == s) {
            Some(i) => {
                self.used |= 1 << i;
                true
            }
            None => false,
        }
    }

    /// The one of several that is there.
    pub fn one_of(&mut self, list: &[&'static str]) -> Option<&'static str> {
        list.iter().copied().find(|s| self.has(s))
    }

    /// Takes the next unused modifier that begins so.
    pub fn prefixed(&mut self, prefix: &str) -> Option<&'a str> {
        let used = self.used;
        let i = self
            .parts
            .iter()
            .take(64)
            .enumerate()
            .position(|(i, p)| used >> i & 1 == 0 && p.starts_with(prefix))?;
        self.used |= 1 << i;
        Some(&self.parts[i])
    }

    /// The next unused type, in order.
    pub fn ty(&mut self) -> Result<Ty> {
        match self.maybe_ty() {
            Some(t) => Ok(t),
            None => unknown("no type"),
        }
    }

    pub fn maybe_ty(&mut self) -> Option<Ty> {
        for (i, p) in self.parts.iter().take(64).enumerate() {
            if self.used >> i & 1 == 0
                && let Some(t) = Ty::parse(p)
            {
                self.used |= 1 << i;
                return Some(t);
            }
        }
        None
    }

    /// All modifiers must have been asked for.
    fn finish(&self) -> Result<()> {
        for (i, p) in self.parts.iter().enumerate() {
            if i >= 64 || self.used >> i & 1 == 0 {
                return unknown(format!("modifier `.{p}`"));
            }
        }
        Ok(())
    }
}

/// What a register name stands for.
#[derive(Clone, Copy, Debug)]
pub struct Reg {
    pub index: u32,
    pub bits: u32,
    pub pred: bool,
}

/// What a variable name stands for.
#[derive(Clone, Copy, Debug)]
pub enum Symbol {
    /// Offset in the kernel's parameters.
    KernelParam(u64),
    /// Offset in the function's frame.
    Frame(u64),
    /// Shared-memory offset.
    Shared(u64),
}

/// The most local memory of a thread, as on hardware, and the most registers of a function.
const MAX_FRAME: u64 = 512 * 1024;
const MAX_ROWS: u32 = 1 << 16;

/// State of the decoder for one function.
pub struct Decoder<'a> {
    module: &'a ast::Module,
    pub program: Program,
    regs: HashMap<String, Reg>,
    nrows: u32,
    npreds: u32,
    symbols: HashMap<String, Symbol>,
    consts: HashMap<u64, u32>,
    variables: HashMap<String, u32>,
    pub labels: HashMap<String, u32>,
    functions: HashMap<String, u32>,
    queue: Vec<usize>,
    mnemonics: HashMap<String, u32>,
    pub targets: HashMap<String, Vec<String>>,
    pub in_entry: bool,
}

pub fn decode(module: &ast::Module, kernel: &str) -> std::result::Result<Program, Box<Fault>> {
    let fail = |kind, place| {
        Box::new(Fault {
            kind,
            kernel: kernel.to_owned(),
            place,
        })
    };
    let Some(entry) = module
        .functions
        .iter()
        .position(|f| f.name == kernel && f.entry)
    else {
        return Err(fail(
            FaultKind::UnknownKernel(kernel.to_owned()),
            Place::default(),
        ));
    };
    let mut d = Decoder {
        module,
        program: Program::new(kernel, module),
        regs: HashMap::new(),
        nrows: 0,
        npreds: 0,
        symbols: HashMap::new(),
        consts: HashMap::new(),
        variables: HashMap::new(),
        labels: HashMap::new(),
        functions: HashMap::new(),
        queue: vec![entry],
        mnemonics: HashMap::new(),
        targets: HashMap::new(),
        in_entry: true,
    };
    d.functions.insert(kernel.to_owned(), 0);
    let mut shared = 0u64;
    let mut place_shared = |vars: &[ast::Var]| {
        let mut out = Vec::new();
        for v in vars
            .iter()
            .filter(|v| v.space == ast::VarSpace::Shared && !v.external)
        {
            shared = shared.next_multiple_of(v.align);
            out.push((v.name.clone(), shared));
            shared += v.size;
        }
        out
    };
    // Static shared variables come first, the dynamic ones all begin where those end.
    let mut fixed = place_shared(&module.shared);
    let mut at = 0;
    let mut per_function: Vec<Vec<(String, u64)>> = Vec::new();
    for f in &module.functions {
        per_function.push(if !f.entry || f.name == kernel {
            place_shared(&f.vars)
        } else {
            Vec::new()
        });
    }
    let external: Vec<&ast::Var> = module
        .shared
        .iter()
        .chain(module.functions.iter().flat_map(|f| &f.vars))
        .filter(|v| v.space == ast::VarSpace::Shared && v.external)
        .collect();
    let align = external.iter().map(|v| v.align).max().unwrap_or(1);
    let dynamic = shared.next_multiple_of(align.max(16));
    fixed.extend(external.iter().map(|v| (v.name.clone(), dynamic)));
    d.program.static_shared = if external.is_empty() { shared } else { dynamic };
    while at < d.queue.len() {
        let index = d.queue[at];
        let f = &module.functions[index];
        if let Err((error, inst)) = d.function(f, &fixed, &per_function[index]) {
            let (kind, place) = match inst {
                Some(i) => {
                    let place = Place {
                        instruction: i.text.clone(),
                        ptx_line: i.line,
                        source: i
                            .loc
                            .and_then(|(f, l)| Some((module.files.get(&f)?.clone(), l))),
                        ..Place::default()
                    };
                    let name = i.op.join(".");
                    let kind = match error {
                        Bad::Unknown(s) => FaultKind::UnknownInstruction(format!(
                            "`{name}` at line {} ({s})",
                            i.line
                        )),
                        Bad::Operands(s) => FaultKind::InvalidInstruction(format!(
                            "`{}` at line {} ({s})",
                            i.text, i.line
                        )),
                    };
                    (kind, place)
                }
                None => {
                    let (Bad::Unknown(s) | Bad::Operands(s)) = error;
                    let place = Place {
                        ptx_line: f.line,
                        ..Place::default()
                    };
                    (FaultKind::InvalidInstruction(s), place)
                }
            };
            return Err(fail(kind, place));
        }
        at += 1;
    }
    d.program.variables = {
        let mut v: Vec<_> = d.variables.into_iter().collect();
        v.sort_by_key(|(_, i)| *i);
        v.into_iter().map(|(n, _)| n).collect()
    };
    Ok(d.program)
}

impl<'a> Decoder<'a> {
    fn function(
        &mut self,
        f: &'a ast::Function,
        shared: &[(String, u64)],
        own_shared: &[(String, u64)],
    ) -> std::result::Result<(), (Bad, Option<&'a ast::Inst>)> {
        self.regs.clear();
        self.symbols.clear();
        self.labels.clear();
        self.targets = f.targets.clone();
        (self.nrows, self.npreds) = (0, 0);
        self.in_entry = f.entry;
        self.declare_registers(f);
        let Some(body) = &f.body else {
            return Err((
                Bad::Operands(format!("function `{}` has no body", f.name)),
                None,
            ));
        };
        for (name, offset) in shared.iter().chain(own_shared) {
            self.symbols.insert(name.clone(), Symbol::Shared(*offset));
        }
        let mut frame = 0u64;
        let mut place = |d: &mut Self, v: &ast::Var| {
            frame = frame.next_multiple_of(v.align.max(8));
            d.symbols.insert(v.name.clone(), Symbol::Frame(frame));
            let slot = (frame, v.size);
            frame += v.size;
            slot
        };
        let (mut params, mut returns) = (Vec::new(), Vec::new());
        if f.entry {
            let mut offset = 0u64;
            for p in &f.params {
                offset = offset.next_multiple_of(p.align);
                self.symbols
                    .insert(p.name.clone(), Symbol::KernelParam(offset));
                offset += p.size;
            }
            self.program.required_block = f.required_block;
            self.program.max_block = f.max_block;
        } else {
            params = f.params.iter().map(|p| place(self, p)).collect();
            returns = f.returns.iter().map(|p| place(self, p)).collect();
        }
        for v in &f.vars {
            if matches!(v.space, ast::VarSpace::Local | ast::VarSpace::Param) {
                place(self, v);
            }
        }
        let first = self.program.code.len() as u32;
        let mut pc = first;
        for s in body {
            match s {
                Stmt::Label(l) => {
                    self.labels.insert(l.clone(), pc);
                }
                Stmt::Inst(_) => pc += 1,
            }
        }
        for s in body {
            if let Stmt::Inst(i) = s {
                self.instruction(i).map_err(|e| (e, Some(&**i)))?;
            }
        }
        // Falling off the end returns.
        self.push(
            Op::Ret,
            None,
            Info {
                line: f.line,
                loc: None,
                text: "(end of function)".to_owned(),
                class: Class::Branch,
                mnemonic: self.mnemonics.get("ret").copied().unwrap_or(0),
            },
        );
        if self.program.mnemonics.is_empty() {
            self.program.mnemonics.push("ret".to_owned());
        }
        if frame > MAX_FRAME || self.nrows > MAX_ROWS || self.npreds > MAX_ROWS {
            let text = format!(
                "`{}` needs too many registers or too much local memory",
                f.name
            );
            return Err((Bad::Operands(text), None));
        }
        let start = first as usize;
        let graph = cfg::Graph::new(&self.program.code[start..], start);
        cfg::reconvergence(&mut self.program.code, start, &graph);
        let rows = allocate::registers(&mut self.program.code[start..], &graph, self.nrows);
        let func = Func {
            entry: first,
            rows,
            preds: self.npreds,
            frame: frame.next_multiple_of(16),
            params,
            returns,
        };
        self.program.functions.push(func);
        Ok(())
    }

    fn declare_registers(&mut self, f: &ast::Function) {
        for r in &f.regs {
            let pred = r.ty == "pred";
            let bits = Ty::parse(&r.ty).map_or(32, |t| t.bits);
            let names: Vec<String> = match r.count {
                Some(n) => (0..n).map(|i| format!("{}{i}", r.name)).collect(),
                None => vec![r.name.clone()],
            };
            for name in names {
                let counter = if pred {
                    &mut self.npreds
                } else {
                    &mut self.nrows
                };
                let index = *counter;
                *counter += 1;
                self.regs.insert(name, Reg { index, bits, pred });
            }
        }
    }

    fn push(&mut self, op: Op, guard: Option<PSrc>, info: Info) {
        self.program.code.push(Inst {
            op,
            guard,
            reconverge: u32::MAX,
        });
        self.program.info.push(info);
    }

    fn instruction(&mut self, i: &ast::Inst) -> Result<()> {
        if i.op.is_empty() {
            return unknown("empty opcode");
        }
        let guard = match &i.guard {
            Some((name, not)) => {
                let p = self.pred(name)?;
                Some(PSrc {
                    index: p,
                    not: *not,
                })
            }
            None => None,
        };
        let mut m = Mods::new(&i.op);
        let (op, class) = self.dispatch(&mut m, &i.args)?;
        m.finish()?;
        let name = i.op.join(".");
        let next = self.program.mnemonics.len() as u32;
        let mnemonic = *self.mnemonics.entry(name.clone()).or_insert(next);
        if mnemonic == next {
            self.program.mnemonics.push(name);
        }
        let info = Info {
            line: i.line,
            loc: i.loc,
            text: i.text.clone(),
            class,
            mnemonic,
        };
        self.push(op, guard, info);
        Ok(())
    }

    fn dispatch(&mut self, m: &mut Mods, args: &[ast::Arg]) -> Result<(Op, Class)> {
        if let Some(r) = self.control(m, args)? {
            return Ok(r);
        }
        if let Some(r) = self.memory(m, args)? {
            return Ok(r);
        }
        if let Some(r) = self.copies(m, args)? {
            return Ok(r);
        }
        if let Some(r) = self.matrix(m, args)? {
            return Ok(r);
        }
        if let Some(r) = self.warp(m, args)? {
            return Ok(r);
        }
        if let Some(r) = self.convert(m, args)? {
            return Ok(r);
        }
        if let Some(r) = self.half(m, args)? {
            return Ok(r);
        }
        if let Some(r) = self.float(m, args)? {
            return Ok(r);
        }
        if let Some(r) = self.int(m, args)? {
            return Ok(r);
        }
        unknown(format!("opcode `{}`", m.name))
    }
}
