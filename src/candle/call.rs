//! A call of attention, and how it is computed on the CPU.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp3, DType, Result, Shape, Tensor, WithDType};
use half::{bf16, f16};

use super::Lengths;
use super::error::{Backend, bad_dtype, bad_shape, check_device, rename};
use super::lengths::HostLengths;
use super::memory::{Input, to_host, view};
use super::pools::is_split;
use crate::cpu::{self, Element};
use crate::error::Error;
use crate::{Attention, Inputs, Mask, Slopes};

/// A call as it was made: nothing of it has been read from a device yet.
#[derive(Clone, Copy)]
pub(super) struct Call<'a> {
    pub(super) layer: Layer<'a>,
    pub(super) q: &'a Tensor,
    pub(super) k: &'a Tensor,
    pub(super) v: &'a Tensor,
    pub(super) lengths: Lengths<'a>,
}

/// The layer as the caller gave it.
#[derive(Clone, Copy)]
pub(super) enum Layer<'a> {
    Prepared(&'a Attention),
    Described(Description<'a>),
}

/// The arguments from which candle-flash-attn's functions describe their layer anew in every call.
#[derive(Clone, Copy)]
pub(super) struct Description<'a> {
    pub(super) alibi_slopes: Option<&'a Tensor>,
    pub(super) softmax_scale: f32,
    pub(super) window: (Option<usize>, Option<usize>),
    pub(super) softcap: f32,
}

impl Call<'_> {
    pub(super) fn run(&self) -> Result<(Tensor, Tensor)> {
        if self.q.rank() == 3 && self.lengths.is_paged_batch() {
            // One query a sequence: `[batch, heads_q, head_dim]`.
            let q = &self.q.unsqueeze(1)?;
            let (out, lse) = Call { q, ..*self }.run()?;
            let lse = lse.squeeze(2)?.t()?.contiguous()?;
            return Ok((out.squeeze(1)?, lse));
        }
        self.check_tensors()?;
        match (self.lengths.block_table(), Backend::of("q", self.q)?) {
            (Some(block_table), _) if is_split(self.k) => self.run_gathered(block_table),
            (_, Backend::Cpu) => self.cpu(),
            #[cfg(feature = "candle-cuda")]
            (_, Backend::Cuda) => self.cuda(),
        }
    }

    /// Checks devices and types.
    fn check_tensors(&self) -> std::result::Result<(), Error> {
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
        let backend = Backend::of("q", self.q)?;
        backend.check_dtypes(("q", self.q), &[("k", self.k), ("v", self.v)])
    }

    /// Slopes that are a tensor.
    pub(super) fn slopes(&self) -> Option<&Tensor> {
        match &self.layer {
            Layer::Prepared(_) => None,
            Layer::Described(layer) => layer.alibi_slopes,
        }
    }

    /// The layer; `values` gives those of its slopes.
    pub(super) fn attention(
        &self,
        values: fn(&Tensor) -> Result<Vec<f32>>,
    ) -> Result<Cow<'_, Attention>> {
        Ok(match &self.layer {
            Layer::Prepared(attention) => Cow::Borrowed(*attention),
            Layer::Described(layer) => Cow::Owned(layer.build(self, values)?),
        })
    }

    fn cpu(&self) -> Result<(Tensor, Tensor)> {
        let attention = self.attention(|slopes| to_host(&slopes.to_dtype(DType::F32)?))?;
        let lse = Arc::new(Mutex::new(Vec::new()));
        let op = CpuOp {
            attention: attention.into_owned(),
            lengths: self.lengths.to_host(self.q, self.k.dims())?,
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
        // A transposed q is likelier than as many slopes as it has rows.
        if let Some([.., heads]) = self.alibi_slopes.map(Tensor::dims)
            && *heads != heads_q
        {
            let of = format!("the {heads} of alibi_slopes");
            return Err(other_heads("q", call.q, &of, |found| found == *heads).into());
        }
        let heads_k = match (call.lengths.block_table(), call.k.dims()) {
            (Some(_), &[_, _, heads_k, _] | &[_, heads_k, _, _, _]) => heads_k,
            (Some(_), _) => {
                let expected = "[pages, page_size, heads_k, head_dim]";
                return Err(bad_shape("k", call.k, expected.into()).into());
            }
            (None, _) => dims("k", call.k, "k", "heads_k")?.0,
        };
        let divides = |heads_k: usize| heads_k > 0 && heads_q.is_multiple_of(heads_k);
        if !divides(heads_k) {
            let of = format!("a divisor of the {heads_q} of q");
            if call.lengths.block_table().is_some() {
                let expected = format!("[pages, page_size, heads_k, head_dim], its heads {of}");
                return Err(bad_shape("k", call.k, expected).into());
            }
            return Err(other_heads("k", call.k, &of, divides).into());
        }

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

/// A tensor of another number of heads than it should have, which is what a transposed one looks like.
fn other_heads(
    argument: &'static str,
    tensor: &Tensor,
    heads: &str,
    fits: impl Fn(usize) -> bool,
) -> Error {
    let packed = tensor.rank() == 3;
    let at = tensor.rank() - 2;
    let rows = match (packed, argument) {
        (false, "q") => "batch, seqlen_q, heads_q",
        (false, _) => "batch, seqlen_k, heads_k",
        (true, "q") => "total_q, heads_q",
        (true, _) => "total_k, heads_k",
    };
    let mut expected = format!("[{rows}, head_dim], its heads {heads}");
    if fits(tensor.dims()[at - 1]) {
        let before = at - 1;
        expected +=
            &format!("; dimensions {before} and {at} of {argument} may need to be transposed");
    }
    bad_shape(argument, tensor, expected)
}

fn read_slopes(
    slopes: &Tensor,
    batch: usize,
    heads: usize,
    values: fn(&Tensor) -> Result<Vec<f32>>,
) -> Result<Slopes> {
    if !matches!(
        slopes.dtype(),
        DType::F32 | DType::F64 | DType::F16 | DType::BF16
    ) {
        let expected = "dtype F32, F64, F16 or BF16";
        return Err(bad_dtype("alibi_slopes", slopes.dtype(), expected).into());
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
pub(super) fn lse_shape(out: &Shape) -> Shape {
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
