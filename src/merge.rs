//! Merging attention results over separate sets of keys.

use crate::error::{Error, Result};
use crate::tensor::{View, ViewMut};

/// Merges the attention of one query row over other keys into `(out, lse)`, in place.
///
/// `out` and `other_out` are `[head_dim]`; each lse is the natural logarithm of the sum of the exponentials of the row's
/// biased scores, as [`cpu::attend`](crate::cpu::attend) returns it. With `a` and `b` the two:
///
/// ```text
/// lse = ln(exp(lse_a) + exp(lse_b))
/// out = exp(lse_a - lse) * out_a + exp(lse_b - lse) * out_b
/// ```
///
/// computed relative to the larger lse, so that no size of it overflows. An lse of -inf is a row that has seen no key: it
/// changes no bit of the other, whatever its `out` holds, and two of them give 0 and -inf. (FlashAttention-2 marks such
/// rows with +inf, and FlashInfer's lse is in base 2: convert them first.) Merging is commutative, and associative up to
/// rounding, so keys may be split over threads, devices or a shared prefix in any way.
///
/// The bias is part of an lse, so both results must have the query at its true distance from the keys. Where a block of
/// queries begins at position `q`, and the keys of another rank or of a shared prefix begin at `k`,
/// [`Inputs::offset`](crate::Inputs::offset) is `q - k`.
///
/// # Errors
/// [`Error::Length`] unless both rows have the same length; nothing is written then.
///
/// ```
/// let (mut out, mut lse) = ([1.0, 0.0], 2.0f32.ln());
/// flash_alibi::merge_state(&mut out, &mut lse, &[0.0, 1.0], 6.0f32.ln())?;
/// assert!((out[0] - 0.25).abs() < 1e-6 && (out[1] - 0.75).abs() < 1e-6 && (lse - 8.0f32.ln()).abs() < 1e-6);
/// # Ok::<(), flash_alibi::Error>(())
/// ```
pub fn merge_state(
    out: &mut [f32],
    lse: &mut f32,
    other_out: &[f32],
    other_lse: f32,
) -> Result<()> {
    if out.len() != other_out.len() {
        return Err(Error::Length {
            argument: "other_out",
            found: other_out.len(),
            expected: format!("{}, as out", out.len()),
        });
    }
    merge_row(out, lse, other_out, other_lse);
    Ok(())
}

/// [`merge_state`] of whole results: `out` and `other_out` are `[batch, seqlen_q, heads_q, head_dim]`, `lse` and
/// `other_lse` `[batch, heads_q, seqlen_q]`; or `[total_q, heads_q, head_dim]` and `[heads_q, total_q]`.
///
/// Here 4 queries begin at position 4. They attend to their own keys, and to a prefix of 4 keys that other sequences share:
///
/// ```
/// use flash_alibi::{Attention, Inputs, View, ViewMut, cpu, merge_states};
///
/// let layer = Attention::new(1, 1, 8).build()?;
/// let (shape, keys) = ([1, 4, 1, 8], [0.5f32; 8 * 8]);
/// let q = View::new(&keys[..32], &shape)?;
/// let prefix = View::new(&keys[..32], &shape)?;
/// let own = View::new(&keys[32..], &shape)?;
///
/// let mut output = cpu::attend(&layer, &Inputs::new(q, own, own))?;
/// let other = cpu::attend(&layer, &Inputs::new(q, prefix, prefix).offset(&[4]))?;
/// let out = ViewMut::new(&mut output.out, &shape)?;
/// merge_states(out, &mut output.lse, View::new(&other.out, &shape)?, &other.lse)?;
///
/// let whole = View::new(&keys, &[1, 8, 1, 8])?;
/// let expected = cpu::attend(&layer, &Inputs::new(q, whole, whole))?;
/// assert!(output.lse.iter().zip(&expected.lse).all(|(a, b)| (a - b).abs() < 1e-5));
/// # Ok::<(), flash_alibi::Error>(())
/// ```
///
/// # Errors
/// [`Error::Shape`] unless the outputs have the same shape, [`Error::Length`] unless each lse has an element a row;
/// nothing is written then.
pub fn merge_states(
    out: ViewMut<'_, f32>,
    lse: &mut [f32],
    other_out: View<'_, f32>,
    other_lse: &[f32],
) -> Result<()> {
    let (ours, theirs) = (out.layout, other_out.layout);
    if theirs.shape() != ours.shape() {
        return Err(Error::Shape {
            argument: "other_out",
            found: theirs.shape(),
            expected: format!("{:?}, as out", ours.shape()),
        });
    }
    let (batch, heads, rows) = (ours.batch.unwrap_or(1), ours.heads, ours.rows);
    let len = batch * heads * rows;
    for (argument, found) in [("lse", lse.len()), ("other_lse", other_lse.len())] {
        if found != len {
            return Err(Error::Length {
                argument,
                found,
                expected: format!("{len}, one a row and head of out"),
            });
        }
    }
    if ours.span() == 0 {
        return Ok(());
    }
    for b in 0..batch {
        for head in 0..heads {
            for row in 0..rows {
                let at = |layout: &crate::Layout| {
                    b * layout.batch_stride + row * layout.row_stride + head * layout.head_stride
                };
                let at_lse = (b * heads + head) * rows + row;
                merge_row(
                    &mut out.data[at(&ours)..][..ours.head_dim],
                    &mut lse[at_lse],
                    &other_out.data[at(&theirs)..][..ours.head_dim],
                    other_lse[at_lse],
                );
            }
        }
    }
    Ok(())
}

/// The slices have the same length.
fn merge_row(out: &mut [f32], lse: &mut f32, other_out: &[f32], other_lse: f32) {
    match (*lse == f32::NEG_INFINITY, other_lse == f32::NEG_INFINITY) {
        (true, true) => return out.fill(0.0),
        (false, true) => return,
        (true, false) => {
            out.copy_from_slice(other_out);
            *lse = other_lse;
            return;
        }
        (false, false) => {}
    }
    // In f64, so that a merge rounds no more than its results.
    let (ours, theirs) = (f64::from(*lse), f64::from(other_lse));
    let max = if ours > theirs { ours } else { theirs };
    let (weight, other_weight) = ((ours - max).exp(), (theirs - max).exp());
    let sum = weight + other_weight;
    *lse = (max + sum.ln()) as f32;
    let (weight, other_weight) = ((weight / sum) as f32, (other_weight / sum) as f32);
    for (out, other) in out.iter_mut().zip(other_out) {
        *out = weight * *out + other_weight * other;
    }
}
