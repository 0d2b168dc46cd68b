//! The candle functions on a paged cache: the bits that the same keys give without pages, and what append writes.

use std::error::Error as _;

use candle_core::{DType, Device, IndexOp, NdArray, Result, Tensor};
use flash_alibi::candle::{Lengths, append, append_with_radii, attend, copy_pages};
use flash_alibi::{Attention, Horizon, Slopes};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt as _, SeedableRng as _};

const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];
const HEADS_K: usize = 2;
const HEAD_DIM: usize = 40;

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

/// KvCache of nothing but NaN, in memory of their own: without gaps, heads before rows, or a part of a larger tensor.
fn nan_pool(pages: usize, page_size: usize, dtype: DType, memory: usize) -> Result<Tensor> {
    let nan = |shape: [usize; 4]| {
        Tensor::full(f32::NAN, &shape, &Device::Cpu)?
            .contiguous()?
            .to_dtype(dtype)
    };
    match memory {
        0 => nan([pages, page_size, HEADS_K, HEAD_DIM]),
        1 => nan([pages, HEADS_K, page_size, HEAD_DIM])?.transpose(1, 2),
        _ => nan([pages + 3, page_size, HEADS_K + 1, HEAD_DIM])?
            .narrow(0, 2, pages)?
            .narrow(2, 1, HEADS_K),
    }
}

/// The sequences of the tests: how many keys and queries each has. The second has nothing.
const KEYS: [usize; 4] = [130, 0, 37, 64];
const QUERIES: [usize; 4] = [21, 0, 1, 17];

/// A row of the table for each sequence, its pages all over the pool; what none needs is no page.
fn table(page_size: usize, pages: usize) -> (Vec<Vec<u32>>, Tensor) {
    let most = KEYS[0].div_ceil(page_size);
    let mut free = (0..pages).map(|page| (page * 7 % pages) as u32);
    let row = |keys: usize| {
        let mut row: Vec<u32> = free.by_ref().take(keys.div_ceil(page_size)).collect();
        row.resize(most, u32::MAX);
        row
    };
    let rows: Vec<_> = KEYS.map(row).into();
    let table = Tensor::new(rows.clone(), &Device::Cpu).unwrap();
    (rows, table)
}

/// Appends all keys of every sequence, as they lie in `[batch, rows, heads, head_dim]`, some rows of padding among them.
fn fill(k: &Tensor, v: &Tensor, pools: [&Tensor; 2], rows: &[Vec<u32>]) -> Result<()> {
    let page_size = pools[0].dim(1)?;
    for (b, keys) in KEYS.into_iter().enumerate() {
        let slot = |j: usize| match j < keys {
            true => (rows[b][j / page_size] as usize * page_size + j % page_size) as i64,
            false => -1 - j as i64,
        };
        let slots: Vec<i64> = (0..k.dim(1)?).map(slot).collect();
        append(&k.i(b)?, &v.i(b)?, pools[0], pools[1], &tensor(&slots[..]))?;
    }
    Ok(())
}

fn layer() -> Attention {
    let slopes = Slopes::per_head(&[0.5, 0.1, -0.1, 0.02]);
    let layer = Attention::new(2 * HEADS_K, HEADS_K, HEAD_DIM).slopes(slopes);
    layer.build().unwrap()
}

fn for_each_cache(
    f: impl Fn([&Tensor; 2], [&Tensor; 2], &Tensor, DType, &str) -> Result<()>,
) -> Result<()> {
    for dtype in DTYPES {
        // Keys and values as a fused projection leaves them.
        let kv = random(&[4, KEYS[0], 2, HEADS_K, HEAD_DIM], dtype, 1)?;
        let (k, v) = (kv.i((.., .., 0))?, kv.i((.., .., 1))?);
        for (memory, page_size) in [8, 16, 256].into_iter().enumerate() {
            // No number that 7 divides.
            let pages = 50;
            let k_pages = nan_pool(pages, page_size, dtype, memory)?;
            let v_pages = nan_pool(pages, page_size, dtype, 2 - memory)?;
            let (rows, table) = table(page_size, pages);
            fill(&k, &v, [&k_pages, &v_pages], &rows)?;
            let case = format!("{dtype:?}, pages of {page_size}");
            f([&k, &v], [&k_pages, &v_pages], &table, dtype, &case)?;
        }
    }
    Ok(())
}

