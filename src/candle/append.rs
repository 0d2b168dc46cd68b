//! New keys and values into a paged cache.

use candle_core::{CpuStorage, DType, Result, Storage, Tensor, WithDType};
use half::{bf16, f16};

use super::error::{Backend, bad_dtype, bad_shape, check_device};
use super::lengths::PageRadii;
use super::memory::{
    Pool, address, check_pools, check_written_radii, elsewhere, pool, radii_of, shares, to_host,
    view, with_pools,
};
use crate::cpu::{self, Element};
use crate::error::Error;

/// Writes the keys and values of new tokens into the pools of a paged cache, in place.
///
/// k and v are `[tokens, heads_k, head_dim]`, `k_pages` and `v_pages` `[pages, page_size, heads_k, head_dim]` with
/// `page_size` a multiple of 8, all of one type and with any strides as long as the last dimension is contiguous.
/// `slot_mapping` is i64 `[tokens]`: token `t` goes to row `slot_mapping[t] % page_size` of page
/// `slot_mapping[t] / page_size`, and nowhere if that is negative: vLLM's convention for padding. Then
/// [`attend`](super::attend) reads the pages by [`Lengths::paged`](super::Lengths::paged):
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use flash_alibi::candle::{Lengths, append, attend};
/// use flash_alibi::{Attention, PagedCache};
///
/// # fn main() -> candle_core::Result<()> {
/// let device = Device::Cpu;
/// let (pages, page_size, heads, head_dim) = (8, 16, 4, 64);
/// let layer = Attention::new(heads, heads, head_dim).build()?;
/// let mut cache = PagedCache::new(pages, page_size)?; // for all layers
/// let shape = (pages, page_size, heads, head_dim); // of each layer
/// let k_pages = Tensor::zeros(shape, DType::F32, &device)?;
/// let v_pages = Tensor::zeros(shape, DType::F32, &device)?;
///
/// // A step of two sequences: one reads a prompt of 20 tokens, the other of 3; q, k and v are packed.
/// let sequences = [cache.create(), cache.create()];
/// let mut slots = cache.append(sequences[0], 20)?.slot_mapping;
/// slots.extend(cache.append(sequences[1], 3)?.slot_mapping);
/// let batch = cache.batch(&sequences)?;
/// let x = Tensor::randn(0f32, 1., (23, heads, head_dim), &device)?;
/// append(&x, &x, &k_pages, &v_pages, &Tensor::new(slots, &device)?)?;
///
/// let u32s = |x: &[i32]| Tensor::new(x.iter().map(|&x| x as u32).collect::<Vec<_>>(), &device);
/// let table = u32s(&batch.block_table)?.reshape((2, batch.max_pages_per_sequence))?;
/// let (used, seqlens) = (u32s(&batch.seqused_k)?, Tensor::new(&[0u32, 20, 23], &device)?);
/// let lengths = Lengths::paged(&table, &used).varlen_q(&seqlens, 20);
/// let (out, _) = attend(&layer, &x, &k_pages, &v_pages, lengths)?;
/// assert_eq!(out.dims(), x.dims());
/// # Ok(())
/// # }
/// ```
///
/// Every tensor that shares memory with a pool sees what is written. No gradient flows through it. On a CUDA device one
/// kernel is enqueued on the device's stream; slots are not read back, so a slot beyond the last page is left out there, and
/// which of two tokens with the same slot stays is not said.
///
/// # Errors
/// For tensors that do not fit each other, are of different types or on different devices, and for pools that share memory
/// with each other, or with k or v; on the CPU also for a slot that no page has, and for one that two tokens are to share.
/// Nothing is written then.
pub fn append(
    k: &Tensor,
    v: &Tensor,
    k_pages: &Tensor,
    v_pages: &Tensor,
    slot_mapping: &Tensor,
) -> Result<()> {
    Call {
        k,
        v,
        k_pages,
        v_pages,
        slot_mapping,
        radii: None,
    }
    .run()
}

/// As [`append`], for a cache that keeps how far its keys are from a centre: [`Lengths::radii`](super::Lengths::radii).
///
/// `centres` is f32 `[heads_k, head_dim]`, a vector for each head that stays the same while the cache has keys. Any is sound:
/// bounds are tightest around the mean key, and zeros do where it is not known. `radii` is f32 `[pages, heads_k]` without
/// gaps, of any content before, and written in place.
///
/// A page is filled from row 0 on, as by [`PagedCache`](crate::PagedCache): a token in row 0 begins its page's radii anew, and
/// every other raises them; a key that is overwritten counts until then. Where a page is copied
/// ([`Appended::copies`](crate::Appended::copies)), its row of `radii` must be copied too, as [`copy_pages`](super::copy_pages) does.
///
/// # Errors
/// As [`append`], also for centres and radii of another type or shape, and radii with gaps or in the memory of another tensor.
pub fn append_with_radii(
    k: &Tensor,
    v: &Tensor,
    k_pages: &Tensor,
    v_pages: &Tensor,
    slot_mapping: &Tensor,
    centres: &Tensor,
    radii: &Tensor,
) -> Result<()> {
    Call {
        k,
        v,
        k_pages,
        v_pages,
        slot_mapping,
        radii: Some(PageRadii { centres, radii }),
    }
    .run()
}

