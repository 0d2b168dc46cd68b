//! Steps of a paged cache, in a graph and with radii.

use std::sync::Arc;

use flash_alibi::cuda::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use flash_alibi::cuda::cudarc::driver::{CudaSlice, CudaStream};
use flash_alibi::cuda::{self, Buffer, BufferMut, Inputs, Layer, Step, View, ViewMut};
use flash_alibi::{Attention, Slopes, cpu};
use flash_alibi_testing::{Case, Lengths, SlopeKind, expect, normal};
use half::f16;
use libtest_mimic::Trial;

use crate::device::{capturing_stream, stream};

/// Steps of decoding from a paged cache: each appends a token a sequence and attends, and all are replays of one graph.
fn a_captured_step_is_replayed_while_lengths_grow() {
    const BATCH: usize = 3;
    const PAGES: usize = 40;
    const COLUMNS: usize = 12;
    const PAGE_SIZE: usize = 8;
    let (heads_q, heads_k, d) = (4, 2, 64);
    let (_alone, stream) = capturing_stream();
    let attention = Attention::new(heads_q, heads_k, d)
        .slopes(Slopes::geometric(heads_q))
        .build()
        .unwrap();
    let layer = Layer::new(&stream, attention.clone()).unwrap();

    let (shape_q, shape_new) = ([BATCH, 1, heads_q, d], [BATCH, heads_k, d]);
    let shape_pages = [PAGES, PAGE_SIZE, heads_k, d];
    let elements = |shape: &[usize]| shape.iter().product::<usize>();
    let zeros = |shape: &[usize]| stream.alloc_zeros::<f16>(elements(shape)).unwrap();
    // Nothing of a page that is not written yet may be read.
    let poison = vec![f16::NAN; elements(&shape_pages)];
    let mut host_pages = [poison.clone(), poison];
    let table: Vec<i32> = (0..BATCH * COLUMNS)
        .map(|i| (i * 7 % PAGES) as i32)
        .collect();
    let mut lengths = [0i32, 29, 64];
    let mut slots = [0i64; BATCH];

    let random = |tag: u64, step: usize, n: usize| -> Vec<f16> {
        let numbers = normal(7, tag, [step, 0, 0, 0]).map(f16::from_f32);
        numbers.take(n).collect()
    };
    // What the caches hold before.
    for b in 0..BATCH {
        for j in 0..lengths[b] as usize {
            let row = table[b * COLUMNS + j / PAGE_SIZE] as usize * PAGE_SIZE + j % PAGE_SIZE;
            for (tag, pages) in host_pages.iter_mut().enumerate() {
                let n = heads_k * d;
                pages[row * n..][..n].copy_from_slice(&random(10 + tag as u64, b * 1000 + j, n));
            }
        }
    }
    let len = layer.workspace_bytes(BATCH, 1, COLUMNS * PAGE_SIZE);
    let held = (
        zeros(&shape_q),
        [zeros(&shape_new), zeros(&shape_new)],
        host_pages
            .each_ref()
            .map(|host| stream.clone_htod(host).unwrap()),
        stream.clone_htod(&table).unwrap(),
        stream.clone_htod(&lengths).unwrap(),
        stream.clone_htod(&slots).unwrap(),
        zeros(&shape_q),
        stream.alloc_zeros::<u8>(len).unwrap(),
        layer,
    );
    let mut step = Step::capture(&stream, held, |stream, held| {
        let (q, [k, v], pages, table, seqused_k, slots, mut out, mut workspace, layer) = held;
        let [mut k_pages, mut v_pages] = pages;
        let mut k_pages = ViewMut::new(&mut k_pages, &shape_pages)?;
        let mut v_pages = ViewMut::new(&mut v_pages, &shape_pages)?;
        let [k, v] = [View::new(&k, &shape_new)?, View::new(&v, &shape_new)?];
        layer.append(stream, k, v, k_pages.reborrow(), v_pages.reborrow(), &slots)?;
        let q = View::new(&q, &shape_q)?;
        let inputs = Inputs::paged(q, k_pages.view(), v_pages.view(), &table, &seqused_k);
        let out = ViewMut::new(&mut out, &shape_q)?;
        layer.forward(stream, &inputs, out, None, &mut workspace)
    })
    .unwrap();

    for turn in 0..12 {
        for b in 0..BATCH {
            let j = lengths[b] as usize;
            slots[b] =
                (table[b * COLUMNS + j / PAGE_SIZE] as usize * PAGE_SIZE + j % PAGE_SIZE) as i64;
            lengths[b] += 1;
        }
        let new_q = random(1, turn, elements(&shape_q));
        let new_k = random(2, turn, elements(&shape_new));
        let new_v = random(3, turn, elements(&shape_new));
        let (mut q, [mut k, mut v], _, _, mut seqused_k, mut slot_mapping, ..) = step.views();
        stream.memcpy_htod(&new_q, &mut q).unwrap();
        stream.memcpy_htod(&new_k, &mut k).unwrap();
        stream.memcpy_htod(&new_v, &mut v).unwrap();
        stream.memcpy_htod(&slots, &mut slot_mapping).unwrap();
        stream.memcpy_htod(&lengths, &mut seqused_k).unwrap();
        step.launch().unwrap();
        let (.., out, _, _) = step.views();
        let found = stream.clone_dtoh(&out).unwrap();

        for (pages, new) in host_pages.iter_mut().zip([&new_k, &new_v]) {
            for (b, &slot) in slots.iter().enumerate() {
                let n = heads_k * d;
                pages[slot as usize * n..][..n].copy_from_slice(&new[b * n..][..n]);
            }
        }
        let view = |data, shape: &[usize]| flash_alibi::View::new(data, shape).unwrap();
        let inputs = flash_alibi::Inputs::paged(
            view(&new_q, &shape_q),
            view(&host_pages[0], &shape_pages),
            view(&host_pages[1], &shape_pages),
            &table,
            &lengths,
        );
        let exact = cpu::oracle::attend(&attention, &inputs).unwrap();
        for (found, exact) in found.iter().zip(&exact.out) {
            let error = (f64::from(*found) - exact).abs();
            assert!(error <= 4e-3, "step {turn}: {found}, exact {exact}");
        }
    }
}

