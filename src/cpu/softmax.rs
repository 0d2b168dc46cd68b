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
    /// The key from which its distances count: the one nearest to it of those that it sees.
    pub(super) position: i64,
    /// The slope, in units of log2 per position.
    pub(super) slope: f32,
    pub(super) first: usize,
    pub(super) end: usize,
}

/// The bias of one row over the columns of a tile, in units of log2.
///
/// It is formed from integer differences, never from positions: those would lose their low bits in f32.
#[derive(Clone, Copy)]
pub(super) enum Bias {
    /// All visible columns on one side of the diagonal: `slope * (column - origin) + constant`, where `origin` is the
    /// column nearest to the diagonal. There the differences are small, and so are their rounding errors.
    Linear {
        slope: f32,
        origin: usize,
        constant: f64,
    },
    /// `-slope * |column - diagonal|`.
    Mixed { slope: f32, diagonal: usize },
}

impl Row {
    /// The bias over the tile of keys from `from` on, of which the row sees the columns `visible` (not none).
    #[inline(always)]
    pub(super) fn bias(&self, from: usize, visible: &Range<usize>) -> Bias {
        let diagonal = self.position - from as i64;
        let (first, last) = (visible.start, visible.end - 1);
        let linear = |slope: f32, origin: usize| Bias::Linear {
            slope,
            origin,
            constant: f64::from(slope) * (origin as i64 - diagonal) as f64,
        };
        if diagonal >= last as i64 {
            linear(self.slope, last)
        } else if diagonal <= first as i64 {
            linear(-self.slope, first)
        } else {
            Bias::Mixed {
                slope: self.slope,
                diagonal: diagonal as usize,
            }
        }
    }
}

/// `DIFFERENCE[KEYS + i] = i` for `-KEYS <= i < KEYS`.
const DIFFERENCE: [f32; 2 * KEYS] = {
    let mut difference = [0.0; 2 * KEYS];
    let mut i = 0;
    while i < 2 * KEYS {
        difference[i] = i as f32 - KEYS as f32;
        i += 1;
    }
    difference
};

/// `column - origin` of each column.
#[inline(always)]
fn differences<S: Simd>(origin: usize) -> &'static [S::f32s] {
    S::as_simd_f32s(&DIFFERENCE[KEYS - origin..][..KEYS]).0
}

/// Turns a row of dot products into probabilities relative to the row's new maximum, and updates the maximum and the
/// sum. Returns the factor for what was accumulated before.
///
/// None, and nothing done, if the tile is to be skipped, by its largest score and the maximum before: unless a score is NaN.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(super) fn softmax_row<S: Simd>(
    simd: S,
    attention: &Attention,
    bias: Bias,
    visible: &Range<usize>,
    scores: &mut [f32],
    max: &mut f32,
    sum: &mut f32,
    skip: impl Fn(f32, f32) -> bool,
) -> Option<f32> {
    let all = visible.start == 0 && visible.end == scores.len();
    let (lanes, _) = S::as_mut_simd_f32s(scores);

    let mut factor = attention.scale() * LOG2_E;
    if let Some(cap) = attention.softcap() {
        let inside = simd.splat_f32s(attention.scale() / cap);
        for x in lanes.iter_mut() {
            *x = tanh(simd, simd.mul_f32s(*x, inside));
        }
        factor = cap * LOG2_E;
    }
    let (origin, constant) = match bias {
        Bias::Linear {
            origin, constant, ..
        } => (origin, constant),
        Bias::Mixed { diagonal, .. } => (diagonal, 0.0),
    };
    let row = Scored {
        factor: simd.splat_f32s(factor),
        slope: simd.splat_f32s(match bias {
            Bias::Linear { slope, .. } => slope,
            Bias::Mixed { slope, .. } => -slope,
        }),
        differences: differences::<S>(origin),
        inside: (!all).then(|| {
            let bound = |column: usize| column as f32 - origin as f32;
            (
                simd.splat_f32s(bound(visible.start)),
                simd.splat_f32s(bound(visible.end)),
            )
        }),
    };

    let old = *max;
    let top = match (bias, all) {
        (Bias::Linear { .. }, true) => row.top::<false, false>(simd, lanes),
        (Bias::Linear { .. }, false) => row.top::<false, true>(simd, lanes),
        (Bias::Mixed { .. }, _) => row.top::<true, true>(simd, lanes),
    } + constant as f32;
    if skip(top, old) && !(scores[visible.clone()].iter()).fold(false, |any, x| any | x.is_nan()) {
        return None;
    }
    let (lanes, _) = S::as_mut_simd_f32s(scores);
    let new = if top > old { top } else { old };
    // With every score -inf so far, any finite reference gives probabilities of zero.
    let reference = if new == f32::NEG_INFINITY { 0.0 } else { new };

    // A score far above or a bias far below zero is taken off before anything is rounded: the large part joins the
    // product in one rounding, the rest the bias.
    let shift = constant - f64::from(reference);
    let large = shift as f32;
    let rest = if large.is_finite() {
        (shift - f64::from(large)) as f32
    } else {
        0.0
    };
    let shift = (simd.splat_f32s(large), simd.splat_f32s(rest));
    let total = match (bias, all) {
        (Bias::Linear { .. }, true) => row.exponentials::<false, false>(simd, shift, lanes),
        (Bias::Linear { .. }, false) => row.exponentials::<false, true>(simd, shift, lanes),
        (Bias::Mixed { .. }, _) => row.exponentials::<true, true>(simd, shift, lanes),
    };
    let scale = if new == old { 1.0 } else { (old - new).exp2() };
    *max = new;
    *sum = *sum * scale + total;
    Some(scale)
}

