//! Decoding on a GPU, timed with CUDA events: one token a sequence against caches of 1K to 128K tokens, beside a copy of as
//! many bytes by the driver.
//!
//! Criterion's bytes are those of K and V, which must be read once; a copy reads half of its bytes and writes the other half.
//! Rows named `horizon` have a paged cache that keeps the radii of its pages, and read what may change the result; they count
//! the same bytes, read or not.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use criterion::{BenchmarkId, Criterion, Throughput};
use flash_alibi::Attention;
use flash_alibi::cuda::cudarc::driver::sys::CUevent_flags;
use flash_alibi::cuda::cudarc::driver::{CudaSlice, CudaStream};
use flash_alibi::cuda::{Inputs, Layer, View, ViewMut};
use half::bf16;

use crate::normal;

const PAGE_SIZE: usize = 64;
/// What the caches of a call take at most.
const BYTES: usize = 16 << 30;

/// heads_q, heads_k and head_dim: BLOOM-7b1 and MPT-7B, a model with 4 heads a group, Falcon-7B.
const LAYERS: [(usize, usize, usize); 3] = [(32, 32, 128), (32, 8, 128), (71, 1, 64)];

/// A step, ready to be made any number of times.
struct Step {
    stream: Arc<CudaStream>,
    layer: Layer,
    batch: usize,
    keys: usize,
    q: CudaSlice<bf16>,
    k: CudaSlice<bf16>,
    v: CudaSlice<bf16>,
    out: CudaSlice<bf16>,
    workspace: CudaSlice<u8>,
    pages: Option<Pages>,
}

/// The pages of each sequence, in an order that is not theirs in memory.
struct Pages {
    table: CudaSlice<i32>,
    lengths: CudaSlice<i32>,
    /// The centres and the radii.
    radii: Option<(CudaSlice<f32>, CudaSlice<f32>)>,
}

/// How keys and values lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cache {
    Contiguous,
    Paged,
    PagedWithRadii,
}

impl Step {
    fn new(
        stream: &Arc<CudaStream>,
        (heads_q, heads_k, head_dim): (usize, usize, usize),
        batch: usize,
        keys: usize,
        cache: Cache,
    ) -> Result<Self> {
        let layer = Layer::new(stream, Attention::new(heads_q, heads_k, head_dim).build()?)?;
        let workspace = stream.alloc_zeros(layer.workspace_bytes(batch, 1, keys))?;
        let pages = (batch * keys / PAGE_SIZE) as i32;
        // An odd step visits all pages, whose number is a power of two.
        let table: Vec<i32> = (0..pages)
            .map(|i| i.wrapping_mul(4801) & (pages - 1))
            .collect();
        let radii = match cache {
            Cache::PagedWithRadii => Some((
                stream.alloc_zeros(heads_k * head_dim)?,
                stream.alloc_zeros(pages as usize * heads_k)?,
            )),
            _ => None,
        };
        let pages = match cache {
            Cache::Contiguous => None,
            _ => Some(Pages {
                table: stream.clone_htod(&table)?,
                lengths: stream.clone_htod(&vec![keys as i32; batch])?,
                radii,
            }),
        };
        let mut step = Self {
            stream: stream.clone(),
            batch,
            keys,
            q: stream.clone_htod(&numbers(batch * heads_q * head_dim))?,
            // Where every key is read, the time does not depend on the values.
            k: stream.alloc_zeros(batch * keys * heads_k * head_dim)?,
            v: stream.alloc_zeros(batch * keys * heads_k * head_dim)?,
            out: stream.alloc_zeros(batch * heads_q * head_dim)?,
            workspace,
            pages,
            layer,
        };
        step.fill()?;
        Ok(step)
    }

    /// Appends normal keys to all pages, where it matters what they are.
    fn fill(&mut self) -> Result<()> {
        let Some(Pages {
            radii: Some((centres, radii)),
            ..
        }) = &mut self.pages
        else {
            return Ok(());
        };
        let attention = self.layer.attention();
        let (heads, d) = (attention.heads_k(), attention.head_dim());
        let tokens = self.batch * self.keys;
        let shape = [tokens / PAGE_SIZE, PAGE_SIZE, heads, d];
        let at_once = tokens.min(1 << 14);
        let new = self.stream.clone_htod(&numbers(at_once * heads * d))?;
        for first in (0..tokens).step_by(at_once) {
            let slots: Vec<i64> = (first..first + at_once).map(|slot| slot as i64).collect();
            let new = View::new(&new, &[at_once, heads, d])?;
            self.layer.append_with_radii(
                &self.stream,
                new,
                new,
                ViewMut::new(&mut self.k, &shape)?,
                ViewMut::new(&mut self.v, &shape)?,
                &self.stream.clone_htod(&slots)?,
                centres,
                radii,
            )?;
        }
        Ok(())
    }

