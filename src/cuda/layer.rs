//! A layer on a device.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut, SyncOnDrop};

use super::{Element, Error, Inputs, Kernels, Result, ViewMut};
use crate::attention::Attention;
use crate::error;
use crate::horizon::MIN_KEYS;
use crate::plan::{Addresses, Append, Call, Dtype, Paged, Plan};
use crate::sequences::check_lse;
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
        // All that calls may need, so that none of them loads anything: a stream that captures cannot.
        let device = kernels.device();
        for dtype in [Dtype::F16, Dtype::Bf16] {
            let call = small_call(&attention, dtype, 1, MIN_KEYS)?;
            let mut plans = vec![
                Plan::prefill(&attention, &call, device)?,
                Plan::prefill(&attention, &with_pages(call, MIN_KEYS)?, device)?,
            ];
            for seqlen_q in [1, 32] {
                let call = small_call(&attention, dtype, seqlen_q, 1)?;
                let call = with_pages(call, MIN_KEYS)?;
                plans.push(Plan::decode_with_splits(&attention, &call, device, 2)?);
            }
            for launch in plans.iter().flat_map(Plan::launches) {
                kernels.function(launch)?;
            }
        }
        let (heads_k, head_dim) = (attention.heads_k(), attention.head_dim());
        let key = Layout::contiguous("k", &[1, heads_k, head_dim])?;
        let page = Layout::contiguous("k_pages", &[1, 8, heads_k, head_dim])?;
        let mut appends = vec![Append::new(&key, &key, &page, &page)?];
        for dtype in [Dtype::F16, Dtype::Bf16] {
            appends.push(Append::with_radii(dtype, &key, &key, &page, &page)?);
        }
        for launch in appends.iter().flat_map(Append::launches) {
            kernels.function(launch)?;
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
    /// `workspace` holds what the [horizon](crate::Horizon) knows of the keys, of any content: at least
    /// [`Layer::prefill_workspace`]. Calls that can run at the same time need one each. A paged cache that has
    /// [`Inputs::radii`] is read only as far as the keys may change the result; otherwise all keys are looked at first.
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
        workspace: &mut dyn DevicePtrMut<f32>,
    ) -> Result<()> {
        self.attend(Method::Prefill, stream, inputs, out, lse, workspace, None)
    }

    /// [`Layer::prefill`], which also says what the [horizon](crate::Horizon) left out: to `report`, `[heads_q, 2]`, it adds the
    /// tiles of keys that were computed for the blocks of rows of each head, and all of them.
    ///
    /// # Errors
    /// As [`Layer::prefill`].
    #[allow(clippy::too_many_arguments)]
    pub fn prefill_with_report<T: Element>(
        &self,
        stream: &CudaStream,
        inputs: &Inputs<'_, T>,
        out: ViewMut<'_, T>,
        lse: Option<&mut dyn DevicePtrMut<f32>>,
        workspace: &mut dyn DevicePtrMut<f32>,
        report: &mut dyn DevicePtrMut<u64>,
    ) -> Result<()> {
        let report = Some(report);
        self.attend(Method::Prefill, stream, inputs, out, lse, workspace, report)
    }

    /// The elements of a workspace for [`Layer::prefill`] with batches and keys a sequence up to these.
    pub fn prefill_workspace(&self, max_batch: usize, max_seqlen_k: usize) -> usize {
        let bytes = Plan::prefill_workspace_bytes(&self.attention, max_batch, max_seqlen_k);
        // No buffer is empty.
        (bytes as usize / size_of::<f32>()).max(1)
    }

    /// Computes attention over few queries a sequence, as decoding has: keys and values are read once for all heads that
    /// share them, and split over the whole device. What is computed is that of [`Layer::prefill`], of any number of queries.
    ///
    /// `workspace` holds what the parts leave, of any content: at least [`Layer::decode_workspace`]. Calls that can run at
    /// the same time need one each. What is launched depends on shapes alone, not on lengths: a captured call can be
    /// replayed while they grow.
    ///
    /// A paged cache that has [`Inputs::radii`] is read only as far as the keys may change the result, if the layer's
    /// [`Horizon`](crate::Horizon) is certified and a sequence can have 2048 keys or more: so far keys cost nothing but
    /// four bytes a page. [`Horizon::Bitwise`](crate::Horizon::Bitwise) leaves out nothing here.
    ///
    /// # Errors
    /// As [`Layer::prefill`].
    pub fn decode<T: Element>(
        &self,
        stream: &CudaStream,
        inputs: &Inputs<'_, T>,
        out: ViewMut<'_, T>,
        lse: Option<&mut dyn DevicePtrMut<f32>>,
        workspace: &mut dyn DevicePtrMut<f32>,
    ) -> Result<()> {
        self.attend(Method::Decode, stream, inputs, out, lse, workspace, None)
    }

    #[allow(clippy::too_many_arguments)]
    fn attend<T: Element>(
        &self,
        method: Method,
        stream: &CudaStream,
        inputs: &Inputs<'_, T>,
        out: ViewMut<'_, T>,
        lse: Option<&mut dyn DevicePtrMut<f32>>,
        workspace: &mut dyn DevicePtrMut<f32>,
        report: Option<&mut dyn DevicePtrMut<u64>>,
    ) -> Result<()> {
        // SAFETY: the slopes are as many as the attention has, and `drop` waits before they go.
        unsafe {
            attend(
                method,
                &self.kernels,
                &self.attention,
                self.slopes_address,
                stream,
                inputs,
                out,
                lse,
                workspace,
                report,
            )
        }
    }

    /// The elements of a workspace for [`Layer::decode`] with batches, queries a sequence and keys a sequence up to these.
    pub fn decode_workspace(
        &self,
        max_batch: usize,
        max_seqlen_q: usize,
        max_seqlen_k: usize,
    ) -> usize {
        let bytes = Plan::decode_workspace_bytes(
            &self.attention,
            self.kernels.device(),
            max_batch,
            max_seqlen_q,
            max_seqlen_k,
        );
        // No buffer is empty.
        (bytes as usize / size_of::<f32>()).max(1)
    }
}