#[test]
fn pages_give_the_bits_of_dense_keys() -> Result<()> {
    let used = tensor(&KEYS.map(|n| n as u32));
    let pad = tensor(&[3u32, 0, 37, 0]);
    for_each_cache(|[k, v], [k_pages, v_pages], table, dtype, case| {
        for queries in [1, 20] {
            let q = random(&[4, queries, 2 * HEADS_K, HEAD_DIM], dtype, 2)?;
            for padded in [false, true] {
                let (mut dense, mut paged) = (
                    Lengths::dense().seqused_k(&used),
                    Lengths::paged(table, &used),
                );
                if padded {
                    (dense, paged) = (dense.leftpad_k(&pad), paged.leftpad_k(&pad));
                }
                let (expected, expected_lse) = attend(&layer(), &q, k, v, dense)?;
                let (found, lse) = attend(&layer(), &q, k_pages, v_pages, paged)?;
                let case = format!("{case}, {queries} queries, padded {padded}");
                assert_eq!(found.dims(), q.dims(), "{case}");
                assert_eq!(bits(&found)?, bits(&expected)?, "{case}");
                assert_eq!(bits(&lse)?, bits(&expected_lse)?, "{case}");
                let zero = bits(&found)?.iter().all(|&bits| bits == 0);
                assert!(!zero, "{case}");
            }
        }
        Ok(())
    })
}

#[test]
fn pages_give_packed_queries_the_bits_of_packed_keys() -> Result<()> {
    let used = tensor(&KEYS.map(|n| n as u32));
    let cumulative = |lengths: [usize; 4]| {
        let mut sums = vec![0];
        for n in lengths {
            sums.push(sums[sums.len() - 1] + n as u32);
        }
        tensor(&sums[..])
    };
    let (seqlens_q, seqlens_k) = (cumulative(QUERIES), cumulative(KEYS));
    for_each_cache(|[k, v], [k_pages, v_pages], table, dtype, case| {
        // Two rows belong to no sequence.
        let q = random(&[41, 2 * HEADS_K, HEAD_DIM], dtype, 3)?;
        let packed = |x: &Tensor| -> Result<Tensor> {
            let rows = KEYS.into_iter().enumerate().map(|(b, n)| x.i((b, ..n)));
            Tensor::cat(&rows.collect::<Result<Vec<_>>>()?, 0)
        };
        let lengths = Lengths::varlen(&seqlens_q, &seqlens_k, 21, 130);
        let (expected, expected_lse) = attend(&layer(), &q, &packed(k)?, &packed(v)?, lengths)?;
        let lengths = Lengths::paged(table, &used).varlen_q(&seqlens_q, 30);
        let (found, lse) = attend(&layer(), &q, k_pages, v_pages, lengths)?;
        assert_eq!(bits(&found)?, bits(&expected)?, "{case}");
        assert_eq!(bits(&lse)?, bits(&expected_lse)?, "{case}");
        Ok(())
    })
}

#[test]
fn append_writes_its_slots_and_nothing_else() -> Result<()> {
    for dtype in DTYPES {
        for memory in 0..3 {
            let pools = [
                nan_pool(5, 8, dtype, memory)?,
                nan_pool(5, 8, dtype, 2 - memory)?,
            ];
            let kv = random(&[4, 2, HEADS_K, HEAD_DIM], dtype, 1)?;
            let new = [kv.i((.., 0))?, kv.i((.., 1))?];
            // Of every second number.
            let slots = tensor(&[39i64, 9, -1, 9, 8, 9, 17, 9]);
            let slots = slots.reshape((4, 2))?.i((.., 0))?;
            append(&new[0], &new[1], &pools[0], &pools[1], &slots)?;
            for (new, pool) in new.iter().zip(&pools) {
                for slot in 0..40 {
                    let found = bits(&pool.i((slot / 8, slot % 8))?)?;
                    match [39, usize::MAX, 8, 17].iter().position(|&s| s == slot) {
                        Some(token) => assert_eq!(found, bits(&new.i(token)?)?, "{slot}"),
                        None => assert!(found.iter().all(|&x| f32::from_bits(x).is_nan())),
                    }
                }
            }
        }
    }
    Ok(())
}

