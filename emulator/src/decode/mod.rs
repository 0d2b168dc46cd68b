//! Syntax tree to the internal form: names to rows and offsets, functions inlined, branches resolved.

mod cfg;
mod cvt;
mod float;
mod flow;
mod half;
mod int;
mod memory;
mod modifiers;
mod moves;
mod sync;
mod tensor;
pub(crate) mod ty;

use std::collections::HashMap;
use std::rc::Rc;

use crate::error::{Fault, FaultKind, Place};
use crate::exec::regs::{D, P, W};
use crate::module::ParamInfo;
use crate::op::{Addr, Const, Inst, Kernel, LaneMask, MemSpace, Meta, NONE, Op, Row};
use crate::ptx::ast::{self, AddrBase, Ast, Func, Operand, Stmt, Var, VarSpace, type_size};
use crate::report::Class;
use ty::Ty;

/// What is wrong with one instruction; the caller adds the place.
type Res<T> = Result<T, String>;

/// Limits of inlining; beyond them a kernel is refused.
const MAX_INLINE_DEPTH: usize = 16;
/// Race shadows are as fine as the smallest access of the kernel, and at most this coarse.
const MAX_GRAIN: u32 = 16;
const MAX_CODE: usize = 500_000;
/// Register rows of a warp.
const MAX_ROWS: u32 = 1 << 18;

/// Largest frames of shared memory of a block and local memory of a thread.
const MAX_SHARED: u64 = 1 << 24;
const MAX_LOCAL: u64 = 512 << 10;

/// What a name stands for.
#[derive(Debug, Clone)]
enum Sym {
    W(W),
    D(D),
    P(P),
    /// Address of a variable: a module variable, or an offset in the shared window or local frame.
    Global(u32),
    Shared(u32),
    Local(u32),
    /// A kernel parameter.
    Param(u32),
    Label(u32),
    Targets(Rc<Vec<String>>),
}

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

/// Offsets of parameters in their block.
pub(crate) fn layout(params: &[Var]) -> (Vec<ParamInfo>, u32) {
    let mut at = 0u64;
    let mut out = Vec::new();
    for p in params {
        at = at.next_multiple_of(p.align.max(1));
        out.push(ParamInfo {
            name: p.name.clone(),
            offset: at.min(u64::from(u32::MAX)) as u32,
            size: p.size.min(u64::from(u32::MAX)) as u32,
            align: p.align as u32,
        });
        at += p.size;
    }
    (out, at.min(u64::from(u32::MAX)) as u32)
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

/// Names used anywhere in the statements, to lay out only the shared variables a kernel can reach.
fn names_in<'a>(stmts: &'a [Stmt], out: &mut std::collections::HashSet<&'a str>) {
    fn operand<'a>(o: &'a Operand, out: &mut std::collections::HashSet<&'a str>) {
        match o {
            Operand::Name(n) | Operand::Offset(n, _) => {
                out.insert(n);
            }
            Operand::Addr { base, rest, .. } => {
                if let AddrBase::Name(n) = base {
                    out.insert(n);
                }
                rest.iter().for_each(|o| operand(o, out));
            }
            Operand::Vector(v) | Operand::List(v) => v.iter().for_each(|o| operand(o, out)),
            Operand::Pair(a, b) => {
                operand(a, out);
                operand(b, out);
            }
            _ => {}
        }
    }
    for s in stmts {
        match s {
            Stmt::Inst(i) => i.operands.iter().for_each(|o| operand(o, out)),
            Stmt::Block(b) => names_in(b, out),
            _ => {}
        }
    }
}

impl<'a> Decoder<'a> {
    fn source(&self, i: &ast::Inst) -> Option<String> {
        let (file, line) = i.loc?;
        self.ast.files.get(&file).map(|f| format!("{f}:{line}"))
    }

