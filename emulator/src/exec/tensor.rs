//! `mma.sync`: fragments to matrices, products and sums, back to fragments.
//!
//! Products are exact. The sum, accumulator included, is formed in double precision in order of k and
//! rounded once to nearest. Hardware aligns and truncates while it adds, so it may differ in the last
//! places; no order of additions is promised by PTX.

use crate::fidelity::perturb_sum;
use crate::fp::{F16, NAN32, Round, b2f, h2f, round_small};
use crate::ir::regs::{FULL, LANES, Regs, Row32};
use crate::ir::{Mma, MmaType};

const M: usize = 16;
const N: usize = 8;

pub(crate) fn mma(regs: &mut Regs, m: &Mma) {
    match (m.a_type, m.k) {
        (MmaType::F16, 16) => multiply::<2, 16>(regs, m, half_a, half_a),
        (MmaType::F16, _) => multiply::<2, 8>(regs, m, half_a, half_a),
        (MmaType::Bf16, 16) => multiply::<2, 16>(regs, m, bf16_a, bf16_a),
        (MmaType::Bf16, _) => multiply::<2, 8>(regs, m, bf16_a, bf16_a),
        (MmaType::Tf32, 8) => multiply::<1, 8>(regs, m, tf32, tf32),
        (MmaType::Tf32, _) => multiply::<1, 4>(regs, m, tf32, tf32),
        (MmaType::S8 | MmaType::U8, 32) => {
            multiply::<4, 32>(regs, m, int8(m.a_type), int8(m.b_type))
        }
        (MmaType::S8 | MmaType::U8, _) => {
            multiply::<4, 16>(regs, m, int8(m.a_type), int8(m.b_type))
        }
    }
}

/// The elements of one register, the lowest bits first, for all lanes.
type Expand<const E: usize> = fn(&Row32) -> [[f32; LANES]; E];

fn half_a(row: &Row32) -> [[f32; LANES]; 2] {
    [
        row.map(|x| h2f(x as u16)),
        row.map(|x| h2f((x >> 16) as u16)),
    ]
}

fn bf16_a(row: &Row32) -> [[f32; LANES]; 2] {
    [
        row.map(|x| b2f(x as u16)),
        row.map(|x| b2f((x >> 16) as u16)),
    ]
}

/// The lower 13 bits are not read.
fn tf32(row: &Row32) -> [[f32; LANES]; 1] {
    [row.map(|x| f32::from_bits(x & 0xffff_e000))]
}

fn int8(t: MmaType) -> Expand<4> {
    match t {
        MmaType::S8 => |row| std::array::from_fn(|i| row.map(|x| f32::from((x >> (8 * i)) as i8))),
        _ => |row| std::array::from_fn(|i| row.map(|x| f32::from((x >> (8 * i)) as u8))),
    }
}

/// `E` elements to a register, `K` deep.
///
/// Register `r` of A holds row `lane / 4`, plus 8 for odd `r`, and the `E` columns from
/// `E * (lane % 4) + 4 * E * (r / 2)`; register `r` of B column `lane / 4` and the `E` rows from
/// `E * (lane % 4) + 4 * E * r`.
fn multiply<const E: usize, const K: usize>(
    regs: &mut Regs,
    m: &Mma,
    expand_a: Expand<E>,
    expand_b: Expand<E>,
) {
    let mut a = [[0f64; K]; M];
    let mut b = [[0f64; N]; K];
    for (r, &w) in m.a.iter().enumerate() {
        let parts = expand_a(regs.w(w));
        let (row0, col0) = (8 * (r & 1), (r >> 1) * 4 * E);
        for (i, part) in parts.iter().enumerate() {
            for (g, quad) in part.as_chunks::<4>().0.iter().enumerate() {
                for (t, &x) in quad.iter().enumerate() {
                    a[row0 + g][col0 + E * t + i] = f64::from(x);
                }
            }
        }
    }
    for (r, &w) in m.b.iter().enumerate() {
        let parts = expand_b(regs.w(w));
        for (i, part) in parts.iter().enumerate() {
            for (g, quad) in part.as_chunks::<4>().0.iter().enumerate() {
                for (t, &x) in quad.iter().enumerate() {
                    b[r * 4 * E + E * t + i][g] = f64::from(x);
                }
            }
        }
    }
    let mut acc = accumulators(regs, m);
    for (row, sums) in a.iter().zip(&mut acc) {
        let mut s = *sums;
        for (&x, line) in row.iter().zip(&b) {
            for n in 0..N {
                s[n] += x * line[n];
            }
        }
        *sums = s;
    }
    if let Some(seed) = regs.perturb.filter(|_| !m.int) {
        perturb(regs, m, (&a, &b), &mut acc, seed);
    }
    results(regs, m, &acc);
}

/// The perturbing mode (see `fidelity`).
#[cold]
fn perturb<const K: usize>(
    regs: &Regs,
    m: &Mma,
    (a, b): (&[[f64; K]; M], &[[f64; N]; K]),
    acc: &mut [[f64; N]; M],
    seed: u64,
) {
    let mut magnitudes = accumulators(regs, m).map(|row| row.map(f64::abs));
    for (row, sums) in a.iter().zip(&mut magnitudes) {
        for (&x, line) in row.iter().zip(b) {
            for n in 0..N {
                sums[n] += (x * line[n]).abs();
            }
        }
    }
    for (s, magnitude) in acc.iter_mut().flatten().zip(magnitudes.iter().flatten()) {
        *s = perturb_sum(*s, *magnitude, m.acc_f16, seed);
    }
}

fn accumulators(regs: &Regs, m: &Mma) -> [[f64; N]; M] {
    let mut acc = [[0f64; N]; M];
    for (r, &w) in m.c.iter().enumerate() {
        let row = regs.w(w);
        for (lane, &x) in row.iter().enumerate() {
            let (g, t) = (lane / 4, lane % 4);
            if m.acc_f16 {
                acc[g + 8 * r][2 * t] = f64::from(h2f(x as u16));
                acc[g + 8 * r][2 * t + 1] = f64::from(h2f((x >> 16) as u16));
            } else {
                let x = if m.int {
                    f64::from(x as i32)
                } else {
                    f64::from(f32::from_bits(x))
                };
                acc[g + 8 * (r >> 1)][2 * t + (r & 1)] = x;
            }
        }
    }
    acc
}

fn results(regs: &mut Regs, m: &Mma, acc: &[[f64; N]; M]) {
    for (r, &d) in m.d.iter().enumerate() {
        let mut out = [0; LANES];
        for (lane, out) in out.iter_mut().enumerate() {
            let (g, t) = (lane / 4, lane % 4);
            *out = if m.acc_f16 {
                let half = |s: f64| round_small(s, F16, Round::Near);
                half(acc[g + 8 * r][2 * t]) | half(acc[g + 8 * r][2 * t + 1]) << 16
            } else {
                let s = acc[g + 8 * (r >> 1)][2 * t + (r & 1)];
                if m.int {
                    // Sums of integers are exact in double precision here.
                    if m.saturate {
                        s as i32 as u32
                    } else {
                        s as i64 as u32
                    }
                } else {
                    let v = s as f32;
                    if v.is_nan() { NAN32 } else { v.to_bits() }
                }
            };
        }
        regs.put_w(d, &out, FULL);
    }
}
