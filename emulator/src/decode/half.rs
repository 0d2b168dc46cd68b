//! f16, f16x2, bf16 and bf16x2 arithmetic. Each operation is exact in a wider format and rounded once.

use super::{Decoder, Res, known};
use crate::decode::float::half_format;
use crate::decode::ty::Ty;
use crate::fidelity::{self, Format32};
use crate::fp::{self, NAN16, Round, b2f, f2b, f2h, h2f};
use crate::ir::Approximate;
use crate::ir::Op;
use crate::ir::regs::{Alu, W, map1, map2, map3};
use crate::ptx::ast::Operand;
use crate::report::Class;

#[derive(Clone, Copy)]
struct Mods {
    bf: bool,
    packed: bool,
    ftz: bool,
    sat: bool,
    relu: bool,
}

impl Mods {
    #[inline(always)]
    fn load(self, x: u16) -> f32 {
        if self.bf {
            b2f(x)
        } else if self.ftz && x & 0x7c00 == 0 {
            h2f(x & 0x8000)
        } else {
            h2f(x)
        }
    }

    /// After rounding: `.ftz`, `.sat`, `.relu`.
    #[inline(always)]
    fn post(self, x: u16) -> u16 {
        let (one, inf) = if self.bf {
            (0x3f80, 0x7f80)
        } else {
            (0x3c00, 0x7c00)
        };
        let nan = x & 0x7fff > inf;
        let mut x = x;
        if self.ftz && !self.bf && x & 0x7c00 == 0 {
            x &= 0x8000;
        }
        if self.sat {
            x = if nan || x & 0x8000 != 0 {
                0
            } else {
                x.min(one)
            };
        }
        if self.relu {
            x = if nan {
                NAN16
            } else if x & 0x8000 != 0 {
                0
            } else {
                x
            };
        }
        x
    }

    #[inline(always)]
    fn round(self, x: f32) -> u16 {
        self.post(if self.bf { f2b(x) } else { f2h(x) })
    }

    /// Applies `g` to the half, or to both halves.
    #[inline(always)]
    fn halves(self, g: impl Fn(u32) -> u16) -> u32 {
        let lo = u32::from(g(0));
        if self.packed {
            lo | u32::from(g(16)) << 16
        } else {
            lo
        }
    }
}

fn h1(d: W, a: W, m: Mods, g: impl Fn(f32) -> f32 + Send + Sync + 'static) -> Alu {
    map1(d, a, move |x| {
        m.halves(|s| m.round(g(m.load((x >> s) as u16))))
    })
}

fn h2(d: W, a: W, b: W, m: Mods, g: impl Fn(f32, f32) -> f32 + Send + Sync + 'static) -> Alu {
    map2(d, a, b, move |x, y| {
        m.halves(|s| m.round(g(m.load((x >> s) as u16), m.load((y >> s) as u16))))
    })
}

impl Decoder<'_> {
    pub(super) fn half(
        &mut self,
        name: &str,
        ty: Ty,
        m: &[&str],
        o: &[Operand],
    ) -> Res<(Op, Class)> {
        known(
            m,
            &[
                "rn", "ftz", "sat", "relu", "approx", "NaN", "xorsign", "abs", "oob",
            ],
        )?;
        if m.contains(&"oob") {
            return Err("modifier `.oob`".into());
        }
        // Mixed precision has a second type.
        let types = m.iter().filter_map(|s| Ty::parse(s));
        if types.count() > 1 {
            return Err(String::new());
        }
        let special = matches!(name, "ex2" | "tanh");
        let class = if special { Class::Special } else { Class::Half };
        let alu = self.half_alu(name, ty, m, o)?;
        let bf16 = matches!(ty, Ty::Bf16 | Ty::Bf16x2);
        let op = match (fidelity::of_half(name, bf16), o) {
            (Some(error), [d, ..]) => Op::Approximate(Box::new(Approximate {
                alu,
                d: self.dw(d)?,
                format: if bf16 { Format32::Bf16 } else { Format32::F16 },
                error,
            })),
            _ => Op::Alu(alu),
        };
        Ok((op, class))
    }

    fn half_alu(&mut self, name: &str, ty: Ty, m: &[&str], o: &[Operand]) -> Res<Alu> {
        let has = |s: &str| m.contains(&s);
        let mods = Mods {
            bf: matches!(ty, Ty::Bf16 | Ty::Bf16x2),
            packed: matches!(ty, Ty::F16x2 | Ty::Bf16x2),
            ftz: has("ftz"),
            sat: has("sat"),
            relu: has("relu"),
        };
        let src = |s: &mut Self, o: &Operand| if mods.packed { s.w(o) } else { s.h(o) };
        let both = if mods.packed { 0x8000_8000u32 } else { 0x8000 };
        match o {
            [d, a] => {
                let (d, a) = (self.dw(d)?, src(self, a)?);
                Ok(match name {
                    "neg" | "abs" => {
                        let abs = name == "abs";
                        map1(d, a, move |x| {
                            let x = if mods.ftz {
                                mods.halves(|s| mods.post((x >> s) as u16))
                            } else {
                                x
                            };
                            if abs { x & !both } else { x ^ both }
                        })
                    }
                    // `.ftz` of bf16 ex2 flushes subnormals; other bf16 operations keep them.
                    "ex2" if mods.bf => map1(d, a, move |x| {
                        mods.halves(|s| {
                            let x = (x >> s) as u16;
                            let x = if x & 0x7f80 == 0 { x & 0x8000 } else { x };
                            let y = f2b(f64::from(b2f(x)).exp2() as f32);
                            if y & 0x7f80 == 0 { y & 0x8000 } else { y }
                        })
                    }),
                    "ex2" => h1(d, a, mods, |x| f64::from(x).exp2() as f32),
                    "tanh" => h1(d, a, mods, |x| f64::from(x).tanh() as f32),
                    _ => return Err(String::new()),
                })
            }
            [d, a, b] => {
                let (d, a, b) = (self.dw(d)?, src(self, a)?, src(self, b)?);
                Ok(match name {
                    // Single precision has more than twice the bits, so rounding twice is exact.
                    "add" => h2(d, a, b, mods, |x, y| x + y),
                    "sub" => h2(d, a, b, mods, |x, y| x - y),
                    "mul" => h2(d, a, b, mods, |x, y| x * y),
                    "min" | "max" => {
                        let (max, nan, xorsign) = (name == "max", has("NaN"), has("xorsign"));
                        h2(d, a, b, mods, move |x, y| {
                            if xorsign {
                                let sign = (x.to_bits() ^ y.to_bits()) & 0x8000_0000;
                                let v = fp::min_max32(x.abs(), y.abs(), max, nan);
                                if v.is_nan() {
                                    v
                                } else {
                                    f32::from_bits(v.to_bits() | sign)
                                }
                            } else {
                                fp::min_max32(x, y, max, nan)
                            }
                        })
                    }
                    "copysign" => map2(d, a, b, move |x, y| (x & both) | (y & !both)),
                    _ => return Err(String::new()),
                })
            }
            [d, a, b, c] if matches!(name, "fma" | "mad") => {
                let (d, a, b, c) = (self.dw(d)?, src(self, a)?, src(self, b)?, src(self, c)?);
                let format = half_format(ty);
                Ok(map3(d, a, b, c, move |x, y, z| {
                    mods.halves(|s| {
                        let v = |x: u32| f64::from(mods.load((x >> s) as u16));
                        let sum = fp::add_odd(v(x) * v(y), v(z));
                        mods.post(fp::round_small(sum, format, Round::Near) as u16)
                    })
                }))
            }
            _ => Err(String::new()),
        }
    }
}
