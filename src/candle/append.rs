//! New keys and values into a paged cache.

use std::borrow::Cow;

use candle_core::{Result, Storage, Tensor, WithDType};

use super::error::{Backend, bad_shape, check_device};
use super::integers::{self, check_integers};
use super::lengths::PageRadii;
use super::memory::{
    Pool, address, check_written_radii, elsewhere, radii_of, shares, to_host, view,
};
use super::pools::{Locked, OnCpu, Pools, with_pools};
use crate::cpu::{self, Element, Memory};
use crate::error::Error;

/// Writes the keys and values of new tokens into the pools of a paged cache, in place.
///
/// k and v are `[tokens, heads_k, head_dim]` or `[batch, seqlen, heads_k, head_dim]`, `k_pages` and `v_pages`
/// `[pages, page_size, heads_k, head_dim]` with `page_size` a multiple of 8, all of one type and with any strides as long as
/// the last dimension is contiguous. [`CacheLayout`](super::CacheLayout) has other layouts of pools. `slot_mapping` is
/// `[tokens]` or `[batch, seqlen]`, I64, I32 or U32: token `t` goes to row `slot_mapping[t] % page_size` of page
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
/// kernel is enqueued on the device's stream, after conversions of slots that are not I64; slots are not read back, so a slot
/// beyond the last page is left out there, and which of two tokens with the same slot stays is not said.
///
/// # Errors
/// For tensors that do not fit each other, are of different types or on different devices, for pools that may have elements in
/// common, and for k or v in the memory of a pool; on the CPU also for a slot that no page has, and for one that two tokens
/// are to share. Nothing is written then.
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
#[derive(Clone, Copy)]
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
        let pools = self.check()?;
        let backend = Backend::of("k", self.k)?;
        let others = [
            ("v", self.v),
            ("k_pages", self.k_pages),
            ("v_pages", self.v_pages),
        ];
        backend.check_dtypes(("k", self.k), &others)?;
        let (k, v) = (tokens(self.k)?, tokens(self.v)?);
        let slots = self.slot_mapping.flatten_all()?;
        let call = Call {
            k: &k,
            v: &v,
            ..*self
        };
        let tensors = [self.k_pages, self.v_pages];
        let radii = self.radii.map(|of_pages| of_pages.radii);
        match backend {
            Backend::Cpu => {
                let slots = integers::read(&slots)?;
                with_pools(tensors, radii, |locked, radii| {
                    call.cpu(&pools, locked, radii, &slots)
                })
            }
            #[cfg(feature = "candle-cuda")]
            Backend::Cuda => {
                let slots = super::cuda::slots(&slots)?;
                with_pools(tensors, radii, |locked, radii| {
                    call.cuda(&pools, locked, radii, &slots)
                })
            }
        }
    }

    /// Checks what does not depend on the device.
    fn check(&self) -> std::result::Result<Pools, Error> {
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
        check_integers("slot_mapping", slots)?;
        let batched = self.k.rank() == 4 && slots.dims() == &self.k.dims()[..2];
        if slots.rank() != 1 && !batched {
            let expected = match self.k.dims() {
                [batch, seqlen, _, _] => format!("[tokens] or [{batch}, {seqlen}]"),
                _ => "[tokens]".into(),
            };
            return Err(bad_shape("slot_mapping", slots, expected));
        }
        let found = Pools::new(self.k_pages, self.v_pages)?;
        let new = [("k", self.k), ("v", self.v)];
        for (argument, tensor) in new {
            if !matches!(tensor.rank(), 3 | 4) {
                let (heads_k, head_dim) = (found.pages.heads, found.pages.head_dim);
                let expected = format!("[tokens, {heads_k}, {head_dim}]");
                return Err(bad_shape(argument, tensor, expected));
            }
        }
        if self.v.rank() != self.k.rank() || (self.k.rank() == 4 && self.v.dims() != self.k.dims())
        {
            let expected = format!("{:?}, as k", self.k.dims());
            return Err(bad_shape("v", self.v, expected));
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
            return Ok(found);
        };
        of_pages.check([
            found.pages.batch.unwrap_or(0),
            found.pages.heads,
            found.pages.head_dim,
        ])?;
        let ([k, v], [k_pages, v_pages]) = (new, pools);
        check_written_radii(of_pages.radii, &[k, v, k_pages, v_pages])?;
        for (name, tensor) in [k_pages, v_pages, ("radii", of_pages.radii)] {
            if address(of_pages.centres) == address(tensor) {
                return Err(shares("centres", name, "other memory than what is written"));
            }
        }
        Ok(found)
    }

    fn cpu(
        &self,
        pools: &Pools,
        locked: Locked<'_, '_, '_>,
        radii: Option<&mut Pool<'_>>,
        slots: &[i64],
    ) -> Result<()> {
        let radii = match (self.radii, radii) {
            (Some(of_pages), Some(radii)) => {
                let radii = radii_of(radii, of_pages.radii)?;
                Some((to_host(of_pages.centres)?, radii))
            }
            _ => None,
        };
        match locked.on_cpu()? {
            OnCpu::F32(memory) => self.write(pools, memory, radii, slots),
            OnCpu::F16(memory) => self.write(pools, memory, radii, slots),
            OnCpu::BF16(memory) => self.write(pools, memory, radii, slots),
        }
    }

    fn write<T: Element + WithDType>(
        &self,
        pools: &Pools,
        memory: Memory<'_, T>,
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
        let mut pools = cpu::Pools::of_parts(memory, pools.parts, pools.pages)?;
        let written = match radii {
            None => pools.append(k, v, slots),
            Some((centres, radii)) => pools.append_with_radii(k, v, slots, &centres, radii),
        };
        Ok(written?)
    }
}

/// New keys or values as `[tokens, heads_k, head_dim]`: a copy only where batches do not lie one after the other.
fn tokens(new: &Tensor) -> Result<Cow<'_, Tensor>> {
    Ok(match *new.dims() {
        [1, _, _, _] => Cow::Owned(new.squeeze(0)?),
        [_, 1, _, _] => Cow::Owned(new.squeeze(1)?),
        [_, _, _, _] => Cow::Owned(new.flatten(0, 1)?),
        _ => Cow::Borrowed(new),
    })
}
