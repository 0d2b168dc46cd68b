//! Asynchronous copies and mbarriers.

use super::*;
use crate::ast::Arg;

const B32: Ty = Ty {
    kind: Kind::B,
    bits: 32,
};
const B64: Ty = Ty {
    kind: Kind::B,
    bits: 64,
};

impl Decoder<'_> {
    pub fn copies(&mut self, m: &mut Mods, args: &[Arg]) -> Result<Option<(Op, Class)>> {
        match m.name {
            "cp" => self.copy(m, args).map(Some),
            "mbarrier" => Ok(Some((self.mbarrier(m, args)?, Class::Barrier))),
            _ => Ok(None),
        }
    }

    fn copy(&mut self, m: &mut Mods, args: &[Arg]) -> Result<(Op, Class)> {
        if !m.has("async") {
            return unknown("no `.async`");
        }
        if m.peek("bulk") {
            return unknown("bulk copies");
        }
        let class = Class::AsyncCopy;
        if m.has("mbarrier") {
            if !m.has("arrive") || args.len() != 1 {
                return unknown("this mbarrier operation");
            }
            let noinc = m.has("noinc");
            let mem = self.space(m)?;
            if m.ty()?.bits != 64 {
                return unknown("this type");
            }
            let op = Op::Mbar {
                op: Mbar::CopyArrive { noinc },
                mem,
                address: self.address(&args[0])?,
            };
            return Ok((op, class));
        }
        if m.has("commit_group") {
            return Ok((Op::CpCommit, class));
        }
        if m.has("wait_all") {
            return Ok((Op::CpWait(None), class));
        }
        if m.has("wait_group") {
            let [Arg::Int(n)] = args else {
                return bad("the number of groups is not an immediate");
            };
            let Ok(n) = u32::try_from(*n) else {
                return bad("a negative number of groups");
            };
            return Ok((Op::CpWait(Some(n)), class));
        }
        let cg = match m.one_of(&["ca", "cg"]) {
            Some(s) => s == "cg",
            None => return unknown("no cache operator"),
        };
        if !(m.has("shared") || m.has("shared::cta")) || !m.has("global") {
            return unknown("these spaces");
        }
        let policy = m.has("L2::cache_hint");
        while m.prefixed("L2::").is_some() {}
        let mut args = args;
        if policy {
            let Some((_, rest)) = args.split_last() else {
                return bad("operands are missing");
            };
            args = rest;
        }
        if !(3..=4).contains(&args.len()) {
            return bad("3 or 4 operands are needed");
        }
        let bytes = match args[2] {
            Arg::Int(n @ (4 | 8 | 16)) if n == 16 || !cg => n as u32,
            _ => return bad("the size is not one that the instruction copies"),
        };
        let (mut size, mut ignore) = (None, None);
        if let Some(a) = args.get(3) {
            match a {
                Arg::Name(n) if self.reg(n).is_ok_and(|r| r.pred) => ignore = Some(self.psrc(a)?),
                Arg::Not(_) => ignore = Some(self.psrc(a)?),
                _ => size = Some(self.src(a, B32)?),
            }
        }
        let op = Op::CpAsync {
            dst: self.address(&args[0])?,
            src: self.address(&args[1])?,
            bytes,
            size,
            ignore,
            src_mem: Mem::Global,
        };
        Ok((op, class))
    }

    fn mbarrier(&mut self, m: &mut Mods, args: &[Arg]) -> Result<Op> {
        const ACTIONS: &[&str] = &[
            "init",
            "inval",
            "arrive",
            "arrive_drop",
            "test_wait",
            "try_wait",
            "expect_tx",
            "complete_tx",
            "pending_count",
        ];
        // `.arrive.expect_tx` names two actions, so the order of the modifiers matters.
        let Some(action) = m
            .parts
            .first()
            .and_then(|p| ACTIONS.iter().find(|a| *a == p))
        else {
            return unknown("no known action");
        };
        m.has(action);
        let need = |range: std::ops::RangeInclusive<usize>| -> Result<()> {
            if range.contains(&args.len()) {
                Ok(())
            } else {
                bad("wrong number of operands")
            }
        };
        if *action == "pending_count" {
            m.ty()?;
            need(2..=2)?;
            return Ok(Op::MbarPending {
                dst: self.dst(&args[0])?.index,
                state: self.src(&args[1], B64)?,
            });
        }
        let expect = m.has("expect_tx");
        let no_complete = m.has("noComplete");
        let parity = m.has("parity");
        m.one_of(&["release", "acquire", "relaxed"]);
        m.one_of(&["cta", "cluster"]);
        let mem = self.space(m)?;
        if !matches!(mem, Mem::Generic | Mem::Shared) {
            return unknown("this space");
        }
        if m.ty()?.bits != 64 {
            return unknown("this type");
        }
        let (op, address) = match *action {
            "init" => {
                need(2..=2)?;
                (Mbar::Init(self.src(&args[1], B32)?), &args[0])
            }
            "inval" => {
                need(1..=1)?;
                (Mbar::Inval, &args[0])
            }
            "expect_tx" => {
                need(2..=2)?;
                (Mbar::ExpectTx(self.src(&args[1], B32)?), &args[0])
            }
            "complete_tx" => {
                need(2..=2)?;
                (Mbar::CompleteTx(self.src(&args[1], B32)?), &args[0])
            }
            "arrive" | "arrive_drop" => {
                // The state may be left out: `mbarrier.arrive.b64 _, [a]`.
                need(2..=3)?;
                let op = Mbar::Arrive {
                    state: self.dst_or_sink(&args[0])?.map(|r| r.index),
                    count: match args.get(2) {
                        Some(c) => Some(self.src(c, B32)?),
                        None => None,
                    },
                    drop: *action == "arrive_drop",
                    no_complete,
                    expect,
                };
                if (expect || no_complete) && args.len() != 3 {
                    return bad("3 operands are needed");
                }
                (op, &args[1])
            }
            _ => {
                let suspend = *action == "try_wait";
                need(3..=if suspend { 4 } else { 3 })?;
                let Some(result) = self.pred_dst(&args[0])? else {
                    return bad("the destination is needed");
                };
                let op = Mbar::Test {
                    result,
                    state: self.src(&args[2], if parity { B32 } else { B64 })?,
                    parity,
                };
                (op, &args[1])
            }
        };
        Ok(Op::Mbar {
            op,
            mem,
            address: self.address(address)?,
        })
    }
}
