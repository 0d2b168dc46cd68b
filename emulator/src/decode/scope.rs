//! Names and the blocks they are visible in: registers, variables, labels.

use std::collections::HashMap;
use std::rc::Rc;

use super::ty::Ty;
use super::{Bad, Decoder};
use crate::ir::regs::{D, P, W};
use crate::ptx::ast::{Stmt, VarSpace};

/// Register rows of a warp.
const MAX_ROWS: u32 = 1 << 18;

/// What a name stands for.
#[derive(Debug, Clone)]
pub(super) enum Sym {
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

impl<'a> Decoder<'a> {
    pub(super) fn declare(&mut self, name: &str, sym: Sym) {
        if let Some(scope) = self.scopes.last_mut() {
            scope.insert(name.to_owned(), sym);
        }
    }

    pub(super) fn new_label(&mut self) -> u32 {
        self.labels.push(None);
        (self.labels.len() - 1) as u32
    }

    pub(super) fn set_label(&mut self, label: u32) {
        self.labels[label as usize] = Some(self.code.len() as u32);
    }

    pub(super) fn new_register(&mut self, ty: Ty) -> Sym {
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

    pub(super) fn lookup(&self, name: &str) -> Option<Sym> {
        let base = self.bases.last().copied().unwrap_or(0);
        for scope in self.scopes[base..].iter().rev() {
            if let Some(s) = scope.get(name) {
                if let Sym::W(w) = s {
                    self.named.borrow_mut().push(*w);
                }
                return Some(s.clone());
            }
        }
        if let Some(&at) = self.module_shared.get(name) {
            return Some(Sym::Shared(at));
        }
        let v = self.vars.get(name)?;
        matches!(v.space, VarSpace::Global | VarSpace::Const).then_some(Sym::Global(v.index))
    }

    /// Statements of one block: declares, then decodes in order.
    pub(super) fn body(&mut self, stmts: &'a [Stmt]) -> Result<(), Bad> {
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
}
