//! Results in the making.

use std::f32::consts::LN_2;

use super::gemm::STRIP;
use super::tile::padded;

/// The running result of some rows over the keys seen so far: mergeable, so that keys can be split over threads.
#[derive(Debug, Clone, Default)]
pub(super) struct State {
    /// The largest score of each row, in units of log2.
    pub(super) max: Vec<f32>,
    /// The sum of `2^(x - max)`.
    pub(super) sum: Vec<f32>,
    /// The sum of `2^(x - max) v`, rows of `width`.
    pub(super) out: Vec<f32>,
    width: usize,
}

impl State {
    /// The state of rows that have seen nothing. Memory is kept; strips of rows are whole.
    pub(super) fn reset(&mut self, rows: usize, head_dim: usize) {
        let rows = rows.next_multiple_of(STRIP);
        self.width = padded(head_dim);
        self.max.clear();
        self.max.resize(rows, f32::NEG_INFINITY);
        self.sum.clear();
        self.sum.resize(rows, 0.0);
        self.out.clear();
        self.out.resize(rows * self.width, 0.0);
    }

    pub(super) fn saw_nothing(&self) -> bool {
        let mut rows = self.max.iter().zip(&self.sum);
        rows.all(|(&max, &sum)| max == f32::NEG_INFINITY && sum == 0.0)
    }

    /// Joins the results of the same rows over other keys.
    pub(super) fn merge(&mut self, other: &Self) {
        if self.max.is_empty() {
            self.clone_from(other);
            return;
        }
        for r in 0..self.max.len() {
            let max = match self.max[r] < other.max[r] {
                true => other.max[r],
                false => self.max[r],
            };
            if max == f32::NEG_INFINITY {
                // Nothing seen on either side, or a NaN, which the sums carry.
                self.sum[r] += other.sum[r];
                continue;
            }
            let (ours, theirs) = ((self.max[r] - max).exp2(), (other.max[r] - max).exp2());
            self.max[r] = max;
            self.sum[r] = self.sum[r] * ours + other.sum[r] * theirs;
            let out = self.out[r * self.width..][..self.width].iter_mut();
            for (out, other) in out.zip(&other.out[r * self.width..]) {
                *out = *out * ours + other * theirs;
            }
        }
    }

    /// Row `r` divided by its sum, in place, and its lse. A row that saw nothing is 0 and `-inf`.
    pub(super) fn finish(&mut self, r: usize, head_dim: usize) -> (&[f32], f32) {
        let sum = self.sum[r];
        let out = &mut self.out[r * self.width..][..head_dim];
        if sum == 0.0 {
            out.fill(0.0);
            return (out, f32::NEG_INFINITY);
        }
        let factor = 1.0 / sum;
        for x in &mut *out {
            // 0 is +0, whether or not zeros of keys that weigh nothing were added to it.
            *x = *x * factor + 0.0;
        }
        (out, (self.max[r] + sum.log2()) * LN_2)
    }
}
