//! The online softmax of one query row over one tile of keys: scale, softcap, bias, mask, maximum, exponentials.

use std::f32::consts::LOG2_E;
use std::ops::Range;

use pulp::Simd;

use super::tile::KEYS;
use super::vector::{exp2, tanh};
use crate::Attention;

/// Where a query row stands.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Row {
    pub(super) position: i64,
    /// The slope, in units of log2 per position.
    pub(super) slope: f32,
    pub(super) first: usize,
    pub(super) end: usize,
}

/// The bias of one row over the columns of a tile, in units of log2.
#[derive(Clone, Copy)]
pub(super) enum Bias {
    /// All columns on one side of the diagonal: `per_column * column + constant`. The constant is added after the
    /// maximum over the row was taken, so that a score is never rounded at the size of a far bias.
    Linear { per_column: f32, constant: f32 },
    /// `-slope * |diagonal - column|`.
    Mixed { slope: f32, diagonal: f32 },
}

impl Row {
    #[inline(always)]
    pub(super) fn bias(&self, from: usize, visible: &Range<usize>) -> Bias {
        // An exact integer: positions themselves would lose their low bits in f32.
        let diagonal = self.position - from as i64;
        let linear = |per_column: f32| Bias::Linear {
            per_column,
            constant: -per_column * diagonal as f32,
        };
        if diagonal >= visible.end as i64 - 1 {
            linear(self.slope)
        } else if diagonal <= visible.start as i64 {
            linear(-self.slope)
        } else {
            Bias::Mixed {
                slope: self.slope,
                diagonal: diagonal as f32,
            }
        }
    }
}

const COLUMN: [f32; KEYS] = {
    let mut column = [0.0; KEYS];
    let mut i = 0;
    while i < KEYS {
        column[i] = i as f32;
        i += 1;
    }
    column
};

/// Turns a row of dot products into probabilities relative to the row's new maximum, and updates the maximum and the
/// sum. Returns the factor for what was accumulated before.
#[inline(always)]
pub(super) fn softmax_row<S: Simd>(
    simd: S,
    attention: &Attention,
    bias: Bias,
    visible: &Range<usize>,
    scores: &mut [f32],
    max: &mut f32,
    sum: &mut f32,
) -> f32 {
    let all = visible.start == 0 && visible.end == scores.len();
    let (scores, _) = S::as_mut_simd_f32s(scores);
    let (column, _) = S::as_simd_f32s(&COLUMN);

    let mut factor = attention.scale() * LOG2_E;
    if let Some(cap) = attention.softcap() {
        let inside = simd.splat_f32s(attention.scale() / cap);
        for x in scores.iter_mut() {
            *x = tanh(simd, simd.mul_f32s(*x, inside));
        }
        factor = cap * LOG2_E;
    }

    let factor = simd.splat_f32s(factor);
    let mut top = simd.splat_f32s(f32::NEG_INFINITY);
    // The larger, or the second where the first is NaN: a NaN stays in its score, from where it reaches the sum.
    let mut constant = 0.0;
    match bias {
        Bias::Linear {
            per_column,
            constant: c,
        } => {
            constant = c;
            let per_column = simd.splat_f32s(per_column);
            for (x, &column) in scores.iter_mut().zip(column) {
                *x = simd.mul_add_e_f32s(*x, factor, simd.mul_f32s(per_column, column));
                top = simd.max_f32s(*x, top);
            }
        }
        Bias::Mixed { slope, diagonal } => {
            let (slope, diagonal) = (simd.splat_f32s(-slope), simd.splat_f32s(diagonal));
            for (x, &column) in scores.iter_mut().zip(column) {
                let distance = simd.abs_f32s(simd.sub_f32s(diagonal, column));
                *x = simd.mul_add_e_f32s(*x, factor, simd.mul_f32s(slope, distance));
                top = simd.max_f32s(*x, top);
            }
        }
    }
    if !all {
        let (start, end) = (
            simd.splat_f32s(visible.start as f32),
            simd.splat_f32s(visible.end as f32),
        );
        top = simd.splat_f32s(f32::NEG_INFINITY);
        for (x, &column) in scores.iter_mut().zip(column) {
            let inside = simd.and_m32s(
                simd.greater_than_or_equal_f32s(column, start),
                simd.less_than_f32s(column, end),
            );
            *x = simd.select_f32s(inside, *x, simd.splat_f32s(f32::NEG_INFINITY));
            top = simd.max_f32s(*x, top);
        }
    }
    let top = simd.reduce_max_f32s(top) + constant;

    let old = *max;
    let new = if top > old { top } else { old };
    // With every score -inf so far, any finite reference gives probabilities of zero.
    let reference = if new == f32::NEG_INFINITY { 0.0 } else { new };
    let shift = simd.splat_f32s(constant - reference);
    let mut total = simd.splat_f32s(0.0);
    for x in scores.iter_mut() {
        *x = exp2(simd, simd.add_f32s(*x, shift));
        total = simd.add_f32s(total, *x);
    }
    let scale = if new == old { 1.0 } else { (old - new).exp2() };
    *max = new;
    *sum = *sum * scale + simd.reduce_sum_f32s(total);
    scale
}