impl Drop for Layer {
    fn drop(&mut self) {
        // Any stream may still read the slopes or run the kernels.
        let context = self.slopes.context();
        context.record_err(context.synchronize());
    }
}

/// Which kernels compute a call.
#[derive(Clone, Copy)]
pub(crate) enum Method {
    Prefill,
    Decode,
}

impl Method {
    fn plan(self, attention: &Attention, call: &Call, kernels: &Kernels) -> error::Result<Plan> {
        match self {
            Self::Prefill => Plan::prefill(attention, call, kernels.device()),
            Self::Decode => Plan::decode(attention, call, kernels.device()),
        }
    }
}

/// The elements of a workspace for this very call.
#[cfg(feature = "candle-cuda")]
pub(crate) fn workspace<T: Element>(
    method: Method,
    kernels: &Kernels,
    attention: &Attention,
    inputs: &Inputs<'_, T>,
    out: Layout,
) -> Result<usize> {
    let plan = method.plan(attention, &inputs.call(attention, out)?, kernels)?;
    Ok(plan.workspace_bytes() as usize / size_of::<f32>())
}

/// [`Layer::prefill`] or [`Layer::decode`], with slopes wherever they are.
///
/// # Safety
/// `slopes` is the address of as many f32 as the attention has, in the context of the kernels. They are written before what
/// `stream` does now, and stay until it is done.
#[allow(clippy::too_many_arguments)]
pub(crate) unsafe fn attend<T: Element>(
    method: Method,
    kernels: &Kernels,
    attention: &Attention,
    slopes: u64,
    stream: &CudaStream,
    inputs: &Inputs<'_, T>,
    out: ViewMut<'_, T>,
    lse: Option<&mut dyn DevicePtrMut<f32>>,
    workspace: &mut dyn DevicePtrMut<f32>,
    report: Option<&mut dyn DevicePtrMut<u64>>,
) -> Result<()> {
    let launcher = kernels.on(stream)?;
    let call = inputs.call(attention, out.layout)?;
    let plan = method.plan(attention, &call, kernels)?;
    check_contexts(kernels, inputs)?;
    kernels.check_context("out", out.buffer.stream().context())?;
    if let Some(lse) = &lse {
        check_lse(attention, &call.q, lse.len())?;
        kernels.check_context("lse", lse.stream().context())?;
    }
    if let Some(report) = &report {
        let expected = 2 * attention.heads_q();
        if report.len() != expected {
            let expected = format!("2 * heads_q = {expected}");
            return Err(length("report", report.len(), expected));
        }
        kernels.check_context("report", report.stream().context())?;
    }
    let expected = (plan.workspace_bytes() / size_of::<f32>() as u64) as usize;
    if workspace.len() < expected {
        let expected = format!("at least {expected}");
        return Err(length("workspace", workspace.len(), expected));
    }
    kernels.check_context("workspace", workspace.stream().context())?;
    if plan.launches().is_empty() {
        return Ok(());
    }

    // The guards make the stream wait for what others do with the buffers, and later others for this: they live until
    // after the launch.
    let (q, _q) = inputs.q.buffer.device_ptr(stream);
    let (k, _k) = inputs.k.buffer.device_ptr(stream);
    let (v, _v) = inputs.v.buffer.device_ptr(stream);
    let sequences = &inputs.sequences;
    let (cu_seqlens_q, _cu_q) = read(sequences.cu_seqlens_q, stream);
    let (cu_seqlens_k, _cu_k) = read(sequences.cu_seqlens_k, stream);
    let (seqused_k, _seqused_k) = read(sequences.seqused_k, stream);
    let (leftpad_k, _leftpad_k) = read(sequences.leftpad_k, stream);
    let (block_table, _block_table) = read(sequences.block_table, stream);
    let (centres, _centres) = read(sequences.radii.map(|radii| radii.centres), stream);
    let (radii, _radii) = read(sequences.radii.map(|radii| radii.radii), stream);
    let (out, _out) = out.buffer.device_ptr_mut(stream);
    let (lse, _lse) = lse.map(|lse| lse.device_ptr_mut(stream)).unzip();
    let (report, _report) = report.map(|report| report.device_ptr_mut(stream)).unzip();
    let (workspace, _workspace) = workspace.device_ptr_mut(stream);
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
        block_table,
        centres,
        radii,
        report: report.unwrap_or(0),
        workspace,
    };
    // SAFETY: views are as long as their layouts need, and `check_lse`, `check_buffers` and the lines above have checked the
    // rest. The guards order the work before anything that frees or writes the buffers; the caller vouches for the slopes.
    unsafe { plan.run(&launcher, &addresses) }
}

