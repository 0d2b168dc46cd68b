//! Calls on CUDA tensors: launched on their device's stream, without waiting for it.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::cuda_backend::{CudaDType, CudaDevice, CudaStorageSlice};
use candle_core::op::BackpropOp;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp3, DType, Layout, Result, Shape, Storage, Tensor,
};
use cudarc::driver::{CudaContext, CudaSlice, CudaView, DevicePtr, DeviceRepr, ValidAsZeroBits};
use half::{bf16, f16};

use super::{Call, NAMES, check_lengths, lse_shape, rename};
use crate::cuda::{self, Element, Inputs, Kernels, View, ViewMut};
use crate::{Attention, tensor};

/// The kernels of a context. They stay loaded until the program ends: a call brings nothing that could keep them.
fn kernels(context: &Arc<CudaContext>) -> Result<Arc<Kernels>> {
    static ALL: Mutex<Vec<Arc<Kernels>>> = Mutex::new(Vec::new());
    let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = all.iter().find(|kernels| kernels.context() == context) {
        return Ok(found.clone());
    }
    let made = Kernels::of(context).map_err(error)?;
    all.push(made.clone());
    Ok(made)
}

impl Call<'_> {
    /// Slopes and lengths are passed by address: nothing is read from the device.
    pub(super) fn cuda(&self) -> Result<(Tensor, Tensor)> {
        // The host need only know how many slopes there are; zeros promise nothing about a horizon.
        let attention = self.attention(|slopes| Ok(vec![0.0; slopes.elem_count()]))?;
        let dtypes = [DType::F16, DType::BF16];
        self.check_dtypes(&dtypes, "dtype F16 or BF16 on a CUDA device")?;
        let mut lengths = [const { None }; 4];
        for (held, (argument, tensor)) in lengths.iter_mut().zip(self.lengths.tensors()) {
            if let Some(tensor) = tensor {
                check_lengths(argument, tensor)?;
                *held = Some(tensor.contiguous()?);
            }
        }
        let lse = Arc::new(Mutex::new(None));
        let op = CudaOp {
            attention: attention.into_owned(),
            slopes: self.slopes().map(Tensor::contiguous).transpose()?,
            lengths,
            max_seqlens: (self.lengths.packed).map_or((0, 0), |p| (p.max_seqlen_q, p.max_seqlen_k)),
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
    /// `seqlens_q`, `seqlens_k`, `seqused_k`, `leftpad_k`.
    lengths: [Option<Tensor>; 4],
    max_seqlens: (usize, usize),
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
        candle_core::bail!("a call on CUDA tensors was given CPU tensors")
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
        let kernels = kernels(stream.context())?;

        let parts = [
            from_start::<T>(q.0, q.1)?,
            from_start(k.0, k.1)?,
            from_start(v.0, v.1)?,
        ];
        let inputs = Inputs::new(
            view("q", &parts[0], q.1)?,
            view("k", &parts[1], k.1)?,
            view("v", &parts[2], v.1)?,
        );
        let held =
            (self.lengths.each_ref()).map(|tensor| Some(tensor.as_ref()?.storage_and_layout()));
        let mut lengths = [const { None }; 4];
        for (lengths, held) in lengths.iter_mut().zip(&held) {
            if let Some((storage, layout)) = held {
                *lengths = Some(integers(contiguous(storage, layout)?));
            }
        }
        let [seqlens_q, seqlens_k, seqused_k, leftpad_k] = &lengths;
        let mut inputs = inputs;
        if let (Some(q), Some(k)) = (seqlens_q, seqlens_k) {
            inputs = inputs.varlen(q, k, self.max_seqlens.0, self.max_seqlens.1);
        }
        if let Some(seqused_k) = seqused_k {
            inputs = inputs.seqused_k(seqused_k);
        }
        if let Some(leftpad_k) = leftpad_k {
            inputs = inputs.leftpad_k(leftpad_k);
        }

        let (held, uploaded);
        let slopes = match &self.slopes {
            Some(slopes) => {
                held = slopes.storage_and_layout();
                contiguous::<f32>(&held.0, held.1)?
            }
            None => {
                uploaded = device.clone_htod(self.attention.slopes().as_slice())?;
                uploaded.as_view()
            }
        };

        // Rows of packed tensors that belong to no sequence are not written by the kernel, and are zero.
        let zero = seqlens_q.is_some();
        let lse_shape = lse_shape(shape);
        let rows = lse_shape.elem_count();
        let mut out = allocate::<T>(device, shape.elem_count(), zero)?;
        let mut lse = allocate::<f32>(device, rows, zero)?;
        {
            let (slopes, _guard) = slopes.device_ptr(&stream);
            let out = ViewMut::new(&mut out, shape.dims())?;
            let lse = &mut lse.slice_mut(..rows);
            // SAFETY: the slopes were counted when the attention was described, and the guard orders what is done to them.
            unsafe {
                cuda::attend(
                    cuda::Method::Prefill,
                    &kernels,
                    &self.attention,
                    slopes,
                    &stream,
                    &inputs,
                    out,
                    Some(lse),
                )
            }
            .map_err(error)?;
        }
        let lse = Storage::Cuda(CudaStorage::wrap_cuda_slice(lse, device.clone()));
        let lse = Tensor::from_storage(lse, lse_shape, BackpropOp::none(), false);
        *self.lse.lock().unwrap_or_else(PoisonError::into_inner) = Some(lse);
        Ok(CudaStorage::wrap_cuda_slice(out, device.clone()))
    }
}

