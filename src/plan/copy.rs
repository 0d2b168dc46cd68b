//! The kernel of `copy_pages.cu`: pages of a cache are copied within it.

use super::append::check_pages;
use super::launch::{self, Executor, Launch};
use super::moving;
use super::sizes::{MAX_ROWS, grid, strides};
use crate::error::{Error, Result, value};
use crate::kernels::{CopyPagesParams, Params as _};
use crate::tensor::Layout;

/// What a copy of pages launches.
#[derive(Debug, Clone)]
pub struct CopyPages {
    launches: Vec<Launch>,
    params: CopyPagesParams,
}

/// Where the tensors of a copy lie on the device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CopyPagesAddresses {
    /// i64 `[copies, 2]`: from which page to which, in this order, as [`crate::cpu::copy_pages`] has them. A pair with a page
    /// that the cache does not have is left out.
    pub copies: u64,
    /// The first element of the pages of keys.
    pub k_pages: u64,
    /// The first element of the pages of values.
    pub v_pages: u64,
    /// f32 `[pages, heads_k]`: copied with the pages; 0 where the cache has none.
    pub radii: u64,
}

impl CopyPages {
    /// Plans so many copies within pages `[pages, page_size, heads_k, head_dim]` of elements of 16 bits.
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::Strides`] for tensors that are no such pages, do not fit each other, overlap, or have a
    /// head_dim that is no multiple of 8, and [`Error::Value`] for more than 2^31 copies.
    pub fn new(copies: usize, k_pages: &Layout, v_pages: &Layout) -> Result<Self> {
        check_pages(k_pages, v_pages, None)?;
        let copy = &moving().copy_pages;
        if !k_pages.head_dim.is_multiple_of(copy.elements) {
            return Err(Error::Shape {
                argument: "k_pages",
                found: k_pages.shape(),
                expected: format!(
                    "[pages, page_size, heads_k, a multiple of {}]",
                    copy.elements
                ),
            });
        }
        if copies > MAX_ROWS {
            return Err(value("copies", copies, format!("at most {MAX_ROWS}")));
        }
        // A thread has its part of a page in each copy, so that copies are in order. Radii come after K and V.
        let heads = k_pages.heads;
        let threads = (heads.checked_mul(k_pages.head_dim / copy.elements))
            .and_then(|n| n.checked_mul(k_pages.rows))
            .and_then(|n| n.checked_mul(2)?.checked_add(heads));
        let blocks = threads.map(|threads| threads.div_ceil(copy.kernel.threads as usize));
        let part = format!("{} threads", copy.kernel.threads);
        let grid = grid("k_pages", k_pages, &part, blocks)?;
        let some = grid > 0 && copies > 0 && k_pages.batch != Some(0);
        Ok(Self {
            launches: some
                .then(|| Launch::new(&copy.kernel, grid))
                .into_iter()
                .collect(),
            params: CopyPagesParams {
                k_page_strides: strides(k_pages),
                v_page_strides: strides(v_pages),
                pages: k_pages.batch.unwrap_or(0) as i64,
                count: copies as i32,
                page_size: k_pages.rows as i32,
                heads_k: heads as i32,
                head_dim: k_pages.head_dim as i32,
                ..CopyPagesParams::default()
            },
        })
    }

    /// The launches, in order; none where there is nothing to copy.
    pub fn launches(&self) -> &[Launch] {
        &self.launches
    }

    /// Launches everything, in order.
    ///
    /// # Errors
    /// The executor's.
    ///
    /// # Safety
    /// As [`Executor::launch`]: the addresses are those of the tensors that were planned.
    pub unsafe fn run<E: Executor>(
        &self,
        executor: &E,
        addresses: &CopyPagesAddresses,
    ) -> std::result::Result<(), E::Error> {
        let params = CopyPagesParams {
            copies: addresses.copies,
            k_pages: addresses.k_pages,
            v_pages: addresses.v_pages,
            radii: addresses.radii,
            ..self.params
        };
        // SAFETY: the caller vouches for the addresses.
        unsafe { launch::run(executor, &self.launches, params.bytes()) }
    }
}
