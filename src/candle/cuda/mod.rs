//! Calls on CUDA tensors: launched on their device's stream, without waiting for it.

mod attend;
mod integers;
mod merge;
mod pages;

pub(super) use integers::{page_numbers, slots};
pub(super) use merge::merge_states;

use candle_core::cuda_backend::{CudaDType, CudaDevice};
use candle_core::{CudaStorage, Layout, Result, Storage};
use cudarc::driver::{CudaSlice, CudaView, CudaViewMut, DeviceRepr, ValidAsZeroBits};

use super::error::{NAMES, rename};
use super::memory::{elsewhere, layout as layout_of};
use crate::cuda::{self, View};

/// A storage from an element on, to be written.
pub(super) fn from<T: CudaDType>(
    storage: &mut CudaStorage,
    start: usize,
) -> Result<CudaViewMut<'_, T>> {
    let data = storage.as_cuda_slice_mut::<T>()?;
    // A tensor of no elements may start past the end.
    let start = start.min(data.len());
    Ok(data.slice_mut(start..))
}

/// A tensor's storage from the tensor's first element on.
pub(super) fn from_start<'a, T: CudaDType>(
    storage: &'a CudaStorage,
    layout: &Layout,
) -> Result<CudaView<'a, T>> {
    let data = storage.as_cuda_slice::<T>()?;
    let part = data.try_slice(layout.start_offset()..);
    // A tensor of no elements may start past the end.
    Ok(part.unwrap_or_else(|| data.slice(..0)))
}

pub(super) fn view<'a, T>(
    argument: &'static str,
    part: &'a CudaView<'_, T>,
    layout: &Layout,
) -> Result<View<'a, T>> {
    let layout = layout_of(argument, layout)?;
    Ok(View::from_layout(argument, part, layout)?)
}

/// The elements of a contiguous tensor.
pub(super) fn contiguous<'a, T: CudaDType>(
    storage: &'a Storage,
    layout: &Layout,
) -> Result<CudaView<'a, T>> {
    let Storage::Cuda(storage) = storage else {
        return Err(elsewhere());
    };
    let count = layout.shape().elem_count();
    let part = from_start::<T>(storage, layout)?;
    Ok(part.slice(..count))
}

/// Memory of at least one element, since there is none of no elements.
pub(super) fn allocate<T: DeviceRepr + ValidAsZeroBits>(
    device: &CudaDevice,
    len: usize,
    zero: bool,
) -> Result<CudaSlice<T>> {
    match zero {
        true => device.alloc_zeros(len.max(1)),
        // SAFETY: kernels write all of a dense output, and what they read of a workspace, before anything can read it.
        false => unsafe { device.alloc(len.max(1)) },
    }
}

/// What does not fit is reported as on the CPU; the rest is CUDA's.
pub(super) fn error(error: cuda::Error) -> candle_core::Error {
    match error {
        cuda::Error::Argument(error) => rename(error, &NAMES).into(),
        error => candle_core::Error::Cuda(Box::new(error)),
    }
}
