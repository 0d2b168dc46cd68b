//! Syntax tree to the internal form: names to rows and offsets, functions inlined, branches resolved.

mod bulk;
mod calls;
mod cfg;
mod cvt;
mod float;
mod flow;
mod half;
mod int;
mod layout;
mod memory;
mod modifiers;
mod moves;
mod operands;
mod scope;
mod sync;
mod tensor;
mod tracked;
pub(crate) mod ty;
mod wgmma;

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use crate::error::{Fault, FaultKind, Place};
use crate::ir::ParamInfo;
use crate::ir::regs::{D, P, W};
use crate::ir::{Const, Inst, Kernel, MemSpace, Meta, NONE, Op};
use crate::ptx::ast::{self, Ast, Func, Operand, Var, VarSpace, type_size};
use crate::report::Class;
pub(crate) use layout::layout;
use scope::Sym;
use ty::Ty;

/// What is wrong with one instruction; the caller adds the place.
type Res<T> = Result<T, String>;

/// Race shadows are as fine as the smallest access of the kernel, and at most this coarse.
const MAX_GRAIN: u32 = 16;
/// A kernel of more instructions after inlining is refused.
const MAX_CODE: usize = 500_000;

/// A module variable as the decoder sees it.
#[derive(Debug, Clone)]
pub(crate) struct ModuleVar {
    pub space: VarSpace,
    pub index: u32,
    pub size: u64,
}

pub(crate) struct Decoder<'a> {
    ast: &'a Ast,
    vars: &'a HashMap<String, ModuleVar>,
    code: Vec<Inst>,
    meta: Vec<Meta>,
    w_rows: u32,
    d_rows: u32,
    p_rows: u32,
    w_consts: HashMap<Const, W>,
    d_consts: HashMap<Const, D>,
    w_order: Vec<(W, Const)>,
    d_order: Vec<(D, Const)>,
    scopes: Vec<HashMap<String, Sym>>,
    /// Where the scopes of the function being inlined begin, per inlined call.
    bases: Vec<usize>,
    /// Return label per inlined call; the kernel has none.
    returns: Vec<u32>,
    calls: Vec<&'a str>,
    labels: Vec<Option<u32>>,
    module_shared: HashMap<String, u32>,
    /// Shared variables declared inside functions: one each, however often a function is inlined.
    inner_shared: HashMap<*const Var, u32>,
    shared: u64,
    dynamic: Vec<String>,
    dynamic_align: u64,
    local: u64,
    shared_grain: u32,
    global_grain: u32,
    registers: u32,
    /// The kernel has instructions of asynchronous units.
    units: bool,
    /// The 32-bit registers that the instruction being decoded names, and those of each one emitted.
    named: RefCell<Vec<W>>,
    names: Vec<Vec<W>>,
}

/// Decodes one kernel.
pub(crate) fn decode(
    ast: &Ast,
    f: &Func,
    vars: &HashMap<String, ModuleVar>,
) -> Result<Kernel, Box<Fault>> {
    let Some(body) = &f.body else {
        return Err(Fault::bad_launch(
            &f.name,
            "the kernel is declared but not defined in this module",
        ));
    };
    let mut d = Decoder {
        ast,
        vars,
        code: Vec::new(),
        meta: Vec::new(),
        w_rows: 0,
        d_rows: 0,
        p_rows: 0,
        w_consts: HashMap::new(),
        d_consts: HashMap::new(),
        w_order: Vec::new(),
        d_order: Vec::new(),
        scopes: vec![HashMap::new()],
        bases: vec![0],
        returns: Vec::new(),
        calls: vec![&f.name],
        labels: Vec::new(),
        module_shared: HashMap::new(),
        inner_shared: HashMap::new(),
        shared: 0,
        dynamic: Vec::new(),
        dynamic_align: 16,
        local: 0,
        shared_grain: MAX_GRAIN,
        global_grain: MAX_GRAIN,
        registers: 0,
        units: false,
        named: RefCell::default(),
        names: Vec::new(),
    };
    let (params, param_bytes) = layout(&f.params);
    for p in &params {
        d.scopes[0].insert(p.name.clone(), Sym::Param(p.offset));
    }
    let fault = |kind, place| {
        Box::new(Fault {
            kind,
            kernel: f.name.clone(),
            place,
        })
    };
    d.shared_layout(f)
        .map_err(|e| fault(FaultKind::BadLaunch(e), Place::default()))?;
    d.body(body).map_err(|e| {
        let place = match &e.inst {
            Some(i) => Place {
                ptx_line: i.line,
                instruction: i.text.clone(),
                source: d.source(i),
                ..Place::default()
            },
            None => Place {
                ptx_line: e.line,
                ..Place::default()
            },
        };
        fault(FaultKind::UnknownInstruction(e.message), place)
    })?;
    d.finish(f, params, param_bytes)
        .map_err(|e| fault(FaultKind::UnknownInstruction(e), Place::default()))
}

