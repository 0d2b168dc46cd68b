//! The same recurrence for so few query rows that reading keys and values is the work: decoding. Nothing is transposed
//! or packed; each key is one dot product a row.

use std::ops::Range;

use pulp::Simd;

use super::Element;
use super::bounds::{FarTile, KeyBounds, Side, budget};
use super::report::Counts;
use super::softmax::{Row, softmax_row};
use super::state::State;
use super::tile::{KEYS, Offsets, Rows, TileRows, padded};
use super::work::{Block, FEW};
use crate::Attention;
use crate::horizon::{Budget, MIN_KEYS, Verdict, share};

/// Registers of output columns that are summed at once.
const COLUMNS: usize = 4;

/// A block of few rows.
pub(super) struct Few<'a, 'b, T> {
    pub(super) attention: &'a Attention,
    pub(super) block: &'a Block,
    pub(super) rows: &'b [Row],
    pub(super) keys: Rows<'a, T>,
    pub(super) values: Rows<'a, T>,
    /// The keys that any row sees.
    pub(super) seen: Range<usize>,
    /// The tile from which distances count.
    pub(super) nearest: usize,
    /// Of the keys, where they are known without reading them.
    pub(super) bounds: Option<&'a KeyBounds>,
    /// Scores that the rows have kept elsewhere.
    pub(super) kept: Option<&'a [f32]>,
    pub(super) counts: Option<&'a Counts>,
}

