//! The candle functions on CUDA tensors, against the same functions on the CPU. Where there is no GPU, all is skipped.

mod engines;

use std::io::Write as _;

use candle_core::{DType, Device, Result, Tensor, Var};
use flash_alibi::candle::*;
use flash_alibi::{Attention, Slopes, cuda};

const SCALE: f32 = 0.3;
const NONE: Option<usize> = None;

/// Runs a test on the first GPU.
fn on_gpu(test: impl FnOnce(&Device) -> Result<()>) -> Result<()> {
    match cuda::context(0) {
        Ok(_) => test(&Device::new_cuda(0)?),
        Err(why) => {
            // Unlike what `eprintln!` prints, this shows when the test passes.
            let line = format!("skipped: {why}\n");
            std::io::stderr().write_all(line.as_bytes())?;
            Ok(())
        }
    }
}

/// Both devices' tensors of the same numbers, each made strided in the same way.
fn both(
    gpu: &Device,
    dtype: DType,
    shape: &[usize],
    strided: impl Fn(Tensor) -> Result<Tensor>,
) -> Result<[Tensor; 2]> {
    let x = Tensor::randn(0f32, 1.0, shape, &Device::Cpu)?.to_dtype(dtype)?;
    Ok([strided(x.clone())?, strided(x.to_device(gpu)?)?])
}

/// The shape and memory of heads before rows, and of a part of a larger tensor.
fn transposed(x: Tensor) -> Result<Tensor> {
    let rows = x.rank() - 3;
    x.transpose(rows, rows + 1)
}

fn narrowed(x: Tensor) -> Result<Tensor> {
    let rows = x.rank() - 3;
    let n = x.dim(rows)?;
    x.narrow(rows, 2, n - 3)
}

#[track_caller]
fn assert_close(cpu: &Tensor, gpu: &Tensor) -> Result<()> {
    assert_eq!((cpu.dims(), cpu.dtype()), (gpu.dims(), gpu.dtype()));
    assert!(gpu.device().is_cuda() && gpu.is_contiguous());
    let values = |x: &Tensor| -> Result<Vec<f32>> {
        let x = x.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
        x.flatten_all()?.to_vec1()
    };
    let limit = match cpu.dtype() {
        DType::F16 => 4e-3,
        DType::BF16 => 3.2e-2,
        _ => 1e-3,
    };
    for (at, (cpu, gpu)) in values(cpu)?.into_iter().zip(values(gpu)?).enumerate() {
        let close = cpu == gpu || (cpu - gpu).abs() <= limit * cpu.abs().max(1.0);
        assert!(close, "{gpu} for {cpu} at {at}");
    }
    Ok(())
}

#[test]
fn dense() -> Result<()> {
    on_gpu(|gpu| {
        for dtype in [DType::F16, DType::BF16] {
            let [q, q_gpu] = both(gpu, dtype, &[2, 6, 33, 80], transposed)?;
            let [k, k_gpu] = both(gpu, dtype, &[2, 70, 2, 80], narrowed)?;
            let [v, v_gpu] = both(gpu, dtype, &[2, 2, 67, 80], transposed)?;
            let per_head = both(gpu, DType::F32, &[6], Ok)?;
            let per_sequence = both(gpu, DType::F32, &[6, 2], |x| x.abs()?.t())?;
            for [slopes, slopes_gpu] in [per_head, per_sequence] {
                for causal in [true, false] {
                    let cpu = flash_attn_alibi(&q, &k, &v, &slopes, SCALE, causal)?;
                    let gpu = flash_attn_alibi(&q_gpu, &k_gpu, &v_gpu, &slopes_gpu, SCALE, causal)?;
                    assert_close(&cpu, &gpu)?;
                }
                for (left, right) in [(Some(3), Some(2)), (None, Some(0)), (Some(7), None)] {
                    let on = |q, k, v, slopes| {
                        flash_attn_alibi_windowed(q, k, v, slopes, SCALE, left, right)
                    };
                    assert_close(
                        &on(&q, &k, &v, &slopes)?,
                        &on(&q_gpu, &k_gpu, &v_gpu, &slopes_gpu)?,
                    )?;
                }
                for (some, some_gpu) in [(None, None), (Some(&slopes), Some(&slopes_gpu))] {
                    let on = |q, k, v, slopes| {
                        flash_attn_alibi_windowed_softcap(q, k, v, slopes, SCALE, NONE, NONE, 0.7)
                    };
                    assert_close(
                        &on(&q, &k, &v, some)?,
                        &on(&q_gpu, &k_gpu, &v_gpu, some_gpu)?,
                    )?;
                }
            }
        }
        Ok(())
    })
}

