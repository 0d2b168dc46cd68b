//! Calls: the body of the function goes where it is called.

use std::collections::HashMap;
use std::rc::Rc;

use super::scope::Sym;
use super::{Bad, Decoder, Res};
use crate::ir::Op;
use crate::ir::regs::P;
use crate::ptx::ast::{self, Operand};
use crate::report::Class;

/// Calls nested more deeply are refused.
const MAX_INLINE_DEPTH: usize = 16;

impl<'a> Decoder<'a> {
    /// A call of a function of the module: its body goes here, its parameters are local memory.
    pub(super) fn call(&mut self, i: &Rc<ast::Inst>, guard: Option<(P, bool)>) -> Result<(), Bad> {
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
}