/// A tensor's storage from the tensor's first element on.
fn from_start<'a, T: CudaDType>(
    storage: &'a CudaStorage,
    layout: &Layout,
) -> Result<CudaView<'a, T>> {
    let data = storage.as_cuda_slice::<T>()?;
    let part = data.try_slice(layout.start_offset()..);
    // A tensor of no elements may start past the end.
    Ok(part.unwrap_or_else(|| data.slice(..0)))
}

fn view<'a, T>(
    argument: &'static str,
    part: &'a CudaView<'_, T>,
    layout: &Layout,
) -> Result<View<'a, T>> {
    let layout = tensor::Layout::new(argument, layout.dims(), layout.stride())?;
    Ok(View::from_layout(argument, part, layout)?)
}

/// The elements of a contiguous tensor.
fn contiguous<'a, T: CudaDType>(storage: &'a Storage, layout: &Layout) -> Result<CudaView<'a, T>> {
    let Storage::Cuda(storage) = storage else {
        candle_core::bail!("a call on CUDA tensors was given another tensor")
    };
    let count = layout.shape().elem_count();
    let part = from_start::<T>(storage, layout)?;
    Ok(part.slice(..count))
}

/// Lengths above `i32::MAX` become negative, and the kernels cut off both.
fn integers(lengths: CudaView<'_, u32>) -> CudaView<'_, i32> {
    let count = cudarc::driver::DeviceSlice::len(&lengths);
    // SAFETY: the types are of one size, and every bit pattern is an i32.
    unsafe { lengths.transmute(count) }.expect("as long as it is")
}

/// Memory of at least one element, since there is none of no elements.
fn allocate<T: DeviceRepr + ValidAsZeroBits>(
    device: &CudaDevice,
    len: usize,
    zero: bool,
) -> Result<CudaSlice<T>> {
    match zero {
        true => device.alloc_zeros(len.max(1)),
        // SAFETY: the kernel writes all of a dense output before anything can read it.
        false => unsafe { device.alloc(len.max(1)) },
    }
}

/// What does not fit is reported as on the CPU; the rest is CUDA's.
fn error(error: cuda::Error) -> candle_core::Error {
    match error {
        cuda::Error::Argument(error) => rename(error, &NAMES).into(),
        error => candle_core::Error::Cuda(Box::new(error)),
    }
}
