//! Paged caches in every layout, on random pages: the bits of pools `[pages, page_size, heads_k, head_dim]`.

mod errors;

use candle_core::{DType, Device, IndexOp as _, NdArray, Result, Tensor};
use flash_alibi::candle::{CacheLayout, Lengths, append, append_with_radii, attend, copy_pages};
use flash_alibi::{Attention, Horizon, Slopes};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt as _, SeedableRng as _};

const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];
const HEADS_K: usize = 2;
const HEAD_DIM: usize = 40;
const PAGES: usize = 37;

/// How many keys the sequences have; the second has none.
const KEYS: [usize; 4] = [130, 0, 37, 64];

fn tensor(values: impl NdArray) -> Tensor {
    Tensor::new(values, &Device::Cpu).unwrap()
}

/// Numbers in -1..1.
fn random(shape: &[usize], dtype: DType, seed: u64) -> Result<Tensor> {
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    let mut next = || generator.random_range(-1.0..1.0);
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| next()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)
}

/// Exact for all three types.
fn bits(x: &Tensor) -> Result<Vec<u32>> {
    let values: Vec<f32> = x.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
    Ok(values.into_iter().map(f32::to_bits).collect())
}

fn nan(shape: &[usize], dtype: DType) -> Result<Tensor> {
    let nan = Tensor::full(f32::NAN, shape, &Device::Cpu)?;
    nan.contiguous()?.to_dtype(dtype)
}

type Pools = (Tensor, Tensor);

/// Pools of so many pages of such a size, of nothing but NaN.
type Layout = fn(usize, usize, DType) -> Result<Pools>;

/// That of all others' results.
fn plain(pages: usize, page_size: usize, dtype: DType) -> Result<Pools> {
    let pool = || nan(&[pages, page_size, HEADS_K, HEAD_DIM], dtype);
    Ok((pool()?, pool()?))
}

/// In how many elements keys are cut.
fn x(dtype: DType) -> usize {
    16 / dtype.size_in_bytes()
}

const LAYOUTS: [(&str, Layout); 9] = [
    ("[pages, heads_k, page_size, head_dim]", |n, rows, dtype| {
        let pool = || nan(&[n, HEADS_K, rows, HEAD_DIM], dtype);
        CacheLayout::Hnd.of(&pool()?, &pool()?)
    }),
    ("[2, pages, ...]", |n, rows, dtype| {
        CacheLayout::Nhd.of_one(&nan(&[2, n, rows, HEADS_K, HEAD_DIM], dtype)?, 0)
    }),
    ("[pages, 2, ...]", |n, rows, dtype| {
        CacheLayout::Nhd.of_one(&nan(&[n, 2, rows, HEADS_K, HEAD_DIM], dtype)?, 1)
    }),
    ("[2, pages, heads_k, ...]", |n, rows, dtype| {
        CacheLayout::Hnd.of_one(&nan(&[2, n, HEADS_K, rows, HEAD_DIM], dtype)?, 0)
    }),
    ("[pages, 2, heads_k, ...]", |n, rows, dtype| {
        CacheLayout::Hnd.of_one(&nan(&[n, 2, HEADS_K, rows, HEAD_DIM], dtype)?, 1)
    }),
    (
        "[pages, page_size, heads_k, 2 * head_dim]",
        |n, rows, dtype| {
            let kv = nan(&[n, rows, HEADS_K, 2 * HEAD_DIM], dtype)?;
            Ok((
                kv.narrow(3, HEAD_DIM, HEAD_DIM)?,
                kv.narrow(3, 0, HEAD_DIM)?,
            ))
        },
    ),
    ("in pieces", |n, rows, dtype| {
        let x = x(dtype);
        let k = nan(&[n, HEADS_K, HEAD_DIM / x, rows, x], dtype)?;
        Ok((k, nan(&[n, HEADS_K, HEAD_DIM, rows], dtype)?))
    }),
    ("in pieces, one after the other", |n, rows, dtype| {
        let (x, size) = (x(dtype), n * HEADS_K * HEAD_DIM * rows);
        let kv = nan(&[2 * size + 5], dtype)?;
        let k = kv.narrow(0, 5, size)?;
        let v = kv.narrow(0, 5 + size, size)?;
        Ok((
            k.reshape((n, HEADS_K, HEAD_DIM / x, rows, x))?,
            v.reshape((n, HEADS_K, HEAD_DIM, rows))?,
        ))
    }),
    ("in pieces, of more pages", |n, rows, dtype| {
        let x = x(dtype);
        let k = nan(&[n + 4, HEADS_K, HEAD_DIM / x, rows, x], dtype)?;
        let v = nan(&[n, 2, HEADS_K, HEAD_DIM, rows], dtype)?;
        Ok((k.narrow(0, 3, n)?, v.i((.., 1))?))
    }),
];