/// Sequences of a paged cache that keeps radii: on the device, and beside it on the host.
struct Cache {
    stream: Arc<CudaStream>,
    host: [Vec<f16>; 2],
    pools: [CudaSlice<f16>; 2],
    centres: CudaSlice<f32>,
    radii: CudaSlice<f32>,
    table: Vec<i32>,
    lengths: Vec<i32>,
}

impl Cache {
    const HEADS: usize = 2;
    const HEAD_DIM: usize = 64;
    const ROW: usize = Self::HEADS * Self::HEAD_DIM;
    const PAGE_SIZE: usize = 32;
    const COLUMNS: usize = 96;
    const KEYS: usize = Self::COLUMNS * Self::PAGE_SIZE;

    fn new(stream: &Arc<CudaStream>, batch: usize) -> Self {
        let pages = batch * Self::COLUMNS;
        // Nothing of a page that is not written yet may be read, and no radius that is not begun.
        let poison = vec![f16::NAN; pages * Self::PAGE_SIZE * Self::ROW];
        let centre = normal(8, 8, [0; 4]).map(|x| x / 4.0);
        let centre: Vec<f32> = centre.take(Self::ROW).collect();
        Self {
            stream: stream.clone(),
            pools: [(); 2].map(|()| stream.clone_htod(&poison).unwrap()),
            host: [poison.clone(), poison],
            centres: stream.clone_htod(&centre).unwrap(),
            radii: stream
                .clone_htod(&vec![f32::NAN; pages * Self::HEADS])
                .unwrap(),
            table: (0..pages).map(|i| (i * 5 % pages) as i32).collect(),
            lengths: vec![0; batch],
        }
    }

    fn shape(&self) -> [usize; 4] {
        [
            self.table.len(),
            Self::PAGE_SIZE,
            Self::HEADS,
            Self::HEAD_DIM,
        ]
    }

    /// The slot of the next token of a sequence, and what keys and values it has.
    fn next(&mut self, b: usize) -> (i64, [Vec<f16>; 2]) {
        let j = self.lengths[b] as usize;
        self.lengths[b] += 1;
        let page = self.table[b * Self::COLUMNS + j / Self::PAGE_SIZE] as usize;
        let slot = page * Self::PAGE_SIZE + j % Self::PAGE_SIZE;
        let new = [10, 11].map(|tag| -> Vec<f16> {
            let numbers = normal(7, tag, [b, j, 0, 0]).map(f16::from_f32);
            numbers.take(Self::ROW).collect()
        });
        for (host, new) in self.host.iter_mut().zip(&new) {
            host[slot * Self::ROW..][..Self::ROW].copy_from_slice(new);
        }
        (slot as i64, new)
    }

    /// Appends so many tokens to a sequence at once.
    fn prompt(&mut self, layer: &Layer, b: usize, tokens: usize) {
        let mut slots = Vec::new();
        let mut new = [Vec::new(), Vec::new()];
        for _ in 0..tokens {
            let (slot, token) = self.next(b);
            slots.push(slot);
            for (new, token) in new.iter_mut().zip(token) {
                new.extend(token);
            }
        }
        let [k, v] = new.map(|new| self.stream.clone_htod(&new).unwrap());
        let slots = self.stream.clone_htod(&slots).unwrap();
        self.append(layer, &k, &v, &slots);
    }

