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
//! As candle's own operations do, a call allocates its results from candle's device, and when it decodes a workspace too;
//! [`attend`] also uploads the slopes of its layer. An engine that minds, or that captures graphs, keeps a `cuda::Layer`.
//!
//! # Differences from candle-flash-attn
//! On purpose:
//! - CPU tensors and f32 are accepted; slopes may be `[batch, heads_q]`; slopes and lengths may have any strides.
//! - `head_dim` goes up to 256, not 512.
//! - A window is applied as given: one larger than the sequence covers all of it.
//! - The lse of [`attend`] is that of the true biased scores `x(i,j)` of [`Attention`]; the FlashAttention-2 kernels
//!   below candle-flash-attn omit a term of the row in theirs when the mask is causal.
//! - On the CPU lengths are checked: decreasing ones, ones past the end of a tensor and ones above `max_seqlen_q` or
//!   `max_seqlen_k` are errors. Rows of q past the last sequence give zeros.
//!
//! # Errors
//! Whatever does not fit is an error that names the argument, what was found and what was expected. The
//! [`Error`] is the [source](std::error::Error::source) of the `candle_core::Error`:
//!
//! ```
//! # use candle_core::{DType, Device, Tensor};
//! use std::error::Error as _;
//! # fn main() -> candle_core::Result<()> {
//! # let q = Tensor::zeros((1, 4, 2, 12), DType::F32, &Device::Cpu)?;
//! # let slopes = Tensor::zeros(2, DType::F32, &Device::Cpu)?;
//! let error = flash_alibi::candle::flash_attn_alibi(&q, &q, &q, &slopes, 1.0, true).unwrap_err();
//! assert_eq!(error.to_string(), "head_dim: found 12, expected a multiple of 8 from 8 to 256");
//! assert!(error.source().unwrap().is::<flash_alibi::Error>());
//! # Ok(())
//! # }
//! ```

mod append;
#[cfg(feature = "candle-cuda")]
mod cuda;
mod lengths;

pub use append::{append, append_with_radii};
pub use lengths::Lengths;

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp3, DType, DeviceLocation, Result, Shape, Tensor, WithDType};
use half::{bf16, f16};

use crate::cpu::{self, Element};
use crate::error::{Error, value};
use crate::tensor::{Layout, View};
use crate::{Attention, Inputs, Mask, Slopes};
use lengths::HostLengths;

/// Attention of a layer described once, and its lse: `(out, lse)`.
///
/// `out` is as q; `lse` is f32 `[batch, heads_q, seqlen_q]`, or `[heads_q, total_q]` for packed sequences: the natural
/// logarithm of the sum of the exponentials of each row's biased scores, `-inf` for a row that sees no key. See
/// [`Attention`] for what is computed and [`Lengths`] for the shapes.
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

/// ALiBi attention; the function of this name in candle-flash-attn.
///
/// q `[batch, seqlen_q, heads_q, head_dim]`, k and v `[batch, seqlen_k, heads_k, head_dim]`; `alibi_slopes` f32
/// `[heads_q]` or `[batch, heads_q]`; the dot products are multiplied by `softmax_scale`, the bias is not. `causal`
/// hides the keys after a query's own position, the last query standing at the last key; otherwise the bias is
/// symmetric. Returns a tensor of q's shape.
///
/// # Errors
/// As [`attend`].
pub fn flash_attn_alibi(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    alibi_slopes: &Tensor,
    softmax_scale: f32,
    causal: bool,
) -> Result<Tensor> {
    let right = causal.then_some(0);
    flash_attn_alibi_windowed(q, k, v, alibi_slopes, softmax_scale, None, right)
}

/// [`flash_attn_alibi`] where a query at position `p` sees the keys
/// `p - window_size_left ..= p + window_size_right`; `None` leaves a side open. `(None, Some(0))` is causal.
///
/// # Errors
/// As [`attend`].
pub fn flash_attn_alibi_windowed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    alibi_slopes: &Tensor,
    softmax_scale: f32,
    window_size_left: Option<usize>,
    window_size_right: Option<usize>,
) -> Result<Tensor> {
    flash_attn_alibi_windowed_softcap(
        q,
        k,
        v,
        Some(alibi_slopes),
        softmax_scale,
        window_size_left,
        window_size_right,
        0.0,
    )
}