#[test]
fn packed() -> Result<()> {
    on_gpu(|gpu| {
        // Two rows of each belong to no sequence: they are zero.
        let [q, q_gpu] = both(gpu, DType::F16, &[6, 36, 64], transposed)?;
        let [k, k_gpu] = both(gpu, DType::F16, &[108, 2, 64], narrowed)?;
        let seqlens = |device: &Device| -> Result<[Tensor; 2]> {
            let q = Tensor::new(&[0u32, 0, 1, 34, 34], device)?;
            Ok([q, Tensor::new(&[0u32, 3, 70, 103, 103], device)?])
        };
        let ([cu_q, cu_k], [cu_q_gpu, cu_k_gpu]) = (seqlens(&Device::Cpu)?, seqlens(gpu)?);
        let [slopes, slopes_gpu] = both(gpu, DType::F32, &[6], Ok)?;
        for causal in [true, false] {
            let on = |q, k, slopes, cu_q, cu_k| {
                flash_attn_varlen_alibi(q, k, k, slopes, cu_q, cu_k, 33, 70, SCALE, causal)
            };
            assert_close(
                &on(&q, &k, &slopes, &cu_q, &cu_k)?,
                &on(&q_gpu, &k_gpu, &slopes_gpu, &cu_q_gpu, &cu_k_gpu)?,
            )?;
        }
        for softcap in [0.0, 0.7] {
            let on = |q, k, slopes, cu_q, cu_k| {
                flash_attn_varlen_alibi_windowed_softcap(
                    q,
                    k,
                    k,
                    slopes,
                    cu_q,
                    cu_k,
                    33,
                    70,
                    SCALE,
                    Some(5),
                    Some(3),
                    softcap,
                )
            };
            assert_close(
                &on(&q, &k, Some(&slopes), &cu_q, &cu_k)?,
                &on(&q_gpu, &k_gpu, Some(&slopes_gpu), &cu_q_gpu, &cu_k_gpu)?,
            )?;
        }
        let on = |q, k, slopes, cu_q, cu_k| {
            flash_attn_varlen_alibi_windowed(q, k, k, slopes, cu_q, cu_k, 33, 70, SCALE, NONE, NONE)
        };
        assert_close(
            &on(&q, &k, &slopes, &cu_q, &cu_k)?,
            &on(&q_gpu, &k_gpu, &slopes_gpu, &cu_q_gpu, &cu_k_gpu)?,
        )
    })
}

#[test]
fn a_prepared_layer_with_lengths_and_its_lse() -> Result<()> {
    on_gpu(|gpu| {
        let layer = Attention::new(4, 2, 64)
            .slopes(Slopes::geometric(4))
            .build()?;
        let [q, q_gpu] = both(gpu, DType::BF16, &[2, 9, 4, 64], Ok)?;
        let [k, k_gpu] = both(gpu, DType::BF16, &[2, 93, 2, 64], narrowed)?;
        let on = |q: &Tensor, k: &Tensor| {
            // Every second element.
            let lengths = |values: &[u32; 4]| -> Result<Tensor> {
                Tensor::new(values, q.device())?
                    .reshape((2, 2))?
                    .narrow(1, 0, 1)?
                    .squeeze(1)
            };
            let (used, pad) = (lengths(&[90, 0, 33, 0])?, lengths(&[0, 7, 31, 7])?);
            let lengths = Lengths::dense().seqused_k(&used).leftpad_k(&pad);
            attend(&layer, q, k, k, lengths)
        };
        let ((out, lse), (out_gpu, lse_gpu)) = (on(&q, &k)?, on(&q_gpu, &k_gpu)?);
        assert_close(&out, &out_gpu)?;
        assert_close(&lse, &lse_gpu)
    })
}

