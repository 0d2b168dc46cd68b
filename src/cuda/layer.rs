//! A layer on a device.

use std::sync::Arc;

use cudarc::driver::CudaStream;

use super::call::{self, Call, Method, Slopes};
use super::slopes::UploadedSlopes;
use super::{BufferMut, CacheElement, Element, Inputs, Kernels, Result, ViewMut};
use crate::attention::Attention;
use crate::plan::{Plan, check_head_dim};

/// An [`Attention`] layer in a CUDA context: its kernels are loaded and its slopes uploaded.
///
/// Kernels stay loaded and slopes on the device, for other layers too, so that a layer can be dropped while its calls run,
/// and nothing waits.
#[derive(Debug)]
pub struct Layer {
    pub(super) attention: Attention,
    pub(super) kernels: &'static Kernels,
    /// `[heads_q]` or `[batch, heads_q]`.
    slopes: Arc<UploadedSlopes>,
}

impl Layer {
    /// Makes a layer in the stream's context. Other streams of the context can use it as well.
    ///
    /// The kernels are loaded with the first layer of a context that needs them, and stay until the process ends; the
    /// context is held as long. Slopes are uploaded with the first layer that has them, which is waited for. So make layers
    /// when a model is loaded, not while a stream captures.
    ///
    /// # Errors
    /// [`Error::DeviceTooOld`](super::Error::DeviceTooOld), [`Error::NoKernelImage`](super::Error::NoKernelImage),
    /// [`Error::OutOfMemory`](super::Error::OutOfMemory) or [`Error::Driver`](super::Error::Driver), and
    /// [`Error::Capturing`](super::Error::Capturing) for a stream that captures. Without a driver there is no stream: see
    /// [`context`](super::context). [`Error::Argument`](super::Error::Argument) for a `head_dim` above 256.
    pub fn new(stream: &Arc<CudaStream>, attention: Attention) -> Result<Self> {
        check_head_dim(attention.head_dim())?;
        let kernels = Kernels::of(stream.context())?;
        kernels.load(&attention)?;
        let slopes = kernels.slopes(stream, attention.slopes().as_slice())?;
        Ok(Self {
            attention,
            kernels,
            slopes,
        })
    }

    /// What the layer computes.
    pub fn attention(&self) -> &Attention {
        &self.attention
    }

    pub(super) fn slopes(&self) -> &UploadedSlopes {
        &self.slopes
    }

    /// The bytes of a workspace for every call with no more sequences, query rows a sequence and keys a sequence than these,
    /// wherever it begins. The keys of a paged cache are those that its block table has room for, or
    /// [`Inputs::max_seqlen_k`] if that is less.
    pub fn workspace_bytes(
        &self,
        max_batch: usize,
        max_seqlen_q: usize,
        max_seqlen_k: usize,
    ) -> usize {
        call::at_any_alignment(Plan::workspace_bytes_up_to(
            &self.attention,
            self.kernels.device(),
            max_batch,
            max_seqlen_q,
            max_seqlen_k,
        ))
    }

    /// Computes attention: dense, padded, packed, or from a paged cache. See [`Attention`] for what is computed.
    ///
    /// `out` is of q's shape with strides of its own; `lse`, if wanted, `[batch, heads_q, seqlen_q]` (packed:
    /// `[heads_q, total_q]`) without gaps. Rows of packed tensors that belong to no sequence are left as they are.
    /// `workspace` is of any content, and at least [`Layer::workspace_bytes`] long. Calls that can run at the same time need
    /// one each.
    ///
    /// Where no sequence can have more than 16 query rows, this is [`Layer::decode`], and otherwise [`Layer::prefill`]: by
    /// the rows of q, or `max_seqlen_q` of packed ones. What is launched depends on shapes alone, not on lengths: a captured
    /// call can be replayed while they grow.
    ///
    /// The work is enqueued on `stream`; the call does not wait for it. It allocates nothing on the device.
    ///
    /// # Errors
    /// [`Error::Argument`](super::Error::Argument) for inputs that do not fit the layer or each other,
    /// [`Error::Context`](super::Error::Context) for a stream or a buffer of another context,
    /// [`Error::Unordered`](super::Error::Unordered) for a buffer whose use by others cannot be ordered with the call's,
    /// [`Error::Capturing`](super::Error::Capturing) and [`Error::NotHeld`](super::Error::NotHeld) for what a graph would
    /// outlive: nothing is launched then. [`Error::Driver`](super::Error::Driver) when the driver refuses.
    pub fn forward<Q: Element, KV: CacheElement<Q>>(
        &self,
        stream: &CudaStream,
        inputs: &Inputs<'_, Q, KV>,
        out: ViewMut<'_, Q>,
        lse: Option<&mut dyn BufferMut<f32>>,
        workspace: &mut dyn BufferMut<u8>,
    ) -> Result<()> {
        let method = inputs.method();
        self.attend(method, stream, inputs, out, lse, workspace, None)
    }

