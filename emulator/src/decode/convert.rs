//! `cvt` and `mov`, with packing and unpacking.

use super::int::{lanes1, lanes2, lanes3};
use super::*;
use crate::ast::Arg;
use crate::numeric::*;

/// A float format of `cvt`.
#[derive(Clone, Copy, PartialEq)]
enum Float {
    F64,
    F32,
    Half(Half),
}

fn float(ty: Ty) -> Option<Float> {
    Some(match (ty.kind, ty.bits) {
        (Kind::F, 64) => Float::F64,
        (Kind::F, 32) => Float::F32,
        (Kind::F, 16) => Float::Half(Half::F16),
        (Kind::Bf, _) => Float::Half(Half::Bf16),
        _ => return None,
    })
}

fn value(x: u64, from: Float, z: bool) -> f64 {
    match from {
        Float::F64 => f64::from_bits(x),
        Float::F32 => {
            let v = f32::from_bits(x as u32);
            f64::from(if z { ftz(v) } else { v })
        }
        Float::Half(h) => f64::from(h.value(x as u16)),
    }
}

/// Rounding and finishing of a conversion.
#[derive(Clone, Copy)]
struct Cvt {
    round: Round,
    ftz: bool,
    sat: bool,
    relu: bool,
    satfinite: bool,
}

fn to_float(x: f64, to: Float, c: Cvt) -> u64 {
    let x = if c.sat {
        if x > 0.0 { x.min(1.0) } else { 0.0 }
    } else {
        x
    };
    match to {
        Float::F64 => x.to_bits(),
        Float::F32 => {
            let r = to_f32(x, c.round);
            let r = if c.ftz { ftz(r) } else { r };
            u64::from(bits32(r))
        }
        Float::Half(h) => {
            let mut r = h.round(x, c.round);
            if c.satfinite && !x.is_nan() && h.value(r).is_infinite() {
                r = h.max_bits() | r & 0x8000;
            }
            if c.relu && r & 0x8000 != 0 {
                r = 0;
            }
            u64::from(r)
        }
    }
}

fn float_to_int(x: f64, c: Cvt, from: Ty, to: Ty) -> u64 {
    if x.is_nan() {
        return if from.bits == 64 || to.bits == 64 {
            1 << (to.bits - 1)
        } else {
            0
        };
    }
    let r = round_integral(x, c.round);
    // Rust's casts saturate, as the instruction does.
    if to.signed() {
        let min = -(1i128 << (to.bits - 1));
        let max = (1i128 << (to.bits - 1)) - 1;
        ((r as i128).clamp(min, max)) as u64
    } else {
        (r as i128).clamp(0, (1i128 << to.bits) - 1) as u64
    }
}

fn int_to_int(x: u64, from: Ty, to: Ty, sat: bool) -> u64 {
    let v = extend(x, from.bits, from.signed());
    if !sat {
        return v;
    }
    let wide = if from.signed() {
        i128::from(v as i64)
    } else {
        i128::from(v)
    };
    let (min, max) = if to.signed() {
        (-(1i128 << (to.bits - 1)), (1i128 << (to.bits - 1)) - 1)
    } else {
        (0, (1i128 << to.bits) - 1)
    };
    wide.clamp(min, max) as u64
}

