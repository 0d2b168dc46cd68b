//! The CPU path beside its peers, in one run: candle-nn's CPU flash attention with its own ALiBi, and attention by
//! candle's matrix products with the bias materialised. Causal, 8 heads; the machine's threads for all. Decoding also from
//! a paged cache, in pages of 16 tokens that lie in no order.
//!
//! `cargo bench --bench attention -- prefill/f32/64/4096` runs one row. The rows `horizon` compare the certified horizon, its
//! preparation included, with every key computed; `horizon/8/sd 1/dense/65536` takes minutes.

use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::attention::{AttnMask, flash_attn};
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, measurement::WallTime};
use flash_alibi::cpu::{self, Element};
use flash_alibi::{Attention, Horizon, Inputs, Slopes, View, ViewMut};
use half::{bf16, f16};

const HEADS: usize = 8;

/// q, k and v as engines hold them: `[1, seqlen, heads, head_dim]`.
struct Data {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    head_dim: usize,
}

impl Data {
    fn new(seqlen_q: usize, seqlen_k: usize, head_dim: usize, dtype: DType) -> Result<Self> {
        let random = |seqlen| {
            Tensor::randn(0f32, 1.0, (1, seqlen, HEADS, head_dim), &Device::Cpu)?.to_dtype(dtype)
        };
        Ok(Self {
            q: random(seqlen_q)?,
            k: random(seqlen_k)?,
            v: random(seqlen_k)?,
            head_dim,
        })
    }

    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }
}

/// Tokens of a page.
const PAGE_SIZE: usize = 16;

/// Attention by this crate; the keys and values are a cache of pages if `paged`.
fn ours<T: Element + candle_core::WithDType>(data: &Data, paged: bool) -> Result<impl FnMut()> {
    let values = |t: &Tensor| t.flatten_all()?.to_vec1::<T>();
    let (q, k, v) = (values(&data.q)?, values(&data.k)?, values(&data.v)?);
    let (shape_q, mut shape_k) = (data.q.dims().to_vec(), data.k.dims().to_vec());
    let pages = shape_k[1] / PAGE_SIZE;
    let seqused_k = [shape_k[1] as i32];
    // A permutation: 37 divides no power of two.
    let block_table: Vec<i32> = (0..pages).map(|i| (i * 37 % pages) as i32).collect();
    if paged {
        shape_k = vec![pages, PAGE_SIZE, HEADS, data.head_dim];
    }
    let layer = Attention::new(HEADS, HEADS, data.head_dim)
        .build()
        .expect("valid");
    let mut out = q.clone();
    Ok(move || {
        let view = |data, shape| View::new(data, shape).expect("fits");
        let (q, k, v) = (view(&q, &shape_q), view(&k, &shape_k), view(&v, &shape_k));
        let inputs = match paged {
            true => Inputs::paged(q, k, v, &block_table, &seqused_k),
            false => Inputs::new(q, k, v),
        };
        let out = ViewMut::new(&mut out, &shape_q).expect("fits");
        cpu::attend_into(&layer, &inputs, out, None).expect("fits");
    })
}

fn candle_flash<T>(data: &Data) -> Result<Tensor>
where
    T: candle_core::WithDType + num_traits::Float,
{
    let kv_offset = data.k.dim(1)? - data.q.dim(1)?;
    let mask = AttnMask::Causal { kv_offset };
    flash_attn::<T>(
        &data.q,
        &data.k,
        &data.v,
        data.scale(),
        mask,
        Some(8.0),
        None,
    )
}

/// The bias of each head, `[seqlen_q, seqlen_k]`, causal mask included: what an engine without a kernel keeps.
fn bias(data: &Data) -> Result<Vec<Tensor>> {
    let (seqlen_q, seqlen_k) = (data.q.dim(1)?, data.k.dim(1)?);
    let slopes = Slopes::geometric(HEADS);
    let of_head = |head| {
        let slope = slopes.get(0, head);
        let entries = (0..seqlen_q).flat_map(|i| {
            let position = i + seqlen_k - seqlen_q;
            (0..seqlen_k).map(move |j| match j <= position {
                true => -slope * (position - j) as f32,
                false => f32::NEG_INFINITY,
            })
        });
        Tensor::from_iter(entries, &Device::Cpu)?
            .reshape((seqlen_q, seqlen_k))?
            .to_dtype(data.q.dtype())
    };
    (0..HEADS).map(of_head).collect()
}

