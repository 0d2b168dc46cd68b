//! Writing to the pages of a cache in CUDA tensors.

use candle_core::cuda_backend::{CudaDType, CudaStorageSlice};
use candle_core::{CudaStorage, Result, Storage, Tensor};
use half::{bf16, f16};

use super::{contiguous, error, from_start, pool, view, view_mut};
use crate::candle::memory::{Pool, elsewhere};
use crate::candle::{append, copy};
use crate::cuda::{Buffer, BufferMut, Element, Kernels};

impl append::Call<'_> {
    pub(in crate::candle) fn cuda(
        &self,
        k_pool: &mut Pool<'_>,
        v_pool: &mut Pool<'_>,
        radii: Option<&mut Pool<'_>>,
        slots: &Tensor,
    ) -> Result<()> {
        let (k_pool, v_pool, radii) = on_cuda(k_pool, v_pool, radii)?;
        match k_pool.slice {
            CudaStorageSlice::F16(_) => self.launch::<f16>([k_pool, v_pool], radii, slots),
            _ => self.launch::<bf16>([k_pool, v_pool], radii, slots),
        }
    }

    fn launch<T: Element + CudaDType>(
        &self,
        [k_pool, v_pool]: [&mut CudaStorage; 2],
        radii: Option<&mut CudaStorage>,
        slots: &Tensor,
    ) -> Result<()> {
        let stream = k_pool.device.cuda_stream();
        let kernels = Kernels::of(stream.context()).map_err(error)?;
        let [(k, k_layout), (v, v_layout), (slots, slots_layout)] =
            [self.k, self.v, slots].map(Tensor::storage_and_layout);
        let (Storage::Cuda(k), Storage::Cuda(v)) = (&*k, &*v) else {
            return Err(elsewhere());
        };
        let (k, v) = (from_start::<T>(k, k_layout)?, from_start(v, v_layout)?);
        let slots = contiguous::<i64>(&slots, slots_layout)?;
        let mut k_pages = pool::<T>(k_pool, self.k_pages)?;
        let mut v_pages = pool::<T>(v_pool, self.v_pages)?;
        let (k, v) = (view("k", &k, k_layout)?, view("v", &v, v_layout)?);
        let k_pages = view_mut("k_pages", &mut k_pages, self.k_pages)?;
        let v_pages = view_mut("v_pages", &mut v_pages, self.v_pages)?;
        let (Some(of_pages), Some(radii)) = (self.radii, radii) else {
            let appended = kernels.append(&stream, k, v, k_pages, v_pages, &slots, None);
            return appended.map_err(error);
        };
        let centres = of_pages.centres.contiguous()?;
        let (centres, centres_layout) = centres.storage_and_layout();
        let centres = contiguous::<f32>(&centres, centres_layout)?;
        let mut radii = pool::<f32>(radii, of_pages.radii)?;
        let mut radii = radii.slice_mut(..of_pages.radii.elem_count());
        let radii: Option<(&dyn Buffer<f32>, &mut dyn BufferMut<f32>)> =
            Some((&centres, &mut radii));
        let appended = kernels.append(&stream, k, v, k_pages, v_pages, &slots, radii);
        appended.map_err(error)
    }
}

impl copy::Call<'_> {
    pub(in crate::candle) fn cuda(
        &self,
        k_pool: &mut Pool<'_>,
        v_pool: &mut Pool<'_>,
        radii: Option<&mut Pool<'_>>,
    ) -> Result<()> {
        let (k_pool, v_pool, radii) = on_cuda(k_pool, v_pool, radii)?;
        match k_pool.slice {
            CudaStorageSlice::F16(_) => self.launch::<f16>([k_pool, v_pool], radii),
            _ => self.launch::<bf16>([k_pool, v_pool], radii),
        }
    }

    fn launch<T: Element + CudaDType>(
        &self,
        [k_pool, v_pool]: [&mut CudaStorage; 2],
        radii: Option<&mut CudaStorage>,
    ) -> Result<()> {
        if self.copies.is_empty() {
            return Ok(()); // There is no memory of no elements.
        }
        let stream = k_pool.device.cuda_stream();
        let kernels = Kernels::of(stream.context()).map_err(error)?;
        let copies: Vec<i64> = (self.copies.iter())
            .flat_map(|&(from, to)| [from, to].map(i64::from))
            .collect();
        let copies = k_pool.device.clone_htod(&copies)?;
        let mut k_pages = pool::<T>(k_pool, self.k_pages)?;
        let mut v_pages = pool::<T>(v_pool, self.v_pages)?;
        let k_pages = view_mut("k_pages", &mut k_pages, self.k_pages)?;
        let v_pages = view_mut("v_pages", &mut v_pages, self.v_pages)?;
        let (Some(tensor), Some(radii)) = (self.radii, radii) else {
            let copied = kernels.copy_pages(&stream, &copies, k_pages, v_pages, None);
            return copied.map_err(error);
        };
        let mut radii = pool::<f32>(radii, tensor)?;
        let mut radii = radii.slice_mut(..tensor.elem_count());
        let copied = kernels.copy_pages(&stream, &copies, k_pages, v_pages, Some(&mut radii));
        copied.map_err(error)
    }
}

type OnCuda<'a> = (
    &'a mut CudaStorage,
    &'a mut CudaStorage,
    Option<&'a mut CudaStorage>,
);

fn on_cuda<'a>(
    k_pool: &'a mut Pool<'_>,
    v_pool: &'a mut Pool<'_>,
    radii: Option<&'a mut Pool<'_>>,
) -> Result<OnCuda<'a>> {
    let storage = |pool: &'a mut Pool<'_>| match pool {
        Pool::Cuda(storage) => Ok(&mut **storage),
        Pool::Cpu(_) => Err(elsewhere()),
    };
    let radii = radii.map(storage).transpose()?;
    Ok((storage(k_pool)?, storage(v_pool)?, radii))
}