#[inline(always)]
pub(super) fn run_few<'a, T: Element, S: Simd>(
    simd: S,
    few: Few<'_, '_, T>,
    query: impl Fn(usize) -> &'a [T],
    (wide, scores): (&mut Vec<f32>, &mut Vec<f32>),
    state: &mut State,
) {
    let Few {
        attention,
        block,
        rows,
        keys,
        values,
        seen,
        nearest,
        bounds,
        kept,
        counts,
    } = few;
    let head_dim = attention.head_dim();
    let width = padded(head_dim);
    // With so few rows, to find bounds would take as long as the scores: those are tested themselves.
    let long = block.sequence.seen(attention).len() >= MIN_KEYS;
    let budgets: [Option<Budget>; FEW] = std::array::from_fn(|r| {
        let head = block.row(attention.group(), r).1;
        (long && r < rows.len()).then(|| budget(attention, &block.sequence, head))?
    });
    let row_bounds =
        std::array::from_fn::<_, FEW, _>(|r| Some(bounds?.row(attention, budgets[r]?, query(r))));
    let mut begun = false;
    // Where converted rows lie, and where those of the keys, of the values and of the next keys do.
    let at_wide: Offsets = std::array::from_fn(|j| j * head_dim);
    let [mut at_keys, mut at_values, mut at_next] = [[0; KEYS]; 3];
    // From the nearest tile outwards. Those after it are there only where an offset puts the rows before keys.
    let tiles = seen.start / KEYS..seen.end.div_ceil(KEYS);
    let before = tiles.start..tiles.end.min(nearest + 1);
    let after = tiles.start.max(nearest + 1)..tiles.end;
    let order = (before.rev().map(|tile| (Side::Before, tile)))
        .chain(after.map(|tile| (Side::After, tile)));
    let mut stopped = None;
    for (side, tile) in order {
        if stopped == Some(side) {
            continue;
        }
        let from = (tile * KEYS).max(seen.start);
        let n = ((tile + 1) * KEYS).min(seen.end) - from;
        if let Some(bounds) = bounds
            && tile != nearest
        {
            let far = FarTile {
                side,
                keys: tile * KEYS..(tile + 1) * KEYS,
                radii: bounds.radii(tile, side),
                share: share(tile.abs_diff(nearest)),
            };
            let max: [f32; FEW] = std::array::from_fn(|r| {
                state.max[r].max(kept.map_or(f32::NEG_INFINITY, |kept| kept[r]))
            });
            match far.verdict(rows, &row_bounds, &max) {
                Verdict::Stop => {
                    stopped = Some(side);
                    continue;
                }
                Verdict::Skip => continue,
                Verdict::Keep => {}
            }
        }
        // The queries, then a tile of keys or values: nothing is prepared for a part of the keys that is left out.
        wide.resize((FEW + KEYS) * width, 0.0);
        let (queries, wide) = wide.split_at_mut(FEW * width);
        if !std::mem::replace(&mut begun, true) {
            scores.resize(FEW * KEYS, 0.0);
            for (r, to) in queries.chunks_exact_mut(width).take(rows.len()).enumerate() {
                T::widen(query(r), &mut to[..head_dim]);
                to[head_dim..].fill(0.0);
            }
        }
        let tile_values = values.tile(from, n, &mut at_values);

        let wide_keys = widened(keys.tile(from, n, &mut at_keys), &at_wide, wide);
        prefetch(tile_values);
        for j in 0..n {
            let key = wide_keys.row(j);
            for r in 0..rows.len() {
                scores[r * KEYS + j] = dot(simd, &queries[r * width..], key);
            }
        }
        let mut scale = [1.0; FEW];
        let mut visible: [Range<usize>; FEW] = std::array::from_fn(|r| {
            let row = rows.get(r).copied().unwrap_or_default();
            let clip = |j: usize| j.clamp(from, from + n) - from;
            clip(row.first)..clip(row.end)
        });
        for (r, row) in rows.iter().enumerate() {
            if visible[r].is_empty() {
                continue;
            }
            let bias = row.bias(from, &visible[r]);
            let scores = &mut scores[r * KEYS..][..n.next_multiple_of(16)];
            let (max, sum) = (&mut state.max[r], &mut state.sum[r]);
            let elsewhere = kept.map_or(f32::NEG_INFINITY, |kept| kept[r]);
            let skip = |top: f32, max: f32| {
                tile != nearest
                    && budgets[r].is_some_and(|budget| {
                        let max = if budget.exact {
                            max
                        } else {
                            max.max(elsewhere)
                        };
                        budget.skips_computed(top, max, share(tile.abs_diff(nearest)))
                    })
            };
            match softmax_row(simd, attention, bias, &visible[r], scores, max, sum, skip) {
                Some(factor) => scale[r] = factor,
                None => {
                    visible[r] = 0..0;
                    continue;
                }
            }
            if let Some(counts) = counts {
                counts.add_kept(block, r, &rows[r..=r], tile, nearest);
            }
        }
        let next = from.saturating_sub(KEYS).max(seen.start);
        prefetch(keys.tile(next, from - next, &mut at_next));
        if visible.iter().all(Range::is_empty) {
            continue;
        }
        let wide_values = widened(tile_values, &at_wide, wide);
        for (r, visible) in visible.into_iter().enumerate().take(rows.len()) {
            // Only what the row sees: a value it does not see may be anything.
            let probabilities = &scores[r * KEYS..][visible.clone()];
            let out = &mut state.out[r * width..][..width];
            accumulate(
                simd,
                probabilities,
                wide_values,
                visible.start,
                scale[r],
                out,
            );
        }
    }
}

/// The rows of a tile in f32: where they are, or converted.
#[inline(always)]
fn widened<'a, 'o, T: Element>(
    rows: TileRows<'a, 'o, T>,
    at_wide: &'o Offsets,
    wide: &'a mut [f32],
) -> TileRows<'a, 'o, f32> {
    let TileRows {
        offsets, head_dim, ..
    } = rows;
    if let Some(data) = T::as_f32(rows.data) {
        return TileRows {
            data,
            offsets,
            head_dim,
        };
    }
    for (j, to) in wide.chunks_exact_mut(head_dim).take(rows.len()).enumerate() {
        T::widen(rows.row(j), to);
    }
    TileRows {
        data: wide,
        offsets: &at_wide[..rows.len()],
        head_dim,
    }
}

/// Starts reading rows into the cache: those of a head lie far apart, where the processor does not foresee them.
#[inline(always)]
fn prefetch<T>(rows: TileRows<'_, '_, T>) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..rows.len()).flat_map(|j| rows.row(j).chunks(64 / size_of::<T>())) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint about an address that is within the slice.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = rows;
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
    values: TileRows<'_, '_, f32>,
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
    values: TileRows<'_, '_, f32>,
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
