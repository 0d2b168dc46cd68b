//! `f32` and `f64` arithmetic and the approximations.

use super::int::{lanes1, lanes2, lanes3};
use super::*;
use crate::ast::Arg;
use crate::numeric::*;

/// The arithmetic rounding mode; to nearest when none is named.
pub fn rounding(m: &mut Mods) -> Round {
    match m.one_of(&["rn", "rz", "rm", "rp"]) {
        Some("rz") => Round::Zero,
        Some("rm") => Round::Down,
        Some("rp") => Round::Up,
        _ => Round::Nearest,
    }
}

fn f(x: u64) -> f32 {
    f32::from_bits(x as u32)
}

/// Flushes, computes, flushes, saturates, packs.
fn f32_op1(z: bool, sat: bool, op: impl Fn(f32) -> f32 + Send + Sync + 'static) -> Alu {
    let finish = finish(z, sat);
    lanes1(move |a| finish(op(input(a, z))))
}

fn f32_op2(z: bool, sat: bool, op: impl Fn(f32, f32) -> f32 + Send + Sync + 'static) -> Alu {
    if !z && !sat {
        return lanes2(move |a, b| u64::from(bits32(op(f(a), f(b)))));
    }
    let finish = finish(z, sat);
    lanes2(move |a, b| finish(op(input(a, z), input(b, z))))
}

fn f32_op3(z: bool, sat: bool, op: impl Fn(f32, f32, f32) -> f32 + Send + Sync + 'static) -> Alu {
    if !z && !sat {
        return lanes3(move |a, b, c| u64::from(bits32(op(f(a), f(b), f(c)))));
    }
    let finish = finish(z, sat);
    lanes3(move |a, b, c| finish(op(input(a, z), input(b, z), input(c, z))))
}

fn input(x: u64, z: bool) -> f32 {
    if z { ftz(f(x)) } else { f(x) }
}

fn finish(z: bool, sat: bool) -> impl Fn(f32) -> u64 + Send + Sync + 'static {
    move |r| {
        let r = if z { ftz(r) } else { r };
        let r = if sat { saturate(r) } else { r };
        u64::from(bits32(r))
    }
}

fn d(x: u64) -> f64 {
    f64::from_bits(x)
}

/// Rounds `x + err` to f64 in a direction, `x` being nearest.
fn directed(x: f64, err: f64, round: Round) -> f64 {
    if err == 0.0 || err.is_nan() || !x.is_finite() {
        return x;
    }
    match round {
        Round::Down if err < 0.0 => x.next_down(),
        Round::Up if err > 0.0 => x.next_up(),
        Round::Zero if (err < 0.0) == (x > 0.0) => {
            if x > 0.0 {
                x.next_down()
            } else {
                x.next_up()
            }
        }
        _ => x,
    }
}

fn add64(a: f64, b: f64, round: Round) -> f64 {
    let s = a + b;
    if s == 0.0 && round == Round::Down && a == -b && a != 0.0 {
        return -0.0;
    }
    let t = s - a;
    directed(s, (a - (s - t)) + (b - t), round)
}