    fn append(
        &mut self,
        layer: &Layer,
        k: &CudaSlice<f16>,
        v: &CudaSlice<f16>,
        slots: &CudaSlice<i64>,
    ) {
        let (shape, pool) = ([slots.len(), Self::HEADS, Self::HEAD_DIM], self.shape());
        let [k_pages, v_pages] = &mut self.pools;
        let new = [k, v].map(|x| View::new(x, &shape).unwrap());
        let pages = [k_pages, v_pages].map(|x| ViewMut::new(x, &pool).unwrap());
        let ([k, v], [k_pages, v_pages]) = (new, pages);
        let (centres, radii) = (&self.centres, &mut self.radii);
        layer
            .append_with_radii(&self.stream, k, v, k_pages, v_pages, slots, centres, radii)
            .unwrap();
    }
}

/// Prompts and tokens on a cache that keeps radii, longer than their horizon.
fn a_cache_with_radii_follows_the_oracle() {
    let (_shared, stream) = stream();
    let sequences = [(130, 2600), (3, 40), (70, 2100)].map(|(q, k)| Lengths {
        q,
        k,
        ..Lengths::default()
    });
    let case = Case {
        sequences: sequences.to_vec(),
        packed: true,
        slopes: SlopeKind::All(0.3),
        ..Case::dense(0, 0, 0, (4, 2), 64)
    };
    let mut paged = case.lay_out_paged::<f16>(16);
    paged.keep_radii(true);
    for decode in [true, false] {
        let rows = paged.attend_on_device(&stream, decode).unwrap();
        let checked = paged.dense.check(&rows);
        expect(
            &case,
            checked.map_err(|why| format!("decode {decode}: {why}")),
        );
    }
}

/// Steps as above, of a cache that keeps radii: all are replays of one graph, while sequences grow far beyond the horizon.
fn a_captured_step_leaves_out_what_lies_beyond_the_horizon() {
    const BATCH: usize = 2;
    const HEADS_Q: usize = 4;
    let (_alone, stream) = capturing_stream();
    let attention = Attention::new(HEADS_Q, Cache::HEADS, Cache::HEAD_DIM)
        .slopes(Slopes::per_head(&[0.1, 0.2, 0.3, 0.1]))
        .build()
        .unwrap();
    let layer = Layer::new(&stream, attention.clone()).unwrap();
    let mut cache = Cache::new(&stream, BATCH);
    cache.prompt(&layer, 0, 50);
    cache.prompt(&layer, 1, 2500);
    // Values beyond the horizon would spoil everything.
    let mut values = cache.host[1].clone();
    for j in 0..1500 {
        let page = cache.table[Cache::COLUMNS + j / Cache::PAGE_SIZE] as usize;
        let slot = page * Cache::PAGE_SIZE + j % Cache::PAGE_SIZE;
        values[slot * Cache::ROW..][..Cache::ROW].fill(f16::NAN);
    }
    stream.memcpy_htod(&values, &mut cache.pools[1]).unwrap();

    let shape_q = [BATCH, 1, HEADS_Q, Cache::HEAD_DIM];
    let mut q = stream.alloc_zeros::<f16>(shape_q.iter().product()).unwrap();
    let mut out = stream.alloc_zeros::<f16>(q.len()).unwrap();
    let mut new = [(); 2].map(|()| stream.alloc_zeros::<f16>(BATCH * Cache::ROW).unwrap());
    let mut slots = stream.alloc_zeros::<i64>(BATCH).unwrap();
    let mut seqused_k = stream.alloc_zeros::<i32>(BATCH).unwrap();
    let block_table = stream.clone_htod(&cache.table).unwrap();
    let len = layer.workspace_bytes(BATCH, 1, Cache::KEYS);
    let mut workspace = stream.alloc_zeros::<u8>(len).unwrap();

    stream
        .begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        .unwrap();
    let shape = cache.shape();
    let captured = || {
        cache.append(&layer, &new[0], &new[1], &slots);
        let inputs = Inputs::paged(
            View::new(&q, &shape_q).unwrap(),
            View::new(&cache.pools[0], &shape).unwrap(),
            View::new(&cache.pools[1], &shape).unwrap(),
            &block_table,
            &seqused_k,
        )
        .radii(&cache.centres, &cache.radii);
        let to = ViewMut::new(&mut out, &shape_q).unwrap();
        layer
            .decode(&stream, &inputs, to, None, &mut workspace)
            .unwrap();
    };
    // SAFETY: the graph is dropped before the layer and the buffers.
    unsafe { cuda::in_unowned_capture(captured) };
    let graph = stream
        .end_capture(CUgraphInstantiate_flags(0))
        .unwrap()
        .expect("something was captured");

    for step in 0..6 {
        let mut slots_of_step = Vec::new();
        let mut new_of_step = [Vec::new(), Vec::new()];
        for b in 0..BATCH {
            let (slot, token) = cache.next(b);
            slots_of_step.push(slot);
            for (new, token) in new_of_step.iter_mut().zip(token) {
                new.extend(token);
            }
        }
        let numbers = normal(7, 1, [step, 0, 0, 0]).map(f16::from_f32);
        let new_q: Vec<f16> = numbers.take(q.len()).collect();
        stream.memcpy_htod(&new_q, &mut q).unwrap();
        for (new, of_step) in new.iter_mut().zip(&new_of_step) {
            stream.memcpy_htod(of_step, new).unwrap();
        }
        stream.memcpy_htod(&slots_of_step, &mut slots).unwrap();
        stream.memcpy_htod(&cache.lengths, &mut seqused_k).unwrap();
        graph.launch().unwrap();
        let found = stream.clone_dtoh(&out).unwrap();

        let view = |data, shape: &[usize]| flash_alibi::View::new(data, shape).unwrap();
        let inputs = flash_alibi::Inputs::paged(
            view(&new_q, &shape_q),
            view(&cache.host[0], &shape),
            view(&cache.host[1], &shape),
            &cache.table,
            &cache.lengths,
        );
        let exact = cpu::oracle::attend(&attention, &inputs).unwrap();
        for (found, exact) in found.iter().zip(&exact.out) {
            let error = (f64::from(*found) - exact).abs();
            assert!(error <= 4e-3, "step {step}: {found}, exact {exact}");
        }
        // More tokens between the steps.
        cache.prompt(&layer, 0, 450);
    }
}

