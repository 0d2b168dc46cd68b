//! Instructions on several lanes at once: shuffles, votes, matches, reductions, matrix moves.

use super::block::Block;
use super::shared::Who;
use super::warp::Warp;
use super::{Exec, banks, raise, tensor};
use crate::error::{Access, FaultKind};
use crate::ir::regs::{FULL, LANES, W, lanes};
use crate::ir::{Collective, MatrixMove, ReduxOp, ShflMode};

/// What a shuffle gives that reads a lane which does not take part: undefined in PTX, here a NaN that
/// is easy to recognise.
const POISON: u32 = 0x7fff_dead;

impl Warp {
    /// Executes for the lanes of `mask`, all of which are here.
    pub fn collective(&mut self, b: &mut Block<'_>, op: &Collective, mask: u32) -> Exec<()> {
        let voters = |w: &Self, p, neg: bool| (w.regs.p(p) ^ if neg { FULL } else { 0 }) & mask;
        let truth = |v: bool| if v { FULL } else { 0 };
        match op {
            Collective::Shfl {
                mode,
                d,
                pred,
                a,
                b: shift,
                c,
            } => self.shfl(*mode, *d, *pred, [*a, *shift, *c], mask),
            Collective::VoteAll { d, p, neg } => {
                let v = voters(self, *p, *neg);
                self.regs.put_p(*d, truth(v == mask), mask);
            }
            Collective::VoteAny { d, p, neg } => {
                let v = voters(self, *p, *neg);
                self.regs.put_p(*d, truth(v != 0), mask);
            }
            Collective::VoteUni { d, p, neg } => {
                let v = voters(self, *p, *neg);
                self.regs.put_p(*d, truth(v == 0 || v == mask), mask);
            }
            Collective::Ballot { d, p, neg } => {
                let v = voters(self, *p, *neg);
                self.regs.put_w(*d, &[v; LANES], mask);
            }
            Collective::MatchAny { d, a } => {
                let x = self.wide(*a);
                let mut out = [0; LANES];
                for lane in lanes(mask) {
                    out[lane] = lanes(mask)
                        .filter(|&l| x[l] == x[lane])
                        .fold(0, |m, l| m | 1 << l);
                }
                self.regs.put_w(*d, &out, mask);
            }
            Collective::MatchAll { d, pred, a } => {
                let x = self.wide(*a);
                let first = lanes(mask).next().unwrap_or(0);
                let same = lanes(mask).all(|l| x[l] == x[first]);
                self.regs
                    .put_w(*d, &[if same { mask } else { 0 }; LANES], mask);
                if let Some(p) = pred {
                    self.regs.put_p(*p, truth(same), mask);
                }
            }
            Collective::Redux { op, d, a } => {
                let x = *self.regs.w(*a);
                let v = lanes(mask)
                    .map(|l| x[l])
                    .reduce(|x, y| redux(*op, x, y))
                    .unwrap_or(0);
                self.regs.put_w(*d, &[v; LANES], mask);
            }
            Collective::Elect { d, p } => {
                // The same one for the same mask every time; which one is not said.
                let nth = b.launch.config.seed % u64::from(mask.count_ones());
                let leader = lanes(mask).nth(nth as usize).unwrap_or(0) as u32;
                if let Some(d) = d {
                    self.regs.put_w(*d, &[leader; LANES], mask);
                }
                self.regs.put_p(*p, 1 << leader, mask);
            }
            // Lanes of a warp are ordered by program order in the race detector already.
            Collective::Sync => {}
            Collective::Matrix(m) => {
                whole_warp(mask)?;
                return self.matrix(b, m);
            }
            Collective::MovMatrix { d, a } => {
                whole_warp(mask)?;
                let x = *self.regs.w(*a);
                let element =
                    |row: usize, col: usize| x[row * 4 + col / 2] >> (16 * (col & 1)) & 0xffff;
                let out = std::array::from_fn(|l| {
                    let (row, col) = (l / 4, 2 * (l % 4));
                    element(col, row) | element(col + 1, row) << 16
                });
                self.regs.put_w(*d, &out, FULL);
            }
            Collective::Wgmma(op) => {
                whole_warp(mask)?;
                return self.wgmma(b, op);
            }
            Collective::WgmmaFence => {
                whole_warp(mask)?;
                return self.wgmma_fence(b);
            }
            Collective::WgmmaCommit => {
                whole_warp(mask)?;
                return self.wgmma_commit(b);
            }
            Collective::WgmmaWait(n) => {
                whole_warp(mask)?;
                return self.wgmma_wait(b, *n);
            }
            Collective::SetMaxRegisters { increase, count } => {
                whole_warp(mask)?;
                return self.set_max_registers(b, *increase, *count);
            }
            Collective::Mma(m) => {
                whole_warp(mask)?;
                b.counters[self.pc].tensor_flops += 2 * 16 * 8 * u64::from(m.k);
                tensor::mma(&mut self.regs, m);
            }
        }
        Ok(())
    }

