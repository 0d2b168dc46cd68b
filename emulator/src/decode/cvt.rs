//! `cvt`: every pair of types, rounding, saturation and flushing.

use super::{Decoder, Res, arity};
use crate::decode::ty::{self, Ty};
use crate::fp::{self, Format, NAN16, NAN32, Round, b2f, f2b, f2h, flush, h2f, round_small};
use crate::ir::Row;
use crate::ir::regs::{Alu, map1, map2};
use crate::ptx::ast::Operand;

#[derive(Clone, Copy)]
struct Mods {
    round: Option<Round>,
    round_int: Option<Round>,
    ftz: bool,
    sat: bool,
    relu: bool,
    satfinite: bool,
}

impl Decoder<'_> {
    pub(super) fn cvt(&mut self, m: &[&str], o: &[Operand]) -> Res<Alu> {
        let mut mods = Mods {
            round: None,
            round_int: None,
            ftz: false,
            sat: false,
            relu: false,
            satfinite: false,
        };
        let mut types = Vec::new();
        for s in m {
            match *s {
                "ftz" => mods.ftz = true,
                "sat" => mods.sat = true,
                "relu" => mods.relu = true,
                "satfinite" => mods.satfinite = true,
                _ => {
                    if let Some(r) = ty::round(s) {
                        mods.round = Some(r);
                    } else if let Some(r) = ty::round_int(s) {
                        mods.round_int = Some(r);
                    } else if let Some(t) = Ty::parse(s) {
                        types.push(t);
                    } else {
                        return Err(format!("modifier `.{s}`"));
                    }
                }
            }
        }
        let [to, from] = types[..] else {
            return Err("expected two types".into());
        };
        if o.len() == 3 {
            return self.cvt_pair(to, from, mods, o);
        }
        let [d, a] = arity(o)?;
        if matches!(to, Ty::Pred | Ty::F16x2 | Ty::Bf16x2)
            || matches!(from, Ty::Pred | Ty::F16x2 | Ty::Bf16x2 | Ty::Tf32)
        {
            return Err(String::new());
        }
        let d = self
            .drow(d)?
            .ok_or_else(|| "the destination must be a register".to_owned())?;
        let a = self.any_row(a, from)?;
        // The frequent ones get loops of their own.
        if let (Row::W(d), Row::W(a)) = (d, a) {
            match (to, from) {
                (Ty::F32, Ty::F16) if !mods.sat && !mods.ftz => {
                    return Ok(map1(d, a, |x| fp::canon(h2f(x as u16))));
                }
                (Ty::F32, Ty::Bf16) if !mods.sat && !mods.ftz => {
                    return Ok(map1(d, a, |x| fp::canon(b2f(x as u16))));
                }
                (Ty::F16, Ty::F32)
                    if mods.round == Some(Round::Near)
                        && !mods.sat
                        && !mods.relu
                        && !mods.ftz
                        && !mods.satfinite =>
                {
                    return Ok(map1(d, a, |x| u32::from(f2h(f32::from_bits(x)))));
                }
                (Ty::Bf16, Ty::F32)
                    if mods.round == Some(Round::Near)
                        && !mods.sat
                        && !mods.relu
                        && !mods.satfinite =>
                {
                    return Ok(map1(d, a, |x| u32::from(f2b(f32::from_bits(x)))));
                }
                (Ty::F32, Ty::S32) if mods.round == Some(Round::Near) && !mods.sat => {
                    return Ok(map1(d, a, |x| (x as i32 as f32).to_bits()));
                }
                (Ty::F32, Ty::U32) if mods.round == Some(Round::Near) && !mods.sat => {
                    return Ok(map1(d, a, |x| (x as f32).to_bits()));
                }
                _ => {}
            }
        }
        let (from_float, to_float) = (from.float(), to.float());
        let need_round = to_float && (!from_float || to.size() < from.size());
        if need_round && mods.round.is_none() && mods.round_int.is_none() {
            return Err("a rounding mode is required".into());
        }
        if from_float && !to_float && mods.round_int.is_none() {
            return Err("an integer rounding mode is required".into());
        }
        let convert = move |x: u64| match (from_float, to_float) {
            (false, false) => int_to_int(int_value(x, from), to, mods.sat),
            (false, true) => int_to_float(int_value(x, from), to, mods),
            (true, false) => float_to_int(
                float_value(x, from, mods.ftz),
                from,
                to,
                mods.round_int.unwrap_or(Round::Zero),
            ),
            (true, true) => float_to_float(x, from, to, mods),
        };
        Ok(match (d, a) {
            (Row::W(d), Row::W(a)) => map1(d, a, move |x| extend(convert(u64::from(x)), to) as u32),
            (Row::W(d), Row::D(a)) => map1(d, a, move |x| extend(convert(x), to) as u32),
            (Row::D(d), Row::W(a)) => map1(d, a, move |x| extend(convert(u64::from(x)), to)),
            (Row::D(d), Row::D(a)) => map1(d, a, move |x| extend(convert(x), to)),
        })
    }

    /// `cvt.rn.f16x2.f32 d, a, b` and its like: `a` goes to the upper half.
    fn cvt_pair(&mut self, to: Ty, from: Ty, mods: Mods, o: &[Operand]) -> Res<Alu> {
        let [d, a, b] = arity(o)?;
        let (Ty::F16x2 | Ty::Bf16x2, Ty::F32) = (to, from) else {
            return Err(String::new());
        };
        let Some(round @ (Round::Near | Round::Zero)) = mods.round else {
            return Err("rounding mode".into());
        };
        let (d, a, b) = (self.dw(d)?, self.w(a)?, self.w(b)?);
        let bf = to == Ty::Bf16x2;
        if round == Round::Near && !mods.relu && !mods.satfinite {
            let h = move |x: u32| {
                u32::from(if bf {
                    f2b(f32::from_bits(x))
                } else {
                    f2h(f32::from_bits(x))
                })
            };
            return Ok(map2(d, a, b, move |a, b| h(a) << 16 | h(b)));
        }
        let format = if bf { fp::BF16 } else { fp::F16 };
        let h = move |x: u32| narrow(f64::from(f32::from_bits(x)), format, round, mods);
        Ok(map2(d, a, b, move |a, b| h(a) << 16 | h(b)))
    }
}

