//! The other functions of candle-flash-attn: without slopes, and over the pages of a cache.

use candle_core::{Result, Tensor};

use super::call::{Call, Description, Layer};
use super::error::{Backend, bad_shape, check_device, renamed};
use super::integers::{check_integers, read};
use super::{Lengths, flash_attn_alibi_windowed_softcap, flash_attn_varlen_alibi_windowed_softcap};
use crate::error::{Error, value};

/// Attention without a bias; the function of this name in candle-flash-attn.
///
/// As [`flash_attn_alibi`](super::flash_attn_alibi) with slopes of zero: for the layers of an engine that have none.
///
/// # Errors
/// As [`attend`](super::attend).
pub fn flash_attn(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    softmax_scale: f32,
    causal: bool,
) -> Result<Tensor> {
    flash_attn_windowed(q, k, v, softmax_scale, None, causal.then_some(0))
}

/// [`flash_attn`] with the window of [`flash_attn_alibi_windowed`](super::flash_attn_alibi_windowed).
///
/// # Errors
/// As [`attend`](super::attend).
pub fn flash_attn_windowed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    softmax_scale: f32,
    window_size_left: Option<usize>,
    window_size_right: Option<usize>,
) -> Result<Tensor> {
    flash_attn_alibi_windowed_softcap(
        q,
        k,
        v,
        None,
        softmax_scale,
        window_size_left,
        window_size_right,
        0.0,
    )
}

/// [`flash_attn`] over packed sequences, as [`flash_attn_varlen_alibi`](super::flash_attn_varlen_alibi) takes them.
///
/// # Errors
/// As [`attend`](super::attend).
#[allow(clippy::too_many_arguments)] // candle-flash-attn's signature.
pub fn flash_attn_varlen(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    seqlens_q: &Tensor,
    seqlens_k: &Tensor,
    max_seqlen_q: usize,
    max_seqlen_k: usize,
    softmax_scale: f32,
    causal: bool,
) -> Result<Tensor> {
    flash_attn_varlen_windowed(
        q,
        k,
        v,
        seqlens_q,
        seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        softmax_scale,
        None,
        causal.then_some(0),
    )
}

/// [`flash_attn_varlen`] with the window of [`flash_attn_alibi_windowed`](super::flash_attn_alibi_windowed).
///
/// # Errors
/// As [`attend`](super::attend).
#[allow(clippy::too_many_arguments)] // candle-flash-attn's signature.
pub fn flash_attn_varlen_windowed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
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
        None,
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

/// Packed queries over the pages of a cache, without a bias; the function of this name in candle-flash-attn and in mistral.rs.
/// [`flash_attn_varlen_paged_alibi_windowed`] has the slopes.
///
/// `mm_prefix_ranges` must be `None`: keys that a query sees whatever the window are not computed here.
///
/// # Errors
/// As [`flash_attn_varlen_paged_alibi_windowed`], and for `mm_prefix_ranges`.
#[allow(clippy::too_many_arguments)] // candle-flash-attn's signature.
pub fn flash_attn_varlen_paged_windowed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    seqlens_q: &Tensor,
    seqlens_k: &Tensor,
    block_table: &Tensor,
    mm_prefix_ranges: Option<&Tensor>,
    max_seqlen_q: usize,
    max_seqlen_k: usize,
    softmax_scale: f32,
    window_size_left: Option<usize>,
    window_size_right: Option<usize>,
    page_block_size: usize,
    softcap: Option<f32>,
) -> Result<Tensor> {
    if mm_prefix_ranges.is_some() {
        let expected = "none: a window has no exceptions here";
        return Err(value("mm_prefix_ranges", "a tensor", expected).into());
    }
    flash_attn_varlen_paged_alibi_windowed(
        q,
        k,
        v,
        None,
        seqlens_q,
        seqlens_k,
        block_table,
        max_seqlen_q,
        max_seqlen_k,
        softmax_scale,
        window_size_left,
        window_size_right,
        page_block_size,
        softcap,
    )
}

