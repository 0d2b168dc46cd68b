//! What engines have: caches in every layout, integers and slopes in every type, and functions with their arguments.

use candle_core::{D, IndexOp as _, WithDType};
use flash_alibi::candle::paged_attention::{paged_attention, reshape_and_cache};
use half::{bf16, f16};

use super::*;

const PAGES: usize = 37;
const PAGE_SIZE: usize = 16;
const HEADS_Q: usize = 4;
const HEADS_K: usize = 2;
const HEAD_DIM: usize = 64;

/// How many keys the sequences have; the second has none.
const KEYS: [usize; 4] = [130, 0, 37, 64];

/// How many pages the longest has.
const COLUMNS: usize = KEYS[0].div_ceil(PAGE_SIZE);

/// Exact for all types.
fn bits(x: &Tensor) -> Result<Vec<u32>> {
    let x = x.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
    let values: Vec<f32> = x.flatten_all()?.to_vec1()?;
    Ok(values.into_iter().map(f32::to_bits).collect())
}

fn random(shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
    Tensor::randn(0f32, 1.0, shape, device)?.to_dtype(dtype)
}

fn nan(shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
    Tensor::full(f32::NAN, shape, device)?
        .contiguous()?
        .to_dtype(dtype)
}

/// A row of the table for each sequence, its pages drawn from all; what none needs is no page.
fn table() -> Result<Vec<i64>> {
    let keys: Vec<f32> = Tensor::rand(0f32, 1.0, PAGES, &Device::Cpu)?.to_vec1()?;
    let mut pages: Vec<usize> = (0..PAGES).collect();
    pages.sort_by(|&a, &b| keys[a].total_cmp(&keys[b]));
    let mut pages = pages.into_iter().map(|page| page as i64);
    let mut table = Vec::new();
    for (b, keys) in KEYS.into_iter().enumerate() {
        table.extend(pages.by_ref().take(keys.div_ceil(PAGE_SIZE)));
        table.resize((b + 1) * COLUMNS, i64::from(i32::MAX));
    }
    Ok(table)
}

/// The slots of all keys, sequence by sequence.
fn slots(table: &[i64]) -> Vec<i64> {
    let slot = |b: usize, j: usize| {
        table[b * COLUMNS + j / PAGE_SIZE] * PAGE_SIZE as i64 + (j % PAGE_SIZE) as i64
    };
    let of = |(b, keys)| (0..keys).map(move |j| slot(b, j));
    KEYS.into_iter().enumerate().flat_map(of).collect()
}

type Pools = (Tensor, Tensor);

fn plain(dtype: DType, device: &Device) -> Result<Pools> {
    let pool = || nan(&[PAGES, PAGE_SIZE, HEADS_K, HEAD_DIM], dtype, device);
    Ok((pool()?, pool()?))
}

type Layout = fn(DType, &Device) -> Result<Pools>;

/// Those that are written.
const LAYOUTS: [(&str, Layout); 6] = [
    ("[pages, heads_k, page_size, head_dim]", |dtype, gpu| {
        let pool = || nan(&[PAGES, HEADS_K, PAGE_SIZE, HEAD_DIM], dtype, gpu);
        CacheLayout::Hnd.of(&pool()?, &pool()?)
    }),
    ("[2, pages, ...]", |dtype, gpu| {
        let shape = [2, PAGES, PAGE_SIZE, HEADS_K, HEAD_DIM];
        CacheLayout::Nhd.of_one(&nan(&shape, dtype, gpu)?, 0)
    }),
    ("[pages, 2, ...]", |dtype, gpu| {
        let shape = [PAGES, 2, PAGE_SIZE, HEADS_K, HEAD_DIM];
        CacheLayout::Nhd.of_one(&nan(&shape, dtype, gpu)?, 1)
    }),
    ("[2, pages, heads_k, ...]", |dtype, gpu| {
        let shape = [2, PAGES, HEADS_K, PAGE_SIZE, HEAD_DIM];
        CacheLayout::Hnd.of_one(&nan(&shape, dtype, gpu)?, 0)
    }),
    ("[pages, 2, heads_k, ...]", |dtype, gpu| {
        let shape = [PAGES, 2, HEADS_K, PAGE_SIZE, HEAD_DIM];
        CacheLayout::Hnd.of_one(&nan(&shape, dtype, gpu)?, 1)
    }),
    ("[pages, page_size, heads_k, 2 * head_dim]", |dtype, gpu| {
        let kv = nan(&[PAGES, PAGE_SIZE, HEADS_K, 2 * HEAD_DIM], dtype, gpu)?;
        let half = |start| kv.narrow(3, start, HEAD_DIM);
        Ok((half(HEAD_DIM)?, half(0)?))
    }),
];

