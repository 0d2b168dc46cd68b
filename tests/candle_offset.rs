//! Queries at positions of their own, and results over separate sets of keys merged: the candle functions against the oracle.

use std::error::Error as _;

use candle_core::{DType, Device, Result, Tensor, Var, WithDType};
use flash_alibi::candle::{Lengths, append, attend, merge_states};
use flash_alibi::cpu::oracle;
use flash_alibi::{Attention, Inputs, Mask, Slopes, View, merge_state};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt as _, SeedableRng as _};

const HEADS_Q: usize = 4;
const HEADS_K: usize = 2;
const HEAD_DIM: usize = 16;
const KEYS: usize = 24;

fn tensor<T: WithDType>(values: &[T]) -> Tensor {
    Tensor::new(values, &Device::Cpu).unwrap()
}

/// Numbers in -1..1.
fn random(shape: &[usize], seed: u64) -> Tensor {
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    let mut next = || generator.random_range(-1.0..1.0);
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| next()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn values(x: &Tensor) -> Vec<f32> {
    let x = x.to_dtype(DType::F32).unwrap().flatten_all().unwrap();
    x.to_vec1().unwrap()
}

fn bits(x: &Tensor) -> Vec<u32> {
    values(x).into_iter().map(f32::to_bits).collect()
}

#[track_caller]
fn assert_close(found: &Tensor, expected: &[f64], limit: f64, case: &str) {
    let found = values(found);
    assert_eq!(found.len(), expected.len(), "{case}");
    for (at, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        let found = f64::from(found);
        let close =
            found == expected || (found - expected).abs() <= limit * expected.abs().max(1.0);
        assert!(close, "{case}: {found} for {expected} at {at}");
    }
}

#[track_caller]
fn assert_error<T>(result: Result<T>, message: &str) {
    let error = result
        .err()
        .unwrap_or_else(|| panic!("no error: {message}"));
    assert_eq!(error.to_string(), message);
    assert!(error.source().unwrap().is::<flash_alibi::Error>());
}

fn layers() -> Vec<Attention> {
    let layer = || {
        let slopes = Slopes::per_head(&[0.5, 0.1, -0.1, 0.02]);
        Attention::new(HEADS_Q, HEADS_K, HEAD_DIM).slopes(slopes)
    };
    vec![
        layer().build().unwrap(),
        layer().mask(Mask::Bidirectional).build().unwrap(),
        layer().window(Some(3), Some(2)).build().unwrap(),
    ]
}

/// Before all keys, among them, and far behind them, in each type that this version of candle has.
fn offsets(offset: [i32; 3]) -> Vec<Tensor> {
    // Of every second number.
    let strided: Vec<i64> = offset.iter().flat_map(|&x| [i64::from(x), 77]).collect();
    let strided = tensor(&strided).reshape((3, 2)).unwrap();
    let strided = strided.narrow(1, 0, 1).unwrap().squeeze(1).unwrap();
    let types = ["i32", "i64"].map(|name| name.parse::<DType>().ok());
    let cast = |dtype| strided.to_dtype(dtype).unwrap();
    let mut offsets: Vec<Tensor> = types.into_iter().flatten().map(cast).collect();
    offsets.push(strided);
    offsets
}

#[test]
fn rows_stand_where_the_offset_says() -> Result<()> {
    let q = random(&[3, 5, HEADS_Q, HEAD_DIM], 1);
    let [k, v] = [2, 3].map(|seed| random(&[3, KEYS, HEADS_K, HEAD_DIM], seed));
    let (q_values, k_values, v_values) = (values(&q), values(&k), values(&v));
    let flat = |x: &Tensor| x.flatten(0, 1).unwrap();

    // Sequence b has the pages b, b + 3, b + 6.
    let pool = || Tensor::zeros((9, 8, HEADS_K, HEAD_DIM), DType::F32, &Device::Cpu);
    let (k_pages, v_pages) = (pool()?, pool()?);
    let page = |b: usize, j: usize| b + 3 * (j / 8);
    let slots: Vec<i64> = (0..3 * KEYS)
        .map(|i| (page(i / KEYS, i % KEYS) * 8 + i % 8) as i64)
        .collect();
    append(&flat(&k), &flat(&v), &k_pages, &v_pages, &tensor(&slots))?;
    let table: Vec<u32> = (0..9).map(|i| (i / 3 + 3 * (i % 3)) as u32).collect();
    let table = Tensor::from_vec(table, (3, 3), &Device::Cpu)?;

    let used = [24u32, 20, 9];
    let (used_t, cu_q, cu_k) = (
        tensor(&used),
        tensor(&[0u32, 5, 10, 15]),
        tensor(&[0u32, 24, 48, 72]),
    );
    for layer in layers() {
        for offset in [[0, 0, 0], [-3, 7, 40], [i32::MIN, i32::MAX, 1]] {
            let used_host = used.map(|n| n as i32);
            let inputs = Inputs::new(
                View::new(&q_values, q.dims())?,
                View::new(&k_values, k.dims())?,
                View::new(&v_values, v.dims())?,
            );
            let inputs = inputs.seqused_k(&used_host).offset(&offset);
            let expected = oracle::attend(&layer, &inputs)?;
            for offset_t in offsets(offset) {
                let case = format!("{:?} {offset:?} {:?}", layer.mask(), offset_t.dtype());
                let dense = Lengths::dense().seqused_k(&used_t).offset(&offset_t);
                let (out, lse) = attend(&layer, &q, &k, &v, dense)?;
                assert_close(&out, &expected.out, 1e-5, &case);
                assert_close(&lse, &expected.lse, 1e-5, &case);
                let paged = Lengths::paged(&table, &used_t).offset(&offset_t);
                let (out, _) = attend(&layer, &q, &k_pages, &v_pages, paged)?;
                assert_close(&out, &expected.out, 1e-5, &format!("paged {case}"));
                let packed = Lengths::varlen(&cu_q, &cu_k, 5, KEYS).seqused_k(&used_t);
                let packed = packed.offset(&offset_t);
                let (out, _) = attend(&layer, &flat(&q), &flat(&k), &flat(&v), packed)?;
                assert_close(&out, &expected.out, 1e-5, &format!("packed {case}"));
            }
        }
    }
    Ok(())
}

#[test]
fn errors_of_offsets() -> Result<()> {
    let layer = Attention::new(2, 2, 8).build()?;
    let x = random(&[2, 3, 2, 8], 1);
    let call = |offset: &Tensor| attend(&layer, &x, &x, &x, Lengths::dense().offset(offset));
    assert!(call(&tensor(&[i64::from(i32::MIN), i64::from(i32::MAX)])).is_ok());
    for (bad, message) in [
        (
            tensor(&[0u8, 1]),
            "found dtype U8, expected dtype U32, I32 or I64",
        ),
        (
            tensor(&[0f32, 1.0]),
            "found dtype F32, expected dtype U32, I32 or I64",
        ),
        (tensor(&[0i64]), "found 1 elements, expected batch = 2"),
        (
            tensor(&[0i64, 1]).unsqueeze(0)?,
            "found shape [1, 2], expected [batch]",
        ),
        (
            tensor(&[0, 1i64 << 31]),
            "found 2147483648 at index 1, expected at most 2147483647",
        ),
        (
            tensor(&[i64::MIN, 0]),
            "found -9223372036854775808 at index 0, expected at least -2147483648",
        ),
    ] {
        assert_error(call(&bad), &format!("offset: {message}"));
    }
    Ok(())
}

/// Queries over two parts of the keys, dense and packed, in all types.
#[test]
fn merged_parts_are_the_whole() -> Result<()> {
    for layer in layers() {
        for (dtype, limit) in [(DType::F32, 1e-5), (DType::F16, 4e-3), (DType::BF16, 3e-2)] {
            let q = random(&[3, 5, HEADS_Q, HEAD_DIM], 1).to_dtype(dtype)?;
            let k = random(&[3, KEYS, HEADS_K, HEAD_DIM], 2).to_dtype(dtype)?;
            let (q_values, k_values) = (values(&q), values(&k));
            let (q_view, k_view) = (
                View::new(&q_values, q.dims())?,
                View::new(&k_values, k.dims())?,
            );
            let at = [KEYS as i32 - 5; 3];
            let expected =
                oracle::attend(&layer, &Inputs::new(q_view, k_view, k_view).offset(&at))?;
            let near = k.narrow(1, 10, KEYS - 10)?;
            let far = k.narrow(1, 0, 10)?;
            let (out, lse) = attend(&layer, &q, &near, &near, Lengths::dense())?;
            let offset = tensor(&at.map(i64::from));
            let (other, other_lse) =
                attend(&layer, &q, &far, &far, Lengths::dense().offset(&offset))?;
            let case = format!("{:?} {dtype:?}", layer.mask());
            for (merged, merged_lse) in [
                merge_states(&out, &lse, &other, &other_lse)?,
                merge_states(&other, &other_lse, &out, &lse)?,
            ] {
                assert_eq!((merged.dims(), merged.dtype()), (q.dims(), dtype), "{case}");
                assert_close(&merged, &expected.out, limit, &case);
                assert_close(&merged_lse, &expected.lse, 1e-5, &case);
            }
        }
    }
    Ok(())
}

/// As `merge_state` of every row; packed, and from strided tensors.
#[test]
fn rows_without_keys_change_no_bit_of_the_other() -> Result<()> {
    let inf = f32::NEG_INFINITY;
    let [a, b] = [1, 2].map(|seed| random(&[4, 2, 8], seed));
    let (lse, other_lse) = (
        [inf, inf, 1.0, 300.0, 0.0, inf, 2.0, -1e30],
        [inf, 0.5, inf, -5.0, 0.0, inf, 1e30, inf],
    );
    let shape = (2, 4);
    let lse_t = Tensor::new(&lse, &Device::Cpu)?.reshape(shape)?;
    let other_lse_t = Tensor::new(&other_lse, &Device::Cpu)?.reshape(shape)?;
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let [a, b] = [&a, &b].map(|x| x.to_dtype(dtype).unwrap());
        let strided = b.transpose(0, 1)?.contiguous()?.transpose(0, 1)?;
        let (merged, merged_lse) = merge_states(&a, &lse_t, &strided, &other_lse_t)?;
        let (mut out, other, mut expected_lse) = (values(&a), values(&b), lse);
        for row in 0..4 {
            for head in 0..2 {
                let (at, at_lse) = ((row * 2 + head) * 8, head * 4 + row);
                let (out, other) = (&mut out[at..][..8], &other[at..][..8]);
                merge_state(out, &mut expected_lse[at_lse], other, other_lse[at_lse])?;
            }
        }
        let expected = Tensor::from_vec(out, merged.shape(), &Device::Cpu)?;
        assert_eq!(bits(&merged), bits(&expected.to_dtype(dtype)?), "{dtype:?}");
        assert_eq!(
            bits(&merged_lse),
            expected_lse.map(f32::to_bits),
            "{dtype:?}"
        );
        // What was merged stays.
        assert_eq!(bits(&lse_t), lse.map(f32::to_bits));
    }
    let none = a.narrow(0, 0, 0)?;
    let none_lse = lse_t.narrow(1, 0, 0)?;
    let (merged, _) = merge_states(&none, &none_lse, &none, &none_lse)?;
    assert_eq!(merged.dims(), none.dims());

    let out = Var::from_tensor(&a)?;
    let (merged, _) = merge_states(&out, &lse_t, &b, &other_lse_t)?;
    assert!(merged.sum_all()?.backward().is_err());
    Ok(())
}