#[test]
fn pages() -> Result<()> {
    on_gpu(|gpu| {
        let layer = Attention::new(4, 2, 64)
            .slopes(Slopes::geometric(4))
            .build()?;
        let (pages, page_size, used) = (20usize, 16usize, [90u32, 0, 33]);
        // Rows of padding are left out; pages that no sequence needs are never read.
        let table = |b: usize, i: usize| ((b * 6 + i) * 7 % pages) as u32;
        let rows: Vec<Vec<u32>> = (0..3)
            .map(|b| (0..6).map(|i| table(b, i)).collect())
            .collect();
        let slot = |b: usize, j: usize| match j < used[b] as usize {
            true => i64::from(table(b, j / page_size)) * 16 + (j % page_size) as i64,
            false => -1,
        };
        let slots: Vec<i64> = (0..3 * 96).map(|i| slot(i / 96, i % 96)).collect();
        for dtype in [DType::F16, DType::BF16] {
            // Slices of one fused projection, strided.
            let kv = both(gpu, dtype, &[3 * 96, 2, 2, 64], Ok)?;
            // Some are decoded, some are not.
            let mut qs = Vec::new();
            for queries in [1, 9, 16, 17, 40] {
                qs.push(both(gpu, dtype, &[3, queries, 4, 64], Ok)?);
            }
            let packed = both(gpu, dtype, &[22, 4, 64], Ok)?;
            let on = |kv: &Tensor, qs: &[Tensor], packed: &Tensor| -> Result<Vec<Tensor>> {
                let device = kv.device();
                let pool = || -> Result<Tensor> {
                    let nan = Tensor::full(f32::NAN, (pages + 2, page_size, 2, 64), device)?;
                    nan.to_dtype(dtype)?.narrow(0, 1, pages)
                };
                let (k_pages, v_pages) = (pool()?, pool()?);
                let part = |i: usize| kv.narrow(1, i, 1)?.squeeze(1);
                let slots = Tensor::new(slots.as_slice(), device)?;
                append(&part(0)?, &part(1)?, &k_pages, &v_pages, &slots)?;
                let (table, used) = (
                    Tensor::new(rows.clone(), device)?,
                    Tensor::new(&used, device)?,
                );
                let lengths = Lengths::paged(&table, &used);
                let mut found = Vec::new();
                for q in qs {
                    let (out, lse) = attend(&layer, q, &k_pages, &v_pages, lengths)?;
                    found.extend([out, lse]);
                }
                let seqlens = Tensor::new(&[0u32, 7, 7, 20], device)?;
                for max in [13, 20] {
                    let lengths = lengths.varlen_q(&seqlens, max);
                    let (out, lse) = attend(&layer, packed, &k_pages, &v_pages, lengths)?;
                    found.extend([out, lse]);
                }
                Ok(found)
            };
            let on = |at: usize| {
                let qs: Vec<Tensor> = qs.iter().map(|q| q[at].clone()).collect();
                on(&kv[at], &qs, &packed[at])
            };
            let (cpu, gpu) = (on(0)?, on(1)?);
            for (cpu, gpu) in cpu.iter().zip(&gpu) {
                assert_close(cpu, gpu)?;
            }
        }
        Ok(())
    })
}