/// A row of dot products, and what makes scores of them.
struct Scored<S: Simd> {
    factor: S::f32s,
    slope: S::f32s,
    differences: &'static [S::f32s],
    /// The visible differences, from and up to, unless all are.
    inside: Option<(S::f32s, S::f32s)>,
}

impl<S: Simd> Scored<S> {
    /// `factor * x + large + slope * difference + rest`; `-inf` where it is not visible.
    #[inline(always)]
    fn score<const MIXED: bool, const MASKED: bool>(
        &self,
        simd: S,
        x: S::f32s,
        difference: S::f32s,
        (large, rest): (S::f32s, S::f32s),
    ) -> S::f32s {
        let distance = if MIXED {
            simd.abs_f32s(difference)
        } else {
            difference
        };
        let bias = simd.mul_add_e_f32s(self.slope, distance, rest);
        let score = simd.add_f32s(simd.mul_add_e_f32s(x, self.factor, large), bias);
        match self.inside {
            // Selected, not added: what is not visible may be NaN.
            Some((start, end)) if MASKED => {
                let inside = simd.and_m32s(
                    simd.greater_than_or_equal_f32s(difference, start),
                    simd.less_than_f32s(difference, end),
                );
                simd.select_f32s(inside, score, simd.splat_f32s(f32::NEG_INFINITY))
            }
            _ => score,
        }
    }

    #[inline(always)]
    fn top<const MIXED: bool, const MASKED: bool>(&self, simd: S, scores: &[S::f32s]) -> f32 {
        let zero = simd.splat_f32s(0.0);
        let mut top = simd.splat_f32s(f32::NEG_INFINITY);
        for (&x, &difference) in scores.iter().zip(self.differences) {
            let score = self.score::<MIXED, MASKED>(simd, x, difference, (zero, zero));
            // The larger, or the second where the first is NaN: a NaN reaches the sum through its exponential.
            top = simd.max_f32s(score, top);
        }
        simd.reduce_max_f32s(top)
    }

    #[inline(always)]
    fn exponentials<const MIXED: bool, const MASKED: bool>(
        &self,
        simd: S,
        shift: (S::f32s, S::f32s),
        scores: &mut [S::f32s],
    ) -> f32 {
        let mut total = simd.splat_f32s(0.0);
        for (x, &difference) in scores.iter_mut().zip(self.differences) {
            let score = self.score::<MIXED, MASKED>(simd, *x, difference, shift);
            *x = exp2(simd, score);
            total = simd.add_f32s(total, *x);
        }
        simd.reduce_sum_f32s(total)
    }
}