/// A row of the table for each sequence, its pages drawn from all; what none needs is no page.
fn table(page_size: usize, seed: u64) -> Vec<Vec<u32>> {
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    let mut free: Vec<u32> = (0..PAGES as u32).collect();
    let most = KEYS[0].div_ceil(page_size);
    let mut row = |keys: usize| {
        let mut draw = |_| free.swap_remove(generator.random_range(0..free.len()));
        let mut row: Vec<u32> = (0..keys.div_ceil(page_size)).map(&mut draw).collect();
        row.resize(most, u32::MAX);
        row
    };
    KEYS.map(&mut row).into()
}

/// Appends all keys of every sequence, as they lie in `[batch, rows, heads, head_dim]`, some rows of padding among them.
fn fill(
    k: &Tensor,
    v: &Tensor,
    (k_pages, v_pages): &Pools,
    table: &[Vec<u32>],
    page_size: usize,
) -> Result<()> {
    for (b, keys) in KEYS.into_iter().enumerate() {
        let slot = |j: usize| match j < keys {
            true => (table[b][j / page_size] as usize * page_size + j % page_size) as i64,
            false => -1 - j as i64,
        };
        let slots: Vec<i64> = (0..k.dim(1)?).map(slot).collect();
        append(&k.i(b)?, &v.i(b)?, k_pages, v_pages, &tensor(&slots[..]))?;
    }
    Ok(())
}

/// The pools as `[pages, page_size, heads_k, head_dim]`.
fn as_plain((k, v): &Pools) -> Result<Pools> {
    let (n, heads_k, pieces, rows, x) = match *k.dims() {
        [n, h, pieces, rows, x] => (n, h, pieces, rows, x),
        _ => return Ok((k.clone(), v.clone())),
    };
    let k = k.permute((0, 3, 1, 2, 4))?.contiguous()?;
    Ok((
        k.reshape((n, rows, heads_k, pieces * x))?,
        v.permute((0, 3, 1, 2))?,
    ))
}

fn assert_same_pools(found: &Pools, expected: &Pools, case: &str) -> Result<()> {
    let (k, v) = as_plain(found)?;
    assert_eq!(bits(&k)?, bits(&expected.0)?, "{case}");
    assert_eq!(bits(&v)?, bits(&expected.1)?, "{case}");
    Ok(())
}

fn assert_same(found: (Tensor, Tensor), expected: (Tensor, Tensor), case: &str) -> Result<()> {
    assert_eq!(found.0.dims(), expected.0.dims(), "{case}");
    assert_eq!(found.1.dims(), expected.1.dims(), "{case}");
    let (found, expected) = (
        (bits(&found.0)?, bits(&found.1)?),
        (bits(&expected.0)?, bits(&expected.1)?),
    );
    assert_eq!(found, expected, "{case}");
    let is_nan = |&bits: &u32| f32::from_bits(bits).is_nan();
    assert!(!found.0.iter().any(is_nan), "{case}");
    Ok(())
}

