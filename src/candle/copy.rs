//! Copies of pages within a paged cache.

use candle_core::{CpuStorage, DType, Result, Tensor, WithDType};
use half::{bf16, f16};

use super::error::{Backend, bad_dtype, bad_shape, check_device, rename};
use super::memory::{
    Pool, check_pools, check_written_radii, elsewhere, pool, radii_of, with_pools,
};
use crate::cpu::{self, Element, check_copies};
use crate::error::Error;

/// Copies whole pages within the pools of a paged cache, in place and in order: each pair from its first page to its second.
///
/// [`PagedCache::append`](crate::PagedCache::append) asks for it, by [`Appended::copies`](crate::Appended::copies), where
/// sequences that share a page diverge; make the copies in every layer before new tokens are written.
///
/// `k_pages` and `v_pages` are as in [`append`](super::append). A cache that keeps radii
/// ([`append_with_radii`](super::append_with_radii)) gives them too, `[pages, heads_k]`, and they are copied with the pages.
///
/// ```
/// use candle_core::{DType, Device, IndexOp, Tensor};
/// use flash_alibi::candle::copy_pages;
///
/// # fn main() -> candle_core::Result<()> {
/// let k_pages = Tensor::arange(0f32, 4., &Device::Cpu)?.reshape((4, 1, 1, 1))?;
/// let k_pages = k_pages.broadcast_as((4, 16, 2, 8))?.contiguous()?; // Page p is full of p.
/// let v_pages = Tensor::zeros((4, 16, 2, 8), DType::F32, &Device::Cpu)?;
/// copy_pages(&k_pages, &v_pages, None, &[(3, 0)])?;
/// assert_eq!(k_pages.i((0, 15, 1, 7))?.to_scalar::<f32>()?, 3.0);
/// # Ok(())
/// # }
/// ```
///
/// On a CUDA device the pairs are uploaded, and one kernel is enqueued on the device's stream.
///
/// # Errors
/// For tensors that do not fit each other, are of different types or on different devices, that share memory, for radii with
/// gaps, and for a page that the pools do not have. Nothing is written then.
pub fn copy_pages(
    k_pages: &Tensor,
    v_pages: &Tensor,
    radii: Option<&Tensor>,
    copies: &[(i32, i32)],
) -> Result<()> {
    let call = Call {
        k_pages,
        v_pages,
        radii,
        copies,
    };
    call.run()
}

/// A call as it was made.
pub(super) struct Call<'a> {
    pub(super) k_pages: &'a Tensor,
    pub(super) v_pages: &'a Tensor,
    pub(super) radii: Option<&'a Tensor>,
    pub(super) copies: &'a [(i32, i32)],
}

impl Call<'_> {
    fn run(&self) -> Result<()> {
        self.check()?;
        let backend = Backend::of("k_pages", self.k_pages)?;
        backend.check_dtypes(("k_pages", self.k_pages), &[("v_pages", self.v_pages)])?;
        let pools = [self.k_pages, self.v_pages];
        match backend {
            Backend::Cpu => with_pools(pools, self.radii, |k, v, radii| self.cpu(k, v, radii)),
            #[cfg(feature = "candle-cuda")]
            Backend::Cuda => with_pools(pools, self.radii, |k, v, radii| self.cuda(k, v, radii)),
        }
    }

    /// Checks what does not depend on the device.
    fn check(&self) -> std::result::Result<(), Error> {
        let device = (self.k_pages.device().location(), "k_pages");
        check_device("v_pages", self.v_pages.device().location(), device)?;
        check_pools(self.k_pages, self.v_pages)?;
        let [pages, heads_k] = [0, 2].map(|dim| self.k_pages.dims()[dim]);
        if let Some(radii) = self.radii {
            check_device("radii", radii.device().location(), device)?;
            if radii.dtype() != DType::F32 {
                return Err(bad_dtype("radii", radii.dtype(), "dtype F32"));
            }
            if radii.dims() != [pages, heads_k] {
                let expected = format!("[{pages}, {heads_k}]");
                return Err(bad_shape("radii", radii, expected));
            }
            let pools = [("k_pages", self.k_pages), ("v_pages", self.v_pages)];
            check_written_radii(radii, &pools)?;
        }
        check_copies(self.copies, pages)
    }

    fn cpu(
        &self,
        k_pool: &mut Pool<'_>,
        v_pool: &mut Pool<'_>,
        radii: Option<&mut Pool<'_>>,
    ) -> Result<()> {
        use CpuStorage::{BF16, F16, F32};
        match (k_pool, v_pool) {
            (Pool::Cpu(F32(k)), Pool::Cpu(F32(v))) => self.write::<f32>(k, v)?,
            (Pool::Cpu(F16(k)), Pool::Cpu(F16(v))) => self.write::<f16>(k, v)?,
            (Pool::Cpu(BF16(k)), Pool::Cpu(BF16(v))) => self.write::<bf16>(k, v)?,
            _ => return Err(elsewhere()),
        }
        if let (Some(locked), Some(radii)) = (radii, self.radii) {
            let heads_k = radii.dim(1)?;
            let radii = radii_of(locked, radii)?;
            for &(from, to) in self.copies {
                let from = from as usize * heads_k;
                radii.copy_within(from..from + heads_k, to as usize * heads_k);
            }
        }
        Ok(())
    }

    fn write<T: Element + WithDType>(&self, k_pool: &mut [T], v_pool: &mut [T]) -> Result<()> {
        for (argument, data, pages) in [
            ("k_pages", k_pool, self.k_pages),
            ("v_pages", v_pool, self.v_pages),
        ] {
            let copied = cpu::copy_pages(pool(argument, data, pages)?, self.copies);
            copied.map_err(|error| rename(error, &[("pool", argument)]))?;
        }
        Ok(())
    }
}