/// A decoding error with its place: an instruction, or the line of a declaration.
struct Bad {
    message: String,
    inst: Option<Rc<ast::Inst>>,
    line: u32,
}

impl From<String> for Bad {
    fn from(message: String) -> Self {
        Self {
            message,
            inst: None,
            line: 0,
        }
    }
}

impl Bad {
    fn at(line: u32) -> impl Fn(String) -> Self {
        move |message| Self {
            line,
            ..message.into()
        }
    }
}

impl<'a> Decoder<'a> {
    fn source(&self, i: &ast::Inst) -> Option<String> {
        let (file, line) = i.loc?;
        self.ast.files.get(&file).map(|f| format!("{f}:{line}"))
    }

    fn inst(&mut self, i: &Rc<ast::Inst>) -> Result<(), Bad> {
        if self.code.len() > MAX_CODE {
            return Err("the kernel is too large after inlining".to_owned().into());
        }
        let guard = match &i.guard {
            Some((name, negated)) => Some((self.pred_reg(name)?, *negated)),
            None => None,
        };
        if i.op[0] == "call" {
            return self.call(i, guard);
        }
        let (op, class) = self.operation(i).map_err(|e| {
            if e.is_empty() {
                format!("`{}`", i.mnemonic())
            } else {
                format!("`{}`: {e}", i.mnemonic())
            }
        })?;
        self.emit(i, op, class, guard);
        Ok(())
    }

    fn emit(&mut self, i: &ast::Inst, op: Op, class: Class, guard: Option<(P, bool)>) {
        self.code.push(Inst {
            op,
            guard,
            reconverge: NONE,
            tracked: Box::default(),
        });
        self.names.push(std::mem::take(self.named.get_mut()));
        self.meta.push(Meta {
            line: i.line,
            source: self.source(i),
            mnemonic: i.mnemonic(),
            text: i.text.clone(),
            class,
        });
    }

    fn operation(&mut self, i: &ast::Inst) -> Res<(Op, Class)> {
        let m: Vec<&str> = i.op[1..].iter().map(String::as_str).collect();
        let o = &i.operands[..];
        let name = i.op[0].as_str();
        modifiers::check(name, &m)?;
        // Each family answers `None` for opcodes that are not its own.
        if let Some(r) = self.moves(name, &m, o) {
            return r;
        }
        if let Some(r) = self.memory(name, &m, o) {
            return r;
        }
        if let Some(r) = self.flow(name, &m, o) {
            return r;
        }
        if let Some(r) = self.sync(name, &m, o) {
            return r;
        }
        if let Some(r) = self.tensor(name, &m, o) {
            return r;
        }
        if let Some(r) = self.warpgroup(name, &m, o) {
            return r;
        }
        if name == "cvt" {
            return self.cvt(&m, o).map(|a| (Op::Alu(a), Class::Convert));
        }
        if name == "setp" || name == "set" {
            return self.compare(name, &m, o);
        }
        // The type comes last, but for `prmt`, whose mode does.
        let ty = m
            .iter()
            .rev()
            .take(if name == "prmt" { 2 } else { 1 })
            .find_map(|s| Ty::parse(s))
            .ok_or_else(String::new)?;
        if ty.half() {
            return self.half(name, ty, &m, o);
        }
        match ty {
            Ty::F32 => self.f32(name, &m, o),
            Ty::F64 => self.f64(name, &m, o),
            _ => self
                .int(name, ty, &m, o)
                .map(|a| (Op::Alu(a), Class::Integer)),
        }
    }

