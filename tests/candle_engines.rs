//! The functions that fit the slots of engines: the bits of `attend`, and errors by the engine's names.

use std::error::Error as _;

use candle_core::{DType, Device, NdArray, Result, Tensor};
use flash_alibi::candle::paged_attention::{paged_attention, reshape_and_cache};
use flash_alibi::candle::{
    Lengths, append, attend, flash_attn, flash_attn_varlen, flash_attn_varlen_paged_alibi_windowed,
    flash_attn_varlen_paged_windowed, flash_attn_varlen_windowed, flash_attn_windowed,
};
use flash_alibi::{Attention, Mask, Slopes};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt as _, SeedableRng as _};

const SCALE: f32 = 0.3;
const HEADS_Q: usize = 4;
const HEADS_K: usize = 2;
const HEAD_DIM: usize = 24;

fn tensor(values: impl NdArray) -> Tensor {
    Tensor::new(values, &Device::Cpu).unwrap()
}

/// Numbers in -1..1.
fn random(shape: &[usize], seed: u64) -> Tensor {
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    let mut next = || generator.random_range(-1.0..1.0);
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| next()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn zeros(shape: &[usize]) -> Tensor {
    Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap()
}

#[track_caller]
fn assert_same(found: &Tensor, expected: &Tensor) {
    assert_eq!(found.dims(), expected.dims());
    let bits = |x: &Tensor| -> Vec<u32> {
        let values: Vec<f32> = x.flatten_all().unwrap().to_vec1().unwrap();
        values.into_iter().map(f32::to_bits).collect()
    };
    assert_eq!(bits(found), bits(expected));
}

fn layer(slopes: Option<&[f32]>, left: Option<usize>, right: Option<usize>) -> Attention {
    let slopes = match slopes {
        Some(slopes) => Slopes::per_head(slopes),
        None => Slopes::zero(HEADS_Q),
    };
    let layer = Attention::new(HEADS_Q, HEADS_K, HEAD_DIM).slopes(slopes);
    let layer = layer.scale(SCALE).mask(Mask::Bidirectional);
    layer.window(left, right).build().unwrap()
}

#[test]
fn functions_without_slopes_have_none() -> Result<()> {
    let q = random(&[2, 9, HEADS_Q, HEAD_DIM], 1);
    let [k, v] = [2, 3].map(|seed| random(&[2, 30, HEADS_K, HEAD_DIM], seed));
    let flat = |x: &Tensor| x.flatten(0, 1);
    let (flat_q, flat_k, flat_v) = (flat(&q)?, flat(&k)?, flat(&v)?);
    let (seqlens_q, seqlens_k) = (tensor(&[0u32, 2, 18]), tensor(&[0u32, 29, 60]));
    let expected = |left, right, packed| {
        let lengths = Lengths::varlen(&seqlens_q, &seqlens_k, 16, 31);
        let layer = layer(None, left, right);
        let found = match packed {
            true => attend(&layer, &flat_q, &flat_k, &flat_v, lengths),
            false => attend(&layer, &q, &k, &v, Lengths::dense()),
        };
        found.unwrap().0
    };
    for causal in [false, true] {
        let right = causal.then_some(0);
        let found = flash_attn(&q, &k, &v, SCALE, causal)?;
        assert_same(&found, &expected(None, right, false));
        let found = flash_attn_varlen(
            &flat_q, &flat_k, &flat_v, &seqlens_q, &seqlens_k, 16, 31, SCALE, causal,
        )?;
        assert_same(&found, &expected(None, right, true));
    }
    for (left, right) in [(Some(3), Some(2)), (None, Some(1)), (Some(7), None)] {
        let found = flash_attn_windowed(&q, &k, &v, SCALE, left, right)?;
        assert_same(&found, &expected(left, right, false));
        let found = flash_attn_varlen_windowed(
            &flat_q, &flat_k, &flat_v, &seqlens_q, &seqlens_k, 16, 31, SCALE, left, right,
        )?;
        assert_same(&found, &expected(left, right, true));
    }
    Ok(())
}

/// A cache of 31 and 7 keys in pages all over it, with nothing but NaN elsewhere.
struct Cache {
    k_pages: Tensor,
    v_pages: Tensor,
    table: Tensor,
    used: Tensor,
    slopes: [f32; HEADS_Q],
}

impl Cache {
    fn new() -> Result<Self> {
        let nan = || Tensor::full(f32::NAN, (9, 8, HEADS_K, HEAD_DIM), &Device::Cpu)?.contiguous();
        let (k_pages, v_pages) = (nan()?, nan()?);
        let [k, v] = [2, 3].map(|seed| random(&[38, HEADS_K, HEAD_DIM], seed));
        let pages = [[7, 2, 8, 0], [4, 99, 99, 99]];
        let slot = |(b, j): (usize, usize)| (pages[b][j / 8] * 8 + j as u32 % 8) as i64;
        let tokens = (0..31).map(|j| (0, j)).chain((0..7).map(|j| (1, j)));
        let slots: Vec<i64> = tokens.map(slot).collect();
        append(&k, &v, &k_pages, &v_pages, &tensor(slots))?;
        Ok(Self {
            k_pages,
            v_pages,
            table: tensor(&pages),
            used: tensor(&[31u32, 7]),
            slopes: [0.5, 0.1, -0.1, 0.02],
        })
    }
}

#[test]
fn packed_queries_over_pages() -> Result<()> {
    let cache = Cache::new()?;
    let q = random(&[11, HEADS_Q, HEAD_DIM], 1);
    let (seqlens_q, seqlens_k) = (tensor(&[0u32, 4, 11]), tensor(&[0u32, 31, 38]));
    let slopes = tensor(&cache.slopes);
    let lengths = Lengths::paged(&cache.table, &cache.used).varlen_q(&seqlens_q, 7);
    for (left, right) in [(None, Some(0)), (Some(5), Some(2)), (None, None)] {
        for seqlens_k in [&seqlens_k, &seqlens_k.to_dtype(DType::I64)?] {
            let call = |k: &Tensor, v: &Tensor, slopes: Option<&Tensor>| match slopes {
                Some(_) => flash_attn_varlen_paged_alibi_windowed(
                    &q,
                    k,
                    v,
                    slopes,
                    &seqlens_q,
                    seqlens_k,
                    &cache.table,
                    7,
                    31,
                    SCALE,
                    left,
                    right,
                    8,
                    None,
                ),
                None => flash_attn_varlen_paged_windowed(
                    &q,
                    k,
                    v,
                    &seqlens_q,
                    seqlens_k,
                    &cache.table,
                    None,
                    7,
                    31,
                    SCALE,
                    left,
                    right,
                    8,
                    None,
                ),
            };
            let expected = |slopes| {
                let layer = layer(slopes, left, right);
                attend(&layer, &q, &cache.k_pages, &cache.v_pages, lengths)
            };
            let without = call(&cache.k_pages, &cache.v_pages, None)?;
            assert_same(&without, &expected(None)?.0);
            let with = call(&cache.k_pages, &cache.v_pages, Some(&slopes))?;
            assert_same(&with, &expected(Some(&cache.slopes))?.0);
        }
    }
    Ok(())
}

#[test]
fn one_query_a_sequence_over_blocks() -> Result<()> {
    let cache = Cache::new()?;
    let q = random(&[2, HEADS_Q, HEAD_DIM], 1);
    let slopes = tensor(&cache.slopes);
    // The same keys and values in the engine's blocks: 4 numbers have 16 bytes.
    let key_cache = zeros(&[9, HEADS_K, HEAD_DIM / 4, 8, 4]);
    let value_cache = zeros(&[9, HEADS_K, HEAD_DIM, 8]);
    let [k, v] = [2, 3].map(|seed| random(&[38, HEADS_K, HEAD_DIM], seed));
    let table: Vec<Vec<u32>> = cache.table.to_vec2()?;
    let slot = |(b, j): (usize, usize)| (table[b][j / 8] * 8 + j as u32 % 8) as i64;
    let tokens = (0..31).map(|j| (0, j)).chain((0..7).map(|j| (1, j)));
    let slots = tensor(tokens.map(slot).collect::<Vec<i64>>());
    reshape_and_cache(&k, &v, None, None, &key_cache, &value_cache, &slots)?;
    let lengths = Lengths::paged(&cache.table, &cache.used);
    for (values, slopes) in [(None, None), (Some(&cache.slopes[..]), Some(&slopes))] {
        for (softcap, softcapping) in [(None, 1.0), (Some(0.7), 0.7)] {
            let layer = Attention::new(HEADS_Q, HEADS_K, HEAD_DIM).scale(SCALE);
            let layer = layer.slopes(values.map_or(Slopes::zero(HEADS_Q), Slopes::per_head));
            let layer = match softcap {
                Some(softcap) => layer.softcap(softcap),
                None => layer,
            };
            let (expected, _) =
                attend(&layer.build()?, &q, &cache.k_pages, &cache.v_pages, lengths)?;
            for (k, v) in [(&key_cache, &value_cache), (&cache.k_pages, &cache.v_pages)] {
                let found = paged_attention(
                    &q,
                    None,
                    None,
                    k,
                    v,
                    &cache.table,
                    &cache.used,
                    slopes,
                    31,
                    SCALE,
                    softcapping,
                    None,
                )?;
                assert_same(&found, &expected);
            }
        }
    }
    Ok(())
}

#[track_caller]
fn assert_error<T>(result: Result<T>, message: &str) {
    let error = result
        .err()
        .unwrap_or_else(|| panic!("no error: {message}"));
    assert_eq!(error.to_string(), message);
    assert!(error.source().unwrap().is::<flash_alibi::Error>());
}

#[test]
fn errors_of_packed_queries_over_pages() -> Result<()> {
    let cache = Cache::new()?;
    let q = random(&[11, HEADS_Q, HEAD_DIM], 1);
    let (seqlens_q, seqlens_k) = (tensor(&[0u32, 4, 11]), tensor(&[0u32, 31, 38]));
    let ranges = zeros(&[2, 2]);
    let call = |k: &Tensor, seqlens_k: &Tensor, ranges, max_seqlen_k, page_block_size| {
        flash_attn_varlen_paged_windowed(
            &q,
            k,
            &cache.v_pages,
            &seqlens_q,
            seqlens_k,
            &cache.table,
            ranges,
            7,
            max_seqlen_k,
            SCALE,
            None,
            Some(0),
            page_block_size,
            None,
        )
    };
    let k = &cache.k_pages;
    assert!(call(k, &seqlens_k, None, 31, 8).is_ok());
    assert_error(
        call(k, &seqlens_k, Some(&ranges), 31, 8),
        "mm_prefix_ranges: found a tensor, expected none: a window has no exceptions here",
    );
    assert_error(
        call(k, &seqlens_k, None, 31, 16),
        "page_block_size: found 16, expected 8, as k has",
    );
    assert_error(
        call(&k.flatten(0, 1)?, &seqlens_k, None, 31, 8),
        "k: found shape [72, 2, 24], expected [pages, page_block_size, heads_k, head_dim]",
    );
    assert_error(
        call(&zeros(&[9, 8, 3, HEAD_DIM]), &seqlens_k, None, 31, 8),
        "k: found shape [9, 8, 3, 24], expected [pages, page_size, heads_k, head_dim], its heads a divisor of the 4 of q",
    );
    assert_error(
        call(k, &seqlens_k, None, 30, 8),
        "max_seqlen_k: found 30, expected at least 31, the keys of sequence 0",
    );
    for (bad, message) in [
        (
            tensor(&[0u32, 31, 29]),
            "found 29 at index 2, expected at least 31, its predecessor",
        ),
        (
            tensor(&[0u32]),
            "found 1 elements, expected 3, as seqlens_q",
        ),
        (
            tensor(&[0u32, 31, 38, 40]),
            "found 4 elements, expected 3, as seqlens_q",
        ),
        (tensor(&[7u32, 31, 38]), "found 7 at index 0, expected 0"),
        (
            tensor(&[[0u32, 31, 38]]),
            "found shape [1, 3], expected [batch + 1], at least 2",
        ),
        (
            tensor(&[0f32, 31., 38.]),
            "found dtype F32, expected dtype U32, I32 or I64",
        ),
        (
            tensor(&[0u32, 33, 38]),
            "found 33 at index 0, expected 0 to max_pages_per_sequence * page_size = 32",
        ),
    ] {
        assert_error(call(k, &bad, None, 40, 8), &format!("seqlens_k: {message}"));
    }
    Ok(())
}

#[test]
fn errors_name_arguments_as_the_engine_does() -> Result<()> {
    let cache = Cache::new()?;
    let q = random(&[2, HEADS_Q, HEAD_DIM], 1);
    let one = tensor(&[1f32]);
    struct Args {
        k_scale: Option<Tensor>,
        sinks: Option<Tensor>,
        key_cache: Tensor,
        context_lens: Tensor,
        block_tables: Tensor,
        max_context_len: usize,
        softcapping: f32,
    }
    let args = || Args {
        k_scale: None,
        sinks: None,
        key_cache: cache.k_pages.clone(),
        context_lens: cache.used.clone(),
        block_tables: cache.table.clone(),
        max_context_len: 31,
        softcapping: 1.0,
    };
    let call = |a: Args| {
        paged_attention(
            &q,
            a.k_scale.as_ref(),
            None,
            &a.key_cache,
            &cache.v_pages,
            &a.block_tables,
            &a.context_lens,
            None,
            a.max_context_len,
            SCALE,
            a.softcapping,
            a.sinks.as_ref(),
        )
    };
    assert!(call(args()).is_ok());
    let fail = |a: Args, message| assert_error(call(a), message);
    fail(
        Args {
            k_scale: Some(one.clone()),
            ..args()
        },
        "k_scale: found a tensor, expected none: a cache in FP8 is not read here",
    );
    fail(
        Args {
            sinks: Some(one.clone()),
            ..args()
        },
        "sinks: found a tensor, expected none: attention sinks are not computed here",
    );
    fail(
        Args {
            key_cache: zeros(&[9, HEADS_K, 3, 8, 8]),
            ..args()
        },
        "key_cache: found shape [9, 2, 3, 8, 8], expected [pages, heads_k, head_dim / 4, block_size, 4]",
    );
    fail(
        Args {
            context_lens: tensor(&[33u32, 7]),
            max_context_len: 40,
            ..args()
        },
        "context_lens: found 33 at index 0, expected 0 to max_pages_per_sequence * block_size = 32",
    );
    fail(
        Args {
            max_context_len: 30,
            ..args()
        },
        "max_context_len: found 30, expected at least 31, the keys of sequence 0",
    );
    fail(
        Args {
            block_tables: tensor(&[[7u32, 2, 9, 0], [4, 0, 0, 0]]),
            ..args()
        },
        "block_tables: found 9 at index [0, 2], expected one of the 9 pages, from 0",
    );
    fail(
        Args {
            softcapping: f32::NAN,
            ..args()
        },
        "softcapping: found NaN, expected a positive finite number",
    );

    let new = zeros(&[1, HEADS_K, HEAD_DIM]);
    let cache_call = |new: &Tensor, v_scale, value_cache: &Tensor, slots: &Tensor| {
        reshape_and_cache(new, new, None, v_scale, &cache.k_pages, value_cache, slots)
    };
    let slots = tensor(&[3i64]);
    cache_call(&new, None, &cache.v_pages, &slots)?;
    assert_error(
        cache_call(&new, Some(&one), &cache.v_pages, &slots),
        "v_scale: found a tensor, expected none: a cache in FP8 is not read here",
    );
    assert_error(
        cache_call(&zeros(&[1, 3, HEAD_DIM]), None, &cache.v_pages, &slots),
        "key: found shape [1, 3, 24], expected [tokens, 2, 24]",
    );
    let halves = new.to_dtype(DType::F16)?;
    assert_error(
        reshape_and_cache(
            &new,
            &halves,
            None,
            None,
            &cache.k_pages,
            &cache.v_pages,
            &slots,
        ),
        "value: found dtype F16, expected dtype F32, as key",
    );
    assert_error(
        cache_call(&new, None, &cache.k_pages, &slots),
        "value_cache: found a tensor in the memory of key_cache, expected memory of its own",
    );
    assert_error(
        cache_call(&new, None, &zeros(&[9, 8, 3, HEAD_DIM]), &slots),
        "value_cache: found shape [9, 8, 3, 24], expected [9, 8, 2, 24], as key_cache",
    );
    assert_error(
        cache_call(&new, None, &cache.v_pages, &tensor(&[99i64])),
        "slot_mapping: found 99 at index 0, expected less than pages * block_size = 72",
    );
    Ok(())
}
