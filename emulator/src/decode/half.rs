//! `f16` and `bf16` arithmetic, scalar and packed.

use super::float::rounding;
use super::int::{lanes1, lanes2, lanes3};
use super::*;
use crate::ast::Arg;
use crate::numeric::*;

/// How a half result is finished.
#[derive(Clone, Copy)]
struct Mode {
    half: Half,
    ftz: bool,
    sat: bool,
    relu: bool,
}

impl Mode {
    fn input(self, x: u16) -> f64 {
        f64::from(self.half.value(if self.ftz { self.flush(x) } else { x }))
    }

    fn flush(self, x: u16) -> u16 {
        let exponent = match self.half {
            Half::F16 => 0x7c00,
            Half::Bf16 => 0x7f80,
        };
        if x & exponent == 0 { x & 0x8000 } else { x }
    }

    fn output(self, x: f64) -> u16 {
        self.clamp(self.half.round(x, Round::Nearest))
    }

    fn clamp(self, mut r: u16) -> u16 {
        if self.ftz {
            r = self.flush(r);
        }
        let v = self.half.value(r);
        if self.sat {
            return self.half.round(f64::from(saturate(v)), Round::Nearest);
        }
        if self.relu && v.is_nan() {
            return NAN16;
        }
        if self.relu && r & 0x8000 != 0 {
            return 0;
        }
        r
    }
}

/// Applies a function to the one or two halves of a register.
fn halves(x2: bool, x: [u64; 3], f: impl Fn(u16, u16, u16) -> u16) -> u64 {
    let low = u64::from(f(x[0] as u16, x[1] as u16, x[2] as u16));
    if !x2 {
        return low;
    }
    let h = |i: usize| (x[i] >> 16) as u16;
    low | u64::from(f(h(0), h(1), h(2))) << 16
}

impl Decoder<'_> {
    pub fn half(&mut self, m: &mut Mods, args: &[Arg]) -> Result<Option<(Op, Class)>> {
        let (half, x2) = if m.peek("f16x2") {
            (Half::F16, true)
        } else if m.peek("f16") {
            (Half::F16, false)
        } else if m.peek("bf16x2") {
            (Half::Bf16, true)
        } else if m.peek("bf16") {
            (Half::Bf16, false)
        } else {
            return Ok(None);
        };
        if matches!(m.name, "setp" | "set" | "testp" | "selp" | "mov") {
            return Ok(None);
        }
        let ty = m.ty()?;
        let mode = Mode {
            half,
            ftz: m.has("ftz"),
            sat: m.has("sat"),
            relu: m.has("relu"),
        };
        let approx = m.has("approx");
        let op = match m.name {
            "add" | "sub" | "mul" | "fma" => {
                if rounding(m) != Round::Nearest {
                    return unknown("a rounding mode other than `.rn`");
                }
                let n = if m.name == "fma" { 3 } else { 2 };
                let f: Alu = match m.name {
                    "add" => lanes2(move |a, b| {
                        halves(x2, [a, b, 0], |a, b, _| {
                            mode.output(add_odd(mode.input(a), mode.input(b)))
                        })
                    }),
                    "sub" => lanes2(move |a, b| {
                        halves(x2, [a, b, 0], |a, b, _| {
                            mode.output(add_odd(mode.input(a), -mode.input(b)))
                        })
                    }),
                    "mul" => lanes2(move |a, b| {
                        halves(x2, [a, b, 0], |a, b, _| {
                            mode.output(mode.input(a) * mode.input(b))
                        })
                    }),
                    _ => lanes3(move |a, b, c| {
                        halves(x2, [a, b, c], |a, b, c| {
                            mode.output(fma_odd(mode.input(a), mode.input(b), mode.input(c)))
                        })
                    }),
                };
                self.alu(args, ty, n, f)?
            }
            "min" | "max" => {
                let (max, nan) = (m.name == "max", m.has("NaN"));
                let xor = m.has("xorsign");
                if xor && !m.has("abs") {
                    return unknown("`.xorsign` without `.abs`");
                }
                let f = lanes2(move |a, b| {
                    halves(x2, [a, b, 0], |a, b, _| {
                        let sign = if xor { (a ^ b) & 0x8000 } else { 0 };
                        let mag = |x: u16| if xor { x & 0x7fff } else { x };
                        let r = min_max(
                            mode.input(mag(a)) as f32,
                            mode.input(mag(b)) as f32,
                            max,
                            nan,
                        );
                        mode.output(f64::from(r)) | sign
                    })
                });
                self.alu(args, ty, 2, f)?
            }
            "neg" | "abs" => {
                let neg = m.name == "neg";
                let f = lanes1(move |a| {
                    halves(x2, [a, 0, 0], |a, _, _| {
                        let a = if mode.ftz { mode.flush(a) } else { a };
                        if neg { a ^ 0x8000 } else { a & 0x7fff }
                    })
                });
                self.alu(args, ty, 1, f)?
            }
            "ex2" | "tanh" => {
                if !approx {
                    return unknown("no `.approx`");
                }
                let g = if m.name == "ex2" {
                    Approx::Ex2
                } else {
                    Approx::Tanh
                };
                let f = lanes1(move |a| {
                    halves(x2, [a, 0, 0], |a, _, _| mode.output(g.eval(mode.input(a))))
                });
                return Ok(Some((self.alu(args, ty, 1, f)?, Class::Mufu)));
            }
            _ => return unknown("this type"),
        };
        Ok(Some((op, Class::Half)))
    }
}
