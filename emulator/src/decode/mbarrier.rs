//! Barrier objects in shared memory.

use super::{Decoder, Res, arity};
use crate::ir::regs::{D, map1};
use crate::ir::{Addr, MbarOp, MemSpace, Op, Phase};
use crate::ptx::ast::Operand;
use crate::report::Class;

impl Decoder<'_> {
    pub(super) fn mbarrier(&mut self, m: &[&str], o: &[Operand]) -> Res<(MbarOp, Addr)> {
        // Scopes and semantics only matter to hardware; cluster-remote barriers are not known.
        let kept: Vec<&str> = m
            .iter()
            .copied()
            .filter(|s| {
                !matches!(
                    *s,
                    "shared"
                        | "shared::cta"
                        | "shared::cluster"
                        | "cta"
                        | "cluster"
                        | "b64"
                        | "release"
                        | "acquire"
                        | "relaxed"
                )
            })
            .collect();
        let state = |s: &mut Self, o: &Operand| -> Res<Option<D>> {
            if *o == Operand::Sink {
                Ok(None)
            } else {
                s.dd(o).map(Some)
            }
        };
        Ok(match (&kept[..], o) {
            (["init"], [a, n]) => (MbarOp::Init { count: self.w(n)? }, self.addr(a)?),
            (["inval"], [a]) => (MbarOp::Inval, self.addr(a)?),
            (["expect_tx"], [a, tx]) => (MbarOp::ExpectTx { tx: self.w(tx)? }, self.addr(a)?),
            (["complete_tx"], [a, tx]) => (MbarOp::CompleteTx { tx: self.w(tx)? }, self.addr(a)?),
            ([kind @ ("arrive" | "arrive_drop"), rest @ ..], o) => {
                let (st, a, extra) = match o {
                    [Operand::Addr { .. }] => (None, &o[0], None),
                    [Operand::Addr { .. }, n] => (None, &o[0], Some(n)),
                    [s, a] => (state(self, s)?, a, None),
                    [s, a, n] => (state(self, s)?, a, Some(n)),
                    _ => return Err("number of operands".into()),
                };
                let extra = extra.map(|n| self.w(n)).transpose()?;
                let drop = *kind == "arrive_drop";
                let (count, tx, no_complete) = match (rest, extra) {
                    ([], _) => (extra, None, false),
                    (["noComplete"], Some(_)) => (extra, None, true),
                    (["expect_tx"], Some(_)) => (None, extra, false),
                    _ => return Err(String::new()),
                };
                (
                    MbarOp::Arrive {
                        state: st,
                        count,
                        tx,
                        drop,
                        no_complete,
                    },
                    self.addr(a)?,
                )
            }
            ([kind @ ("test_wait" | "try_wait"), rest @ ..], [p, a, s, hint @ ..]) => {
                // Only `try_wait` can suspend, for a time.
                match (*kind, hint) {
                    (_, []) => {}
                    ("try_wait", [time]) => _ = self.w(time)?,
                    _ => return Err("number of operands".into()),
                }
                let done = self.dp(p)?;
                let phase = match rest {
                    [] => Phase::State(self.d(s)?),
                    ["parity"] => Phase::Parity(self.w(s)?),
                    _ => return Err(String::new()),
                };
                (
                    MbarOp::TestWait {
                        done,
                        phase,
                        may_suspend: *kind == "try_wait",
                    },
                    self.addr(a)?,
                )
            }
            _ => return Err(String::new()),
        })
    }

    /// The lower word of a state is the count that was pending before the arrival.
    pub(super) fn pending_count(&mut self, m: &[&str], o: &[Operand]) -> Res<(Op, Class)> {
        let [d, s] = arity(o)?;
        if m != ["pending_count", "b64"] {
            return Err(String::new());
        }
        Ok((
            Op::Alu(map1(self.dw(d)?, self.d(s)?, |s| s as u32)),
            Class::Barrier,
        ))
    }

    /// `cp.async.mbarrier.arrive`, after `arrive`.
    pub(super) fn cp_async_arrive(&mut self, m: &[&str], o: &[Operand]) -> Res<(Op, Class)> {
        let [a] = arity(o)?;
        self.note_access(MemSpace::Shared, 8);
        let m: Vec<&str> = m
            .iter()
            .copied()
            .filter(|s| !matches!(*s, "shared" | "shared::cta" | "b64"))
            .collect();
        let no_inc = match m[..] {
            [] => false,
            ["noinc"] => true,
            _ => return Err(String::new()),
        };
        Ok((
            Op::Mbar {
                op: MbarOp::CpAsyncArrive { no_inc },
                addr: self.addr(a)?,
            },
            Class::AsyncCopy,
        ))
    }
}
