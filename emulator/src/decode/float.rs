//! Single and double precision arithmetic, and comparisons of every type.

use super::{Decoder, Res, arity, known};
use crate::decode::ty::{self, Ty};
use crate::fidelity::{self, Format32};
use crate::fp::{self, BF16, Round, b2f, canon, f, flush, h2f, saturate};
use crate::ir::Approximate;
use crate::ir::regs::{Alu, D, FULL, LANES, P, Reg, Regs, W, map1, map2, map3, test2};
use crate::ir::{Op, Row};
use crate::ptx::ast::Operand;
use crate::report::Class;

/// Modifiers of a single-precision instruction.
#[derive(Clone, Copy)]
struct Mods {
    ftz: bool,
    sat: bool,
    round: Round,
}

/// Applies `.ftz` and `.sat` around `f`; the plain case stays a tight loop.
fn f1(d: W, a: W, m: Mods, g: impl Fn(f32) -> f32 + Send + Sync + 'static) -> Alu {
    if !m.ftz && !m.sat {
        return map1(d, a, move |x| canon(g(f(x))));
    }
    map1(d, a, move |x| {
        finish(g(f(if m.ftz { flush(x) } else { x })), m)
    })
}

fn f2(d: W, a: W, b: W, m: Mods, g: impl Fn(f32, f32) -> f32 + Send + Sync + 'static) -> Alu {
    if !m.ftz && !m.sat {
        return map2(d, a, b, move |x, y| canon(g(f(x), f(y))));
    }
    if m.sat {
        return map2(d, a, b, move |x, y| {
            let (x, y) = if m.ftz { (flush(x), flush(y)) } else { (x, y) };
            finish(g(f(x), f(y)), m)
        });
    }
    map2(d, a, b, move |x, y| {
        flush(canon(g(f(flush(x)), f(flush(y)))))
    })
}

fn f3(
    d: W,
    a: W,
    b: W,
    c: W,
    m: Mods,
    g: impl Fn(f32, f32, f32) -> f32 + Send + Sync + 'static,
) -> Alu {
    if !m.ftz && !m.sat {
        return map3(d, a, b, c, move |x, y, z| canon(g(f(x), f(y), f(z))));
    }
    map3(d, a, b, c, move |x, y, z| {
        let (x, y, z) = if m.ftz {
            (flush(x), flush(y), flush(z))
        } else {
            (x, y, z)
        };
        finish(g(f(x), f(y), f(z)), m)
    })
}

#[inline(always)]
fn finish(x: f32, m: Mods) -> u32 {
    let x = if m.sat { saturate(x) } else { x };
    let bits = canon(x);
    if m.ftz { flush(bits) } else { bits }
}

fn d1(d: D, a: D, g: impl Fn(f64) -> f64 + Send + Sync + 'static) -> Alu {
    map1(d, a, move |x| g(f64::from_bits(x)).to_bits())
}

fn d2(d: D, a: D, b: D, g: impl Fn(f64, f64) -> f64 + Send + Sync + 'static) -> Alu {
    map2(d, a, b, move |x, y| {
        g(f64::from_bits(x), f64::from_bits(y)).to_bits()
    })
}

/// `a / b` as `a * (1 / b)`: for `|b| > 2^126` the reciprocal is taken as zero.
fn div_approx(a: f32, b: f32) -> f32 {
    if b.is_finite() && b.abs() > f32::from_bits(0x7e80_0000) {
        a * (0.0f32.copysign(b))
    } else {
        a / b
    }
}

const F32_MODS: [&str; 12] = [
    "rn", "rz", "rm", "rp", "ftz", "sat", "approx", "full", "NaN", "xorsign", "abs", "f32",
];

/// A comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cmp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    /// The unordered forms are the negation of an ordered one.
    Equ,
    Neu,
    Ltu,
    Leu,
    Gtu,
    Geu,
    Num,
    Nan,
}

