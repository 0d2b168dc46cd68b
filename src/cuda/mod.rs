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
//! // When the model is loaded: finds the kernels and uploads the slopes.
//! let layer = Layer::new(&stream, Attention::new(16, 16, 64).build()?)?;
//!
//! // For each call: checks everything, then launches.
//! let shape = [1, 2048, 16, 64]; // [batch, seqlen, heads, head_dim]
//! let qkv = stream.alloc_zeros::<f16>(3 * 2048 * 16 * 64)?;
//! let mut out = stream.alloc_zeros::<f16>(2048 * 16 * 64)?;
//! let mut workspace = stream.alloc_zeros::<f32>(layer.prefill_workspace(1, 2048))?;
//! let part = |i: usize| qkv.slice(i * 2048 * 16 * 64..);
//! let (q, k, v) = (part(0), part(1), part(2));
//! let inputs = Inputs::new(View::new(&q, &shape)?, View::new(&k, &shape)?, View::new(&v, &shape)?);
//! layer.prefill(&stream, &inputs, ViewMut::new(&mut out, &shape)?, None, &mut workspace)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A decoding step over a paged cache appends its keys and values ([`Kernels::append`]) and reads the pages
//! ([`Inputs::paged`], [`Layer::decode`]). A cache may also keep how far its keys are from a centre
//! ([`Kernels::append_with_radii`], [`Inputs::radii`]): then a step reads only the keys that may change its result.
//!
//! # Streams, threads and graphs
//!
//! Everything here is `Send` and `Sync`: one layer serves any number of threads and streams at once. Calls wait for nothing;
//! buffers are ordered between streams by cudarc's events, as with every other use of them.
//!
//! A call can be captured in a graph. Events that were recorded before a capture may not be waited for within it, so
//! cudarc's event tracking must be off then (`CudaContext::disable_event_tracking`). The graph holds the addresses: the
//! layer and all buffers must outlive it. Do not make or drop layers of a context while one of its streams captures, since
//! both wait for work to end.

mod append;
mod buffer;
mod call;
mod capture;
mod check;
mod driver;
mod error;
mod inputs;
mod kernels;
mod layer;
mod load;
mod merge;
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
pub use tensor::{CacheElement, Element, View, ViewMut};