#[test]
fn append_writes_nothing_around_a_part_of_a_tensor() -> Result<()> {
    let whole = Tensor::zeros((4, 8, 3, 8), DType::F32, &Device::Cpu)?;
    let part = whole.narrow(0, 1, 2)?.narrow(2, 1, 1)?;
    let other = Tensor::zeros((2, 8, 1, 8), DType::F32, &Device::Cpu)?;
    let ones = Tensor::ones((16, 1, 8), DType::F32, &Device::Cpu)?;
    let slots: Vec<i64> = (0..16).collect();
    append(&ones, &ones, &part, &other, &tensor(&slots[..]))?;
    assert_eq!(whole.sum_all()?.to_scalar::<f32>()?, 128.0);
    assert_eq!(part.sum_all()?.to_scalar::<f32>()?, 128.0);
    // No token, and no page.
    let none = ones.narrow(0, 0, 0)?;
    append(&none, &none, &part, &other, &tensor(&[0i64; 0]))?;
    let (k, v) = (other.narrow(0, 2, 0)?, part.narrow(0, 1, 0)?);
    append(&none, &none, &k, &v, &tensor(&[0i64; 0]))
}

/// What is known of pages decides whether they are read: NaN in far ones is not seen.
#[test]
fn radii_are_kept_and_used() -> Result<()> {
    const KEYS: usize = 2560;
    let pages = KEYS / 16;
    let layer = |horizon| {
        let slopes = Slopes::per_head(&[0.5, 0.1, 0.25, 0.2]);
        let layer = Attention::new(2 * HEADS_K, HEADS_K, HEAD_DIM).slopes(slopes);
        layer.horizon(horizon).build()
    };
    for dtype in DTYPES {
        let new = [1, 2].map(|seed| random(&[KEYS, HEADS_K, HEAD_DIM], dtype, seed));
        let [k, v] = new.map(|new| new.unwrap());
        // Of every second number, and a part of a tensor.
        let centres = random(&[HEADS_K, HEAD_DIM, 2], DType::F32, 3)?.i((.., .., 0))?;
        // Older candle repeats one number without a copy.
        let radii = Tensor::full(f32::NAN, (pages + 2, HEADS_K), &Device::Cpu)?.contiguous()?;
        let radii = radii.narrow(0, 1, pages)?;
        let [k_pages, v_pages] = [0, 1].map(|memory| nan_pool(pages, 16, dtype, memory).unwrap());
        for (start, tokens) in [(0, 5), (5, KEYS - 6), (KEYS - 1, 1)] {
            let slots: Vec<i64> = (start..start + tokens).map(|slot| slot as i64).collect();
            let (k, v) = (k.narrow(0, start, tokens)?, v.narrow(0, start, tokens)?);
            let slots = tensor(&slots[..]);
            append_with_radii(&k, &v, &k_pages, &v_pages, &slots, &centres, &radii)?;
        }
        let distances = k
            .to_dtype(DType::F32)?
            .broadcast_sub(&centres)?
            .sqr()?
            .sum(2)?
            .sqrt()?;
        let largest = distances.reshape((pages, 16, HEADS_K))?.max(1)?;
        let ratio: Vec<f32> = radii.div(&largest)?.flatten_all()?.to_vec1()?;
        assert!(
            ratio.iter().all(|ratio| (1.0..1.001).contains(ratio)),
            "{ratio:?}"
        );

        let table: Vec<u32> = (0..pages as u32).collect();
        let (table, used) = (
            Tensor::from_vec(table, (1, pages), &Device::Cpu)?,
            tensor(&[KEYS as u32]),
        );
        let lengths = Lengths::paged(&table, &used);
        let horizon = layer(Horizon::default())?;
        for queries in [1, 20] {
            let q = random(&[1, queries, 2 * HEADS_K, HEAD_DIM], dtype, 4)?;
            let (whole, _) = attend(&layer(Horizon::Off)?, &q, &k_pages, &v_pages, lengths)?;
            let nan = nan_pool(pages / 2, 16, dtype, 0)?;
            let near = |pool: &Tensor| pool.narrow(0, pages / 2, pages - pages / 2);
            let far = |pool: &Tensor| Tensor::cat(&[&nan, &near(pool)?], 0);
            let (far_k, far_v) = (far(&k_pages)?, far(&v_pages)?);
            let (found, _) = attend(
                &horizon,
                &q,
                &far_k,
                &far_v,
                lengths.radii(&centres, &radii),
            )?;
            let difference = (found - whole)?.to_dtype(DType::F32)?.abs()?.max_all()?;
            assert!(
                difference.to_scalar::<f32>()? < 1e-2,
                "{dtype:?}: {difference}"
            );
            let (unknown, _) = attend(&horizon, &q, &far_k, &far_v, lengths)?;
            assert!(
                bits(&unknown)?
                    .iter()
                    .any(|&bits| f32::from_bits(bits).is_nan())
            );
        }
    }
    Ok(())
}

