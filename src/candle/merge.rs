//! Results over separate sets of keys, merged.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp2, DType, Layout, Result, Shape, Tensor};

use super::call::lse_shape;
use super::error::{Backend, bad_dtype, bad_shape, check_device};
use super::memory::{elsewhere, to_host, view};
use crate::ViewMut;
use crate::error::Error;

/// Merges two results of [`attend`](super::attend) for the same queries over separate sets of keys: `(out, lse)` of all keys.
///
/// `out` and `other_out` are `[batch, seqlen_q, heads_q, head_dim]`, each lse f32 `[batch, heads_q, seqlen_q]`; or
/// `[total_q, heads_q, head_dim]` and `[heads_q, total_q]`. The results are new tensors; `out` keeps its type, and is rounded
/// once. See [`merge_state`](crate::merge_state) for what is computed: an lse of -inf changes nothing of the other result.
///
/// Here 4 queries begin at position 4. They attend to their own keys, and to a prefix of 4 keys that other sequences share:
///
/// ```
/// use candle_core::{Device, Tensor};
/// use flash_alibi::Attention;
/// use flash_alibi::candle::{Lengths, attend, merge_states};
///
/// # fn main() -> candle_core::Result<()> {
/// let layer = Attention::new(2, 2, 8).build()?;
/// let x = Tensor::randn(0f32, 1., (1, 8, 2, 8), &Device::Cpu)?;
/// let (prefix, own) = (x.narrow(1, 0, 4)?, x.narrow(1, 4, 4)?);
///
/// let (out, lse) = attend(&layer, &own, &own, &own, Lengths::dense())?;
/// let position = Tensor::new(&[4i64], &Device::Cpu)?;
/// let lengths = Lengths::dense().offset(&position);
/// let (other_out, other_lse) = attend(&layer, &own, &prefix, &prefix, lengths)?;
/// let (out, lse) = merge_states(&out, &lse, &other_out, &other_lse)?;
///
/// let (whole, _) = attend(&layer, &own, &x, &x, Lengths::dense())?;
/// let difference = (out - whole)?.abs()?.max_all()?.to_scalar::<f32>()?;
/// assert!(difference < 1e-5 && lse.dims() == [1, 2, 4]);
/// # Ok(())
/// # }
/// ```
///
/// As after `attend`, `backward` through `out` is an error, and the lse is detached.
///
/// # Errors
/// When tensors do not fit each other, are of different types or on different devices.
pub fn merge_states(
    out: &Tensor,
    lse: &Tensor,
    other_out: &Tensor,
    other_lse: &Tensor,
) -> Result<(Tensor, Tensor)> {
    check(out, lse, other_out, other_lse)?;
    let backend = Backend::of("out", out)?;
    backend.check_dtypes(("out", out), &[("other_out", other_out)])?;
    match backend {
        Backend::Cpu => cpu(out, lse, other_out, other_lse),
        #[cfg(feature = "candle-cuda")]
        Backend::Cuda => super::cuda::merge_states(out, lse, other_out, other_lse),
    }
}

/// Checks what does not depend on the device.
fn check(
    out: &Tensor,
    lse: &Tensor,
    other_out: &Tensor,
    other_lse: &Tensor,
) -> std::result::Result<(), Error> {
    let device = (out.device().location(), "out");
    for (argument, tensor) in [
        ("lse", lse),
        ("other_out", other_out),
        ("other_lse", other_lse),
    ] {
        check_device(argument, tensor.device().location(), device)?;
    }
    if !matches!(out.rank(), 3 | 4) {
        let expected = "[batch, seqlen_q, heads_q, head_dim] or [total_q, heads_q, head_dim]";
        return Err(bad_shape("out", out, expected.into()));
    }
    if other_out.dims() != out.dims() {
        let expected = format!("{:?}, as out", out.dims());
        return Err(bad_shape("other_out", other_out, expected));
    }
    let shape = lse_shape(out.shape());
    for (argument, lse) in [("lse", lse), ("other_lse", other_lse)] {
        if lse.dtype() != DType::F32 {
            return Err(bad_dtype(argument, lse.dtype(), "dtype F32"));
        }
        if lse.shape() != &shape {
            let rows = match out.rank() {
                4 => "[batch, heads_q, seqlen_q]",
                _ => "[heads_q, total_q]",
            };
            let expected = format!("{rows} = {:?}, as out has", shape.dims());
            return Err(bad_shape(argument, lse, expected));
        }
    }
    Ok(())
}

fn cpu(
    out: &Tensor,
    lse: &Tensor,
    other_out: &Tensor,
    other_lse: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let merged_lse = Arc::new(Mutex::new(to_host(lse)?));
    let op = Merge {
        lse: Arc::clone(&merged_lse),
        other_lse: to_host(other_lse)?,
    };
    let [ours, theirs] = [out, other_out].map(|x| x.to_dtype(DType::F32)?.contiguous());
    let merged = ours?.apply_op2(&theirs?, op)?.to_dtype(out.dtype())?;
    let merged_lse =
        std::mem::take(&mut *merged_lse.lock().unwrap_or_else(PoisonError::into_inner));
    let merged_lse = Tensor::from_vec(merged_lse, lse.shape(), out.device())?;
    Ok((merged, merged_lse))
}

/// A candle operation, because that is what makes a backward pass through it an error.
struct Merge {
    /// Merged in place: an operation returns one tensor.
    lse: Arc<Mutex<Vec<f32>>>,
    other_lse: Vec<f32>,
}

impl CustomOp2 for Merge {
    fn name(&self) -> &'static str {
        "flash-alibi-merge"
    }

    fn cpu_fwd(
        &self,
        out: &CpuStorage,
        layout: &Layout,
        other_out: &CpuStorage,
        other_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (start, shape) = (layout.start_offset(), layout.shape());
        let CpuStorage::F32(out) = out else {
            return Err(elsewhere());
        };
        let out = out.get(start..).unwrap_or_default();
        let mut out = out.get(..shape.elem_count()).unwrap_or_default().to_vec();
        crate::merge_states(
            ViewMut::new(&mut out, shape.dims())?,
            &mut self.lse.lock().unwrap_or_else(PoisonError::into_inner),
            view("other_out", (other_out, other_layout))?,
            &self.other_lse,
        )?;
        Ok((CpuStorage::F32(out), shape.clone()))
    }
}