fn layers() -> Vec<Attention> {
    let layer = || {
        let slopes = Slopes::per_head(&[0.5, 0.1, -0.1, 0.02]);
        Attention::new(2 * HEADS_K, HEADS_K, HEAD_DIM).slopes(slopes)
    };
    vec![
        layer().build().unwrap(),
        // Of which most pages are read by nobody.
        layer().window(Some(5), None).build().unwrap(),
    ]
}

/// What every layout must give: attention of one query a sequence, of many, and of packed ones, and copies of pages.
#[test]
fn layouts_give_the_bits_of_the_plain_one() -> Result<()> {
    let used = tensor(&KEYS.map(|n| n as u32));
    let pad = tensor(&[3u32, 0, 37, 0]);
    let seqlens = tensor(&[0u32, 21, 21, 22, 39]);
    for dtype in DTYPES {
        let kv = random(&[4, KEYS[0], 2, HEADS_K, HEAD_DIM], dtype, 1)?;
        let (k, v) = (kv.i((.., .., 0))?, kv.i((.., .., 1))?);
        let one = random(&[4, 2 * HEADS_K, HEAD_DIM], dtype, 2)?;
        let many = random(&[4, 20, 2 * HEADS_K, HEAD_DIM], dtype, 3)?;
        let packed = random(&[41, 2 * HEADS_K, HEAD_DIM], dtype, 4)?;
        for page_size in [8, 16] {
            for (n, (name, layout)) in LAYOUTS.into_iter().enumerate() {
                let case = format!("{name}, {dtype:?}, pages of {page_size}");
                let rows = table(page_size, n as u64);
                let pools = [
                    plain(PAGES, page_size, dtype)?,
                    layout(PAGES, page_size, dtype)?,
                ];
                for pools in &pools {
                    fill(&k, &v, pools, &rows, page_size)?;
                }
                let [expected, found] = &pools;
                assert_same_pools(found, expected, &case)?;
                let rows = tensor(rows);
                let lengths = Lengths::paged(&rows, &used);
                for layer in layers() {
                    for (q, lengths) in [
                        (&one, lengths),
                        (&many, lengths.leftpad_k(&pad)),
                        (&packed, lengths.varlen_q(&seqlens, 21)),
                    ] {
                        let call = |(k, v): &Pools| attend(&layer, q, k, v, lengths);
                        assert_same(call(found)?, call(expected)?, &case)?;
                    }
                }
                // In order: page 1 becomes 4, and 0 what 1 has become.
                for (k_pages, v_pages) in &pools {
                    copy_pages(k_pages, v_pages, None, &[(4, 1), (1, 0), (2, 2)])?;
                }
                assert_same_pools(found, expected, &case)?;
            }
        }
    }
    Ok(())
}

