//! Flash attention over one block of query rows: online softmax, one tile of keys at a time.

use std::f32::consts::LOG2_E;

use super::Element;
use super::bounds::{FarTile, KeyBounds, Side, budget};
use super::few::{Few, run_few};
use super::gemm::{F32, Matrix, STRIP, Target};
use super::machine::{Machine, WithMachine};
use super::report::Counts;
use super::softmax::{Row, softmax_row};
use super::state::State;
use super::tile::{Arithmetic, KEYS, Pages, Rows, TileRows, padded};
use super::work::{Block, FEW};
use crate::Attention;
use crate::horizon::{RowBound, Verdict, share};
use crate::problem::{Problem, Sequence};
use crate::tensor::Layout;

/// Buffers of a thread, reused from block to block.
#[derive(Debug, Default)]
pub(super) struct Scratch<I> {
    rows: Vec<Row>,
    queries: Vec<I>,
    keys: Vec<I>,
    values: Vec<I>,
    scores: Vec<f32>,
    probabilities: Vec<I>,
    wide: Vec<f32>,
    /// Of each row, where the horizon may leave out keys.
    bounds: Vec<Option<RowBound>>,
    /// What becomes of a tile, for each strip.
    verdicts: Vec<Verdict>,
    /// The values of the tile, by key and column, that are not finite and hidden from some row.
    poison: Vec<(usize, usize)>,
    pub(super) state: State,
}

/// The tensors of a call.
pub struct Tensors<'a, T> {
    pub(super) problem: &'a Problem<'a>,
    pub(super) q: &'a [T],
    pub(super) k: &'a [T],
    pub(super) v: &'a [T],
    pub(super) counts: Option<&'a Counts>,
}

impl<'a, T> Tensors<'a, T> {
    fn query(&self, block: &Block, r: usize) -> &'a [T] {
        let (token, head) = block.row(self.problem.attention.group(), r);
        let layout = &self.problem.q;
        let at = block.sequence.q + token * layout.row_stride + head * layout.head_stride;
        &self.q[at..][..layout.head_dim]
    }

    pub(super) fn keys(&self, sequence: &Sequence, head_k: usize) -> Rows<'a, T> {
        self.rows(sequence, head_k, self.k, &self.problem.k, sequence.k)
    }

    fn values(&self, sequence: &Sequence, head_k: usize) -> Rows<'a, T> {
        self.rows(sequence, head_k, self.v, &self.problem.v, sequence.v)
    }

    fn rows(
        &self,
        sequence: &Sequence,
        head_k: usize,
        data: &'a [T],
        layout: &Layout,
        start: usize,
    ) -> Rows<'a, T> {
        let pages = self.problem.block_table.map(|table| Pages {
            table: table.of(sequence.index),
            size: table.page_size,
            stride: layout.batch_stride,
        });
        Rows {
            data: &data[start + head_k * layout.head_stride..],
            stride: layout.row_stride,
            head_dim: layout.head_dim,
            pages,
        }
    }
}

/// Computes a block into `scratch.state`. Run it by [`dispatch`](super::machine::dispatch).
pub(super) struct Run<'a, T, A, I> {
    pub(super) tensors: &'a Tensors<'a, T>,
    pub(super) block: &'a Block,
    /// Of the block's keys, where the horizon may leave out some.
    pub(super) bounds: Option<&'a KeyBounds>,
    /// Scores that the rows have kept elsewhere: the maxima of another part of the keys.
    pub(super) kept: Option<&'a [f32]>,
    pub(super) scratch: &'a mut Scratch<I>,
    /// From the machine to the arithmetic of the products.
    pub(super) arithmetic: A,
}

/// The arithmetic for a machine.
pub(super) trait ForMachine<T, I: Copy + Default + Send>: Copy {
    fn of<M: Machine>(self, machine: M) -> impl Arithmetic<T, Item = I>;
}

/// Products in f32, whatever the element type.
#[derive(Clone, Copy)]
pub(super) struct UseF32;

