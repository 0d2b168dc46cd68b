//! `ldmatrix`, `stmatrix`, `movmatrix` and `mma.sync`.
//!
//! # Arithmetic of `mma`
//!
//! Products of f16 and bf16 are exact in f32. They are added to the accumulator in f32, one after the
//! other in the order of k, each sum rounded to nearest. Hardware adds several products at once
//! with fewer guard bits, so its results may differ in the last places. An f16 accumulator is
//! widened to f32, and the result rounded once.

use super::Outcome;
use super::access::Site;
use super::block::{Block, Flow};
use crate::decode::{Address, LANES, Mem, MmaShape, Row, Src};
use crate::fault::{AccessKind, FaultKind, Space};
use crate::numeric::{Half, NAN32, Round, f16_value};

impl Block<'_, '_> {
    /// The rows of the matrices: their shared-memory offsets, checked.
    fn matrix_rows(
        &mut self,
        count: usize,
        address: &Address,
        mem: Mem,
        access: AccessKind,
    ) -> Outcome<Option<[u64; LANES]>> {
        if !self.gather(u32::MAX, true)? {
            return Ok(None);
        }
        let targets = self.targets(mem, address);
        let mut unused = 0;
        for (l, t) in targets.iter().enumerate().take(8 * count) {
            if t.space != Space::Shared {
                let text = "the address of a matrix row is not in shared memory".to_owned();
                return super::trouble(FaultKind::InvalidInstruction(text), l as u32);
            }
            self.check(*t, 16, 16, access, l as u32, &mut unused)?;
        }
        let rows = std::array::from_fn(|l| targets[l].at);
        // Each matrix is one wavefront if its eight rows fall into different banks.
        let lanes = u32::MAX >> (32 - 8 * count);
        self.counters.shared_request(self.site.pc, &rows, lanes, 16);
        Ok(Some(rows))
    }

    pub fn ldmatrix(
        &mut self,
        dst: &[u32],
        address: &Address,
        mem: Mem,
        transpose: bool,
    ) -> Outcome<Flow> {
        let Some(rows) = self.matrix_rows(dst.len(), address, mem, AccessKind::Read)? else {
            return Ok(Flow::Jump);
        };
        let Site { w, s, .. } = self.site;
        for (m, &d) in dst.iter().enumerate() {
            let mut matrix = [[0u16; 8]; 8];
            for (r, row) in matrix.iter_mut().enumerate() {
                let lane = 8 * m + r;
                for (i, v) in self.read_row(rows[lane], lane as u32)?.iter().enumerate() {
                    row[2 * i] = *v as u16;
                    row[2 * i + 1] = (v >> 16) as u16;
                }
            }
            // Lane 4r+c holds elements 2c and 2c+1 of row r; transposed, of column r.
            let out = std::array::from_fn(|l| {
                let (r, c) = (l / 4, l % 4 * 2);
                let (x, y) = if transpose {
                    (matrix[c][r], matrix[c + 1][r])
                } else {
                    (matrix[r][c], matrix[r][c + 1])
                };
                u64::from(x) | u64::from(y) << 16
            });
            let warp = &mut self.warps[w];
            let base = warp.splits[s].base;
            warp.set(d, base, u32::MAX, &out);
        }
        Ok(Flow::Next)
    }

    pub fn stmatrix(
        &mut self,
        src: &[Src],
        address: &Address,
        mem: Mem,
        transpose: bool,
    ) -> Outcome<Flow> {
        let Some(rows) = self.matrix_rows(src.len(), address, mem, AccessKind::Write)? else {
            return Ok(Flow::Jump);
        };
        let Site { w, s, .. } = self.site;
        self.shared.begin_store();
        for (m, &x) in src.iter().enumerate() {
            let matrix = spread(&self.warps[w].row(x, s), transpose);
            for (r, row) in matrix.iter().enumerate() {
                let lane = 8 * m + r;
                for i in 0..4 {
                    let v = u64::from(row[2 * i]) | u64::from(row[2 * i + 1]) << 16;
                    let at = rows[lane] + 4 * i as u64;
                    self.write_shared(at, v, 4, lane as u32, false)?;
                }
            }
        }
        Ok(Flow::Next)
    }

    pub fn movmatrix(&mut self, dst: u32, src: Src) -> Outcome<Flow> {
        if !self.gather(u32::MAX, true)? {
            return Ok(Flow::Jump);
        }
        let Site { w, s, .. } = self.site;
        let warp = &mut self.warps[w];
        let matrix = spread(&warp.row(src, s), true);
        let out = std::array::from_fn(|l| {
            let (r, c) = (l / 4, l % 4 * 2);
            u64::from(matrix[r][c]) | u64::from(matrix[r][c + 1]) << 16
        });
        let base = warp.splits[s].base;
        warp.set(dst, base, u32::MAX, &out);
        Ok(Flow::Next)
    }

