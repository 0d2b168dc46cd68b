//! The arithmetic of `wgmma`: as that of `mma.sync` (see `tensor`), for the sixteen rows of one warp.

use super::operand;
use crate::fidelity::perturb_sum;
use crate::fp::{F16, NAN32, Round, b2f, h2f, round_small};
use crate::ir::regs::{FULL, LANES, Regs};
use crate::ir::{MmaType, Wgmma, WgmmaA};
use crate::matrix_descriptor::Operand;

/// Rows of a warp.
const ROWS: usize = 16;
const K: usize = 16;

/// What an operation read from shared memory.
#[derive(Debug, Default)]
pub(super) struct Operands {
    /// Row after row of 16; empty when A is in registers.
    a: Vec<f64>,
    /// For each k, the columns.
    b: Vec<f64>,
}

fn value(ty: MmaType, bits: u16) -> f64 {
    f64::from(match ty {
        MmaType::Bf16 => b2f(bits),
        _ => h2f(bits),
    })
}

impl Operands {
    /// The descriptors were checked when the operation was issued.
    pub fn read(bytes: &[u8], op: &Wgmma, a: Option<u64>, b: u64) -> Self {
        let element = |o: &Operand, row: usize, k: usize| {
            let at = o.address(row as u32, k as u32) as usize;
            value(op.ty, u16::from_le_bytes([bytes[at], bytes[at + 1]]))
        };
        let mut out = Self::default();
        if let Some(Ok(o)) = a.map(|bits| operand(bits, op.trans_a, 64)) {
            out.a = (0..64 * K).map(|i| element(&o, i / K, i % K)).collect();
        }
        let n = op.n as usize;
        if let Ok(o) = operand(b, op.trans_b, op.n) {
            out.b = (0..K * n).map(|i| element(&o, i % n, i / n)).collect();
        }
        out
    }
}

/// The rows of A of a warp: `warp` is its number in the warpgroup.
fn rows_of_a(regs: &Regs, op: &Wgmma, operands: &Operands, warp: usize) -> [[f64; K]; ROWS] {
    let mut a = [[0.0; K]; ROWS];
    match &op.a {
        WgmmaA::Shared(_) => {
            for (row, from) in a
                .iter_mut()
                .zip(operands.a.as_chunks::<K>().0.iter().skip(warp * ROWS))
            {
                *row = *from;
            }
        }
        // Register `r`: row `lane / 4`, plus 8 for odd `r`; columns `2 (lane mod 4) + 8 (r / 2)` and the
        // next.
        WgmmaA::Registers { regs: fragment, .. } => {
            for (r, &w) in fragment.iter().enumerate() {
                for (lane, &x) in regs.w(w).iter().enumerate() {
                    let (row, column) = (lane / 4 + 8 * (r & 1), 2 * (lane % 4) + 8 * (r >> 1));
                    a[row][column] = value(op.ty, x as u16);
                    a[row][column + 1] = value(op.ty, (x >> 16) as u16);
                }
            }
        }
    }
    if op.negate_a != op.negate_b {
        a.iter_mut().flatten().for_each(|x| *x = -*x);
    }
    a
}

/// Where accumulator `i` of a lane is among the rows of its warp and the columns.
fn place(lane: usize, i: usize) -> (usize, usize) {
    (
        lane / 4 + 8 * (i / 2 % 2),
        8 * (i / 4) + 2 * (lane % 4) + i % 2,
    )
}

/// Multiplies, adds and rounds once.
pub(super) fn multiply(
    regs: &mut Regs,
    op: &Wgmma,
    operands: &Operands,
    scale_d: bool,
    warp: usize,
) {
    let n = op.n as usize;
    let a = rows_of_a(regs, op, operands, warp);
    let mut sums = vec![0.0f64; ROWS * n];
    if scale_d {
        for (i, &w) in op.d.iter().enumerate() {
            for (lane, &x) in regs.w(w).iter().enumerate() {
                let mut put = |i: usize, x: f32| {
                    let (row, column) = place(lane, i);
                    sums[row * n + column] = f64::from(x);
                };
                if op.acc_f16 {
                    put(2 * i, h2f(x as u16));
                    put(2 * i + 1, h2f((x >> 16) as u16));
                } else {
                    put(i, f32::from_bits(x));
                }
            }
        }
    }
    let mut magnitudes: Vec<f64> = match regs.perturb {
        Some(_) => sums.iter().map(|s| s.abs()).collect(),
        None => Vec::new(),
    };
    for (row, line) in a.iter().zip(magnitudes.chunks_exact_mut(n)) {
        for (&x, b) in row.iter().zip(operands.b.chunks_exact(n)) {
            for (s, &y) in line.iter_mut().zip(b) {
                *s += (x * y).abs();
            }
        }
    }
    for (row, line) in a.iter().zip(sums.chunks_exact_mut(n)) {
        for (&x, b) in row.iter().zip(operands.b.chunks_exact(n)) {
            for (s, &y) in line.iter_mut().zip(b) {
                *s += x * y;
            }
        }
    }
    if let Some(seed) = regs.perturb {
        for (s, m) in sums.iter_mut().zip(magnitudes) {
            *s = perturb_sum(*s, m, op.acc_f16, seed);
        }
    }
    for (i, &w) in op.d.iter().enumerate() {
        let out: [u32; LANES] = std::array::from_fn(|lane| {
            let sum = |i: usize| {
                let (row, column) = place(lane, i);
                sums[row * n + column]
            };
            if op.acc_f16 {
                let half = |s: f64| round_small(s, F16, Round::Near);
                return half(sum(2 * i)) | half(sum(2 * i + 1)) << 16;
            }
            let v = sum(i) as f32;
            if v.is_nan() { NAN32 } else { v.to_bits() }
        });
        regs.put_w(w, &out, FULL);
    }
}