    /// [`Layer::forward`] with the kernels for many queries a sequence.
    ///
    /// A paged cache that has [`Inputs::radii`] is read only as far as the keys may change the result, if the layer has a
    /// [horizon](crate::Horizon); otherwise all keys are looked at first.
    ///
    /// # Errors
    /// As [`Layer::forward`].
    pub fn prefill<Q: Element, KV: CacheElement<Q>>(
        &self,
        stream: &CudaStream,
        inputs: &Inputs<'_, Q, KV>,
        out: ViewMut<'_, Q>,
        lse: Option<&mut dyn BufferMut<f32>>,
        workspace: &mut dyn BufferMut<u8>,
    ) -> Result<()> {
        self.attend(Method::Prefill, stream, inputs, out, lse, workspace, None)
    }

    /// [`Layer::prefill`], which also says what the [horizon](crate::Horizon) left out: to `report`, `[heads_q, 2]`, it adds the
    /// tiles of keys that were computed for the blocks of rows of each head, and all of them.
    ///
    /// # Errors
    /// As [`Layer::forward`].
    #[allow(clippy::too_many_arguments)]
    pub fn prefill_with_report<Q: Element, KV: CacheElement<Q>>(
        &self,
        stream: &CudaStream,
        inputs: &Inputs<'_, Q, KV>,
        out: ViewMut<'_, Q>,
        lse: Option<&mut dyn BufferMut<f32>>,
        workspace: &mut dyn BufferMut<u8>,
        report: &mut dyn BufferMut<u64>,
    ) -> Result<()> {
        let report = Some(report);
        self.attend(Method::Prefill, stream, inputs, out, lse, workspace, report)
    }

    /// [`Layer::forward`] with the kernels for few queries a sequence, as decoding has: keys and values are read once for all
    /// heads that share them, and split over the whole device. They compute any number of queries.
    ///
    /// A paged cache that has [`Inputs::radii`] is read only as far as the keys may change the result, if the layer's
    /// [`Horizon`](crate::Horizon) is certified and a sequence can have 2048 keys or more: so far keys cost nothing but
    /// four bytes a page. [`Horizon::Bitwise`](crate::Horizon::Bitwise) leaves out nothing here.
    ///
    /// # Errors
    /// As [`Layer::forward`].
    pub fn decode<Q: Element, KV: CacheElement<Q>>(
        &self,
        stream: &CudaStream,
        inputs: &Inputs<'_, Q, KV>,
        out: ViewMut<'_, Q>,
        lse: Option<&mut dyn BufferMut<f32>>,
        workspace: &mut dyn BufferMut<u8>,
    ) -> Result<()> {
        self.attend(Method::Decode, stream, inputs, out, lse, workspace, None)
    }

    #[allow(clippy::too_many_arguments)]
    fn attend<Q: Element, KV: CacheElement<Q>>(
        &self,
        method: Method,
        stream: &CudaStream,
        inputs: &Inputs<'_, Q, KV>,
        mut out: ViewMut<'_, Q>,
        lse: Option<&mut dyn BufferMut<f32>>,
        workspace: &mut dyn BufferMut<u8>,
        report: Option<&mut dyn BufferMut<u64>>,
    ) -> Result<()> {
        let call = Call {
            method,
            slopes: Slopes::Uploaded(&self.slopes),
            inputs,
            out: out.reborrow(),
            lse: lse.map(|lse| lse as _),
            workspace,
            report: report.map(|report| report as _),
        };
        call::attend(self.kernels, &self.attention, stream, call)
    }
}
