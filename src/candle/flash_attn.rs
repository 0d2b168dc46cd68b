//! The ALiBi functions of candle-flash-attn.

use candle_core::{Result, Tensor};

use super::Lengths;
use super::call::{Call, Description, Layer};

/// ALiBi attention; the function of this name in candle-flash-attn.
///
/// q `[batch, seqlen_q, heads_q, head_dim]`, k and v `[batch, seqlen_k, heads_k, head_dim]`; `alibi_slopes` f32
/// `[heads_q]` or `[batch, heads_q]`; the dot products are multiplied by `softmax_scale`, the bias is not. `causal`
/// hides the keys after a query's own position, the last query standing at the last key; otherwise the bias is
/// symmetric. Returns a tensor of q's shape.
///
/// # Errors
/// As [`attend`](super::attend).
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
/// As [`attend`](super::attend).
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
/// As [`attend`](super::attend).
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
/// As [`attend`](super::attend).
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
/// As [`attend`](super::attend).
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
/// As [`attend`](super::attend).
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
