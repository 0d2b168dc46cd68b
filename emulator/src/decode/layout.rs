//! Where variables lie: parameters, shared memory of the block, local memory of a thread.

use std::collections::HashSet;

use super::{Decoder, Res};
use crate::ir::ParamInfo;
use crate::ptx::ast::{AddrBase, Func, Operand, Stmt, Var, VarSpace};

/// Largest frames of shared memory of a block and local memory of a thread.
const MAX_SHARED: u64 = 1 << 24;
const MAX_LOCAL: u64 = 512 << 10;

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

/// Names used anywhere in the statements, to lay out only the shared variables a kernel can reach.
fn names_in<'a>(stmts: &'a [Stmt], out: &mut HashSet<&'a str>) {
    fn operand<'a>(o: &'a Operand, out: &mut HashSet<&'a str>) {
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
    /// Places the module's shared variables that the kernel, or what it calls, names.
    pub(super) fn shared_layout(&mut self, f: &'a Func) -> Res<()> {
        let mut names = HashSet::new();
        let mut seen = vec![f.name.as_str()];
        let mut todo = vec![f];
        while let Some(f) = todo.pop() {
            let mut here = HashSet::new();
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

    pub(super) fn place_shared(&mut self, v: &Var) -> Res<u32> {
        let at = self.shared.next_multiple_of(v.align.max(1));
        self.shared = at + v.size;
        if self.shared > MAX_SHARED {
            return Err(format!("shared variable `{}` is too large", v.name));
        }
        Ok(at as u32)
    }

    pub(super) fn place_local(&mut self, v: &Var) -> Res<u32> {
        let at = self.local.next_multiple_of(v.align.max(1));
        self.local = at + v.size;
        if self.local > MAX_LOCAL {
            return Err(format!("local variable `{}` is too large", v.name));
        }
        Ok(at as u32)
    }
}
