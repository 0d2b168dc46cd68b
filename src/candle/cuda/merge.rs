//! Results in CUDA tensors, merged.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::cuda_backend::{CudaDType, CudaStorageSlice};
use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, CudaStorage, CustomOp2, Layout, Result, Shape, Storage, Tensor};
use half::{bf16, f16};

use super::{contiguous, error, from_start, view};
use crate::candle::memory::elsewhere;
use crate::cuda::{Element, Kernels, ViewMut};

pub(in crate::candle) fn merge_states(
    out: &Tensor,
    lse: &Tensor,
    other_out: &Tensor,
    other_lse: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let merged = Arc::new(Mutex::new(None));
    let op = Merge {
        lse: lse.clone(),
        other_lse: other_lse.contiguous()?,
        merged_lse: Arc::clone(&merged),
    };
    let out = out.apply_op2(other_out, op)?;
    let lse = merged.lock().unwrap_or_else(PoisonError::into_inner).take();
    Ok((out, lse.expect("`cuda_fwd` leaves it there")))
}

/// As on the CPU: an operation, so that a backward pass through it is an error.
struct Merge {
    lse: Tensor,
    /// Without gaps.
    other_lse: Tensor,
    merged_lse: Arc<Mutex<Option<Tensor>>>,
}

impl CustomOp2 for Merge {
    fn name(&self) -> &'static str {
        "flash-alibi-merge"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        Err(elsewhere())
    }

    fn cuda_fwd(
        &self,
        out: &CudaStorage,
        layout: &Layout,
        other_out: &CudaStorage,
        other_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let mut merged = copied(out, layout)?;
        let other = (other_out, other_layout);
        match merged.slice {
            CudaStorageSlice::F16(_) => self.launch::<f16>(&mut merged, layout.shape(), other),
            _ => self.launch::<bf16>(&mut merged, layout.shape(), other),
        }?;
        Ok((merged, layout.shape().clone()))
    }
}

impl Merge {
    fn launch<T: Element + CudaDType>(
        &self,
        out: &mut CudaStorage,
        shape: &Shape,
        (other_out, other_layout): (&CudaStorage, &Layout),
    ) -> Result<()> {
        let device = out.device.clone();
        let stream = device.cuda_stream();
        let kernels = Kernels::of(stream.context()).map_err(error)?;
        let rows = self.lse.elem_count();
        let (lse, lse_layout) = self.lse.storage_and_layout();
        let Storage::Cuda(lse) = &*lse else {
            return Err(elsewhere());
        };
        let mut lse = copied(lse, lse_layout)?;
        let (other_lse, layout) = self.other_lse.storage_and_layout();
        let other_lse = contiguous::<f32>(&other_lse, layout)?;
        let other_out = from_start::<T>(other_out, other_layout)?;
        kernels
            .merge_state(
                &stream,
                ViewMut::new(out.as_cuda_slice_mut::<T>()?, shape.dims())?,
                &mut lse.as_cuda_slice_mut::<f32>()?.slice_mut(..rows),
                view("other_out", &other_out, other_layout)?,
                &other_lse,
            )
            .map_err(error)?;
        let lse = Tensor::from_storage(
            Storage::Cuda(lse),
            self.lse.shape(),
            BackpropOp::none(),
            false,
        );
        *self
            .merged_lse
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(lse);
        Ok(())
    }
}

/// The elements of a tensor in memory of their own, of at least one.
fn copied(storage: &CudaStorage, layout: &Layout) -> Result<CudaStorage> {
    let shape = match layout.shape().elem_count() {
        0 => Shape::from(1),
        _ => layout.shape().clone(),
    };
    // SAFETY: all elements are written before anything reads them; there are none where one is left.
    let mut copy = unsafe { storage.device.alloc_uninit(&shape, storage.dtype())? };
    if layout.shape().elem_count() > 0 {
        storage.copy_strided_src(&mut copy, 0, layout)?;
    }
    Ok(copy)
}