/// Checks the contexts of all inputs.
fn check_contexts<T>(kernels: &Kernels, inputs: &Inputs<'_, T>) -> Result<()> {
    let check = |argument, stream: &CudaStream| kernels.check_context(argument, stream.context());
    for (argument, view) in [("q", &inputs.q), ("k", &inputs.k), ("v", &inputs.v)] {
        check(argument, view.buffer.stream())?;
    }
    let sequences = &inputs.sequences;
    for (argument, array) in [
        ("cu_seqlens_q", sequences.cu_seqlens_q),
        ("cu_seqlens_k", sequences.cu_seqlens_k),
        ("block_table", sequences.block_table),
        ("seqused_k", sequences.seqused_k),
        ("leftpad_k", sequences.leftpad_k),
    ] {
        if let Some(array) = array {
            check(argument, array.stream())?;
        }
    }
    if let Some(radii) = sequences.radii {
        check("centres", radii.centres.stream())?;
        check("radii", radii.radii.stream())?;
    }
    Ok(())
}

impl<T: Element> Inputs<'_, T> {
    /// The tensors without their data.
    fn call(&self, attention: &Attention, out: Layout) -> Result<Call> {
        let tensors = [self.q.layout, self.k.layout, self.v.layout, out];
        let shape = self.sequences.check(attention, tensors)?;
        let [q, k, v, out] = tensors;
        Ok(Call {
            dtype: T::DTYPE,
            q,
            k,
            v,
            out,
            packed: shape.packed,
            paged: shape.paged,
        })
    }
}

/// Where a buffer lies, if there is one.
fn read<'a, T>(
    buffer: Option<&'a dyn DevicePtr<T>>,
    stream: &'a CudaStream,
) -> (u64, Option<SyncOnDrop<'a>>) {
    let (address, guard) = buffer.map(|buffer| buffer.device_ptr(stream)).unzip();
    (address.unwrap_or(0), guard)
}

fn length(argument: &'static str, found: usize, expected: String) -> Error {
    Error::Argument(error::Error::Length {
        argument,
        found,
        expected,
    })
}

/// A call of few rows: it needs the kernels that larger calls of the layer do.
fn small_call(
    attention: &Attention,
    dtype: Dtype,
    seqlen_q: usize,
    seqlen_k: usize,
) -> error::Result<Call> {
    let batch = attention.slopes().batch().unwrap_or(1);
    let layout = |argument, rows, heads| {
        Layout::contiguous(argument, &[batch, rows, heads, attention.head_dim()])
    };
    let (q, k) = (
        layout("q", seqlen_q, attention.heads_q())?,
        layout("k", seqlen_k, attention.heads_k())?,
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

/// The same call of a cache that has radii, of as many keys.
fn with_pages(call: Call, keys: usize) -> error::Result<Call> {
    const PAGE_SIZE: usize = 8;
    let pool = Layout::contiguous("k", &[1, PAGE_SIZE, call.k.heads, call.k.head_dim])?;
    let paged = Paged {
        columns: keys / PAGE_SIZE,
        stride: keys / PAGE_SIZE,
        max_seqlen_k: keys,
        radii: true,
    };
    Ok(Call {
        k: pool,
        v: pool,
        paged: Some(paged),
        ..call
    })
}
