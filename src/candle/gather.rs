//! Attention over pools whose heads are in pieces, vLLM's first layout: the pages that a call needs are gathered into pages that
//! can be read.

use std::collections::HashMap;

use candle_core::{DType, Result, Tensor};

use super::call::Call;
use super::error::{Backend, rename};
use super::lengths::PageRadii;
use super::memory::{layout, to_host};
use super::pools::split_shape;
use crate::tensor::Layout;

/// What a call reads in place of its pools.
struct Gathered {
    k: Tensor,
    v: Tensor,
    block_table: Tensor,
    /// `[pages, heads_k]`.
    radii: Option<Tensor>,
}

impl Call<'_> {
    /// As [`Call::run`], for pools whose heads are in pieces.
    pub(super) fn run_gathered(&self, block_table: &Tensor) -> Result<(Tensor, Tensor)> {
        let shape = split_shape(self.k, self.v)
            .map_err(|error| rename(error, &[("k_pages", "k"), ("v_pages", "v")]))?;
        self.lengths.check(self.q, &shape)?;
        let gathered = match Backend::of("q", self.q)? {
            Backend::Cpu => self.gather_on_cpu(block_table, shape),
            #[cfg(feature = "candle-cuda")]
            Backend::Cuda => self.gather_on_cuda(block_table, shape),
        }?;
        let radii = match (self.lengths.page_radii(), &gathered.radii) {
            (Some(of_pages), Some(radii)) => Some(PageRadii { radii, ..of_pages }),
            (of_pages, _) => of_pages,
        };
        let lengths = self.lengths.with_pages(&gathered.block_table, radii);
        Call {
            k: &gathered.k,
            v: &gathered.v,
            lengths,
            ..*self
        }
        .run()
    }

    /// Gathers the pages of keys that some query sees.
    fn gather_on_cpu(&self, block_table: &Tensor, shape: [usize; 4]) -> Result<Gathered> {
        let attention = self.attention(|slopes| to_host(&slopes.to_dtype(DType::F32)?))?;
        let lengths = self.lengths.to_host(self.q, &shape)?;
        let pages = Layout::contiguous("k", &shape)?;
        let q = layout("q", self.q.layout())?;
        let needed = lengths.needed_pages(&attention, q, pages)?;

        let (mut numbers, mut found) = (HashMap::new(), Vec::new());
        let mut entries = vec![u32::MAX; block_table.elem_count()];
        for (at, page) in needed {
            entries[at] = *numbers.entry(page).or_insert_with(|| {
                found.push(page as u32);
                found.len() as u32 - 1
            });
        }
        let device = self.q.device();
        let block_table = Tensor::from_vec(entries, block_table.shape(), device)?;
        let count = found.len();
        let pages = Tensor::from_vec(found, count, device)?;
        self.gather(&pages, shape, block_table)
    }

    /// The pages of these numbers, u32.
    fn gather(
        &self,
        pages: &Tensor,
        [_, page_size, heads_k, head_dim]: [usize; 4],
        block_table: Tensor,
    ) -> Result<Gathered> {
        let count = pages.elem_count();
        let select = |pool: &Tensor| match count {
            0 => pool.narrow(0, 0, 0),
            _ => pool.contiguous()?.index_select(pages, 0),
        };
        let (k, v) = (select(self.k)?, select(self.v)?);
        let shape = (count, page_size, heads_k, head_dim);
        let radii = self.lengths.page_radii().map(|radii| select(radii.radii));
        Ok(Gathered {
            k: k.permute((0, 3, 1, 2, 4))?.contiguous()?.reshape(shape)?,
            v: v.permute((0, 3, 1, 2))?.contiguous()?,
            block_table,
            radii: radii.transpose()?,
        })
    }

    /// Gathers a page for each entry of the block table: which of them are needed is known on the device only.
    #[cfg(feature = "candle-cuda")]
    fn gather_on_cuda(&self, block_table: &Tensor, shape: [usize; 4]) -> Result<Gathered> {
        let [pages, rest @ ..] = shape;
        let entries = block_table.elem_count();
        let most = pages.max(entries) as u128 * rest.map(|n| n as u128).iter().product::<u128>();
        if most > u32::MAX.into() {
            let expected =
                "pages, and a block_table, of fewer than 2^32 elements: candle counts no further";
            return Err(crate::error::value("k", format!("{most} elements"), expected).into());
        }
        let last = match pages.checked_sub(1) {
            Some(last) if entries > 0 => last as u32,
            _ => {
                let none = Tensor::zeros(0, DType::U32, self.q.device())?;
                return self.gather(&none, shape, block_table.clone());
            }
        };
        // Entries that are no page, negative ones too, become the last page: as in the kernels, none leaves the pools.
        let numbers = super::cuda::page_numbers(block_table)?
            .flatten_all()?
            .minimum(last)?;
        let columns = Tensor::arange(0u32, entries as u32, self.q.device())?;
        self.gather(&numbers, shape, columns.reshape(block_table.shape())?)
    }
}
