//! The same recurrence for so few query rows that reading keys and values is the work: decoding. Nothing is transposed
//! or packed; each key is one dot product a row.

use std::ops::Range;

use pulp::Simd;

use super::Element;
use super::block::State;
use super::softmax::{Row, softmax_row};
use super::tile::{KEYS, Rows, padded};
use crate::Attention;

/// Blocks of at most so many rows come here.
pub(super) const FEW: usize = 4;

/// Registers of output columns that are summed at once.
const COLUMNS: usize = 4;

#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(super) fn run_few<'a, T: Element, S: Simd>(
    simd: S,
    attention: &Attention,
    rows: &[Row],
    query: impl Fn(usize) -> &'a [T],
    keys: Rows<'_, T>,
    values: Rows<'_, T>,
    seen: Range<usize>,
    (wide, scores): (&mut Vec<f32>, &mut Vec<f32>),
    state: &mut State,
) {
    let head_dim = attention.head_dim();
    let width = padded(head_dim);
    scores.resize(FEW * KEYS, 0.0);
    // The queries, then a tile of keys or values.
    wide.resize((FEW + KEYS) * width, 0.0);
    let (queries, wide) = wide.split_at_mut(FEW * width);
    for (r, to) in queries.chunks_exact_mut(width).take(rows.len()).enumerate() {
        T::widen(query(r), &mut to[..head_dim]);
        to[head_dim..].fill(0.0);
    }
    for tile in (seen.start / KEYS..seen.end.div_ceil(KEYS)).rev() {
        let from = (tile * KEYS).max(seen.start);
        let n = ((tile + 1) * KEYS).min(seen.end) - from;

        let wide_keys = Wide::new(keys, from, n, wide);
        prefetch(values, from..from + n);
        for j in 0..n {
            let key = wide_keys.row(j);
            for r in 0..rows.len() {
                scores[r * KEYS + j] = dot(simd, &queries[r * width..], key);
            }
        }
        let mut scale = [1.0; FEW];
        let visible: [Range<usize>; FEW] = std::array::from_fn(|r| {
            let row = rows.get(r).copied().unwrap_or_default();
            let clip = |j: usize| j.clamp(from, from + n) - from;
            clip(row.first)..clip(row.end)
        });
        for (r, row) in rows.iter().enumerate() {
            if !visible[r].is_empty() {
                let bias = row.bias(from, &visible[r]);
                let scores = &mut scores[r * KEYS..][..n.next_multiple_of(16)];
                let (max, sum) = (&mut state.max[r], &mut state.sum[r]);
                scale[r] = softmax_row(simd, attention, bias, &visible[r], scores, max, sum);
            }
        }
        let wide_values = Wide::new(values, from, n, wide);
        prefetch(keys, from.saturating_sub(KEYS).max(seen.start)..from);
        for (r, visible) in visible.into_iter().enumerate().take(rows.len()) {
            // Only what the row sees: a value it does not see may be anything.
            let probabilities = &scores[r * KEYS..][visible.clone()];
            let out = &mut state.out[r * width..][..width];
            accumulate(
                simd,
                probabilities,
                &wide_values,
                visible.start,
                scale[r],
                out,
            );
        }
    }
}

/// Rows of a tile in f32: where they are, or converted.
struct Wide<'a> {
    data: &'a [f32],
    stride: usize,
    head_dim: usize,
}

impl<'a> Wide<'a> {
    /// Converts what is not yet f32.
    #[inline(always)]
    fn new<T: Element>(rows: Rows<'a, T>, from: usize, n: usize, buffer: &'a mut [f32]) -> Self {
        let head_dim = rows.head_dim;
        if let Some(data) = T::as_f32(rows.data) {
            let data = &data[from * rows.stride..];
            return Self {
                data,
                stride: rows.stride,
                head_dim,
            };
        }
        for (j, to) in buffer.chunks_exact_mut(head_dim).take(n).enumerate() {
            T::widen(rows.row(from + j), to);
        }
        Self {
            data: buffer,
            stride: head_dim,
            head_dim,
        }
    }

    #[inline(always)]
    fn row(&self, j: usize) -> &'a [f32] {
        &self.data[j * self.stride..][..self.head_dim]
    }
}

/// Starts reading rows into the cache: those of a head lie far apart, where the processor does not foresee them.
#[inline(always)]
fn prefetch<T>(rows: Rows<'_, T>, range: Range<usize>) {
    #[cfg(target_arch = "x86_64")]
    for line in range.flat_map(|j| rows.row(j).chunks(64 / size_of::<T>())) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint about an address that is within the slice.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (rows, range);
}

#[inline(always)]
fn dot<S: Simd>(simd: S, query: &[f32], key: &[f32]) -> f32 {
    let (query, query_tail) = S::as_simd_f32s(&query[..key.len()]);
    let (key, key_tail) = S::as_simd_f32s(key);
    let mut sum = simd.splat_f32s(0.0);
    for (&q, &k) in query.iter().zip(key) {
        sum = simd.mul_add_e_f32s(q, k, sum);
    }
    if !key_tail.is_empty() {
        let (q, k) = (
            simd.partial_load_f32s(query_tail),
            simd.partial_load_f32s(key_tail),
        );
        sum = simd.mul_add_e_f32s(q, k, sum);
    }
    simd.reduce_sum_f32s(sum)
}

/// `out = scale * out + sum_j probabilities[j] * values[first + j]`.
#[inline(always)]
fn accumulate<S: Simd>(
    simd: S,
    probabilities: &[f32],
    values: &Wide<'_>,
    first: usize,
    scale: f32,
    out: &mut [f32],
) {
    let (whole, tail) = S::as_mut_simd_f32s(&mut out[..values.head_dim]);
    let (panels, rest) = whole.as_chunks_mut::<COLUMNS>();
    let mut column = 0;
    for panel in panels {
        accumulate_panel(simd, probabilities, values, first, scale, column, panel);
        column += COLUMNS;
    }
    for panel in rest.as_chunks_mut::<1>().0 {
        accumulate_panel(simd, probabilities, values, first, scale, column, panel);
        column += 1;
    }
    let at = values.head_dim - tail.len();
    for (i, out) in tail.iter_mut().enumerate() {
        let terms = probabilities.iter().enumerate();
        *out = terms.fold(*out * scale, |sum, (j, p)| {
            p.mul_add(values.row(first + j)[at + i], sum)
        });
    }
}

/// `N` registers of columns from the `column`-th on.
#[inline(always)]
fn accumulate_panel<S: Simd, const N: usize>(
    simd: S,
    probabilities: &[f32],
    values: &Wide<'_>,
    first: usize,
    scale: f32,
    column: usize,
    out: &mut [S::f32s; N],
) {
    let at = column * (size_of::<S::f32s>() / size_of::<f32>());
    let mut sums = [simd.splat_f32s(0.0); N];
    for i in 0..N {
        sums[i] = simd.mul_f32s(out[i], simd.splat_f32s(scale));
    }
    for (j, &p) in probabilities.iter().enumerate() {
        let p = simd.splat_f32s(p);
        let (value, _) = S::as_simd_f32s(&values.row(first + j)[at..]);
        let value: &[S::f32s; N] = value.first_chunk().expect("the columns are within the row");
        for i in 0..N {
            sums[i] = simd.mul_add_e_f32s(p, value[i], sums[i]);
        }
    }
    *out = sums;
}
