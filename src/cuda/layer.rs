//! A layer on a device.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut, SyncOnDrop};

use super::{Element, Error, Inputs, Kernels, Result, ViewMut};
use crate::attention::Attention;
use crate::error;
use crate::plan::{Addresses, Call, Dtype, Packed, Plan};
use crate::problem::check_lse;
use crate::tensor::Layout;

/// An [`Attention`] layer in a CUDA context: its kernels are loaded and its slopes uploaded.
///
/// Dropping a layer waits until the work of its context has ended, since it may still read the slopes.
#[derive(Debug)]
pub struct Layer {
    attention: Attention,
    kernels: Arc<Kernels>,
    /// `[heads_q]` or `[batch, heads_q]`.
    slopes: CudaSlice<f32>,
    /// Where they lie. They are written before and freed after all calls, so calls need no events for them.
    slopes_address: u64,
}

impl Layer {
    /// Makes a layer in the stream's context, and waits for the upload.
    ///
    /// Other streams of the context can use it as well. The kernels are loaded with the first layer of a context.
    ///
    /// # Errors
    /// [`Error::DeviceTooOld`], [`Error::NoKernelImage`], [`Error::OutOfMemory`] or [`Error::Driver`]. Without a driver there is
    /// no stream: see [`context`](super::context).
    pub fn new(stream: &Arc<CudaStream>, attention: Attention) -> Result<Self> {
        let kernels = Kernels::of(stream.context())?;
        for dtype in [Dtype::F16, Dtype::Bf16] {
            let plan = Plan::prefill(
                &attention,
                &smallest_call(&attention, dtype)?,
                kernels.device(),
            )?;
            for launch in plan.launches() {
                kernels.function(launch)?;
            }
        }

        let failed = Error::driver("when slopes were uploaded");
        // There is no memory of no elements.
        let values = match attention.slopes().as_slice() {
            [] => &[0.0],
            values => values,
        };
        let slopes = stream.clone_htod(values).map_err(&failed)?;
        stream.synchronize().map_err(&failed)?;
        let slopes_address = slopes.device_ptr(stream).0;
        Ok(Self {
            attention,
            kernels,
            slopes,
            slopes_address,
        })
    }

    /// What the layer computes.
    pub fn attention(&self) -> &Attention {
        &self.attention
    }

    /// The kernels of its context.
    pub fn kernels(&self) -> &Arc<Kernels> {
        &self.kernels
    }

    /// Computes attention over many queries a sequence: dense, padded or packed. See [`Attention`] for what is computed.
    ///
    /// `out` is of q's shape with strides of its own; `lse`, if wanted, `[batch, heads_q, seqlen_q]` (packed:
    /// `[heads_q, total_q]`) without gaps. Rows of packed tensors that belong to no sequence are left as they are.
    ///
    /// The work is enqueued on `stream`; the call does not wait for it. It allocates nothing on the device.
    ///
    /// # Errors
    /// [`Error::Argument`] for inputs that do not fit the layer or each other, [`Error::Context`] for a stream or a buffer of
    /// another context: nothing is launched then. [`Error::Driver`] when the driver refuses.
    pub fn prefill<T: Element>(
        &self,
        stream: &CudaStream,
        inputs: &Inputs<'_, T>,
        out: ViewMut<'_, T>,
        lse: Option<&mut dyn DevicePtrMut<f32>>,
    ) -> Result<()> {
        // SAFETY: they are as many as the attention has, and `drop` waits before they go.
        unsafe {
            prefill(
                &self.kernels,
                &self.attention,
                self.slopes_address,
                stream,
                inputs,
                out,
                lse,
            )
        }
    }
}

impl Drop for Layer {
    fn drop(&mut self) {
        // Any stream may still read the slopes or run the kernels.
        let context = self.slopes.context();
        context.record_err(context.synchronize());
    }
}

