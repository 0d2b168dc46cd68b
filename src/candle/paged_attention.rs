//! The functions of mistral.rs's paged attention, with its names and arguments.
//!
//! Caches are in vLLM's first layout: keys `[num_blocks, num_heads_k, head_size / x, block_size, x]`, where `x` elements have 16
//! bytes, and values `[num_blocks, num_heads_k, head_size, block_size]`. What is not computed here, a cache of FP8 or attention
//! sinks, is an error that names the argument. [`CacheLayout`](super::CacheLayout) says what of this layout is there on a CUDA
//! device; pools `[num_blocks, block_size, num_heads_k, head_size]` are taken as well, and are faster to read.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use flash_alibi::candle::paged_attention::{paged_attention, reshape_and_cache};
//!
//! # fn main() -> candle_core::Result<()> {
//! # let device = Device::Cpu;
//! let (blocks, block_size, heads, head_size) = (8, 16, 4, 64);
//! let x = 4; // f32
//! let key_cache = Tensor::zeros((blocks, heads, head_size / x, block_size, x), DType::F32, &device)?;
//! let value_cache = Tensor::zeros((blocks, heads, head_size, block_size), DType::F32, &device)?;
//! let slopes = Tensor::new(flash_alibi::Slopes::geometric(heads).as_slice(), &device)?;
//!
//! // A prompt of 20 tokens in the blocks 3 and 6, and then the query of its last token.
//! let key = Tensor::randn(0f32, 1., (1, 20, heads, head_size), &device)?;
//! let slots: Vec<i64> = (3 * 16..4 * 16).chain(6 * 16..6 * 16 + 4).collect();
//! let slots = Tensor::new(slots, &device)?;
//! reshape_and_cache(&key, &key, None, None, &key_cache, &value_cache, &slots)?;
//! let q = Tensor::randn(0f32, 1., (1, heads, head_size), &device)?;
//! let (block_tables, context_lens) = (Tensor::new(&[[3u32, 6]], &device)?, Tensor::new(&[20u32], &device)?);
//! let out = paged_attention(
//!     &q, None, None, &key_cache, &value_cache, &block_tables, &context_lens,
//!     Some(&slopes), 20, 1.0 / 8.0, 1.0, None,
//! )?;
//! assert_eq!(out.dims(), q.dims());
//! # Ok(())
//! # }
//! ```

use candle_core::{Result, Tensor};

use super::call::{Call, Description, Layer};
use super::error::renamed;
use super::{Lengths, append};
use crate::error::{Error, value};

/// What mistral.rs calls arguments of [`append`] and [`attend`](super::attend).
const NAMES: [(&str, &str); 8] = [
    ("k_pages", "key_cache"),
    ("v_pages", "value_cache"),
    ("block_table", "block_tables"),
    ("seqused_k", "context_lens"),
    ("max_seqlen_k", "max_context_len"),
    ("page_size", "block_size"),
    ("k", "key"),
    ("v", "value"),
];

/// Attention of one query a sequence over a paged cache.
///
/// q is `[num_sequences, num_heads_q, head_size]`, `block_tables` `[num_sequences, max_blocks]`, `context_lens` the keys of each
/// sequence, its new one included, none more than `max_context_len`, which is no window: on a CUDA
/// device, where lengths are not looked at, keys beyond it are left out. `alibi_slopes` is `[num_heads_q]` or
/// `[num_sequences, num_heads_q]`; without it there is no bias. The dot products are multiplied by `softmax_scale` and capped at
/// `softcapping`, if that is above 0 and not 1, before the bias is added. Returns a tensor of q's shape.
///
/// `k_scale`, `v_scale` and `sinks` must be `None`.
///
/// # Errors
/// As [`attend`](super::attend), and for the arguments that must be `None`.
#[allow(clippy::too_many_arguments)] // mistral.rs's signature.
pub fn paged_attention(
    q: &Tensor,
    k_scale: Option<&Tensor>,
    v_scale: Option<&Tensor>,
    key_cache: &Tensor,
    value_cache: &Tensor,
    block_tables: &Tensor,
    context_lens: &Tensor,
    alibi_slopes: Option<&Tensor>,
    max_context_len: usize,
    softmax_scale: f32,
    softcapping: f32,
    sinks: Option<&Tensor>,
) -> Result<Tensor> {
    check_none("k_scale", k_scale)?;
    check_none("v_scale", v_scale)?;
    check_none("sinks", sinks)?;
    let softcap = if softcapping == 1.0 { 0.0 } else { softcapping };
    let layer = Layer::Described(Description {
        alibi_slopes,
        softmax_scale,
        // The query stands at the last key: no key is behind it.
        window: (None, None),
        softcap,
    });
    let lengths = Lengths::paged(block_tables, context_lens).max_seqlen_k(max_context_len);
    let call = Call {
        layer,
        q,
        k: key_cache,
        v: value_cache,
        lengths,
    };
    let names: Vec<_> = (NAMES.into_iter())
        .map(|(name, here)| match name {
            // There are no new ones here.
            "k" => (name, "key_cache"),
            "v" => (name, "value_cache"),
            _ => (name, here),
        })
        .chain([("softcap", "softcapping")])
        .collect();
    Ok(renamed(call.run(), &names)?.0)
}

/// Writes new keys and values into their slots of a paged cache: [`append`].
///
/// `key` and `value` are `[num_tokens, num_heads_k, head_size]` or `[batch, seq_len, num_heads_k, head_size]`, `slot_mapping` is
/// `[num_tokens]` or `[batch, seq_len]`: slot `s` is row `s % block_size` of block `s / block_size`, and a negative one nowhere.
///
/// `k_scale` and `v_scale` must be `None`.
///
/// # Errors
/// As [`append`], and for the arguments that must be `None`.
pub fn reshape_and_cache(
    key: &Tensor,
    value: &Tensor,
    k_scale: Option<&Tensor>,
    v_scale: Option<&Tensor>,
    key_cache: &Tensor,
    value_cache: &Tensor,
    slot_mapping: &Tensor,
) -> Result<()> {
    check_none("k_scale", k_scale)?;
    check_none("v_scale", v_scale)?;
    let appended = append(key, value, key_cache, value_cache, slot_mapping);
    renamed(appended, &NAMES)
}

fn check_none(argument: &'static str, tensor: Option<&Tensor>) -> std::result::Result<(), Error> {
    match tensor {
        None => Ok(()),
        Some(_) => {
            let expected = match argument {
                "sinks" => "none: attention sinks are not computed here",
                _ => "none: a cache in FP8 is not read here",
            };
            Err(value(argument, "a tensor", expected))
        }
    }
}
