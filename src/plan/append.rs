//! The kernel of `kernels/append.cu`: new keys and values into the pages of a cache.

use super::{Dtype, Executor, Launch, MAX_ROWS, grid, strides};
use crate::error::{Error, Result};
use crate::kernels::{self, AppendParams, Params as _};
use crate::tensor::Layout;

const THREADS: usize = 256;
/// The elements that a thread copies.
const CHUNK: usize = 8;

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
        if k.batch.is_some() || !k.head_dim.is_multiple_of(CHUNK) || k.rows > MAX_ROWS {
            let expected =
                format!("[tokens, heads_k, a multiple of {CHUNK}], up to {MAX_ROWS} tokens");
            return Err(shape("k", k, expected));
        }
        let (heads, head_dim) = (k.heads, k.head_dim);
        if v.shape() != k.shape() {
            return Err(shape("v", v, format!("{:?}, as k", k.shape())));
        }
        let fits = |pages: &Layout| {
            let limits = pages.batch.unwrap_or(0) <= MAX_ROWS && pages.rows <= MAX_ROWS;
            pages.batch.is_some() && pages.heads == heads && pages.head_dim == head_dim && limits
        };
        if !fits(k_pages) {
            let expected = format!("[pages, page_size, {heads}, {head_dim}]");
            return Err(shape("k_pages", k_pages, expected));
        }
        if v_pages.shape() != k_pages.shape() {
            let expected = format!("{:?}, as k_pages", k_pages.shape());
            return Err(shape("v_pages", v_pages, expected));
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

        let mut append = Self {
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
        append.launch(k, &[("append", head_dim / CHUNK)])?;
        Ok(append)
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
        let kernel = match dtype {
            Dtype::F16 => "append_f16",
            Dtype::Bf16 => "append_bf16",
        };
        // The threads of a head are a power of two, so that none has parts of two warps.
        let threads = (k.head_dim / CHUNK).next_power_of_two();
        append.launch(k, &[("restart_radii", 1), (kernel, threads)])?;
        Ok(append)
    }

    /// Adds launches of kernels that have so many threads for each token and head.
    fn launch(&mut self, k: &Layout, kernels: &[(&'static str, usize)]) -> Result<()> {
        let slots = self.params.pages > 0 && self.params.page_size > 0;
        for &(kernel, threads) in kernels {
            let threads = k.rows.checked_mul(k.heads * threads);
            let blocks = threads.map(|threads| threads.div_ceil(THREADS));
            let grid = grid("k", k, &format!("{} elements", THREADS * CHUNK), blocks)?;
            if grid > 0 && slots {
                self.launches.push(Launch {
                    file: kernels::named("append").expect("the build has all kernels"),
                    kernel,
                    grid,
                    block: THREADS as u32,
                    shared_bytes: 0,
                });
            }
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
        for launch in &self.launches {
            // SAFETY: the caller vouches for the addresses.
            unsafe { executor.launch(launch, params.bytes()) }?;
        }
        Ok(())
    }
}