/// [`flash_attn_varlen_alibi_windowed_softcap`] over the pages of a cache, with the arguments of candle-flash-attn's
/// [`flash_attn_varlen_paged_windowed`], which has no slopes.
///
/// q is `[total_q, heads_q, head_dim]`, k and v are the pools `[pages, page_block_size, heads_k, head_dim]`, and `block_table`
/// `[batch, max_pages]`. `seqlens_q` and `seqlens_k` are cumulative, `[batch + 1]`: so many keys of its pages each sequence has.
/// No sequence is longer than `max_seqlen_q` and `max_seqlen_k`. Returns a tensor of q's shape.
///
/// # Errors
/// As [`attend`](super::attend), and for another `page_block_size` than the pools have.
#[allow(clippy::too_many_arguments)] // candle-flash-attn's signature.
pub fn flash_attn_varlen_paged_alibi_windowed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    alibi_slopes: Option<&Tensor>,
    seqlens_q: &Tensor,
    seqlens_k: &Tensor,
    block_table: &Tensor,
    max_seqlen_q: usize,
    max_seqlen_k: usize,
    softmax_scale: f32,
    window_size_left: Option<usize>,
    window_size_right: Option<usize>,
    page_block_size: usize,
    softcap: Option<f32>,
) -> Result<Tensor> {
    let page_size = match *k.dims() {
        [_, page_size, _, _] | [_, _, _, page_size, _] => page_size,
        _ => {
            let expected = "[pages, page_block_size, heads_k, head_dim]";
            return Err(bad_shape("k", k, expected.into()).into());
        }
    };
    if page_block_size != page_size {
        let expected = format!("{page_size}, as k has");
        return Err(value("page_block_size", page_block_size, expected).into());
    }
    if seqlens_k.rank() == 1 && seqlens_k.elem_count() != seqlens_q.elem_count() {
        return Err(Error::Length {
            argument: "seqlens_k",
            found: seqlens_k.elem_count(),
            expected: format!("{}, as seqlens_q", seqlens_q.elem_count()),
        }
        .into());
    }
    let used = lengths("seqlens_k", seqlens_k, q)?;
    let layer = Layer::Described(Description {
        alibi_slopes,
        softmax_scale,
        window: (window_size_left, window_size_right),
        softcap: softcap.unwrap_or(0.0),
    });
    let lengths = Lengths::paged(block_table, &used)
        .varlen_q(seqlens_q, max_seqlen_q)
        .max_seqlen_k(max_seqlen_k);
    let call = Call {
        layer,
        q,
        k,
        v,
        lengths,
    };
    Ok(renamed(call.run(), &[("seqused_k", "seqlens_k")])?.0)
}

/// The lengths of sequences of which the cumulative ones are given, on their device.
fn lengths(argument: &'static str, cumulative: &Tensor, q: &Tensor) -> Result<Tensor> {
    check_device(
        argument,
        cumulative.device().location(),
        (q.device().location(), "q"),
    )?;
    check_integers(argument, cumulative)?;
    let count = match *cumulative.dims() {
        [count] if count >= 2 => count - 1,
        _ => {
            let expected = "[batch + 1], at least 2";
            return Err(bad_shape(argument, cumulative, expected.into()).into());
        }
    };
    match Backend::of("q", q)? {
        Backend::Cpu => {
            let sums = read(cumulative)?;
            if sums[0] != 0 {
                return Err(value(argument, format!("{} at index 0", sums[0]), "0").into());
            }
            if let Some(at) = sums.windows(2).position(|pair| pair[1] < pair[0]) {
                let found = format!("{} at index {}", sums[at + 1], at + 1);
                let expected = format!("at least {}, its predecessor", sums[at]);
                return Err(Error::Value {
                    argument,
                    found,
                    expected,
                }
                .into());
            }
            // Numbers that far apart are no lengths of an i32, and are refused as such.
            let lengths = sums.windows(2).map(|pair| pair[1].saturating_sub(pair[0]));
            Tensor::from_vec(lengths.collect::<Vec<i64>>(), count, q.device())
        }
        #[cfg(feature = "candle-cuda")]
        Backend::Cuda => {
            let sums = super::cuda::slots(cumulative)?;
            sums.narrow(0, 1, count)? - sums.narrow(0, 0, count)?
        }
    }
}
