//! Attention on CUDA tensors.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::cuda_backend::{CudaDType, CudaStorageSlice};
use candle_core::op::BackpropOp;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp3, DType, Layout, Result, Shape, Storage, Tensor,
};
use cudarc::driver::{CudaView, ValidAsZeroBits};
use half::{bf16, f16};

use super::{allocate, contiguous, error, from_start, view};
use crate::candle::call::{Call, lse_shape};
use crate::candle::memory::elsewhere;
use crate::cuda::{self, Element, Inputs, Kernels, ViewMut};
use crate::{Attention, tensor};

impl Call<'_> {
    /// Slopes and lengths are passed by address: nothing is read from the device.
    pub(in crate::candle) fn cuda(&self) -> Result<(Tensor, Tensor)> {
        // The host need only know how many slopes there are; zeros promise nothing about a horizon.
        let attention = self.attention(|slopes| Ok(vec![0.0; slopes.elem_count()]))?;
        self.lengths.check(self.q, self.k.dims())?;
        let mut lengths = [const { None }; 6];
        for (held, (_, tensor)) in lengths.iter_mut().zip(self.lengths.tensors()) {
            *held = tensor.map(integers).transpose()?;
        }
        let mut radii = [const { None }; 2];
        for (held, (_, tensor)) in radii.iter_mut().zip(self.lengths.floats()) {
            *held = tensor.map(Tensor::contiguous).transpose()?;
        }
        let lse = Arc::new(Mutex::new(None));
        let op = CudaOp {
            attention: attention.into_owned(),
            slopes: self.slopes().map(floats).transpose()?,
            lengths,
            radii,
            max_seqlens: self.lengths.max_seqlens(),
            lse: Arc::clone(&lse),
        };
        let out = self.q.apply_op3(self.k, self.v, op)?;
        let lse = lse.lock().unwrap_or_else(PoisonError::into_inner).take();
        Ok((out, lse.expect("`cuda_fwd` leaves it there")))
    }
}

/// As `CpuOp`, on a device.
struct CudaOp {
    attention: Attention,
    /// Those that are used, where they are a tensor.
    slopes: Option<Tensor>,
    /// `seqlens_q`, `seqlens_k`, `block_table`, `seqused_k`, `leftpad_k`, `offset`: U32 or I32.
    lengths: [Option<Tensor>; 6],
    /// `centres` and `radii`.
    radii: [Option<Tensor>; 2],
    /// `max_seqlen_q` and `max_seqlen_k`, where there are such bounds.
    max_seqlens: [Option<usize>; 2],
    lse: Arc<Mutex<Option<Tensor>>>,
}

type Input<'a> = (&'a CudaStorage, &'a Layout);

impl CustomOp3 for CudaOp {
    fn name(&self) -> &'static str {
        "flash-alibi"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        Err(elsewhere())
    }

    fn cuda_fwd(
        &self,
        q: &CudaStorage,
        q_layout: &Layout,
        k: &CudaStorage,
        k_layout: &Layout,
        v: &CudaStorage,
        v_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let inputs = [(q, q_layout), (k, k_layout), (v, v_layout)];
        let out = match q.slice {
            CudaStorageSlice::F16(_) => self.forward::<f16>(inputs),
            _ => self.forward::<bf16>(inputs),
        }?;
        Ok((out, q_layout.shape().clone()))
    }
}