    /// The device's time for so many steps.
    fn time(&mut self, steps: u64) -> Result<Duration> {
        let attention = self.layer.attention();
        let (heads_q, heads_k, d) = (
            attention.heads_q(),
            attention.heads_k(),
            attention.head_dim(),
        );
        let shape_q = [self.batch, 1, heads_q, d];
        let shape_k = match self.pages {
            Some(_) => [self.batch * self.keys / PAGE_SIZE, PAGE_SIZE, heads_k, d],
            None => [self.batch, self.keys, heads_k, d],
        };
        let (q, k, v) = (
            View::new(&self.q, &shape_q)?,
            View::new(&self.k, &shape_k)?,
            View::new(&self.v, &shape_k)?,
        );
        let inputs = match &self.pages {
            Some(pages) => {
                let inputs = Inputs::paged(q, k, v, &pages.table, &pages.lengths);
                match &pages.radii {
                    Some((centres, radii)) => inputs.radii(centres, radii),
                    None => inputs,
                }
            }
            None => Inputs::new(q, k, v),
        };
        let (stream, layer, workspace) = (&self.stream, &self.layer, &mut self.workspace);
        let out = &mut self.out;
        timed(stream, steps, || {
            let out = ViewMut::new(out, &shape_q)?;
            Ok(layer.decode(stream, &inputs, out, None, workspace)?)
        })
    }
}

fn numbers(len: usize) -> Vec<bf16> {
    normal(1, 0, [0; 4]).map(bf16::from_f32).take(len).collect()
}

fn timed(
    stream: &Arc<CudaStream>,
    times: u64,
    mut work: impl FnMut() -> Result<()>,
) -> Result<Duration> {
    let flags = Some(CUevent_flags::CU_EVENT_DEFAULT);
    let start = stream.record_event(flags)?;
    for _ in 0..times {
        work()?;
    }
    let end = stream.record_event(flags)?;
    let milliseconds = start.elapsed_ms(&end)?;
    Ok(Duration::from_secs_f64(f64::from(milliseconds) / 1e3))
}

pub(super) fn rows(criterion: &mut Criterion, stream: &Arc<CudaStream>) {
    for (heads_q, heads_k, head_dim) in LAYERS {
        let name = format!("decode/bf16/{heads_q}q{heads_k}k/d{head_dim}");
        let mut group = criterion.benchmark_group(name);
        group
            .sample_size(20)
            .warm_up_time(Duration::from_millis(500))
            .measurement_time(Duration::from_secs(1));
        for batch in [1, 8, 64] {
            for keys in [1, 4, 16, 64, 128].map(|k| k << 10) {
                let bytes = 2 * 2 * batch * keys * heads_k * head_dim;
                if bytes > BYTES {
                    continue;
                }
                group.throughput(Throughput::Bytes(bytes as u64));
                for (name, cache) in [
                    ("contiguous", Cache::Contiguous),
                    ("paged", Cache::Paged),
                    ("horizon", Cache::PagedWithRadii),
                ] {
                    // Made only if asked for.
                    let mut made = None;
                    let id = BenchmarkId::new(name, format!("{batch}x{keys}"));
                    group.bench_function(id, |bencher| {
                        let step = made.get_or_insert_with(|| {
                            let layer = (heads_q, heads_k, head_dim);
                            Step::new(stream, layer, batch, keys, cache).expect("the step fits")
                        });
                        bencher.iter_custom(|steps| step.time(steps).expect("the device computes"));
                    });
                }
                let mut made = None;
                let id = BenchmarkId::new("copy", format!("{batch}x{keys}"));
                group.bench_function(id, |bencher| {
                    let (from, to) = made.get_or_insert_with(|| {
                        let zeros = || stream.alloc_zeros::<u8>(bytes / 2).expect("it fits");
                        (zeros(), zeros())
                    });
                    bencher.iter_custom(|times| {
                        timed(stream, times, || Ok(stream.memcpy_dtod(from, to)?))
                            .expect("the device copies")
                    });
                });
            }
        }
        group.finish();
    }
}
