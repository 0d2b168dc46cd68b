//! What the horizon's tests need to know of keys and queries, and their verdict over a strip of rows.

use std::ops::Range;

use pulp::Arch;
use rayon::prelude::*;

use super::Element;
use super::element::widen;
use super::gemm::STRIP;
use super::machine::{Machine, WithMachine, dispatch};
use super::softmax::Row;
use super::tile::{KEYS, Pages, Rows};
use super::work::FEW;
use crate::Attention;
use crate::attention::Mask;
use crate::horizon::{Budget, MIN_KEYS, Radii, RowBound, Verdict};
use crate::problem::{PageRadii, Problem, Sequence};

/// [`exp2`](super::vector::exp2) is 0 below 2^-125; a score is off by less than the rest.
const UNDERFLOW: f64 = 126.0;

/// Keys whose mean is the centre: any vector is one, so a sample will do.
const SAMPLE: usize = 256;

/// So much of a head is converted at once.
const WIDE: usize = 256;

/// The keys of one sequence and key head, tile by tile.
#[derive(Debug)]
pub(super) struct KeyBounds {
    /// `c`.
    centre: Vec<f32>,
    /// At least every `|k|`.
    norm: f32,
    first_tile: usize,
    /// `R` of each tile.
    radii: Vec<f32>,
    /// The largest of a tile and those before it, and of a tile and those after it.
    before: Vec<f32>,
    after: Vec<f32>,
}

/// The budget of one row, or none where the horizon leaves nothing out.
pub(super) fn budget(attention: &Attention, sequence: &Sequence, head: usize) -> Option<Budget> {
    let sides = match attention.mask() {
        Mask::Causal => 1,
        Mask::Bidirectional => 2,
    };
    let slope = attention.slopes().get(sequence.index, head);
    Budget::new(attention.horizon(), slope, sides, KEYS, UNDERFLOW)
}

/// Whether the horizon can leave out keys of a sequence for a key head.
fn has_horizon(attention: &Attention, sequence: &Sequence, head_k: usize) -> bool {
    let group = attention.group();
    sequence.seen(attention).len() >= MIN_KEYS
        && (head_k * group..(head_k + 1) * group)
            .any(|head| budget(attention, sequence, head).is_some())
}

/// Of each sequence and key head, where the horizon leaves out keys that are not even read. With few rows and a cache that
/// has no radii, finding the bounds takes as long as the scores: those are tested then, once computed.
pub(super) fn key_bounds<'a, T: Element>(
    arch: Arch,
    problem: &Problem<'_>,
    keys: impl Fn(&Sequence, usize) -> Rows<'a, T> + Sync,
) -> Vec<Option<KeyBounds>> {
    let attention = problem.attention;
    let of_head = |sequence: &Sequence, head_k| {
        if !has_horizon(attention, sequence, head_k) {
            return None;
        }
        let (keys, seen) = (keys(sequence, head_k), sequence.seen(attention));
        match (problem.radii, keys.pages) {
            (Some(radii), Some(pages)) => Some(KeyBounds::of_pages(radii, pages, head_k, seen)),
            _ => (sequence.seqlen_q * attention.group() > FEW)
                .then(|| KeyBounds::new(arch, keys, seen)),
        }
    };
    let heads_k = attention.heads_k();
    (0..problem.sequences.len() * heads_k)
        .into_par_iter()
        .map(|i| of_head(&problem.sequences[i / heads_k], i % heads_k))
        .collect()
}

impl KeyBounds {
    /// Of the keys `seen`, by reading them.
    fn new<T: Element>(arch: Arch, keys: Rows<'_, T>, seen: Range<usize>) -> Self {
        let centre = centre(keys, &seen);
        let radius = |keys_of_tile: Range<usize>| {
            let centre = &centre;
            dispatch(
                arch,
                Radius {
                    keys,
                    of: keys_of_tile,
                    centre,
                },
            )
        };
        let radii = tiles(&seen).with_min_len(8).map(radius).collect();
        Self::of_tiles(centre, seen.start / KEYS, radii)
    }