/// [`flash_attn_alibi_windowed`] where the scaled scores are capped at `softcap * tanh(score / softcap)` before the
/// bias is added. Without slopes there is no bias; with a `softcap` of zero or below, no cap.
///
/// # Errors
/// As [`attend`].
#[allow(clippy::too_many_arguments)] // candle-flash-attn's signature.
pub fn flash_attn_alibi_windowed_softcap(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    alibi_slopes: Option<&Tensor>,
    softmax_scale: f32,
    window_size_left: Option<usize>,
    window_size_right: Option<usize>,
    softcap: f32,
) -> Result<Tensor> {
    let layer = Layer::Described(Description {
        alibi_slopes,
        softmax_scale,
        window: (window_size_left, window_size_right),
        softcap,
    });
    let lengths = Lengths::dense();
    Ok(Call {
        layer,
        q,
        k,
        v,
        lengths,
    }
    .run()?
    .0)
}

/// [`flash_attn_alibi`] over packed sequences of different lengths; the function of this name in candle-flash-attn.
///
/// q `[total_q, heads_q, head_dim]`, k and v `[total_k, heads_k, head_dim]`; `seqlens_q` and `seqlens_k` are the
/// cumulative lengths, u32 `[batch + 1]`: `0, len_0, len_0 + len_1, ...`. No sequence is longer than `max_seqlen_q` and
/// `max_seqlen_k`. Returns a tensor of q's shape.
///
/// # Errors
/// As [`attend`].
#[allow(clippy::too_many_arguments)] // candle-flash-attn's signature.
pub fn flash_attn_varlen_alibi(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    alibi_slopes: &Tensor,
    seqlens_q: &Tensor,
    seqlens_k: &Tensor,
    max_seqlen_q: usize,
    max_seqlen_k: usize,
    softmax_scale: f32,
    causal: bool,
) -> Result<Tensor> {
    flash_attn_varlen_alibi_windowed(
        q,
        k,
        v,
        alibi_slopes,
        seqlens_q,
        seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        softmax_scale,
        None,
        causal.then_some(0),
    )
}

/// [`flash_attn_varlen_alibi`] with the window of [`flash_attn_alibi_windowed`].
///
/// # Errors
/// As [`attend`].
#[allow(clippy::too_many_arguments)] // candle-flash-attn's signature.
pub fn flash_attn_varlen_alibi_windowed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    alibi_slopes: &Tensor,
    seqlens_q: &Tensor,
    seqlens_k: &Tensor,
    max_seqlen_q: usize,
    max_seqlen_k: usize,
    softmax_scale: f32,
    window_size_left: Option<usize>,
    window_size_right: Option<usize>,
) -> Result<Tensor> {
    flash_attn_varlen_alibi_windowed_softcap(
        q,
        k,
        v,
        Some(alibi_slopes),
        seqlens_q,
        seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        softmax_scale,
        window_size_left,
        window_size_right,
        0.0,
    )
}

/// [`flash_attn_varlen_alibi`] with the window and softcap of [`flash_attn_alibi_windowed_softcap`].
///
/// # Errors
/// As [`attend`].
#[allow(clippy::too_many_arguments)] // candle-flash-attn's signature.
pub fn flash_attn_varlen_alibi_windowed_softcap(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    alibi_slopes: Option<&Tensor>,
    seqlens_q: &Tensor,
    seqlens_k: &Tensor,
    max_seqlen_q: usize,
    max_seqlen_k: usize,
    softmax_scale: f32,
    window_size_left: Option<usize>,
    window_size_right: Option<usize>,
    softcap: f32,
) -> Result<Tensor> {
    let layer = Layer::Described(Description {
        alibi_slopes,
        softmax_scale,
        window: (window_size_left, window_size_right),
        softcap,
    });
    let lengths = Lengths::varlen(seqlens_q, seqlens_k, max_seqlen_q, max_seqlen_k);
    Ok(Call {
        layer,
        q,
        k,
        v,
        lengths,
    }
    .run()?
    .0)
}

