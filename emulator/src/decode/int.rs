//! Integer arithmetic, logic and shifts.

use super::{Decoder, Res, arity, known};
use crate::decode::ty::Ty;
use crate::ir::regs::{Alu, LANES, W, map1, map2, map3};
use crate::ptx::ast::Operand;

/// `$e` over two operands of the Rust integer that `$ty` names.
macro_rules! int2 {
    ($s:expr, $ty:expr, $o:expr, |$a:ident, $b:ident| $e:expr) => {{
        let [d, a, b] = arity($o)?;
        macro_rules! narrow {
            ($t:ty, $u:ty) => {
                map2($s.dw(d)?, $s.h(a)?, $s.h(b)?, |x, y| {
                    let ($a, $b) = (x as $t, y as $t);
                    let _ = (&$a, &$b);
                    ($e) as $u as u32
                })
            };
        }
        macro_rules! word {
            ($t:ty) => {
                map2($s.dw(d)?, $s.w(a)?, $s.w(b)?, |x, y| {
                    let ($a, $b) = (x as $t, y as $t);
                    ($e) as u32
                })
            };
        }
        macro_rules! wide {
            ($t:ty) => {
                map2($s.dd(d)?, $s.d(a)?, $s.d(b)?, |x, y| {
                    let ($a, $b) = (x as $t, y as $t);
                    ($e) as u64
                })
            };
        }
        Ok(match $ty {
            Ty::U16 | Ty::B16 => narrow!(u16, u16),
            Ty::S16 => narrow!(i16, u16),
            Ty::U32 | Ty::B32 => word!(u32),
            Ty::S32 => word!(i32),
            Ty::U64 | Ty::B64 => wide!(u64),
            Ty::S64 => wide!(i64),
            _ => return Err(String::new()),
        })
    }};
}

macro_rules! int1 {
    ($s:expr, $ty:expr, $o:expr, |$a:ident| $e:expr) => {{
        let [d, a] = arity($o)?;
        Ok(match $ty {
            Ty::U16 | Ty::B16 => map1($s.dw(d)?, $s.h(a)?, |x| {
                let $a = x as u16;
                ($e) as u16 as u32
            }),
            Ty::S16 => map1($s.dw(d)?, $s.h(a)?, |x| {
                let $a = x as i16;
                ($e) as u16 as u32
            }),
            Ty::U32 | Ty::B32 => map1($s.dw(d)?, $s.w(a)?, |x| {
                let $a = x as u32;
                ($e) as u32
            }),
            Ty::S32 => map1($s.dw(d)?, $s.w(a)?, |x| {
                let $a = x as i32;
                ($e) as u32
            }),
            Ty::U64 | Ty::B64 => map1($s.dd(d)?, $s.d(a)?, |x| {
                let $a = x as u64;
                ($e) as u64
            }),
            Ty::S64 => map1($s.dd(d)?, $s.d(a)?, |x| {
                let $a = x as i64;
                ($e) as u64
            }),
            _ => return Err(String::new()),
        })
    }};
}

/// Division by zero gives all ones and the remainder the dividend, as the hardware's software does;
/// PTX leaves both unspecified.
macro_rules! div {
    ($a:expr, $b:expr) => {
        if $b == 0 { !0 } else { $a.wrapping_div($b) }
    };
}

macro_rules! rem {
    ($a:expr, $b:expr) => {
        if $b == 0 { $a } else { $a.wrapping_rem($b) }
    };
}

