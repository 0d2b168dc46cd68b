//! The register-only instructions that are not one function of rows.

use super::warp::Warp;
use super::{LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW, WINDOW};
use crate::decode::{CarryKind, LANES, Mem, Op, Row};
use crate::numeric::extend;

impl Warp<'_> {
    pub fn simple(&mut self, op: &Op, s: usize, active: u32) {
        let (base, pbase, frame) = {
            let x = &self.splits[s];
            (x.base, x.pbase, x.frame)
        };
        match op {
            Op::SetP {
                f,
                dst,
                other,
                a,
                b,
                combine,
            } => {
                self.prepare(0, *a, frame);
                self.prepare(1, *b, frame);
                let t = f(self.get(0, *a, base), self.get(1, *b, base));
                let (mut p, mut q) = (t, !t);
                if let Some((g, c)) = combine {
                    let c = self.pred(*c, pbase);
                    (p, q) = (g(p, c), g(q, c));
                }
                if let Some(d) = dst {
                    self.set_pred(*d, pbase, active, p);
                }
                if let Some(d) = other {
                    self.set_pred(*d, pbase, active, q);
                }
            }
            Op::Set {
                f,
                dst,
                one,
                a,
                b,
                combine,
            } => {
                self.prepare(0, *a, frame);
                self.prepare(1, *b, frame);
                let mut p = f(self.get(0, *a, base), self.get(1, *b, base));
                if let Some((g, c)) = combine {
                    p = g(p, self.pred(*c, pbase));
                }
                let out = std::array::from_fn(|l| if p >> l & 1 == 1 { *one } else { 0 });
                self.set(*dst, base, active, &out);
            }
            Op::SetPair {
                low,
                high,
                preds,
                dst,
                one,
                a,
                b,
                combine,
            } => {
                self.prepare(0, *a, frame);
                self.prepare(1, *b, frame);
                let (x, y) = (self.get(0, *a, base), self.get(1, *b, base));
                let (mut p, mut q) = (low(x, y), high(x, y));
                if let Some((g, c)) = combine {
                    let c = self.pred(*c, pbase);
                    (p, q) = (g(p, c), g(q, c));
                }
                match preds {
                    Some((d, e)) => {
                        if let Some(d) = d {
                            self.set_pred(*d, pbase, active, p);
                        }
                        if let Some(e) = e {
                            self.set_pred(*e, pbase, active, q);
                        }
                    }
                    None => {
                        let bit = |m: u32, l: usize| if m >> l & 1 == 1 { *one } else { 0 };
                        let out = std::array::from_fn(|l| bit(p, l) | bit(q, l) << 16);
                        self.set(*dst, base, active, &out);
                    }
                }
            }
            Op::PredLogic { dst, f, a, b } => {
                let v = f(self.pred(*a, pbase), self.pred(*b, pbase));
                self.set_pred(*dst, pbase, active, v);
            }
            Op::Lop3Pred {
                f,
                dst,
                pred,
                or,
                q,
                src,
            } => {
                for (i, x) in src.iter().enumerate() {
                    self.prepare(i, *x, frame);
                }
                let mut out = [0; LANES];
                let zero = [0; LANES];
                f(
                    self.get(0, src[0], base),
                    self.get(1, src[1], base),
                    self.get(2, src[2], base),
                    &zero,
                    &mut out,
                );
                let nonzero = (0..LANES).fold(0, |m, l| m | u32::from(out[l] != 0) << l);
                let q = self.pred(*q, pbase);
                let p = if *or { nonzero | q } else { nonzero & q };
                if let Some(d) = dst {
                    self.set(*d, base, active, &out);
                }
                self.set_pred(*pred, pbase, active, p);
            }
            Op::Selp { dst, a, b, p } => {
                self.prepare(0, *a, frame);
                self.prepare(1, *b, frame);
                let p = self.pred(*p, pbase);
                let (x, y) = (self.get(0, *a, base), self.get(1, *b, base));
                let out = std::array::from_fn(|l| if p >> l & 1 == 1 { x[l] } else { y[l] });
                self.set(*dst, base, active, &out);
            }
            Op::Pack { dst, bits, src } => {
                let mut out = [0; LANES];
                for (i, x) in src.iter().enumerate() {
                    self.prepare(0, *x, frame);
                    let x = self.get(0, *x, base);
                    for l in 0..LANES {
                        out[l] |= extend(x[l], *bits, false) << (i as u32 * bits);
                    }
                }
                self.set(*dst, base, active, &out);
            }
            Op::Unpack { dst, bits, src } => {
                self.prepare(0, *src, frame);
                let x = *self.get(0, *src, base);
                for (i, d) in dst.iter().enumerate() {
                    if let Some(d) = d {
                        let out = std::array::from_fn(|l| {
                            extend(x[l] >> (i as u32 * bits), *bits, false)
                        });
                        self.set(*d, base, active, &out);
                    }
                }
            }
            Op::IsSpace { dst, mem, a } => {
                self.prepare(0, *a, frame);
                let a = self.get(0, *a, base);
                let p = (0..LANES).fold(0, |m, l| m | u32::from(in_space(a[l], *mem)) << l);
                self.set_pred(*dst, pbase, active, p);
            }
            Op::Carry {
                dst,
                src,
                bits,
                kind,
                carry_in,
                carry_out,
            } => {
                let mut rows = [[0; LANES]; 3];
                for (i, x) in src.iter().enumerate() {
                    self.prepare(0, *x, frame);
                    rows[i] = *self.get(0, *x, base);
                }
                let (out, carry) = carry(
                    &rows,
                    *bits,
                    *kind,
                    if *carry_in { Some(self.carry) } else { None },
                );
                self.set(*dst, base, active, &out);
                if *carry_out {
                    self.carry = self.carry & !active | carry & active;
                }
            }
            // The others need more than the warp and are executed by the block.
            _ => {}
        }
    }
}

fn in_space(a: u64, mem: Mem) -> bool {
    let within = |base: u64| a.wrapping_sub(base) < WINDOW;
    match mem {
        Mem::Shared => within(SHARED_WINDOW),
        Mem::Local => within(LOCAL_WINDOW),
        Mem::Param => within(PARAM_WINDOW),
        _ => a < SHARED_WINDOW,
    }
}

fn carry(rows: &[Row; 3], bits: u32, kind: CarryKind, carry_in: Option<u32>) -> (Row, u32) {
    let mut out = [0; LANES];
    let mut carry = 0;
    for l in 0..LANES {
        let c = u128::from(carry_in.unwrap_or(0) >> l & 1);
        let (a, b, d) = (rows[0][l], rows[1][l], rows[2][l]);
        let product = |signed: bool| -> u128 {
            if signed {
                (i128::from(extend(a, bits, true) as i64)
                    * i128::from(extend(b, bits, true) as i64)) as u128
            } else {
                u128::from(a) * u128::from(b)
            }
        };
        let low = |x: u128| u128::from(extend(x as u64, bits, false));
        let sum = match kind {
            CarryKind::Add => u128::from(a) + u128::from(b) + c,
            // The flag of a subtraction is its borrow.
            CarryKind::Sub => u128::from(a).wrapping_sub(u128::from(b)).wrapping_sub(c),
            CarryKind::MadLo { signed } => low(product(signed)) + u128::from(d) + c,
            CarryKind::MadHi { signed } => low(product(signed) >> bits) + u128::from(d) + c,
        };
        out[l] = extend(sum as u64, bits, false);
        carry |= u32::from(sum >> bits & 1 == 1) << l;
    }
    (out, carry)
}
