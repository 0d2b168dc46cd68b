//! The same recurrence for so few query rows that reading keys and values is the work: decoding. Nothing is transposed
//! or packed; each key is one dot product a row. Elements become f32 in registers.

#![allow(clippy::needless_range_loop)] // Fixed bounds over arrays of registers: the form that the compiler unrolls.

use std::ops::Range;

use pulp::Simd;

use super::Element;
use super::bounds::{FarTile, KeyBounds, Side, budget};
use super::element::widen;
use super::machine::{Floats, Machine};
use super::report::Counts;
use super::softmax::{Row, softmax_row};
use super::state::State;
use super::tile::{KEYS, Rows, TileRows, padded};
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
pub(super) fn run_few<'a, T: Element, M: Machine>(
    machine: M,
    few: Few<'_, '_, T>,
    query: impl Fn(usize) -> &'a [T],
    (queries, scores): (&mut Vec<f32>, &mut Vec<f32>),
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
    let row_bounds = std::array::from_fn::<_, FEW, _>(|r| {
        Some(bounds?.row(machine, attention, budgets[r]?, query(r)))
    });
    let mut begun = false;
    // Where the rows of the keys, of the values and of the next keys lie.
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
        // Nothing is prepared for a part of the keys that is left out.
        if !std::mem::replace(&mut begun, true) {
            scores.resize(FEW * KEYS, 0.0);
            queries.clear();
            queries.resize(FEW * width, 0.0);
            for (r, to) in queries.chunks_exact_mut(width).take(rows.len()).enumerate() {
                widen(machine, query(r), &mut to[..head_dim]);
            }
        }
        let (tile_keys, tile_values) = (
            keys.tile(from, n, &mut at_keys),
            values.tile(from, n, &mut at_values),
        );
        prefetch(tile_values);
        match rows.len() {
            1 => dots::<T, M, 1>(machine, queries, tile_keys, scores),
            2 => dots::<T, M, 2>(machine, queries, tile_keys, scores),
            3 => dots::<T, M, 3>(machine, queries, tile_keys, scores),
            _ => dots::<T, M, FEW>(machine, queries, tile_keys, scores),
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
            match softmax_row(
                machine.simd(),
                attention,
                bias,
                &visible[r],
                scores,
                max,
                sum,
                skip,
            ) {
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
        for (r, visible) in visible.into_iter().enumerate().take(rows.len()) {
            // Only what the row sees: a value it does not see may be anything.
            let probabilities = &scores[r * KEYS..][visible.clone()];
            let out = &mut state.out[r * width..][..width];
            accumulate(
                machine,
                probabilities,
                tile_values,
                visible.start,
                scale[r],
                out,
            );
        }
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

/// `scores[r][j] = queries[r] . keys[j]` for `R` rows. The rows of the queries are padded with zeros.
#[inline(always)]
fn dots<T: Element, M: Machine, const R: usize>(
    machine: M,
    queries: &[f32],
    keys: TileRows<'_, '_, T>,
    scores: &mut [f32],
) {
    let simd = machine.simd();
    let width = padded(keys.head_dim);
    assert!(queries.len() >= R * width && scores.len() >= R * KEYS);
    for j in 0..keys.len() {
        let key = keys.row(j).chunks_exact(M::LANES);
        let tail = key.remainder();
        let mut sums = [simd.splat_f32s(0.0); R];
        let mut at = 0;
        for key in key {
            let key = T::load(machine, key);
            for r in 0..R {
                let query = machine.load_f32(&queries[r * width + at..]);
                sums[r] = simd.mul_add_e_f32s(query, key, sums[r]);
            }
            at += M::LANES;
        }
        if !tail.is_empty() {
            let key = T::load_partial(machine, tail);
            for r in 0..R {
                let query = machine.load_f32(&queries[r * width + at..]);
                sums[r] = simd.mul_add_e_f32s(query, key, sums[r]);
            }
        }
        for r in 0..R {
            scores[r * KEYS + j] = simd.reduce_sum_f32s(sums[r]);
        }
    }
}

/// `out = scale * out + sum_j probabilities[j] * values[first + j]`; `out` is padded.
#[inline(always)]
fn accumulate<T: Element, M: Machine>(
    machine: M,
    probabilities: &[f32],
    values: TileRows<'_, '_, T>,
    first: usize,
    scale: f32,
    out: &mut [f32],
) {
    let (out, _) = M::Simd::as_mut_simd_f32s(out);
    let whole = values.head_dim / M::LANES;
    let (panels, rest) = out[..whole].as_chunks_mut::<COLUMNS>();
    let mut column = 0;
    for panel in panels {
        accumulate_panel(machine, probabilities, values, first, scale, column, panel);
        column += COLUMNS * M::LANES;
    }
    for panel in rest.as_chunks_mut::<1>().0 {
        accumulate_panel(machine, probabilities, values, first, scale, column, panel);
        column += M::LANES;
    }
    if column < values.head_dim {
        let simd = machine.simd();
        let mut sum = simd.mul_f32s(out[whole], simd.splat_f32s(scale));
        for (j, &p) in probabilities.iter().enumerate() {
            let value = T::load_partial(machine, &values.row(first + j)[column..]);
            sum = simd.mul_add_e_f32s(simd.splat_f32s(p), value, sum);
        }
        out[whole] = sum;
    }
}

/// `N` registers of columns from the `column`-th column on.
#[inline(always)]
fn accumulate_panel<T: Element, M: Machine, const N: usize>(
    machine: M,
    probabilities: &[f32],
    values: TileRows<'_, '_, T>,
    first: usize,
    scale: f32,
    column: usize,
    out: &mut [Floats<M>; N],
) {
    let simd = machine.simd();
    let mut sums = [simd.splat_f32s(0.0); N];
    for i in 0..N {
        sums[i] = simd.mul_f32s(out[i], simd.splat_f32s(scale));
    }
    for (j, &p) in probabilities.iter().enumerate() {
        let p = simd.splat_f32s(p);
        let value = &values.row(first + j)[column..][..N * M::LANES];
        for i in 0..N {
            let value = T::load(machine, &value[i * M::LANES..]);
            sums[i] = simd.mul_add_e_f32s(p, value, sums[i]);
        }
    }
    *out = sums;
}
