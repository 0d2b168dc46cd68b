//! Attention on the CPU: the f64 [`oracle`], and a fast path for any machine.

mod block;
mod bounds;
mod element;
mod few;
mod gemm;
mod kv_cache;
mod machine;
pub mod oracle;
mod pools;
mod report;
mod schedule;
mod softmax;
mod state;
mod tile;
mod vector;
mod work;

pub use element::{CacheElement, Element};
pub use kv_cache::{KvCache, append, append_with_radii, copy_pages};
pub use pools::Pools;
#[cfg(any(feature = "candle", feature = "cuda"))]
pub(crate) use pools::check_apart;
#[cfg(feature = "candle")]
pub(crate) use pools::{Memory, check_copies, split_x};
pub use report::Report;

use self::block::Tensors;
use self::report::Counts;
use crate::tensor::ViewMut;
use crate::{Attention, Inputs, Result, problem::Problem};

/// The result of [`attend`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Output<T> {
    /// As q: `[batch, seqlen_q, heads_q, head_dim]` or `[total_q, heads_q, head_dim]`, without gaps.
    pub out: Vec<T>,
    /// `[batch, heads_q, seqlen_q]`, or `[heads_q, total_q]` for packed sequences: the natural logarithm of the sum of
    /// the exponentials of each row's biased scores.
    pub lse: Vec<f32>,
    /// What the horizon left out.
    pub report: Report,
}

/// Computes attention and returns it in new buffers. See [`Attention`] for what is computed.
///
/// Rows of packed tensors that belong to no sequence are zero.
///
/// # Errors
/// [`Error`](crate::Error) for inputs that do not fit the layer or each other.
pub fn attend<Q: Element, KV: CacheElement<Q>>(
    attention: &Attention,
    inputs: &Inputs<'_, Q, KV>,
) -> Result<Output<Q>> {
    let problem = Problem::new(attention, inputs, None)?;
    let mut out = problem.buffer(Q::default(), problem.out.elements())?;
    let mut lse = problem.buffer(0.0, problem.lse_len())?;
    let counts = Counts::new(&problem);
    run(&problem, inputs, &mut out, Some(&mut lse), Some(&counts));
    Ok(Output {
        out,
        lse,
        report: counts.finish(),
    })
}

/// Computes attention into the caller's buffers: `out` of q's shape with strides of its own, and `lse` of
/// `[batch, heads_q, seqlen_q]` (packed: `[heads_q, total_q]`) without gaps.
///
/// Work is spread over the current rayon thread pool; the result does not depend on the number of threads.
///
/// # Errors
/// [`Error`](crate::Error) for inputs that do not fit the layer or each other; nothing is written then.
pub fn attend_into<Q: Element, KV: CacheElement<Q>>(
    attention: &Attention,
    inputs: &Inputs<'_, Q, KV>,
    out: ViewMut<'_, Q>,
    lse: Option<&mut [f32]>,
) -> Result<()> {
    let problem = Problem::new(attention, inputs, Some(out.layout))?;
    if let Some(lse) = &lse {
        problem.check_lse(lse)?;
    }
    run(&problem, inputs, out.data, lse, None);
    Ok(())
}

fn run<Q: Element, KV: CacheElement<Q>>(
    problem: &Problem<'_>,
    inputs: &Inputs<'_, Q, KV>,
    out: &mut [Q],
    lse: Option<&mut [f32]>,
    counts: Option<&Counts>,
) {
    let tensors = Tensors {
        problem,
        q: inputs.q.data,
        k: KV::as_query_type(inputs.k).data,
        v: KV::as_query_type(inputs.v).data,
        counts,
    };
    Q::run(&tensors, out, lse);
}