    /// Places the module's shared variables that the kernel, or what it calls, names.
    fn shared_layout(&mut self, f: &'a Func) -> Res<()> {
        let mut names = std::collections::HashSet::new();
        let mut seen = vec![f.name.as_str()];
        let mut todo = vec![f];
        while let Some(f) = todo.pop() {
            let mut here = std::collections::HashSet::new();
            if let Some(b) = &f.body {
                names_in(b, &mut here);
            }
            for g in &self.ast.funcs {
                if here.contains(g.name.as_str()) && !seen.contains(&g.name.as_str()) {
                    seen.push(&g.name);
                    todo.push(g);
                }
            }
            names.extend(here);
        }
        // In the order of the text, so that the layout does not depend on hashing.
        for v in &self.ast.vars {
            if v.space != VarSpace::Shared || !names.contains(v.name.as_str()) {
                continue;
            }
            if v.external || v.size == 0 {
                self.dynamic.push(v.name.clone());
                self.dynamic_align = self.dynamic_align.max(v.align);
            } else {
                let at = self.place_shared(v)?;
                self.module_shared.insert(v.name.clone(), at);
            }
        }
        Ok(())
    }

    fn place_shared(&mut self, v: &Var) -> Res<u32> {
        let at = self.shared.next_multiple_of(v.align.max(1));
        self.shared = at + v.size;
        if self.shared > MAX_SHARED {
            return Err(format!("shared variable `{}` is too large", v.name));
        }
        Ok(at as u32)
    }

    fn place_local(&mut self, v: &Var) -> Res<u32> {
        let at = self.local.next_multiple_of(v.align.max(1));
        self.local = at + v.size;
        if self.local > MAX_LOCAL {
            return Err(format!("local variable `{}` is too large", v.name));
        }
        Ok(at as u32)
    }

    fn declare(&mut self, name: &str, sym: Sym) {
        if let Some(scope) = self.scopes.last_mut() {
            scope.insert(name.to_owned(), sym);
        }
    }

    fn new_label(&mut self) -> u32 {
        self.labels.push(None);
        (self.labels.len() - 1) as u32
    }

    fn set_label(&mut self, label: u32) {
        self.labels[label as usize] = Some(self.code.len() as u32);
    }

    fn new_register(&mut self, ty: Ty) -> Sym {
        match ty {
            Ty::Pred => {
                self.p_rows += 1;
                Sym::P(P(self.p_rows - 1))
            }
            _ if ty.size() == 8 => {
                self.registers += 2;
                self.d_rows += 1;
                Sym::D(D(self.d_rows - 1))
            }
            _ => {
                self.registers += 1;
                self.w_rows += 1;
                Sym::W(W(self.w_rows - 1))
            }
        }
    }

