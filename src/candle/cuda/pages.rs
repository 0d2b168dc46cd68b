//! Writing to the pages of a cache in CUDA tensors.

use candle_core::cuda_backend::CudaDType;
use candle_core::{CudaStorage, DType, Result, Storage, Tensor};
use half::{bf16, f16};

use super::{contiguous, error, from, from_start, view};
use crate::candle::memory::{Pool, elsewhere};
use crate::candle::pools::{Locked, Pools};
use crate::candle::{append, copy};
use crate::cuda::{self, Buffer, BufferMut, Element, Kernels, ViewMut};
use crate::error::value;
use crate::tensor::Part;

impl append::Call<'_> {
    pub(in crate::candle) fn cuda(
        &self,
        pools: &Pools,
        locked: Locked<'_, '_, '_>,
        radii: Option<&mut Pool<'_>>,
        slots: &Tensor,
    ) -> Result<()> {
        if pools.is_split() {
            let found = format!("shape {:?} on a CUDA device", self.k_pages.dims());
            let expected = "[pages, page_size, heads_k, head_dim]: heads in pieces are written on the CPU only";
            return Err(value("k_pages", found, expected).into());
        }
        match self.k.dtype() {
            DType::F16 => self.launch::<f16>(pools, locked, radii, slots),
            _ => self.launch::<bf16>(pools, locked, radii, slots),
        }
    }

    fn launch<T: Element + CudaDType>(
        &self,
        pools: &Pools,
        locked: Locked<'_, '_, '_>,
        radii: Option<&mut Pool<'_>>,
        slots: &Tensor,
    ) -> Result<()> {
        let [(k, k_layout), (v, v_layout), (slots, slots_layout)] =
            [self.k, self.v, slots].map(Tensor::storage_and_layout);
        let (Storage::Cuda(k), Storage::Cuda(v)) = (&*k, &*v) else {
            return Err(elsewhere());
        };
        let stream = k.device.cuda_stream();
        let kernels = Kernels::of(stream.context()).map_err(error)?;
        let (k, v) = (from_start::<T>(k, k_layout)?, from_start(v, v_layout)?);
        let (k, v) = (view("k", &k, k_layout)?, view("v", &v, v_layout)?);
        let slots = contiguous::<i64>(&slots, slots_layout)?;
        with_device_pools::<T>(locked, pools.parts, |pools| {
            let (Some(of_pages), Some(radii)) = (self.radii, radii) else {
                let appended = kernels.append(&stream, k, v, pools, &slots, None);
                return appended.map_err(error);
            };
            let centres = of_pages.centres.contiguous()?;
            let (centres, centres_layout) = centres.storage_and_layout();
            let centres = contiguous::<f32>(&centres, centres_layout)?;
            let mut radii = from::<f32>(on_cuda(radii)?, of_pages.radii.layout().start_offset())?;
            let mut radii = radii.slice_mut(..of_pages.radii.elem_count());
            let radii: Option<(&dyn Buffer<f32>, &mut dyn BufferMut<f32>)> =
                Some((&centres, &mut radii));
            let appended = kernels.append(&stream, k, v, pools, &slots, radii);
            appended.map_err(error)
        })
    }
}

impl copy::Call<'_> {
    pub(in crate::candle) fn cuda(
        &self,
        pools: &Pools,
        locked: Locked<'_, '_, '_>,
        radii: Option<&mut Pool<'_>>,
    ) -> Result<()> {
        match self.k_pages.dtype() {
            DType::F16 => self.launch::<f16>(pools, locked, radii),
            _ => self.launch::<bf16>(pools, locked, radii),
        }
    }

    fn launch<T: Element + CudaDType>(
        &self,
        pools: &Pools,
        locked: Locked<'_, '_, '_>,
        radii: Option<&mut Pool<'_>>,
    ) -> Result<()> {
        if self.copies.is_empty() {
            return Ok(()); // There is no memory of no elements.
        }
        let device = self.k_pages.device().as_cuda_device()?;
        let stream = device.cuda_stream();
        let kernels = Kernels::of(stream.context()).map_err(error)?;
        let copies: Vec<i64> = (self.copies.iter())
            .flat_map(|&(from, to)| [from, to].map(i64::from))
            .collect();
        let copies = device.clone_htod(&copies)?;
        with_device_pools::<T>(locked, pools.whole_pages()?, |pools| {
            let (Some(tensor), Some(radii)) = (self.radii, radii) else {
                let copied = kernels.copy_pages(&stream, &copies, pools, None);
                return copied.map_err(error);
            };
            let mut radii = from::<f32>(on_cuda(radii)?, tensor.layout().start_offset())?;
            let mut radii = radii.slice_mut(..tensor.elem_count());
            let copied = kernels.copy_pages(&stream, &copies, pools, Some(&mut radii));
            copied.map_err(error)
        })
    }
}

/// Locked pools as the kernels take them.
fn with_device_pools<T: Element + CudaDType>(
    locked: Locked<'_, '_, '_>,
    parts: [Part; 2],
    write: impl FnOnce(&mut cuda::Pools<'_, T>) -> Result<()>,
) -> Result<()> {
    match locked {
        Locked::Two(k_pool, v_pool) => {
            let mut k_part = from(on_cuda(k_pool)?, parts[0].start)?;
            let mut v_part = from(on_cuda(v_pool)?, parts[1].start)?;
            let k_pages = ViewMut::from_layout(["k_pages"; 2], &mut k_part, parts[0].layout)?;
            let v_pages = ViewMut::from_layout(["v_pages"; 2], &mut v_part, parts[1].layout)?;
            write(&mut cuda::Pools::new(k_pages, v_pages))
        }
        Locked::One(pool) => {
            let buffer = on_cuda(pool)?.as_cuda_slice_mut::<T>()?;
            let [k_pages, v_pages] = parts.map(|part| (part.start, part.layout));
            write(&mut cuda::Pools::of_one_buffer(buffer, k_pages, v_pages)?)
        }
    }
}

fn on_cuda<'a>(pool: &'a mut Pool<'_>) -> Result<&'a mut CudaStorage> {
    match pool {
        Pool::Cuda(storage) => Ok(storage),
        Pool::Cpu(_) => Err(elsewhere()),
    }
}
