//! Integer arithmetic, logic, shifts, comparison and selection.

// The `int!` macro's bodies cast to a type that is sometimes the same.
#![allow(clippy::unnecessary_cast, clippy::useless_conversion)]

use super::*;
use crate::ast::Arg;
use crate::numeric::extend;

pub fn lanes1(f: impl Fn(u64) -> u64 + Send + Sync + 'static) -> Alu {
    Box::new(move |a, _, _, _, d| {
        for i in 0..LANES {
            d[i] = f(a[i]);
        }
    })
}

pub fn lanes2(f: impl Fn(u64, u64) -> u64 + Send + Sync + 'static) -> Alu {
    Box::new(move |a, b, _, _, d| {
        for i in 0..LANES {
            d[i] = f(a[i], b[i]);
        }
    })
}

pub fn lanes3(f: impl Fn(u64, u64, u64) -> u64 + Send + Sync + 'static) -> Alu {
    Box::new(move |a, b, c, _, d| {
        for i in 0..LANES {
            d[i] = f(a[i], b[i], c[i]);
        }
    })
}

pub fn lanes4(f: impl Fn(u64, u64, u64, u64) -> u64 + Send + Sync + 'static) -> Alu {
    Box::new(move |a, b, c, e, d| {
        for i in 0..LANES {
            d[i] = f(a[i], b[i], c[i], e[i]);
        }
    })
}

pub fn compare(f: impl Fn(u64, u64) -> bool + Send + Sync + 'static) -> Compare {
    Box::new(move |a, b| {
        let mut m = 0;
        for i in 0..LANES {
            m |= u32::from(f(a[i], b[i])) << i;
        }
        m
    })
}

/// Expands the body for the Rust integer type of a PTX type.
macro_rules! int {
    ($ty:expr, $T:ident, $U:ident, $body:expr) => {
        match ($ty.signed(), $ty.bits) {
            (false, 16) => {
                type $T = u16;
                #[allow(dead_code)]
                type $U = u16;
                $body
            }
            (false, 32) => {
                type $T = u32;
                #[allow(dead_code)]
                type $U = u32;
                $body
            }
            (false, 64) => {
                type $T = u64;
                #[allow(dead_code)]
                type $U = u64;
                $body
            }
            (true, 16) => {
                type $T = i16;
                #[allow(dead_code)]
                type $U = u16;
                $body
            }
            (true, 32) => {
                type $T = i32;
                #[allow(dead_code)]
                type $U = u32;
                $body
            }
            (true, 64) => {
                type $T = i64;
                #[allow(dead_code)]
                type $U = u64;
                $body
            }
            _ => return unknown(format!("integer type of {} bits", $ty.bits)),
        }
    };
}

/// The bitwise function of `lop3`'s table.
pub fn lop3(a: u64, b: u64, c: u64, table: u8) -> u64 {
    let mut r = 0;
    for i in 0..8 {
        if table >> i & 1 == 1 {
            let x = if i & 4 != 0 { a } else { !a };
            let y = if i & 2 != 0 { b } else { !b };
            let z = if i & 1 != 0 { c } else { !c };
            r |= x & y & z;
        }
    }
    r & 0xffff_ffff
}

fn prmt(a: u64, b: u64, c: u64, mode: &str) -> u64 {
    let bytes = a & 0xffff_ffff | b << 32;
    let byte = |i: u64| bytes >> (8 * (i & 7)) & 0xff;
    let s = c & 3;
    let pick = |i: u64| -> u64 {
        match mode {
            "f4e" => byte(s + i),
            "b4e" => byte(s.wrapping_sub(i)),
            "rc8" => byte(s),
            "ecl" => byte(s.max(i)),
            "ecr" => byte(s.min(i)),
            "rc16" => byte((s & 1) * 2 + (i & 1)),
            _ => {
                let sel = c >> (4 * i);
                let b = byte(sel);
                if sel & 8 == 0 {
                    b
                } else if b & 0x80 != 0 {
                    0xff
                } else {
                    0
                }
            }
        }
    };
    (0..4).fold(0, |r, i| r | pick(i) << (8 * i))
}

fn bfind(x: u64, bits: u32, signed: bool, shiftamt: bool) -> u64 {
    let v = extend(x, bits, signed);
    let v = if signed && (v as i64) < 0 { !v } else { v };
    if v == 0 {
        return 0xffff_ffff;
    }
    let top = 63 - v.leading_zeros();
    u64::from(if shiftamt { bits - 1 - top } else { top })
}

