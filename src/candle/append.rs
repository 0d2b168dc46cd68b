//! New keys and values into a paged cache.

use std::cell::RefCell;
use std::ptr;

use candle_core::{
    CpuStorage, DType, DeviceLocation, InplaceOp1, Layout, Result, Storage, Tensor, WithDType,
};
use half::{bf16, f16};

use super::lengths::PageRadii;
use super::{bad_dtype, bad_shape, check_device, no_path, to_host, view};
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
/// ([`Appended::copies`](crate::Appended::copies)), its row of `radii` must be copied too.
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

/// A pool, or radii, that candle has locked for writing.
pub(super) enum Pool<'a> {
    Cpu(&'a mut CpuStorage),
    #[cfg(feature = "candle-cuda")]
    Cuda(&'a mut candle_core::CudaStorage),
}

impl Call<'_> {
    fn run(&self) -> Result<()> {
        self.check()?;
        match self.k.device().location() {
            DeviceLocation::Cpu => {
                self.check_dtypes(
                    &[DType::F16, DType::BF16, DType::F32],
                    "dtype F16, BF16 or F32",
                )?;
                let slots = to_host(self.slot_mapping)?;
                self.with_pools(|k_pool, v_pool, radii| self.cpu(k_pool, v_pool, radii, &slots))
            }
            #[cfg(feature = "candle-cuda")]
            DeviceLocation::Cuda { .. } => {
                let expected = "dtype F16 or BF16 on a CUDA device";
                self.check_dtypes(&[DType::F16, DType::BF16], expected)?;
                let slots = self.slot_mapping.contiguous()?;
                self.with_pools(|k_pool, v_pool, radii| self.cuda(k_pool, v_pool, radii, &slots))
            }
            #[cfg(not(feature = "candle-cuda"))]
            DeviceLocation::Cuda { .. } => Err(no_path(
                "k",
                "CUDA",
                "a CPU tensor, or a build of flash-alibi with the feature `candle-cuda`",
            )
            .into()),
            DeviceLocation::Metal { .. } => {
                Err(no_path("k", "Metal", "a CPU or CUDA tensor").into())
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
        let Some(of_pages) = self.radii else {
            return Ok(());
        };
        of_pages.check(self.k_pages)?;
        let (centres, radii) = (address(of_pages.centres), address(of_pages.radii));
        for (name, tensor) in [
            ("k", k),
            ("v", v),
            ("k_pages", k_pages),
            ("v_pages", v_pages),
        ] {
            if radii == tensor {
                return shares("radii", "memory of their own", name);
            }
        }
        for (name, tensor) in [("k_pages", k_pages), ("v_pages", v_pages), ("radii", radii)] {
            if centres == tensor {
                return shares("centres", "other memory than what is written", name);
            }
        }
        let at = of_pages.radii.layout();
        match at.is_contiguous() {
            true => Ok(()),
            false => Err(Error::Strides {
                argument: "radii",
                found: at.stride().to_vec(),
                expected: "those of a tensor without gaps".into(),
            }),
        }
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

    /// Locks both pools, the keys' first, and the radii.
    fn with_pools(
        &self,
        mut write: impl FnMut(&mut Pool<'_>, &mut Pool<'_>, Option<&mut Pool<'_>>) -> Result<()>,
    ) -> Result<()> {
        lend(self.k_pages, |k_pool| {
            lend(self.v_pages, |v_pool| match self.radii {
                None => write(k_pool, v_pool, None),
                Some(of_pages) => lend(of_pages.radii, |radii| write(k_pool, v_pool, Some(radii))),
            })
        })
    }

    fn cpu(
        &self,
        k_pool: &mut Pool<'_>,
        v_pool: &mut Pool<'_>,
        radii: Option<&mut Pool<'_>>,
        slots: &[i64],
    ) -> Result<()> {
        use CpuStorage::{BF16, F16, F32};
        let other =
            || candle_core::Error::Msg("a call on CPU tensors was given other pools".into());
        let radii = match (self.radii, radii) {
            (None, _) => None,
            (Some(of_pages), Some(Pool::Cpu(F32(radii)))) => {
                let start = of_pages.radii.layout().start_offset();
                let radii = radii.get_mut(start..).unwrap_or_default();
                let count = of_pages.radii.elem_count();
                Some((
                    to_host(of_pages.centres)?,
                    radii.get_mut(..count).unwrap_or_default(),
                ))
            }
            _ => return Err(other()),
        };
        match (k_pool, v_pool) {
            (Pool::Cpu(F32(k)), Pool::Cpu(F32(v))) => self.write::<f32>(k, v, radii, slots),
            (Pool::Cpu(F16(k)), Pool::Cpu(F16(v))) => self.write::<f16>(k, v, radii, slots),
            (Pool::Cpu(BF16(k)), Pool::Cpu(BF16(v))) => self.write::<bf16>(k, v, radii, slots),
            _ => Err(other()),
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
            candle_core::bail!("a call on CPU tensors was given another tensor")
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
