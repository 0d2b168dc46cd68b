//! Integers on a device, in the types that kernels take.

use candle_core::op::BackpropOp;
use candle_core::{CudaStorage, DType, Result, Storage, Tensor};

use super::contiguous;
use crate::candle::memory::elsewhere;

/// Slots as the kernels take them.
pub(in crate::candle) fn slots(slots: &Tensor) -> Result<Tensor> {
    match slots.dtype() {
        DType::I64 => slots.contiguous(),
        DType::I32 => signed(&as_u32(&slots.contiguous()?)?.to_dtype(DType::I64)?),
        _ => slots.to_dtype(DType::I64)?.contiguous(),
    }
}

/// The numbers that have these low 32 bits and are those of an i32. candle converts from no I32.
fn signed(low: &Tensor) -> Result<Tensor> {
    let negative = low.ge(1i64 << 31)?.to_dtype(DType::I64)?;
    low - negative.affine((1u64 << 32) as f64, 0.0)?
}

/// Page numbers as u32, without gaps. Negative ones become large.
pub(in crate::candle) fn page_numbers(block_table: &Tensor) -> Result<Tensor> {
    match block_table.dtype() {
        DType::I32 => as_u32(&block_table.contiguous()?),
        _ => block_table.to_dtype(DType::U32)?.contiguous(),
    }
}

/// The bits of a tensor of I32 without gaps.
fn as_u32(tensor: &Tensor) -> Result<Tensor> {
    if tensor.elem_count() == 0 {
        return Tensor::zeros(tensor.shape(), DType::U32, tensor.device());
    }
    let (storage, layout) = tensor.storage_and_layout();
    let integers = contiguous::<i32>(&storage, layout)?;
    // SAFETY: the types are of one size, and every bit pattern is a u32.
    let bits = unsafe { integers.transmute::<u32>(integers.len()) }.expect("as long as it is");
    let Storage::Cuda(storage) = &*storage else {
        return Err(elsewhere());
    };
    let copy = (storage.device.cuda_stream().clone_dtod(&bits))
        .map_err(|error| candle_core::Error::Cuda(Box::new(error)))?;
    let copy = Storage::Cuda(CudaStorage::wrap_cuda_slice(copy, storage.device.clone()));
    let none = BackpropOp::none();
    Ok(Tensor::from_storage(copy, layout.shape(), none, false))
}