    pub fn mma(
        &mut self,
        shape: &MmaShape,
        d: &[u32],
        a: &[Src],
        b: &[Src],
        c: &[Src],
    ) -> Outcome<Flow> {
        if !self.gather(u32::MAX, true)? {
            return Ok(Flow::Jump);
        }
        let Site { w, s, .. } = self.site;
        let warp = &mut self.warps[w];
        // Row-major A, and B by rows of k, so that the innermost loop runs along a row of eight.
        let mut ma = [[0f32; 16]; 16];
        let mut mb = [[0f32; 8]; 16];
        let mut acc = [[0f32; 8]; 16];
        for (i, x) in a.iter().enumerate() {
            let (low, high) = widen(warp.row_ref(*x, s), shape.bf16);
            let (dr, dk) = (i % 2 * 8, i / 2 * 8);
            for l in 0..LANES {
                let (r, k) = (l / 4 + dr, l % 4 * 2 + dk);
                ma[r][k] = low[l];
                ma[r][k + 1] = high[l];
            }
        }
        for (i, x) in b.iter().enumerate() {
            let (low, high) = widen(warp.row_ref(*x, s), shape.bf16);
            for l in 0..LANES {
                let (n, k) = (l / 4, l % 4 * 2 + i * 8);
                mb[k][n] = low[l];
                mb[k + 1][n] = high[l];
            }
        }
        for (i, x) in c.iter().enumerate() {
            let x = warp.row_ref(*x, s);
            for (l, &x) in x.iter().enumerate() {
                let (r, n) = (l / 4, l % 4 * 2);
                if shape.c_half {
                    acc[r + 8 * i][n] = f16_value(x as u16);
                    acc[r + 8 * i][n + 1] = f16_value((x >> 16) as u16);
                } else {
                    acc[r + i / 2 * 8][n + i % 2] = f32::from_bits(x as u32);
                }
            }
        }
        if shape.k == 16 {
            multiply::<16>(&ma, &mb, &mut acc);
        } else {
            multiply::<8>(&ma, &mb, &mut acc);
        }
        let base = warp.splits[s].base;
        for (i, &d) in d.iter().enumerate() {
            let out: Row = std::array::from_fn(|l| {
                let (r, n) = (l / 4, l % 4 * 2);
                if shape.d_half {
                    let half = |x: f32| u64::from(Half::F16.round(f64::from(x), Round::Nearest));
                    half(acc[r + 8 * i][n]) | half(acc[r + 8 * i][n + 1]) << 16
                } else {
                    let x = acc[r + i / 2 * 8][n + i % 2];
                    u64::from(if x.is_nan() { NAN32 } else { x.to_bits() })
                }
            });
            warp.set(d, base, u32::MAX, &out);
        }
        self.counters.flops += 2 * 16 * 8 * shape.k as u64;
        Ok(Flow::Next)
    }
}

/// The values of a register's low and high halves.
fn widen(x: &Row, bf16: bool) -> ([f32; LANES], [f32; LANES]) {
    let (mut low, mut high) = ([0.0; LANES], [0.0; LANES]);
    for l in 0..LANES {
        let x = x[l] as u32;
        if bf16 {
            low[l] = f32::from_bits(x << 16);
            high[l] = f32::from_bits(x & 0xffff_0000);
        } else {
            low[l] = f16_value(x as u16);
            high[l] = f16_value((x >> 16) as u16);
        }
    }
    (low, high)
}

/// Adds the product to the accumulator. A row of eight stays in vector registers along k.
#[inline(never)]
fn multiply<const K: usize>(a: &[[f32; 16]; 16], b: &[[f32; 8]; 16], acc: &mut [[f32; 8]; 16]) {
    for (row, out) in a.iter().zip(acc) {
        let mut sum = *out;
        for k in 0..K {
            for n in 0..8 {
                sum[n] += row[k] * b[k][n];
            }
        }
        *out = sum;
    }
}

/// The 8x8 matrix that a register's fragments hold, maybe transposed.
fn spread(x: &Row, transpose: bool) -> [[u16; 8]; 8] {
    let mut m = [[0; 8]; 8];
    for (l, x) in x.iter().enumerate() {
        let (r, c) = (l / 4, l % 4 * 2);
        if transpose {
            m[c][r] = *x as u16;
            m[c + 1][r] = (x >> 16) as u16;
        } else {
            m[r][c] = *x as u16;
            m[r][c + 1] = (x >> 16) as u16;
        }
    }
    m
}