impl Decoder<'_> {
    pub fn convert(&mut self, m: &mut Mods, args: &[Arg]) -> Result<Option<(Op, Class)>> {
        let name = m.name;
        match name {
            "mov" => self.mov(m, args).map(Some),
            "cvt" if m.has("pack") => self.cvt_pack(m, args).map(Some),
            "cvt" => self.cvt(m, args).map(Some),
            "cvta" => self.cvta(m, args).map(Some),
            "isspacep" => {
                let mem = self.space(m)?;
                if args.len() != 2 {
                    return bad("2 operands are needed");
                }
                let ty = Ty {
                    kind: Kind::B,
                    bits: 64,
                };
                let Some(dst) = self.pred_dst(&args[0])? else {
                    return bad("the destination is not a predicate");
                };
                let a = self.src(&args[1], ty)?;
                Ok(Some((Op::IsSpace { dst, mem, a }, Class::Move)))
            }
            _ => Ok(None),
        }
    }

    fn mov(&mut self, m: &mut Mods, args: &[Arg]) -> Result<(Op, Class)> {
        let ty = m.ty()?;
        if args.len() != 2 {
            return bad("2 operands are needed");
        }
        if ty.kind == Kind::Pred {
            let Some(dst) = self.pred_dst(&args[0])? else {
                return Ok((Op::Nop, Class::Predicate));
            };
            let a = self.psrc(&args[1])?;
            let op = Op::PredLogic {
                dst,
                f: |a, _| a,
                a,
                b: a,
            };
            return Ok((op, Class::Predicate));
        }
        if let Arg::Vector(v) = &args[0] {
            if v.is_empty() || !(ty.bits as usize).is_multiple_of(v.len()) {
                return bad("the vector does not fit the type");
            }
            let bits = ty.bits / v.len() as u32;
            let dst = v
                .iter()
                .map(|a| Ok(self.dst_or_sink(a)?.map(|r| r.index)))
                .collect::<Result<_>>()?;
            let src = self.src(&args[1], ty)?;
            return Ok((Op::Unpack { dst, bits, src }, Class::Move));
        }
        if let Arg::Vector(v) = &args[1] {
            if v.is_empty() || !(ty.bits as usize).is_multiple_of(v.len()) {
                return bad("the vector does not fit the type");
            }
            let bits = ty.bits / v.len() as u32;
            let part = Ty {
                kind: Kind::B,
                bits,
            };
            let src = v.iter().map(|a| self.src(a, part)).collect::<Result<_>>()?;
            let dst = self.dst(&args[0])?.index;
            return Ok((Op::Pack { dst, bits, src }, Class::Move));
        }
        let op = self.alu(args, ty, 1, Box::new(|a, _, _, _, d| *d = *a))?;
        Ok((op, Class::Move))
    }

    fn cvta(&mut self, m: &mut Mods, args: &[Arg]) -> Result<(Op, Class)> {
        let to = m.has("to");
        let mem = self.space(m)?;
        let ty = m.ty()?;
        if ty.bits != 64 {
            return unknown("32-bit generic addresses");
        }
        // A frame address is generic already: see `Src::Frame`.
        let base = match mem {
            Mem::Shared => crate::exec::SHARED_WINDOW,
            Mem::Param if self.in_entry => crate::exec::PARAM_WINDOW,
            _ => 0,
        };
        let f = if to {
            lanes1(move |a| a.wrapping_sub(base))
        } else {
            lanes1(move |a| a.wrapping_add(base))
        };
        Ok((self.alu(args, ty, 1, f)?, Class::Move))
    }

    fn cvt_pack(&mut self, m: &mut Mods, args: &[Arg]) -> Result<(Op, Class)> {
        if !m.has("sat") {
            return unknown("no `.sat`");
        }
        let (to, from) = (m.ty()?, m.ty()?);
        let with_c = m.maybe_ty();
        if from
            != (Ty {
                kind: Kind::S,
                bits: 32,
            })
            || !to.is_int()
            || to.bits > 16
        {
            return unknown("this type");
        }
        let bits = to.bits;
        let pack = move |a: u64, b: u64| {
            let part = |x| extend(int_to_int(x, from, to, true), bits, false);
            part(a) << bits | part(b)
        };
        let op = if with_c.is_some() {
            let f = lanes3(move |a, b, c| (pack(a, b) | c << (2 * bits)) & 0xffff_ffff);
            self.alu(args, from, 3, f)?
        } else {
            self.alu(args, from, 2, lanes2(pack))?
        };
        Ok((op, Class::Convert))
    }

    fn cvt(&mut self, m: &mut Mods, args: &[Arg]) -> Result<(Op, Class)> {
        let mode = m.one_of(&["rn", "rz", "rm", "rp", "rna", "rni", "rzi", "rmi", "rpi"]);
        let round = match mode {
            Some("rz" | "rzi") => Round::Zero,
            Some("rm" | "rmi") => Round::Down,
            Some("rp" | "rpi") => Round::Up,
            Some("rna") => Round::Away,
            _ => Round::Nearest,
        };
        let integral = mode.is_some_and(|s| s.ends_with('i'));
        let c = Cvt {
            round,
            ftz: m.has("ftz"),
            sat: m.has("sat"),
            relu: m.has("relu"),
            satfinite: m.has("satfinite"),
        };
        let (to, from) = (m.ty()?, m.ty()?);
        let class = Class::Convert;
        if args.len() < 2 {
            return bad("operands are missing");
        }
        let pair = match to.kind {
            Kind::F16x2 => Some(Half::F16),
            Kind::Bf16x2 => Some(Half::Bf16),
            _ => None,
        };
        if let Some(h) = pair {
            if !from.is_float(32) || mode.is_none() {
                return unknown("this conversion");
            }
            let f = lanes2(move |a, b| {
                let part = |x| to_float(value(x, Float::F32, false), Float::Half(h), c);
                part(a) << 16 | part(b)
            });
            return Ok((self.alu(args, from, 2, f)?, class));
        }
        if to.kind == Kind::Tf32 {
            if !from.is_float(32) || !matches!(mode, Some("rna" | "rn" | "rz")) || c.satfinite {
                return unknown("this conversion");
            }
            let f = lanes1(move |a| {
                let r = to_tf32(f32::from_bits(a as u32), round);
                u64::from(if c.relu && r >> 31 == 1 { 0 } else { r })
            });
            return Ok((self.alu(args, from, 1, f)?, class));
        }
        let dst = self.dst(&args[0])?;
        let f: Alu =
            match (float(to), float(from)) {
                (Some(t), Some(f)) => {
                    let narrowing = to.bits < from.bits || to.bits == 16 && to != from;
                    if narrowing && (mode.is_none() || integral) || round == Round::Away {
                        return unknown("no rounding mode");
                    }
                    if (c.relu || c.satfinite) && !matches!(t, Float::Half(_)) {
                        return unknown("modifier for this type");
                    }
                    let same = t == f;
                    lanes1(move |a| {
                        let mut x = value(a, f, c.ftz);
                        if integral {
                            x = round_integral(x, c.round).copysign(x);
                        } else if same && !c.sat && !c.ftz && !c.relu {
                            return a;
                        }
                        to_float(x, t, c)
                    })
                }
                (None, Some(f)) => {
                    if !integral || !to.is_int() {
                        return unknown("no integer rounding mode");
                    }
                    let bits = dst.bits;
                    lanes1(move |a| {
                        let r = float_to_int(value(a, f, c.ftz), c, from, to);
                        extend(extend(r, to.bits, to.signed()), bits, false)
                    })
                }
                (Some(t), None) => {
                    if mode.is_none() || integral || !from.is_int() {
                        return unknown("no rounding mode");
                    }
                    let signed = from.signed();
                    lanes1(move |a| {
                        let v = extend(a, from.bits, signed);
                        // 64-bit integers need the remainder to round once.
                        let (x, err) = if signed {
                            let x = v as i64 as f64;
                            (x, i128::from(v as i64) - x as i128)
                        } else {
                            let x = v as f64;
                            (x, i128::from(v) - x as i128)
                        };
                        if t == Float::F64 {
                            let r =
                                match c.round {
                                    Round::Zero if (err < 0) == (x > 0.0) && err != 0 => {
                                        if x > 0.0 { x.next_down() } else { x.next_up() }
                                    }
                                    Round::Down if err < 0 => x.next_down(),
                                    Round::Up if err > 0 => x.next_up(),
                                    _ => x,
                                };
                            return r.to_bits();
                        }
                        to_float(odd(x, err as f64), t, c)
                    })
                }
                (None, None) => {
                    if mode.is_some() || !to.is_int() || !from.is_int() {
                        return unknown("this conversion");
                    }
                    let bits = dst.bits;
                    let sat = c.sat;
                    lanes1(move |a| {
                        let r = extend(int_to_int(a, from, to, sat), to.bits, to.signed());
                        extend(r, bits, false)
                    })
                }
            };
        Ok((self.alu(args, from, 1, f)?, class))
    }
}