/// A call as it was made: nothing of it has been read from a device yet.
struct Call<'a> {
    layer: Layer<'a>,
    q: &'a Tensor,
    k: &'a Tensor,
    v: &'a Tensor,
    lengths: Lengths<'a>,
}

/// The layer as the caller gave it.
enum Layer<'a> {
    Prepared(&'a Attention),
    Described(Description<'a>),
}

/// The arguments from which candle-flash-attn's functions describe their layer anew in every call.
struct Description<'a> {
    alibi_slopes: Option<&'a Tensor>,
    softmax_scale: f32,
    window: (Option<usize>, Option<usize>),
    softcap: f32,
}

impl Call<'_> {
    /// The one place where the device decides.
    fn run(&self) -> Result<(Tensor, Tensor)> {
        let others = [
            ("k", Some(self.k)),
            ("v", Some(self.v)),
            ("alibi_slopes", self.slopes()),
        ];
        let device = self.q.device().location();
        let lengths = self
            .lengths
            .tensors()
            .into_iter()
            .chain(self.lengths.floats());
        for (argument, tensor) in others.into_iter().chain(lengths) {
            if let Some(tensor) = tensor {
                check_device(argument, tensor.device().location(), (device, "q"))?;
            }
        }
        match device {
            DeviceLocation::Cpu => self.cpu(),
            #[cfg(feature = "candle-cuda")]
            DeviceLocation::Cuda { .. } => self.cuda(),
            #[cfg(not(feature = "candle-cuda"))]
            DeviceLocation::Cuda { .. } => Err(no_path(
                "q",
                "CUDA",
                "a CPU tensor, or a build of flash-alibi with the feature `candle-cuda`",
            )
            .into()),
            DeviceLocation::Metal { .. } => {
                Err(no_path("q", "Metal", "a CPU or CUDA tensor").into())
            }
        }
    }

    /// Slopes that are a tensor.
    fn slopes(&self) -> Option<&Tensor> {
        match &self.layer {
            Layer::Prepared(_) => None,
            Layer::Described(layer) => layer.alibi_slopes,
        }
    }

    /// The layer; `values` gives those of its slopes.
    fn attention(&self, values: fn(&Tensor) -> Result<Vec<f32>>) -> Result<Cow<'_, Attention>> {
        Ok(match &self.layer {
            Layer::Prepared(attention) => Cow::Borrowed(*attention),
            Layer::Described(layer) => Cow::Owned(layer.build(self, values)?),
        })
    }

    fn check_dtypes(&self, allowed: &[DType], expected: &str) -> Result<()> {
        let dtype = self.q.dtype();
        if !allowed.contains(&dtype) {
            return Err(bad_dtype("q", dtype, expected).into());
        }
        for (argument, tensor) in [("k", self.k), ("v", self.v)] {
            if tensor.dtype() != dtype {
                let expected = format!("dtype {dtype:?}, as q");
                return Err(bad_dtype(argument, tensor.dtype(), &expected).into());
            }
        }
        Ok(())
    }

    fn cpu(&self) -> Result<(Tensor, Tensor)> {
        let attention = self.attention(to_host)?;
        let dtypes = [DType::F16, DType::BF16, DType::F32];
        self.check_dtypes(&dtypes, "dtype F16, BF16 or F32")?;
        let lse = Arc::new(Mutex::new(Vec::new()));
        let op = CpuOp {
            attention: attention.into_owned(),
            lengths: self.lengths.to_host(self.q, self.k)?,
            lse: Arc::clone(&lse),
        };
        let out = self.q.apply_op3(self.k, self.v, op)?;
        let lse = std::mem::take(&mut *lse.lock().unwrap_or_else(PoisonError::into_inner));
        let lse = Tensor::from_vec(lse, lse_shape(out.shape()), self.q.device())?;
        Ok((out, lse))
    }
}

