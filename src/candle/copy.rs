//! Copies of pages within a paged cache.

use candle_core::{DType, Result, Tensor};

use super::error::{Backend, bad_dtype, bad_shape, check_device};
use super::memory::{Pool, check_written_radii, radii_of};
use super::pools::{Locked, OnCpu, Pools, with_pools};
use crate::cpu::{self, Element, Memory, check_copies};
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
/// For tensors that do not fit each other, are of different types or on different devices, that may have elements in common, for
/// radii with gaps, and for a page that the pools do not have. Nothing is written then.
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
        let pools = self.check()?;
        let backend = Backend::of("k_pages", self.k_pages)?;
        backend.check_dtypes(("k_pages", self.k_pages), &[("v_pages", self.v_pages)])?;
        let tensors = [self.k_pages, self.v_pages];
        match backend {
            Backend::Cpu => with_pools(tensors, self.radii, |locked, radii| {
                self.cpu(&pools, locked, radii)
            }),
            #[cfg(feature = "candle-cuda")]
            Backend::Cuda => with_pools(tensors, self.radii, |locked, radii| {
                self.cuda(&pools, locked, radii)
            }),
        }
    }

    /// Checks what does not depend on the device.
    fn check(&self) -> std::result::Result<Pools, Error> {
        let device = (self.k_pages.device().location(), "k_pages");
        check_device("v_pages", self.v_pages.device().location(), device)?;
        let found = Pools::new(self.k_pages, self.v_pages)?;
        let (pages, heads_k) = (found.pages.batch.unwrap_or(0), found.pages.heads);
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
        check_copies(self.copies, pages)?;
        Ok(found)
    }

    fn cpu(
        &self,
        pools: &Pools,
        locked: Locked<'_, '_, '_>,
        radii: Option<&mut Pool<'_>>,
    ) -> Result<()> {
        match locked.on_cpu()? {
            OnCpu::F32(memory) => self.write(pools, memory)?,
            OnCpu::F16(memory) => self.write(pools, memory)?,
            OnCpu::BF16(memory) => self.write(pools, memory)?,
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

    fn write<T: Element>(&self, pools: &Pools, memory: Memory<'_, T>) -> Result<()> {
        let mut pools = cpu::Pools::of_parts(memory, pools.parts, pools.pages)?;
        Ok(pools.copy_pages(self.copies)?)
    }
}
