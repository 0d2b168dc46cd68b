//! Decoding on a GPU: the kernels against the oracle, and steps of a paged cache in a graph. Where there is no GPU, tests say
//! so and pass.

mod support;

use std::io::Write as _;
use std::sync::Arc;

use flash_alibi::cuda::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use flash_alibi::cuda::cudarc::driver::{CudaContext, CudaStream};
use flash_alibi::cuda::{self, Error, Inputs, Layer, View, ViewMut};
use flash_alibi::{Attention, Slopes, cpu};
use half::{bf16, f16};
use proptest::prelude::*;
use support::emulator::OnDevice;
use support::strategy::{case, config, fail};
use support::{Case, Lengths, expect, random};

/// How much work one random case may be.
const WORK: usize = 500_000;

/// The first device's context; none, and a message, where there is no GPU.
fn context() -> Option<Arc<CudaContext>> {
    match cuda::context(0) {
        Ok(context) => Some(context),
        Err(why @ (Error::NoDriver { .. } | Error::NoDevice { .. })) => {
            // Unlike eprintln!, this shows when the test passes.
            let _ = writeln!(std::io::stderr(), "skipped: {why}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn check<T: OnDevice + cuda::Element>(
    stream: &Arc<CudaStream>,
    case: &Case,
    page_size: usize,
) -> Result<(), String> {
    let laid_out = case.lay_out::<T>();
    laid_out.check(&laid_out.decode_on_device(stream)?)?;
    let paged = case.lay_out_paged::<T>(page_size);
    for decode in [true, false] {
        let rows = paged.attend_on_device(stream, decode)?;
        let checked = paged.dense.check(&rows);
        checked.map_err(|why| format!("pages, decode {decode}: {why}"))?;
    }
    Ok(())
}

#[test]
fn random_problems_follow_the_oracle() {
    let Some(context) = context() else { return };
    let stream = context.new_stream().unwrap();
    let cases = (case(WORK), prop::sample::select(vec![8usize, 16, 64, 256]));
    proptest!(config(20), |((case, page_size) in cases)| {
        fail(check::<f16>(&stream, &case, page_size))?;
        fail(check::<bf16>(&stream, &case, page_size))?;
    });
}

#[test]
fn batches_follow_the_oracle() {
    let Some(context) = context() else { return };
    let stream = context.new_stream().unwrap();
    for (batch, heads, head_dim, queries) in [
        (32, (4, 4), 64, 1),
        (7, (8, 2), 128, 1),
        (3, (71, 1), 64, 2),
        (2, (8, 1), 256, 16),
    ] {
        let keys = |b: usize| 61 * b % 1000;
        let sequences = (0..batch).map(|b| Lengths {
            q: queries.min(keys(b).max(1)),
            k: keys(b),
            ..Lengths::default()
        });
        let case = Case {
            sequences: sequences.collect(),
            packed: true,
            ..Case::dense(0, 0, 0, heads, head_dim)
        };
        expect(&case, check::<bf16>(&stream, &case, 16));
    }
}

#[test]
fn a_workspace_that_is_too_short_is_an_error() {
    let Some(context) = context() else { return };
    let stream = context.new_stream().unwrap();
    let layer = Layer::new(&stream, Attention::new(2, 1, 64).build().unwrap()).unwrap();
    let (q, k) = ([1, 1, 2, 64], [1, 1024, 1, 64]);
    let zeros = |n: usize| stream.alloc_zeros::<f16>(n).unwrap();
    let (x, keys, mut out) = (zeros(128), zeros(65536), zeros(128));
    let view = View::new(&keys, &k).unwrap();
    let inputs = Inputs::new(View::new(&x, &q).unwrap(), view, view);
    let len = layer.decode_workspace(1, 1, 1024);
    let mut decode = |len: usize| {
        let mut workspace = stream.alloc_zeros::<f32>(len).unwrap();
        let out = ViewMut::new(&mut out, &q).unwrap();
        layer.decode(&stream, &inputs, out, None, &mut workspace)
    };
    decode(len).unwrap();
    assert_eq!(
        decode(len - 1).unwrap_err().to_string(),
        format!(
            "workspace: found {} elements, expected at least {len}",
            len - 1
        )
    );
}

/// Steps of decoding from a paged cache: each appends a token a sequence and attends, and all are replays of one graph.
#[test]
fn a_captured_step_is_replayed_while_lengths_grow() {
    const BATCH: usize = 3;
    const PAGES: usize = 40;
    const COLUMNS: usize = 12;
    const PAGE_SIZE: usize = 8;
    let (heads_q, heads_k, d) = (4, 2, 64);
    let Some(context) = context() else { return };
    // SAFETY: one stream uses everything.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream().unwrap();
    let attention = Attention::new(heads_q, heads_k, d)
        .slopes(Slopes::geometric(heads_q))
        .build()
        .unwrap();
    let layer = Layer::new(&stream, attention.clone()).unwrap();

    let (shape_q, shape_new) = ([BATCH, 1, heads_q, d], [BATCH, heads_k, d]);
    let shape_pages = [PAGES, PAGE_SIZE, heads_k, d];
    let elements = |shape: &[usize]| shape.iter().product::<usize>();
    let zeros = |shape: &[usize]| stream.alloc_zeros::<f16>(elements(shape)).unwrap();
    let (mut q, mut k, mut v, mut out) = (
        zeros(&shape_q),
        zeros(&shape_new),
        zeros(&shape_new),
        zeros(&shape_q),
    );
    // Nothing of a page that is not written yet may be read.
    let poison = vec![f16::NAN; elements(&shape_pages)];
    let mut pages = [(); 2].map(|()| stream.clone_htod(&poison).unwrap());
    let mut host_pages = [poison.clone(), poison];
    let table: Vec<i32> = (0..BATCH * COLUMNS)
        .map(|i| (i * 7 % PAGES) as i32)
        .collect();
    let block_table = stream.clone_htod(&table).unwrap();
    let mut lengths = [0i32, 29, 64];
    let mut slots = [0i64; BATCH];
    let mut seqused_k = stream.clone_htod(&lengths).unwrap();
    let mut slot_mapping = stream.clone_htod(&slots).unwrap();
    let len = layer.decode_workspace(BATCH, 1, COLUMNS * PAGE_SIZE);
    let mut workspace = stream.alloc_zeros::<f32>(len).unwrap();

    let random = |tag: u64, step: usize, n: usize| -> Vec<f16> {
        let value = |i| f16::from_f32(random(7, tag, [step, i, 0, 0]));
        (0..n).map(value).collect()
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
    for (pages, host) in pages.iter_mut().zip(&host_pages) {
        stream.memcpy_htod(host, pages).unwrap();
    }

    stream
        .begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        .unwrap();
    let [k_pages, v_pages] = &mut pages;
    layer
        .kernels()
        .append(
            &stream,
            View::new(&k, &shape_new).unwrap(),
            View::new(&v, &shape_new).unwrap(),
            ViewMut::new(k_pages, &shape_pages).unwrap(),
            ViewMut::new(v_pages, &shape_pages).unwrap(),
            &slot_mapping,
        )
        .unwrap();
    let inputs = Inputs::paged(
        View::new(&q, &shape_q).unwrap(),
        View::new(k_pages, &shape_pages).unwrap(),
        View::new(v_pages, &shape_pages).unwrap(),
        &block_table,
        &seqused_k,
    );
    let to = ViewMut::new(&mut out, &shape_q).unwrap();
    layer
        .decode(&stream, &inputs, to, None, &mut workspace)
        .unwrap();
    let graph = stream
        .end_capture(CUgraphInstantiate_flags(0))
        .unwrap()
        .expect("something was captured");

    for step in 0..12 {
        for b in 0..BATCH {
            let j = lengths[b] as usize;
            slots[b] =
                (table[b * COLUMNS + j / PAGE_SIZE] as usize * PAGE_SIZE + j % PAGE_SIZE) as i64;
            lengths[b] += 1;
        }
        let new_q = random(1, step, elements(&shape_q));
        let new_k = random(2, step, elements(&shape_new));
        let new_v = random(3, step, elements(&shape_new));
        stream.memcpy_htod(&new_q, &mut q).unwrap();
        stream.memcpy_htod(&new_k, &mut k).unwrap();
        stream.memcpy_htod(&new_v, &mut v).unwrap();
        stream.memcpy_htod(&slots, &mut slot_mapping).unwrap();
        stream.memcpy_htod(&lengths, &mut seqused_k).unwrap();
        graph.launch().unwrap();
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
            assert!(error <= 4e-3, "step {step}: {found}, exact {exact}");
        }
    }
}

/// The kernels cut off what does not fit; a check names it.
#[test]
fn what_lies_on_the_device_can_be_checked() {
    let Some(context) = context() else { return };
    let stream = context.new_stream().unwrap();
    let attention = Attention::new(2, 1, 64).build().unwrap();
    let x = stream.alloc_zeros::<f16>(4 * 8 * 64).unwrap();
    let check = |table: &[i32], lengths: &[i32], max_seqlen_k| {
        let (table, lengths) = (
            stream.clone_htod(table).unwrap(),
            stream.clone_htod(lengths).unwrap(),
        );
        let (q, k) = ([2, 1, 2, 64], [4, 8, 1, 64]);
        let [q, k] = [View::new(&x, &q).unwrap(), View::new(&x, &k).unwrap()];
        let inputs = Inputs::paged(q, k, k, &table, &lengths).max_seqlen_k(max_seqlen_k);
        let checked = inputs.check(&attention, &stream);
        checked.map_err(|error| error.to_string())
    };
    // What no query needs may be anything.
    assert_eq!(check(&[3, 0, 1, -9], &[16, 8], 16), Ok(()));
    for (table, lengths, max_seqlen_k, message) in [
        (
            [3, 4, 1, 2],
            [16, 8],
            16,
            "block_table: found 4 at index [0, 1], expected one of the 4 pages, from 0",
        ),
        (
            [3, 0, 1, 2],
            [16, 17],
            16,
            "seqused_k: found 17 at index 1, expected 0 to max_pages_per_sequence * page_size = 16",
        ),
        (
            [3, 0, 1, 2],
            [9, 16],
            12,
            "max_seqlen_k: found 12, expected at least 16, the rows of sequence 1",
        ),
    ] {
        assert_eq!(check(&table, &lengths, max_seqlen_k), Err(message.into()));
    }
}
