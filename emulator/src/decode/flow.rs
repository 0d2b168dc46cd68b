//! Branches, exits and hints.

use super::{Decoder, Res, Sym, arity};
use crate::ir::Op;
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
            "ret" => {
                let to = self.returns.last();
                let op = to.map_or(Op::Exit, |&target| Op::Branch { target });
                alone(m, &[&[], &["uni"]], o, (op, class))
            }
            "exit" => alone(m, &[&[]], o, (Op::Exit, class)),
            "trap" | "brkpt" => alone(m, &[&[]], o, (Op::Trap, class)),
            "griddepcontrol" => alone(
                m,
                &[&["launch_dependents"], &["wait"]],
                o,
                (Op::Nop, Class::Other),
            ),
            "nanosleep" => self.nanosleep(m, o),
            "pmevent" => match (m, o) {
                ([] | ["mask"], [Operand::Int(_)]) => Ok((Op::Nop, Class::Other)),
                _ => Err(String::new()),
            },
            _ => return None,
        })
    }

    fn nanosleep(&mut self, m: &[&str], o: &[Operand]) -> Res<(Op, Class)> {
        let [time] = arity(o)?;
        self.w(time)?;
        match m {
            ["u32"] => Ok((Op::Nop, Class::Other)),
            _ => Err(String::new()),
        }
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

/// `op`, of an instruction without operands and with one of these lists of modifiers.
fn alone<T>(m: &[&str], allowed: &[&[&str]], o: &[Operand], op: T) -> Res<T> {
    let [] = arity(o)?;
    match allowed.contains(&m) {
        true => Ok(op),
        false => Err(String::new()),
    }
}
