//! The kernels of `append.cu`: new keys and values into the pages of a cache.

use super::launch::{self, Executor, Launch};
use super::sizes::{MAX_ROWS, grid, strides};
use super::{Dtype, check_head_dim, moving};
use crate::error::{Error, Result};
use crate::kernels::{AppendParams, Kernel, Params as _};
use crate::tensor::Layout;

/// What an append launches.
#[derive(Debug, Clone)]
pub struct Append {
    launches: Vec<Launch>,
    params: AppendParams,
}

/// Where the tensors of an append lie on the device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AppendAddresses {
    /// The first element of the new keys.
    pub k: u64,
    /// The first element of the new values.
    pub v: u64,
    /// The first element of the pages of keys.
    pub k_pages: u64,
    /// The first element of the pages of values.
    pub v_pages: u64,
    /// i64 `[tokens]`: `page * page_size + row` for each token. One whose slot is negative, or beyond the last page, is left
    /// out. No two tokens have the same slot.
    pub slot_mapping: u64,
    /// f32 `[heads_k, head_dim]`, for [`Append::with_radii`].
    pub centres: u64,
    /// f32 `[pages, heads_k]`, likewise.
    pub radii: u64,
}

impl Append {
    /// Plans to write `[tokens, heads_k, head_dim]` into pages `[pages, page_size, heads_k, head_dim]`. The type of the
    /// elements does not matter, but that they have 16 bits.
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::Strides`] for tensors that do not fit each other, pages that overlap, a head_dim that is
    /// no multiple of 8, and more than 2^31 tokens or blocks.
    pub fn new(k: &Layout, v: &Layout, k_pages: &Layout, v_pages: &Layout) -> Result<Self> {
        let shape = |argument, found: &Layout, expected: String| Error::Shape {
            argument,
            found: found.shape(),
            expected,
        };
        let append = &moving().append;
        let chunk = append.elements;
        if k.batch.is_some() || !k.head_dim.is_multiple_of(chunk) || k.rows > MAX_ROWS {
            let expected =
                format!("[tokens, heads_k, a multiple of {chunk}], up to {MAX_ROWS} tokens");
            return Err(shape("k", k, expected));
        }
        let (heads, head_dim) = (k.heads, k.head_dim);
        if v.shape() != k.shape() {
            return Err(shape("v", v, format!("{:?}, as k", k.shape())));
        }
        check_pages(k_pages, v_pages, Some((heads, head_dim)))?;

        let mut plan = Self {
            launches: Vec::new(),
            params: AppendParams {
                k_strides: strides(k),
                v_strides: strides(v),
                k_page_strides: strides(k_pages),
                v_page_strides: strides(v_pages),
                pages: k_pages.batch.unwrap_or(0) as i64,
                page_size: k_pages.rows as i32,
                tokens: k.rows as i32,
                heads_k: heads as i32,
                head_dim: head_dim as i32,
                ..AppendParams::default()
            },
        };
        plan.launch(k, &append.kernel, head_dim / chunk)?;
        Ok(plan)
    }

    /// As [`Append::new`], for a cache that keeps for each page and head how far its keys are from the head's centre: a
    /// token in row 0 of a page begins it anew, others raise it. The norms are rounded up.
    ///
    /// # Errors
    /// As [`Append::new`].
    pub fn with_radii(
        dtype: Dtype,
        k: &Layout,
        v: &Layout,
        k_pages: &Layout,
        v_pages: &Layout,
    ) -> Result<Self> {
        let mut append = Self::new(k, v, k_pages, v_pages)?;
        append.launches.clear();
        let (restart, raise) = (&moving().restart_radii, &moving().raise_radii);
        append.launch(k, &restart.kernel, 1)?;
        // The threads of a head are a power of two, so that none has parts of two warps.
        let threads = (k.head_dim / raise.elements).next_power_of_two();
        append.launch(k, raise.kernel.of(dtype), threads)?;
        Ok(append)
    }

    /// Adds the launch of a kernel that has so many threads for each token and head.
    fn launch(&mut self, k: &Layout, kernel: &Kernel, threads: usize) -> Result<()> {
        let slots = self.params.pages > 0 && self.params.page_size > 0;
        let threads = (k.heads.checked_mul(threads)).and_then(|n| n.checked_mul(k.rows));
        let blocks = threads.map(|threads| threads.div_ceil(kernel.threads as usize));
        let part = format!("{} threads", kernel.threads);
        let grid = grid("k", k, &part, blocks)?;
        if grid > 0 && slots {
            self.launches.push(Launch::new(kernel, grid));
        }
        Ok(())
    }

    /// The launches, in order; none where there is nothing to write.
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
        addresses: &AppendAddresses,
    ) -> std::result::Result<(), E::Error> {
        let params = AppendParams {
            k: addresses.k,
            v: addresses.v,
            k_pages: addresses.k_pages,
            v_pages: addresses.v_pages,
            slot_mapping: addresses.slot_mapping,
            centres: addresses.centres,
            radii: addresses.radii,
            ..self.params
        };
        // SAFETY: the caller vouches for the addresses.
        unsafe { launch::run(executor, &self.launches, params.bytes()) }
    }
}

/// Checks pools `[pages, page_size, heads_k, head_dim]`: of these heads, if any are given.
pub(super) fn check_pages(
    k_pages: &Layout,
    v_pages: &Layout,
    heads: Option<(usize, usize)>,
) -> Result<()> {
    let (heads_k, head_dim) = heads.unwrap_or((k_pages.heads, k_pages.head_dim));
    check_head_dim(head_dim)?;
    let limits = k_pages.batch.unwrap_or(0) <= MAX_ROWS && k_pages.rows <= MAX_ROWS;
    let fits = (k_pages.heads, k_pages.head_dim) == (heads_k, head_dim);
    if k_pages.batch.is_none() || !limits || !fits {
        return Err(Error::Shape {
            argument: "k_pages",
            found: k_pages.shape(),
            expected: match heads {
                Some(_) => format!("[pages, page_size, {heads_k}, {head_dim}]"),
                None => "[pages, page_size, heads_k, head_dim]".into(),
            },
        });
    }
    if v_pages.shape() != k_pages.shape() {
        return Err(Error::Shape {
            argument: "v_pages",
            found: v_pages.shape(),
            expected: format!("{:?}, as k_pages", k_pages.shape()),
        });
    }
    for (argument, pages) in [("k_pages", k_pages), ("v_pages", v_pages)] {
        if !pages.is_injective() {
            return Err(Error::Strides {
                argument,
                found: pages.strides(),
                expected: "strides that keep the elements apart".into(),
            });
        }
    }
    Ok(())
}