    /// Of the keys `seen`, by the radii of the pages that they lie in.
    fn of_pages(radii: PageRadii<'_>, pages: Pages<'_>, head_k: usize, seen: Range<usize>) -> Self {
        let radius = |keys: Range<usize>| {
            let pages = &pages.table[keys.start / pages.size..keys.end.div_ceil(pages.size)];
            let radii = pages.iter().map(|&page| radii.of(page, head_k));
            radii.fold(0.0, larger)
        };
        let centre = radii.centre(head_k).to_vec();
        let radii = tiles(&seen).with_min_len(512).map(radius).collect();
        Self::of_tiles(centre, seen.start / KEYS, radii)
    }

    fn of_tiles(centre: Vec<f32>, first_tile: usize, radii: Vec<f32>) -> Self {
        let running = |largest: &mut f32, &radius: &f32| {
            *largest = larger(*largest, radius);
            Some(*largest)
        };
        let before: Vec<f32> = radii.iter().scan(0.0, running).collect();
        let mut after: Vec<f32> = radii.iter().rev().scan(0.0, running).collect();
        after.reverse();
        let squares = centre.iter().map(|&x| f64::from(x).powi(2));
        let largest = f64::from(after.first().copied().unwrap_or(0.0));
        let norm = (squares.sum::<f64>().sqrt() + largest) as f32;
        Self {
            centre,
            norm: norm * (1.0 + f32::EPSILON),
            first_tile,
            radii,
            before,
            after,
        }
    }

    /// Of a tile on one side of the rows.
    pub(super) fn radii(&self, tile: usize, side: Side) -> Radii {
        let at = tile - self.first_tile;
        let farther = match side {
            Side::Before => &self.before,
            Side::After => &self.after,
        };
        Radii {
            tile: self.radii[at],
            farther: farther[at],
        }
    }

    /// What bounds the scores of a query with these keys.
    #[inline(always)]
    pub(super) fn row<T: Element, M: Machine>(
        &self,
        machine: M,
        attention: &Attention,
        budget: Budget,
        query: &[T],
    ) -> RowBound {
        const LANES: usize = 8;
        let mut wide = [0.0; WIDE];
        let (mut dot, mut squares) = ([0.0f64; LANES], [0.0f64; LANES]);
        for (query, centre) in query.chunks(WIDE).zip(self.centre.chunks(WIDE)) {
            let wide = &mut wide[..query.len()];
            widen(machine, query, wide);
            for (q, c) in wide.chunks(LANES).zip(centre.chunks(LANES)) {
                let sums = dot.iter_mut().zip(&mut squares);
                for ((dot, square), (&q, &c)) in sums.zip(q.iter().zip(c)) {
                    *dot += f64::from(q) * f64::from(c);
                    *square += f64::from(q) * f64::from(q);
                }
            }
        }
        let (dot, squares): (f64, f64) = (dot.iter().sum(), squares.iter().sum());
        RowBound::new(
            budget,
            (attention.scale(), attention.softcap()),
            attention.head_dim(),
            (dot, squares.sqrt()),
            self.norm,
        )
    }
}

/// The keys of each tile of those `seen`.
fn tiles(seen: &Range<usize>) -> impl IndexedParallelIterator<Item = Range<usize>> {
    let (start, end) = (seen.start, seen.end);
    let of_tile = move |tile: usize| (tile * KEYS).max(start)..((tile + 1) * KEYS).min(end);
    (start / KEYS..end.div_ceil(KEYS))
        .into_par_iter()
        .map(of_tile)
}