impl Decoder<'_> {
    pub fn float(&mut self, m: &mut Mods, args: &[Arg]) -> Result<Option<(Op, Class)>> {
        let name = m.name;
        let known = matches!(
            name,
            "add"
                | "sub"
                | "mul"
                | "fma"
                | "mad"
                | "div"
                | "sqrt"
                | "rcp"
                | "rsqrt"
                | "min"
                | "max"
                | "abs"
                | "neg"
                | "copysign"
                | "testp"
                | "ex2"
                | "lg2"
                | "sin"
                | "cos"
                | "tanh"
        );
        if !known {
            return Ok(None);
        }
        let (single, double) = (m.peek("f32"), m.peek("f64"));
        if !single && !double {
            return Ok(None);
        }
        let ty = m.ty()?;
        if name == "testp" {
            return self.testp(m, args, ty).map(Some);
        }
        if double {
            return self.float64(m, args, ty).map(Some);
        }
        let z = m.has("ftz");
        let sat = m.has("sat");
        let class = Class::F32;
        let rn = rounding(m);
        // Exact in f64, then rounded once.
        let wide = f64::from;
        let op = match (name, rn) {
            ("add", Round::Nearest) => self.alu(args, ty, 2, f32_op2(z, sat, |a, b| a + b))?,
            ("sub", Round::Nearest) => self.alu(args, ty, 2, f32_op2(z, sat, |a, b| a - b))?,
            ("mul", Round::Nearest) => self.alu(args, ty, 2, f32_op2(z, sat, |a, b| a * b))?,
            ("fma" | "mad", Round::Nearest) => {
                self.alu(args, ty, 3, f32_op3(z, sat, f32::mul_add))?
            }
            ("add", _) => self.alu(
                args,
                ty,
                2,
                f32_op2(z, sat, move |a, b| {
                    signed_zero(to_f32(add_odd(wide(a), wide(b)), rn), a, b, rn)
                }),
            )?,
            ("sub", _) => self.alu(
                args,
                ty,
                2,
                f32_op2(z, sat, move |a, b| {
                    signed_zero(to_f32(add_odd(wide(a), -wide(b)), rn), a, -b, rn)
                }),
            )?,
            ("mul", _) => self.alu(
                args,
                ty,
                2,
                f32_op2(z, sat, move |a, b| to_f32(wide(a) * wide(b), rn)),
            )?,
            ("fma" | "mad", _) => self.alu(
                args,
                ty,
                3,
                f32_op3(z, sat, move |a, b, c| {
                    let r = to_f32(fma_odd(wide(a), wide(b), wide(c)), rn);
                    let p = wide(a) * wide(b);
                    if r == 0.0 && rn == Round::Down && p == -wide(c) && p != 0.0 {
                        -0.0
                    } else {
                        r
                    }
                }),
            )?,
            ("div", _) => {
                let approx = m.one_of(&["approx", "full"]);
                let f = match approx {
                    Some("approx") => f32_op2(z, sat, |a, b| {
                        // The reciprocal of such a divisor is flushed.
                        if b.abs() > f32::from_bits(0x7e80_0000) && b.is_finite() {
                            return if a.is_infinite() || a.is_nan() {
                                f32::NAN
                            } else {
                                0f32.copysign(a) * b.signum()
                            };
                        }
                        a / b
                    }),
                    Some(_) => f32_op2(z, sat, |a, b| a / b),
                    None if rn == Round::Nearest => f32_op2(z, sat, |a, b| a / b),
                    None => f32_op2(z, sat, move |a, b| to_f32(div_odd(wide(a), wide(b)), rn)),
                };
                return Ok(Some((self.alu(args, ty, 2, f)?, Class::Mufu)));
            }
            ("sqrt" | "rcp", _) if !m.peek("approx") => {
                let f = if name == "sqrt" {
                    f32_op1(z, sat, move |a| to_f32(sqrt_odd(wide(a)), rn))
                } else {
                    f32_op1(z, sat, move |a| to_f32(div_odd(1.0, wide(a)), rn))
                };
                return Ok(Some((self.alu(args, ty, 1, f)?, Class::Mufu)));
            }
            ("sqrt" | "rcp" | "rsqrt" | "ex2" | "lg2" | "sin" | "cos" | "tanh", _) => {
                if !m.has("approx") {
                    return unknown("no `.approx`");
                }
                let function = match name {
                    "sqrt" => Approx::Sqrt,
                    "rcp" => Approx::Rcp,
                    "rsqrt" => Approx::Rsqrt,
                    "ex2" => Approx::Ex2,
                    "lg2" => Approx::Lg2,
                    "sin" => Approx::Sin,
                    "cos" => Approx::Cos,
                    _ => Approx::Tanh,
                };
                let f = f32_op1(z, sat, move |a| function.eval(wide(a)) as f32);
                return Ok(Some((self.alu(args, ty, 1, f)?, Class::Mufu)));
            }
            ("min" | "max", _) => {
                let (max, nan) = (name == "max", m.has("NaN"));
                let xor = m.has("xorsign");
                if xor && !m.has("abs") {
                    return unknown("`.xorsign` without `.abs`");
                }
                let f1 = move |a: f32, b: f32| {
                    if xor {
                        let sign = (a.to_bits() ^ b.to_bits()) & 1 << 31;
                        let r = min_max(a.abs(), b.abs(), max, nan);
                        return f32::from_bits(r.to_bits() | sign);
                    }
                    min_max(a, b, max, nan)
                };
                if args.len() == 4 {
                    let f = f32_op3(z, false, move |a, b, c| f1(f1(a, b), c));
                    self.alu(args, ty, 3, f)?
                } else {
                    self.alu(args, ty, 2, f32_op2(z, false, f1))?
                }
            }
            ("abs", _) => {
                let f = lanes1(move |a| u64::from(input(a, z).abs().to_bits()));
                self.alu(args, ty, 1, f)?
            }
            ("neg", _) => {
                let f = lanes1(move |a| u64::from((-input(a, z)).to_bits()));
                self.alu(args, ty, 1, f)?
            }
            ("copysign", _) => {
                let f = lanes2(|a, b| (b & 0x7fff_ffff) | (a & 0x8000_0000));
                self.alu(args, ty, 2, f)?
            }
            _ => return unknown("this type"),
        };
        Ok(Some((op, class)))
    }

    fn float64(&mut self, m: &mut Mods, args: &[Arg], ty: Ty) -> Result<(Op, Class)> {
        let rn = rounding(m);
        let name = m.name;
        let nearest = rn == Round::Nearest;
        let op = match name {
            "add" => {
                let f = lanes2(move |a, b| add64(d(a), d(b), rn).to_bits());
                self.alu(args, ty, 2, f)?
            }
            "sub" => {
                let f = lanes2(move |a, b| add64(d(a), -d(b), rn).to_bits());
                self.alu(args, ty, 2, f)?
            }
            "mul" => {
                let f = lanes2(move |a, b| {
                    let p = d(a) * d(b);
                    if nearest {
                        return p.to_bits();
                    }
                    directed(p, d(a).mul_add(d(b), -p), rn).to_bits()
                });
                self.alu(args, ty, 2, f)?
            }
            "fma" | "mad" if nearest => {
                let f = lanes3(|a, b, c| d(a).mul_add(d(b), d(c)).to_bits());
                self.alu(args, ty, 3, f)?
            }
            "div" => {
                let f = lanes2(move |a, b| {
                    let q = d(a) / d(b);
                    if nearest {
                        return q.to_bits();
                    }
                    let r = (-q).mul_add(d(b), d(a));
                    directed(q, if d(b) < 0.0 { -r } else { r }, rn).to_bits()
                });
                self.alu(args, ty, 2, f)?
            }
            "rcp" if m.has("approx") => {
                if !m.has("ftz") {
                    return unknown("no `.ftz`");
                }
                // The approximation keeps the high word only.
                let f = lanes1(|a| (1.0 / d(a)).to_bits() & !0xffff_ffff);
                self.alu(args, ty, 1, f)?
            }
            "rsqrt" if m.has("approx") => {
                let high = m.has("ftz");
                let mask = if high { !0xffff_ffff } else { !0 };
                let f = lanes1(move |a| Approx::Rsqrt.eval(d(a)).to_bits() & mask);
                self.alu(args, ty, 1, f)?
            }
            "rcp" => {
                let f = lanes1(move |a| {
                    let q = 1.0 / d(a);
                    directed(q, (-q).mul_add(d(a), 1.0) * d(a).signum(), rn).to_bits()
                });
                self.alu(args, ty, 1, f)?
            }
            "sqrt" => {
                let f = lanes1(move |a| {
                    let s = d(a).sqrt();
                    directed(s, (-s).mul_add(s, d(a)), rn).to_bits()
                });
                self.alu(args, ty, 1, f)?
            }
            "min" | "max" => {
                let max = name == "max";
                let f = lanes2(move |a, b| min_max64(d(a), d(b), max).to_bits());
                self.alu(args, ty, 2, f)?
            }
            "abs" => self.alu(args, ty, 1, lanes1(|a| a & !(1 << 63)))?,
            "neg" => self.alu(args, ty, 1, lanes1(|a| a ^ 1 << 63))?,
            "copysign" => {
                let f = lanes2(|a, b| b & !(1 << 63) | a & 1 << 63);
                self.alu(args, ty, 2, f)?
            }
            _ => return unknown("this type or rounding"),
        };
        let class = if matches!(name, "div" | "rcp" | "rsqrt" | "sqrt") {
            Class::Mufu
        } else {
            Class::F64
        };
        Ok((op, class))
    }

    fn testp(&mut self, m: &mut Mods, args: &[Arg], ty: Ty) -> Result<(Op, Class)> {
        let Some(test) = m.one_of(&[
            "finite",
            "infinite",
            "number",
            "notanumber",
            "normal",
            "subnormal",
        ]) else {
            return unknown("no test");
        };
        if args.len() != 2 {
            return bad("2 operands are needed");
        }
        let double = ty.bits == 64;
        let check = move |a: u64| {
            use std::num::FpCategory::{Nan, Normal, Subnormal};
            let c = if double {
                d(a).classify()
            } else {
                f(a).classify()
            };
            let infinite = c == std::num::FpCategory::Infinite;
            match test {
                "finite" => c != Nan && !infinite,
                "infinite" => infinite,
                "number" => c != Nan,
                "notanumber" => c == Nan,
                // Zeros count as normal, by the ISA.
                "normal" => c == Normal || c == std::num::FpCategory::Zero,
                _ => c == Subnormal,
            }
        };
        let a = self.src(&args[1], ty)?;
        let op = Op::SetP {
            f: super::int::compare(move |a, _| check(a)),
            dst: self.pred_dst(&args[0])?,
            other: None,
            a,
            b: a,
            combine: None,
        };
        Ok((op, if double { Class::F64 } else { Class::F32 }))
    }
}

impl Mods<'_> {
    /// Whether the modifier is there, without taking it.
    pub fn peek(&self, s: &str) -> bool {
        self.parts.iter().any(|p| p == s)
    }
}
