//! New keys and values into a paged cache.

use std::cell::RefCell;
use std::ptr;

use candle_core::{
    CpuStorage, DType, DeviceLocation, InplaceOp1, Layout, Result, Storage, Tensor, WithDType,
};
use half::{bf16, f16};

use super::{bad_dtype, bad_shape, check_device, no_path, rename, to_host, view};
use crate::cpu::{self, Element};
use crate::error::{Error, value};
use crate::tensor::{self, ViewMut};

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
    let call = Call {
        k,
        v,
        k_pages,
        v_pages,
        slot_mapping,
    };
    call.check()?;
    match k.device().location() {
        DeviceLocation::Cpu => {
            call.check_dtypes(
                &[DType::F16, DType::BF16, DType::F32],
                "dtype F16, BF16 or F32",
            )?;
            let slots = to_host(slot_mapping)?;
            call.with_pools(|k_pool, v_pool| call.cpu(k_pool, v_pool, &slots))
        }
        #[cfg(feature = "candle-cuda")]
        DeviceLocation::Cuda { .. } => {
            let expected = "dtype F16 or BF16 on a CUDA device";
            call.check_dtypes(&[DType::F16, DType::BF16], expected)?;
            let slots = slot_mapping.contiguous()?;
            call.with_pools(|k_pool, v_pool| call.cuda(k_pool, v_pool, &slots))
        }
        #[cfg(not(feature = "candle-cuda"))]
        DeviceLocation::Cuda { .. } => Err(no_path(
            "k",
            "CUDA",
            "a CPU tensor, or a build of flash-alibi with the feature `candle-cuda`",
        )
        .into()),
        DeviceLocation::Metal { .. } => Err(no_path("k", "Metal", "a CPU or CUDA tensor").into()),
    }
}

/// A call as it was made.
pub(super) struct Call<'a> {
    pub(super) k: &'a Tensor,
    pub(super) v: &'a Tensor,
    pub(super) k_pages: &'a Tensor,
    pub(super) v_pages: &'a Tensor,
    slot_mapping: &'a Tensor,
}