impl<T: Element> ForMachine<T, f32> for UseF32 {
    #[inline(always)]
    fn of<M: Machine>(self, machine: M) -> impl Arithmetic<T, Item = f32> {
        F32(machine)
    }
}

/// Products of bf16 pairs.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(super) struct UseBf16(pub(super) super::tile::Bf16);

#[cfg(target_arch = "x86_64")]
impl ForMachine<half::bf16, [half::bf16; 2]> for UseBf16 {
    #[inline(always)]
    fn of<M: Machine>(self, _: M) -> impl Arithmetic<half::bf16, Item = [half::bf16; 2]> {
        self.0
    }
}

impl<T: Element, I: Copy + Default + Send, A: ForMachine<T, I>> WithMachine for Run<'_, T, A, I> {
    type Output = ();

    #[inline(always)]
    fn with_machine<M: Machine>(self, machine: M) {
        let arithmetic = self.arithmetic.of(machine);
        run(machine, arithmetic, self);
    }
}

#[inline(always)]
fn run<T: Element, M: Machine, A: Arithmetic<T>, F>(
    machine: M,
    arithmetic: A,
    call: Run<'_, T, F, A::Item>,
) {
    let Run {
        tensors,
        block,
        bounds,
        kept,
        scratch,
        ..
    } = call;
    let counts = tensors.counts;
    let attention = tensors.problem.attention;
    let head_dim = attention.head_dim();
    let depth = head_dim / A::STEP;
    let rows = block.rows.len();
    let width = padded(head_dim);

    let zero = A::Item::default();
    scratch.rows.clear();
    scratch.rows.extend((0..rows).map(|r| {
        let (token, head) = block.row(attention.group(), r);
        let visible = block.sequence.visible(attention, token);
        let first = visible.start.max(block.keys.start);
        Row {
            position: block.sequence.nearest(attention, token),
            slope: attention.slopes().get(block.sequence.index, head) * LOG2_E,
            first,
            end: visible.end.min(block.keys.end).max(first),
        }
    }));
    scratch.state.reset(rows, head_dim);

    let seen = scratch.rows.iter().filter(|row| row.first < row.end);
    let Some(first) = seen.clone().map(|row| row.first).min() else {
        return;
    };
    let end = seen.map(|row| row.end).max().unwrap_or(first);
    // Of the sequence, not of the part of it that is here: distances count from it.
    let nearest = {
        let seen = block.sequence.seen(attention);
        let last = scratch.rows[rows - 1].position;
        last.clamp(seen.start as i64, seen.end as i64 - 1) as usize / KEYS
    };
    if let Some(counts) = counts {
        counts.add_total(block, &scratch.rows, nearest);
    }
    let (sequence, head_k) = (&block.sequence, block.head_k);
    let (keys, values) = (
        tensors.keys(sequence, head_k),
        tensors.values(sequence, head_k),
    );
    if rows <= FEW {
        let few = Few {
            attention,
            block,
            rows: &scratch.rows,
            keys,
            values,
            seen: first..end,
            nearest,
            bounds,
            kept,
            counts,
        };
        let buffers = (&mut scratch.wide, &mut scratch.scores);
        let query = |r| tensors.query(block, r);
        run_few(machine, few, query, buffers, &mut scratch.state);
        return;
    }

    // Rows that fill up the last strip see nothing.
    scratch
        .rows
        .resize(rows.next_multiple_of(STRIP), Row::default());
    scratch.queries.clear();
    scratch.queries.resize(scratch.rows.len() * depth, zero);
    for (r, to) in scratch
        .queries
        .chunks_exact_mut(depth)
        .take(rows)
        .enumerate()
    {
        arithmetic.pack_query(tensors.query(block, r), to);
    }
    scratch.keys.resize(KEYS * depth, zero);
    scratch.values.resize(KEYS / A::STEP * width, zero);
    scratch.scores.resize(STRIP * KEYS, 0.0);
    scratch.probabilities.resize(STRIP * KEYS / A::STEP, zero);
    scratch.wide.resize(16 * head_dim, 0.0);

    scratch.bounds.clear();
    if let Some(bounds) = bounds {
        scratch.bounds.extend((0..rows).map(|r| {
            let head = block.row(attention.group(), r).1;
            let budget = budget(attention, &block.sequence, head)?;
            Some(bounds.row(machine, attention, budget, tensors.query(block, r)))
        }));
        scratch.bounds.resize(scratch.rows.len(), None);
    }

    let (mut at_keys, mut at_values) = ([0; KEYS], [0; KEYS]);
    let tiles = first / KEYS..end.div_ceil(KEYS);
    // From the nearest tile outwards, so that the maxima settle at once and rescaling is rare.
    let before = tiles.start..tiles.end.min(nearest + 1);
    let after = tiles.start.max(nearest + 1)..tiles.end;
    let order = (before.rev().map(|tile| (Side::Before, tile)))
        .chain(after.map(|tile| (Side::After, tile)));
    let mut last_side = None;
    scratch.verdicts.clear();
    scratch
        .verdicts
        .resize(scratch.rows.len() / STRIP, Verdict::Keep);
    for (side, tile) in order {
        if last_side.replace(side) != Some(side) {
            scratch.verdicts.fill(Verdict::Keep);
        }
        let mut far_share = None;
        if let Some(bounds) = bounds
            && tile != nearest
        {
            let far = FarTile {
                side,
                keys: tile * KEYS..(tile + 1) * KEYS,
                radii: bounds.radii(tile, side),
                share: share(tile.abs_diff(nearest)),
            };
            scratch.judge(&far, kept);
            far_share = Some(far.share);
            if scratch
                .verdicts
                .iter()
                .all(|&verdict| verdict != Verdict::Keep)
            {
                continue;
            }
        }
        // Only keys that some row sees are read: the others may be padding, and hold anything.
        let (from, to) = ((tile * KEYS).max(first), ((tile + 1) * KEYS).min(end));
        let n = to - from;
        let (keys, values) = (
            keys.tile(from, n, &mut at_keys),
            values.tile(from, n, &mut at_values),
        );
        arithmetic.pack_keys(keys, &mut scratch.keys, &mut scratch.wide);
        arithmetic.pack_values(values, &mut scratch.values);
        // A probability of zero would not keep out a value that is not finite: where some row must not see it, it is
        // taken out of the product, and given to the rows that see it one by one.
        scratch.poison.clear();
        if scratch.rows[..rows]
            .iter()
            .any(|row| row.first > from || row.end < to)
        {
            for j in 0..n {
                for (c, v) in values.row(j).iter().enumerate() {
                    if !v.is_finite() {
                        arithmetic.clear_value(j, c, width, &mut scratch.values);
                        scratch.poison.push((j, c));
                    }
                }
            }
        }
        let tile = Tile {
            from,
            n,
            far_share,
            kept,
        };
        for strip in 0..scratch.rows.len() / STRIP {
            if scratch.verdicts[strip] != Verdict::Keep {
                continue;
            }
            run_strip(
                machine, arithmetic, attention, &tile, values, strip, scratch,
            );
            if let Some(counts) = counts {
                let strip = strip * STRIP..rows.min((strip + 1) * STRIP);
                counts.add_kept(
                    block,
                    strip.start,
                    &scratch.rows[strip],
                    tile.from / KEYS,
                    nearest,
                );
            }
        }
    }
}