/// The mean of some of the keys, all over the sequence.
fn centre<T: Element>(keys: Rows<'_, T>, seen: &Range<usize>) -> Vec<f32> {
    let mut sums = vec![0.0f64; keys.head_dim];
    let stride = seen.len().div_ceil(SAMPLE).max(1);
    let sample = seen.clone().step_by(stride);
    let count = sample.len().max(1) as f64;
    for j in sample {
        for (sum, k) in sums.iter_mut().zip(keys.row(j)) {
            *sum += f64::from(k.to_f32());
        }
    }
    sums.iter().map(|sum| (sum / count) as f32).collect()
}

/// At least the distance of each of some keys from the centre.
struct Radius<'a, T> {
    keys: Rows<'a, T>,
    of: Range<usize>,
    centre: &'a [f32],
}

impl<T: Element> WithMachine for Radius<'_, T> {
    type Output = f32;

    #[inline(always)]
    fn with_machine<M: Machine>(self, machine: M) -> f32 {
        let mut offsets = [0; KEYS];
        let tile = (self.keys).tile(self.of.start, self.of.len(), &mut offsets);
        let mut radius = 0.0;
        for j in 0..tile.len() {
            radius = larger(radius, distance(machine, tile.row(j), self.centre));
        }
        radius
    }
}

/// At least the distance of a key from the centre.
#[inline(always)]
pub(super) fn distance<T: Element, M: Machine>(machine: M, key: &[T], centre: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut wide = [0.0; WIDE];
    let mut sums = [0.0f32; LANES];
    for (key, centre) in key.chunks(WIDE).zip(centre.chunks(WIDE)) {
        let wide = &mut wide[..key.len()];
        widen(machine, key, wide);
        for (k, c) in wide.chunks(LANES).zip(centre.chunks(LANES)) {
            for (sum, (k, c)) in sums.iter_mut().zip(k.iter().zip(c)) {
                *sum += (k - c) * (k - c);
            }
        }
    }
    // Up: 512 roundings are off by 2^-15 at most. Squares below the smallest number count too. The sign of a NaN does not.
    let squares = sums.iter().sum::<f32>().abs();
    squares.sqrt() * (1.0 + 0.5f32.powi(12)) + 0.5f32.powi(58)
}

/// The larger of two that are not negative; NaN is the largest.
#[inline(always)]
pub(super) fn larger(x: f32, y: f32) -> f32 {
    if x.to_bits() > y.to_bits() { x } else { y }
}

/// Where tiles lie, from the nearest one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Before,
    After,
}

/// A tile that may be left out.
pub(super) struct FarTile {
    pub(super) side: Side,
    pub(super) keys: Range<usize>,
    pub(super) radii: Radii,
    /// [`share`](crate::horizon::share) of its place.
    pub(super) share: f64,
}

impl FarTile {
    /// What becomes of the tile for some rows: what the least willing of them allows. `max` are their largest scores so far.
    pub(super) fn verdict(
        &self,
        rows: &[Row],
        bounds: &[Option<RowBound>],
        max: &[f32],
    ) -> Verdict {
        let mut verdict = Verdict::Stop;
        for ((row, bound), &max) in rows.iter().zip(bounds).zip(max).take(STRIP) {
            verdict = verdict.min(self.of_row(row, bound, max));
            if verdict == Verdict::Keep {
                break;
            }
        }
        verdict
    }

    fn of_row(&self, row: &Row, bound: &Option<RowBound>, max: f32) -> Verdict {
        let Range { start, end } = self.keys;
        let first = row.position - (end as i64 - 1);
        let after = start as i64 - row.position;
        // A row that sees nothing here sees nothing farther either, or its keys are farther.
        let (unseen, beyond, distance) = match self.side {
            Side::Before => (row.end <= start, row.first >= end, first),
            Side::After => (row.first >= end, row.end <= start, after),
        };
        match bound {
            _ if row.first >= row.end || beyond => Verdict::Stop,
            _ if unseen => Verdict::Skip,
            // Keys on both sides of the row, or towards the nearest tile.
            _ if distance < 0 => Verdict::Keep,
            Some(bound) => bound.verdict(self.radii, distance as f64, self.share, max),
            None => Verdict::Keep,
        }
    }
}
