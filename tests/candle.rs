//! The candle functions against the oracle, on tensors as engines have them: strided, offset, packed.

use std::error::Error as _;

use candle_core::{DType, Device, Result, Tensor, Var, WithDType};
use flash_alibi::candle::*;
use flash_alibi::cpu::{Element, oracle};
use flash_alibi::{Attention, Inputs, Mask, Slopes, View};
use half::{bf16, f16};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt as _, SeedableRng as _};

const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];
const SCALE: f32 = 0.3;
const NONE: Option<usize> = None;

/// Numbers in -1..1.
fn random(shape: &[usize], dtype: DType, seed: u64) -> Result<Tensor> {
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    let mut next = || generator.random_range(-1.0..1.0);
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| next()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)
}

/// Slopes that fit no rule, one of them negative.
fn slopes(heads: usize) -> Vec<f32> {
    (0..heads).map(|h| 0.4 / (h + 1) as f32 - 0.1).collect()
}

fn tensor<T: WithDType>(values: &[T]) -> Tensor {
    Tensor::new(values, &Device::Cpu).unwrap()
}

/// How a tensor lies in memory. Whatever lies around it is NaN.
#[derive(Debug, Clone, Copy)]
enum Memory {
    Contiguous,
    /// Heads before rows, as a projection leaves them.
    HeadsFirst,
    /// A slice of the rows of a larger tensor.
    Rows,
    /// A slice of the heads, as of a fused projection.
    Heads,
    /// All batches or, without one, all rows share an address.
    Repeated,
}

const MEMORY: [Memory; 5] = [
    Memory::Contiguous,
    Memory::HeadsFirst,
    Memory::Rows,
    Memory::Heads,
    Memory::Repeated,
];

impl Memory {
    fn random(self, shape: &[usize], dtype: DType, seed: u64) -> Result<Tensor> {
        let rows = shape.len() - 3;
        let x = random(shape, dtype, seed)?;
        let within_nan = |dim: usize| {
            let mut margin = shape.to_vec();
            margin[dim] = 3;
            let margin = Tensor::full(f32::NAN, margin, &Device::Cpu)?.to_dtype(dtype)?;
            Tensor::cat(&[&margin, &x, &margin], dim)?.narrow(dim, 3, shape[dim])
        };
        match self {
            Memory::Contiguous => Ok(x),
            Memory::HeadsFirst => x
                .transpose(rows, rows + 1)?
                .contiguous()?
                .transpose(rows, rows + 1),
            Memory::Rows => within_nan(rows),
            Memory::Heads => within_nan(rows + 1),
            Memory::Repeated => x.narrow(0, 0, 1)?.broadcast_as(shape),
        }
    }
}

#[derive(Clone, Copy, Default)]
struct HostLengths<'a> {
    seqlens: Option<(&'a [u32], &'a [u32])>,
    seqused_k: Option<&'a [u32]>,
    leftpad_k: Option<&'a [u32]>,
}

fn reference(
    layer: &Attention,
    [q, k, v]: [&Tensor; 3],
    lengths: HostLengths<'_>,
) -> Result<oracle::Reference> {
    fn typed<T: Element + WithDType>(
        layer: &Attention,
        [q, k, v]: [&Tensor; 3],
        lengths: HostLengths<'_>,
    ) -> Result<oracle::Reference> {
        let data = |x: &Tensor| match x.elem_count() {
            0 => Ok(Vec::new()), // candle panics on an empty slice that starts past the end of its storage.
            _ => x.flatten_all()?.to_vec1::<T>(),
        };
        let (q_data, k_data, v_data) = (data(q)?, data(k)?, data(v)?);
        let mut inputs = Inputs::new(
            View::new(&q_data, q.dims())?,
            View::new(&k_data, k.dims())?,
            View::new(&v_data, v.dims())?,
        );
        let host = |x: &[u32]| x.iter().map(|&x| x as i32).collect::<Vec<_>>();
        let seqlens = lengths.seqlens.map(|(q, k)| (host(q), host(k)));
        let (used, pad) = (lengths.seqused_k.map(host), lengths.leftpad_k.map(host));
        if let Some((q, k)) = &seqlens {
            inputs = inputs.varlen(q, k);
        }
        if let Some(used) = &used {
            inputs = inputs.seqused_k(used);
        }
        if let Some(pad) = &pad {
            inputs = inputs.leftpad_k(pad);
        }
        Ok(oracle::attend(layer, &inputs)?)
    }
    match q.dtype() {
        DType::F16 => typed::<f16>(layer, [q, k, v], lengths),
        DType::BF16 => typed::<bf16>(layer, [q, k, v], lengths),
        _ => typed::<f32>(layer, [q, k, v], lengths),
    }
}

fn assert_out(out: &Tensor, q: &Tensor, expected: &[f64], case: &str) -> Result<()> {
    assert_eq!((out.dims(), out.dtype()), (q.dims(), q.dtype()), "{case}");
    assert!(out.is_contiguous(), "{case}");
    let max = expected.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
    let limit = match q.dtype() {
        DType::F16 => 2e-3 * max,
        DType::BF16 => 1.6e-2 * max,
        _ => 1e-5,
    };
    assert_close(out, expected, limit, case)
}