/// A pool that candle has locked for writing.
pub(super) enum Pool<'a> {
    Cpu(&'a mut CpuStorage),
    #[cfg(feature = "candle-cuda")]
    Cuda(&'a mut candle_core::CudaStorage),
}

impl Call<'_> {
    /// Checks what does not depend on the device.
    fn check(&self) -> std::result::Result<(), Error> {
        let device = self.k.device().location();
        for (argument, tensor) in [
            ("v", self.v),
            ("k_pages", self.k_pages),
            ("v_pages", self.v_pages),
            ("slot_mapping", self.slot_mapping),
        ] {
            check_device(argument, tensor.device().location(), (device, "k"))?;
        }
        let slots = self.slot_mapping;
        if slots.dtype() != DType::I64 {
            return Err(bad_dtype("slot_mapping", slots.dtype(), "dtype I64"));
        }
        if slots.rank() != 1 {
            return Err(bad_shape("slot_mapping", slots, "[tokens]".into()));
        }
        if self.v_pages.dims() != self.k_pages.dims() {
            let expected = format!("{:?}, as k_pages", self.k_pages.dims());
            return Err(bad_shape("v_pages", self.v_pages, expected));
        }
        for (argument, pool) in [("k_pages", self.k_pages), ("v_pages", self.v_pages)] {
            layout(argument, pool.layout())?.check_injective(argument)?;
        }
        // Also what keeps the locks apart.
        let shares = |argument, tensor, of: &str| {
            let found = format!("a tensor in the memory of {of}");
            Err(value(argument, found, tensor))
        };
        let [k, v, k_pages, v_pages] = [self.k, self.v, self.k_pages, self.v_pages].map(address);
        if v_pages == k_pages {
            return shares("v_pages", "memory of its own", "k_pages");
        }
        for (argument, tensor) in [("k", k), ("v", v)] {
            for (name, pool) in [("k_pages", k_pages), ("v_pages", v_pages)] {
                if tensor == pool {
                    return shares(argument, "other memory than the pools'", name);
                }
            }
        }
        Ok(())
    }

    fn check_dtypes(&self, allowed: &[DType], expected: &str) -> std::result::Result<(), Error> {
        let dtype = self.k.dtype();
        if !allowed.contains(&dtype) {
            return Err(bad_dtype("k", dtype, expected));
        }
        for (argument, tensor) in [
            ("v", self.v),
            ("k_pages", self.k_pages),
            ("v_pages", self.v_pages),
        ] {
            if tensor.dtype() != dtype {
                let expected = format!("dtype {dtype:?}, as k");
                return Err(bad_dtype(argument, tensor.dtype(), &expected));
            }
        }
        Ok(())
    }

    /// Locks both pools, the keys' first.
    fn with_pools(
        &self,
        mut write: impl FnMut(&mut Pool<'_>, &mut Pool<'_>) -> Result<()>,
    ) -> Result<()> {
        lend(self.k_pages, |k_pool| {
            lend(self.v_pages, |v_pool| write(k_pool, v_pool))
        })
    }

    fn cpu(&self, k_pool: &mut Pool<'_>, v_pool: &mut Pool<'_>, slots: &[i64]) -> Result<()> {
        use CpuStorage::{BF16, F16, F32};
        match (k_pool, v_pool) {
            (Pool::Cpu(F32(k)), Pool::Cpu(F32(v))) => self.write::<f32>(k, v, slots),
            (Pool::Cpu(F16(k)), Pool::Cpu(F16(v))) => self.write::<f16>(k, v, slots),
            (Pool::Cpu(BF16(k)), Pool::Cpu(BF16(v))) => self.write::<bf16>(k, v, slots),
            _ => candle_core::bail!("a call on CPU tensors was given other pools"),
        }
    }

    fn write<T: Element + WithDType>(
        &self,
        k_pool: &mut [T],
        v_pool: &mut [T],
        slots: &[i64],
    ) -> Result<()> {
        let (k, k_layout) = self.k.storage_and_layout();
        let (v, v_layout) = self.v.storage_and_layout();
        let (Storage::Cpu(k), Storage::Cpu(v)) = (&*k, &*v) else {
            candle_core::bail!("a call on CPU tensors was given another tensor")
        };
        let (k, v) = (
            view::<T>("k", (k, k_layout))?,
            view::<T>("v", (v, v_layout))?,
        );
        let k_pool = pool("k_pages", k_pool, self.k_pages)?;
        let v_pool = pool("v_pages", v_pool, self.v_pages)?;
        let written = cpu::append(k, v, k_pool, v_pool, slots);
        Ok(written
            .map_err(|error| rename(error, &[("k_pool", "k_pages"), ("v_pool", "v_pages")]))?)
    }
}

/// Which memory a tensor is in.
fn address(tensor: &Tensor) -> *const Storage {
    ptr::from_ref(&*tensor.storage_and_layout().0)
}

fn pool<'a, T>(
    argument: &'static str,
    data: &'a mut [T],
    tensor: &Tensor,
) -> std::result::Result<ViewMut<'a, T>, Error> {
    let at = tensor.layout();
    let data = data.get_mut(at.start_offset()..).unwrap_or_default();
    let layout = layout(argument, at)?;
    layout.check_buffer(argument, data.len())?;
    Ok(ViewMut { data, layout })
}

pub(super) fn layout(
    argument: &'static str,
    at: &Layout,
) -> std::result::Result<tensor::Layout, Error> {
    tensor::Layout::new(argument, at.dims(), at.stride())
}

/// Gives a tensor's storage to write to: candle does that for operations only.
fn lend(tensor: &Tensor, write: impl FnMut(&mut Pool<'_>) -> Result<()>) -> Result<()> {
    tensor.inplace_op1(&Lent(RefCell::new(write)))
}

struct Lent<F>(RefCell<F>);

impl<F: FnMut(&mut Pool<'_>) -> Result<()>> InplaceOp1 for Lent<F> {
    fn name(&self) -> &'static str {
        "flash-alibi-append"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> Result<()> {
        (self.0.borrow_mut())(&mut Pool::Cpu(storage))
    }

    #[cfg(feature = "candle-cuda")]
    fn cuda_fwd(&self, storage: &mut candle_core::CudaStorage, _: &Layout) -> Result<()> {
        (self.0.borrow_mut())(&mut Pool::Cuda(storage))
    }
}
