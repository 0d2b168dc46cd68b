//! Moves, selections and address conversions.

use super::{Decoder, Res, Sym, arity};
use crate::decode::ty::Ty;
use crate::ir::regs::{Alu, D, FULL, LANES, P, W, map1, map2, map3};
use crate::ir::{MemSpace, Op, Row};
use crate::ptx::ast::Operand;
use crate::report::Class;
use crate::window::Window;

/// One part of a packed move.
#[derive(Clone, Copy)]
enum Part {
    W(W),
    D(D),
    Skip,
}

/// Where the rank of a block in its cluster begins in a shared address.
const RANK_SHIFT: u32 = 24;

impl Decoder<'_> {
    pub(super) fn moves(
        &mut self,
        name: &str,
        m: &[&str],
        o: &[Operand],
    ) -> Option<Res<(Op, Class)>> {
        let alu = |r: Res<Alu>| Some(r.map(|a| (Op::Alu(a), Class::Move)));
        match name {
            "mov" => Some(self.mov(m, o)),
            "cvta" => alu(self.cvta(m, o)),
            "selp" => alu(self.selp(m, o)),
            "slct" => alu(self.slct(m, o)),
            "isspacep" => Some(self.isspacep(m, o)),
            "activemask" => Some(self.activemask(m, o)),
            "mapa" => alu(self.mapa(m, o)),
            "getctarank" => alu(self.block_rank(m, o)),
            _ => None,
        }
    }

    fn activemask(&mut self, m: &[&str], o: &[Operand]) -> Res<(Op, Class)> {
        let [d] = arity(o)?;
        if m != ["b32"] {
            return Err(String::new());
        }
        Ok((Op::ActiveMask(self.dw(d)?), Class::Vote))
    }

    fn isspacep(&mut self, m: &[&str], o: &[Operand]) -> Res<(Op, Class)> {
        let [d, a] = arity(o)?;
        let space = match m {
            ["global"] => MemSpace::Global,
            ["shared" | "shared::cta" | "shared::cluster"] => MemSpace::Shared,
            ["local"] => MemSpace::Local,
            ["const"] => MemSpace::Const,
            ["param"] => MemSpace::Param,
            _ => return Err(String::new()),
        };
        let a = Row::D(self.d(a)?);
        Ok((
            Op::IsSpace {
                d: self.dp(d)?,
                a,
                space,
            },
            Class::Move,
        ))
    }

    /// The rank of a block is in the bits of a shared address from [`RANK_SHIFT`] on. Without cluster
    /// launches only rank 0 has memory there.
    fn mapa(&mut self, m: &[&str], o: &[Operand]) -> Res<Alu> {
        let [d, a, rank] = arity(o)?;
        let rank = self.w(rank)?;
        let wide = |x: u64, r: u32| x.wrapping_add(u64::from(r) << RANK_SHIFT);
        match m {
            ["shared::cluster", "u32"] => Ok(map2(self.dw(d)?, self.w(a)?, rank, |x, r| {
                x.wrapping_add(r << RANK_SHIFT)
            })),
            ["u64"] | ["shared::cluster", "u64"] => Ok(map2(self.dd(d)?, self.d(a)?, rank, wide)),
            _ => Err(String::new()),
        }
    }

    /// `getctarank`: the way back.
    fn block_rank(&mut self, m: &[&str], o: &[Operand]) -> Res<Alu> {
        let [d, a] = arity(o)?;
        let d = self.dw(d)?;
        match m {
            ["shared::cluster", "u32"] => Ok(map1(d, self.w(a)?, |x| x >> RANK_SHIFT)),
            ["u64"] | ["shared::cluster", "u64"] => {
                Ok(map1(d, self.d(a)?, |x| x as u32 >> RANK_SHIFT))
            }
            _ => Err(String::new()),
        }
    }

    fn mov(&mut self, m: &[&str], o: &[Operand]) -> Res<(Op, Class)> {
        let [d, a] = arity(o)?;
        let [ty] = m else { return Err(String::new()) };
        let ty = Ty::parse(ty).filter(|ty| *ty == Ty::Pred || ty.size() > 1);
        let ty = ty.ok_or_else(String::new)?;
        let alu = |a| Ok((Op::Alu(a), Class::Move));
        if ty == Ty::Pred {
            let (d, (p, neg)) = (self.dp(d)?, self.p(a)?);
            return alu(Box::new(move |r, mask| {
                let v = r.p(p) ^ if neg { FULL } else { 0 };
                r.put_p(d, v, mask);
            }));
        }
        if let Operand::Name(n) = a
            && self.lookup(n).is_none()
            && matches!(
                n.as_str(),
                "%clock"
                    | "%clock64"
                    | "%clock_hi"
                    | "%globaltimer"
                    | "%globaltimer_lo"
                    | "%globaltimer_hi"
            )
        {
            let row = self.drow(d)?.ok_or_else(String::new)?;
            if n.ends_with("_hi") {
                return Err("high half of a clock".into());
            }
            return Ok((Op::Clock(row), Class::Move));
        }
        match (d, a) {
            (Operand::Vector(parts), _) => {
                let parts = parts
                    .iter()
                    .map(|p| self.part_dst(p))
                    .collect::<Res<Vec<_>>>()?;
                alu(match ty.size() {
                    8 => unpack(Row::D(self.d(a)?), &parts, 64)?,
                    4 => unpack(Row::W(self.w(a)?), &parts, 32)?,
                    2 => unpack(Row::W(self.h(a)?), &parts, 16)?,
                    _ => return Err(String::new()),
                })
            }
            (_, Operand::Vector(parts)) => {
                let n = parts.len() as u32;
                if !matches!(n, 2 | 4) {
                    return Err("a pack of 2 or 4".into());
                }
                let part_bits = ty.bits() / n;
                let mut rows = Vec::new();
                for p in parts {
                    rows.push(if part_bits == 16 {
                        self.h(p)?
                    } else {
                        self.w(p)?
                    });
                }
                match (ty.size(), &rows[..]) {
                    (8, &[lo, hi]) => alu(map2(self.dd(d)?, lo, hi, |lo, hi| {
                        u64::from(lo) | u64::from(hi) << 32
                    })),
                    (8, &[a, b, c, e]) => {
                        let d = self.dd(d)?;
                        alu(Box::new(move |r, mask| {
                            let mut out = [0; LANES];
                            for i in 0..LANES {
                                let h = |x: W| u64::from(r.w(x)[i] & 0xffff);
                                out[i] = h(a) | h(b) << 16 | h(c) << 32 | h(e) << 48;
                            }
                            r.put_d(d, &out, mask);
                        }))
                    }
                    (4, &[lo, hi]) => {
                        alu(map2(self.dw(d)?, lo, hi, |lo, hi| (lo & 0xffff) | hi << 16))
                    }
                    (4, &[a, b, c, e]) => {
                        let d = self.dw(d)?;
                        alu(Box::new(move |r, mask| {
                            let mut out = [0; LANES];
                            for i in 0..LANES {
                                let h = |x: W| r.w(x)[i] & 0xff;
                                out[i] = h(a) | h(b) << 8 | h(c) << 16 | h(e) << 24;
                            }
                            r.put_w(d, &out, mask);
                        }))
                    }
                    (2, &[lo, hi]) => alu(map2(self.dw(d)?, lo, hi, |lo, hi| {
                        (lo & 0xff) | (hi & 0xff) << 8
                    })),
                    _ => Err(String::new()),
                }
            }
            _ if ty.size() == 8 => {
                let (d, a) = (self.dd(d)?, self.d(a)?);
                alu(Box::new(move |r, mask| {
                    let v = *r.d(a);
                    r.put_d(d, &v, mask);
                }))
            }
            _ => {
                let d = self.dw(d)?;
                let a = if ty.size() == 4 {
                    self.w(a)?
                } else {
                    self.h(a)?
                };
                alu(Box::new(move |r, mask| {
                    let v = *r.w(a);
                    r.put_w(d, &v, mask);
                }))
            }
        }
    }

    fn part_dst(&self, o: &Operand) -> Res<Part> {
        if *o == Operand::Sink {
            return Ok(Part::Skip);
        }
        Ok(match self.dst(o)? {
            Sym::W(w) => Part::W(w),
            Sym::D(d) => Part::D(d),
            _ => return Err("a predicate in a vector".into()),
        })
    }

    fn cvta(&mut self, m: &[&str], o: &[Operand]) -> Res<Alu> {
        let [d, a] = arity(o)?;
        let (to, space, ty) = match m {
            ["to", s, t] => (true, *s, *t),
            [s, t] => (false, *s, *t),
            _ => return Err(String::new()),
        };
        if ty != "u64" {
            return Err("only 64-bit addresses".into());
        }
        let base = match space {
            "global" | "const" => 0,
            "shared" | "shared::cta" | "shared::cluster" => Window::SHARED,
            "local" => Window::LOCAL,
            "param" | "param::entry" => Window::PARAM,
            _ => return Err(String::new()),
        };
        let (d, a) = (self.dd(d)?, self.d(a)?);
        let base = if to { base.wrapping_neg() } else { base };
        Ok(map1(d, a, move |x| x.wrapping_add(base)))
    }

    fn selp(&mut self, m: &[&str], o: &[Operand]) -> Res<Alu> {
        let [d, a, b, p] = arity(o)?;
        let ty = m
            .last()
            .and_then(|t| Ty::parse(t))
            .ok_or_else(String::new)?;
        if ty == Ty::Pred {
            return Err(String::new());
        }
        let (p, neg): (P, bool) = self.p(p)?;
        let flip = if neg { FULL } else { 0 };
        Ok(if ty.size() == 8 {
            let (d, a, b) = (self.dd(d)?, self.d(a)?, self.d(b)?);
            Box::new(move |r, mask| {
                let take = r.p(p) ^ flip;
                let mut out = *r.d(b);
                let x = r.d(a);
                for i in 0..LANES {
                    out[i] = if take >> i & 1 != 0 { x[i] } else { out[i] };
                }
                r.put_d(d, &out, mask);
            })
        } else {
            let d = self.dw(d)?;
            let (a, b) = if ty.size() == 4 {
                (self.w(a)?, self.w(b)?)
            } else {
                (self.h(a)?, self.h(b)?)
            };
            Box::new(move |r, mask| {
                let take = r.p(p) ^ flip;
                let mut out = *r.w(b);
                let x = r.w(a);
                for i in 0..LANES {
                    out[i] = if take >> i & 1 != 0 { x[i] } else { out[i] };
                }
                r.put_w(d, &out, mask);
            })
        })
    }

    fn slct(&mut self, m: &[&str], o: &[Operand]) -> Res<Alu> {
        let [d, a, b, c] = arity(o)?;
        let (ftz, ty, by) = match m {
            ["ftz", t, b] => (true, *t, *b),
            [t, b] => (false, *t, *b),
            _ => return Err(String::new()),
        };
        let ty = Ty::parse(ty).ok_or_else(String::new)?;
        let c = self.w(c)?;
        let float = match by {
            "f32" => true,
            "s32" => false,
            _ => return Err(String::new()),
        };
        let first = move |c: u32| {
            if float {
                let c = if ftz { crate::fp::flush(c) } else { c };
                f32::from_bits(c) >= 0.0
            } else {
                c as i32 >= 0
            }
        };
        Ok(if ty.size() == 8 {
            map3(self.dd(d)?, self.d(a)?, self.d(b)?, c, move |a, b, c| {
                if first(c) { a } else { b }
            })
        } else {
            map3(self.dw(d)?, self.w(a)?, self.w(b)?, c, move |a, b, c| {
                if first(c) { a } else { b }
            })
        })
    }
}

/// Splits a register of `bits` bits evenly.
fn unpack(a: Row, parts: &[Part], bits: u32) -> Res<Alu> {
    let n = parts.len() as u32;
    if !matches!(n, 2 | 4) {
        return Err("an unpack into 2 or 4".into());
    }
    let width = bits / n;
    let parts = parts.to_vec();
    Ok(Box::new(move |r, mask| {
        let source: [u64; LANES] = match a {
            Row::W(w) => std::array::from_fn(|i| u64::from(r.w(w)[i])),
            Row::D(d) => *r.d(d),
        };
        let keep = if width == 64 {
            u64::MAX
        } else {
            (1u64 << width) - 1
        };
        for (k, part) in parts.iter().enumerate() {
            let shift = k as u32 * width;
            match *part {
                Part::W(w) => {
                    let out = std::array::from_fn(|i| (source[i] >> shift & keep) as u32);
                    r.put_w(w, &out, mask);
                }
                Part::D(d) => {
                    let out = std::array::from_fn(|i| source[i] >> shift & keep);
                    r.put_d(d, &out, mask);
                }
                Part::Skip => {}
            }
        }
    }))
}
