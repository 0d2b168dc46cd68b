//! Attention on NVIDIA GPUs, of compute capability 8.0 and later, in f16 and bf16.
//!
//! Contexts, streams and buffers are those of [`cudarc`], which engines already have; a [`Layer`] launches on the stream
//! that it is given.
//!
//! ```no_run
//! use flash_alibi::cuda::{self, Inputs, Layer, View, ViewMut};
//! use flash_alibi::Attention;
//! use half::f16;
//!
//! let stream = cuda::context(0)?.new_stream()?;
//!
//! // When the model is loaded: finds the kernels, uploads the slopes, and makes room for the largest call.
//! let layer = Layer::new(&stream, Attention::new(16, 16, 64).build()?)?;
//! let mut workspace = stream.alloc_zeros::<u8>(layer.workspace_bytes(1, 2048, 2048))?;
//!
//! // For each call: checks everything, then launches.
//! let shape = [1, 2048, 16, 64]; // [batch, seqlen, heads, head_dim]
//! let qkv = stream.alloc_zeros::<f16>(3 * 2048 * 16 * 64)?;
//! let mut out = stream.alloc_zeros::<f16>(2048 * 16 * 64)?;
//! let part = |i: usize| qkv.slice(i * 2048 * 16 * 64..);
//! let (q, k, v) = (part(0), part(1), part(2));
//! let inputs = Inputs::new(View::new(&q, &shape)?, View::new(&k, &shape)?, View::new(&v, &shape)?);
//! layer.forward(&stream, &inputs, ViewMut::new(&mut out, &shape)?, None, &mut workspace)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A decoding step over a paged cache appends its keys and values ([`Layer::append`]) and reads the pages
//! ([`Inputs::paged`], [`Layer::forward`]). A cache may also keep how far its keys are from a centre
//! ([`Layer::append_with_radii`], [`Inputs::radii`]): then a step reads only the keys that may change its result.
//!
//! # What safe code can rely on
//!
//! A call checks what it is given before it launches anything, and returns an error that names the argument. Lengths, page
//! numbers and slots that lie on the device cannot be checked there: kernels cut them off, so that no access leaves the
//! tensors ([`Inputs::check`] looks for mistakes).
//!
//! ## Streams
//!
//! Calls wait for nothing on the host. Every buffer of a call must be ordered with its stream, by one of these:
//! - The buffer is of the same stream, or of another handle to the same one. What is done with it is then in order.
//! - The `CudaContext`s of the buffer's stream and of the call's stream both order streams by events
//!   (`is_managing_stream_synchronization`: event tracking is on, and the `CudaContext` has made a stream). The call then
//!   waits on the device for what others do with the buffer, and others, its release included, wait for the call. They may
//!   be two `CudaContext`s of one device, such as candle's and an engine's own. The stream of a buffer that a call on
//!   another stream reads waits for the call, since cudarc remembers one reader of a buffer, and there may be more.
//!
//! Anything else is [`Error::Unordered`]. Such is a buffer of a `CudaContext` that has made no stream, or with event tracking
//! off, for a call on another stream.
//!
//! Two kinds of streams need care that no check can take. The per-thread default stream is one handle for another stream in
//! every thread: a buffer of it that goes to another thread must be synchronised before, also for cudarc's own functions. And
//! with event tracking off (`CudaContext::disable_event_tracking`, which is unsafe) the order is the caller's matter wherever
//! cudarc or others use the buffers.
//!
//! ## Threads, and what stays
//!
//! Layers are `Send` and `Sync`: one serves any number of threads and streams at once, and can be dropped while its calls
//! run. Kernels stay loaded until the process ends, and keep their context; so do slopes, up to some number that no layer has
//! any more. Nothing waits for the device but a [`Layer::new`] with slopes that are not there yet.
//!
//! ## Graphs
//!
//! A graph holds addresses, and cudarc's `CudaGraph` can be launched by safe code when what lay there is gone. So a call on a
//! stream that captures is [`Error::Capturing`], but within [`Step::capture`], whose step owns what its graph uses, or within
//! [`in_unowned_capture`], which is unsafe: whoever captures with cudarc's `begin_capture` and `end_capture` keeps layers and
//! buffers until the graph has run for the last time. Event tracking must be off for both. cudarc's own copies can be
//! captured anywhere: what they copy from and to on the host must outlive the graph too.
//!
//! Make layers before a capture: kernels are loaded and slopes uploaded then.

mod append;
mod buffer;
mod call;
mod capture;
mod check;
mod driver;
mod error;
mod hopper;
mod inputs;
mod kernels;
mod layer;
mod load;
mod merge;
mod pools;
mod slopes;
mod tensor;