/// The same pools with heads in pieces of 16 bytes.
fn in_pieces((k, v): &Pools) -> Result<Pools> {
    let k = k.reshape((PAGES, PAGE_SIZE, HEADS_K, HEAD_DIM / 8, 8))?;
    Ok((
        k.permute((0, 2, 3, 1, 4))?.contiguous()?,
        v.permute((0, 2, 3, 1))?.contiguous()?,
    ))
}

fn layer() -> Result<Attention> {
    let slopes = Slopes::per_head(&[0.5, 0.1, -0.1, 0.02]);
    let layer = Attention::new(HEADS_Q, HEADS_K, HEAD_DIM).slopes(slopes);
    Ok(layer.build()?)
}

#[test]
fn layouts_give_the_bits_of_the_plain_one() -> Result<()> {
    on_gpu(|gpu| {
        let used = Tensor::new(&KEYS.map(|n| n as u32), gpu)?;
        let seqlens = Tensor::new(&[0u32, 21, 21, 22, 39], gpu)?;
        for dtype in [DType::F16, DType::BF16] {
            let [k, v] = [(); 2].map(|()| random(&[231, HEADS_K, HEAD_DIM], dtype, gpu));
            let (k, v) = (k?, v?);
            let one = random(&[4, HEADS_Q, HEAD_DIM], dtype, gpu)?;
            let many = random(&[4, 20, HEADS_Q, HEAD_DIM], dtype, gpu)?;
            let packed = random(&[39, HEADS_Q, HEAD_DIM], dtype, gpu)?;
            let centres = random(&[HEADS_K, HEAD_DIM], DType::F32, gpu)?;
            let table = table()?;
            let slots = Tensor::new(slots(&table), gpu)?;
            let table = Tensor::from_vec(table, (4, COLUMNS), gpu)?;
            let radii = || nan(&[PAGES, HEADS_K], DType::F32, gpu);
            let results = |(k_pages, v_pages): &Pools, radii: &Tensor| -> Result<Vec<Vec<u32>>> {
                let lengths = Lengths::paged(&table, &used).radii(&centres, radii);
                let mut found = Vec::new();
                for (q, lengths) in [
                    (&one, lengths),
                    (&many, lengths),
                    (&packed, lengths.varlen_q(&seqlens, 21)),
                ] {
                    let (out, lse) = attend(&layer()?, q, k_pages, v_pages, lengths)?;
                    assert_eq!(out.dims(), q.dims());
                    found.extend([bits(&out)?, bits(&lse)?]);
                    assert!(!found.concat().iter().any(|&x| f32::from_bits(x).is_nan()));
                }
                copy_pages(k_pages, v_pages, Some(radii), &[(4, 1), (1, 0), (2, 2)])?;
                found.push(bits(radii)?);
                Ok(found)
            };
            let filled = |(k_pages, v_pages): &Pools| -> Result<Tensor> {
                let radii = radii()?;
                append_with_radii(&k, &v, k_pages, v_pages, &slots, &centres, &radii)?;
                Ok(radii)
            };
            let pools = plain(dtype, gpu)?;
            let radii = filled(&pools)?;
            let (pieces, radii_of_pieces) = (in_pieces(&pools)?, radii.copy()?);
            let expected = results(&pools, &radii)?;
            for (name, layout) in LAYOUTS {
                let of_layout = layout(dtype, gpu)?;
                let radii = filled(&of_layout)?;
                assert_eq!(results(&of_layout, &radii)?, expected, "{name}");
                assert_eq!(bits(&of_layout.0)?, bits(&pools.0)?, "{name}");
                assert_eq!(bits(&of_layout.1)?, bits(&pools.1)?, "{name}");
            }
            assert_eq!(results(&pieces, &radii_of_pieces)?, expected);
            // Pages were copied in pieces too.
            let copied = in_pieces(&pools)?;
            assert_eq!(bits(&pieces.0)?, bits(&copied.0)?);
            assert_eq!(bits(&pieces.1)?, bits(&copied.1)?);
        }
        Ok(())
    })
}

/// The same numbers in each type, and of every second number.
fn in_types(values: &[i64], shape: &[usize], gpu: &Device) -> Result<[Tensor; 4]> {
    fn of<T: WithDType>(
        values: &[i64],
        cast: fn(i64) -> T,
        shape: &[usize],
        gpu: &Device,
    ) -> Result<Tensor> {
        let values: Vec<T> = values.iter().map(|&x| cast(x)).collect();
        Tensor::from_vec(values, shape, gpu)
    }
    let whole = of(values, |x| x, shape, gpu)?;
    let spread = Tensor::stack(&[&whole, &whole.zeros_like()?], D::Minus1)?;
    Ok([
        of(values, |x| x as u32, shape, gpu)?,
        of(values, |x| x as i32, shape, gpu)?,
        spread.narrow(D::Minus1, 0, 1)?.squeeze(D::Minus1)?,
        whole,
    ])
}