/// Rounds to a small format, then `.relu` and `.satfinite`.
fn narrow(x: f64, format: Format, round: Round, mods: Mods) -> u32 {
    let sign = 1u32 << (format.exponent + format.fraction);
    let infinity = ((1u32 << format.exponent) - 1) << format.fraction;
    let mut v = round_small(x, format, round);
    if mods.satfinite && v & (sign - 1) == infinity {
        v -= 1;
    }
    if mods.relu && !x.is_nan() && v & sign != 0 {
        v = 0;
    }
    v
}

/// Results fill the destination register: signed integers extend, all else has zeros above.
fn extend(x: u64, to: Ty) -> u64 {
    match to {
        Ty::S8 => x as i8 as u64,
        Ty::S16 => x as i16 as u64,
        Ty::S32 => x as i32 as u64,
        _ => match to.size() {
            1 => x & 0xff,
            2 => x & 0xffff,
            4 => x & 0xffff_ffff,
            _ => x,
        },
    }
}

fn int_value(x: u64, from: Ty) -> i128 {
    match from {
        Ty::S8 => i128::from(x as i8),
        Ty::S16 => i128::from(x as i16),
        Ty::S32 => i128::from(x as i32),
        Ty::S64 => i128::from(x as i64),
        _ => match from.size() {
            1 => i128::from(x as u8),
            2 => i128::from(x as u16),
            4 => i128::from(x as u32),
            _ => i128::from(x),
        },
    }
}

