//! Calls on CUDA tensors: launched on their device's stream, without waiting for it.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::cuda_backend::{CudaDType, CudaDevice, CudaStorageSlice};
use candle_core::op::BackpropOp;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp3, DType, Layout, Result, Shape, Storage, Tensor,
};
use cudarc::driver::{
    CudaContext, CudaSlice, CudaView, CudaViewMut, DevicePtr, DeviceRepr, ValidAsZeroBits,
};
use half::{bf16, f16};

use super::append::{self, Pool};
use super::{Call, NAMES, lse_shape, rename};
use crate::cuda::{self, Buffer, BufferMut, Element, Inputs, Kernels, View, ViewMut};
use crate::{Attention, tensor};

impl Call<'_> {
    /// Slopes and lengths are passed by address: nothing is read from the device.
    pub(super) fn cuda(&self) -> Result<(Tensor, Tensor)> {
        // The host need only know how many slopes there are; zeros promise nothing about a horizon.
        let attention = self.attention(|slopes| Ok(vec![0.0; slopes.elem_count()]))?;
        let dtypes = [DType::F16, DType::BF16];
        self.check_dtypes(&dtypes, "dtype F16 or BF16 on a CUDA device")?;
        self.lengths.check(self.q, self.k)?;
        let mut lengths = [const { None }; 5];
        for (held, (_, tensor)) in lengths.iter_mut().zip(self.lengths.tensors()) {
            *held = tensor.map(Tensor::contiguous).transpose()?;
        }
        let mut radii = [const { None }; 2];
        for (held, (_, tensor)) in radii.iter_mut().zip(self.lengths.floats()) {
            *held = tensor.map(Tensor::contiguous).transpose()?;
        }
        let lse = Arc::new(Mutex::new(None));
        let op = CudaOp {
            attention: attention.into_owned(),
            slopes: self.slopes().map(Tensor::contiguous).transpose()?,
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
    /// `seqlens_q`, `seqlens_k`, `block_table`, `seqused_k`, `leftpad_k`.
    lengths: [Option<Tensor>; 5],
    /// `centres` and `radii`.
    radii: [Option<Tensor>; 2],
    /// `max_seqlen_q` and `max_seqlen_k`.
    max_seqlens: [usize; 2],
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
        let mut lengths = [const { None }; 5];
        for (lengths, held) in lengths.iter_mut().zip(&held) {
            if let Some((storage, layout)) = held {
                *lengths = Some(integers(contiguous(storage, layout)?));
            }
        }
        let [seqlens_q, seqlens_k, block_table, seqused_k, leftpad_k] = &lengths;
        let [max_seqlen_q, max_seqlen_k] = self.max_seqlens;
        let mut inputs = match (block_table, seqused_k) {
            (Some(table), Some(used)) => Inputs::paged(q_view, k_view, v_view, table, used),
            (None, Some(used)) => Inputs::new(q_view, k_view, v_view).seqused_k(used),
            _ => Inputs::new(q_view, k_view, v_view),
        };
        inputs = match (seqlens_q, seqlens_k) {
            (Some(q), Some(k)) => inputs.varlen(q, k, max_seqlen_q, max_seqlen_k),
            (Some(q), None) => inputs.varlen_q(q, max_seqlen_q),
            _ => inputs,
        };
        if let Some(leftpad_k) = leftpad_k {
            inputs = inputs.leftpad_k(leftpad_k);
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

impl append::Call<'_> {
    pub(super) fn cuda(
        &self,
        k_pool: &mut Pool<'_>,
        v_pool: &mut Pool<'_>,
        radii: Option<&mut Pool<'_>>,
        slots: &Tensor,
    ) -> Result<()> {
        let other =
            || candle_core::Error::Msg("a call on CUDA tensors was given other pools".into());
        let (Pool::Cuda(k_pool), Pool::Cuda(v_pool)) = (k_pool, v_pool) else {
            return Err(other());
        };
        let radii = match radii {
            None => None,
            Some(Pool::Cuda(radii)) => Some(&mut **radii),
            Some(Pool::Cpu(_)) => return Err(other()),
        };
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
            candle_core::bail!("a call on CUDA tensors was given another tensor")
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

/// A pool's storage from the pool's first element on.
fn pool<'a, T: CudaDType>(
    storage: &'a mut CudaStorage,
    pool: &Tensor,
) -> Result<CudaViewMut<'a, T>> {
    let data = storage.as_cuda_slice_mut::<T>()?;
    // A pool of no elements may start past the end.
    let start = pool.layout().start_offset().min(data.len());
    Ok(data.slice_mut(start..))
}

fn view_mut<'a, T>(
    argument: &'static str,
    part: &'a mut CudaViewMut<'_, T>,
    pool: &Tensor,
) -> Result<ViewMut<'a, T>> {
    let layout = append::layout(argument, pool.layout())?;
    Ok(ViewMut::from_layout([argument; 2], part, layout)?)
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
    let layout = append::layout(argument, layout)?;
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
        // SAFETY: kernels write all of a dense output, and what they read of a workspace, before anything can read it.
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