#[test]
fn copied_pages_have_the_bits_of_their_origin_and_others_stay() -> Result<()> {
    for dtype in DTYPES {
        for memory in 0..3 {
            let pools = [
                nan_pool(5, 8, dtype, memory)?,
                nan_pool(5, 8, dtype, 2 - memory)?,
            ];
            let new = [1, 2].map(|seed| random(&[40, HEADS_K, HEAD_DIM], dtype, seed).unwrap());
            let slots: Vec<i64> = (0..40).collect();
            append(&new[0], &new[1], &pools[0], &pools[1], &tensor(&slots[..]))?;
            let whole = random(&[7, HEADS_K], DType::F32, 3)?;
            let radii = whole.narrow(0, 1, 5)?;
            let before = bits(&whole)?;
            // In order: page 1 becomes 4, and 0 what 1 has become.
            let copies = [(4, 1), (1, 0), (2, 2)];
            copy_pages(&pools[0], &pools[1], Some(&radii), &copies)?;
            for (new, pool) in new.iter().zip(&pools) {
                for (page, origin) in [4, 4, 2, 3, 4].into_iter().enumerate() {
                    let expected = bits(&new.narrow(0, origin * 8, 8)?)?;
                    assert_eq!(bits(&pool.i(page)?)?, expected, "{dtype:?}, page {page}");
                }
            }
            let rows = [0, 5, 5, 3, 4, 5, 6];
            let expected: Vec<u32> = (rows.iter())
                .flat_map(|row| &before[row * HEADS_K..][..HEADS_K])
                .copied()
                .collect();
            assert_eq!(bits(&whole)?, expected);
            // Without radii, and nothing to do.
            copy_pages(&pools[0], &pools[1], None, &[(3, 0)])?;
            assert_eq!(bits(&pools[1].i(0)?)?, bits(&pools[1].i(3)?)?);
            assert_eq!(bits(&whole)?, expected);
            copy_pages(&pools[0], &pools[1], None, &[])?;
        }
    }
    Ok(())
}