/// One head at a time, so that 16K tokens fit in memory.
fn materialised(data: &Data, bias: &[Tensor]) -> Result<()> {
    for (head, bias) in bias.iter().enumerate() {
        let of_head = |t: &Tensor| t.narrow(2, head, 1)?.squeeze(2)?.squeeze(0)?.contiguous();
        let (q, k, v) = (of_head(&data.q)?, of_head(&data.k)?, of_head(&data.v)?);
        let scores = (q.matmul(&k.t()?)? * f64::from(data.scale()))?.add(bias)?;
        let weights = candle_nn::ops::softmax(&scores, D::Minus1)?;
        weights.matmul(&v)?;
    }
    Ok(())
}

fn row<T>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    (seqlen_q, seqlen_k): (usize, usize),
    head_dim: usize,
) -> Result<()>
where
    T: Element + candle_core::WithDType + num_traits::Float,
{
    let data = Data::new(seqlen_q, seqlen_k, head_dim, T::DTYPE)?;
    let name = |who: &str| BenchmarkId::new(who, seqlen_k);
    // What attention is counted by everywhere: two products over the visible scores, no bias.
    let hidden = if seqlen_q > 1 {
        seqlen_q * seqlen_q / 2
    } else {
        0
    };
    let operations = 4 * HEADS * head_dim * (seqlen_q * seqlen_k - hidden);
    group.throughput(Throughput::Elements(operations as u64));
    let mut run = ours::<T>(&data, false)?;
    group.bench_function(name("flash-alibi"), |b| b.iter(&mut run));
    if seqlen_q == 1 {
        let mut run = ours::<T>(&data, true)?;
        group.bench_function(name("flash-alibi paged"), |b| b.iter(&mut run));
    }
    group.bench_function(name("candle-nn flash"), |b| {
        b.iter(|| candle_flash::<T>(&data))
    });
    // Made only if asked for: at 16K tokens it takes gigabytes.
    let mut kept = None;
    group.bench_function(name("materialised bias"), |b| {
        let bias = kept.get_or_insert_with(|| bias(&data).expect("memory for the bias"));
        b.iter(|| materialised(&data, bias));
    });
    Ok(())
}

fn rows<T>(c: &mut Criterion, dtype: &str) -> Result<()>
where
    T: Element + candle_core::WithDType + num_traits::Float,
{
    for head_dim in [64, 128] {
        let mut group = c.benchmark_group(format!("prefill/{dtype}/{head_dim}"));
        group.sample_size(10);
        for seqlen in [1024, 4096, 16384] {
            row::<T>(&mut group, (seqlen, seqlen), head_dim)?;
        }
        group.finish();
        let mut group = c.benchmark_group(format!("decode/{dtype}/{head_dim}"));
        group.sample_size(10);
        for seqlen in [1024, 4096, 16384] {
            row::<T>(&mut group, (1, seqlen), head_dim)?;
        }
        group.finish();
    }
    Ok(())
}

/// q, k and v of head_dim 64 that give logits of this standard deviation.
fn scaled(heads: usize, seqlen: usize, sd: f64) -> Result<[Vec<f32>; 3]> {
    let random = |sd: f64| {
        let shape = (seqlen, heads, 64);
        Tensor::randn(0f32, sd as f32, shape, &Device::Cpu)?
            .flatten_all()?
            .to_vec1::<f32>()
    };
    Ok([random(sd.sqrt())?, random(sd.sqrt())?, random(1.0)?])
}