/// [`Layer::prefill`], with slopes wherever they are.
///
/// # Safety
/// `slopes` is the address of as many f32 as the attention has, in the context of the kernels. They are written before what
/// `stream` does now, and stay until it is done.
pub(crate) unsafe fn prefill<T: Element>(
    kernels: &Kernels,
    attention: &Attention,
    slopes: u64,
    stream: &CudaStream,
    inputs: &Inputs<'_, T>,
    out: ViewMut<'_, T>,
    lse: Option<&mut dyn DevicePtrMut<f32>>,
) -> Result<()> {
    let launcher = kernels.on(stream)?;
    let packed = inputs.packed()?;
    let call = Call {
        dtype: T::DTYPE,
        q: inputs.q.layout,
        k: inputs.k.layout,
        v: inputs.v.layout,
        out: out.layout,
        packed,
        paged: None,
    };
    let plan = Plan::prefill(attention, &call, kernels.device())?;
    let batch = packed
        .map(|packed| packed.batch)
        .or(call.q.batch)
        .expect("the plan has checked that dense tensors have a batch");
    check_buffers(kernels, inputs, batch)?;
    kernels.check_context("out", out.buffer.stream().context())?;
    if let Some(lse) = &lse {
        check_lse(attention, &call.q, lse.len())?;
        kernels.check_context("lse", lse.stream().context())?;
    }
    if plan.launches().is_empty() {
        return Ok(());
    }

    // The guards make the stream wait for what others do with the buffers, and later others for this: they live until
    // after the launch.
    let (q, _q) = inputs.q.buffer.device_ptr(stream);
    let (k, _k) = inputs.k.buffer.device_ptr(stream);
    let (v, _v) = inputs.v.buffer.device_ptr(stream);
    let (cu_seqlens_q, _cu_q) = read(inputs.varlen.map(|varlen| varlen.cu_seqlens_q), stream);
    let (cu_seqlens_k, _cu_k) = read(inputs.varlen.map(|varlen| varlen.cu_seqlens_k), stream);
    let (seqused_k, _seqused_k) = read(inputs.seqused_k, stream);
    let (leftpad_k, _leftpad_k) = read(inputs.leftpad_k, stream);
    let (out, _out) = out.buffer.device_ptr_mut(stream);
    let (lse, _lse) = lse.map(|lse| lse.device_ptr_mut(stream)).unzip();
    let addresses = Addresses {
        q,
        k,
        v,
        out,
        lse: lse.unwrap_or(0),
        slopes,
        cu_seqlens_q,
        cu_seqlens_k,
        seqused_k,
        leftpad_k,
        ..Addresses::default()
    };
    // SAFETY: views are as long as their layouts need, and `check_lse` and `check_buffers` have checked the rest. The
    // guards order the work before anything that frees or writes the buffers; the caller vouches for the slopes.
    unsafe { plan.run(&launcher, &addresses) }
}

/// Checks the contexts of all inputs, and the lengths of those that are not views.
fn check_buffers<T>(kernels: &Kernels, inputs: &Inputs<'_, T>, batch: usize) -> Result<()> {
    let check = |argument, stream: &CudaStream| kernels.check_context(argument, stream.context());
    for (argument, view) in [("q", &inputs.q), ("k", &inputs.k), ("v", &inputs.v)] {
        check(argument, view.buffer.stream())?;
    }
    if let Some(varlen) = &inputs.varlen {
        check("cu_seqlens_q", varlen.cu_seqlens_q.stream())?;
        check("cu_seqlens_k", varlen.cu_seqlens_k.stream())?;
    }
    for (argument, lengths) in [
        ("seqused_k", inputs.seqused_k),
        ("leftpad_k", inputs.leftpad_k),
    ] {
        let Some(lengths) = lengths else { continue };
        if lengths.len() != batch {
            let expected = format!("batch = {batch}");
            return Err(length(argument, lengths.len(), expected));
        }
        check(argument, lengths.stream())?;
    }
    Ok(())
}

impl<T> Inputs<'_, T> {
    fn packed(&self) -> Result<Option<Packed>> {
        let Some(varlen) = &self.varlen else {
            return Ok(None);
        };
        let (found_q, found_k) = (varlen.cu_seqlens_q.len(), varlen.cu_seqlens_k.len());
        let Some(batch) = found_q.checked_sub(1) else {
            return Err(length(
                "cu_seqlens_q",
                found_q,
                "batch + 1, at least 1".into(),
            ));
        };
        if found_k != found_q {
            return Err(length(
                "cu_seqlens_k",
                found_k,
                format!("{found_q}, as for q"),
            ));
        }
        Ok(Some(Packed {
            batch,
            max_seqlen_q: varlen.max_seqlen_q,
            max_seqlen_k: varlen.max_seqlen_k,
        }))
    }
}

/// Where lengths lie, if there are any.
fn read<'a>(
    lengths: Option<&'a dyn DevicePtr<i32>>,
    stream: &'a CudaStream,
) -> (u64, Option<SyncOnDrop<'a>>) {
    let (address, guard) = lengths.map(|lengths| lengths.device_ptr(stream)).unzip();
    (address.unwrap_or(0), guard)
}

fn length(argument: &'static str, found: usize, expected: String) -> Error {
    Error::Argument(error::Error::Length {
        argument,
        found,
        expected,
    })
}

/// One query and one key a sequence: it needs the kernels that all calls of the layer do.
fn smallest_call(attention: &Attention, dtype: Dtype) -> error::Result<Call> {
    let batch = attention.slopes().batch().unwrap_or(1);
    let layout =
        |argument, heads| Layout::contiguous(argument, &[batch, 1, heads, attention.head_dim()]);
    let (q, k) = (
        layout("q", attention.heads_q())?,
        layout("k", attention.heads_k())?,
    );
    Ok(Call {
        dtype,
        q,
        k,
        v: k,
        out: q,
        packed: None,
        paged: None,
    })
}
