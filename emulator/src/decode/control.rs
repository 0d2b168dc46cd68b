//! Branches, calls, barriers.

use super::*;
use crate::ast::Arg;

impl Decoder<'_> {
    fn label(&self, arg: &Arg) -> Result<u32> {
        match arg {
            Arg::Name(n) => match self.labels.get(n) {
                Some(pc) => Ok(*pc),
                None => bad(format!("no label `{n}`")),
            },
            _ => bad("not a label"),
        }
    }

    pub fn control(&mut self, m: &mut Mods, args: &[Arg]) -> Result<Option<(Op, Class)>> {
        let need = |n: usize| -> Result<()> {
            if args.len() == n {
                Ok(())
            } else {
                bad(format!("{n} operands are needed"))
            }
        };
        let u32t = Ty {
            kind: Kind::U,
            bits: 32,
        };
        let op = match m.name {
            "bra" => {
                need(1)?;
                let uniform = m.has("uni");
                Op::Bra {
                    target: self.label(&args[0])?,
                    uniform,
                }
            }
            "brx" => {
                if !m.has("idx") {
                    return unknown("no `.idx`");
                }
                m.has("uni");
                need(2)?;
                let Arg::Name(list) = &args[1] else {
                    return bad("not a list of targets");
                };
                let Some(list) = self.targets.get(list).cloned() else {
                    return bad(format!("no target list `{list}`"));
                };
                let targets = list
                    .into_iter()
                    .map(|l| self.label(&Arg::Name(l)))
                    .collect::<Result<_>>()?;
                Op::Brx {
                    index: self.src(&args[0], u32t)?,
                    targets,
                }
            }
            "call" => self.call(m, args)?,
            "ret" => {
                m.has("uni");
                need(0)?;
                Op::Ret
            }
            "exit" => {
                need(0)?;
                Op::Exit
            }
            "trap" => Op::Trap,
            "brkpt" | "pmevent" => {
                m.has("mask");
                Op::Nop
            }
            "nanosleep" => {
                m.ty()?;
                return Ok(Some((Op::Yield, Class::Other)));
            }
            "griddepcontrol" => {
                if m.one_of(&["launch_dependents", "wait"]).is_none() {
                    return unknown("no action");
                }
                return Ok(Some((Op::Nop, Class::Other)));
            }
            "bar" | "barrier" if !m.peek("warp") => {
                return Ok(Some((self.barrier(m, args)?, Class::Barrier)));
            }
            _ => return Ok(None),
        };
        Ok(Some((op, Class::Branch)))
    }

    fn barrier(&mut self, m: &mut Mods, args: &[Arg]) -> Result<Op> {
        if m.peek("cluster") {
            return unknown("cluster barriers");
        }
        // `bar` is `barrier` with `.aligned` understood.
        let aligned = m.name == "bar" || m.has("aligned");
        m.has("cta");
        let Some(action) = m.one_of(&["sync", "arrive", "red"]) else {
            return unknown("no action");
        };
        let u32t = Ty {
            kind: Kind::U,
            bits: 32,
        };
        let mut reduce = None;
        let mut rest = args;
        if action == "red" {
            let op = match m.one_of(&["popc", "and", "or"]) {
                Some("popc") => Reduce::Popc,
                Some("and") => Reduce::And,
                Some(_) => Reduce::Or,
                None => return unknown("no reduction"),
            };
            let ty = m.ty()?;
            if !matches!(args.len(), 3 | 4) || (ty.kind == Kind::Pred) == (op == Reduce::Popc) {
                return bad("wrong operands");
            }
            let dst = if op == Reduce::Popc {
                self.dst(&args[0])?.index
            } else {
                match self.pred_dst(&args[0])? {
                    Some(p) => p,
                    None => return bad("the destination is needed"),
                }
            };
            reduce = Some((op, self.psrc(&args[args.len() - 1])?, dst));
            rest = &args[1..args.len() - 1];
        }
        if !(1..=2).contains(&rest.len()) || action == "arrive" && rest.len() != 2 {
            return bad("wrong number of operands");
        }
        Ok(Op::Barrier(Barrier {
            id: self.src(&rest[0], u32t)?,
            count: match rest.get(1) {
                Some(c) => Some(self.src(c, u32t)?),
                None => None,
            },
            aligned,
            arrive: action == "arrive",
            reduce,
        }))
    }

    fn call(&mut self, m: &mut Mods, args: &[Arg]) -> Result<Op> {
        m.has("uni");
        let (results, rest) = match args.first() {
            Some(Arg::List(l)) => (&l[..], &args[1..]),
            _ => (&[][..], args),
        };
        let Some(Arg::Name(target)) = rest.first() else {
            return bad("no callee");
        };
        let arguments = match rest.get(1) {
            Some(Arg::List(l)) => &l[..],
            _ => &[],
        };
        let slots = |d: &Self, list: &[Arg]| -> Result<Vec<u64>> {
            list.iter()
                .map(|a| match a {
                    Arg::Name(n) => match d.symbol(n) {
                        Some(Symbol::Frame(at)) => Ok(at),
                        _ => bad(format!("`{n}` is not a parameter variable")),
                    },
                    _ => bad("an argument is not a parameter variable"),
                })
                .collect()
        };
        let (results, args) = (slots(self, results)?, slots(self, arguments)?);
        match target.as_str() {
            // The runtime's own functions have no body.
            "__assertfail" | "__assert_fail" => {
                return Ok(Op::Assert("device-side assertion failed".to_owned()));
            }
            "vprintf" => return Ok(Op::Printf { results }),
            _ => {}
        }
        if self.regs.contains_key(target.as_str()) {
            self.queue_addressed();
            return Ok(Op::CallIndirect {
                target: Src::Reg(self.reg(target)?.index),
                args,
                results,
            });
        }
        let function = self.function_number(target)?;
        Ok(Op::Call {
            function,
            args,
            results,
        })
    }
}
