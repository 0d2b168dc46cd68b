//! Barriers, fences, shuffles, votes and mbarriers.

use super::{Decoder, Res, arity};
use crate::decode::ty::Ty;
use crate::ir::regs::map1;
use crate::ir::{
    Bar, BarKind, CLUSTER_BARRIER, Collective, MbarOp, MemSpace, Op, Phase, ProxyFence, RedOp,
    ReduxOp, ShflMode,
};
use crate::ptx::ast::Operand;
use crate::report::Class;

impl Decoder<'_> {
    pub(super) fn sync(
        &mut self,
        name: &str,
        m: &[&str],
        o: &[Operand],
    ) -> Option<Res<(Op, Class)>> {
        Some(match name {
            "bar" | "barrier" if m.first() == Some(&"warp") => self.warp_sync(m, o),
            "barrier" if m.first() == Some(&"cluster") => self.cluster_barrier(&m[1..], o),
            "bar" | "barrier" => self.bar(name, m, o),
            "membar" | "fence" => fence(name, m, o),
            "shfl" => self.shfl(m, o),
            "vote" => self.vote(m, o),
            "match" => self.matching(m, o),
            "redux" => self.redux(m, o),
            "elect" => self.elect(m, o),
            "mbarrier" if m.first() == Some(&"pending_count") => self.pending_count(m, o),
            "mbarrier" => {
                self.note_access(MemSpace::Shared, 8);
                self.mbarrier(m, o)
                    .map(|(op, addr)| (Op::Mbar { op, addr }, Class::Barrier))
            }
            _ => return None,
        })
    }

    fn warp_sync(&mut self, m: &[&str], o: &[Operand]) -> Res<(Op, Class)> {
        let [mask] = arity(o)?;
        if m != ["warp", "sync"] {
            return Err(String::new());
        }
        let mask = Some(self.w(mask)?);
        Ok((
            Op::Collective {
                mask,
                op: Collective::Sync,
            },
            Class::Barrier,
        ))
    }

    fn bar(&mut self, name: &str, m: &[&str], o: &[Operand]) -> Res<(Op, Class)> {
        let m = if m.first() == Some(&"cta") {
            &m[1..]
        } else {
            m
        };
        let aligned = name == "bar" || m.contains(&"aligned");
        let m: Vec<&str> = m.iter().copied().filter(|s| *s != "aligned").collect();
        let bar = match (&m[..], o) {
            (["sync"], [id]) => Bar {
                kind: BarKind::Sync,
                aligned,
                id: self.w(id)?,
                count: None,
            },
            (["sync"], [id, n]) => Bar {
                kind: BarKind::Sync,
                aligned,
                id: self.w(id)?,
                count: Some(self.w(n)?),
            },
            (["arrive"], [id, n]) => Bar {
                kind: BarKind::Arrive,
                aligned,
                id: self.w(id)?,
                count: Some(self.w(n)?),
            },
            (["red", op, ty], _) => {
                let (d, id, count, p) = match o {
                    [d, id, p] => (d, id, None, p),
                    [d, id, n, p] => (d, id, Some(self.w(n)?), p),
                    _ => return Err("number of operands".into()),
                };
                let (op, dw, dp) = match (*op, *ty) {
                    ("popc", "u32") => (RedOp::Popc, Some(self.dw(d)?), None),
                    ("and", "pred") => (RedOp::And, None, Some(self.dp(d)?)),
                    ("or", "pred") => (RedOp::Or, None, Some(self.dp(d)?)),
                    _ => return Err(String::new()),
                };
                let (p, neg) = self.p(p)?;
                Bar {
                    kind: BarKind::Red { op, p, neg, dw, dp },
                    aligned,
                    id: self.w(id)?,
                    count,
                }
            }
            _ => return Err(String::new()),
        };
        Ok((Op::Bar(bar), Class::Barrier))
    }

    /// `barrier.cluster`: of a cluster of one block, all threads of the block.
    fn cluster_barrier(&mut self, m: &[&str], o: &[Operand]) -> Res<(Op, Class)> {
        let [] = arity(o)?;
        let (m, aligned) = match m {
            [rest @ .., "aligned"] => (rest, true),
            m => (m, false),
        };
        let kind = match m {
            ["arrive"] | ["arrive", "release"] => BarKind::ClusterArrive { relaxed: false },
            ["arrive", "relaxed"] => BarKind::ClusterArrive { relaxed: true },
            ["wait"] | ["wait", "acquire"] => BarKind::ClusterWait,
            _ => return Err(String::new()),
        };
        let bar = Bar {
            kind,
            aligned,
            id: self.imm_w(CLUSTER_BARRIER),
            count: None,
        };
        Ok((Op::Bar(bar), Class::Barrier))
    }

    fn shfl(&mut self, m: &[&str], o: &[Operand]) -> Res<(Op, Class)> {
        let (mode, sync) = match m {
            ["sync", mode, "b32"] => (*mode, true),
            [mode, "b32"] => (*mode, false),
            _ => return Err(String::new()),
        };
        let mode = match mode {
            "up" => ShflMode::Up,
            "down" => ShflMode::Down,
            "bfly" => ShflMode::Bfly,
            "idx" => ShflMode::Idx,
            _ => return Err(String::new()),
        };
        let (d, a, b, c, mask) = match o {
            [d, a, b, c, mask] if sync => (d, a, b, c, Some(self.w(mask)?)),
            [d, a, b, c] if !sync => (d, a, b, c, None),
            _ => return Err("number of operands".into()),
        };
        let (d, pred) = match d {
            Operand::Pair(d, p) => {
                let p = if **p == Operand::Sink {
                    None
                } else {
                    Some(self.dp(p)?)
                };
                (
                    if **d == Operand::Sink {
                        None
                    } else {
                        Some(self.dw(d)?)
                    },
                    p,
                )
            }
            _ => (Some(self.dw(d)?), None),
        };
        let op = Collective::Shfl {
            mode,
            d,
            pred,
            a: self.w(a)?,
            b: self.w(b)?,
            c: self.w(c)?,
        };
        Ok((Op::Collective { mask, op }, Class::Shuffle))
    }

    fn vote(&mut self, m: &[&str], o: &[Operand]) -> Res<(Op, Class)> {
        let (m, sync) = if m.first() == Some(&"sync") {
            (&m[1..], true)
        } else {
            (m, false)
        };
        let (d, p, mask) = match o {
            [d, p, mask] if sync => (d, p, Some(self.w(mask)?)),
            [d, p] if !sync => (d, p, None),
            _ => return Err("number of operands".into()),
        };
        let (p, neg) = self.p(p)?;
        let op = match m {
            ["all", "pred"] => Collective::VoteAll {
                d: self.dp(d)?,
                p,
                neg,
            },
            ["any", "pred"] => Collective::VoteAny {
                d: self.dp(d)?,
                p,
                neg,
            },
            ["uni", "pred"] => Collective::VoteUni {
                d: self.dp(d)?,
                p,
                neg,
            },
            ["ballot", "b32"] => Collective::Ballot {
                d: self.dw(d)?,
                p,
                neg,
            },
            _ => return Err(String::new()),
        };
        Ok((Op::Collective { mask, op }, Class::Vote))
    }

    fn matching(&mut self, m: &[&str], o: &[Operand]) -> Res<(Op, Class)> {
        let [d, a, mask] = arity(o)?;
        let [kind, "sync", ty] = m else {
            return Err(String::new());
        };
        let ty = Ty::parse(ty)
            .filter(|t| matches!(t, Ty::B32 | Ty::B64))
            .ok_or_else(String::new)?;
        let a = self.row(a, ty)?;
        let mask = Some(self.w(mask)?);
        let op = match (*kind, d) {
            ("any", d) => Collective::MatchAny { d: self.dw(d)?, a },
            ("all", Operand::Pair(d, p)) => Collective::MatchAll {
                d: self.dw(d)?,
                pred: Some(self.dp(p)?),
                a,
            },
            ("all", d) => Collective::MatchAll {
                d: self.dw(d)?,
                pred: None,
                a,
            },
            _ => return Err(String::new()),
        };
        Ok((Op::Collective { mask, op }, Class::Vote))
    }

    fn redux(&mut self, m: &[&str], o: &[Operand]) -> Res<(Op, Class)> {
        let [d, a, mask] = arity(o)?;
        let op = match m {
            ["sync", "add", "u32" | "s32"] => ReduxOp::Add,
            ["sync", "min", "s32"] => ReduxOp::MinS,
            ["sync", "max", "s32"] => ReduxOp::MaxS,
            ["sync", "min", "u32"] => ReduxOp::MinU,
            ["sync", "max", "u32"] => ReduxOp::MaxU,
            ["sync", "and", "b32"] => ReduxOp::And,
            ["sync", "or", "b32"] => ReduxOp::Or,
            ["sync", "xor", "b32"] => ReduxOp::Xor,
            _ => return Err(String::new()),
        };
        let op = Collective::Redux {
            op,
            d: self.dw(d)?,
            a: self.w(a)?,
        };
        Ok((
            Op::Collective {
                mask: Some(self.w(mask)?),
                op,
            },
            Class::Vote,
        ))
    }

    fn elect(&mut self, m: &[&str], o: &[Operand]) -> Res<(Op, Class)> {
        let [d, mask] = arity(o)?;
        if m != ["sync"] {
            return Err(String::new());
        }
        let (d, p) = match d {
            Operand::Pair(d, p) => {
                let d = if **d == Operand::Sink {
                    None
                } else {
                    Some(self.dw(d)?)
                };
                (d, self.dp(p)?)
            }
            p => (None, self.dp(p)?),
        };
        Ok((
            Op::Collective {
                mask: Some(self.w(mask)?),
                op: Collective::Elect { d, p },
            },
            Class::Vote,
        ))
    }

    fn mbarrier(&mut self, m: &[&str], o: &[Operand]) -> Res<(MbarOp, crate::ir::Addr)> {
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
        let state = |s: &mut Self, o: &Operand| -> Res<Option<crate::ir::regs::D>> {
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
    fn pending_count(&mut self, m: &[&str], o: &[Operand]) -> Res<(Op, Class)> {
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

fn fence(name: &str, m: &[&str], o: &[Operand]) -> Res<(Op, Class)> {
    let [] = arity(o)?;
    let proxy = |shared, global| {
        // What makes shared memory visible makes mbarriers there so too.
        Op::ProxyFence(ProxyFence {
            shared,
            global,
            init: shared,
        })
    };
    let op = match (name, m) {
        (_, ["proxy", "alias"]) => Op::Nop,
        (_, ["proxy", "async"]) => proxy(true, true),
        (_, ["proxy", "async", "global"]) => proxy(false, true),
        (_, ["proxy", "async", "shared::cta" | "shared::cluster"]) => proxy(true, false),
        (
            "fence",
            [
                "proxy",
                "async::generic",
                "release",
                "sync_restrict::shared::cta",
                "cluster",
            ],
        ) => proxy(true, false),
        // The acquiring half: what was made visible is so already.
        (
            "fence",
            [
                "proxy",
                "async::generic",
                "acquire",
                "sync_restrict::shared::cluster",
                "cluster",
            ],
        ) => Op::Nop,
        ("fence", ["mbarrier_init", "release", "cluster"]) => Op::ProxyFence(ProxyFence {
            shared: false,
            global: false,
            init: true,
        }),
        ("membar", ["gl" | "cta" | "sys"]) => Op::Fence,
        (
            "fence",
            ["acquire", "sync_restrict::shared::cluster", "cluster"]
            | ["release", "sync_restrict::shared::cta", "cluster"]
            | ["cta" | "cluster" | "gpu" | "sys"]
            | [
                "sc" | "acq_rel" | "acquire" | "release",
                "cta" | "cluster" | "gpu" | "sys",
            ],
        ) => Op::Fence,
        _ => return Err(String::new()),
    };
    Ok((op, Class::Barrier))
}
