//! The memory of tensors: read from the CPU, viewed, or locked for writing.

use std::cell::RefCell;
use std::ptr;

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Storage, Tensor, WithDType};

use super::error::bad_shape;
use crate::error::{Error, value};
use crate::tensor::{self, View, ViewMut};

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

pub(super) fn pool<'a, T>(
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

/// Checks that two pools are of one shape, `[pages, page_size, heads_k, head_dim]`, and can be written at once.
pub(super) fn check_pools(k_pages: &Tensor, v_pages: &Tensor) -> std::result::Result<(), Error> {
    if k_pages.rank() != 4 {
        let expected = "[pages, page_size, heads_k, head_dim]";
        return Err(bad_shape("k_pages", k_pages, expected.into()));
    }
    if v_pages.dims() != k_pages.dims() {
        let expected = format!("{:?}, as k_pages", k_pages.dims());
        return Err(bad_shape("v_pages", v_pages, expected));
    }
    for (argument, pool) in [("k_pages", k_pages), ("v_pages", v_pages)] {
        layout(argument, pool.layout())?.check_injective(argument)?;
    }
    // Also what keeps the locks apart.
    match address(v_pages) == address(k_pages) {
        true => Err(shares("v_pages", "k_pages", "memory of its own")),
        false => Ok(()),
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

/// Locks both pools, the keys' first, and the radii.
pub(super) fn with_pools(
    [k_pages, v_pages]: [&Tensor; 2],
    radii: Option<&Tensor>,
    mut write: impl FnMut(&mut Pool<'_>, &mut Pool<'_>, Option<&mut Pool<'_>>) -> Result<()>,
) -> Result<()> {
    lend(k_pages, |k_pool| {
        lend(v_pages, |v_pool| match radii {
            None => write(k_pool, v_pool, None),
            Some(radii) => lend(radii, |radii| write(k_pool, v_pool, Some(radii))),
        })
    })
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