#[test]
fn errors_of_merge_states() -> Result<()> {
    let (out, lse) = (random(&[1, 3, 2, 8], 1), random(&[1, 2, 3], 2));
    assert!(merge_states(&out, &lse, &out, &lse).is_ok());
    let shapes = "[batch, seqlen_q, heads_q, head_dim] or [total_q, heads_q, head_dim]";
    assert_error(
        merge_states(&out.flatten_all()?, &lse, &out, &lse),
        &format!("out: found shape [48], expected {shapes}"),
    );
    assert_error(
        merge_states(&out, &lse, &out.squeeze(0)?, &lse),
        "other_out: found shape [3, 2, 8], expected [1, 3, 2, 8], as out",
    );
    assert_error(
        merge_states(&out.to_dtype(DType::F64)?, &lse, &out, &lse),
        "out: found dtype F64, expected dtype F16, BF16 or F32",
    );
    assert_error(
        merge_states(&out, &lse, &out.to_dtype(DType::F16)?, &lse),
        "other_out: found dtype F16, expected dtype F32, as out",
    );
    let rows = lse.transpose(1, 2)?;
    assert_error(
        merge_states(&out, &rows, &out, &lse),
        "lse: found shape [1, 3, 2], expected [batch, heads_q, seqlen_q] = [1, 2, 3], as out has",
    );
    let packed = out.squeeze(0)?;
    assert_error(
        merge_states(&packed, &lse.squeeze(0)?, &packed, &lse),
        "other_lse: found shape [1, 2, 3], expected [heads_q, total_q] = [2, 3], as out has",
    );
    assert_error(
        merge_states(&out, &lse, &out, &lse.to_dtype(DType::F16)?),
        "other_lse: found dtype F16, expected dtype F32",
    );
    Ok(())
}