impl<I> Scratch<I> {
    /// What becomes of a tile, for each strip; what has ended stays so.
    fn judge(&mut self, tile: &FarTile, kept: Option<&[f32]>) {
        for (strip, verdict) in self.verdicts.iter_mut().enumerate() {
            if *verdict == Verdict::Stop {
                continue;
            }
            let first = strip * STRIP;
            let max: [f32; STRIP] = std::array::from_fn(|i| {
                let elsewhere = kept.map_or(f32::NEG_INFINITY, |kept| kept[first + i]);
                self.state.max[first + i].max(elsewhere)
            });
            *verdict = tile.verdict(&self.rows[first..], &self.bounds[first..], &max);
        }
    }
}

/// Keys `from..from + n`.
struct Tile<'a> {
    from: usize,
    n: usize,
    /// Its share of a tolerance, where the horizon may leave it out.
    far_share: Option<f64>,
    /// Scores that the rows have kept elsewhere.
    kept: Option<&'a [f32]>,
}

#[inline(always)]
fn run_strip<T: Element, M: Machine, A: Arithmetic<T>>(
    machine: M,
    arithmetic: A,
    attention: &Attention,
    tile: &Tile<'_>,
    values: TileRows<'_, '_, T>,
    strip: usize,
    scratch: &mut Scratch<A::Item>,
) {
    let head_dim = attention.head_dim();
    let (depth, width) = (head_dim / A::STEP, padded(head_dim));
    let first_row = strip * STRIP;
    let rows: [Row; STRIP] = std::array::from_fn(|i| scratch.rows[first_row + i]);
    let visible = rows.map(|row| {
        let clip = |j: usize| j.clamp(tile.from, tile.from + tile.n) - tile.from;
        clip(row.first)..clip(row.end)
    });
    let used = visible
        .iter()
        .filter(|range| !range.is_empty())
        .map(|range| range.end)
        .max();
    let Some(used) = used else {
        return;
    };
    let columns = used.div_ceil(A::LANES);

    let queries = Matrix {
        data: &scratch.queries[first_row * depth..],
        stride: depth,
    };
    let keys = Matrix {
        data: &scratch.keys,
        stride: KEYS,
    };
    let scores = Target {
        data: &mut scratch.scores,
        stride: KEYS,
        columns,
    };
    arithmetic.multiply(depth, queries, keys, scores, None);

    let mut scale = [1.0; STRIP];
    let mut any = false;
    for (i, (row, visible)) in rows.iter().zip(&visible).enumerate() {
        let scores = &mut scratch.scores[i * KEYS..][..columns * A::LANES];
        if visible.is_empty() {
            scores.fill(0.0);
            continue;
        }
        let (max, sum) = (
            &mut scratch.state.max[first_row + i],
            &mut scratch.state.sum[first_row + i],
        );
        let bias = row.bias(tile.from, visible);
        // What its bound let pass, the scores themselves may not.
        let skip = |top: f32, max: f32| match (tile.far_share, scratch.bounds.get(first_row + i)) {
            (Some(share), Some(Some(bound))) => {
                let elsewhere = tile
                    .kept
                    .map_or(f32::NEG_INFINITY, |kept| kept[first_row + i]);
                bound.skips_computed(top, max.max(elsewhere), share)
            }
            _ => false,
        };
        match softmax_row(
            machine.simd(),
            attention,
            bias,
            visible,
            scores,
            max,
            sum,
            skip,
        ) {
            Some(factor) => (scale[i], any) = (factor, true),
            None => scores.fill(0.0),
        }
    }
    if !any {
        return;
    }

    let out = &mut scratch.state.out[first_row * width..][..STRIP * width];
    let rounded = &mut scratch.probabilities;
    let probabilities = Matrix {
        data: arithmetic.pack_probabilities(&scratch.scores, used, rounded),
        stride: KEYS / A::STEP,
    };
    let packed = Matrix {
        data: &scratch.values,
        stride: width,
    };
    let target = Target {
        data: &mut *out,
        stride: width,
        columns: width / A::LANES,
    };
    arithmetic.multiply(
        used.div_ceil(A::STEP),
        probabilities,
        packed,
        target,
        Some(&scale),
    );
    for &(j, c) in &scratch.poison {
        for (i, visible) in visible.iter().enumerate() {
            if visible.contains(&j) {
                out[i * width + c] += scratch.scores[i * KEYS + j] * values.row(j)[c].to_f32();
            }
        }
    }
}