fn radii_that_do_not_fit() {
    let (_shared, stream) = stream();
    let layer = Layer::new(&stream, Attention::new(2, 2, 64).build().unwrap()).unwrap();
    let mut cache = Cache::new(&stream, 1);
    let zeros = |n: usize| stream.alloc_zeros::<f16>(n).unwrap();
    let (x, mut out, marks) = (zeros(128), zeros(128), cache.host[0].clone());
    let (short, mut short_mut) = (
        cache.centres.slice(1..),
        stream.alloc_zeros::<f32>(5).unwrap(),
    );
    let (table, used) = (
        stream.clone_htod(&cache.table).unwrap(),
        stream.clone_htod(&[100]).unwrap(),
    );
    let mut workspace = stream.alloc_zeros::<u8>(4 << 20).unwrap();
    let (shape, row) = (cache.shape(), [1, 1, 2, 64]);
    let pool = View::new(&cache.pools[0], &shape).unwrap();
    let paged = Inputs::paged(View::new(&x, &row).unwrap(), pool, pool, &table, &used);
    let one = View::new(&x, &row).unwrap();
    let mut decode = |inputs: Inputs<'_, f16>| {
        let out = ViewMut::new(&mut out, &row).unwrap();
        let result = layer.decode(&stream, &inputs, out, None, &mut workspace);
        result.unwrap_err().to_string()
    };
    let centres_expected = "centres: found 127 elements, expected heads_k * head_dim = 128";
    let radii_expected = "radii: found 5 elements, expected pages * heads_k = 192";
    assert_eq!(decode(paged.radii(&short, &cache.radii)), centres_expected);
    assert_eq!(
        decode(paged.radii(&cache.centres, &short_mut)),
        radii_expected
    );
    assert_eq!(
        decode(Inputs::new(one, one, one).radii(&cache.centres, &cache.radii)),
        "radii: found those of keys that are not in pages, expected a block_table"
    );

    let slots = stream.alloc_zeros::<i64>(1).unwrap();
    let new = View::new(&x, &[1, 2, 64]).unwrap();
    let [k_pages, v_pages] = &mut cache.pools;
    let mut append = |centres: &dyn Buffer<f32>, radii: &mut dyn BufferMut<f32>| {
        let [k, v] = [&mut *k_pages, &mut *v_pages].map(|x| ViewMut::new(x, &shape).unwrap());
        let result = layer.append_with_radii(&stream, new, new, k, v, &slots, centres, radii);
        result.unwrap_err().to_string()
    };
    assert_eq!(append(&short, &mut cache.radii), centres_expected);
    assert_eq!(append(&cache.centres, &mut short_mut), radii_expected);
    // Nothing was written.
    let found = stream.clone_dtoh(&cache.pools[0]).unwrap();
    assert!(
        found
            .iter()
            .zip(&marks)
            .all(|(a, b)| a.to_bits() == b.to_bits())
    );
}

pub fn trials() -> Vec<Trial> {
    trials![
        a_captured_step_is_replayed_while_lengths_grow,
        a_cache_with_radii_follows_the_oracle,
        a_captured_step_leaves_out_what_lies_beyond_the_horizon,
        radii_that_do_not_fit,
    ]
}