#[test]
fn integers_may_have_every_type() -> Result<()> {
    on_gpu(|gpu| {
        let table = table()?;
        let slots = slots(&table);
        let k = random(&[slots.len() + 3, HEADS_K, HEAD_DIM], DType::F16, gpu)?;
        let q = random(&[4, 5, HEADS_Q, HEAD_DIM], DType::F16, gpu)?;
        let packed = q.flatten(0, 1)?;
        let used = in_types(&KEYS.map(|n| n as i64), &[4], gpu)?;
        let pad = in_types(&[3, 0, 9, 64], &[4], gpu)?;
        let offset = in_types(&[125, 0, 3, 70], &[4], gpu)?;
        let seqlens = in_types(&[0, 4, 4, 9, 20], &[5], gpu)?;
        let table = in_types(&table, &[4, COLUMNS], gpu)?;
        // The last are padding, where a type can say so.
        let padded = [&slots[..], &[-1, -7, i64::from(i32::MIN)]].concat();
        let padded = in_types(&padded, &[padded.len()], gpu)?;
        let slots = in_types(&slots, &[slots.len()], gpu)?;
        let results = |slots: &Tensor, of: [&Tensor; 5]| -> Result<Vec<u32>> {
            let k = k.narrow(0, 0, slots.dim(0)?)?;
            let (k_pages, v_pages) = plain(DType::F16, gpu)?;
            append(&k, &k, &k_pages, &v_pages, slots)?;
            let [table, used, pad, offset, seqlens] = of;
            let lengths = Lengths::paged(table, used);
            let mut found = Vec::new();
            for (q, lengths) in [
                (&q, lengths.leftpad_k(pad).offset(offset)),
                (&packed, lengths.varlen_q(seqlens, 11)),
            ] {
                let (out, lse) = attend(&layer()?, q, &k_pages, &v_pages, lengths)?;
                found.extend([bits(&out)?, bits(&lse)?].concat());
            }
            // And with heads in pieces, of which pages are gathered.
            let (k_pages, v_pages) = in_pieces(&(k_pages, v_pages))?;
            let lengths = Lengths::paged(table, used);
            let (out, _) = attend(&layer()?, &q, &k_pages, &v_pages, lengths)?;
            found.extend(bits(&out)?);
            Ok(found)
        };
        let of = |n: usize| [&table, &used, &pad, &offset, &seqlens].map(|x| &x[n]);
        let expected = results(&slots[0], of(0))?;
        assert!(!expected.iter().any(|&x| f32::from_bits(x).is_nan()));
        for n in 1..4 {
            assert_eq!(results(&slots[n], of(n))?, expected);
            assert_eq!(results(&padded[n], of(0))?, expected);
        }
        Ok(())
    })
}

#[test]
fn slopes_may_have_every_type() -> Result<()> {
    on_gpu(|gpu| {
        let q = random(&[2, 9, 4, HEAD_DIM], DType::BF16, gpu)?;
        // All types have these numbers.
        let values = [0.5f32, 0.125, -0.25, 0.0, 2.0, 1.0, 0.75, 0.0625];
        for shape in [&[4][..], &[2, 4]] {
            let len = shape.iter().product();
            let slopes = Tensor::from_slice(&values[..len], shape, gpu)?;
            let call = |slopes: &Tensor| bits(&flash_attn_alibi(&q, &q, &q, slopes, SCALE, true)?);
            let expected = call(&slopes)?;
            let f64s: Vec<f64> = values.iter().map(|&x| x.into()).collect();
            let f16s = values.map(f16::from_f32);
            let bf16s = values.map(bf16::from_f32);
            for other in [
                Tensor::from_slice(&f64s[..len], shape, gpu)?,
                Tensor::from_slice(&f16s[..len], shape, gpu)?,
                Tensor::from_slice(&bf16s[..len], shape, gpu)?,
            ] {
                assert_eq!(call(&other)?, expected, "{:?}", other.dtype());
            }
        }
        Ok(())
    })
}