    fn shfl(
        &mut self,
        mode: ShflMode,
        d: Option<W>,
        pred: Option<crate::ir::regs::P>,
        src: [W; 3],
        mask: u32,
    ) {
        let [a, b, c] = src.map(|w| *self.regs.w(w));
        let mut out = [0; LANES];
        let mut preds = 0;
        for lane in lanes(mask) {
            let (shift, clamp, segments) = (
                b[lane] as usize & 31,
                c[lane] as usize & 31,
                c[lane] as usize >> 8 & 31,
            );
            let max = (lane & segments) | (clamp & !segments);
            let min = lane & segments;
            let (j, valid) = match mode {
                ShflMode::Up => (
                    lane.wrapping_sub(shift),
                    lane as isize - shift as isize >= max as isize,
                ),
                ShflMode::Down => (lane + shift, lane + shift <= max),
                ShflMode::Bfly => (lane ^ shift, lane ^ shift <= max),
                ShflMode::Idx => {
                    let j = min | (shift & !segments);
                    (j, j <= max)
                }
            };
            let j = if valid { j & 31 } else { lane };
            preds |= u32::from(valid) << lane;
            out[lane] = if mask >> j & 1 != 0 { a[j] } else { POISON };
        }
        if let Some(d) = d {
            self.regs.put_w(d, &out, mask);
        }
        if let Some(p) = pred {
            self.regs.put_p(p, preds, mask);
        }
    }

    /// `ldmatrix` and `stmatrix`: lane `8m + i` gives the address of row `i` of matrix `m`.
    fn matrix(&mut self, b: &mut Block<'_>, m: &MatrixMove) -> Exec<()> {
        let n = m.regs.len();
        let access = if m.store { Access::Write } else { Access::Read };
        let mut rows = [0u32; LANES];
        for (lane, row) in rows.iter_mut().enumerate().take(8 * n) {
            let address = self.shared_address(&m.addr, lane);
            *row = b.shared.check(address, 16, access, lane)?;
            if m.store {
                b.guard_mbarrier(*row, 16, lane)?;
            }
            let who = Who {
                warp: self.id,
                lane,
                pc: self.pc,
            };
            let noted = if m.store {
                b.shared.note_write(*row, 16, who, false)
            } else {
                b.shared.note_read(*row, 16, who, false)
            };
            if let Err(c) = noted {
                return b.conflict(c, access, 16, lane);
            }
        }
        banks::matrix(&mut b.counters[self.pc], &rows, n);
        if m.store {
            b.progress += 1;
        }
        for (&reg, rows) in m.regs.iter().zip(rows.as_chunks::<8>().0) {
            let mut tile = [[0u16; 8]; 8];
            if m.store {
                let x = *self.regs.w(reg);
                for (l, v) in x.into_iter().enumerate() {
                    let (r, c) = (l / 4, 2 * (l % 4));
                    tile[r][c] = v as u16;
                    tile[r][c + 1] = (v >> 16) as u16;
                }
                if m.trans {
                    tile = transposed(&tile);
                }
                for (line, &at) in tile.iter().zip(rows) {
                    for (x, to) in line
                        .iter()
                        .zip(b.shared.bytes[at as usize..].chunks_exact_mut(2))
                    {
                        to.copy_from_slice(&x.to_le_bytes());
                    }
                }
            } else {
                for (line, &at) in tile.iter_mut().zip(rows) {
                    let bytes = &b.shared.bytes[at as usize..at as usize + 16];
                    for (x, from) in line.iter_mut().zip(bytes.as_chunks::<2>().0) {
                        *x = u16::from_le_bytes(*from);
                    }
                }
                if m.trans {
                    tile = transposed(&tile);
                }
                let mut out = [0; LANES];
                for (words, line) in out.as_chunks_mut::<4>().0.iter_mut().zip(&tile) {
                    for (w, pair) in words.iter_mut().zip(line.as_chunks::<2>().0) {
                        *w = u32::from(pair[0]) | u32::from(pair[1]) << 16;
                    }
                }
                self.regs.put_w(reg, &out, FULL);
            }
        }
        Ok(())
    }
}

fn transposed(t: &[[u16; 8]; 8]) -> [[u16; 8]; 8] {
    let mut out = [[0; 8]; 8];
    for r in 0..8 {
        for c in 0..8 {
            out[c][r] = t[r][c];
        }
    }
    out
}

fn redux(op: ReduxOp, x: u32, y: u32) -> u32 {
    match op {
        ReduxOp::Add => x.wrapping_add(y),
        ReduxOp::MinS => (x as i32).min(y as i32) as u32,
        ReduxOp::MaxS => (x as i32).max(y as i32) as u32,
        ReduxOp::MinU => x.min(y),
        ReduxOp::MaxU => x.max(y),
        ReduxOp::And => x & y,
        ReduxOp::Or => x | y,
        ReduxOp::Xor => x ^ y,
    }
}

fn whole_warp(mask: u32) -> Exec<()> {
    if mask == FULL {
        return Ok(());
    }
    raise(
        FaultKind::BadMask(format!(
            "a matrix instruction needs all 32 lanes; only {mask:#010x} execute it"
        )),
        lanes(mask).next(),
    )
}