fn assert_close(found: &Tensor, expected: &[f64], limit: f64, case: &str) -> Result<()> {
    let found = found
        .to_dtype(DType::F64)?
        .flatten_all()?
        .to_vec1::<f64>()?;
    assert_eq!(found.len(), expected.len(), "{case}");
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        // Equal infinities are close; NaN is close to nothing.
        let close = found == expected || (found - expected).abs() <= limit;
        assert!(close, "{case}: {found} for {expected} at {at}");
    }
    Ok(())
}

/// batch, seqlen_q, seqlen_k, heads_q, heads_k, head_dim
const DENSE: [[usize; 6]; 7] = [
    [2, 5, 5, 4, 4, 8],
    [1, 33, 67, 6, 2, 64],
    [3, 1, 129, 8, 1, 40],
    [2, 17, 9, 4, 2, 80], // Rows before the first key see none when causal.
    [1, 70, 70, 3, 3, 256],
    [2, 0, 4, 2, 2, 16],
    [2, 4, 0, 2, 2, 16],
];

/// Cumulative lengths of q and of k, with empty sequences and with rows past the last one; heads_q, heads_k, head_dim.
type PackedCase = (&'static [u32], &'static [u32], [usize; 3]);
const PACKED: [PackedCase; 4] = [
    (&[0, 5, 12], &[0, 5, 12], [4, 4, 8]),
    (&[0, 0, 1, 34, 34], &[0, 3, 70, 103, 103], [6, 2, 64]),
    (&[0, 17, 21], &[0, 9, 9], [8, 1, 40]),
    (&[0, 0], &[0, 0], [2, 2, 16]),
];

/// Left and right windows; the third is causal.
const WINDOWS: [(Option<usize>, Option<usize>); 6] = [
    (None, None),
    (Some(3), Some(2)),
    (None, Some(0)),
    (Some(4), Some(0)),
    (Some(7), None),
    (Some(usize::MAX), Some(1000)),
];

fn for_each_dense(f: impl Fn(&Attention, [&Tensor; 3], &Tensor, &str) -> Result<()>) -> Result<()> {
    for (n, [b, sq, sk, hq, hk, d]) in DENSE.into_iter().enumerate() {
        for dtype in DTYPES {
            for (m, memory) in MEMORY.into_iter().enumerate() {
                // Each of the three tensors in a memory of its own.
                let [mq, mk, mv] = [memory, MEMORY[(m + 1) % 5], MEMORY[(m + 3) % 5]];
                let seed = 1 + 10 * n as u64;
                let q = mq.random(&[b, sq, hq, d], dtype, seed)?;
                let k = mk.random(&[b, sk, hk, d], dtype, seed + 1)?;
                let v = mv.random(&[b, sk, hk, d], dtype, seed + 2)?;
                let layer = Attention::new(hq, hk, d)
                    .scale(SCALE)
                    .slopes(Slopes::per_head(&slopes(hq)))
                    .build()?;
                let case = format!("{:?} {dtype:?} {memory:?}", DENSE[n]);
                f(&layer, [&q, &k, &v], &tensor(&slopes(hq)), &case)?;
            }
        }
    }
    Ok(())
}

struct Packed<'a> {
    host: HostLengths<'a>,
    q: Tensor,
    k: Tensor,
    max_q: usize,
    max_k: usize,
}