#[test]
fn errors_of_copy_pages_leave_the_pools_as_they_were() -> Result<()> {
    let pool = || Tensor::arange(0f32, 1024., &Device::Cpu)?.reshape((4, 16, 2, 8));
    let (k_pages, v_pages, radii) = (pool()?, pool()?, zeros(&[4, 2]));
    let fail = |k: &Tensor, v: &Tensor, radii: Option<&Tensor>, copies: &[(i32, i32)], message| {
        assert_error(copy_pages(k, v, radii, copies), message);
        for pool in [&k_pages, &v_pages] {
            let expected = Tensor::arange(0f32, 1024., &Device::Cpu).unwrap();
            assert_eq!(bits(pool).unwrap(), bits(&expected).unwrap(), "{message}");
        }
    };
    let copies = &[(1, 0)][..];
    fail(
        &k_pages,
        &v_pages,
        None,
        &[(1, 0), (2, 4)],
        "copies: found page 4 at index 1, expected one of the 4 pages, from 0",
    );
    fail(
        &k_pages,
        &v_pages,
        None,
        &[(-1, 0)],
        "copies: found page -1 at index 0, expected one of the 4 pages, from 0",
    );
    fail(
        &k_pages,
        &k_pages,
        None,
        copies,
        "v_pages: found a tensor in the memory of k_pages, expected memory of its own",
    );
    fail(
        &k_pages,
        &v_pages.narrow(0, 0, 3)?,
        None,
        copies,
        "v_pages: found shape [3, 16, 2, 8], expected [4, 16, 2, 8], as k_pages",
    );
    fail(
        &k_pages.flatten(0, 1)?,
        &v_pages,
        None,
        copies,
        "k_pages: found shape [64, 2, 8], expected [pages, page_size, heads_k, head_dim]",
    );
    fail(
        &k_pages.to_dtype(DType::F64)?,
        &v_pages,
        None,
        copies,
        "k_pages: found dtype F64, expected dtype F16, BF16 or F32",
    );
    fail(
        &k_pages,
        &v_pages.to_dtype(DType::F16)?,
        None,
        copies,
        "v_pages: found dtype F16, expected dtype F32, as k_pages",
    );
    fail(
        &k_pages.narrow(1, 0, 12)?,
        &v_pages.narrow(1, 0, 12)?,
        None,
        copies,
        "page_size: found 12, expected a positive multiple of 8",
    );
    fail(
        &k_pages,
        &v_pages,
        Some(&zeros(&[2, 4])),
        copies,
        "radii: found shape [2, 4], expected [4, 2]",
    );
    fail(
        &k_pages,
        &v_pages,
        Some(&zeros(&[2, 4]).t()?),
        copies,
        "radii: found strides [1, 4], expected those of a tensor without gaps",
    );
    fail(
        &k_pages,
        &v_pages,
        Some(&radii.to_dtype(DType::F64)?),
        copies,
        "radii: found dtype F64, expected dtype F32",
    );
    let part = v_pages.flatten_all()?.narrow(0, 0, 8)?.reshape((4, 2))?;
    fail(
        &k_pages,
        &v_pages,
        Some(&part),
        copies,
        "radii: found a tensor in the memory of v_pages, expected memory of their own",
    );
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

fn zeros(shape: &[usize]) -> Tensor {
    Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap()
}

#[test]
fn errors_of_paged_calls() -> Result<()> {
    let layer = Attention::new(4, 2, 8).build()?;
    let (q, pages) = (zeros(&[2, 3, 4, 8]), zeros(&[6, 16, 2, 8]));
    let (table, used) = (tensor(&[[4u32, 5], [3, 9]]), tensor(&[32u32, 16]));
    let call = |table: &Tensor, used: &Tensor| {
        attend(&layer, &q, &pages, &pages, Lengths::paged(table, used))
    };
    assert!(call(&table, &used).is_ok());
    for (bad, message) in [
        (
            tensor(&[[4u8, 5], [3, 9]]),
            "found dtype U8, expected dtype U32, I32 or I64",
        ),
        (
            tensor(&[4u32, 5, 3, 9]),
            "found shape [4], expected [2, max_pages_per_sequence]",
        ),
        (
            tensor(&[[4u32], [5], [3], [9]]),
            "found shape [4, 1], expected [2, max_pages_per_sequence]",
        ),
        (
            tensor(&[[4u32, 6], [3, 9]]),
            "found 6 at index [0, 1], expected one of the 6 pages, from 0",
        ),
        (
            tensor(&[[4u32, 5], [u32::MAX, 9]]),
            "found -1 at index [1, 0], expected one of the 6 pages, from 0",
        ),
    ] {
        assert_error(call(&bad, &used), &format!("block_table: {message}"));
    }
    assert_error(
        call(&table, &tensor(&[33u32, 16])),
        "seqused_k: found 33 at index 0, expected 0 to max_pages_per_sequence * page_size = 32",
    );
    assert_error(
        call(&table, &tensor(&[32u32])),
        "seqused_k: found 1 elements, expected batch = 2",
    );
    let lengths = Lengths::paged(&table, &used);
    assert_error(
        attend(&layer, &q, &zeros(&[6, 12, 2, 8]), &pages, lengths),
        "v: found shape [6, 16, 2, 8], expected [6, 12, 2, 8]",
    );
    let odd = zeros(&[6, 12, 2, 8]);
    assert_error(
        attend(&layer, &q, &odd, &odd, lengths),
        "page_size: found 12, expected a positive multiple of 8",
    );
    let flat = zeros(&[96, 2, 8]);
    assert_error(
        attend(&layer, &q, &flat, &flat, lengths),
        "k: found shape [96, 2, 8], expected [pages, page_size, 2, 8]",
    );

    let [seqlens, beyond] = [[0u32, 5, 6], [0, 5, 7]].map(|seqlens| tensor(&seqlens));
    let one = tensor(&[0u32, 6]);
    let packed = q.flatten(0, 1)?;
    let call = |lengths| attend(&layer, &packed, &pages, &pages, lengths);
    assert!(call(lengths.varlen_q(&seqlens, 5)).is_ok());
    assert_error(
        call(lengths),
        "block_table: found shape [2, 2], expected [6, max_pages_per_sequence]",
    );
    assert_error(
        call(lengths.varlen_q(&seqlens, 4)),
        "max_seqlen_q: found 4, expected at least 5, the longest sequence in seqlens_q",
    );
    assert_error(
        call(lengths.varlen_q(&beyond, 5)),
        "seqlens_q: found 7 at index 2, expected at most the 6 rows of the tensor",
    );
    assert_error(
        call(lengths.varlen_q(&one, 6)),
        "block_table: found shape [2, 2], expected [1, max_pages_per_sequence]",
    );
    assert_error(
        attend(
            &layer,
            &packed,
            &flat,
            &flat,
            Lengths::dense().varlen_q(&seqlens, 5),
        ),
        "seqlens_k: found none, expected as many as seqlens_q",
    );
    Ok(())
}

#[test]
fn errors_of_radii() -> Result<()> {
    let layer = Attention::new(2, 2, 8).build()?;
    let (q, pages) = (zeros(&[1, 1, 2, 8]), zeros(&[4, 16, 2, 8]));
    let (table, used) = (tensor(&[[1u32, 2]]), tensor(&[32u32]));
    let (k, k_pages, v_pages) = (
        zeros(&[1, 2, 8]),
        zeros(&[4, 16, 2, 8]),
        zeros(&[4, 16, 2, 8]),
    );
    let slots = tensor(&[3i64]);
    let (centres, radii) = (zeros(&[2, 8]), zeros(&[4, 2]));
    let call = |centres: &Tensor, radii: &Tensor| {
        let lengths = Lengths::paged(&table, &used).radii(centres, radii);
        let attended = attend(&layer, &q, &pages, &pages, lengths).map(drop);
        let appended = append_with_radii(&k, &k, &k_pages, &v_pages, &slots, centres, radii);
        [attended, appended]
    };
    assert!(call(&centres, &radii).iter().all(Result::is_ok));
    for (bad, message) in [
        (zeros(&[16]), "found shape [16], expected [2, 8]"),
        (zeros(&[8, 2]), "found shape [8, 2], expected [2, 8]"),
        (
            centres.to_dtype(DType::F16)?,
            "found dtype F16, expected dtype F32",
        ),
    ] {
        for result in call(&bad, &radii) {
            assert_error(result, &format!("centres: {message}"));
        }
    }
    for (bad, message) in [
        (zeros(&[3, 2]), "found shape [3, 2], expected [4, 2]"),
        (
            radii.to_dtype(DType::F64)?,
            "found dtype F64, expected dtype F32",
        ),
    ] {
        for result in call(&centres, &bad) {
            assert_error(result, &format!("radii: {message}"));
        }
    }
    assert_error(
        attend(
            &layer,
            &q,
            &pages,
            &pages,
            Lengths::dense().radii(&centres, &radii),
        ),
        "k: found shape [4, 16, 2, 8], expected [1, seqlen_k, 2, 8]",
    );
    let dense = zeros(&[1, 16, 2, 8]);
    assert_error(
        attend(
            &layer,
            &q,
            &dense,
            &dense,
            Lengths::dense().radii(&centres, &radii),
        ),
        "radii: found those of keys that are not in pages, expected a block_table",
    );
    let [_, appended] = call(&centres, &zeros(&[2, 4]).t()?);
    assert_error(
        appended,
        "radii: found strides [1, 4], expected those of a tensor without gaps",
    );
    let part = k_pages.flatten_all()?;
    let [_, appended] = call(&centres, &part.narrow(0, 8, 8)?.reshape((4, 2))?);
    assert_error(
        appended,
        "radii: found a tensor in the memory of k_pages, expected memory of their own",
    );
    let [_, appended] = call(&part.narrow(0, 0, 16)?.reshape((2, 8))?, &radii);
    assert_error(
        appended,
        "centres: found a tensor in the memory of k_pages, expected other memory than what is written",
    );
    Ok(())
}

struct Args {
    k: Tensor,
    v: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    slots: Tensor,
}

type Spoil = fn(&mut Args);

#[test]
fn errors_of_append_leave_the_pools_as_they_were() -> Result<()> {
    let args = || Args {
        k: Tensor::ones((3, 2, 8), DType::F32, &Device::Cpu).unwrap(),
        v: Tensor::ones((3, 2, 8), DType::F32, &Device::Cpu).unwrap(),
        k_pages: zeros(&[4, 16, 2, 8]),
        v_pages: zeros(&[4, 16, 2, 8]),
        slots: tensor(&[0i64, 63, 17]),
    };
    let call = |a: &Args| append(&a.k, &a.v, &a.k_pages, &a.v_pages, &a.slots);
    assert!(call(&args()).is_ok());
    let table: &[(Spoil, &str)] = &[
        (
            |a| a.k = a.k.to_dtype(DType::F64).unwrap(),
            "k: found dtype F64, expected dtype F16, BF16 or F32",
        ),
        (
            |a| a.v = a.v.to_dtype(DType::F16).unwrap(),
            "v: found dtype F16, expected dtype F32, as k",
        ),
        (
            |a| a.v = a.v.unsqueeze(0).unwrap(),
            "v: found shape [1, 3, 2, 8], expected [3, 2, 8], as k",
        ),
        (
            |a| a.k_pages = a.k_pages.to_dtype(DType::BF16).unwrap(),
            "k_pages: found dtype BF16, expected dtype F32, as k",
        ),
        (
            |a| a.v_pages = a.v_pages.to_dtype(DType::F16).unwrap(),
            "v_pages: found dtype F16, expected dtype F32, as k",
        ),
        (
            |a| a.slots = tensor(&[0f32, 63., 17.]),
            "slot_mapping: found dtype F32, expected dtype U32, I32 or I64",
        ),
        (
            |a| a.slots = a.slots.unsqueeze(0).unwrap(),
            "slot_mapping: found shape [1, 3], expected [tokens]",
        ),
        (
            |a| a.slots = tensor(&[0i64, 63]),
            "slot_mapping: found 2 elements, expected 3, one a token",
        ),
        (
            |a| a.slots = tensor(&[0i64, 64, 1]),
            "slot_mapping: found 64 at index 1, expected less than pages * page_size = 64",
        ),
        (
            |a| a.slots = tensor(&[5i64, 1, 5]),
            "slot_mapping: found 5 at index 2, expected another than at index 0",
        ),
        (
            |a| a.k = a.k.reshape((1, 1, 3, 2, 8)).unwrap(),
            "k: found shape [1, 1, 3, 2, 8], expected [tokens, 2, 8]",
        ),
        (
            |a| a.k = a.k.i(0).unwrap(),
            "k: found shape [2, 8], expected [tokens, 2, 8]",
        ),
        (
            |a| a.v = zeros(&[4, 2, 8]),
            "v: found shape [4, 2, 8], expected [3, 2, 8]",
        ),
        (
            |a| a.v = zeros(&[3, 8, 2]).transpose(1, 2).unwrap(),
            "v: found strides [16, 1, 2], expected one stride a dimension, the last of them 1",
        ),
        (
            |a| a.k_pages = zeros(&[4, 16, 3, 8]),
            "v_pages: found shape [4, 16, 2, 8], expected [4, 16, 3, 8], as k_pages",
        ),
        (
            |a| (a.k_pages, a.v_pages) = (zeros(&[4, 12, 2, 8]), zeros(&[4, 12, 2, 8])),
            "page_size: found 12, expected a positive multiple of 8",
        ),
        (
            |a| (a.k_pages, a.v_pages) = (zeros(&[16, 2, 8]), zeros(&[16, 2, 8])),
            "k_pages: found shape [16, 2, 8], expected [pages, page_size, heads_k, head_dim]",
        ),
        (
            |a| a.v_pages = zeros(&[1, 16, 2, 8]).broadcast_as((4, 16, 2, 8)).unwrap(),
            "v_pages: found strides [0, 16, 8, 1], expected strides that keep the output's elements apart",
        ),
        (
            |a| a.v_pages = a.k_pages.clone(),
            "v_pages: found a tensor in the memory of k_pages, expected memory of its own",
        ),
        (
            |a| a.k = a.v_pages.i((0, ..3)).unwrap(),
            "k: found a tensor in the memory of v_pages, expected other memory than the pools'",
        ),
        (
            |a| a.v = a.k_pages.i((0, ..3)).unwrap(),
            "v: found a tensor in the memory of k_pages, expected other memory than the pools'",
        ),
    ];
    for (spoil, message) in table {
        let mut args = args();
        spoil(&mut args);
        assert_error(call(&args), message);
        for pool in [args.k_pages, args.v_pages] {
            assert!(bits(&pool)?.iter().all(|&bits| bits == 0), "{message}");
        }
    }
    Ok(())
}
