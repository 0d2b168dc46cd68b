//! Lengths, pages, slots and slopes in every type that engines have them in: the bits that U32, I64 and f32 give.

use candle_core::{DType, Device, NdArray, Result, Tensor};
use flash_alibi::candle::{
    Lengths, append, attend, flash_attn_alibi, flash_attn_varlen_alibi_windowed,
};
use flash_alibi::{Attention, Mask, Slopes};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt as _, SeedableRng as _};

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

fn bits((out, lse): &(Tensor, Tensor)) -> Result<Vec<u32>> {
    let mut values: Vec<f32> = out.flatten_all()?.to_vec1()?;
    values.extend(lse.flatten_all()?.to_vec1::<f32>()?);
    Ok(values.into_iter().map(f32::to_bits).collect())
}

/// The types that this version of candle has: I32 since 0.9.2.
fn types() -> impl Iterator<Item = DType> {
    let names = ["u32", "i32", "i64"].into_iter();
    names.filter_map(|name| name.parse().ok())
}

/// The same numbers in each type, and of every second number.
fn in_types(x: &Tensor) -> Result<Vec<Tensor>> {
    let x = x.to_dtype(DType::I64)?;
    let last = x.rank();
    let spread = Tensor::stack(&[&x, &(&x + 7.0)?], last)?;
    let spread = spread.narrow(last, 0, 1)?.squeeze(last)?;
    let mut all = vec![spread];
    for dtype in types() {
        all.push(x.to_dtype(dtype)?);
    }
    Ok(all)
}

fn layer() -> Attention {
    let slopes = Slopes::per_head(&[0.5, 0.1, -0.1, 0.02]);
    let layer = Attention::new(2 * HEADS_K, HEADS_K, HEAD_DIM).slopes(slopes);
    layer.build().unwrap()
}

#[test]
fn lengths_of_padded_sequences() -> Result<()> {
    let q = random(&[3, 5, 2 * HEADS_K, HEAD_DIM], 1);
    let k = random(&[3, 33, HEADS_K, HEAD_DIM], 2);
    let (used, pad, offset) = (
        tensor(&[33u32, 0, 9]),
        tensor(&[2u32, 0, 4]),
        tensor(&[5u32, 1, 30]),
    );
    let call = |used: &Tensor, pad: &Tensor, offset: &Tensor| {
        let lengths = Lengths::dense().seqused_k(used).leftpad_k(pad);
        bits(&attend(&layer(), &q, &k, &k, lengths.offset(offset))?)
    };
    let expected = call(&used, &pad, &offset)?;
    for other in in_types(&used)? {
        assert_eq!(call(&other, &pad, &offset)?, expected);
    }
    for other in in_types(&pad)? {
        assert_eq!(call(&used, &other, &offset)?, expected);
    }
    for other in in_types(&offset)? {
        assert_eq!(call(&used, &pad, &other)?, expected);
    }
    Ok(())
}

#[test]
fn lengths_of_packed_sequences() -> Result<()> {
    let q = random(&[6, 2 * HEADS_K, HEAD_DIM], 1);
    let k = random(&[40, HEADS_K, HEAD_DIM], 2);
    let (seqlens_q, seqlens_k) = (tensor(&[0u32, 1, 6]), tensor(&[0u32, 9, 40]));
    let call = |q_lens: &Tensor, k_lens: &Tensor| {
        let lengths = Lengths::varlen(q_lens, k_lens, 5, 31);
        bits(&attend(&layer(), &q, &k, &k, lengths)?)
    };
    let expected = call(&seqlens_q, &seqlens_k)?;
    for other in in_types(&seqlens_q)? {
        assert_eq!(call(&other, &seqlens_k)?, expected);
    }
    for other in in_types(&seqlens_k)? {
        assert_eq!(call(&seqlens_q, &other)?, expected);
    }
    Ok(())
}