fn for_each_packed(
    f: impl Fn(&Attention, [&Tensor; 3], &Tensor, &Packed<'_>, &str) -> Result<()>,
) -> Result<()> {
    for (n, (cu_q, cu_k, [hq, hk, d])) in PACKED.into_iter().enumerate() {
        let longest = |cu: &[u32]| cu.windows(2).map(|p| p[1] - p[0]).max().unwrap() as usize;
        let packed = Packed {
            host: HostLengths {
                seqlens: Some((cu_q, cu_k)),
                ..HostLengths::default()
            },
            q: tensor(cu_q),
            k: tensor(cu_k),
            max_q: longest(cu_q),
            max_k: longest(cu_k) + n, // It need not be tight.
        };
        let total = |cu: &[u32]| *cu.last().unwrap() as usize + 2;
        for dtype in DTYPES {
            for (m, memory) in MEMORY.into_iter().enumerate() {
                let [mq, mk, mv] = [memory, MEMORY[(m + 1) % 5], MEMORY[(m + 3) % 5]];
                let seed = 1000 + 10 * n as u64;
                let q = mq.random(&[total(cu_q), hq, d], dtype, seed)?;
                let k = mk.random(&[total(cu_k), hk, d], dtype, seed + 1)?;
                let v = mv.random(&[total(cu_k), hk, d], dtype, seed + 2)?;
                let layer = Attention::new(hq, hk, d)
                    .scale(SCALE)
                    .slopes(Slopes::per_head(&slopes(hq)))
                    .build()?;
                let case = format!("{:?} {dtype:?} {memory:?}", PACKED[n]);
                f(&layer, [&q, &k, &v], &tensor(&slopes(hq)), &packed, &case)?;
            }
        }
    }
    Ok(())
}

/// The layer with another mask, window and softcap.
fn with(
    layer: &Attention,
    mask: Mask,
    window: (Option<usize>, Option<usize>),
    softcap: f32,
) -> Attention {
    let mut builder = Attention::new(layer.heads_q(), layer.heads_k(), layer.head_dim())
        .scale(layer.scale())
        .slopes(layer.slopes().clone())
        .mask(mask)
        .window(window.0, window.1);
    if softcap > 0.0 {
        builder = builder.softcap(softcap);
    }
    builder.build().unwrap()
}

const CAUSAL: [(Mask, bool); 2] = [(Mask::Causal, true), (Mask::Bidirectional, false)];

#[test]
fn alibi() -> Result<()> {
    for_each_dense(|layer, [q, k, v], slopes, case| {
        for (mask, causal) in CAUSAL {
            let layer = with(layer, mask, (None, None), 0.0);
            let expected = reference(&layer, [q, k, v], HostLengths::default())?;
            let out = flash_attn_alibi(q, k, v, slopes, SCALE, causal)?;
            assert_out(&out, q, &expected.out, &format!("{case} {mask:?}"))?;
        }
        Ok(())
    })
}

#[test]
fn alibi_windowed() -> Result<()> {
    for_each_dense(|layer, [q, k, v], slopes, case| {
        for (left, right) in WINDOWS {
            let layer = with(layer, Mask::Bidirectional, (left, right), 0.0);
            let expected = reference(&layer, [q, k, v], HostLengths::default())?;
            let out = flash_attn_alibi_windowed(q, k, v, slopes, SCALE, left, right)?;
            assert_out(
                &out,
                q,
                &expected.out,
                &format!("{case} {left:?} {right:?}"),
            )?;
        }
        Ok(())
    })
}

#[test]
fn alibi_windowed_softcap() -> Result<()> {
    for_each_dense(|layer, [q, k, v], slopes, case| {
        // Zero and below: no cap.
        for ((left, right), softcap) in WINDOWS.into_iter().zip([0.2, 0.7, 2.0, 0.0, -1.0, 0.5]) {
            let layer = with(layer, Mask::Bidirectional, (left, right), softcap);
            let expected = reference(&layer, [q, k, v], HostLengths::default())?;
            let slopes = Some(slopes);
            let out =
                flash_attn_alibi_windowed_softcap(q, k, v, slopes, SCALE, left, right, softcap)?;
            assert_out(
                &out,
                q,
                &expected.out,
                &format!("{case} {left:?} {right:?} {softcap}"),
            )?;
        }
        Ok(())
    })
}

#[test]
fn varlen_alibi() -> Result<()> {
    for_each_packed(|layer, [q, k, v], slopes, p, case| {
        for (mask, causal) in CAUSAL {
            let layer = with(layer, mask, (None, None), 0.0);
            let expected = reference(&layer, [q, k, v], p.host)?;
            let out = flash_attn_varlen_alibi(
                q, k, v, slopes, &p.q, &p.k, p.max_q, p.max_k, SCALE, causal,
            )?;
            assert_out(&out, q, &expected.out, &format!("{case} {mask:?}"))?;
        }
        Ok(())
    })
}

#[test]
fn varlen_alibi_windowed() -> Result<()> {
    for_each_packed(|layer, [q, k, v], slopes, p, case| {
        for (left, right) in WINDOWS {
            let layer = with(layer, Mask::Bidirectional, (left, right), 0.0);
            let expected = reference(&layer, [q, k, v], p.host)?;
            let out = flash_attn_varlen_alibi_windowed(
                q, k, v, slopes, &p.q, &p.k, p.max_q, p.max_k, SCALE, left, right,
            )?;
            assert_out(
                &out,
                q,
                &expected.out,
                &format!("{case} {left:?} {right:?}"),
            )?;
        }
        Ok(())
    })
}

#[test]
fn varlen_alibi_windowed_softcap() -> Result<()> {
    for_each_packed(|layer, [q, k, v], slopes, p, case| {
        for ((left, right), softcap) in WINDOWS.into_iter().zip([0.2, 0.7, 2.0, 0.0, -1.0, 0.5]) {
            let layer = with(layer, Mask::Bidirectional, (left, right), softcap);
            let expected = reference(&layer, [q, k, v], p.host)?;
            let slopes = Some(slopes);
            let out = flash_attn_varlen_alibi_windowed_softcap(
                q, k, v, slopes, &p.q, &p.k, p.max_q, p.max_k, SCALE, left, right, softcap,
            )?;
            assert_out(
                &out,
                q,
                &expected.out,
                &format!("{case} {left:?} {right:?} {softcap}"),
            )?;
        }
        Ok(())
    })
}

#[test]
fn no_slopes_is_no_bias() -> Result<()> {
    let [q, k] = [1, 2].map(|seed| random(&[1, 9, 2, 8], DType::F32, seed).unwrap());
    let layer = Attention::new(2, 2, 8)
        .scale(SCALE)
        .slopes(Slopes::zero(2))
        .build()?;
    let expected = reference(&layer, [&q, &k, &k], HostLengths::default())?.out;
    let out = flash_attn_alibi_windowed_softcap(&q, &k, &k, None, SCALE, NONE, Some(0), 0.0)?;
    assert_out(&out, &q, &expected, "dense")?;

    let [q, k] = [q.squeeze(0)?, k.squeeze(0)?];
    let cu = tensor(&[0u32, 9]);
    let out = flash_attn_varlen_alibi_windowed_softcap(
        &q,
        &k,
        &k,
        None,
        &cu,
        &cu,
        9,
        9,
        SCALE,
        NONE,
        Some(0),
        0.0,
    )?;
    assert_out(&out, &q, &expected, "varlen")
}

#[test]
fn slopes_of_each_sequence_and_strided() -> Result<()> {
    let [q, k] = [1, 2].map(|seed| random(&[2, 9, 2, 8], DType::F32, seed).unwrap());
    let layer = Attention::new(2, 2, 8)
        .scale(SCALE)
        .slopes(Slopes::per_batch_and_head(&[0.1, 0.2, 0.3, 0.4], 2, 2)?)
        .build()?;
    let expected = reference(&layer, [&q, &k, &k], HostLengths::default())?.out;
    // A rank's share of the heads, stored heads first: neither contiguous nor at the start.
    let stored = tensor(&[9f32, 9.0, 0.1, 0.3, 0.2, 0.4]);
    let slopes = stored.reshape((3, 2))?.narrow(0, 1, 2)?.t()?;
    let out = flash_attn_alibi(&q, &k, &k, &slopes, SCALE, true)?;
    assert_out(&out, &q, &expected, "dense")?;

    let [q, k] = [q.flatten(0, 1)?, k.flatten(0, 1)?];
    let cu = tensor(&[0u32, 9, 18]);
    let out = flash_attn_varlen_alibi(&q, &k, &k, &slopes, &cu, &cu, 9, 9, SCALE, true)?;
    assert_out(&out, &q, &expected, "varlen")
}

#[test]
fn attend_dense() -> Result<()> {
    for_each_dense(|layer, [q, k, v], _, case| {
        for ((left, right), softcap) in WINDOWS.into_iter().zip([0.2, 0.7, 2.0, 0.0, 1.0, 0.5]) {
            for (mask, _) in CAUSAL {
                let layer = with(layer, mask, (left, right), softcap);
                let case = format!("{case} {mask:?} {left:?} {right:?} {softcap}");
                let expected = reference(&layer, [q, k, v], HostLengths::default())?;
                let (out, lse) = attend(&layer, q, k, v, Lengths::dense())?;
                assert_out(&out, q, &expected.out, &case)?;
                let (b, sq, hq, _) = q.dims4()?;
                assert_eq!(
                    (lse.dims3()?, lse.dtype()),
                    ((b, hq, sq), DType::F32),
                    "{case}"
                );
                assert_close(&lse, &expected.lse, 1e-3, &case)?;
            }
        }
        Ok(())
    })
}

#[test]
fn attend_varlen() -> Result<()> {
    for_each_packed(|layer, [q, k, v], _, p, case| {
        for (mask, _) in CAUSAL {
            let layer = with(layer, mask, (Some(20), None), 0.7);
            let case = format!("{case} {mask:?}");
            let expected = reference(&layer, [q, k, v], p.host)?;
            let lengths = Lengths::varlen(&p.q, &p.k, p.max_q, p.max_k);
            let (out, lse) = attend(&layer, q, k, v, lengths)?;
            assert_out(&out, q, &expected.out, &case)?;
            let (total_q, hq, _) = q.dims3()?;
            assert_eq!(
                (lse.dims2()?, lse.dtype()),
                ((hq, total_q), DType::F32),
                "{case}"
            );
            assert_close(&lse, &expected.lse, 1e-3, &case)?;
        }
        Ok(())
    })
}

#[test]
fn attend_used_and_padded_keys() -> Result<()> {
    let (used, pad) = ([9u32, 0, 4], [2u32, 0, 4]);
    let (cu_q, cu_k) = ([0u32, 2, 4, 6], [0u32, 11, 22, 33]);
    let [used_t, pad_t, cu_q_t, cu_k_t] = [&used[..], &pad, &cu_q, &cu_k].map(tensor::<u32>);
    let slopes = Slopes::per_batch_and_head(&slopes(12), 3, 4)?;
    let layer = Attention::new(4, 2, 16).slopes(slopes).build()?;
    for dtype in DTYPES {
        let q = random(&[3, 2, 4, 16], dtype, 1)?;
        let [k, v] = [2, 3].map(|seed| random(&[3, 11, 2, 16], dtype, seed).unwrap());
        for packed in [false, true] {
            let flat = |x: &Tensor| match packed {
                true => x.flatten(0, 1),
                false => Ok(x.clone()),
            };
            let (q, k, v) = (&flat(&q)?, &flat(&k)?, &flat(&v)?);
            for (with_used, with_pad) in [(true, false), (false, true), (true, true)] {
                let host = HostLengths {
                    seqlens: packed.then_some((&cu_q, &cu_k)),
                    seqused_k: with_used.then_some(&used),
                    leftpad_k: with_pad.then_some(&pad),
                };
                let mut lengths = match packed {
                    true => Lengths::varlen(&cu_q_t, &cu_k_t, 2, 11),
                    false => Lengths::dense(),
                };
                if with_used {
                    lengths = lengths.seqused_k(&used_t);
                }
                if with_pad {
                    lengths = lengths.leftpad_k(&pad_t);
                }
                let case = format!("{dtype:?} packed {packed} used {with_used} pad {with_pad}");
                let expected = reference(&layer, [q, k, v], host)?;
                let (out, lse) = attend(&layer, q, k, v, lengths)?;
                assert_out(&out, q, &expected.out, &case)?;
                assert_close(&lse, &expected.lse, 1e-3, &case)?;
            }
        }
    }
    Ok(())
}

#[test]
fn inputs_are_not_copied() -> Result<()> {
    // A copy of these keys would take 128 GiB, and 64 bits to address; the window leaves four for each query.
    let k = random(&[1, 1, 1, 8], DType::F32, 1)?;
    let keys = k.broadcast_as((1, 1 << 32, 1, 8))?;
    let q = random(&[1, 65, 1, 8], DType::F32, 2)?;
    let slopes = tensor(&[0.5f32]);
    let out = flash_attn_alibi_windowed(&q, &keys, &keys, &slopes, 1.0, Some(3), Some(0))?;
    // All values are equal, so their means are too.
    let expected = k.to_dtype(DType::F64)?.broadcast_as(q.dims())?;
    assert_out(&out, &q, &expected.flatten_all()?.to_vec1()?, "repeated")
}

#[test]
fn empty_slices_past_the_end_of_their_storage() -> Result<()> {
    // No sequences, and a rank's share of the heads: candle leaves an offset in a storage of nothing.
    let [q, k] = [4, 6].map(|heads| zeros(&[0, 3, heads, 8]).narrow(2, heads - 2, 2).unwrap());
    let slopes = zeros(&[0, 4]).narrow(1, 2, 2)?;
    let out = flash_attn_alibi(&q, &k, &k, &slopes, SCALE, true)?;
    assert_eq!(out.dims(), [0, 3, 2, 8]);
    let seqlens = Tensor::zeros((0, 4), DType::U32, &Device::Cpu)?.narrow(1, 2, 2)?;
    let seqlens = seqlens.flatten_all()?;
    let [q, k] = [zeros(&[3, 2, 8]), zeros(&[3, 2, 8])];
    assert_error(
        flash_attn_varlen_alibi(
            &q,
            &k,
            &k,
            &zeros(&[2]),
            &seqlens,
            &seqlens,
            3,
            3,
            SCALE,
            true,
        ),
        "seqlens_q: found 0 elements, expected batch + 1, at least 2",
    );
    Ok(())
}

#[test]
fn slices_of_a_fused_projection() -> Result<()> {
    // One storage under q, k and v.
    let qkv = random(&[2, 9, 4 + 2 + 2, 16], DType::BF16, 1)?;
    let (q, k, v) = (
        qkv.narrow(2, 0, 4)?,
        qkv.narrow(2, 4, 2)?,
        qkv.narrow(2, 6, 2)?,
    );
    let layer = Attention::new(4, 2, 16).build()?;
    let expected = reference(&layer, [&q, &k, &v], HostLengths::default())?;
    let (out, _) = attend(&layer, &q, &k, &v, Lengths::dense())?;
    assert_out(&out, &q, &expected.out, "fused")
}

#[test]
fn backward_is_refused() -> Result<()> {
    let q = Var::from_tensor(&random(&[1, 3, 2, 8], DType::F32, 1)?)?;
    let out = flash_attn_alibi(&q, &q, &q, &tensor(&slopes(2)), SCALE, true)?;
    let error = out.sum_all()?.backward().unwrap_err();
    assert_eq!(
        error.to_string(),
        "backward is not supported for flash-alibi"
    );
    Ok(())
}

/// Correct arguments, to be spoilt one at a time. Dense `[2, 3, 4, 8]`; packed `[6, 4, 8]` as 1 + 5 query rows.
struct Args {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slopes: Tensor,
    scale: f32,
    softcap: f32,
    seqlens_q: Tensor,
    seqlens_k: Tensor,
    max_seqlen_q: usize,
    max_seqlen_k: usize,
}

impl Args {
    fn dense() -> Self {
        let x = |shape: &[usize]| random(shape, DType::F32, 1).unwrap();
        Self {
            q: x(&[2, 3, 4, 8]),
            k: x(&[2, 5, 2, 8]),
            v: x(&[2, 5, 2, 8]),
            slopes: tensor(&slopes(4)),
            scale: SCALE,
            softcap: 0.0,
            seqlens_q: tensor(&[0u32, 1, 6]),
            seqlens_k: tensor(&[0u32, 7, 10]),
            max_seqlen_q: 5,
            max_seqlen_k: 7,
        }
    }

    fn packed() -> Self {
        let dense = Self::dense();
        let flat = |x: &Tensor| x.flatten(0, 1).unwrap();
        Self {
            q: flat(&dense.q),
            k: flat(&dense.k),
            v: flat(&dense.v),
            ..dense
        }
    }

    fn call(&self, packed: bool) -> Result<Tensor> {
        let Args {
            q,
            k,
            v,
            slopes,
            scale,
            softcap,
            ..
        } = self;
        let slopes = Some(slopes);
        match packed {
            false => {
                flash_attn_alibi_windowed_softcap(q, k, v, slopes, *scale, NONE, Some(0), *softcap)
            }
            true => flash_attn_varlen_alibi_windowed_softcap(
                q,
                k,
                v,
                slopes,
                &self.seqlens_q,
                &self.seqlens_k,
                self.max_seqlen_q,
                self.max_seqlen_k,
                *scale,
                NONE,
                Some(0),
                *softcap,
            ),
        }
    }
}

fn assert_error<T>(result: Result<T>, message: &str) {
    let error = result
        .err()
        .unwrap_or_else(|| panic!("no error for: {message}"));
    assert_eq!(error.to_string(), message);
    let source = error
        .source()
        .unwrap_or_else(|| panic!("no source for: {message}"));
    assert_eq!(
        source
            .downcast_ref::<flash_alibi::Error>()
            .unwrap()
            .to_string(),
        message
    );
}

fn zeros(shape: &[usize]) -> Tensor {
    Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap()
}

/// The same values with the last dimension in steps.
fn spread(x: &Tensor) -> Tensor {
    let last = x.rank() - 1;
    x.transpose(last - 1, last)
        .and_then(|x| x.contiguous())
        .and_then(|x| x.transpose(last - 1, last))
        .unwrap()
}

type Spoil = fn(&mut Args);

#[test]
fn errors_of_dense_calls() {
    assert!(Args::dense().call(false).is_ok());
    let table: &[(Spoil, &str)] = &[
        (
            |a| a.q = zeros(&[3, 4, 8]),
            "q: found shape [3, 4, 8], expected [batch, seqlen_q, heads_q, head_dim]",
        ),
        (
            |a| a.q = zeros(&[1, 2, 3, 4, 8]),
            "q: found shape [1, 2, 3, 4, 8], expected [batch, seqlen_q, heads_q, head_dim]",
        ),
        (
            |a| a.q = tensor(&[1f32]).squeeze(0).unwrap(),
            "q: found shape [], expected [batch, seqlen_q, heads_q, head_dim]",
        ),
        (
            |a| a.k = zeros(&[5, 2, 8]),
            "k: found shape [5, 2, 8], expected [batch, seqlen_k, heads_k, head_dim]",
        ),
        (
            |a| a.k = zeros(&[3, 5, 2, 8]),
            "k: found shape [3, 5, 2, 8], expected [2, seqlen_k, 2, 8]",
        ),
        (
            |a| a.k = zeros(&[2, 5, 2, 16]),
            "k: found shape [2, 5, 2, 16], expected [2, seqlen_k, 2, 8]",
        ),
        (
            |a| a.v = zeros(&[5, 2, 8]),
            "v: found shape [5, 2, 8], expected [2, 5, 2, 8]",
        ),
        (
            |a| a.v = zeros(&[2, 6, 2, 8]),
            "v: found shape [2, 6, 2, 8], expected [2, 5, 2, 8]",
        ),
        (
            |a| a.v = zeros(&[2, 5, 4, 8]),
            "v: found shape [2, 5, 4, 8], expected [2, 5, 2, 8]",
        ),
        (
            |a| a.v = zeros(&[2]),
            "v: found shape [2], expected [batch, seqlen, heads, head_dim] or [total, heads, head_dim]",
        ),
        (
            |a| a.k = zeros(&[2, 5, 3, 8]),
            "k: found shape [2, 5, 3, 8], expected [batch, seqlen_k, heads_k, head_dim], its heads a divisor of the 4 of q",
        ),
        (
            |a| a.k = zeros(&[2, 5, 0, 8]),
            "k: found shape [2, 5, 0, 8], expected [batch, seqlen_k, heads_k, head_dim], its heads a divisor of the 4 of q",
        ),
        (
            |a| (a.q, a.slopes) = (zeros(&[2, 3, 0, 8]), zeros(&[0])),
            "heads_q: found 0, expected a positive multiple of heads_k = 2",
        ),
        (
            |a| a.q = zeros(&[2, 3, 4, 12]),
            "head_dim: found 12, expected a multiple of 8 from 8 to 512",
        ),
        (
            |a| a.q = zeros(&[2, 3, 4, 520]),
            "head_dim: found 520, expected a multiple of 8 from 8 to 512",
        ),
        (
            |a| a.q = zeros(&[2, 3, 4, 0]),
            "head_dim: found 0, expected a multiple of 8 from 8 to 512",
        ),
        (
            |a| a.q = spread(&a.q),
            "q: found strides [96, 32, 1, 4], expected one stride a dimension, the last of them 1",
        ),
        (
            |a| a.k = spread(&a.k),
            "k: found strides [80, 16, 1, 2], expected one stride a dimension, the last of them 1",
        ),
        (
            |a| a.v = spread(&a.v),
            "v: found strides [80, 16, 1, 2], expected one stride a dimension, the last of them 1",
        ),
        (
            |a| a.q = a.q.to_dtype(DType::F64).unwrap(),
            "q: found dtype F64, expected dtype F16, BF16 or F32",
        ),
        (
            |a| a.k = a.k.to_dtype(DType::F16).unwrap(),
            "k: found dtype F16, expected dtype F32, as q",
        ),
        (
            |a| a.v = a.v.to_dtype(DType::BF16).unwrap(),
            "v: found dtype BF16, expected dtype F32, as q",
        ),
        (
            |a| a.slopes = a.slopes.to_dtype(DType::I64).unwrap(),
            "alibi_slopes: found dtype I64, expected dtype F32, F64, F16 or BF16",
        ),
        (
            |a| a.slopes = zeros(&[3]),
            "q: found shape [2, 3, 4, 8], expected [batch, seqlen_q, heads_q, head_dim], its heads the 3 of alibi_slopes; \
             dimensions 1 and 2 of q may need to be transposed",
        ),
        (
            |a| a.slopes = zeros(&[5]),
            "q: found shape [2, 3, 4, 8], expected [batch, seqlen_q, heads_q, head_dim], its heads the 5 of alibi_slopes",
        ),
        (
            |a| a.q = a.q.transpose(1, 2).unwrap(),
            "q: found shape [2, 4, 3, 8], expected [batch, seqlen_q, heads_q, head_dim], its heads the 4 of alibi_slopes; \
             dimensions 1 and 2 of q may need to be transposed",
        ),
        (
            |a| a.k = a.k.transpose(1, 2).unwrap(),
            "k: found shape [2, 2, 5, 8], expected [batch, seqlen_k, heads_k, head_dim], its heads a divisor of the 4 of q; \
             dimensions 1 and 2 of k may need to be transposed",
        ),
        (
            |a| a.slopes = zeros(&[3, 4]),
            "alibi_slopes: found shape [3, 4], expected [heads_q] or [batch, heads_q]: [4] or [2, 4]",
        ),
        (
            |a| a.slopes = zeros(&[1, 1, 4]),
            "alibi_slopes: found shape [1, 1, 4], expected [heads_q] or [batch, heads_q]: [4] or [2, 4]",
        ),
        (
            |a| a.slopes = tensor(&[0f32, 1.0, f32::NAN, 1.0]),
            "alibi_slopes: found NaN at index 2, expected finite numbers",
        ),
        (
            |a| a.scale = f32::NAN,
            "softmax_scale: found NaN, expected a finite number",
        ),
        (
            |a| a.softcap = f32::NAN,
            "softcap: found NaN, expected a positive finite number",
        ),
        (
            |a| a.softcap = f32::INFINITY,
            "softcap: found inf, expected a positive finite number",
        ),
    ];
    for (spoil, message) in table {
        let mut args = Args::dense();
        spoil(&mut args);
        assert_error(args.call(false), message);
    }
}

#[test]
fn errors_of_packed_calls() {
    assert!(Args::packed().call(true).is_ok());
    let table: &[(Spoil, &str)] = &[
        (
            |a| a.q = zeros(&[2, 3, 4, 8]),
            "q: found shape [2, 3, 4, 8], expected [total_q, heads_q, head_dim]",
        ),
        (
            |a| a.k = zeros(&[2, 5, 2, 8]),
            "k: found shape [2, 5, 2, 8], expected [total_k, heads_k, head_dim]",
        ),
        (
            |a| a.v = zeros(&[2, 5, 2, 8]),
            "v: found shape [2, 5, 2, 8], expected [10, 2, 8]",
        ),
        (
            |a| a.q = a.q.transpose(0, 1).unwrap(),
            "q: found shape [4, 6, 8], expected [total_q, heads_q, head_dim], its heads the 4 of alibi_slopes; \
             dimensions 0 and 1 of q may need to be transposed",
        ),
        (
            |a| a.k = zeros(&[10, 2, 16]),
            "k: found shape [10, 2, 16], expected [total_k, 2, 8]",
        ),
        (
            |a| a.q = spread(&a.q),
            "q: found strides [32, 1, 4], expected one stride a dimension, the last of them 1",
        ),
        (
            |a| a.slopes = zeros(&[3, 4]),
            "alibi_slopes: found shape [3, 4], expected [heads_q] or [batch, heads_q]: [4] or [2, 4]",
        ),
        (
            |a| a.seqlens_q = a.seqlens_q.to_dtype(DType::U8).unwrap(),
            "seqlens_q: found dtype U8, expected dtype U32, I32 or I64",
        ),
        (
            |a| a.seqlens_k = a.seqlens_k.to_dtype(DType::F32).unwrap(),
            "seqlens_k: found dtype F32, expected dtype U32, I32 or I64",
        ),
        (
            |a| a.seqlens_q = a.seqlens_q.unsqueeze(0).unwrap(),
            "seqlens_q: found shape [1, 3], expected [batch + 1]",
        ),
        (
            |a| a.seqlens_q = tensor(&[0u32]),
            "seqlens_q: found 1 elements, expected batch + 1, at least 2",
        ),
        (
            |a| a.seqlens_k = tensor::<u32>(&[]),
            "seqlens_k: found 0 elements, expected batch + 1, at least 2",
        ),
        (
            |a| a.seqlens_k = tensor(&[0u32, 10]),
            "seqlens_k: found 2 elements, expected 3, as for q",
        ),
        (
            |a| a.seqlens_q = tensor(&[1u32, 2, 6]),
            "seqlens_q: found 1 at index 0, expected 0",
        ),
        (
            |a| a.seqlens_k = tensor(&[0u32, 7, 6]),
            "seqlens_k: found 6 at index 2, expected at least 7, its predecessor",
        ),
        (
            |a| a.seqlens_k = tensor(&[0u32, 7, 11]),
            "seqlens_k: found 11 at index 2, expected at most the 10 rows of the tensor",
        ),
        (
            |a| a.seqlens_q = tensor(&[0u32, 1, 1 << 31]),
            "seqlens_q: found 2147483648 at index 2, expected at most 2147483647",
        ),
        (
            |a| a.max_seqlen_q = 4,
            "max_seqlen_q: found 4, expected at least 5, the longest sequence in seqlens_q",
        ),
        (
            |a| a.max_seqlen_k = 0,
            "max_seqlen_k: found 0, expected at least 7, the longest sequence in seqlens_k",
        ),
    ];
    for (spoil, message) in table {
        let mut args = Args::packed();
        spoil(&mut args);
        assert_error(args.call(true), message);
    }
}

#[test]
fn errors_of_attend() {
    let layer = Attention::new(4, 2, 8).build().unwrap();
    let two = Slopes::per_batch_and_head(&slopes(12), 3, 4).unwrap();
    let batched = Attention::new(4, 2, 8).slopes(two).build().unwrap();
    let (dense, packed) = (Args::dense(), Args::packed());
    let call = |layer: &Attention, a: &Args, lengths| attend(layer, &a.q, &a.k, &a.v, lengths);
    let varlen = |a| Lengths::varlen(&packed.seqlens_q, &packed.seqlens_k, a, 7);
    assert!(call(&layer, &dense, Lengths::dense()).is_ok());
    assert!(call(&layer, &packed, varlen(5)).is_ok());

    assert_error(
        call(&layer, &packed, Lengths::dense()),
        "q: found shape [6, 4, 8], expected [batch, seqlen_q, 4, 8]",
    );
    assert_error(
        call(&layer, &dense, varlen(5)),
        "q: found shape [2, 3, 4, 8], expected [total_q, 4, 8]",
    );
    assert_error(
        call(&layer, &packed, varlen(3)),
        "max_seqlen_q: found 3, expected at least 5, the longest sequence in seqlens_q",
    );
    assert_error(
        call(&batched, &dense, Lengths::dense()),
        "slopes: found 3 sequences, expected batch = 2",
    );
    let other = Attention::new(8, 2, 8).build().unwrap();
    assert_error(
        call(&other, &dense, Lengths::dense()),
        "q: found shape [2, 3, 4, 8], expected [batch, seqlen_q, 8, 8]",
    );
    let f64 = Args {
        q: dense.q.to_dtype(DType::F64).unwrap(),
        ..Args::dense()
    };
    assert_error(
        call(&layer, &f64, Lengths::dense()),
        "q: found dtype F64, expected dtype F16, BF16 or F32",
    );

    let table: &[(Tensor, &str)] = &[
        (
            tensor(&[1u8, 2]),
            "found dtype U8, expected dtype U32, I32 or I64",
        ),
        (
            tensor(&[1u32, 2]).unsqueeze(0).unwrap(),
            "found shape [1, 2], expected [batch]",
        ),
        (tensor(&[1u32]), "found 1 elements, expected batch = 2"),
        (
            tensor(&[5u32, 6]),
            "found 6 at index 1, expected 0 to seqlen_k = 5",
        ),
        (
            tensor(&[u32::MAX, 2]),
            "found 4294967295 at index 0, expected at most 2147483647",
        ),
    ];
    for (bad, message) in table {
        let used = call(&layer, &dense, Lengths::dense().seqused_k(bad));
        assert_error(used, &format!("seqused_k: {message}"));
        let pad = call(&layer, &dense, Lengths::dense().leftpad_k(bad));
        assert_error(pad, &format!("leftpad_k: {message}"));
    }
}
