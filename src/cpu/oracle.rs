//! The oracle: the contract in f64, written to be obviously right. Every other path is tested against it.

use super::{CacheElement, Element};
use crate::{Attention, Inputs, Result, problem::Problem};

/// The exact result, to f64 rounding.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Reference {
    /// As q: `[batch, seqlen_q, heads_q, head_dim]` or `[total_q, heads_q, head_dim]`, without gaps.
    pub out: Vec<f64>,
    /// `[batch, heads_q, seqlen_q]` or `[heads_q, total_q]`.
    pub lse: Vec<f64>,
}

/// Computes attention in f64, one row at a time, on the inputs as they are: already rounded to their types.
///
/// Rows of packed tensors that belong to no sequence are zero, with an lse of zero.
///
/// # Errors
/// As [`attend`](super::attend).
pub fn attend<Q: Element, KV: CacheElement<Q>>(
    attention: &Attention,
    inputs: &Inputs<'_, Q, KV>,
) -> Result<Reference> {
    let problem = Problem::new(attention, inputs, None)?;
    let [all_k, all_v] = [inputs.k, inputs.v].map(|view| KV::as_query_type(view).data);
    let (scale, head_dim) = (f64::from(attention.scale()), attention.head_dim());
    let mut out = problem.buffer(0.0, problem.out.elements())?;
    let mut lse = problem.buffer(0.0, problem.lse_len())?;

    for sequence in &problem.sequences {
        for head in 0..attention.heads_q() {
            let slope = f64::from(attention.slopes().get(sequence.index, head));
            let head_k = head / attention.group();
            for i in 0..sequence.seqlen_q {
                let at = sequence.q + i * problem.q.row_stride + head * problem.q.head_stride;
                let q = &inputs.q.data[at..][..head_dim];
                let keys = sequence.visible(attention, i);

                let scores: Vec<f64> = keys
                    .clone()
                    .map(|j| {
                        let at = problem.key_row(sequence, &problem.k, sequence.k, j)
                            + head_k * problem.k.head_stride;
                        let k = &all_k[at..][..head_dim];
                        let dot: f64 = q.iter().zip(k).map(|(&q, &k)| f64_of(q) * f64_of(k)).sum();
                        let mut score = scale * dot;
                        if let Some(cap) = attention.softcap() {
                            score = f64::from(cap) * (score / f64::from(cap)).tanh();
                        }
                        score - slope * (sequence.position(i) - j as i64).abs() as f64
                    })
                    .collect();
                // `f64::max` would drop a NaN, which must reach the output.
                let larger = |m: f64, &x: &f64| if m.is_nan() || x <= m { m } else { x };
                let max = scores.iter().fold(f64::NEG_INFINITY, larger);
                let sum: f64 = scores.iter().map(|x| (x - max).exp()).sum();
                let row_lse = match max {
                    f64::NEG_INFINITY => f64::NEG_INFINITY,
                    _ => max + sum.ln(),
                };
                lse[sequence.lse + head * problem.lse_head_stride + i] = row_lse;

                if row_lse == f64::NEG_INFINITY {
                    continue; // No visible key: zero.
                }
                let at = sequence.out + i * problem.out.row_stride + head * problem.out.head_stride;
                let out = &mut out[at..][..head_dim];
                for (j, x) in keys.zip(scores) {
                    let p = (x - row_lse).exp();
                    let at = problem.key_row(sequence, &problem.v, sequence.v, j)
                        + head_k * problem.v.head_stride;
                    for (out, &v) in out.iter_mut().zip(&all_v[at..][..head_dim]) {
                        *out += p * f64_of(v);
                    }
                }
            }
        }
    }
    Ok(Reference { out, lse })
}

fn f64_of<T: Element>(x: T) -> f64 {
    f64::from(x.to_f32())
}