fn horizon_rows(c: &mut Criterion) {
    let prefill = [8, 32].map(|heads| (heads, Slopes::geometric(heads), [1.0, 3.0], "sd"));
    // Nothing to leave out: what looking for it costs.
    let dense = [
        (8, Slopes::zero(8), [1.0, 3.0], "no slopes, sd"),
        (
            8,
            Slopes::per_head(&[1e-5; 8]),
            [1.0, 3.0],
            "slopes of 1e-5, sd",
        ),
        (
            32,
            Slopes::with_bias_max(32, 16.0),
            [1.0, 3.0],
            "bias max 16, sd",
        ),
    ];
    for (heads, slopes, sds, name) in prefill.into_iter().chain(dense) {
        for sd in sds {
            let mut group = c.benchmark_group(format!("horizon/{heads}/{name} {sd}"));
            group.sample_size(10);
            for seqlen in [4096, 16384, 65536, 262_144] {
                let mut made = None;
                for (id, horizon) in [("certified", Horizon::default()), ("dense", Horizon::Off)] {
                    group.bench_function(BenchmarkId::new(id, seqlen), |b| {
                        // Made only if asked for.
                        let [q, k, v] = made.get_or_insert_with(|| {
                            scaled(heads, seqlen, sd).expect("memory for the inputs")
                        });
                        let layer = Attention::new(heads, heads, 64)
                            .slopes(slopes.clone())
                            .horizon(horizon)
                            .build()
                            .expect("valid");
                        let shape = [1, seqlen, heads, 64];
                        let view = |data| View::new(data, &shape).expect("fits");
                        let mut out = vec![0.0; q.len()];
                        b.iter(|| {
                            let out = ViewMut::new(&mut out, &shape).expect("fits");
                            let inputs = Inputs::new(view(q), view(k), view(v));
                            cpu::attend_into(&layer, &inputs, out, None).expect("fits");
                        });
                    });
                }
            }
            group.finish();
        }
    }
}

/// Decoding from a cache that keeps the radii of its pages, around zeros as normal keys have their mean there.
fn decode_horizon_rows(c: &mut Criterion) {
    for sd in [1.0, 3.0] {
        let mut group = c.benchmark_group(format!("horizon/{HEADS}/decode, sd {sd}"));
        for seqlen in [4096, 16384, 65536, 262_144] {
            let mut made = None;
            let horizons = [
                ("radii", Horizon::default(), true),
                ("scores", Horizon::default(), false),
                ("dense", Horizon::Off, false),
            ];
            for (id, horizon, radii) in horizons {
                group.bench_function(BenchmarkId::new(id, seqlen), |b| {
                    // Made only if asked for.
                    let (pools, q) = made
                        .get_or_insert_with(|| cache(seqlen, sd).expect("memory for the cache"));
                    let layer = Attention::new(HEADS, HEADS, 64)
                        .horizon(horizon)
                        .build()
                        .expect("valid");
                    let (pages, seqused_k) = (seqlen / PAGE_SIZE, [seqlen as i32]);
                    let block_table: Vec<i32> =
                        (0..pages).map(|i| (i * 37 % pages) as i32).collect();
                    let shape = [1, 1, HEADS, 64];
                    let q = View::new(q, &shape).expect("fits");
                    let inputs = match radii {
                        true => pools.inputs(q, &block_table, &seqused_k),
                        false => Inputs::paged(q, pools.k(), pools.v(), &block_table, &seqused_k),
                    };
                    let mut out = vec![0.0; HEADS * 64];
                    b.iter(|| {
                        let out = ViewMut::new(&mut out, &shape).expect("fits");
                        cpu::attend_into(&layer, &inputs, out, None).expect("fits");
                    });
                });
            }
        }
        group.finish();
    }
}

/// A full cache, and a query.
fn cache(seqlen: usize, sd: f64) -> Result<(cpu::KvCache<f32>, Vec<f32>)> {
    let [q, k, v] = scaled(HEADS, seqlen, sd)?;
    let mut pools = cpu::KvCache::new(seqlen / PAGE_SIZE, PAGE_SIZE, HEADS, 64).expect("valid");
    let view = |data| View::new(data, &[seqlen, HEADS, 64]).expect("fits");
    let slots: Vec<i64> = (0..seqlen as i64).collect();
    pools.append(view(&k), view(&v), &slots).expect("fits");
    Ok((pools, q[..HEADS * 64].to_vec()))
}

fn main() -> Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    rows::<f32>(&mut criterion, "f32")?;
    rows::<bf16>(&mut criterion, "bf16")?;
    rows::<f16>(&mut criterion, "f16")?;
    horizon_rows(&mut criterion);
    decode_horizon_rows(&mut criterion);
    criterion.final_summary();
    Ok(())
}