/// Positions of both types, of every second number; then two parts of the keys merged.
#[test]
fn offsets_and_merged_parts() -> Result<()> {
    on_gpu(|gpu| {
        let layer = Attention::new(4, 2, 64)
            .slopes(Slopes::geometric(4))
            .build()?;
        for (dtype, queries) in [(DType::F16, 9), (DType::BF16, 33)] {
            let qs = both(gpu, dtype, &[2, 4, queries, 64], transposed)?;
            let ks = both(gpu, dtype, &[2, 93, 2, 64], narrowed)?;
            let on = |q: &Tensor, k: &Tensor| -> Result<Vec<Tensor>> {
                let mut found = Vec::new();
                let (near, far) = (k.narrow(1, 50, 40)?, k.narrow(1, 0, 50)?);
                let (out, lse) = attend(&layer, q, &near, &near, Lengths::dense())?;
                for offset in [[90 - queries as i64; 2], [-20, 70]] {
                    let strided = [offset[0], 7, offset[1], 7];
                    let strided = Tensor::new(&strided, q.device())?.reshape((2, 2))?;
                    let strided = strided.narrow(1, 0, 1)?.squeeze(1)?;
                    let whole = Tensor::new(&offset.map(|x| x as i32), q.device())?;
                    for offset in [strided, whole] {
                        let lengths = Lengths::dense().offset(&offset);
                        let (other, other_lse) = attend(&layer, q, &far, &far, lengths)?;
                        let (merged, merged_lse) = merge_states(&out, &lse, &other, &other_lse)?;
                        found.extend([other, other_lse, merged, merged_lse]);
                    }
                }
                found.extend([out, lse]);
                Ok(found)
            };
            let (cpu, gpu) = (on(&qs[0], &ks[0])?, on(&qs[1], &ks[1])?);
            for (cpu, gpu) in cpu.iter().zip(&gpu) {
                assert_close(cpu, gpu)?;
            }
        }
        Ok(())
    })
}

#[test]
fn copies_of_pages() -> Result<()> {
    on_gpu(|gpu| {
        for dtype in [DType::F16, DType::BF16] {
            let ks = both(gpu, dtype, &[5, 2, 16, 40], transposed)?;
            let vs = both(gpu, dtype, &[5, 19, 2, 40], narrowed)?;
            let radii = both(gpu, DType::F32, &[5, 2], Ok)?;
            for at in 0..2 {
                let copies = [(4, 1), (1, 0), (2, 2)];
                copy_pages(&ks[at], &vs[at], Some(&radii[at]), &copies)?;
                copy_pages(&ks[at], &vs[at], None, &[(3, 2)])?;
                copy_pages(&ks[at], &vs[at], None, &[])?;
            }
            for [cpu, gpu] in [&ks, &vs, &radii] {
                assert_close(cpu, &gpu.contiguous()?)?;
            }
            let error = copy_pages(&ks[1], &vs[1], None, &[(5, 0)]).unwrap_err();
            assert_eq!(
                error.to_string(),
                "copies: found page 5 at index 0, expected one of the 5 pages, from 0"
            );
        }
        Ok(())
    })
}

/// So long a sequence that far pages are not read: NaN in them is not seen.
#[test]
fn radii_of_pages() -> Result<()> {
    on_gpu(|gpu| {
        const KEYS: usize = 2560;
        let pages = KEYS / 16;
        let slopes = Slopes::per_head(&[0.5, 0.1, 0.25, 0.2]);
        let layer = Attention::new(4, 2, 64).slopes(slopes).build()?;
        for dtype in [DType::F16, DType::BF16] {
            let kv = both(gpu, dtype, &[KEYS, 2, 2, 64], Ok)?;
            let qs = both(gpu, dtype, &[1, 3, 4, 64], Ok)?;
            let on = |kv: &Tensor, q: &Tensor| -> Result<[Tensor; 3]> {
                let device = kv.device();
                let pool = || Tensor::zeros((pages, 16, 2, 64), dtype, device);
                let (k_pages, v_pages) = (pool()?, pool()?);
                let part = |i: usize| kv.narrow(1, i, 1)?.squeeze(1);
                let centres = part(0)?.to_dtype(DType::F32)?.mean(0)?;
                let radii = Tensor::full(f32::NAN, (pages + 1, 2), device)?.narrow(0, 1, pages)?;
                let slots: Vec<i64> = (0..KEYS as i64).collect();
                let slots = Tensor::new(slots, device)?;
                let (k, v) = (part(0)?, part(1)?);
                append_with_radii(&k, &v, &k_pages, &v_pages, &slots, &centres, &radii)?;
                let nan =
                    Tensor::full(f32::NAN, (pages / 2, 16, 2, 64), device)?.to_dtype(dtype)?;
                k_pages.slice_set(&nan, 0, 0)?;
                let table: Vec<u32> = (0..pages as u32).collect();
                let table = Tensor::from_vec(table, (1, pages), device)?;
                let used = Tensor::new(&[KEYS as u32], device)?;
                let lengths = Lengths::paged(&table, &used).radii(&centres, &radii);
                let (out, lse) = attend(&layer, q, &k_pages, &v_pages, lengths)?;
                Ok([out, lse, radii])
            };
            let (cpu, gpu) = (on(&kv[0], &qs[0])?, on(&kv[1], &qs[1])?);
            for (cpu, gpu) in cpu.iter().zip(&gpu) {
                assert_close(cpu, gpu)?;
            }
        }
        Ok(())
    })
}

