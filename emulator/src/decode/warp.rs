//! Warp-wide instructions: shuffles, votes, matches, reductions.

use super::memory::scalar;
use super::*;
use crate::ast::Arg;

const B32: Ty = Ty {
    kind: Kind::B,
    bits: 32,
};

impl Decoder<'_> {
    /// `d|p` or `d`.
    fn with_pred(&self, arg: &Arg) -> Result<(Option<u32>, Option<u32>)> {
        Ok(match arg {
            Arg::Pair(d, p) => (self.dst_or_sink(d)?.map(|r| r.index), self.pred_dst(p)?),
            d => (self.dst_or_sink(d)?.map(|r| r.index), None),
        })
    }

    pub fn warp(&mut self, m: &mut Mods, args: &[Arg]) -> Result<Option<(Op, Class)>> {
        let need = |n: usize| -> Result<()> {
            if args.len() == n {
                Ok(())
            } else {
                bad(format!("{n} operands are needed"))
            }
        };
        if matches!(m.name, "shfl" | "vote" | "match" | "redux") && !m.has("sync") {
            return unknown("no `.sync`");
        }
        let name = m.name;
        Ok(Some(match name {
            "shfl" => {
                need(5)?;
                let mode = match m.one_of(&["up", "down", "bfly", "idx"]) {
                    Some("up") => ShflMode::Up,
                    Some("down") => ShflMode::Down,
                    Some("bfly") => ShflMode::Bfly,
                    Some(_) => ShflMode::Idx,
                    None => return unknown("no mode"),
                };
                let ty = m.ty()?;
                if ty.bits != 32 {
                    return unknown("this type");
                }
                let (dst, pred) = self.with_pred(&args[0])?;
                let op = Op::Shfl {
                    mode,
                    dst,
                    pred,
                    a: self.src(&args[1], ty)?,
                    b: self.src(&args[2], B32)?,
                    c: self.src(&args[3], B32)?,
                    mask: self.src(&args[4], B32)?,
                };
                (op, Class::Shuffle)
            }
            "vote" => {
                need(3)?;
                let mode = match m.one_of(&["all", "any", "uni", "ballot"]) {
                    Some("all") => VoteMode::All,
                    Some("any") => VoteMode::Any,
                    Some("uni") => VoteMode::Uni,
                    Some(_) => VoteMode::Ballot,
                    None => return unknown("no mode"),
                };
                let ty = m.ty()?;
                if (ty.kind == Kind::Pred) == (mode == VoteMode::Ballot) {
                    return unknown("this type");
                }
                let dst = if mode == VoteMode::Ballot {
                    self.dst(&args[0])?.index
                } else {
                    match self.pred_dst(&args[0])? {
                        Some(p) => p,
                        None => return bad("the destination is needed"),
                    }
                };
                let op = Op::Vote {
                    mode,
                    dst,
                    a: self.psrc(&args[1])?,
                    mask: self.src(&args[2], B32)?,
                };
                (op, Class::Vote)
            }
            "match" => {
                need(3)?;
                let all = match m.one_of(&["all", "any"]) {
                    Some(s) => s == "all",
                    None => return unknown("no mode"),
                };
                let ty = m.ty()?;
                let (dst, pred) = self.with_pred(&args[0])?;
                let op = Op::Match {
                    all,
                    dst,
                    pred,
                    a: self.src(&args[1], ty)?,
                    mask: self.src(&args[2], B32)?,
                };
                (op, Class::Vote)
            }
            "redux" => {
                need(3)?;
                let Some(op) = m.one_of(&["add", "min", "max", "and", "or", "xor"]) else {
                    return unknown("no operation");
                };
                let ty = m.ty()?;
                if ty.bits != 32 || !ty.is_int() {
                    return unknown("this type");
                }
                let op = Op::Redux {
                    dst: self.dst(&args[0])?.index,
                    f: scalar(op, ty, false, Mem::Shared)?,
                    a: self.src(&args[1], ty)?,
                    mask: self.src(&args[2], B32)?,
                };
                (op, Class::Vote)
            }
            "activemask" => {
                need(1)?;
                m.ty()?;
                let dst = self.dst(&args[0])?.index;
                (Op::ActiveMask { dst }, Class::Vote)
            }
            "elect" => {
                need(2)?;
                m.has("sync");
                let (dst, pred) = self.with_pred(&args[0])?;
                let mask = self.src(&args[1], B32)?;
                (Op::Elect { dst, pred, mask }, Class::Vote)
            }
            "bar" | "barrier" if m.has("warp") => {
                need(1)?;
                if !m.has("sync") {
                    return unknown("no `.sync`");
                }
                let mask = self.src(&args[0], B32)?;
                (Op::WarpSync { mask }, Class::Barrier)
            }
            _ => return Ok(None),
        }))
    }
}
