//! Cases in a paged cache.

#[cfg(feature = "cuda")]
mod on_device;

use flash_alibi::Inputs;
use flash_alibi::cpu::{Element, oracle};
use rand::seq::SliceRandom as _;

use crate::accuracy::sees;
use crate::{Case, LaidOut, Memory, Rows, Tensor, generator};

/// What table entries hold that no query needs.
const GARBAGE: [i32; 4] = [-1, i32::MAX, i32::MIN, 1 << 20];

/// A case whose keys and values lie in pages, beside the same without pages.
pub struct Paged<T> {
    /// The same without pages.
    pub dense: LaidOut<T>,
    /// `[pages, page_size, heads_k, head_dim]`.
    pub k: Tensor<T>,
    /// As `k`.
    pub v: Tensor<T>,
    /// `[batch, max_pages]`.
    pub block_table: Vec<i32>,
    /// The columns of the block table.
    pub max_pages: usize,
    /// `[batch]`.
    pub seqused_k: Vec<i32>,
    /// Which rows of the pools hold keys.
    pub written: Vec<bool>,
    /// What is said of distances from centres, if anything.
    pub radii: Option<(Vec<f32>, Vec<f32>)>,
}

impl Case {
    /// Pages in random order. Rows that no query sees are poison, and so are pages that no sequence has; table entries
    /// that no query needs are garbage. Sequences of the same keys (shared memory) share their pages.
    pub fn lay_out_paged<T: Element>(&self, page_size: usize) -> Paged<T> {
        let dense = self.lay_out::<T>();
        let attention = self.attention();
        let shared = !self.packed && self.memory[1].broadcast[0] && self.memory[2].broadcast[0];
        let longest = self.sequences.iter().map(|s| s.k).max().unwrap_or(0);
        // One more than the longest sequence has.
        let max_pages = longest.div_ceil(page_size) + 1;
        let owners = if shared { 1 } else { self.sequences.len() };
        let pages = owners * max_pages + 3;
        let mut order: Vec<i32> = (0..pages as i32).collect();
        order.shuffle(&mut generator(self.seed, 17, [0; 4]));

        let shape = [pages, page_size, self.heads_k, self.head_dim];
        let pool = |memory| {
            let memory = Memory {
                broadcast: [false; 3],
                ..memory
            };
            Tensor::new(shape, false, memory)
        };
        let (mut k, mut v) = (pool(self.memory[1]), pool(self.memory[2]));
        let mut block_table = Vec::new();
        let mut written = vec![false; pages * page_size];
        for (b, s) in self.sequences.iter().enumerate() {
            let owner = if shared { 0 } else { b };
            let seen = |j: &usize| (0..s.q).any(|i| sees(&attention, self.offset(b), i, *j));
            let seen: Vec<usize> = (s.leftpad..s.k).filter(seen).collect();
            let mut row: Vec<i32> = (0..max_pages)
                .map(|at| GARBAGE[(b + at) % GARBAGE.len()])
                .collect();
            for j in seen {
                let page = order[owner * max_pages + j / page_size];
                row[j / page_size] = page;
                written[page as usize * page_size + j % page_size] = true;
                for head in 0..self.heads_k {
                    let [from_b, from_row] = dense.row_k(b, j);
                    let to = [page as usize, j % page_size, head];
                    for (from, pool) in [(&dense.k, &mut k), (&dense.v, &mut v)] {
                        let at = from.at([from_b, from_row, head]);
                        pool.write(to, &from.data[at..][..self.head_dim]);
                    }
                }
            }
            block_table.extend(row);
        }
        Paged {
            dense,
            k,
            v,
            block_table,
            max_pages,
            seqused_k: self.sequences.iter().map(|s| s.k as i32).collect(),
            written,
            radii: None,
        }
    }