#[test]
fn append_leaves_out_slots_that_no_page_has() -> Result<()> {
    on_gpu(|gpu| {
        let pool = || Tensor::zeros((2, 8, 1, 8), DType::F16, gpu);
        let (k_pages, v_pages) = (pool()?, pool()?);
        let new = Tensor::ones((4, 1, 8), DType::F16, gpu)?;
        let slots = Tensor::new(&[3i64, 16, -1, 15], gpu)?;
        append(&new, &new, &k_pages, &v_pages, &slots)?;
        for pool in [&k_pages, &v_pages] {
            let rows = pool.to_dtype(DType::F32)?.sum_keepdim(3)?.flatten_all()?;
            let mut expected = [0f32; 16];
            (expected[3], expected[15]) = (8.0, 8.0);
            assert_eq!(rows.to_vec1::<f32>()?, expected);
        }

        let error = append(&new, &new, &k_pages, &k_pages, &slots).unwrap_err();
        assert_eq!(
            error.to_string(),
            "v_pages: found a tensor in the memory of k_pages, expected memory of its own"
        );
        let error = append(&new, &new, &k_pages, &v_pages, &slots.narrow(0, 0, 3)?).unwrap_err();
        assert_eq!(
            error.to_string(),
            "slot_mapping: found 3 elements, expected 4, one a token"
        );
        let new = new.to_dtype(DType::F32)?;
        let error = append(&new, &new, &k_pages, &v_pages, &slots).unwrap_err();
        assert_eq!(
            error.to_string(),
            "k: found dtype F32, expected dtype F16 or BF16 on a CUDA device"
        );
        Ok(())
    })
}

#[test]
fn errors() -> Result<()> {
    on_gpu(|gpu| {
        let slopes = Tensor::new(&[0.5f32, 0.25], gpu)?;
        let x = Tensor::zeros((1, 4, 2, 8), DType::F32, gpu)?;
        let error = flash_attn_alibi(&x, &x, &x, &slopes, SCALE, true).unwrap_err();
        assert_eq!(
            error.to_string(),
            "q: found dtype F32, expected dtype F16 or BF16 on a CUDA device"
        );
        let x = x.to_dtype(DType::F16)?;
        let elsewhere = Tensor::new(&[0.5f32, 0.25], &Device::Cpu)?;
        let error = flash_attn_alibi(&x, &x, &x, &elsewhere, SCALE, true).unwrap_err();
        assert_eq!(
            error.to_string(),
            "alibi_slopes: found a tensor on Cpu, expected one on Cuda { gpu_id: 0 }, as q"
        );
        let wrong = x.narrow(1, 0, 3)?;
        let error = flash_attn_alibi(&x, &x, &wrong, &slopes, SCALE, true).unwrap_err();
        assert!(error.to_string().starts_with("v: found shape [1, 3, 2, 8]"));

        let q = Var::from_tensor(&x)?;
        let out = flash_attn_alibi(&q, &x, &x, &slopes, SCALE, true)?;
        assert!(out.sum_all()?.backward().is_err());
        Ok(())
    })
}