fn bfe(a: u64, b: u64, c: u64, bits: u32, signed: bool) -> u64 {
    let (pos, len) = ((b & 0xff) as u32, (c & 0xff) as u32);
    let top = bits - 1;
    if len == 0 {
        return 0;
    }
    let a = extend(a, bits, false);
    let sign = if signed {
        a >> pos.saturating_add(len).saturating_sub(1).min(top) & 1
    } else {
        0
    };
    let low = if pos > top { 0 } else { a >> pos };
    let keep = len.min(bits.saturating_sub(pos));
    let field = if keep == 0 {
        0
    } else {
        extend(low, keep, false)
    };
    let fill = if sign == 1 && keep < bits {
        u64::MAX.checked_shl(keep).unwrap_or(0)
    } else {
        0
    };
    extend(field | fill, bits, false)
}

fn bfi(a: u64, b: u64, c: u64, d: u64, bits: u32) -> u64 {
    let (pos, len) = ((c & 0xff) as u32, (d & 0xff) as u32);
    if pos >= bits || len == 0 {
        return b;
    }
    let len = len.min(bits - pos);
    let mask = extend(u64::MAX, len, false) << pos;
    b & !mask | (a << pos) & mask
}

fn dot(a: u64, b: u64, lanes: u32, bits_b: u32, offset: u32, sa: bool, sb: bool) -> u64 {
    let bits_a = 32 / lanes;
    (0..lanes).fold(0u64, |r, i| {
        let x = extend(a >> (i * bits_a), bits_a, sa);
        let y = extend(b >> (offset + i * bits_b), bits_b, sb);
        r.wrapping_add(x.wrapping_mul(y))
    })
}

/// The boolean that `setp` and `set` combine with.
fn combine(m: &mut Mods) -> Option<fn(u32, u32) -> u32> {
    Some(match m.one_of(&["and", "or", "xor"])? {
        "and" => |a, b| a & b,
        "or" => |a, b| a | b,
        _ => |a, b| a ^ b,
    })
}

/// A comparison by its operator; `None` if the operator does not apply to the type.
fn comparison(op: &str, ty: Ty, ftz: bool) -> Result<Compare> {
    use std::cmp::Ordering;
    use std::cmp::Ordering::{Equal, Greater, Less};
    if ty.kind == Kind::F && ty.bits >= 32 || matches!(ty.kind, Kind::F | Kind::Bf) {
        let half = match (ty.kind, ty.bits) {
            (Kind::Bf, _) => Some(crate::numeric::Half::Bf16),
            (_, 16) => Some(crate::numeric::Half::F16),
            _ => None,
        };
        let double = ty.bits == 64;
        let value = move |x: u64| -> f64 {
            if double {
                return f64::from_bits(x);
            }
            let v = match half {
                Some(h) => {
                    let v = h.value(x as u16);
                    if ftz && v.abs() < 6.103_515_6e-5 {
                        0.0
                    } else {
                        v
                    }
                }
                None => {
                    let v = f32::from_bits(x as u32);
                    if ftz { crate::numeric::ftz(v) } else { v }
                }
            };
            f64::from(v)
        };
        macro_rules! float_cmp {
            ($f:expr) => {
                compare(move |a, b| {
                    let f: fn(f64, f64) -> bool = $f;
                    f(value(a), value(b))
                })
            };
        }
        return Ok(match op {
            "eq" => float_cmp!(|a, b| a == b),
            "ne" => float_cmp!(|a, b| matches!(a.partial_cmp(&b), Some(Less | Greater))),
            "lt" => float_cmp!(|a, b| a < b),
            "le" => float_cmp!(|a, b| a <= b),
            "gt" => float_cmp!(|a, b| a > b),
            "ge" => float_cmp!(|a, b| a >= b),
            "equ" => float_cmp!(|a, b| !matches!(a.partial_cmp(&b), Some(Less | Greater))),
            "neu" => float_cmp!(|a, b| a != b),
            "ltu" => float_cmp!(|a, b| !matches!(a.partial_cmp(&b), Some(Greater | Equal))),
            "leu" => float_cmp!(|a, b| a.partial_cmp(&b) != Some(Greater)),
            "gtu" => float_cmp!(|a, b| !matches!(a.partial_cmp(&b), Some(Less | Equal))),
            "geu" => float_cmp!(|a, b| a.partial_cmp(&b) != Some(Less)),
            "num" => float_cmp!(|a, b| !a.is_nan() && !b.is_nan()),
            "nan" => float_cmp!(|a, b| a.is_nan() || b.is_nan()),
            _ => return unknown(format!("comparison `.{op}`")),
        });
    }
    let order = |f: fn(Ordering) -> bool| -> Result<Compare> {
        Ok(int!(
            ty,
            T,
            U,
            compare(move |a, b| f((a as T).cmp(&(b as T))))
        ))
    };
    match op {
        "eq" => order(Ordering::is_eq),
        "ne" => order(Ordering::is_ne),
        "lt" if ty.kind == Kind::S || ty.kind == Kind::U => order(Ordering::is_lt),
        "le" if ty.kind == Kind::S || ty.kind == Kind::U => order(Ordering::is_le),
        "gt" if ty.kind == Kind::S || ty.kind == Kind::U => order(Ordering::is_gt),
        "ge" if ty.kind == Kind::S || ty.kind == Kind::U => order(Ordering::is_ge),
        "lo" if ty.kind == Kind::U => order(Ordering::is_lt),
        "ls" if ty.kind == Kind::U => order(Ordering::is_le),
        "hi" if ty.kind == Kind::U => order(Ordering::is_gt),
        "hs" if ty.kind == Kind::U => order(Ordering::is_ge),
        _ => unknown(format!("comparison `.{op}` for this type")),
    }
}