/// A call as it was made.
pub(super) struct Call<'a> {
    pub(super) k: &'a Tensor,
    pub(super) v: &'a Tensor,
    pub(super) k_pages: &'a Tensor,
    pub(super) v_pages: &'a Tensor,
    slot_mapping: &'a Tensor,
    pub(super) radii: Option<PageRadii<'a>>,
}

impl Call<'_> {
    fn run(&self) -> Result<()> {
        self.check()?;
        let backend = Backend::of("k", self.k)?;
        let others = [
            ("v", self.v),
            ("k_pages", self.k_pages),
            ("v_pages", self.v_pages),
        ];
        backend.check_dtypes(("k", self.k), &others)?;
        let pools = [self.k_pages, self.v_pages];
        let radii = self.radii.map(|of_pages| of_pages.radii);
        match backend {
            Backend::Cpu => {
                let slots = to_host(self.slot_mapping)?;
                with_pools(pools, radii, |k_pool, v_pool, radii| {
                    self.cpu(k_pool, v_pool, radii, &slots)
                })
            }
            #[cfg(feature = "candle-cuda")]
            Backend::Cuda => {
                let slots = self.slot_mapping.contiguous()?;
                with_pools(pools, radii, |k_pool, v_pool, radii| {
                    self.cuda(k_pool, v_pool, radii, &slots)
                })
            }
        }
    }

    /// Checks what does not depend on the device.
    fn check(&self) -> std::result::Result<(), Error> {
        let device = self.k.device().location();
        let floats = self
            .radii
            .map(|radii| [("centres", radii.centres), ("radii", radii.radii)]);
        for (argument, tensor) in [
            ("v", self.v),
            ("k_pages", self.k_pages),
            ("v_pages", self.v_pages),
            ("slot_mapping", self.slot_mapping),
        ]
        .into_iter()
        .chain(floats.into_iter().flatten())
        {
            check_device(argument, tensor.device().location(), (device, "k"))?;
        }
        let slots = self.slot_mapping;
        if slots.dtype() != DType::I64 {
            return Err(bad_dtype("slot_mapping", slots.dtype(), "dtype I64"));
        }
        if slots.rank() != 1 {
            return Err(bad_shape("slot_mapping", slots, "[tokens]".into()));
        }
        check_pools(self.k_pages, self.v_pages)?;
        let new = [("k", self.k), ("v", self.v)];
        for (argument, tensor) in new {
            if tensor.rank() != 3 {
                let (heads_k, head_dim) = (self.k_pages.dims()[2], self.k_pages.dims()[3]);
                let expected = format!("[tokens, {heads_k}, {head_dim}]");
                return Err(bad_shape(argument, tensor, expected));
            }
        }
        let pools = [("k_pages", self.k_pages), ("v_pages", self.v_pages)];
        for (argument, tensor) in new {
            for (name, pool) in pools {
                if address(tensor) == address(pool) {
                    return Err(shares(argument, name, "other memory than the pools'"));
                }
            }
        }
        let Some(of_pages) = self.radii else {
            return Ok(());
        };
        of_pages.check(self.k_pages)?;
        let ([k, v], [k_pages, v_pages]) = (new, pools);
        check_written_radii(of_pages.radii, &[k, v, k_pages, v_pages])?;
        for (name, tensor) in [k_pages, v_pages, ("radii", of_pages.radii)] {
            if address(of_pages.centres) == address(tensor) {
                return Err(shares("centres", name, "other memory than what is written"));
            }
        }
        Ok(())
    }

    fn cpu(
        &self,
        k_pool: &mut Pool<'_>,
        v_pool: &mut Pool<'_>,
        radii: Option<&mut Pool<'_>>,
        slots: &[i64],
    ) -> Result<()> {
        use CpuStorage::{BF16, F16, F32};
        let radii = match (self.radii, radii) {
            (Some(of_pages), Some(radii)) => {
                let radii = radii_of(radii, of_pages.radii)?;
                Some((to_host(of_pages.centres)?, radii))
            }
            _ => None,
        };
        match (k_pool, v_pool) {
            (Pool::Cpu(F32(k)), Pool::Cpu(F32(v))) => self.write::<f32>(k, v, radii, slots),
            (Pool::Cpu(F16(k)), Pool::Cpu(F16(v))) => self.write::<f16>(k, v, radii, slots),
            (Pool::Cpu(BF16(k)), Pool::Cpu(BF16(v))) => self.write::<bf16>(k, v, radii, slots),
            _ => Err(elsewhere()),
        }
    }

    fn write<T: Element + WithDType>(
        &self,
        k_pool: &mut [T],
        v_pool: &mut [T],
        radii: Option<(Vec<f32>, &mut [f32])>,
        slots: &[i64],
    ) -> Result<()> {
        let (k, k_layout) = self.k.storage_and_layout();
        let (v, v_layout) = self.v.storage_and_layout();
        let (Storage::Cpu(k), Storage::Cpu(v)) = (&*k, &*v) else {
            return Err(elsewhere());
        };
        let (k, v) = (
            view::<T>("k", (k, k_layout))?,
            view::<T>("v", (v, v_layout))?,
        );
        let k_pool = pool("k_pages", k_pool, self.k_pages)?;
        let v_pool = pool("v_pages", v_pool, self.v_pages)?;
        let written = match radii {
            None => cpu::append(k, v, k_pool, v_pool, slots),
            Some((centres, radii)) => {
                cpu::append_with_radii(k, v, k_pool, v_pool, slots, &centres, radii)
            }
        };
        Ok(written?)
    }
}