impl CudaOp {
    fn forward<T: Element + CudaDType + ValidAsZeroBits>(
        &self,
        [q, k, v]: [Input<'_>; 3],
    ) -> Result<CudaStorage> {
        let (device, shape) = (&q.0.device, q.1.shape());
        let stream = device.cuda_stream();
        let kernels = Kernels::of(stream.context()).map_err(error)?;

        let parts = [
            from_start::<T>(q.0, q.1)?,
            from_start(k.0, k.1)?,
            from_start(v.0, v.1)?,
        ];
        let [q_view, k_view, v_view] = [
            view("q", &parts[0], q.1)?,
            view("k", &parts[1], k.1)?,
            view("v", &parts[2], v.1)?,
        ];
        let held =
            (self.lengths.each_ref()).map(|tensor| Some(tensor.as_ref()?.storage_and_layout()));
        let mut lengths = [const { None }; 6];
        for (lengths, held) in lengths.iter_mut().zip(&held) {
            if let Some((storage, layout)) = held {
                *lengths = Some(as_i32(storage, layout)?);
            }
        }
        let [
            seqlens_q,
            seqlens_k,
            block_table,
            seqused_k,
            leftpad_k,
            offset,
        ] = &lengths;
        let [max_seqlen_q, max_seqlen_k] = self.max_seqlens.map(|max| max.unwrap_or(usize::MAX));
        let mut inputs = match (block_table, seqused_k) {
            (Some(table), Some(used)) => Inputs::paged(q_view, k_view, v_view, table, used),
            (None, Some(used)) => Inputs::new(q_view, k_view, v_view).seqused_k(used),
            _ => Inputs::new(q_view, k_view, v_view),
        };
        inputs = match (seqlens_q, seqlens_k) {
            (Some(q), Some(k)) => inputs.varlen(q, k, max_seqlen_q, max_seqlen_k),
            (Some(q), None) => inputs.varlen_q(q, max_seqlen_q),
            _ => inputs,
        }
        .max_seqlen_k(max_seqlen_k);
        if let Some(leftpad_k) = leftpad_k {
            inputs = inputs.leftpad_k(leftpad_k);
        }
        if let Some(offset) = offset {
            inputs = inputs.offset(offset);
        }
        let held =
            (self.radii.each_ref()).map(|tensor| Some(tensor.as_ref()?.storage_and_layout()));
        let mut radii = [const { None }; 2];
        for (radii, held) in radii.iter_mut().zip(&held) {
            if let Some((storage, layout)) = held {
                *radii = Some(contiguous::<f32>(storage, layout)?);
            }
        }
        if let [Some(centres), Some(radii)] = &radii {
            inputs = inputs.radii(centres, radii);
        }

        let (held, of_tensor, uploaded);
        let slopes = match &self.slopes {
            Some(slopes) => {
                held = slopes.storage_and_layout();
                of_tensor = contiguous::<f32>(&held.0, held.1)?;
                cuda::Slopes::Buffer(&of_tensor)
            }
            None => {
                let values = self.attention.slopes().as_slice();
                uploaded = kernels.slopes(&stream, values).map_err(error)?;
                cuda::Slopes::Uploaded(&uploaded)
            }
        };

        // Rows of packed tensors that belong to no sequence are not written by the kernel, and are zero.
        let zero = seqlens_q.is_some();
        let lse_shape = lse_shape(shape);
        let rows = lse_shape.elem_count();
        let mut out = allocate::<T>(device, shape.elem_count(), zero)?;
        let mut lse = allocate::<f32>(device, rows, zero)?;
        let (attention, method) = (&self.attention, inputs.method());
        let of_out = tensor::Layout::contiguous("out", shape.dims())?;
        let len = inputs.workspace_bytes(method, kernels, attention, of_out);
        let mut workspace = allocate::<u8>(device, len.map_err(error)?, false)?;
        let call = cuda::Call {
            method,
            slopes,
            inputs: &inputs,
            out: ViewMut::new(&mut out, shape.dims())?,
            lse: Some(&mut lse.slice_mut(..rows)),
            workspace: &mut workspace,
            report: None,
        };
        cuda::attend(kernels, attention, &stream, call).map_err(error)?;
        let lse = Storage::Cuda(CudaStorage::wrap_cuda_slice(lse, device.clone()));
        let lse = Tensor::from_storage(lse, lse_shape, BackpropOp::none(), false);
        *self.lse.lock().unwrap_or_else(PoisonError::into_inner) = Some(lse);
        Ok(CudaStorage::wrap_cuda_slice(out, device.clone()))
    }
}

/// Slopes as the kernels take them.
fn floats(slopes: &Tensor) -> Result<Tensor> {
    slopes.to_dtype(DType::F32)?.contiguous()
}

/// Integers without gaps that have 32 bits. candle converts to no I32, and the low bits of an I64 are the same as U32.
fn integers(tensor: &Tensor) -> Result<Tensor> {
    match tensor.dtype() {
        DType::I64 => tensor.to_dtype(DType::U32)?.contiguous(),
        _ => tensor.contiguous(),
    }
}

/// Lengths above `i32::MAX` become negative, and the kernels cut off both. Converted positions become what they were.
fn as_i32<'a>(storage: &'a Storage, layout: &Layout) -> Result<CudaView<'a, i32>> {
    if storage.dtype() == DType::I32 {
        return contiguous(storage, layout);
    }
    let integers = contiguous::<u32>(storage, layout)?;
    let count = integers.len();
    // SAFETY: the types are of one size, and every bit pattern is an i32.
    Ok(unsafe { integers.transmute(count) }.expect("as long as it is"))
}