impl Description<'_> {
    fn build(&self, call: &Call<'_>, values: fn(&Tensor) -> Result<Vec<f32>>) -> Result<Attention> {
        let packed = call.lengths.seqlens_q();
        let dims = |argument, tensor: &Tensor, rows: &str, heads: &str| match *tensor.dims() {
            [_, _, heads, head_dim] if packed.is_none() => Ok((heads, head_dim)),
            [_, heads, head_dim] if packed.is_some() => Ok((heads, head_dim)),
            _ => {
                let rows = match packed {
                    Some(_) => format!("total_{rows}"),
                    None => format!("batch, seqlen_{rows}"),
                };
                Err(bad_shape(
                    argument,
                    tensor,
                    format!("[{rows}, {heads}, head_dim]"),
                ))
            }
        };
        let (heads_q, head_dim) = dims("q", call.q, "q", "heads_q")?;
        let (heads_k, _) = dims("k", call.k, "k", "heads_k")?;

        let slopes = match self.alibi_slopes {
            Some(slopes) => {
                let batch = match packed {
                    Some(seqlens) => seqlens.elem_count().saturating_sub(1),
                    None => call.q.dims()[0],
                };
                read_slopes(slopes, batch, heads_q, values)?
            }
            None => Slopes::zero(heads_q),
        };
        let mut layer = Attention::new(heads_q, heads_k, head_dim)
            .scale(self.softmax_scale)
            .slopes(slopes)
            .mask(Mask::Bidirectional) // The window says what is causal.
            .window(self.window.0, self.window.1);
        // A NaN is passed on, for `build` to refuse.
        if self.softcap.is_nan() || self.softcap > 0.0 {
            layer = layer.softcap(self.softcap);
        }
        Ok(layer.build().map_err(|error| {
            rename(
                error,
                &[("scale", "softmax_scale"), ("slopes", "alibi_slopes")],
            )
        })?)
    }
}

fn to_host<T: WithDType>(tensor: &Tensor) -> Result<Vec<T>> {
    if tensor.elem_count() == 0 {
        return Ok(Vec::new()); // `to_vec1` panics on an empty slice that starts past the end of its storage.
    }
    tensor.flatten_all()?.to_vec1()
}

fn read_slopes(
    slopes: &Tensor,
    batch: usize,
    heads: usize,
    values: fn(&Tensor) -> Result<Vec<f32>>,
) -> Result<Slopes> {
    if slopes.dtype() != DType::F32 {
        return Err(bad_dtype("alibi_slopes", slopes.dtype(), "dtype F32").into());
    }
    let values = values(slopes)?;
    match *slopes.dims() {
        [h] if h == heads => Ok(Slopes::per_head(&values)),
        [b, h] if (b, h) == (batch, heads) => Ok(Slopes::per_batch_and_head(&values, b, h)?),
        _ => {
            let expected =
                format!("[heads_q] or [batch, heads_q]: [{heads}] or [{batch}, {heads}]");
            Err(bad_shape("alibi_slopes", slopes, expected).into())
        }
    }
}

/// Of the lse that belongs to an output of this shape.
fn lse_shape(out: &Shape) -> Shape {
    match *out.dims() {
        [batch, seqlen_q, heads_q, _] => (batch, heads_q, seqlen_q).into(),
        [total_q, heads_q, _] => (heads_q, total_q).into(),
        _ => out.clone(), // Other ranks are refused.
    }
}

/// A call on the CPU. A candle operation, because that is what makes a backward pass through it an error rather than
/// silently nothing, and what locks the storages that q, k and v may share, as slices of one fused projection do.
struct CpuOp {
    attention: Attention,
    lengths: HostLengths,
    /// A candle operation returns one tensor; the other result leaves through here.
    lse: Arc<Mutex<Vec<f32>>>,
}

type Input<'a> = (&'a CpuStorage, &'a candle_core::Layout);

impl CustomOp3 for CpuOp {
    fn name(&self) -> &'static str {
        "flash-alibi"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &candle_core::Layout,
        k: &CpuStorage,
        k_layout: &candle_core::Layout,
        v: &CpuStorage,
        v_layout: &candle_core::Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let inputs = [(q, q_layout), (k, k_layout), (v, v_layout)];
        let out = match q {
            CpuStorage::F16(_) => self.forward::<f16>(inputs),
            CpuStorage::BF16(_) => self.forward::<bf16>(inputs),
            _ => self.forward::<f32>(inputs),
        }?;
        Ok((out, q_layout.shape().clone()))
    }
}