impl Cmp {
    fn parse(s: &str, ty: Ty) -> Option<Self> {
        let unsigned = matches!(ty, Ty::U16 | Ty::U32 | Ty::U64);
        let float = ty.float();
        Some(match s {
            "eq" => Self::Eq,
            // For floats `ne` is ordered: false if either is NaN.
            "ne" => Self::Ne,
            "lt" => Self::Lt,
            "le" => Self::Le,
            "gt" => Self::Gt,
            "ge" => Self::Ge,
            "lo" if unsigned => Self::Lt,
            "ls" if unsigned => Self::Le,
            "hi" if unsigned => Self::Gt,
            "hs" if unsigned => Self::Ge,
            "equ" if float => Self::Equ,
            "neu" if float => Self::Neu,
            "ltu" if float => Self::Ltu,
            "leu" if float => Self::Leu,
            "gtu" if float => Self::Gtu,
            "geu" if float => Self::Geu,
            "num" if float => Self::Num,
            "nan" if float => Self::Nan,
            _ => return None,
        })
    }
}

/// The mask of lanes where the comparison holds, false for `ne` if either is NaN; `conv` gives the value of a lane.
#[allow(
    clippy::double_comparisons,
    clippy::nonminimal_bool,
    reason = "`<` or `>` is not `!=` where there are NaNs"
)]
#[inline(always)]
fn compare<R: Reg, T: PartialOrd>(
    r: &Regs,
    a: R,
    b: R,
    cmp: Cmp,
    conv: impl Fn(R::Bits) -> T,
) -> u32 {
    let t = |g: &dyn Fn(&T, &T) -> bool| test2(r, a, b, |x, y| g(&conv(x), &conv(y)));
    match cmp {
        Cmp::Eq => test2(r, a, b, |x, y| conv(x) == conv(y)),
        Cmp::Ne => test2(r, a, b, |x, y| {
            let (x, y) = (conv(x), conv(y));
            x < y || x > y
        }),
        Cmp::Lt => test2(r, a, b, |x, y| conv(x) < conv(y)),
        Cmp::Le => test2(r, a, b, |x, y| conv(x) <= conv(y)),
        Cmp::Gt => test2(r, a, b, |x, y| conv(x) > conv(y)),
        Cmp::Ge => test2(r, a, b, |x, y| conv(x) >= conv(y)),
        Cmp::Equ => t(&|x, y| !(x < y || x > y)),
        Cmp::Neu => t(&|x, y| x != y),
        Cmp::Ltu => !compare(r, a, b, Cmp::Ge, conv),
        Cmp::Leu => !compare(r, a, b, Cmp::Gt, conv),
        Cmp::Gtu => !compare(r, a, b, Cmp::Le, conv),
        Cmp::Geu => !compare(r, a, b, Cmp::Lt, conv),
        Cmp::Num => t(&|x, y| x.partial_cmp(y).is_some()),
        Cmp::Nan => t(&|x, y| x.partial_cmp(y).is_none()),
    }
}

/// Refuses what has no default rounding without one, or one of `instead`.
fn needs_rounding(name: &str, m: &[&str], instead: &[&str]) -> Res<()> {
    let given = m
        .iter()
        .any(|s| ty::round(s).is_some() || instead.contains(s));
    match matches!(name, "fma" | "mad" | "div" | "rcp" | "sqrt") && !given {
        true => Err("expected a rounding".into()),
        false => Ok(()),
    }
}

/// Compares rows to a mask of lanes; the second mask is of the upper halves of packed types.
type Test = Box<dyn Fn(&Regs) -> (u32, u32) + Send + Sync>;