#[test]
fn pages_and_slots() -> Result<()> {
    let k = random(&[40, HEADS_K, HEAD_DIM], 1);
    let q = random(&[2, 3, 2 * HEADS_K, HEAD_DIM], 2);
    // Token t is in row t % 8 of one of these pages; the last 3 are padding, where a type can say so.
    let pages = [5, 0, 3, 1, 4];
    let slot = |t: i64| pages[t as usize / 8] * 8 + t % 8;
    let (table, used) = (tensor(&[[5u32, 0, 3], [1, 4, 9]]), tensor(&[24u32, 13]));
    let call = |slots: &Tensor, table: &Tensor| {
        let (k, nan) = (k.narrow(0, 0, slots.dim(0)?)?, f32::NAN);
        let pool = Tensor::full(nan, (6, 8, HEADS_K, HEAD_DIM), &Device::Cpu)?.contiguous()?;
        let other = (&pool + 1.0)?;
        append(&k, &k, &pool, &other, slots)?;
        let lengths = Lengths::paged(table, &used);
        bits(&attend(&layer(), &q, &pool, &other, lengths)?)
    };
    let slots = tensor((0..37).map(slot).collect::<Vec<i64>>());
    let expected = call(&slots, &table)?;
    assert!(expected.iter().all(|&bits| !f32::from_bits(bits).is_nan()));
    for other in in_types(&slots)? {
        assert_eq!(call(&other, &table)?, expected);
    }
    let padded = (0..40).map(|t| if t < 37 { slot(t) } else { -t });
    let padded = tensor(padded.collect::<Vec<i64>>());
    for dtype in types().filter(|&dtype| dtype != DType::U32) {
        assert_eq!(call(&padded.to_dtype(dtype)?, &table)?, expected);
    }
    for other in in_types(&table)? {
        assert_eq!(call(&slots, &other)?, expected);
    }
    // What no query needs may be anything, also more than an i32 holds.
    let beyond = tensor(&[[5i64, 0, 3], [1, 4, 1 << 40]]);
    assert_eq!(call(&slots, &beyond)?, expected);
    Ok(())
}

#[test]
fn slopes() -> Result<()> {
    let q = random(&[2, 9, 4, HEAD_DIM], 1);
    let k = random(&[2, 9, HEADS_K, HEAD_DIM], 2);
    // All three types have these numbers.
    for (seed, slopes) in [
        tensor(&[0.5f32, 0.125, -0.25, 0.0]),
        tensor(&[[0.5f32, 0.125, 0.25, 1.0], [2.0, 1.0, 0.5, 0.75]]),
    ]
    .iter()
    .enumerate()
    {
        let dense = |slopes: &Tensor| flash_attn_alibi(&q, &k, &k, slopes, 0.3, true);
        let seqlens = tensor(&[0u32, 9, 18]);
        let (flat_q, flat_k) = (q.flatten(0, 1)?, k.flatten(0, 1)?);
        let packed = |slopes: &Tensor| {
            flash_attn_varlen_alibi_windowed(
                &flat_q,
                &flat_k,
                &flat_k,
                slopes,
                &seqlens,
                &seqlens,
                9,
                9,
                0.3,
                Some(4),
                None,
            )
        };
        let layer = Attention::new(4, HEADS_K, HEAD_DIM).scale(0.3);
        let values: Vec<f32> = slopes.flatten_all()?.to_vec1()?;
        let slopes_of = match seed {
            0 => Slopes::per_head(&values),
            _ => Slopes::per_batch_and_head(&values, 2, 4)?,
        };
        let layer = layer.slopes(slopes_of).mask(Mask::Causal).build()?;
        let (expected, _) = attend(&layer, &q, &k, &k, Lengths::dense())?;
        let values = |x: &Tensor| x.flatten_all()?.to_vec1::<f32>();
        for dtype in [DType::F64, DType::F16, DType::BF16] {
            let other = slopes.to_dtype(dtype)?;
            assert_eq!(values(&dense(&other)?)?, values(&expected)?, "{dtype:?}");
            assert_eq!(
                values(&packed(&other)?)?,
                values(&packed(slopes)?)?,
                "{dtype:?}"
            );
        }
    }
    Ok(())
}
