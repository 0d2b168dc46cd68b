//! Branches, exits and hints.

use super::{Decoder, Res, Sym, arity};
use crate::op::Op;
use crate::ptx::ast::Operand;
use crate::report::Class;

impl Decoder<'_> {
    pub(super) fn flow(
        &mut self,
        name: &str,
        m: &[&str],
        o: &[Operand],
    ) -> Option<Res<(Op, Class)>> {
        let class = Class::Branch;
        Some(match name {
            "bra" => self.bra(m, o).map(|op| (op, class)),
            "brx" => self.brx(m, o).map(|op| (op, class)),
            // In an inlined function a return goes to its end.
            "ret" => Ok((
                self.returns
                    .last()
                    .map_or(Op::Exit, |&target| Op::Branch { target }),
                class,
            )),
            "exit" => Ok((Op::Exit, class)),
            "trap" | "brkpt" => Ok((Op::Trap, class)),
            "nanosleep" | "pmevent" | "griddepcontrol" => Ok((Op::Nop, Class::Other)),
            _ => return None,
        })
    }

    fn label(&self, name: &str) -> Res<u32> {
        match self.lookup(name) {
            Some(Sym::Label(l)) => Ok(l),
            _ => Err(format!("unknown label `{name}`")),
        }
    }

    fn bra(&mut self, m: &[&str], o: &[Operand]) -> Res<Op> {
        if !matches!(m, [] | ["uni"]) {
            return Err(String::new());
        }
        let [Operand::Name(n)] = arity(o)? else {
            return Err("expected a label".into());
        };
        Ok(Op::Branch {
            target: self.label(n)?,
        })
    }

    fn brx(&mut self, m: &[&str], o: &[Operand]) -> Res<Op> {
        if !matches!(m, ["idx"] | ["idx", "uni"]) {
            return Err(String::new());
        }
        let [index, Operand::Name(list)] = arity(o)? else {
            return Err("expected a label list".into());
        };
        let index = self.w(index)?;
        let Some(Sym::Targets(names)) = self.lookup(list) else {
            return Err(format!("unknown label list `{list}`"));
        };
        let targets = names
            .iter()
            .map(|n| self.label(n))
            .collect::<Res<Vec<u32>>>()?;
        Ok(Op::BranchIndexed { index, targets })
    }
}