impl Decoder<'_> {
    fn f32_mods(m: &[&str]) -> Mods {
        let round = m.iter().find_map(|s| ty::round(s)).unwrap_or(Round::Near);
        Mods {
            ftz: m.contains(&"ftz"),
            sat: m.contains(&"sat"),
            round,
        }
    }

    pub(super) fn f32(&mut self, name: &str, m: &[&str], o: &[Operand]) -> Res<(Op, Class)> {
        let special = matches!(
            name,
            "ex2" | "lg2" | "sin" | "cos" | "tanh" | "rsqrt" | "rcp" | "sqrt"
        );
        let class = if special { Class::Special } else { Class::F32 };
        let alu = self.f32_alu(name, m, o)?;
        let approximate = m.contains(&"approx") || m.contains(&"full");
        let op = match (fidelity::of_f32(name), o) {
            (Some(error), [d, ..]) if approximate => Op::Approximate(Box::new(Approximate {
                alu,
                d: self.dw(d)?,
                format: Format32::F32,
                error,
            })),
            _ => Op::Alu(alu),
        };
        Ok((op, class))
    }

    fn f32_alu(&mut self, name: &str, m: &[&str], o: &[Operand]) -> Res<Alu> {
        if name == "testp" {
            return self.testp(m, o);
        }
        known(m, &F32_MODS)?;
        let has = |s: &str| m.contains(&s);
        let mods = Self::f32_mods(m);
        let round = mods.round;
        let near = round == Round::Near;
        needs_rounding(name, m, &["approx", "full"])?;
        match o {
            [d, a] => {
                let (d, a) = (self.dw(d)?, self.w(a)?);
                Ok(match name {
                    "abs" => map1(
                        d,
                        a,
                        move |x| if mods.ftz { flush(x) } else { x } & 0x7fff_ffff,
                    ),
                    "neg" => map1(
                        d,
                        a,
                        move |x| if mods.ftz { flush(x) } else { x } ^ 0x8000_0000,
                    ),
                    "rcp" if has("approx") || near => f1(d, a, mods, |x| 1.0 / x),
                    "rcp" => f1(d, a, mods, move |x| {
                        fp::round32(fp::div_odd(1.0, f64::from(x)), round)
                    }),
                    "sqrt" if has("approx") || near => f1(d, a, mods, f32::sqrt),
                    "sqrt" => f1(d, a, mods, move |x| {
                        fp::round32(fp::sqrt_odd(f64::from(x)), round)
                    }),
                    "rsqrt" if has("approx") => {
                        f1(d, a, mods, |x| (1.0 / f64::from(x).sqrt()) as f32)
                    }
                    "ex2" if has("approx") => f1(d, a, mods, |x| f64::from(x).exp2() as f32),
                    "lg2" if has("approx") => f1(d, a, mods, |x| f64::from(x).log2() as f32),
                    "sin" if has("approx") => f1(d, a, mods, |x| f64::from(x).sin() as f32),
                    "cos" if has("approx") => f1(d, a, mods, |x| f64::from(x).cos() as f32),
                    "tanh" if has("approx") => f1(d, a, mods, |x| f64::from(x).tanh() as f32),
                    _ => return Err(String::new()),
                })
            }
            [d, a, b] => {
                let (d, a, b) = (self.dw(d)?, self.w(a)?, self.w(b)?);
                Ok(match name {
                    "add" if near => f2(d, a, b, mods, |x, y| x + y),
                    "sub" if near => f2(d, a, b, mods, |x, y| x - y),
                    "mul" if near => f2(d, a, b, mods, |x, y| x * y),
                    "add" => f2(d, a, b, mods, move |x, y| add_round(x, y, round)),
                    "sub" => f2(d, a, b, mods, move |x, y| add_round(x, -y, round)),
                    "mul" => f2(d, a, b, mods, move |x, y| {
                        fp::round32(f64::from(x) * f64::from(y), round)
                    }),
                    "div" if has("approx") => f2(d, a, b, mods, div_approx),
                    "div" if has("full") || near => f2(d, a, b, mods, |x, y| x / y),
                    "div" => f2(d, a, b, mods, move |x, y| {
                        fp::round32(fp::div_odd(f64::from(x), f64::from(y)), round)
                    }),
                    "min" | "max" => {
                        let (max, nan, xorsign) = (name == "max", has("NaN"), has("xorsign"));
                        f2(d, a, b, mods, move |x, y| {
                            if xorsign {
                                let sign = (x.to_bits() ^ y.to_bits()) & 0x8000_0000;
                                let v = fp::min_max32(x.abs(), y.abs(), max, nan);
                                if v.is_nan() { v } else { f(v.to_bits() | sign) }
                            } else {
                                fp::min_max32(x, y, max, nan)
                            }
                        })
                    }
                    // The sign of the first goes to the second.
                    "copysign" => map2(d, a, b, |x, y| (x & 0x8000_0000) | (y & 0x7fff_ffff)),
                    _ => return Err(String::new()),
                })
            }
            [d, a, b, c] if matches!(name, "fma" | "mad") => {
                let (d, a, b, c) = (self.dw(d)?, self.w(a)?, self.w(b)?, self.w(c)?);
                Ok(if near {
                    f3(d, a, b, c, mods, f32::mul_add)
                } else {
                    f3(d, a, b, c, mods, move |x, y, z| {
                        let p = f64::from(x) * f64::from(y);
                        zero_sign(
                            fp::round32(fp::add_odd(p, f64::from(z)), round),
                            p,
                            f64::from(z),
                            round,
                        )
                    })
                })
            }
            _ => Err(String::new()),
        }
    }

    pub(super) fn f64(&mut self, name: &str, m: &[&str], o: &[Operand]) -> Res<(Op, Class)> {
        let special = name == "rsqrt" || m.contains(&"approx");
        let class = if special { Class::Special } else { Class::F64 };
        self.f64_alu(name, m, o).map(|a| (Op::Alu(a), class))
    }

    fn f64_alu(&mut self, name: &str, m: &[&str], o: &[Operand]) -> Res<Alu> {
        if name == "testp" {
            return self.testp(m, o);
        }
        known(m, &["rn", "rz", "rm", "rp", "approx", "ftz"])?;
        let round = m.iter().find_map(|s| ty::round(s)).unwrap_or(Round::Near);
        let has = |s: &str| m.contains(&s);
        needs_rounding(name, m, &["approx"])?;
        if has("ftz") && !has("approx") || name == "rcp" && has("approx") && !has("ftz") {
            return Err(String::new());
        }
        match o {
            [d, a] => {
                let (d, a) = (self.dd(d)?, self.d(a)?);
                Ok(match name {
                    "abs" => map1(d, a, |x| x & !(1 << 63)),
                    "neg" => map1(d, a, |x| x ^ 1 << 63),
                    "rcp" if has("approx") => d1(d, a, |x| gross(x, |x| 1.0 / x)),
                    "rsqrt" if has("approx") && has("ftz") => {
                        d1(d, a, |x| gross(x, |x| 1.0 / x.sqrt()))
                    }
                    // Without `.ftz` it is as accurate as the library function.
                    "rsqrt" if has("approx") => d1(d, a, |x| 1.0 / x.sqrt()),
                    "rcp" => d1(d, a, move |x| {
                        let q = 1.0 / x;
                        fp::fix64(q, (-q).mul_add(x, 1.0) * x.signum(), round)
                    }),
                    "sqrt" => d1(d, a, move |x| {
                        let s = x.sqrt();
                        fp::fix64(s, (-s).mul_add(s, x), round)
                    }),
                    _ => return Err(String::new()),
                })
            }
            [d, a, b] => {
                let (d, a, b) = (self.dd(d)?, self.d(a)?, self.d(b)?);
                Ok(match name {
                    "add" => d2(d, a, b, move |x, y| fp::add64(x, y, round)),
                    "sub" => d2(d, a, b, move |x, y| fp::add64(x, -y, round)),
                    "mul" => d2(d, a, b, move |x, y| fp::mul64(x, y, round)),
                    "div" => d2(d, a, b, move |x, y| {
                        let q = x / y;
                        fp::fix64(q, (-q).mul_add(y, x) * y.signum(), round)
                    }),
                    "min" => d2(d, a, b, |x, y| fp::min_max64(x, y, false)),
                    "max" => d2(d, a, b, |x, y| fp::min_max64(x, y, true)),
                    "copysign" => map2(d, a, b, |x, y| (x & 1 << 63) | (y & !(1 << 63))),
                    _ => return Err(String::new()),
                })
            }
            [d, a, b, c] if matches!(name, "fma" | "mad") => Ok(map3(
                self.dd(d)?,
                self.d(a)?,
                self.d(b)?,
                self.d(c)?,
                move |x, y, z| {
                    fp::fma64(
                        f64::from_bits(x),
                        f64::from_bits(y),
                        f64::from_bits(z),
                        round,
                    )
                    .to_bits()
                },
            )),
            _ => Err(String::new()),
        }
    }

    fn testp(&mut self, m: &[&str], o: &[Operand]) -> Res<Alu> {
        let [p, a] = arity(o)?;
        let p = self.dp(p)?;
        let [what, ty] = m else {
            return Err(String::new());
        };
        use std::num::FpCategory as C;
        let holds: fn(C) -> bool = match *what {
            "finite" => |c| !matches!(c, C::Nan | C::Infinite),
            "infinite" => |c| c == C::Infinite,
            "number" => |c| c != C::Nan,
            "notanumber" => |c| c == C::Nan,
            "normal" => |c| c == C::Normal,
            "subnormal" => |c| c == C::Subnormal,
            _ => return Err(String::new()),
        };
        Ok(if *ty == "f32" {
            let a = self.w(a)?;
            Box::new(move |r, mask| {
                let v = test2(r, a, a, |x, _| holds(f(x).classify()));
                r.put_p(p, v, mask);
            })
        } else {
            let a = self.d(a)?;
            Box::new(move |r, mask| {
                let v = test2(r, a, a, |x, _| holds(f64::from_bits(x).classify()));
                r.put_p(p, v, mask);
            })
        })
    }

    /// `setp` and `set`.
    pub(super) fn compare(&mut self, name: &str, m: &[&str], o: &[Operand]) -> Res<(Op, Class)> {
        let set = name == "set";
        let (types, mods): (Vec<&str>, Vec<&str>) = m.iter().partition(|s| Ty::parse(s).is_some());
        let ty = types
            .last()
            .and_then(|s| Ty::parse(s))
            .ok_or_else(String::new)?;
        let dtype = if set {
            let [d, _] = types[..] else {
                return Err(String::new());
            };
            Ty::parse(d).ok_or_else(String::new)?
        } else {
            if types.len() != 1 {
                return Err(String::new());
            }
            Ty::Pred
        };
        let ftz = mods.contains(&"ftz");
        let mods: Vec<&str> = mods.into_iter().filter(|s| *s != "ftz").collect();
        let (cmp, bool_op) = match mods[..] {
            [c] => (c, None),
            [c, b @ ("and" | "or" | "xor")] => (c, Some(b.as_bytes()[0])),
            _ => return Err(String::new()),
        };
        let cmp = Cmp::parse(cmp, ty).ok_or_else(String::new)?;
        let bits = matches!(ty, Ty::B16 | Ty::B32 | Ty::B64);
        if bits && !matches!(cmp, Cmp::Eq | Cmp::Ne) {
            return Err("bits have no order".into());
        }
        let (d, a, b, c) = match o {
            [d, a, b] if bool_op.is_none() => (d, a, b, None),
            [d, a, b, c] if bool_op.is_some() => (d, a, b, Some(self.p(c)?)),
            _ => return Err("number of operands".into()),
        };
        let class = match ty {
            Ty::F32 => Class::F32,
            Ty::F64 => Class::F64,
            _ if ty.half() => Class::Half,
            _ => Class::Integer,
        };
        let packed = matches!(ty, Ty::F16x2 | Ty::Bf16x2);
        let test = self.test(ty, cmp, ftz, a, b)?;
        let combine = move |r: &Regs, t: u32| {
            let Some((c, neg)) = c else { return t };
            let c = r.p(c) ^ if neg { FULL } else { 0 };
            match bool_op {
                Some(b'a') => t & c,
                Some(b'o') => t | c,
                _ => t ^ c,
            }
        };
        if !set {
            // `p|q`: q is the comparison negated, or the upper half for packed types.
            let (p, q) = match d {
                Operand::Pair(p, q) => (self.dp_sink(p)?, self.dp_sink(q)?),
                _ => (Some(self.dp(d)?), None),
            };
            return Ok((
                Op::Alu(Box::new(move |r, mask| {
                    let (lo, hi) = test(r);
                    let second = combine(r, if packed { hi } else { !lo });
                    let first = combine(r, lo);
                    if let Some(p) = p {
                        r.put_p(p, first, mask);
                    }
                    if let Some(q) = q {
                        r.put_p(q, second, mask);
                    }
                })),
                class,
            ));
        }
        let d = self.dw(d)?;
        let yes = match dtype {
            Ty::U32 | Ty::S32 | Ty::B32 => u32::MAX,
            Ty::U16 | Ty::S16 | Ty::B16 => 0xffff,
            Ty::F32 => 0x3f80_0000,
            Ty::F16 => 0x3c00,
            Ty::Bf16 => 0x3f80,
            Ty::F16x2 => 0x3c00_3c00,
            Ty::Bf16x2 => 0x3f80_3f80,
            _ => return Err(String::new()),
        };
        let (yes_lo, yes_hi) = if packed {
            (yes & 0xffff, yes & 0xffff_0000)
        } else {
            (yes, 0)
        };
        Ok((
            Op::Alu(Box::new(move |r, mask| {
                let (lo, hi) = test(r);
                let (lo, hi) = (combine(r, lo), combine(r, hi));
                let mut out = [0; LANES];
                for i in 0..LANES {
                    out[i] = ((lo >> i & 1) * yes_lo) | ((hi >> i & 1) * yes_hi);
                }
                r.put_w(d, &out, mask);
            })),
            class,
        ))
    }

    fn dp_sink(&self, o: &Operand) -> Res<Option<P>> {
        if *o == Operand::Sink {
            Ok(None)
        } else {
            self.dp(o).map(Some)
        }
    }

    fn test(&mut self, ty: Ty, cmp: Cmp, ftz: bool, a: &Operand, b: &Operand) -> Res<Test> {
        let (a, b) = (self.row(a, ty)?, self.row(b, ty)?);
        Ok(match (a, b) {
            (Row::D(a), Row::D(b)) => match ty {
                Ty::U64 | Ty::B64 => Box::new(move |r| (compare(r, a, b, cmp, |x| x), 0)),
                Ty::S64 => Box::new(move |r| (compare(r, a, b, cmp, |x| x as i64), 0)),
                Ty::F64 => Box::new(move |r| (compare(r, a, b, cmp, f64::from_bits), 0)),
                _ => return Err(String::new()),
            },
            (Row::W(a), Row::W(b)) => match ty {
                Ty::U32 | Ty::B32 => Box::new(move |r| (compare(r, a, b, cmp, |x| x), 0)),
                Ty::S32 => Box::new(move |r| (compare(r, a, b, cmp, |x| x as i32), 0)),
                Ty::U16 | Ty::B16 => Box::new(move |r| (compare(r, a, b, cmp, |x| x as u16), 0)),
                Ty::S16 => Box::new(move |r| (compare(r, a, b, cmp, |x| x as i16), 0)),
                Ty::F32 if ftz => Box::new(move |r| (compare(r, a, b, cmp, |x| f(flush(x))), 0)),
                Ty::F32 => Box::new(move |r| (compare(r, a, b, cmp, f), 0)),
                Ty::F16 | Ty::F16x2 => Box::new(move |r| {
                    let v = move |x: u16| if ftz && x & 0x7c00 == 0 { 0.0 } else { h2f(x) };
                    (
                        compare(r, a, b, cmp, |x| v(x as u16)),
                        compare(r, a, b, cmp, |x| v((x >> 16) as u16)),
                    )
                }),
                Ty::Bf16 | Ty::Bf16x2 => Box::new(move |r| {
                    (
                        compare(r, a, b, cmp, |x| b2f(x as u16)),
                        compare(r, a, b, cmp, |x| b2f((x >> 16) as u16)),
                    )
                }),
                _ => return Err(String::new()),
            },
            _ => return Err(String::new()),
        })
    }
}