    /// Checks the fast path and the oracle on pages: the bits of the same call without pages, and its accuracy.
    pub fn check_paged<T: Element>(&self, page_size: usize) -> Result<(), String> {
        let paged = self.lay_out_paged::<T>(page_size);
        let results = paged.attend()?;
        paged.dense.check(&results)?;
        if results != paged.dense.attend_into()? {
            return Err("pages change bits".into());
        }
        let oracle = |inputs| {
            let found = oracle::attend(&paged.dense.attention, &inputs);
            found.map_err(|e| e.to_string())
        };
        match oracle(paged.inputs())? == oracle(paged.dense.inputs())? {
            true => Ok(()),
            false => Err("pages change the oracle".into()),
        }
    }
}

impl<T: Element> Paged<T> {
    /// The call as the CPU path takes it.
    pub fn inputs(&self) -> Inputs<'_, T> {
        let (q, k, v) = (self.dense.q.view(), self.k.view(), self.v.view());
        let mut inputs = Inputs::paged(q, k, v, &self.block_table, &self.seqused_k);
        if let Some((cu_q, _)) = &self.dense.cu {
            inputs = inputs.varlen_q(cu_q);
        }
        if let Some(leftpad) = &self.dense.leftpad_k {
            inputs = inputs.leftpad_k(leftpad);
        }
        if let Some(offset) = &self.dense.offset {
            inputs = inputs.offset(offset);
        }
        if let Some((centres, radii)) = &self.radii {
            inputs = inputs.radii(centres, radii);
        }
        inputs
    }

    /// As [`LaidOut::attend_into`].
    pub fn attend(&self) -> Result<Vec<Rows>, String> {
        self.dense.attend_inputs(&self.inputs())
    }

    /// Where key `j` of sequence `b` begins in the pools, for a head.
    pub fn at(&self, b: usize, j: usize, head: usize) -> usize {
        let page_size = self.k.shape[1];
        let page = self.block_table[b * self.max_pages + j / page_size] as usize;
        self.k.at([page, j % page_size, head])
    }

    /// The distances of the keys of each page from the mean key of each head, or from zero.
    pub fn keep_radii(&mut self, mean: bool) {
        let [_, page_size, heads, d] = self.k.shape;
        let mut centres = vec![0f32; heads * d];
        let rows: Vec<usize> = (0..self.written.len())
            .filter(|&row| mean && self.written[row])
            .collect();
        for &row in &rows {
            for (i, c) in centres.iter_mut().enumerate() {
                let at = self.k.at([row / page_size, row % page_size, i / d]) + i % d;
                *c += self.k.data[at].to_f32() / rows.len() as f32;
            }
        }
        self.keep_radii_around(centres);
    }

    /// Distances from these, rounded up. NaN for pages that nobody has.
    pub fn keep_radii_around(&mut self, centres: Vec<f32>) {
        let [pages, page_size, heads, d] = self.k.shape;
        let key = |row: usize, head: usize| {
            let at = self.k.at([row / page_size, row % page_size, head]);
            self.k.data[at..][..d].iter().map(|x| f64::from(x.to_f32()))
        };
        let rows = || (0..pages * page_size).filter(|&row| self.written[row]);
        let mut radii = vec![f32::NAN; pages * heads];
        for head in 0..heads {
            let centre = &centres[head * d..][..d];
            for row in rows() {
                let squares = key(row, head).zip(centre);
                let squares = squares.map(|(x, &c)| (x - f64::from(c)).powi(2));
                let norm = squares.sum::<f64>().sqrt() as f32 * (1.0 + 1e-6);
                let radius = &mut radii[row / page_size * heads + head];
                // The first of a page replaces NaN; a NaN stays.
                let first = (0..row % page_size).all(|i| !self.written[row - row % page_size + i]);
                *radius = match first {
                    true => norm,
                    false if norm.is_nan() || radius.is_nan() => f32::NAN,
                    false => radius.max(norm),
                };
            }
        }
        self.radii = Some((centres, radii));
    }
}