const COMPARISONS: &[&str] = &[
    "eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs", "equ", "neu", "ltu", "leu", "gtu",
    "geu", "num", "nan",
];

fn class_of(ty: Ty) -> Class {
    match (ty.kind, ty.bits) {
        (Kind::F, 32) => Class::F32,
        (Kind::F, 64) => Class::F64,
        (Kind::F | Kind::Bf | Kind::F16x2 | Kind::Bf16x2, _) => Class::Half,
        _ => Class::Integer,
    }
}

impl Decoder<'_> {
    /// An ALU operation whose sources all have one type.
    pub fn alu(&mut self, args: &[Arg], ty: Ty, n: usize, f: Alu) -> Result<Op> {
        self.alu_types(args, &vec![ty; n], f)
    }

    pub fn alu_types(&mut self, args: &[Arg], types: &[Ty], f: Alu) -> Result<Op> {
        if args.len() != types.len() + 1 {
            return bad(format!("{} operands are needed", types.len() + 1));
        }
        let dst = self.dst(&args[0])?.index;
        let mut src = [self.constant(0); 4];
        for (i, ty) in types.iter().enumerate() {
            src[i] = self.src(&args[i + 1], *ty)?;
        }
        Ok(Op::Alu { f, dst, src })
    }

    /// `setp` and `set`.
    fn comparison(&mut self, m: &mut Mods, args: &[Arg]) -> Result<(Op, Class)> {
        let set = m.name == "set";
        let Some(op) = m.one_of(COMPARISONS) else {
            return unknown("no comparison");
        };
        let boolean = combine(m);
        let ftz = m.has("ftz");
        let to = if set { Some(m.ty()?) } else { None };
        let ty = m.ty()?;
        let extra = usize::from(boolean.is_some());
        if args.len() != 3 + extra {
            return bad(format!("{} operands are needed", 3 + extra));
        }
        let combine = match boolean {
            Some(f) => Some((f, self.psrc(&args[3])?)),
            None => None,
        };
        let (a, b) = (self.src(&args[1], ty)?, self.src(&args[2], ty)?);
        let pair = matches!(ty.kind, Kind::F16x2 | Kind::Bf16x2);
        let element = match ty.kind {
            Kind::F16x2 => Ty {
                kind: Kind::F,
                bits: 16,
            },
            Kind::Bf16x2 => Ty {
                kind: Kind::Bf,
                bits: 16,
            },
            _ => ty,
        };
        let one = match to.map(|t| (t.kind, t.bits)) {
            Some((Kind::F, 32)) => u64::from(1f32.to_bits()),
            Some((Kind::F, 16)) => 0x3c00,
            Some((Kind::Bf, _)) => 0x3f80,
            Some((Kind::F16x2, _)) => 0x3c00,
            Some((Kind::Bf16x2, _)) => 0x3f80,
            Some((Kind::U | Kind::S, 16)) => 0xffff,
            Some((Kind::U | Kind::S, 32)) if pair => 0xffff,
            Some((Kind::U | Kind::S, 32)) => 0xffff_ffff,
            Some(_) => return unknown("destination type of `set`"),
            None => 1,
        };
        let (mut preds, mut dst) = (None, 0);
        if set {
            dst = self.dst(&args[0])?.index;
        } else {
            preds = Some(match &args[0] {
                Arg::Pair(p, q) => (self.pred_dst(p)?, self.pred_dst(q)?),
                p => (self.pred_dst(p)?, None),
            });
        }
        let class = class_of(ty);
        let f = comparison(op, element, ftz)?;
        if pair {
            let g = comparison(op, element, ftz)?;
            let op = Op::SetPair {
                low: f,
                high: Box::new(move |a, b| {
                    let (mut x, mut y) = (*a, *b);
                    x.iter_mut().chain(&mut y).for_each(|v| *v >>= 16);
                    g(&x, &y)
                }),
                preds,
                dst,
                one,
                a,
                b,
                combine,
            };
            return Ok((op, class));
        }
        let op = match preds {
            Some((dst, other)) => Op::SetP {
                f,
                dst,
                other,
                a,
                b,
                combine,
            },
            None => Op::Set {
                f,
                dst,
                one,
                a,
                b,
                combine,
            },
        };
        Ok((op, class))
    }

    fn pred_logic(&mut self, args: &[Arg], n: usize, f: fn(u32, u32) -> u32) -> Result<Op> {
        if args.len() != n + 1 {
            return bad(format!("{} operands are needed", n + 1));
        }
        let Some(dst) = self.pred_dst(&args[0])? else {
            return Ok(Op::Nop);
        };
        let a = self.psrc(&args[1])?;
        let b = if n == 2 { self.psrc(&args[2])? } else { a };
        Ok(Op::PredLogic { dst, f, a, b })
    }

    pub fn int(&mut self, m: &mut Mods, args: &[Arg]) -> Result<Option<(Op, Class)>> {
        let u32t = Ty {
            kind: Kind::U,
            bits: 32,
        };
        let name = m.name;
        if matches!(name, "add" | "min" | "max")
            && let Some(ty) = m.one_of(&["s16x2", "u16x2"])
        {
            return self.packed16(m, args, ty == "s16x2").map(Some);
        }
        let op = match name {
            "setp" | "set" => return self.comparison(m, args).map(Some),
            "add" | "sub" if m.has("cc") => {
                let ty = m.ty()?;
                let kind = if m.name == "add" {
                    CarryKind::Add
                } else {
                    CarryKind::Sub
                };
                self.carry(args, ty, kind, false, true)?
            }
            "addc" | "subc" => {
                let out = m.has("cc");
                let ty = m.ty()?;
                let kind = if m.name == "addc" {
                    CarryKind::Add
                } else {
                    CarryKind::Sub
                };
                self.carry(args, ty, kind, true, out)?
            }
            "mad" | "madc" if m.name == "madc" || m.has("cc") => {
                let out = m.has("cc");
                let high = m.one_of(&["lo", "hi"]) == Some("hi");
                let ty = m.ty()?;
                let signed = ty.signed();
                let kind = if high {
                    CarryKind::MadHi { signed }
                } else {
                    CarryKind::MadLo { signed }
                };
                self.carry(args, ty, kind, m.name == "madc", out)?
            }
            "add" | "sub" => {
                let sat = m.has("sat");
                let ty = m.ty()?;
                let sub = m.name == "sub";
                let f = match (sat, sub) {
                    (false, false) => {
                        int!(
                            ty,
                            T,
                            U,
                            lanes2(|a, b| (a as T).wrapping_add(b as T) as U as u64)
                        )
                    }
                    (false, true) => {
                        int!(
                            ty,
                            T,
                            U,
                            lanes2(|a, b| (a as T).wrapping_sub(b as T) as U as u64)
                        )
                    }
                    (true, false) if ty.signed() => {
                        int!(
                            ty,
                            T,
                            U,
                            lanes2(|a, b| (a as T).saturating_add(b as T) as U as u64)
                        )
                    }
                    (true, true) if ty.signed() => {
                        int!(
                            ty,
                            T,
                            U,
                            lanes2(|a, b| (a as T).saturating_sub(b as T) as U as u64)
                        )
                    }
                    _ => return unknown("`.sat` for this type"),
                };
                self.alu(args, ty, 2, f)?
            }
            "mul" | "mad" | "mul24" | "mad24" => {
                let mode = m.one_of(&["lo", "hi", "wide"]);
                let sat = m.has("sat");
                let ty = m.ty()?;
                let n = if m.name.starts_with("mad") { 3 } else { 2 };
                let dst_bits = if mode == Some("wide") {
                    ty.bits * 2
                } else {
                    ty.bits
                };
                if dst_bits > 64 || !ty.is_int() || ty.bits < 16 {
                    return unknown("multiplication of this type");
                }
                let (bits, signed) = (ty.bits, ty.signed());
                let is24 = m.name.ends_with("24");
                if is24 && (bits != 32 || mode == Some("wide")) {
                    return unknown("24-bit multiplication of this type");
                }
                let f: Alu = match mode {
                    Some("lo" | "wide") if !is24 => {
                        // A sign-extended 64-bit product has the right low bits in every case.
                        match (bits, signed) {
                            (32, false) => lanes3(move |a, b, c| {
                                extend(
                                    (a & 0xffff_ffff)
                                        .wrapping_mul(b & 0xffff_ffff)
                                        .wrapping_add(c),
                                    dst_bits,
                                    false,
                                )
                            }),
                            (32, true) => lanes3(move |a, b, c| {
                                let p = i64::from(a as i32).wrapping_mul(i64::from(b as i32));
                                extend((p as u64).wrapping_add(c), dst_bits, false)
                            }),
                            _ => lanes3(move |a, b, c| {
                                let p =
                                    extend(a, bits, signed).wrapping_mul(extend(b, bits, signed));
                                extend(p.wrapping_add(c), dst_bits, false)
                            }),
                        }
                    }
                    Some("hi") if !is24 => lanes3(move |a, b, c| {
                        let p = if signed {
                            (i128::from(extend(a, bits, true) as i64)
                                * i128::from(extend(b, bits, true) as i64))
                                as u128
                        } else {
                            u128::from(extend(a, bits, false)) * u128::from(extend(b, bits, false))
                        };
                        let high = (p >> bits) as u64;
                        if sat {
                            let s = extend(high, 32, true) as i64 + extend(c, 32, true) as i64;
                            return s.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as u32 as u64;
                        }
                        extend(high.wrapping_add(c), bits, false)
                    }),
                    Some(mode @ ("lo" | "hi")) => {
                        let shift = if mode == "hi" { 16 } else { 0 };
                        lanes3(move |a, b, c| {
                            let p = extend(a, 24, signed).wrapping_mul(extend(b, 24, signed));
                            let p = extend(p, 48, signed) >> shift;
                            if sat {
                                let s = extend(p, 32, true) as i64 + extend(c, 32, true) as i64;
                                return s.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as u32
                                    as u64;
                            }
                            extend(p.wrapping_add(c), 32, false)
                        })
                    }
                    _ => return unknown("no `.lo`, `.hi` or `.wide`"),
                };
                if sat && !(mode == Some("hi") && signed && bits == 32 && n == 3) {
                    return unknown("`.sat`");
                }
                let mut types = vec![ty, ty];
                if n == 3 {
                    types.push(Ty {
                        kind: ty.kind,
                        bits: dst_bits,
                    });
                }
                self.alu_types(args, &types, f)?
            }
            "div" => {
                let ty = m.ty()?;
                // Division by zero yields all ones, as the hardware's sequence does.
                let f = int!(
                    ty,
                    T,
                    U,
                    lanes2(|a, b| {
                        let (a, b) = (a as T, b as T);
                        if b == 0 {
                            U::MAX.into()
                        } else {
                            a.wrapping_div(b) as U as u64
                        }
                    })
                );
                self.alu(args, ty, 2, f)?
            }
            "rem" => {
                let ty = m.ty()?;
                let f = int!(
                    ty,
                    T,
                    U,
                    lanes2(|a, b| {
                        let (a, b) = (a as T, b as T);
                        if b == 0 {
                            a as U as u64
                        } else {
                            a.wrapping_rem(b) as U as u64
                        }
                    })
                );
                self.alu(args, ty, 2, f)?
            }
            "abs" | "neg" => {
                let ty = m.ty()?;
                if !ty.signed() {
                    return unknown("an unsigned type");
                }
                let (bits, neg) = (ty.bits, m.name == "neg");
                let f = lanes1(move |a| {
                    let v = extend(a, bits, true) as i64;
                    let r = if neg {
                        v.wrapping_neg()
                    } else {
                        v.wrapping_abs()
                    };
                    extend(r as u64, bits, false)
                });
                self.alu(args, ty, 1, f)?
            }
            "min" | "max" => {
                let relu = m.has("relu");
                let ty = m.ty()?;
                if !matches!(ty.kind, Kind::U | Kind::S) {
                    return unknown("this type");
                }
                if relu && (!ty.signed() || ty.bits != 32) {
                    return unknown("`.relu` for this type");
                }
                let f = match (m.name == "max", relu) {
                    (true, false) => {
                        int!(ty, T, U, lanes2(|a, b| (a as T).max(b as T) as U as u64))
                    }
                    (false, false) => {
                        int!(ty, T, U, lanes2(|a, b| (a as T).min(b as T) as U as u64))
                    }
                    (true, true) => lanes2(|a, b| (a as i32).max(b as i32).max(0) as u32 as u64),
                    (false, true) => lanes2(|a, b| (a as i32).min(b as i32).max(0) as u32 as u64),
                };
                self.alu(args, ty, 2, f)?
            }
            "sad" => {
                let ty = m.ty()?;
                let f = int!(
                    ty,
                    T,
                    U,
                    lanes3(|a, b, c| (c as U).wrapping_add((a as T).abs_diff(b as T)) as u64)
                );
                self.alu(args, ty, 3, f)?
            }
            "popc" => {
                let ty = m.ty()?;
                let bits = ty.bits;
                let f = lanes1(move |a| u64::from(extend(a, bits, false).count_ones()));
                self.alu(args, ty, 1, f)?
            }
            "clz" => {
                let ty = m.ty()?;
                let bits = ty.bits;
                let f =
                    lanes1(move |a| u64::from(extend(a, bits, false).leading_zeros() + bits - 64));
                self.alu(args, ty, 1, f)?
            }
            "brev" => {
                let ty = m.ty()?;
                let bits = ty.bits;
                self.alu(
                    args,
                    ty,
                    1,
                    lanes1(move |a| a.reverse_bits() >> (64 - bits)),
                )?
            }
            "bfind" => {
                let shiftamt = m.has("shiftamt");
                let ty = m.ty()?;
                let (bits, signed) = (ty.bits, ty.signed());
                self.alu(
                    args,
                    ty,
                    1,
                    lanes1(move |a| bfind(a, bits, signed, shiftamt)),
                )?
            }
            "bfe" => {
                let ty = m.ty()?;
                let (bits, signed) = (ty.bits, ty.signed());
                let f = lanes3(move |a, b, c| bfe(a, b, c, bits, signed));
                self.alu_types(args, &[ty, u32t, u32t], f)?
            }
            "bfi" => {
                let ty = m.ty()?;
                let bits = ty.bits;
                let f = lanes4(move |a, b, c, d| bfi(a, b, c, d, bits));
                self.alu_types(args, &[ty, ty, u32t, u32t], f)?
            }
            "bmsk" => {
                let wrap = match m.one_of(&["clamp", "wrap"]) {
                    Some(w) => w == "wrap",
                    None => return unknown("no `.clamp` or `.wrap`"),
                };
                let ty = m.ty()?;
                let f = lanes2(move |a, b| {
                    let (a, b) = if wrap {
                        (a & 31, b & 31)
                    } else {
                        (a.min(32), b.min(32))
                    };
                    ((1u64 << b) - 1) << a & 0xffff_ffff
                });
                self.alu(args, ty, 2, f)?
            }
            "szext" => {
                let wrap = match m.one_of(&["clamp", "wrap"]) {
                    Some(w) => w == "wrap",
                    None => return unknown("no `.clamp` or `.wrap`"),
                };
                let ty = m.ty()?;
                let signed = ty.signed();
                let f = lanes2(move |a, b| {
                    let n = if wrap { b & 31 } else { b.min(32) } as u32;
                    if n == 0 {
                        0
                    } else {
                        extend(a, n, signed) & 0xffff_ffff
                    }
                });
                self.alu(args, ty, 2, f)?
            }
            "dp4a" | "dp2a" => {
                let high = m.name == "dp2a" && m.one_of(&["lo", "hi"]) == Some("hi");
                let (ta, tb) = (m.ty()?, m.ty()?);
                let (sa, sb) = (ta.signed(), tb.signed());
                let lanes = if m.name == "dp4a" { 4 } else { 2 };
                let offset = if high { 16 } else { 0 };
                let f = lanes3(move |a, b, c| {
                    c.wrapping_add(dot(a, b, lanes, 8, offset, sa, sb)) & 0xffff_ffff
                });
                self.alu_types(args, &[u32t, u32t, u32t], f)?
            }
            "prmt" => {
                let _ = m.has("b32");
                let mode = m
                    .one_of(&["f4e", "b4e", "rc8", "ecl", "ecr", "rc16"])
                    .unwrap_or("");
                self.alu(args, u32t, 3, lanes3(move |a, b, c| prmt(a, b, c, mode)))?
            }
            "shf" => {
                let left = match m.one_of(&["l", "r"]) {
                    Some(d) => d == "l",
                    None => return unknown("no direction"),
                };
                let clamp = match m.one_of(&["clamp", "wrap"]) {
                    Some(c) => c == "clamp",
                    None => return unknown("no `.clamp` or `.wrap`"),
                };
                let ty = m.ty()?;
                let f = lanes3(move |a, b, c| {
                    let c = c & 0xffff_ffff;
                    let n = if clamp { c.min(32) } else { c & 31 };
                    let x = a & 0xffff_ffff | b << 32;
                    if left {
                        x << n >> 32
                    } else {
                        x >> n & 0xffff_ffff
                    }
                });
                self.alu(args, ty, 3, f)?
            }
            "shl" | "shr" => {
                let ty = m.ty()?;
                let (bits, signed) = (ty.bits, ty.signed());
                let f = if m.name == "shl" {
                    lanes2(move |a, n| {
                        let n = n & 0xffff_ffff;
                        if n >= u64::from(bits) {
                            0
                        } else {
                            extend(a << n, bits, false)
                        }
                    })
                } else {
                    lanes2(move |a, n| {
                        let n = (n & 0xffff_ffff).min(u64::from(bits));
                        let v = extend(a, bits, signed);
                        let r = if signed {
                            (v as i64 >> n.min(63)) as u64
                        } else if n >= 64 {
                            0
                        } else {
                            v >> n
                        };
                        extend(r, bits, false)
                    })
                };
                self.alu_types(args, &[ty, u32t], f)?
            }
            "lop3" => return self.lop3(m, args).map(Some),
            "and" | "or" | "xor" => {
                let ty = m.ty()?;
                if ty.kind == Kind::Pred {
                    let f: fn(u32, u32) -> u32 = match m.name {
                        "and" => |a, b| a & b,
                        "or" => |a, b| a | b,
                        _ => |a, b| a ^ b,
                    };
                    return Ok(Some((self.pred_logic(args, 2, f)?, Class::Predicate)));
                }
                let f = match m.name {
                    "and" => lanes2(|a, b| a & b),
                    "or" => lanes2(|a, b| a | b),
                    _ => lanes2(|a, b| a ^ b),
                };
                self.alu(args, ty, 2, f)?
            }
            "not" | "cnot" => {
                let ty = m.ty()?;
                if ty.kind == Kind::Pred && m.name == "not" {
                    let op = self.pred_logic(args, 1, |a, _| !a)?;
                    return Ok(Some((op, Class::Predicate)));
                }
                let bits = ty.bits;
                let f = if m.name == "not" {
                    lanes1(move |a| extend(!a, bits, false))
                } else {
                    lanes1(|a| u64::from(a == 0))
                };
                self.alu(args, ty, 1, f)?
            }
            "selp" => {
                let ty = m.ty()?;
                if args.len() != 4 {
                    return bad("4 operands are needed");
                }
                let op = Op::Selp {
                    dst: self.dst(&args[0])?.index,
                    a: self.src(&args[1], ty)?,
                    b: self.src(&args[2], ty)?,
                    p: self.psrc(&args[3])?,
                };
                return Ok(Some((op, Class::Move)));
            }
            "slct" => {
                let ftz = m.has("ftz");
                let (ty, by) = (m.ty()?, m.ty()?);
                let f = if by.kind == Kind::F {
                    lanes3(move |a, b, c| {
                        let c = f32::from_bits(c as u32);
                        let c = if ftz { crate::numeric::ftz(c) } else { c };
                        if c >= 0.0 { a } else { b }
                    })
                } else {
                    lanes3(|a, b, c| if c as i32 >= 0 { a } else { b })
                };
                self.alu_types(args, &[ty, ty, by], f)?
            }
            _ => return Ok(None),
        };
        Ok(Some((op, Class::Integer)))
    }

    /// `add`, `min` and `max` of two 16-bit integers in a register.
    fn packed16(&mut self, m: &mut Mods, args: &[Arg], signed: bool) -> Result<(Op, Class)> {
        let u32t = Ty {
            kind: Kind::U,
            bits: 32,
        };
        let relu = m.has("relu");
        let add = m.name == "add";
        let max = m.name == "max";
        if relu && (add || !signed) {
            return unknown("`.relu` for this type");
        }
        let one = move |a: u64, b: u64| -> u64 {
            let (x, y) = (extend(a, 16, signed) as i64, extend(b, 16, signed) as i64);
            let r = match (add, max) {
                (true, _) => x + y,
                (_, true) => x.max(y),
                _ => x.min(y),
            };
            extend(if relu { r.max(0) } else { r } as u64, 16, false)
        };
        let f = lanes2(move |a, b| one(a, b) | one(a >> 16, b >> 16) << 16);
        Ok((self.alu(args, u32t, 2, f)?, Class::Integer))
    }

    fn lop3(&mut self, m: &mut Mods, args: &[Arg]) -> Result<(Op, Class)> {
        let boolean = m.one_of(&["or", "and"]);
        let ty = m.ty()?;
        let want = 5 + usize::from(boolean.is_some());
        if args.len() != want {
            return bad(format!("{want} operands are needed"));
        }
        let Arg::Int(table) = args[4] else {
            return bad("the table is not an immediate");
        };
        let table = table as u8;
        let f: Alu = match table {
            // The commonest tables, in a form that vectorises.
            0xc0 => lanes3(|a, b, _| a & b),
            0xfc => lanes3(|a, b, _| a | b),
            0x3c => lanes3(|a, b, _| a ^ b),
            0x96 => lanes3(|a, b, c| a ^ b ^ c),
            0xf8 => lanes3(|a, b, c| a | (b & c)),
            0xea => lanes3(|a, b, c| (a & b) | c),
            0x78 => lanes3(|a, b, c| a ^ (b & c)),
            0x6c => lanes3(|a, b, c| (a & c) ^ b),
            0xfe => lanes3(|a, b, c| a | b | c),
            0x80 => lanes3(|a, b, c| a & b & c),
            _ => lanes3(move |a, b, c| lop3(a, b, c, table)),
        };
        if let Some(op) = boolean {
            let (d, p) = match &args[0] {
                Arg::Pair(d, p) => (self.dst_or_sink(d)?.map(|r| r.index), self.pred_dst(p)?),
                _ => return bad("`d|p` is needed"),
            };
            let Some(pred) = p else {
                return bad("the predicate is needed");
            };
            let mut src = [self.constant(0); 4];
            for i in 0..3 {
                src[i] = self.src(&args[i + 1], ty)?;
            }
            let q = self.psrc(&args[5])?;
            let or = op == "or";
            let op = Op::Lop3Pred {
                f,
                dst: d,
                pred,
                or,
                q,
                src,
            };
            return Ok((op, Class::Integer));
        }
        Ok((self.alu(&args[..4], ty, 3, f)?, Class::Integer))
    }

    fn carry(
        &mut self,
        args: &[Arg],
        ty: Ty,
        kind: CarryKind,
        carry_in: bool,
        carry_out: bool,
    ) -> Result<Op> {
        let mad = matches!(kind, CarryKind::MadLo { .. } | CarryKind::MadHi { .. });
        let n = if mad { 3 } else { 2 };
        if args.len() != n + 1 || !matches!(ty.bits, 32 | 64) {
            return bad(format!("{} operands of 32 or 64 bits are needed", n + 1));
        }
        let mut src = [self.constant(0); 3];
        for i in 0..n {
            src[i] = self.src(&args[i + 1], ty)?;
        }
        Ok(Op::Carry {
            dst: self.dst(&args[0])?.index,
            src,
            bits: ty.bits,
            kind,
            carry_in,
            carry_out,
        })
    }
}