/// What is known of pages decides whether they are read, in every layout: NaN in far ones is not seen.
#[test]
fn radii_are_kept_and_used_in_every_layout() -> Result<()> {
    const KEYS: usize = 2560;
    let pages = KEYS / 16;
    let slopes = Slopes::per_head(&[0.5, 0.1, 0.25, 0.2]);
    let layer = Attention::new(2 * HEADS_K, HEADS_K, HEAD_DIM).slopes(slopes);
    let layer = layer.horizon(Horizon::default()).build()?;
    let dtype = DType::BF16;
    let [k, v] = [1, 2].map(|seed| random(&[KEYS, HEADS_K, HEAD_DIM], dtype, seed).unwrap());
    let centres = random(&[HEADS_K, HEAD_DIM], DType::F32, 3)?;
    let q = random(&[1, 2 * HEADS_K, HEAD_DIM], dtype, 4)?;
    // Page p of the sequence is page 7 p of the pool, and no two are the same.
    let numbers: Vec<u32> = (0..pages as u32).map(|p| p * 7 % pages as u32).collect();
    let slots: Vec<i64> = (0..KEYS)
        .map(|j| i64::from(numbers[j / 16]) * 16 + (j % 16) as i64)
        .collect();
    let slots = tensor(&slots[..]);
    let table = Tensor::from_vec(numbers, (1, pages), &Device::Cpu)?;
    let used = tensor(&[KEYS as u32]);
    // Far keys are NaN, but their radii are those of numbers.
    let far: Vec<i64> = slots.narrow(0, 0, KEYS / 2)?.to_vec1()?;
    let nowhere = nan(&[KEYS / 2, HEADS_K, HEAD_DIM], dtype)?;
    let results = |(k_pages, v_pages): Pools| -> Result<(Tensor, (Tensor, Tensor))> {
        let radii = Tensor::full(f32::NAN, (pages, HEADS_K), &Device::Cpu)?.contiguous()?;
        append_with_radii(&k, &v, &k_pages, &v_pages, &slots, &centres, &radii)?;
        append(&nowhere, &nowhere, &k_pages, &v_pages, &tensor(&far[..]))?;
        let lengths = Lengths::paged(&table, &used).radii(&centres, &radii);
        let attended = attend(&layer, &q, &k_pages, &v_pages, lengths)?;
        copy_pages(&k_pages, &v_pages, Some(&radii), &[(3, 5)])?;
        Ok((radii, attended))
    };
    let (radii, attended) = results(plain(pages, 16, dtype)?)?;
    for (name, layout) in LAYOUTS {
        let (found, of_layout) = results(layout(pages, 16, dtype)?)?;
        assert_eq!(bits(&found)?, bits(&radii)?, "{name}");
        assert_same(of_layout, attended.clone(), name)?;
    }
    Ok(())
}

/// New keys and values with a batch, however they lie.
#[test]
fn batches_of_new_tokens_are_appended() -> Result<()> {
    for (batch, seqlen) in [(1, 6), (6, 1), (2, 3)] {
        let shape = [batch, seqlen, HEADS_K, HEAD_DIM];
        let k = random(&shape, DType::F16, 1)?;
        let transposed = random(&[batch, HEADS_K, seqlen, HEAD_DIM], DType::F16, 2)?;
        let v = transposed.transpose(1, 2)?;
        let slots = tensor(&[17i64, 3, -1, 30, 8, 9]);
        let batched = slots.reshape((batch, seqlen))?;
        let expected = plain(5, 8, DType::F16)?;
        append(
            &k.flatten(0, 1)?,
            &v.flatten(0, 1)?,
            &expected.0,
            &expected.1,
            &slots,
        )?;
        for slots in [slots, batched] {
            let found = plain(5, 8, DType::F16)?;
            append(&k, &v, &found.0, &found.1, &slots)?;
            assert_same_pools(&found, &expected, &format!("{batch}, {seqlen}"))?;
        }
    }
    Ok(())
}

/// One query a sequence is a batch of one query each.
#[test]
fn a_query_a_sequence_needs_no_row() -> Result<()> {
    let (k_pages, v_pages) = plain(6, 16, DType::F32)?;
    let k = random(&[6 * 16, HEADS_K, HEAD_DIM], DType::F32, 1)?;
    let slots: Vec<i64> = (0..6 * 16).collect();
    append(&k, &k, &k_pages, &v_pages, &tensor(&slots[..]))?;
    let (table, used) = (
        tensor(&[[4u32, 1], [0, 5], [2, 9]]),
        tensor(&[32u32, 20, 7]),
    );
    let lengths = Lengths::paged(&table, &used);
    let q = random(&[3, 1, 2 * HEADS_K, HEAD_DIM], DType::F32, 2)?;
    let layer = &layers()[0];
    let (expected, expected_lse) = attend(layer, &q, &k_pages, &v_pages, lengths)?;
    let (out, lse) = attend(layer, &q.squeeze(1)?, &k_pages, &v_pages, lengths)?;
    assert_eq!(out.dims(), [3, 2 * HEADS_K, HEAD_DIM]);
    assert_eq!(bits(&out)?, bits(&expected)?);
    // As of three packed queries.
    assert_eq!(lse.dims(), [2 * HEADS_K, 3]);
    assert_eq!(bits(&lse.t()?)?, bits(&expected_lse)?);
    Ok(())
}
