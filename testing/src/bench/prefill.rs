//! Prefill on a GPU, timed with CUDA events: 16384 tokens and a model width of 2048, as FlashAttention's own benchmarks, and
//! causal in bf16 up to a context of 1048576.
//!
//! `cargo bench --features cuda --bench cuda -- '^prefill/bf16/d64/causal/2048$'` runs one row. Criterion's elements are FLOPs:
//! `4 * batch * heads * seqlen^2 * head_dim`, half of it when causal; ALiBi is never counted. Rows that end in `horizon`
//! leave out what cannot change the result, and count the same FLOPs, executed or not; the others compute every key.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use criterion::{BenchmarkId, Criterion, Throughput};
use flash_alibi::cuda::cudarc::driver::sys::CUevent_flags;
use flash_alibi::cuda::cudarc::driver::{CudaSlice, CudaStream, ValidAsZeroBits};
use flash_alibi::cuda::{Element, Inputs, Layer, View, ViewMut};
use flash_alibi::{Attention, Horizon, Mask};

use crate::normal;

const TOKENS: usize = 16384;
const WIDTH: usize = 2048;

/// A call, ready to be made any number of times.
struct Call<T> {
    stream: Arc<CudaStream>,
    layer: Layer,
    /// `[batch, seqlen, heads, head_dim]`
    shape: [usize; 4],
    q: CudaSlice<T>,
    k: CudaSlice<T>,
    v: CudaSlice<T>,
    out: CudaSlice<T>,
    workspace: CudaSlice<u8>,
}

impl<T: Element + ValidAsZeroBits> Call<T> {
    fn new(
        stream: &Arc<CudaStream>,
        shape: [usize; 4],
        (mask, horizon): (Mask, Horizon),
        from_f32: fn(f32) -> T,
    ) -> Result<Self> {
        let [batch, seqlen, heads, head_dim] = shape;
        let attention = Attention::new(heads, heads, head_dim)
            .mask(mask)
            .horizon(horizon)
            .build()?;
        let layer = Layer::new(stream, attention)?;
        let workspace = layer.workspace_bytes(batch, seqlen, seqlen);
        let mut numbers = normal(1, 0, [0; 4]).map(from_f32);
        let len: usize = shape.iter().product();
        let mut random = || {
            // The same 32768 tokens again and again, where there are more.
            let values: Vec<T> = numbers.by_ref().take(len.min(2 * TOKENS * WIDTH)).collect();
            let mut all = stream.alloc_zeros(len)?;
            for start in (0..len).step_by(values.len()) {
                let n = values.len().min(len - start);
                stream.memcpy_htod(&values[..n], &mut all.slice_mut(start..start + n))?;
            }
            anyhow::Ok(all)
        };
        Ok(Self {
            stream: stream.clone(),
            layer,
            shape,
            q: random()?,
            k: random()?,
            v: random()?,
            out: random()?,
            workspace: stream.alloc_zeros(workspace)?,
        })
    }

    /// The device's time for so many calls.
    fn time(&mut self, calls: u64) -> Result<Duration> {
        let Self {
            stream,
            layer,
            shape,
            q,
            k,
            v,
            out,
            workspace,
        } = self;
        let inputs = Inputs::new(
            View::new(q, shape)?,
            View::new(k, shape)?,
            View::new(v, shape)?,
        );
        let flags = Some(CUevent_flags::CU_EVENT_DEFAULT);
        let start = stream.record_event(flags)?;
        for _ in 0..calls {
            let out = ViewMut::new(out, shape)?;
            layer.prefill(stream, &inputs, out, None, workspace)?;
        }
        let end = stream.record_event(flags)?;
        let milliseconds = start.elapsed_ms(&end)?;
        Ok(Duration::from_secs_f64(f64::from(milliseconds) / 1e3))
    }
}

pub(super) fn rows<T: Element + ValidAsZeroBits>(
    criterion: &mut Criterion,
    stream: &Arc<CudaStream>,
    dtype: &str,
    from_f32: fn(f32) -> T,
) {
    let masks = [
        (Mask::Causal, Horizon::Off, "causal"),
        (Mask::Causal, Horizon::default(), "causal/horizon"),
        (Mask::Bidirectional, Horizon::Off, "full"),
        (Mask::Bidirectional, Horizon::default(), "full/horizon"),
    ];
    for head_dim in [64, 128] {
        for (mask, horizon, name) in masks {
            let mut group =
                criterion.benchmark_group(format!("prefill/{dtype}/d{head_dim}/{name}"));
            group
                .sample_size(20)
                .warm_up_time(Duration::from_secs(1))
                .measurement_time(Duration::from_secs(2));
            let longest = match mask {
                Mask::Causal if dtype == "bf16" => 20,
                _ => 14,
            };
            for seqlen in (9..=longest).map(|power| 1 << power) {
                let batch = (TOKENS / seqlen).max(1);
                let shape = [batch, seqlen, WIDTH / head_dim, head_dim];
                let full = 4 * batch * seqlen * seqlen * WIDTH;
                let flops = if mask == Mask::Causal { full / 2 } else { full };
                group.throughput(Throughput::Elements(flops as u64));
                // Made only if asked for.
                let mut made = None;
                if seqlen > TOKENS {
                    group.sample_size(10);
                }
                group.bench_function(BenchmarkId::from_parameter(seqlen), |bencher| {
                    let call = made.get_or_insert_with(|| {
                        Call::new(stream, shape, (mask, horizon), from_f32).expect("the call fits")
                    });
                    bencher.iter_custom(|calls| call.time(calls).expect("the device computes"));
                });
            }
            group.finish();
        }
    }
}