/// The sum of an exact cancellation is -0 when rounding down.
fn zero_sign(r: f32, a: f64, b: f64, round: Round) -> f32 {
    if r == 0.0
        && a + b == 0.0
        && round == Round::Down
        && (a.is_sign_negative() || b.is_sign_negative())
    {
        -0.0
    } else {
        r
    }
}

fn add_round(x: f32, y: f32, round: Round) -> f32 {
    let (a, b) = (f64::from(x), f64::from(y));
    zero_sign(fp::round32(fp::add_odd(a, b), round), a, b, round)
}

/// A gross approximation on hardware: of the upper word, to the upper word; the lower one is 0.
fn gross(x: f64, function: impl Fn(f64) -> f64) -> f64 {
    /// The NaN of these instructions.
    const NAN: u64 = 0x7fff_ffff_0000_0000;
    let upper = |x: f64| f64::from_bits(x.to_bits() >> 32 << 32);
    let result = function(flush64(upper(x)));
    match result.is_nan() {
        true => f64::from_bits(NAN),
        false => flush64(upper(result)),
    }
}

fn flush64(x: f64) -> f64 {
    if x.is_subnormal() {
        0f64.copysign(x)
    } else {
        x
    }
}

/// The formats of half precision by type, for the other families.
pub(super) fn half_format(ty: Ty) -> fp::Format {
    if matches!(ty, Ty::Bf16 | Ty::Bf16x2) {
        BF16
    } else {
        fp::F16
    }
}
