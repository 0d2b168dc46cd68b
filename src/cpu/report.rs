//! What the horizon left out of a call.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

use super::softmax::Row;
use super::tile::KEYS;
use super::work::Block;
use crate::problem::Problem;

/// What the [horizon](crate::Horizon) left out, counted in pairs of a query and a tile of 128 keys of which it sees some.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// `[heads_q, distances]`.
    kept: Vec<u64>,
    total: Vec<u64>,
    distances: usize,
}

impl Report {
    /// The pairs that were computed.
    pub fn kept(&self) -> u64 {
        self.kept.iter().sum()
    }

    /// All pairs.
    pub fn total(&self) -> u64 {
        self.total.iter().sum()
    }

    /// The pairs of a query head, as `(computed, all)`, by distance: first those of the nearest tile, then those one tile
    /// farther, and so on.
    ///
    /// # Panics
    /// When there is no such head.
    pub fn of_head(&self, head: usize) -> impl Iterator<Item = (u64, u64)> {
        let of = head * self.distances..(head + 1) * self.distances;
        let kept = self.kept[of.clone()].iter().copied();
        kept.zip(self.total[of].iter().copied())
    }
}

/// A report in the making, by many threads.
#[derive(Debug)]
pub(super) struct Counts {
    kept: Vec<AtomicU64>,
    /// What the total changes by, from one distance to the next.
    steps: Vec<AtomicI64>,
    distances: usize,
    group: usize,
}

impl Counts {
    pub(super) fn new(problem: &Problem<'_>) -> Self {
        let longest = problem.sequences.iter().map(|s| s.seqlen_k).max();
        // One more, where the last total ends.
        let distances = longest.unwrap_or(0).div_ceil(KEYS) + 1;
        let len = problem.attention.heads_q() * distances;
        Self {
            kept: (0..len).map(|_| AtomicU64::new(0)).collect(),
            steps: (0..len).map(|_| AtomicI64::new(0)).collect(),
            distances,
            group: problem.attention.group(),
        }
    }

    /// All that the rows of a block see, with the tile from which distances count.
    pub(super) fn add_total(&self, block: &Block, rows: &[Row], nearest: usize) {
        for (r, row) in rows
            .iter()
            .enumerate()
            .filter(|(_, row)| row.first < row.end)
        {
            let at = block.row(self.group, r).1 * self.distances;
            let (first, last) = (row.first / KEYS, (row.end - 1) / KEYS);
            let add = |from: usize, to: usize| {
                self.steps[at + from].fetch_add(1, Relaxed);
                self.steps[at + to + 1].fetch_sub(1, Relaxed);
            };
            if first <= nearest {
                add(nearest - last.min(nearest), nearest - first);
            }
            if last > nearest {
                add(first.max(nearest + 1) - nearest, last - nearest);
            }
        }
    }

    /// A tile that was computed, for the rows of a block from the `first`-th on.
    pub(super) fn add_kept(
        &self,
        block: &Block,
        first: usize,
        rows: &[Row],
        tile: usize,
        nearest: usize,
    ) {
        for (r, row) in rows.iter().enumerate() {
            if row.first < ((tile + 1) * KEYS).min(row.end) && row.end > tile * KEYS {
                let head = block.row(self.group, first + r).1;
                self.kept[head * self.distances + tile.abs_diff(nearest)].fetch_add(1, Relaxed);
            }
        }
    }

    pub(super) fn finish(self) -> Report {
        let mut total = Vec::with_capacity(self.steps.len());
        for steps in self.steps.chunks(self.distances) {
            total.extend(steps.iter().scan(0, |sum, step| {
                *sum += step.load(Relaxed);
                Some(*sum as u64)
            }));
        }
        Report {
            kept: self.kept.into_iter().map(AtomicU64::into_inner).collect(),
            total,
            distances: self.distances,
        }
    }
}