    /// Statements of one block: declares, then decodes in order.
    fn body(&mut self, stmts: &'a [Stmt]) -> Result<(), Bad> {
        // Labels are visible before they are placed.
        for s in stmts {
            match s {
                Stmt::Label(name) => {
                    let label = self.new_label();
                    self.declare(name, Sym::Label(label));
                }
                Stmt::Targets(name, targets) => {
                    self.declare(name, Sym::Targets(Rc::new(targets.clone())))
                }
                _ => {}
            }
        }
        for s in stmts {
            match s {
                Stmt::Label(name) => {
                    if let Some(Sym::Label(l)) = self.scopes.last().and_then(|s| s.get(name)) {
                        let l = *l;
                        self.set_label(l);
                    }
                }
                Stmt::Targets(..) => {}
                Stmt::Reg { line, ty, names } => {
                    let bad = Bad::at(*line);
                    let Some(parsed) = Ty::parse(ty) else {
                        return Err(bad(format!("registers of type `.{ty}`")));
                    };
                    for n in names {
                        let rows = u64::from(self.w_rows)
                            + u64::from(self.d_rows)
                            + u64::from(self.p_rows);
                        if rows + u64::from(n.count.unwrap_or(1)) > u64::from(MAX_ROWS) {
                            return Err(bad("too many registers".to_owned()));
                        }
                        match n.count {
                            None => {
                                let sym = self.new_register(parsed);
                                self.declare(&n.name, sym);
                            }
                            Some(count) => {
                                for i in 0..count {
                                    let sym = self.new_register(parsed);
                                    self.declare(&format!("{}{i}", n.name), sym);
                                }
                            }
                        }
                    }
                }
                Stmt::Var(v) => {
                    let sym = match v.space {
                        VarSpace::Shared if v.external || v.size == 0 => {
                            self.dynamic_align = self.dynamic_align.max(v.align);
                            self.dynamic.push(v.name.clone());
                            continue;
                        }
                        VarSpace::Shared => {
                            let known = self.inner_shared.get(&std::ptr::from_ref(v)).copied();
                            let at = match known {
                                Some(at) => at,
                                None => self.place_shared(v).map_err(Bad::at(v.line))?,
                            };
                            self.inner_shared.insert(std::ptr::from_ref(v), at);
                            Sym::Shared(at)
                        }
                        VarSpace::Local | VarSpace::Param => {
                            Sym::Local(self.place_local(v).map_err(Bad::at(v.line))?)
                        }
                        VarSpace::Global | VarSpace::Const => {
                            let message =
                                format!("`{}`: global variables inside functions", v.name);
                            return Err(Bad::at(v.line)(message));
                        }
                    };
                    self.declare(&v.name, sym);
                }
                Stmt::Block(b) => {
                    self.scopes.push(HashMap::new());
                    self.body(b)?;
                    self.scopes.pop();
                }
                Stmt::Inst(i) => self.inst(i).map_err(|mut bad| {
                    // The innermost instruction is the one to name.
                    if bad.inst.is_none() && bad.line == 0 {
                        bad.inst = Some(i.clone());
                    }
                    bad
                })?,
            }
        }
        Ok(())
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
        });
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

    fn lookup(&self, name: &str) -> Option<Sym> {
        let base = self.bases.last().copied().unwrap_or(0);
        for scope in self.scopes[base..].iter().rev() {
            if let Some(s) = scope.get(name) {
                return Some(s.clone());
            }
        }
        if let Some(&at) = self.module_shared.get(name) {
            return Some(Sym::Shared(at));
        }
        let v = self.vars.get(name)?;
        matches!(v.space, VarSpace::Global | VarSpace::Const).then_some(Sym::Global(v.index))
    }

    fn const_w(&mut self, c: Const) -> W {
        let (rows, order) = (&mut self.w_rows, &mut self.w_order);
        *self.w_consts.entry(c).or_insert_with(|| {
            let w = W(*rows);
            *rows += 1;
            order.push((w, c));
            w
        })
    }

    fn const_d(&mut self, c: Const) -> D {
        let (rows, order) = (&mut self.d_rows, &mut self.d_order);
        *self.d_consts.entry(c).or_insert_with(|| {
            let d = D(*rows);
            *rows += 1;
            order.push((d, c));
            d
        })
    }

    fn imm_w(&mut self, v: u32) -> W {
        self.const_w(Const::Imm(u64::from(v)))
    }

    fn imm_d(&mut self, v: u64) -> D {
        self.const_d(Const::Imm(v))
    }

    fn special(name: &str) -> Option<Const> {
        let axis = |s: &str| match s {
            "x" => Some(0),
            "y" => Some(1),
            "z" => Some(2),
            _ => None,
        };
        let (base, component) = name.split_once('.').unwrap_or((name, ""));
        Some(match base {
            "%tid" => Const::Tid(axis(component)?),
            "%ntid" => Const::Ntid(axis(component)?),
            // Without cluster launches every block is its own cluster.
            "%ctaid" | "%clusterid" => Const::Ctaid(axis(component)?),
            "%nctaid" | "%nclusterid" => Const::Nctaid(axis(component)?),
            "%cluster_ctaid" => Const::Imm(0),
            "%cluster_nctaid" => Const::Imm(1),
            "%cluster_ctarank" => Const::Imm(0),
            "%cluster_nctarank" => Const::Imm(1),
            "%laneid" => Const::LaneId,
            "%warpid" => Const::WarpId,
            "%nwarpid" => Const::WarpCount,
            "%smid" => Const::Imm(0),
            "%nsmid" => Const::Imm(1),
            "%gridid" => Const::Imm(0),
            "%lanemask_eq" => Const::LaneMask(LaneMask::Eq),
            "%lanemask_lt" => Const::LaneMask(LaneMask::Lt),
            "%lanemask_le" => Const::LaneMask(LaneMask::Le),
            "%lanemask_gt" => Const::LaneMask(LaneMask::Gt),
            "%lanemask_ge" => Const::LaneMask(LaneMask::Ge),
            "%dynamic_smem_size" => Const::DynamicShared,
            "%total_smem_size" => Const::TotalShared,
            "WARP_SZ" => Const::Imm(32),
            _ => return None,
        })
    }

    /// The constant a name stands for when used as a value: an address or a special register.
    fn name_const(&mut self, name: &str, offset: i64) -> Res<Const> {
        Ok(match self.lookup(name) {
            Some(Sym::Global(index)) => Const::Variable(index, offset),
            Some(Sym::Shared(at) | Sym::Local(at) | Sym::Param(at)) => {
                Const::Imm((i64::from(at) + offset) as u64)
            }
            Some(Sym::W(..) | Sym::D(..) | Sym::P(_)) => {
                return Err(format!("register `{name}` has the wrong width here"));
            }
            Some(Sym::Label(_) | Sym::Targets(_)) => {
                return Err(format!("label `{name}` used as a value"));
            }
            None if self.dynamic.iter().any(|d| d == name) => {
                // Dynamic shared memory begins where the static ends, known only at the end.
                Const::Imm(DYNAMIC_MARK.wrapping_add(offset as u64))
            }
            None => match Self::special(name) {
                Some(c) => c,
                None => return Err(format!("unknown name `{name}`")),
            },
        })
    }

    /// A source of at most 32 bits.
    fn w(&mut self, o: &Operand) -> Res<W> {
        match o {
            Operand::Name(n) => match self.lookup(n) {
                Some(Sym::W(w)) => Ok(w),
                _ => {
                    let c = self.name_const(n, 0)?;
                    if matches!(c, Const::Variable(..)) {
                        return Err(format!("address of `{n}` in a 32-bit register"));
                    }
                    Ok(self.const_w(c))
                }
            },
            Operand::Offset(n, off) => {
                let c = self.name_const(n, *off)?;
                Ok(self.const_w(c))
            }
            Operand::Int(v) => Ok(self.imm_w(*v as u32)),
            Operand::F32(v) => Ok(self.imm_w(*v)),
            // A decimal or double literal in a single-precision place is converted.
            Operand::F64(v) => Ok(self.imm_w((f64::from_bits(*v) as f32).to_bits())),
            _ => Err("expected a 32-bit operand".into()),
        }
    }

    /// A source of 16 bits; immediates are cut to size.
    fn h(&mut self, o: &Operand) -> Res<W> {
        match o {
            Operand::Int(v) => Ok(self.imm_w(*v as u32 & 0xffff)),
            _ => self.w(o),
        }
    }

    /// A source of 64 bits.
    fn d(&mut self, o: &Operand) -> Res<D> {
        match o {
            Operand::Name(n) => match self.lookup(n) {
                Some(Sym::D(d)) => Ok(d),
                _ => {
                    let c = self.name_const(n, 0)?;
                    Ok(self.const_d(c))
                }
            },
            Operand::Offset(n, off) => {
                let c = self.name_const(n, *off)?;
                Ok(self.const_d(c))
            }
            Operand::Int(v) => Ok(self.imm_d(*v as u64)),
            Operand::F64(v) => Ok(self.imm_d(*v)),
            Operand::F32(v) => Ok(self.imm_d(f64::from(f32::from_bits(*v)).to_bits())),
            _ => Err("expected a 64-bit operand".into()),
        }
    }

    /// A source of the width of `ty`.
    fn row(&mut self, o: &Operand, ty: Ty) -> Res<Row> {
        Ok(match ty.size() {
            8 => Row::D(self.d(o)?),
            4 => Row::W(self.w(o)?),
            _ => Row::W(self.h(o)?),
        })
    }

    /// A source that may be a register wider than the instruction's type, as loads and stores allow.
    fn any_row(&mut self, o: &Operand, ty: Ty) -> Res<Row> {
        if let Operand::Name(n) = o {
            match self.lookup(n) {
                Some(Sym::W(w)) if ty.size() <= 4 => return Ok(Row::W(w)),
                Some(Sym::D(d)) => return Ok(Row::D(d)),
                _ => {}
            }
        }
        self.row(o, ty)
    }

    fn pred_reg(&self, name: &str) -> Res<P> {
        match self.lookup(name) {
            Some(Sym::P(p)) => Ok(p),
            _ => Err(format!("`{name}` is not a predicate register")),
        }
    }

    /// A predicate source and whether it is negated.
    fn p(&mut self, o: &Operand) -> Res<(P, bool)> {
        match o {
            Operand::Name(n) => Ok((self.pred_reg(n)?, false)),
            Operand::Not(n) => Ok((self.pred_reg(n)?, true)),
            // Row 0 of no register: predicates start as 0, and this one is never written.
            Operand::Int(v) => {
                let zero = match self.scopes[0].get(ZERO_PRED) {
                    Some(Sym::P(p)) => *p,
                    _ => {
                        self.p_rows += 1;
                        let p = P(self.p_rows - 1);
                        self.scopes[0].insert(ZERO_PRED.to_owned(), Sym::P(p));
                        p
                    }
                };
                Ok((zero, *v != 0))
            }
            _ => Err("expected a predicate".into()),
        }
    }

    fn dst(&self, o: &Operand) -> Res<Sym> {
        match o {
            Operand::Name(n) => match self.lookup(n) {
                Some(s @ (Sym::W(..) | Sym::D(..) | Sym::P(_))) => Ok(s),
                _ => Err(format!("`{n}` is not a register")),
            },
            _ => Err("the destination must be a register".into()),
        }
    }

    fn dw(&self, o: &Operand) -> Res<W> {
        match self.dst(o)? {
            Sym::W(w) => Ok(w),
            _ => Err("the destination must be a 32-bit register".into()),
        }
    }

    fn dd(&self, o: &Operand) -> Res<D> {
        match self.dst(o)? {
            Sym::D(d) => Ok(d),
            _ => Err("the destination must be a 64-bit register".into()),
        }
    }

    fn dp(&self, o: &Operand) -> Res<P> {
        match self.dst(o)? {
            Sym::P(p) => Ok(p),
            _ => Err("the destination must be a predicate".into()),
        }
    }

    /// A destination of either width, or `_`.
    fn drow(&self, o: &Operand) -> Res<Option<Row>> {
        if *o == Operand::Sink {
            return Ok(None);
        }
        match self.dst(o)? {
            Sym::W(w) => Ok(Some(Row::W(w))),
            Sym::D(d) => Ok(Some(Row::D(d))),
            _ => Err("the destination must not be a predicate".into()),
        }
    }

    /// The address operand of a memory instruction, and the variable's space if it names one.
    fn addr(&mut self, o: &Operand) -> Res<Addr> {
        let Operand::Addr { base, offset, rest } = o else {
            return Err("expected an address in brackets".into());
        };
        if !rest.is_empty() {
            return Err("tensor coordinates".into());
        }
        match base {
            AddrBase::None => Ok(Addr {
                base: Row::D(self.imm_d(*offset as u64)),
                offset: 0,
            }),
            AddrBase::Name(n) => match self.lookup(n) {
                Some(Sym::W(w)) => Ok(Addr {
                    base: Row::W(w),
                    offset: *offset,
                }),
                Some(Sym::D(d)) => Ok(Addr {
                    base: Row::D(d),
                    offset: *offset,
                }),
                _ => {
                    let c = self.name_const(n, *offset)?;
                    Ok(Addr {
                        base: Row::D(self.const_d(c)),
                        offset: 0,
                    })
                }
            },
        }
    }

    /// A call of a function of the module: its body goes here, its parameters are local memory.
    fn call(&mut self, i: &Rc<ast::Inst>, guard: Option<(P, bool)>) -> Result<(), Bad> {
        let mut o = &i.operands[..];
        let rets: &[Operand] = match o {
            [Operand::List(r), Operand::Name(_), ..] => {
                o = &o[1..];
                r
            }
            _ => &[],
        };
        let Some(Operand::Name(name)) = o.first() else {
            return Err(String::from("indirect call").into());
        };
        let args: &[Operand] = match o.get(1) {
            Some(Operand::List(a)) => a,
            None => &[],
            _ => return Err(String::from("malformed call").into()),
        };
        if o.len() > 2 || !matches!(self.lookup(name), None | Some(Sym::Label(_))) {
            return Err(String::from("indirect call").into());
        }
        let slot = |d: &Self, o: &Operand| match o {
            Operand::Name(n) => match d.lookup(n) {
                Some(Sym::Local(at)) => Ok(at),
                _ => Err(format!("argument `{n}` is not a parameter variable")),
            },
            _ => Err("arguments must be parameter variables".to_owned()),
        };
        let args = args
            .iter()
            .map(|a| slot(self, a))
            .collect::<Res<Vec<u32>>>()?;
        let rets = rets
            .iter()
            .map(|a| slot(self, a))
            .collect::<Res<Vec<u32>>>()?;
        if name == "__assertfail" {
            self.emit(i, Op::AssertFail { params: args }, Class::Branch, guard);
            return Ok(());
        }
        // A declaration may come before the definition.
        let ast = self.ast;
        let Some(f) = ast
            .funcs
            .iter()
            .find(|f| f.name == *name && f.body.is_some())
        else {
            return Err(format!("call of `{name}`, which is not defined in this module").into());
        };
        if self.calls.contains(&f.name.as_str()) {
            return Err(format!("recursive call of `{name}`").into());
        }
        if self.calls.len() > MAX_INLINE_DEPTH {
            return Err(String::from("calls nested too deeply").into());
        }
        if f.params.len() != args.len() || f.rets.len() != rets.len() {
            return Err(format!("call of `{name}` with a wrong number of arguments").into());
        }
        let end = self.new_label();
        if let Some((p, negated)) = guard {
            self.emit(
                i,
                Op::Branch { target: end },
                Class::Branch,
                Some((p, !negated)),
            );
        } else {
            self.emit(i, Op::Nop, Class::Branch, None);
        }
        let mut scope = HashMap::new();
        for (v, &at) in f.params.iter().zip(&args).chain(f.rets.iter().zip(&rets)) {
            scope.insert(v.name.clone(), Sym::Local(at));
        }
        self.bases.push(self.scopes.len());
        self.scopes.push(scope);
        self.calls.push(&f.name);
        self.returns.push(end);
        let body = f.body.as_deref().unwrap_or_default();
        let result = self.body(body);
        self.returns.pop();
        self.calls.pop();
        self.scopes.pop();
        self.bases.pop();
        result?;
        self.set_label(end);
        Ok(())
    }

    fn finish(mut self, f: &Func, params: Vec<ParamInfo>, param_bytes: u32) -> Res<Kernel> {
        // Falling off the end is an exit; labels may also point there.
        self.code.push(Inst {
            op: Op::Exit,
            guard: None,
            reconverge: NONE,
        });
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
const ZERO_PRED: &str = "(zero predicate)";

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