#[test]
fn functions_without_slopes_follow_the_cpu() -> Result<()> {
    on_gpu(|gpu| {
        let [q, q_gpu] = both(gpu, DType::F16, &[2, 9, HEADS_Q, HEAD_DIM], Ok)?;
        let [k, k_gpu] = both(gpu, DType::F16, &[2, 30, HEADS_K, HEAD_DIM], Ok)?;
        let on = |q: &Tensor, k: &Tensor| -> Result<Vec<Tensor>> {
            let device = q.device();
            let (flat_q, flat_k) = (q.flatten(0, 1)?, k.flatten(0, 1)?);
            let seqlens_q = Tensor::new(&[0u32, 2, 18], device)?;
            let seqlens_k = Tensor::new(&[0u32, 29, 60], device)?;
            Ok(vec![
                flash_attn(q, k, k, SCALE, true)?,
                flash_attn_windowed(q, k, k, SCALE, Some(3), Some(2))?,
                flash_attn_varlen(
                    &flat_q, &flat_k, &flat_k, &seqlens_q, &seqlens_k, 16, 31, SCALE, true,
                )?,
                flash_attn_varlen_windowed(
                    &flat_q,
                    &flat_k,
                    &flat_k,
                    &seqlens_q,
                    &seqlens_k,
                    16,
                    31,
                    SCALE,
                    None,
                    Some(1),
                )?,
            ])
        };
        for (cpu, gpu) in on(&q, &k)?.iter().zip(&on(&q_gpu, &k_gpu)?) {
            assert_close(cpu, gpu)?;
        }
        Ok(())
    })
}

#[test]
fn functions_of_paged_caches_follow_the_cpu() -> Result<()> {
    on_gpu(|gpu| {
        let table = table()?;
        let slots = slots(&table);
        let new = both(gpu, DType::BF16, &[1, 231, HEADS_K, HEAD_DIM], Ok)?;
        let ones = both(gpu, DType::BF16, &[4, HEADS_Q, HEAD_DIM], Ok)?;
        let packed = both(gpu, DType::BF16, &[11, HEADS_Q, HEAD_DIM], Ok)?;
        let on = |new: &Tensor, one: &Tensor, packed: &Tensor| -> Result<Vec<Tensor>> {
            let device = new.device();
            let (k_pages, v_pages) = plain(DType::BF16, device)?;
            let slots = Tensor::new(slots.as_slice(), device)?.unsqueeze(0)?;
            reshape_and_cache(new, new, None, None, &k_pages, &v_pages, &slots)?;
            let table = Tensor::from_slice(&table, (4, COLUMNS), device)?;
            let used = Tensor::new(&KEYS.map(|n| n as u32), device)?;
            let slopes = Tensor::new(&[0.5f64, 0.1, -0.1, 0.02], device)?;
            let (seqlens_q, seqlens_k) = (
                Tensor::new(&[0u32, 4, 4, 5, 11], device)?,
                Tensor::new(&[0u32, 130, 130, 167, 231], device)?,
            );
            let mut found = Vec::new();
            for (k, v) in [
                in_pieces(&(k_pages.clone(), v_pages.clone()))?,
                (k_pages, v_pages),
            ] {
                for slopes in [None, Some(&slopes)] {
                    found.push(paged_attention(
                        one, None, None, &k, &v, &table, &used, slopes, 130, SCALE, 1.0, None,
                    )?);
                    found.push(flash_attn_varlen_paged_alibi_windowed(
                        packed,
                        &k,
                        &v,
                        slopes,
                        &seqlens_q,
                        &seqlens_k,
                        &table,
                        7,
                        130,
                        SCALE,
                        Some(40),
                        Some(0),
                        PAGE_SIZE,
                        None,
                    )?);
                }
            }
            Ok(found)
        };
        let cpu = on(&new[0], &ones[0], &packed[0])?;
        for (cpu, gpu) in cpu.iter().zip(&on(&new[1], &ones[1], &packed[1])?) {
            assert_close(cpu, gpu)?;
        }
        Ok(())
    })
}

#[test]
fn what_is_on_the_cpu_only_is_an_error() -> Result<()> {
    on_gpu(|gpu| {
        let (k_pages, v_pages) = in_pieces(&plain(DType::F16, gpu)?)?;
        let new = random(&[1, HEADS_K, HEAD_DIM], DType::F16, gpu)?;
        let slots = Tensor::new(&[3i64], gpu)?;
        let error = append(&new, &new, &k_pages, &v_pages, &slots).unwrap_err();
        let message = error.to_string();
        let expected = "k_pages: found shape [37, 2, 8, 16, 8] on a CUDA device, expected ";
        assert!(message.starts_with(expected), "{message}");
        assert!(
            bits(&v_pages.i(0)?)?
                .iter()
                .all(|&x| f32::from_bits(x).is_nan())
        );

        let q = random(&[1, 3, 2, 264], DType::F16, gpu)?;
        let error = flash_attn(&q, &q, &q, SCALE, true).unwrap_err();
        assert_eq!(
            error.to_string(),
            "head_dim: found 264, expected at most 256 on a CUDA device"
        );
        Ok(())
    })
}