fn range(ty: Ty) -> (i128, i128) {
    let bits = ty.bits();
    if ty.signed() {
        (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    } else {
        (0, (1 << bits) - 1)
    }
}

fn int_to_int(v: i128, to: Ty, sat: bool) -> u64 {
    let (lo, hi) = range(to);
    (if sat { v.clamp(lo, hi) } else { v }) as u64
}

fn int_to_float(v: i128, to: Ty, mods: Mods) -> u64 {
    let round = mods.round.unwrap_or(Round::Near);
    // To-odd into double keeps one further rounding exact; 64-bit integers need it.
    let near = v as f64;
    let bits = match (near as i128).cmp(&v) {
        std::cmp::Ordering::Equal => near,
        order => {
            let toward_zero = if (order == std::cmp::Ordering::Greater) == (v > 0) {
                near.to_bits() - 1
            } else {
                near.to_bits()
            };
            f64::from_bits(toward_zero | 1)
        }
    };
    if to == Ty::F64 {
        let error = match (near as i128).cmp(&v) {
            std::cmp::Ordering::Less => 1.0,
            std::cmp::Ordering::Equal => 0.0,
            std::cmp::Ordering::Greater => -1.0,
        };
        let r = fp::fix64(near, error, round);
        return (if mods.sat { r.clamp(0.0, 1.0) } else { r }).to_bits();
    }
    finish_float(bits, to, round, mods)
}

/// Rounds to a type of at most 32 bits, with `.sat`, `.ftz` and `.relu`.
fn finish_float(x: f64, to: Ty, round: Round, mods: Mods) -> u64 {
    let x = if mods.sat {
        if x.is_nan() {
            0.0
        } else {
            x.clamp(0.0, 1.0) + 0.0
        }
    } else {
        x
    };
    match to {
        Ty::F32 => {
            let r = fp::round32(x, round);
            let bits = if r.is_nan() { NAN32 } else { r.to_bits() };
            u64::from(if mods.ftz { flush(bits) } else { bits })
        }
        Ty::F16 => u64::from(narrow(x, fp::F16, round, mods)),
        Ty::Bf16 => u64::from(narrow(x, fp::BF16, round, mods)),
        // tf32 is kept in the upper bits of a single-precision container.
        Ty::Tf32 if x.is_nan() => u64::from(NAN32),
        Ty::Tf32 => u64::from(narrow(x, fp::TF32, round, mods) << 13),
        _ => x.to_bits(),
    }
}

/// The value of a float source; every supported type is exact in double precision.
fn float_value(x: u64, from: Ty, ftz: bool) -> f64 {
    match from {
        Ty::F16 => f64::from(h2f(x as u16)),
        Ty::Bf16 => f64::from(b2f(x as u16)),
        Ty::F32 => f64::from(f32::from_bits(if ftz { flush(x as u32) } else { x as u32 })),
        _ => f64::from_bits(x),
    }
}

fn to_integral(v: f64, round: Round) -> f64 {
    match round {
        Round::Near | Round::NearAway => v.round_ties_even(),
        Round::Zero => v.trunc(),
        Round::Down => v.floor(),
        Round::Up => v.ceil(),
    }
}

/// Out-of-range values clamp. NaN becomes 0, or the sign bit if either side has 64 bits.
fn float_to_int(v: f64, from: Ty, to: Ty, round: Round) -> u64 {
    if v.is_nan() {
        return if from == Ty::F64 || to.size() == 8 {
            1 << (to.bits() - 1)
        } else {
            0
        };
    }
    let (lo, hi) = range(to);
    (to_integral(v, round) as i128).clamp(lo, hi) as u64
}

fn float_to_float(x: u64, from: Ty, to: Ty, mods: Mods) -> u64 {
    let mut v = float_value(x, from, mods.ftz);
    if let Some(r) = mods.round_int {
        v = to_integral(v, r);
    }
    if to == Ty::F64 {
        if from == Ty::F64 && v.is_nan() && !mods.sat {
            return x;
        }
        let v = if mods.sat {
            if v.is_nan() {
                0.0
            } else {
                v.clamp(0.0, 1.0) + 0.0
            }
        } else {
            v
        };
        return v.to_bits();
    }
    // Same-size copies keep their bits apart from NaN.
    if from == to && matches!(to, Ty::F16 | Ty::Bf16) && v.is_nan() && !mods.sat {
        return u64::from(NAN16);
    }
    finish_float(v, to, mods.round.unwrap_or(Round::Near), mods)
}
