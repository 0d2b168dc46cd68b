//! The keys and values of a problem in pages.

use flash_alibi::Layout;
use flash_alibi::cpu::Element;
use flash_alibi::plan::Paged;
use ptx_emulator::Report;

use super::emulator::{OnDevice, Placed, Planner, Problem};
use super::{LaidOut, Rows, random};

/// Pools of pages in random order, some of them unused; every row that belongs to no sequence is poison.
pub struct Pages<T> {
    pub k: Vec<T>,
    pub v: Vec<T>,
    /// `[pages, page_size, heads_k, head_dim]`
    pub layout: Layout,
    /// `[batch, columns]`; what lies beyond a sequence's pages is no page.
    pub table: Vec<i32>,
    pub paged: Paged,
    /// The rows of each sequence.
    pub lengths: Vec<i32>,
}

impl<T: Element> LaidOut<T> {
    /// Puts the rows of each sequence in pages.
    pub fn in_pages(&self, page_size: usize, seed: u64) -> Pages<T> {
        let (heads, d) = (self.k.shape[2], self.k.shape[3]);
        let pages_of = |b: usize| self.lengths[b].k.div_ceil(page_size);
        let batch = self.lengths.len();
        let used: usize = (0..batch).map(pages_of).sum();
        let pages = used + 3;
        let mut free: Vec<i32> = (0..pages as i32).collect();
        free.sort_by_key(|&page| random(seed, 20, [page as usize, 0, 0, 0]).to_bits());

        // More columns than any sequence needs, and a gap between the rows.
        let columns = (0..batch).map(pages_of).max().unwrap_or(0) + 2;
        let stride = columns + 1;
        let no_page = [i32::MAX, -1, i32::MIN, pages as i32];
        let mut table: Vec<i32> = (0..batch * stride).map(|i| no_page[i % 4]).collect();
        let row = heads * d;
        let poison = [f32::NAN, f32::INFINITY].map(T::from_f32);
        let pool = || -> Vec<T> {
            (0..pages * page_size * row)
                .map(|i| poison[i % 2])
                .collect()
        };
        let (mut k, mut v) = (pool(), pool());
        for b in 0..batch {
            for column in 0..pages_of(b) {
                let page = free.pop().expect("there are enough");
                table[b * stride + column] = page;
                let rows = self.lengths[b].k - column * page_size;
                for r in 0..rows.min(page_size) {
                    let [entry, from] = self.row_k(b, column * page_size + r);
                    for head in 0..heads {
                        let to = (page as usize * page_size + r) * row + head * d;
                        let (at_k, at_v) = (
                            self.k.at([entry, from, head]),
                            self.v.at([entry, from, head]),
                        );
                        k[to..][..d].copy_from_slice(&self.k.data[at_k..][..d]);
                        v[to..][..d].copy_from_slice(&self.v.data[at_v..][..d]);
                    }
                }
            }
        }
        Pages {
            k,
            v,
            layout: Layout::contiguous("pages", &[pages, page_size, heads, d])
                .expect("the sizes are small"),
            table,
            paged: Paged {
                columns,
                stride,
                max_seqlen_k: columns * page_size,
            },
            lengths: self.lengths.iter().map(|l| l.k as i32).collect(),
        }
    }

    /// Makes a packed row of keys and values the same as another.
    pub fn copy_key(&mut self, from: usize, to: usize) {
        for tensor in [&mut self.k, &mut self.v] {
            for head in 0..tensor.shape[2] {
                let (from, to) = (tensor.at([0, from, head]), tensor.at([0, to, head]));
                tensor.data.copy_within(from..from + tensor.shape[3], to);
            }
        }
    }

    /// As [`LaidOut::attend_on_emulator`], from pages.
    pub fn attend_pages_on_emulator(
        &self,
        pages: &Pages<T>,
        planner: &Planner,
    ) -> Result<(Vec<Rows>, Vec<Report>), String>
    where
        T: OnDevice,
    {
        self.run_on_emulator(planner, Some(pages))
    }
}

impl<T: OnDevice> Pages<T> {
    /// Lets a problem read them.
    pub fn replace_keys<'a>(&'a self, problem: &mut Problem<'a, T>) {
        let placed = |data| Placed {
            data,
            offset: 0,
            layout: self.layout,
        };
        problem.k = placed(&self.k);
        problem.v = placed(&self.v);
        problem.cu_seqlens_k = None;
        problem.seqused_k = Some(&self.lengths);
        problem.block_table = Some((&self.table, self.paged));
    }
}