impl Decoder<'_> {
    pub(super) fn int(&mut self, name: &str, ty: Ty, m: &[&str], o: &[Operand]) -> Res<Alu> {
        known(
            m,
            &[
                "lo", "hi", "wide", "cc", "sat", "l", "r", "clamp", "wrap", "shiftamt", "f4e",
                "b4e", "rc8", "ecl", "ecr", "rc16",
            ],
        )?;
        let has = |s: &str| m.contains(&s);
        if has("cc") || matches!(name, "addc" | "subc" | "madc") {
            return self.carry(name, ty, m, o);
        }
        match name {
            "add" if has("sat") => self.add_sat(ty, o, false),
            "sub" if has("sat") => self.add_sat(ty, o, true),
            "add" => int2!(self, ty, o, |a, b| a.wrapping_add(b)),
            "sub" => int2!(self, ty, o, |a, b| a.wrapping_sub(b)),
            "mul" if has("wide") => self.mul_wide(ty, o),
            "mul" if has("hi") => self.mul_hi(ty, o),
            "mul" if has("lo") => int2!(self, ty, o, |a, b| a.wrapping_mul(b)),
            "mad" if has("lo") || has("hi") || has("wide") => self.mad(ty, m, o),
            "mul" | "mad" => Err("expected `.lo`, `.hi` or `.wide`".into()),
            "mul24" | "mad24" => self.mul24(name, ty, m, o),
            "div" => int2!(self, ty, o, |a, b| div!(a, b)),
            "rem" => int2!(self, ty, o, |a, b| rem!(a, b)),
            "min" => int2!(self, ty, o, |a, b| a.min(b)),
            "max" => int2!(self, ty, o, |a, b| a.max(b)),
            "and" | "or" | "xor" if ty == Ty::Pred => self.logic_pred(name, o),
            "not" if ty == Ty::Pred => {
                let [d, a] = arity(o)?;
                let (d, (p, neg)) = (self.dp(d)?, self.p(a)?);
                Ok(Box::new(move |r, mask| {
                    let v = r.p(p) ^ if neg { 0 } else { u32::MAX };
                    r.put_p(d, v, mask);
                }))
            }
            "and" => int2!(self, ty, o, |a, b| a & b),
            "or" => int2!(self, ty, o, |a, b| a | b),
            "xor" => int2!(self, ty, o, |a, b| a ^ b),
            "not" => int1!(self, ty, o, |a| !a),
            "cnot" => int1!(self, ty, o, |a| i32::from(a == 0)),
            "neg" => int1!(self, ty, o, |a| a.wrapping_neg()),
            "abs" => match ty {
                Ty::S16 | Ty::S32 | Ty::S64 => self.abs(ty, o),
                _ => Err(String::new()),
            },
            "sad" => self.sad(ty, o),
            "popc" | "clz" => {
                let [d, a] = arity(o)?;
                let d = self.dw(d)?;
                Ok(match (name, ty) {
                    ("popc", Ty::B32) => map1(d, self.w(a)?, u32::count_ones),
                    ("popc", Ty::B64) => map1(d, self.d(a)?, u64::count_ones),
                    ("clz", Ty::B32) => map1(d, self.w(a)?, u32::leading_zeros),
                    ("clz", Ty::B64) => map1(d, self.d(a)?, u64::leading_zeros),
                    _ => return Err(String::new()),
                })
            }
            "bfind" => self.bfind(ty, has("shiftamt"), o),
            "brev" => int1!(self, ty, o, |a| a.reverse_bits()),
            "bfe" => self.bfe(ty, o),
            "bfi" => self.bfi(ty, o),
            "bmsk" => {
                let [d, a, b] = arity(o)?;
                let clamp = has("clamp");
                Ok(map2(self.dw(d)?, self.w(a)?, self.w(b)?, move |a, b| {
                    let (a, b) = if clamp {
                        (a.min(32), b.min(32))
                    } else {
                        (a & 31, b & 31)
                    };
                    let ones = |n: u32| if n >= 32 { u32::MAX } else { (1 << n) - 1 };
                    if a >= 32 { 0 } else { ones(b) << a }
                }))
            }
            "szext" => {
                let [d, a, b] = arity(o)?;
                let (clamp, signed) = (has("clamp"), ty == Ty::S32);
                Ok(map2(self.dw(d)?, self.w(a)?, self.w(b)?, move |a, b| {
                    let b = if clamp { b.min(32) } else { b & 31 };
                    match (b, signed) {
                        (0, _) => 0,
                        (32, _) => a,
                        (_, true) => ((a << (32 - b)) as i32 >> (32 - b)) as u32,
                        _ => a & ((1 << b) - 1),
                    }
                }))
            }
            "fns" => {
                let [d, a, b, c] = arity(o)?;
                Ok(map3(self.dw(d)?, self.w(a)?, self.w(b)?, self.w(c)?, fns))
            }
            "shl" => self.shift(ty, o, |a, n| if n > 63 { 0 } else { a << n }),
            "shr" if ty.signed() => self.shift(ty, o, |a, n| ((a as i64) >> n.min(63)) as u64),
            "shr" => self.shift(ty, o, |a, n| if n > 63 { 0 } else { a >> n }),
            "shf" => self.funnel(m, o),
            "lop3" => self.lop3(o),
            "prmt" => self.prmt(m, o),
            "dp4a" | "dp2a" => self.dot(name, m, o),
            _ => Err(String::new()),
        }
    }

    fn add_sat(&mut self, ty: Ty, o: &[Operand], sub: bool) -> Res<Alu> {
        if ty != Ty::S32 {
            return Err(String::new());
        }
        if sub {
            int2!(self, ty, o, |a, b| (a as i32).saturating_sub(b as i32))
        } else {
            int2!(self, ty, o, |a, b| (a as i32).saturating_add(b as i32))
        }
    }

    fn mul_wide(&mut self, ty: Ty, o: &[Operand]) -> Res<Alu> {
        let [d, a, b] = arity(o)?;
        Ok(match ty {
            Ty::U16 => map2(self.dw(d)?, self.h(a)?, self.h(b)?, |a, b| {
                (a & 0xffff).wrapping_mul(b & 0xffff)
            }),
            Ty::S16 => map2(self.dw(d)?, self.h(a)?, self.h(b)?, |a, b| {
                (i32::from(a as i16) * i32::from(b as i16)) as u32
            }),
            Ty::U32 => map2(self.dd(d)?, self.w(a)?, self.w(b)?, |a, b| {
                u64::from(a) * u64::from(b)
            }),
            Ty::S32 => map2(self.dd(d)?, self.w(a)?, self.w(b)?, |a, b| {
                (i64::from(a as i32) * i64::from(b as i32)) as u64
            }),
            _ => return Err(String::new()),
        })
    }

    fn mul_hi(&mut self, ty: Ty, o: &[Operand]) -> Res<Alu> {
        let [d, a, b] = arity(o)?;
        Ok(match ty {
            Ty::U16 => map2(self.dw(d)?, self.h(a)?, self.h(b)?, |a, b| {
                ((a & 0xffff).wrapping_mul(b & 0xffff)) >> 16
            }),
            Ty::S16 => map2(self.dw(d)?, self.h(a)?, self.h(b)?, |a, b| {
                (i32::from(a as i16) * i32::from(b as i16)) as u32 >> 16
            }),
            Ty::U32 => map2(self.dw(d)?, self.w(a)?, self.w(b)?, |a, b| {
                ((u64::from(a) * u64::from(b)) >> 32) as u32
            }),
            Ty::S32 => map2(self.dw(d)?, self.w(a)?, self.w(b)?, |a, b| {
                ((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32
            }),
            Ty::U64 => map2(self.dd(d)?, self.d(a)?, self.d(b)?, |a, b| {
                ((u128::from(a) * u128::from(b)) >> 64) as u64
            }),
            Ty::S64 => map2(self.dd(d)?, self.d(a)?, self.d(b)?, |a, b| {
                ((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64
            }),
            _ => return Err(String::new()),
        })
    }

    fn mad(&mut self, ty: Ty, m: &[&str], o: &[Operand]) -> Res<Alu> {
        let [d, a, b, c] = arity(o)?;
        if m.contains(&"wide") {
            return Ok(match ty {
                Ty::U16 => map3(
                    self.dw(d)?,
                    self.h(a)?,
                    self.h(b)?,
                    self.w(c)?,
                    |a, b, c| (a & 0xffff).wrapping_mul(b & 0xffff).wrapping_add(c),
                ),
                Ty::S16 => map3(
                    self.dw(d)?,
                    self.h(a)?,
                    self.h(b)?,
                    self.w(c)?,
                    |a, b, c| ((i32::from(a as i16) * i32::from(b as i16)) as u32).wrapping_add(c),
                ),
                Ty::U32 => map3(
                    self.dd(d)?,
                    self.w(a)?,
                    self.w(b)?,
                    self.d(c)?,
                    |a, b, c| (u64::from(a) * u64::from(b)).wrapping_add(c),
                ),
                Ty::S32 => map3(
                    self.dd(d)?,
                    self.w(a)?,
                    self.w(b)?,
                    self.d(c)?,
                    |a, b, c| ((i64::from(a as i32) * i64::from(b as i32)) as u64).wrapping_add(c),
                ),
                _ => return Err(String::new()),
            });
        }
        let hi = m.contains(&"hi");
        let sat = m.contains(&"sat");
        if sat && !(hi && ty == Ty::S32) {
            return Err(String::new());
        }
        Ok(match ty {
            Ty::U16 | Ty::S16 => {
                let (d, a, b, c) = (self.dw(d)?, self.h(a)?, self.h(b)?, self.h(c)?);
                let signed = ty.signed();
                map3(d, a, b, c, move |a, b, c| {
                    let p = if signed {
                        i64::from(a as i16) * i64::from(b as i16)
                    } else {
                        i64::from(a as u16) * i64::from(b as u16)
                    };
                    (if hi { p >> 16 } else { p }.wrapping_add(i64::from(c)) & 0xffff) as u32
                })
            }
            Ty::U32 | Ty::S32 => {
                let (d, a, b, c) = (self.dw(d)?, self.w(a)?, self.w(b)?, self.w(c)?);
                match (hi, ty.signed()) {
                    (false, _) => map3(d, a, b, c, |a, b, c| a.wrapping_mul(b).wrapping_add(c)),
                    (true, false) => map3(d, a, b, c, |a, b, c| {
                        ((u64::from(a) * u64::from(b)) >> 32).wrapping_add(u64::from(c)) as u32
                    }),
                    (true, true) => map3(d, a, b, c, move |a, b, c| {
                        let h = ((i64::from(a as i32) * i64::from(b as i32)) >> 32) as i32;
                        (if sat {
                            h.saturating_add(c as i32)
                        } else {
                            h.wrapping_add(c as i32)
                        }) as u32
                    }),
                }
            }
            Ty::U64 | Ty::S64 => {
                let (d, a, b, c) = (self.dd(d)?, self.d(a)?, self.d(b)?, self.d(c)?);
                match (hi, ty.signed()) {
                    (false, _) => map3(d, a, b, c, |a, b, c| a.wrapping_mul(b).wrapping_add(c)),
                    (true, false) => map3(d, a, b, c, |a, b, c| {
                        ((u128::from(a) * u128::from(b)) >> 64).wrapping_add(u128::from(c)) as u64
                    }),
                    (true, true) => map3(d, a, b, c, |a, b, c| {
                        ((i128::from(a as i64) * i128::from(b as i64)) >> 64)
                            .wrapping_add(i128::from(c as i64)) as u64
                    }),
                }
            }
            _ => return Err(String::new()),
        })
    }

    fn mul24(&mut self, name: &str, ty: Ty, m: &[&str], o: &[Operand]) -> Res<Alu> {
        let (hi, sat, signed) = (m.contains(&"hi"), m.contains(&"sat"), ty == Ty::S32);
        // Only the upper half of a signed product, with an addend, saturates.
        if !matches!(ty, Ty::U32 | Ty::S32) || sat && !(name == "mad24" && hi && signed) {
            return Err(String::new());
        }
        let product = move |a: u32, b: u32| {
            let cut = |x: u32| {
                if signed {
                    i64::from((x << 8) as i32 >> 8)
                } else {
                    i64::from(x & 0xff_ffff)
                }
            };
            let p = cut(a) * cut(b);
            (if hi { p >> 16 } else { p }) as u32
        };
        if name == "mul24" {
            let [d, a, b] = arity(o)?;
            Ok(map2(self.dw(d)?, self.w(a)?, self.w(b)?, product))
        } else {
            let [d, a, b, c] = arity(o)?;
            Ok(map3(
                self.dw(d)?,
                self.w(a)?,
                self.w(b)?,
                self.w(c)?,
                move |a, b, c| match sat {
                    true => (product(a, b) as i32).saturating_add(c as i32) as u32,
                    false => product(a, b).wrapping_add(c),
                },
            ))
        }
    }

    fn abs(&mut self, ty: Ty, o: &[Operand]) -> Res<Alu> {
        let [d, a] = arity(o)?;
        Ok(match ty {
            Ty::S16 => map1(self.dw(d)?, self.h(a)?, |x| {
                u32::from((x as i16).unsigned_abs())
            }),
            Ty::S32 => map1(self.dw(d)?, self.w(a)?, |x| (x as i32).unsigned_abs()),
            _ => map1(self.dd(d)?, self.d(a)?, |x| (x as i64).unsigned_abs()),
        })
    }

    fn sad(&mut self, ty: Ty, o: &[Operand]) -> Res<Alu> {
        let [d, a, b, c] = arity(o)?;
        Ok(match ty {
            Ty::U16 => map3(
                self.dw(d)?,
                self.h(a)?,
                self.h(b)?,
                self.h(c)?,
                |a, b, c| (a.abs_diff(b).wrapping_add(c)) & 0xffff,
            ),
            Ty::S16 => map3(
                self.dw(d)?,
                self.h(a)?,
                self.h(b)?,
                self.h(c)?,
                |a, b, c| u32::from((a as i16).abs_diff(b as i16).wrapping_add(c as u16)),
            ),
            Ty::U32 => map3(
                self.dw(d)?,
                self.w(a)?,
                self.w(b)?,
                self.w(c)?,
                |a, b, c| a.abs_diff(b).wrapping_add(c),
            ),
            Ty::S32 => map3(
                self.dw(d)?,
                self.w(a)?,
                self.w(b)?,
                self.w(c)?,
                |a, b, c| (a as i32).abs_diff(b as i32).wrapping_add(c),
            ),
            Ty::U64 => map3(
                self.dd(d)?,
                self.d(a)?,
                self.d(b)?,
                self.d(c)?,
                |a, b, c| a.abs_diff(b).wrapping_add(c),
            ),
            Ty::S64 => map3(
                self.dd(d)?,
                self.d(a)?,
                self.d(b)?,
                self.d(c)?,
                |a, b, c| (a as i64).abs_diff(b as i64).wrapping_add(c),
            ),
            _ => return Err(String::new()),
        })
    }

    fn bfind(&mut self, ty: Ty, shiftamt: bool, o: &[Operand]) -> Res<Alu> {
        let [d, a] = arity(o)?;
        let d = self.dw(d)?;
        let find = move |x: u64, bits: u32| {
            let msb = 63u32.wrapping_sub(x.leading_zeros());
            match x {
                0 => u32::MAX,
                _ if shiftamt => bits - 1 - msb,
                _ => msb,
            }
        };
        Ok(match ty {
            Ty::U32 => map1(d, self.w(a)?, move |x| find(u64::from(x), 32)),
            Ty::S32 => map1(d, self.w(a)?, move |x| {
                find(u64::from(if (x as i32) < 0 { !x } else { x }), 32)
            }),
            Ty::U64 => map1(d, self.d(a)?, move |x| find(x, 64)),
            Ty::S64 => map1(d, self.d(a)?, move |x| {
                find(if (x as i64) < 0 { !x } else { x }, 64)
            }),
            _ => return Err(String::new()),
        })
    }

    fn bfe(&mut self, ty: Ty, o: &[Operand]) -> Res<Alu> {
        let [d, a, b, c] = arity(o)?;
        let (b, c) = (self.w(b)?, self.w(c)?);
        let (bits, signed) = (ty.bits(), ty.signed());
        let extract = move |a: u64, b: u32, c: u32| {
            let (pos, len) = (b & 0xff, c & 0xff);
            let msb = bits - 1;
            let sign = if !signed || len == 0 {
                0
            } else {
                a >> (pos + len - 1).min(msb) & 1
            };
            let fill = if sign != 0 { u64::MAX } else { 0 };
            let body = if pos > msb {
                fill
            } else {
                a >> pos | if pos == 0 { 0 } else { fill << (bits - pos) }
            };
            let len = len.min(64);
            let keep = if len == 64 { u64::MAX } else { (1 << len) - 1 };
            (body & keep) | (fill & !keep)
        };
        Ok(match ty {
            Ty::U32 | Ty::S32 => map3(self.dw(d)?, self.w(a)?, b, c, move |a, b, c| {
                extract(u64::from(a), b, c) as u32
            }),
            Ty::U64 | Ty::S64 => map3(self.dd(d)?, self.d(a)?, b, c, extract),
            _ => return Err(String::new()),
        })
    }

    fn bfi(&mut self, ty: Ty, o: &[Operand]) -> Res<Alu> {
        let [f, a, b, c, d] = arity(o)?;
        let (c, d) = (self.w(c)?, self.w(d)?);
        // Four sources: position and length are packed into one row operand at run time.
        match ty {
            Ty::B32 => {
                let (f, a, b) = (self.dw(f)?, self.w(a)?, self.w(b)?);
                Ok(Box::new(move |r, mask| {
                    let mut out = [0; LANES];
                    for i in 0..LANES {
                        out[i] = insert(
                            u64::from(r.w(a)[i]),
                            u64::from(r.w(b)[i]),
                            r.w(c)[i],
                            r.w(d)[i],
                            32,
                        ) as u32;
                    }
                    r.put_w(f, &out, mask);
                }))
            }
            Ty::B64 => {
                let (f, a, b) = (self.dd(f)?, self.d(a)?, self.d(b)?);
                Ok(Box::new(move |r, mask| {
                    let mut out = [0; LANES];
                    for i in 0..LANES {
                        out[i] = insert(r.d(a)[i], r.d(b)[i], r.w(c)[i], r.w(d)[i], 64);
                    }
                    r.put_d(f, &out, mask);
                }))
            }
            _ => Err(String::new()),
        }
    }

    fn logic_pred(&mut self, name: &str, o: &[Operand]) -> Res<Alu> {
        let [d, a, b] = arity(o)?;
        let (d, (a, na), (b, nb)) = (self.dp(d)?, self.p(a)?, self.p(b)?);
        let (na, nb) = (if na { u32::MAX } else { 0 }, if nb { u32::MAX } else { 0 });
        let kind = name.as_bytes()[0];
        Ok(Box::new(move |r, mask| {
            let (x, y) = (r.p(a) ^ na, r.p(b) ^ nb);
            let v = match kind {
                b'a' => x & y,
                b'o' => x | y,
                _ => x ^ y,
            };
            r.put_p(d, v, mask);
        }))
    }

    /// Shift amounts are 32-bit and clamp at the width; `f` works on the sign- or zero-extended value.
    fn shift(
        &mut self,
        ty: Ty,
        o: &[Operand],
        f: impl Fn(u64, u32) -> u64 + Send + Sync + Copy + 'static,
    ) -> Res<Alu> {
        let [d, a, n] = arity(o)?;
        let n = self.w(n)?;
        Ok(match ty {
            Ty::B16 | Ty::U16 => map2(self.dw(d)?, self.h(a)?, n, move |a, n| {
                f(u64::from(a & 0xffff), n) as u32 & 0xffff
            }),
            Ty::S16 => map2(self.dw(d)?, self.h(a)?, n, move |a, n| {
                f(a as i16 as u64, n) as u32 & 0xffff
            }),
            Ty::B32 | Ty::U32 => map2(self.dw(d)?, self.w(a)?, n, move |a, n| {
                f(u64::from(a), n) as u32
            }),
            Ty::S32 => map2(self.dw(d)?, self.w(a)?, n, move |a, n| {
                f(a as i32 as u64, n) as u32
            }),
            Ty::B64 | Ty::U64 | Ty::S64 => map2(self.dd(d)?, self.d(a)?, n, f),
            _ => return Err(String::new()),
        })
    }

    fn funnel(&mut self, m: &[&str], o: &[Operand]) -> Res<Alu> {
        let [d, a, b, c] = arity(o)?;
        let (d, a, b, c) = (self.dw(d)?, self.w(a)?, self.w(b)?, self.w(c)?);
        let join = |a: u32, b: u32| u64::from(b) << 32 | u64::from(a);
        Ok(match m {
            ["l", "clamp", "b32"] => map3(d, a, b, c, move |a, b, c| {
                ((join(a, b) << c.min(32)) >> 32) as u32
            }),
            ["l", "wrap", "b32"] => map3(d, a, b, c, move |a, b, c| {
                ((join(a, b) << (c & 31)) >> 32) as u32
            }),
            ["r", "clamp", "b32"] => {
                map3(d, a, b, c, move |a, b, c| (join(a, b) >> c.min(32)) as u32)
            }
            ["r", "wrap", "b32"] => {
                map3(d, a, b, c, move |a, b, c| (join(a, b) >> (c & 31)) as u32)
            }
            _ => return Err(String::new()),
        })
    }

    fn lop3(&mut self, o: &[Operand]) -> Res<Alu> {
        let [d, a, b, c, table] = arity(o)?;
        let Operand::Int(t) = table else {
            return Err("a look-up table that is not constant".into());
        };
        let t = *t as u32;
        let (d, a, b, c) = (self.dw(d)?, self.w(a)?, self.w(b)?, self.w(c)?);
        Ok(map3(d, a, b, c, move |a, b, c| {
            let mut out = 0;
            for k in 0..8u32 {
                let pick = |x: u32, bit: u32| if k & bit != 0 { x } else { !x };
                out |= pick(a, 4) & pick(b, 2) & pick(c, 1) & (t >> k & 1).wrapping_neg();
            }
            out
        }))
    }

    fn prmt(&mut self, m: &[&str], o: &[Operand]) -> Res<Alu> {
        let [d, a, b, c] = arity(o)?;
        let (d, a, b, c) = (self.dw(d)?, self.w(a)?, self.w(b)?, self.w(c)?);
        let pick = |a: u32, b: u32, s: u32| {
            let v = ((u64::from(b) << 32 | u64::from(a)) >> ((s & 7) * 8)) as u32 & 0xff;
            if s & 8 != 0 { (v >> 7 & 1) * 0xff } else { v }
        };
        // Selectors of the modes, byte 0 first, for each value of c & 3.
        let mode = m.iter().copied().find(|&modifier| modifier != "b32");
        let table: [u32; 4] = match mode {
            None => {
                return Ok(map3(d, a, b, c, move |a, b, c| {
                    (0..4).fold(0, |out, k| out | pick(a, b, c >> (4 * k) & 0xf) << (8 * k))
                }));
            }
            Some("f4e") => [0x3210, 0x4321, 0x5432, 0x6543],
            Some("b4e") => [0x5670, 0x6701, 0x7012, 0x0123],
            Some("rc8") => [0x0000, 0x1111, 0x2222, 0x3333],
            Some("ecl") => [0x3210, 0x3211, 0x3222, 0x3333],
            Some("ecr") => [0x0000, 0x1110, 0x2210, 0x3210],
            Some("rc16") => [0x1010, 0x3232, 0x1010, 0x3232],
            _ => return Err(String::new()),
        };
        Ok(map3(d, a, b, c, move |a, b, c| {
            let s = table[(c & 3) as usize];
            (0..4).fold(0, |out, k| out | pick(a, b, s >> (4 * k) & 0xf) << (8 * k))
        }))
    }

    fn dot(&mut self, name: &str, m: &[&str], o: &[Operand]) -> Res<Alu> {
        let [d, a, b, c] = arity(o)?;
        let (d, a, b, c) = (self.dw(d)?, self.w(a)?, self.w(b)?, self.w(c)?);
        let types: Vec<Ty> = m.iter().filter_map(|s| Ty::parse(s)).collect();
        let [ta, tb] = types[..] else {
            return Err(String::new());
        };
        let part = |x: u32, bits: u32, k: u32, signed: bool| {
            let v = x >> (bits * k) << (32 - bits);
            if signed {
                i64::from(v as i32 >> (32 - bits))
            } else {
                i64::from(v >> (32 - bits))
            }
        };
        let (sa, sb) = (ta == Ty::S32, tb == Ty::S32);
        let hi = if m.contains(&"hi") { 2 } else { 0 };
        let four = name == "dp4a";
        Ok(map3(d, a, b, c, move |a, b, c| {
            let sum: i64 = if four {
                (0..4).map(|k| part(a, 8, k, sa) * part(b, 8, k, sb)).sum()
            } else {
                (0..2)
                    .map(|k| part(a, 16, k, sa) * part(b, 8, k + hi, sb))
                    .sum()
            };
            (sum as u32).wrapping_add(c)
        }))
    }

    /// The carry flag of each lane is a predicate of its own.
    fn carry(&mut self, name: &str, ty: Ty, m: &[&str], o: &[Operand]) -> Res<Alu> {
        let flag = self.carry_flag();
        let (set, take) = (m.contains(&"cc"), name.ends_with('c'));
        let bits = ty.bits();
        if !matches!(bits, 32 | 64) {
            return Err(String::new());
        }
        let sub = name.starts_with("sub");
        // Everything in 64-bit rows; products keep the wanted half.
        enum Src {
            W(W),
            D(crate::ir::regs::D),
        }
        let src = |s: &mut Self, o: &Operand| -> Res<Src> {
            Ok(if bits == 32 {
                Src::W(s.w(o)?)
            } else {
                Src::D(s.d(o)?)
            })
        };
        let (dst, x, y, z) = match (name, o) {
            ("mad" | "madc", [d, a, b, c]) => {
                (d, src(self, a)?, src(self, b)?, Some(src(self, c)?))
            }
            ("add" | "addc" | "sub" | "subc", [d, a, b]) => (d, src(self, a)?, src(self, b)?, None),
            _ => return Err(String::new()),
        };
        let hi = m.contains(&"hi");
        let signed = ty.signed();
        let dst = self.drow(dst)?.ok_or_else(String::new)?;
        Ok(Box::new(move |r, mask| {
            let get = |s: &Src, i: usize| match s {
                Src::W(w) => u128::from(r.w(*w)[i]),
                Src::D(d) => u128::from(r.d(*d)[i]),
            };
            let keep = (1u128 << bits) - 1;
            let mut out = [0u64; LANES];
            let mut flags = 0;
            let old = r.p(flag);
            for i in 0..LANES {
                let carry = u128::from(take && old >> i & 1 != 0);
                let (mut a, mut b) = (get(&x, i), get(&y, i));
                if let Some(z) = &z {
                    let product = if signed {
                        let ext = |v: u128| (v << (128 - bits)) as i128 >> (128 - bits);
                        ext(a).wrapping_mul(ext(b)) as u128
                    } else {
                        a.wrapping_mul(b)
                    };
                    a = (if hi { product >> bits } else { product }) & keep;
                    b = get(z, i);
                }
                let (v, f) = if sub {
                    (a.wrapping_sub(b).wrapping_sub(carry), a < b + carry)
                } else {
                    (a + b + carry, (a + b + carry) >> bits != 0)
                };
                out[i] = (v & keep) as u64;
                flags |= u32::from(f) << i;
            }
            if set {
                r.put_p(flag, flags, mask);
            }
            match dst {
                crate::ir::Row::W(w) => {
                    let narrow = std::array::from_fn(|i| out[i] as u32);
                    r.put_w(w, &narrow, mask);
                }
                crate::ir::Row::D(d) => r.put_d(d, &out, mask),
            }
        }))
    }

    fn carry_flag(&mut self) -> crate::ir::regs::P {
        const NAME: &str = "(carry flag)";
        if let Some(super::scope::Sym::P(p)) = self.scopes[0].get(NAME) {
            return *p;
        }
        self.p_rows += 1;
        let p = crate::ir::regs::P(self.p_rows - 1);
        self.scopes[0].insert(NAME.to_owned(), super::scope::Sym::P(p));
        p
    }
}

/// `bfi`: the low `len` bits of `a` into `b` at `pos`.
fn insert(a: u64, b: u64, pos: u32, len: u32, bits: u32) -> u64 {
    let (pos, len) = (pos & 0xff, len & 0xff);
    if pos >= bits || len == 0 {
        return b;
    }
    let len = len.min(bits - pos);
    let keep = if len == 64 {
        u64::MAX
    } else {
        ((1u64 << len) - 1) << pos
    };
    (b & !keep) | (a << pos & keep)
}

/// `fns`: the n-th set bit counted from `base`, up for positive n and down for negative.
fn fns(mask: u32, base: u32, offset: u32) -> u32 {
    let (base, offset) = (base as i64, i64::from(offset as i32));
    if base > 31 {
        return u32::MAX;
    }
    if offset == 0 {
        return if mask >> base & 1 != 0 {
            base as u32
        } else {
            u32::MAX
        };
    }
    let step = offset.signum();
    let mut left = offset.abs();
    let mut pos = base;
    while (0..32).contains(&pos) {
        if mask >> pos & 1 != 0 {
            left -= 1;
            if left == 0 {
                return pos as u32;
            }
        }
        pos += step;
    }
    u32::MAX
}