impl CpuOp {
    fn forward<T: Element + WithDType>(&self, [q, k, v]: [Input<'_>; 3]) -> Result<CpuStorage> {
        let inputs = Inputs::new(view::<T>("q", q)?, view::<T>("k", k)?, view::<T>("v", v)?);
        let inputs = self.lengths.of(&self.attention, inputs)?;
        let cpu::Output { out, lse, .. } = cpu::attend(&self.attention, &inputs)?;
        *self.lse.lock().unwrap_or_else(PoisonError::into_inner) = lse;
        Ok(T::to_cpu_storage_owned(out))
    }
}

fn view<'a, T: WithDType>(argument: &'static str, (storage, at): Input<'a>) -> Result<View<'a, T>> {
    let data = storage.as_slice::<T>()?;
    let data = data.get(at.start_offset()..).unwrap_or_default();
    let layout = Layout::new(argument, at.dims(), at.stride())?;
    layout.check_buffer(argument, data.len())?;
    Ok(View { data, layout })
}

/// Checks that a tensor is where the first one is, which has this name.
fn check_device(
    argument: &'static str,
    found: DeviceLocation,
    (device, name): (DeviceLocation, &str),
) -> std::result::Result<(), Error> {
    if found != device {
        let found = format!("a tensor on {found:?}");
        return Err(value(
            argument,
            found,
            format!("one on {device:?}, as {name}"),
        ));
    }
    Ok(())
}

fn no_path(argument: &'static str, device: &str, expected: &str) -> Error {
    value(argument, format!("a {device} tensor"), expected)
}

fn bad_dtype(argument: &'static str, found: DType, expected: &str) -> Error {
    value(argument, format!("dtype {found:?}"), expected)
}

fn bad_shape(argument: &'static str, found: &Tensor, expected: String) -> Error {
    Error::Shape {
        argument,
        found: found.dims().to_vec(),
        expected,
    }
}

/// What candle-flash-attn calls arguments of [`Inputs`].
const NAMES: [(&str, &str); 2] = [("cu_seqlens_q", "seqlens_q"), ("cu_seqlens_k", "seqlens_k")];

/// Calls an argument what the caller calls it, also where another argument's error speaks of it.
fn rename(mut error: Error, names: &[(&str, &'static str)]) -> Error {
    let (argument, expected) = match &mut error {
        Error::Shape {
            argument, expected, ..
        }
        | Error::Strides {
            argument, expected, ..
        }
        | Error::Length {
            argument, expected, ..
        }
        | Error::Value {
            argument, expected, ..
        } => (argument, expected),
        Error::CacheFull { .. } => return error,
    };
    if let Some((_, name)) = names.iter().find(|(from, _)| from == argument) {
        *argument = name;
    }
    for (from, name) in names.iter().filter(|(from, _)| from.starts_with("cu_")) {
        *expected = expected.replace(from, name);
    }
    error
}

/// What gives a `candle_core::Error` the message and, as its source, the error.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct InvalidInput(#[source] Error);

/// The message is the error's, and so is the [source](std::error::Error::source). So `?` works on this crate's results
/// in functions that return candle's.
impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        // Of candle's variants, the one that keeps a caller's error as a source: `Wrapped` and `Msg` keep only its text.
        let kind = std::io::ErrorKind::InvalidInput;
        candle_core::Error::Io(std::io::Error::new(kind, InvalidInput(error)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // What only a machine with other devices can reach through the public functions.
    #[test]
    fn devices_are_named() {
        let (cpu, cuda) = (DeviceLocation::Cpu, DeviceLocation::Cuda { gpu_id: 1 });
        assert_eq!(check_device("k", cuda, (cuda, "q")), Ok(()));
        assert_eq!(
            check_device("k", cpu, (cuda, "q")).unwrap_err().to_string(),
            "k: found a tensor on Cpu, expected one on Cuda { gpu_id: 1 }, as q"
        );
        assert_eq!(
            no_path("q", "Metal", "a CPU tensor").to_string(),
            "q: found a Metal tensor, expected a CPU tensor"
        );
    }
}
