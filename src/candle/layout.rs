//! Layouts of paged caches by name.

use candle_core::{Result, Tensor};

use super::error::bad_shape;
use crate::error::value;

/// The order of dimensions in the pools of a paged cache: it gives the views that [`append`](super::append),
/// [`attend`](super::attend) and [`copy_pages`](super::copy_pages) take. No element is copied.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use flash_alibi::candle::{CacheLayout, Lengths, append, attend};
///
/// # fn main() -> candle_core::Result<()> {
/// # let device = Device::Cpu;
/// let (pages, page_size, heads, head_dim) = (8, 16, 4, 64);
/// // Keys and values of a page side by side, heads before rows.
/// let kv = Tensor::zeros((pages, 2, heads, page_size, head_dim), DType::F32, &device)?;
/// let (k_pages, v_pages) = CacheLayout::Hnd.of_one(&kv, 1)?;
/// assert_eq!(k_pages.dims(), [pages, page_size, heads, head_dim]);
///
/// let x = Tensor::randn(0f32, 1., (1, heads, head_dim), &device)?; // One token, the first row of page 5.
/// append(&x, &x, &k_pages, &v_pages, &Tensor::new(&[5 * 16i64], &device)?)?;
/// let (table, used) = (Tensor::new(&[[5u32]], &device)?, Tensor::new(&[1u32], &device)?);
/// let layer = flash_alibi::Attention::new(heads, heads, head_dim).build()?;
/// attend(&layer, &x, &k_pages, &v_pages, Lengths::paged(&table, &used))?;
/// # Ok(())
/// # }
/// ```
///
/// vLLM's first layout, keys `[pages, heads_k, head_dim / x, page_size, x]` where `x` elements have 16 bytes, and values
/// `[pages, heads_k, head_dim, page_size]`, has no such views. On the CPU those functions take such tensors as they are: keys
/// of five dimensions say so. There `attend` first gathers the pages that it needs, in another layout. On a CUDA device
/// `attend` gathers all that the block table has room for, `copy_pages` is the same as ever, and `append` is an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum CacheLayout {
    /// `[pages, page_size, heads_k, head_dim]`: vLLM's and FlashAttention's, and this crate's own.
    Nhd,
    /// `[pages, heads_k, page_size, head_dim]`.
    Hnd,
}

impl CacheLayout {
    /// Pools of keys and of values that are tensors of their own, or views.
    ///
    /// # Errors
    /// For tensors that have not four dimensions.
    pub fn of(self, k_pages: &Tensor, v_pages: &Tensor) -> Result<(Tensor, Tensor)> {
        let view = |argument, pool: &Tensor| match (pool.rank(), self) {
            (4, Self::Nhd) => Ok(pool.clone()),
            (4, Self::Hnd) => pool.transpose(1, 2),
            _ => Err(bad_shape(argument, pool, self.dims("pages")).into()),
        };
        Ok((view("k_pages", k_pages)?, view("v_pages", v_pages)?))
    }

    /// Pools in one tensor: item 0 of its dimension `dim` is that of keys, item 1 that of values. In vLLM's `[2, pages, ...]`
    /// that is dimension 0, in FlashInfer's `[pages, 2, ...]` dimension 1.
    ///
    /// # Errors
    /// For a tensor that has not five dimensions, or not two items in that one, and for another dimension than 0 or 1.
    pub fn of_one(self, kv_pages: &Tensor, dim: usize) -> Result<(Tensor, Tensor)> {
        if dim > 1 {
            return Err(value("dim", dim, "0 or 1").into());
        }
        if kv_pages.rank() != 5 || kv_pages.dims()[dim] != 2 {
            let expected = match dim {
                0 => self.dims("2, pages"),
                _ => self.dims("pages, 2"),
            };
            return Err(bad_shape("kv_pages", kv_pages, expected).into());
        }
        let item = |n| kv_pages.narrow(dim, n, 1)?.squeeze(dim);
        self.of(&item(0)?, &item(1)?)
    }

    fn dims(self, first: &str) -> String {
        let rest = match self {
            Self::Nhd => "page_size, heads_k, head_dim",
            Self::Hnd => "heads_k, page_size, head_dim",
        };
        format!("[{first}, {rest}]")
    }
}