pub use cudarc;

pub use buffer::{Buffer, BufferMut};
#[cfg(feature = "candle-cuda")]
pub(crate) use call::{Call, Slopes, attend};
pub use capture::{Held, Step, in_unowned_capture};
pub use driver::context;
pub use error::{Error, Result};
pub use inputs::Inputs;
pub(crate) use kernels::Kernels;
pub use layer::Layer;
pub use pools::Pools;
pub use tensor::{CacheElement, Element, View, ViewMut};

/// What types make impossible: each example that does not compile differs in one thing from one that does.
///
/// cudarc's `DevicePtr` can be implemented for any address, and is not enough:
///
/// ```compile_fail,E0277
/// use flash_alibi::cuda::cudarc::driver::DevicePtr;
/// fn view<B: DevicePtr<half::f16>>(buffer: &B) {
///     let _ = flash_alibi::cuda::View::new(buffer, &[1, 1, 1, 8]);
/// }
/// ```
/// ```
/// use flash_alibi::cuda::Buffer;
/// fn view<B: Buffer<half::f16>>(buffer: &B) {
///     let _ = flash_alibi::cuda::View::new(buffer, &[1, 1, 1, 8]);
/// }
/// ```
///
/// Nor can another type be a buffer, not even one that holds a buffer:
///
/// ```compile_fail,E0277
/// use flash_alibi::cuda::{Buffer, cudarc::driver::*};
/// use std::sync::Arc;
/// struct Fake(CudaSlice<f32>);
/// impl DeviceSlice<f32> for Fake {
///     fn len(&self) -> usize { 1 << 30 }
///     fn stream(&self) -> &Arc<CudaStream> { self.0.stream() }
/// }
/// impl DevicePtr<f32> for Fake {
///     fn device_ptr<'a>(&'a self, stream: &'a CudaStream) -> (sys::CUdeviceptr, SyncOnDrop<'a>) {
///         self.0.device_ptr(stream)
///     }
/// }
/// impl Buffer<f32> for Fake {}
/// ```
/// ```
/// use flash_alibi::cuda::{Buffer, cudarc::driver::*};
/// use std::sync::Arc;
/// struct Fake(CudaSlice<f32>);
/// impl DeviceSlice<f32> for Fake {
///     fn len(&self) -> usize { 1 << 30 }
///     fn stream(&self) -> &Arc<CudaStream> { self.0.stream() }
/// }
/// impl DevicePtr<f32> for Fake {
///     fn device_ptr<'a>(&'a self, stream: &'a CudaStream) -> (sys::CUdeviceptr, SyncOnDrop<'a>) {
///         self.0.device_ptr(stream)
///     }
/// }
/// ```
///
/// An output cannot be an input of the same call:
///
/// ```compile_fail,E0502
/// use flash_alibi::cuda::{cudarc::driver::*, *};
/// fn call(layer: &Layer, stream: &CudaStream, x: &mut CudaSlice<half::f16>, workspace: &mut CudaSlice<u8>) -> Result<()> {
///     let view = View::new(x, &[1, 1, 1, 8])?;
///     let out = ViewMut::new(x, &[1, 1, 1, 8])?;
///     layer.forward(stream, &Inputs::new(view, view, view), out, None, workspace)
/// }
/// ```
/// ```
/// use flash_alibi::cuda::{cudarc::driver::*, *};
/// fn call(layer: &Layer, stream: &CudaStream, x: &mut CudaSlice<half::f16>, workspace: &mut CudaSlice<u8>) -> Result<()> {
///     let (x, mut y) = x.split_at_mut(8);
///     let view = View::new(&x, &[1, 1, 1, 8])?;
///     let out = ViewMut::new(&mut y, &[1, 1, 1, 8])?;
///     layer.forward(stream, &Inputs::new(view, view, view), out, None, workspace)
/// }
/// ```
///
/// Nothing that a step lends outlives its next launch:
///
/// ```compile_fail,E0499
/// use flash_alibi::cuda::{cudarc::driver::*, *};
/// fn launch(step: &mut Step<CudaSlice<i32>>) -> Result<usize> {
///     let lengths = step.views();
///     step.launch()?;
///     Ok(lengths.len())
/// }
/// ```
/// ```
/// use flash_alibi::cuda::{cudarc::driver::*, *};
/// fn launch(step: &mut Step<CudaSlice<i32>>) -> Result<usize> {
///     step.launch()?;
///     let lengths = step.views();
///     Ok(lengths.len())
/// }
/// ```
#[cfg(doctest)]
struct Impossible;
