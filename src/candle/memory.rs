//! The memory of tensors: read from the CPU, viewed, or locked for writing.

use std::cell::RefCell;
use std::ptr;

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Storage, Tensor, WithDType};

use crate::error::{Error, value};
use crate::tensor::{self, View};

pub(super) type Input<'a> = (&'a CpuStorage, &'a Layout);

/// The elements of a tensor on the CPU.
pub(super) fn to_host<T: WithDType>(tensor: &Tensor) -> Result<Vec<T>> {
    if tensor.elem_count() == 0 {
        return Ok(Vec::new()); // `to_vec1` panics on an empty slice that starts past the end of its storage.
    }
    tensor.flatten_all()?.to_vec1()
}

pub(super) fn view<'a, T: WithDType>(
    argument: &'static str,
    (storage, at): Input<'a>,
) -> Result<View<'a, T>> {
    let data = storage.as_slice::<T>()?;
    let data = data.get(at.start_offset()..).unwrap_or_default();
    let layout = layout(argument, at)?;
    layout.check_buffer(argument, data.len())?;
    Ok(View { data, layout })
}

/// A pool, or radii, that candle has locked for writing.
pub(super) enum Pool<'a> {
    Cpu(&'a mut CpuStorage),
    #[cfg(feature = "candle-cuda")]
    Cuda(&'a mut candle_core::CudaStorage),
}

/// Which memory a tensor is in.
pub(super) fn address(tensor: &Tensor) -> *const Storage {
    ptr::from_ref(&*tensor.storage_and_layout().0)
}

pub(super) fn layout(
    argument: &'static str,
    at: &Layout,
) -> std::result::Result<tensor::Layout, Error> {
    tensor::Layout::new(argument, at.dims(), at.stride())
}

/// Gives a tensor's storage to write to: candle does that for operations only.
pub(super) fn lend(tensor: &Tensor, write: impl FnMut(&mut Pool<'_>) -> Result<()>) -> Result<()> {
    tensor.inplace_op1(&Lent(RefCell::new(write)))
}

struct Lent<F>(RefCell<F>);

impl<F: FnMut(&mut Pool<'_>) -> Result<()>> InplaceOp1 for Lent<F> {
    fn name(&self) -> &'static str {
        "flash-alibi-in-place"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> Result<()> {
        (self.0.borrow_mut())(&mut Pool::Cpu(storage))
    }

    #[cfg(feature = "candle-cuda")]
    fn cuda_fwd(&self, storage: &mut candle_core::CudaStorage, _: &Layout) -> Result<()> {
        (self.0.borrow_mut())(&mut Pool::Cuda(storage))
    }
}

/// Checks radii that are written while the tensors of these names are read or written.
pub(super) fn check_written_radii(
    radii: &Tensor,
    others: &[(&str, &Tensor)],
) -> std::result::Result<(), Error> {
    if let Some((name, _)) = (others.iter()).find(|(_, other)| address(other) == address(radii)) {
        return Err(shares("radii", name, "memory of their own"));
    }
    let at = radii.layout();
    match at.is_contiguous() {
        true => Ok(()),
        false => Err(Error::Strides {
            argument: "radii",
            found: at.stride().to_vec(),
            expected: "those of a tensor without gaps".into(),
        }),
    }
}

pub(super) fn shares(argument: &'static str, of: &str, expected: &str) -> Error {
    let found = format!("a tensor in the memory of {of}");
    value(argument, found, expected)
}

/// Radii on the CPU, from the tensor's first element on.
pub(super) fn radii_of<'a>(locked: &'a mut Pool<'_>, radii: &Tensor) -> Result<&'a mut [f32]> {
    let Pool::Cpu(CpuStorage::F32(data)) = locked else {
        return Err(elsewhere());
    };
    let start = radii.layout().start_offset();
    let data = data.get_mut(start..).unwrap_or_default();
    Ok(data.get_mut(..radii.elem_count()).unwrap_or_default())
}

/// What the checks before a lock leave out.
pub(super) fn elsewhere() -> candle_core::Error {
    candle_core::Error::Msg("memory is on another device, or of another type, than the call".into())
}
