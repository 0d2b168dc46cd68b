//! ALiBi attention on candle tensors: the functions of candle-flash-attn, and [`attend`].
//!
//! The six `flash_attn_*` functions have the names, arguments and shapes of candle-flash-attn 0.11's ALiBi family, so a
//! program that uses those changes one line:
//!
//! ```
//! // use candle_flash_attn::flash_attn_alibi;
//! use flash_alibi::candle::flash_attn_alibi;
//! # use candle_core::{Device, Tensor};
//!
//! # fn main() -> candle_core::Result<()> {
//! let q = Tensor::randn(0f32, 1., (1, 16, 8, 64), &Device::Cpu)?; // [batch, seqlen_q, heads_q, head_dim]
//! let k = Tensor::randn(0f32, 1., (1, 16, 2, 64), &Device::Cpu)?; // [batch, seqlen_k, heads_k, head_dim]
//! let v = Tensor::randn(0f32, 1., (1, 16, 2, 64), &Device::Cpu)?;
//! let slopes = Tensor::new(flash_alibi::Slopes::geometric(8).as_slice(), &Device::Cpu)?;
//! let out = flash_attn_alibi(&q, &k, &v, &slopes, 1.0 / 8.0, true)?;
//! assert_eq!(out.dims(), q.dims());
//! # Ok(())
//! # }
//! ```
//!
//! An engine that describes its layers once calls [`attend`] instead, which also returns the lse, and reads keys and values
//! from a paged cache ([`Lengths::paged`]) that [`append`] writes to.
//!
//! # Tensors
//! q, k and v are f16, bf16 or f32, all of one type, with any strides and offset as long as the last dimension is
//! contiguous; they are not copied. `out` is a new contiguous tensor of q's shape, type and device. There is no backward
//! pass: `backward` through `out` is an error, as in candle-flash-attn, and the lse is detached.
//!
//! With the feature `candle-cuda` all tensors may be on a CUDA device, q, k and v in f16 or bf16. Calls are enqueued on the
//! device's stream and wait for nothing; slopes, lengths and pages stay on the device, so what is wrong with their values is
//! no error there: lengths and pages that exceed the tensors are cut off, so that no access leaves them. The first call on a
//! device loads the kernels. A call whose sequences have up to 16 queries each runs the kernels for decoding, which split keys
//! over the whole device.
//!
//! As candle's own operations do, a call allocates its results from candle's device, and a workspace if it needs one. The
//! slopes of an [`Attention`] are uploaded in the first call that has them, and that call waits for it. An engine that
//! captures graphs keeps a `cuda::Layer`.
//!
//! # Differences from candle-flash-attn
//! On purpose:
//! - CPU tensors and f32 are accepted; slopes may be `[batch, heads_q]`, and f64, f16 or bf16, which are read as f32; lengths
//!   may be U32, I32 or I64; slopes and lengths may have any strides.
//! - `head_dim` goes up to 512 on the CPU, and to 256 on a CUDA device.
//! - A window is applied as given: one larger than the sequence covers all of it.
//! - The lse of [`attend`] is that of the true biased scores `x(i,j)` of [`Attention`]; the FlashAttention-2 kernels
//!   below candle-flash-attn omit a term of the row in theirs when the mask is causal.
//! - On the CPU lengths are checked: decreasing ones, ones past the end of a tensor and ones above `max_seqlen_q` or
//!   `max_seqlen_k` are errors. Rows of q past the last sequence give zeros.
//!
//! # Errors
//! Whatever does not fit is an error that names the argument, what was found and what was expected. The
//! [`Error`](crate::Error) is the [source](std::error::Error::source) of the `candle_core::Error`:
//!
//! ```
//! # use candle_core::{DType, Device, Tensor};
//! use std::error::Error as _;
//! # fn main() -> candle_core::Result<()> {
//! # let q = Tensor::zeros((1, 4, 2, 12), DType::F32, &Device::Cpu)?;
//! # let slopes = Tensor::zeros(2, DType::F32, &Device::Cpu)?;
//! let error = flash_alibi::candle::flash_attn_alibi(&q, &q, &q, &slopes, 1.0, true).unwrap_err();
//! assert_eq!(error.to_string(), "head_dim: found 12, expected a multiple of 8 from 8 to 512");
//! assert!(error.source().unwrap().is::<flash_alibi::Error>());
//! # Ok(())
//! # }
//! ```

mod append;
mod call;
mod copy;
#[cfg(feature = "candle-cuda")]
mod cuda;
mod error;
mod flash_attn;
mod gather;
mod integers;
mod layout;
mod lengths;
mod memory;
mod merge;
pub mod paged_attention;
mod plain;
mod pools;

pub use candle_core;

pub use append::{append, append_with_radii};
pub use copy::copy_pages;
pub use flash_attn::{
    flash_attn_alibi, flash_attn_alibi_windowed, flash_attn_alibi_windowed_softcap,
    flash_attn_varlen_alibi, flash_attn_varlen_alibi_windowed,
    flash_attn_varlen_alibi_windowed_softcap,
};
pub use layout::CacheLayout;
pub use lengths::Lengths;
pub use merge::merge_states;
pub use plain::{
    flash_attn, flash_attn_varlen, flash_attn_varlen_paged_alibi_windowed,
    flash_attn_varlen_paged_windowed, flash_attn_varlen_windowed, flash_attn_windowed,
};

use candle_core::{Result, Tensor};

use crate::Attention;
use call::{Call, Layer};

/// Attention of a layer described once, and its lse: `(out, lse)`.
///
/// `out` is as q. `lse` is the natural logarithm of the sum of the exponentials of each row's biased scores, `-inf` for a row that
/// sees no key: f32 `[batch, heads_q, seqlen_q]`, or `[heads_q, total_q]` for packed sequences, or `[heads_q, batch]` where q is
/// `[batch, heads_q, head_dim]`, one query a sequence. See [`Attention`] for what is computed and [`Lengths`] for the shapes.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use flash_alibi::candle::{Lengths, attend};
/// use flash_alibi::{Attention, Slopes};
///
/// # fn main() -> candle_core::Result<()> {
/// let layer = Attention::new(16, 16, 64).slopes(Slopes::geometric(16)).build()?;
/// let q = Tensor::randn(0f32, 1., (2, 1, 16, 64), &Device::Cpu)?;
/// let k = Tensor::randn(0f32, 1., (2, 32, 16, 64), &Device::Cpu)?;
/// let used = Tensor::new(&[32u32, 7], &Device::Cpu)?;
/// let (out, lse) = attend(&layer, &q, &k, &k, Lengths::dense().seqused_k(&used))?;
/// assert_eq!(out.dims(), [2, 1, 16, 64]);
/// assert_eq!(lse.dims(), [2, 16, 1]);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// When tensors are not all on one device that this build computes on, of another type, or do not fit the layer or each
/// other; on a CUDA device also what [`crate::Error`] does not name: a `candle_core::Error::Cuda`.
pub fn attend(
    attention: &Attention,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    lengths: Lengths<'_>,
) -> Result<(Tensor, Tensor)> {
    let layer = Layer::Prepared(attention);
    Call {
        layer,
        q,
        k,
        v,
        lengths,
    }
    .run()
}