    fn finish(mut self, f: &Func, params: Vec<ParamInfo>, param_bytes: u32) -> Res<Kernel> {
        // Falling off the end is an exit; labels may also point there.
        self.code.push(Inst {
            op: Op::Exit,
            guard: None,
            reconverge: NONE,
            tracked: Box::default(),
        });
        tracked::track(&mut self.code, &self.names);
        let last = self.meta.last();
        self.meta.push(Meta {
            line: last.map_or(0, |m| m.line),
            source: last.and_then(|m| m.source.clone()),
            mnemonic: "exit".into(),
            text: "(end of kernel)".into(),
            class: Class::Branch,
        });
        let resolve = |l: u32| {
            self.labels[l as usize]
                .ok_or_else(|| "a branch to a label that is never placed".to_owned())
        };
        for inst in &mut self.code {
            match &mut inst.op {
                Op::Branch { target } => *target = resolve(*target)?,
                Op::BranchIndexed { targets, .. } => {
                    for t in targets {
                        *t = resolve(*t)?;
                    }
                }
                _ => {}
            }
        }
        cfg::reconvergence(&mut self.code);
        let static_shared = self.shared as u32;
        let dynamic = self.shared.next_multiple_of(self.dynamic_align);
        let patch = |c: Const| match c {
            Const::Imm(v) if v.wrapping_sub(DYNAMIC_MARK - (1 << 28)) < 1 << 29 => {
                Const::Imm(v.wrapping_sub(DYNAMIC_MARK).wrapping_add(dynamic))
            }
            c => c,
        };
        Ok(Kernel {
            name: f.name.clone(),
            params,
            param_bytes,
            code: self.code,
            meta: self.meta,
            w_rows: self.w_rows,
            d_rows: self.d_rows,
            p_rows: self.p_rows,
            w_consts: self
                .w_order
                .into_iter()
                .map(|(w, c)| (w, patch(c)))
                .collect(),
            d_consts: self
                .d_order
                .into_iter()
                .map(|(d, c)| (d, patch(c)))
                .collect(),
            // The dynamic part starts aligned.
            static_shared: if self.dynamic.is_empty() {
                static_shared
            } else {
                dynamic as u32
            },
            local_bytes: self.local.next_multiple_of(8) as u32,
            shared_grain: self.shared_grain,
            global_grain: self.global_grain,
            registers: self.registers,
            max_registers: f.max_registers,
            units: self.units,
        })
    }

    fn note_access(&mut self, space: MemSpace, width: u32) {
        if matches!(space, MemSpace::Shared | MemSpace::Generic) {
            self.shared_grain = self.shared_grain.min(width);
        }
        if matches!(space, MemSpace::Global | MemSpace::Generic) {
            self.global_grain = self.global_grain.min(width);
        }
    }
}

/// Stands for the start of dynamic shared memory until it is known. No address or usual number is
/// near; constants within 2^28 of it are taken for it.
const DYNAMIC_MARK: u64 = 0x5d1a_3c96_0000_0000;

/// `n` operands exactly.
fn arity<const N: usize>(o: &[Operand]) -> Res<&[Operand; N]> {
    o.try_into()
        .map_err(|_| format!("expected {N} operands, found {}", o.len()))
}

/// Refuses modifiers that a family does not know.
fn known(m: &[&str], allowed: &[&str]) -> Res<()> {
    match m
        .iter()
        .find(|s| Ty::parse(s).is_none() && type_size(s).is_none() && !allowed.contains(s))
    {
        Some(s) => Err(format!("modifier `.{s}`")),
        None => Ok(()),
    }
}
