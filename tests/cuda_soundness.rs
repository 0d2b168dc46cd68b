//! Every way in which safe code reaches a launch, a release or an unload on a GPU, used wrongly: an error, a wait, or nothing
//! that harms memory. They mean most on the emulated driver (`cargo xtask emulate test --workspace --test cuda_soundness`),
//! which does work as late as it may, and reports every access to memory that is not there, or not aligned, any more.
//!
//! What types make impossible stands in `src/cuda/mod.rs`, as examples that do not compile.
// With candle's CUDA the driver is linked: without one, the program does not start.
#![cfg(not(feature = "candle-cuda"))]

use std::io::Write as _;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flash_alibi::cuda::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use flash_alibi::cuda::cudarc::driver::{CudaContext, CudaSlice, CudaStream};
use flash_alibi::cuda::{
    self, Buffer, BufferMut, Error, Inputs, Layer, Result, Step, View, ViewMut,
};
use flash_alibi::{Attention, Horizon, Slopes};
use half::f16;

/// A device that no other test uses meanwhile; none, and a message, where there is no GPU.
fn device() -> Option<(MutexGuard<'static, ()>, Arc<CudaContext>)> {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    match cuda::context(0) {
        Ok(context) => Some((turn, context)),
        Err(why @ (Error::NoDriver { .. } | Error::NoDevice { .. })) => {
            let _ = writeln!(std::io::stderr(), "skipped: {why}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

const HEADS: usize = 2;
const HEAD_DIM: usize = 64;
const ROW: usize = HEADS * HEAD_DIM;
const KEYS: usize = 40;
const DENSE: [usize; 4] = [1, KEYS, HEADS, HEAD_DIM];
const PAGES: [usize; 4] = [KEYS / 8, 8, HEADS, HEAD_DIM];

fn attention() -> Attention {
    let attention = Attention::new(HEADS, HEADS, HEAD_DIM).slopes(Slopes::per_head(&[0.5, 0.25]));
    attention.build().unwrap()
}

fn layer(stream: &Arc<CudaStream>) -> Layer {
    Layer::new(stream, attention()).unwrap()
}

/// Keys and values of one: so is every output.
fn ones(stream: &Arc<CudaStream>, rows: usize) -> CudaSlice<f16> {
    stream.clone_htod(&vec![f16::ONE; rows * ROW]).unwrap()
}

fn dense(x: &dyn Buffer<f16>) -> Inputs<'_, f16> {
    let view = View::new(x, &DENSE).unwrap();
    Inputs::new(view, view, view)
}

#[track_caller]
fn assert_ones(stream: &Arc<CudaStream>, out: &CudaSlice<f16>) {
    let found = stream.clone_dtoh(out).unwrap();
    stream.synchronize().unwrap();
    assert!(found.iter().all(|&x| x == f16::ONE), "{found:?}");
}

/// A call without an lse, of rows that are as many as the keys.
fn attend(
    layer: &Layer,
    stream: &CudaStream,
    x: &dyn Buffer<f16>,
    out: &mut dyn BufferMut<f16>,
    workspace: &mut dyn BufferMut<u8>,
) -> Result<()> {
    let out = ViewMut::new(out, &DENSE)?;
    layer.forward(stream, &dense(x), out, None, workspace)
}

#[test]
fn a_workspace_may_begin_anywhere() {
    let Some((_turn, context)) = device() else {
        return;
    };
    let stream = context.new_stream().unwrap();
    let attention = |horizon| {
        let attention = Attention::new(HEADS, HEADS, HEAD_DIM).horizon(horizon);
        attention.build().unwrap()
    };
    let keys = 2048;
    let kv = ones(&stream, keys);
    let (q, shape_q, shape_k) = (
        ones(&stream, 1),
        [1, 1, HEADS, HEAD_DIM],
        [1, keys, HEADS, HEAD_DIM],
    );
    let k = View::new(&kv, &shape_k).unwrap();
    let inputs = Inputs::new(View::new(&q, &shape_q).unwrap(), k, k);
    for horizon in [Horizon::Off, Horizon::Certified { tolerance: 1e-3 }] {
        let layer = Layer::new(&stream, attention(horizon)).unwrap();
        let len = layer.workspace_bytes(1, 1, keys);
        let mut arena = stream.alloc_zeros::<u8>(len + 17).unwrap();
        for start in [0, 1, 2, 7, 15, 16, 17] {
            let mut workspace = arena.slice_mut(start..start + len);
            for decode in [false, true] {
                let mut out = stream.alloc_zeros::<f16>(ROW).unwrap();
                let to = ViewMut::new(&mut out, &shape_q).unwrap();
                let called = match decode {
                    true => layer.decode(&stream, &inputs, to, None, &mut workspace),
                    false => layer.prefill(&stream, &inputs, to, None, &mut workspace),
                };
                called.unwrap();
                assert_ones(&stream, &out);
            }
        }
    }
}

/// All that calls take, each in a buffer of its own.
struct Buffers {
    q: CudaSlice<f16>,
    k: CudaSlice<f16>,
    v: CudaSlice<f16>,
    out: CudaSlice<f16>,
    lse: CudaSlice<f32>,
    other_lse: CudaSlice<f32>,
    cu_seqlens_q: CudaSlice<i32>,
    cu_seqlens_k: CudaSlice<i32>,
    block_table: CudaSlice<i32>,
    seqused_k: CudaSlice<i32>,
    leftpad_k: CudaSlice<i32>,
    offset: CudaSlice<i32>,
    centres: CudaSlice<f32>,
    radii: CudaSlice<f32>,
    report: CudaSlice<u64>,
    workspace: CudaSlice<u8>,
    slot_mapping: CudaSlice<i64>,
    copies: CudaSlice<i64>,
}

/// The arguments of each function that launches.
const ARGUMENTS: [(&str, &[&str]); 5] = [
    (
        "paged",
        &[
            "q",
            "k",
            "v",
            "out",
            "lse",
            "cu_seqlens_q",
            "block_table",
            "seqused_k",
            "leftpad_k",
            "offset",
            "centres",
            "radii",
            "report",
            "workspace",
        ],
    ),
    ("packed", &["q", "k", "v", "out", "cu_seqlens_k"]),
    (
        "append",
        &[
            "k",
            "v",
            "k_pages",
            "v_pages",
            "slot_mapping",
            "centres",
            "radii",
        ],
    ),
    ("copy", &["copies", "k_pages", "v_pages", "radii"]),
    ("merge", &["out", "lse", "other_out", "other_lse"]),
];

impl Buffers {
    fn new(stream: &Arc<CudaStream>) -> Self {
        let floats = |n: usize| stream.clone_htod(&vec![1f32; n]).unwrap();
        let integers = |values: &[i32]| stream.clone_htod(values).unwrap();
        let pages: Vec<i32> = (0..PAGES[0] as i32).collect();
        Self {
            q: ones(stream, KEYS),
            k: ones(stream, KEYS),
            v: ones(stream, KEYS),
            out: ones(stream, KEYS),
            lse: floats(HEADS * KEYS),
            other_lse: floats(HEADS * KEYS),
            cu_seqlens_q: integers(&[0, KEYS as i32]),
            cu_seqlens_k: integers(&[0, KEYS as i32]),
            block_table: integers(&pages),
            seqused_k: integers(&[KEYS as i32]),
            leftpad_k: integers(&[0]),
            offset: integers(&[0]),
            centres: floats(ROW),
            radii: floats(PAGES[0] * HEADS),
            report: stream.clone_htod(&[0; 2 * HEADS]).unwrap(),
            workspace: stream.alloc_zeros(1 << 20).unwrap(),
            slot_mapping: stream
                .clone_htod(&(0..KEYS as i64).collect::<Vec<_>>())
                .unwrap(),
            copies: stream.clone_htod(&[0, 1]).unwrap(),
        }
    }

    /// Calls a function with the buffers, and for one argument with that of others.
    fn call(
        &mut self,
        function: &str,
        wrong: &str,
        others: &mut Self,
        layer: &Layer,
        stream: &CudaStream,
    ) -> Result<()> {
        macro_rules! pick {
            ($argument:literal, $field:ident) => {
                match wrong == $argument {
                    true => &others.$field,
                    false => &self.$field,
                }
            };
            (mut $argument:literal, $field:ident) => {
                match wrong == $argument {
                    true => &mut others.$field,
                    false => &mut self.$field,
                }
            };
        }
        let packed = [KEYS, HEADS, HEAD_DIM];
        match function {
            "paged" => {
                let inputs = Inputs::paged(
                    View::new(pick!("q", q), &packed)?,
                    View::new(pick!("k", k), &PAGES)?,
                    View::new(pick!("v", v), &PAGES)?,
                    pick!("block_table", block_table),
                    pick!("seqused_k", seqused_k),
                )
                .varlen_q(pick!("cu_seqlens_q", cu_seqlens_q), KEYS)
                .leftpad_k(pick!("leftpad_k", leftpad_k))
                .offset(pick!("offset", offset))
                .radii(pick!("centres", centres), pick!("radii", radii));
                let out = ViewMut::new(pick!(mut "out", out), &packed)?;
                let lse = pick!(mut "lse", lse);
                let workspace = pick!(mut "workspace", workspace);
                let report = pick!(mut "report", report);
                layer.prefill_with_report(stream, &inputs, out, Some(lse), workspace, report)
            }
            "packed" => {
                let inputs = Inputs::new(
                    View::new(pick!("q", q), &packed)?,
                    View::new(pick!("k", k), &packed)?,
                    View::new(pick!("v", v), &packed)?,
                )
                .varlen(
                    &self.cu_seqlens_q,
                    pick!("cu_seqlens_k", cu_seqlens_k),
                    KEYS,
                    KEYS,
                );
                let out = ViewMut::new(pick!(mut "out", out), &packed)?;
                layer.forward(stream, &inputs, out, None, &mut self.workspace)
            }
            "append" => layer.append_with_radii(
                stream,
                View::new(pick!("k", q), &packed)?,
                View::new(pick!("v", out), &packed)?,
                ViewMut::new(pick!(mut "k_pages", k), &PAGES)?,
                ViewMut::new(pick!(mut "v_pages", v), &PAGES)?,
                pick!("slot_mapping", slot_mapping),
                pick!("centres", centres),
                pick!(mut "radii", radii),
            ),
            "copy" => layer.copy_pages(
                stream,
                pick!("copies", copies),
                ViewMut::new(pick!(mut "k_pages", k), &PAGES)?,
                ViewMut::new(pick!(mut "v_pages", v), &PAGES)?,
                Some(pick!(mut "radii", radii)),
            ),
            "merge" => layer.merge_state(
                stream,
                ViewMut::new(pick!(mut "out", out), &packed)?,
                pick!(mut "lse", lse),
                View::new(pick!("other_out", q), &packed)?,
                pick!("other_lse", other_lse),
            ),
            _ => unreachable!("the functions are those of the table"),
        }
    }
}

/// Every argument of every function, once wrong.
fn every_argument(
    here: &Arc<CudaStream>,
    there: &Arc<CudaStream>,
    layer: &Layer,
    check: impl Fn(&str, Error),
) {
    let (mut own, mut others) = (Buffers::new(here), Buffers::new(there));
    for (function, arguments) in ARGUMENTS {
        let right = own.call(function, "none", &mut others, layer, here);
        right.unwrap_or_else(|error| panic!("{function}: {error}"));
        for argument in arguments {
            let called = own.call(function, argument, &mut others, layer, here);
            check(argument, called.unwrap_err());
        }
    }
    here.synchronize().unwrap();
}

/// Two `CudaContext`s of one device, as candle makes its own: one does not know of the other's streams.
#[test]
fn a_buffer_that_is_not_ordered_with_the_stream_is_an_error() {
    let Some((_turn, context)) = device() else {
        return;
    };
    let stream = context.new_stream().unwrap();
    let twin = CudaContext::new(0).unwrap();
    assert!(twin == context && !twin.is_managing_stream_synchronization());
    let theirs = twin.per_thread_stream();
    let layer = layer(&stream);
    every_argument(&stream, &theirs, &layer, |argument, error| match error {
        Error::Unordered {
            argument: found, ..
        } => assert_eq!(found, argument),
        error => panic!("{argument}: {error}"),
    });

    // The other way round, the buffer's events would not be recorded, even if the streams are one.
    let theirs = twin.default_stream();
    let ours = context.default_stream();
    let x = ones(&ours, KEYS);
    let mut out = theirs.alloc_zeros::<f16>(KEYS * ROW).unwrap();
    let mut workspace = theirs.alloc_zeros::<u8>(64).unwrap();
    let error = attend(&layer, &theirs, &x, &mut out, &mut workspace).unwrap_err();
    assert!(
        matches!(error, Error::Unordered { argument: "q", .. }),
        "{error}"
    );
}

#[test]
fn buffers_of_twins_that_both_track_events_are_waited_for() {
    let Some((_turn, context)) = device() else {
        return;
    };
    let stream = context.new_stream().unwrap();
    let twin = CudaContext::new(0).unwrap();
    let theirs = twin.new_stream().unwrap();
    let layer = layer(&stream);
    let x = ones(&theirs, KEYS);
    let mut out = stream.alloc_zeros::<f16>(KEYS * ROW).unwrap();
    let mut workspace = theirs.alloc_zeros::<u8>(64).unwrap();
    attend(&layer, &stream, &x, &mut out, &mut workspace).unwrap();
    // Released by their stream, once ours has read them.
    drop((x, workspace));
    theirs.synchronize().unwrap();
    assert_ones(&stream, &out);
}

/// cudarc orders by events only while a `CudaContext` has a stream that it has made.
#[test]
fn the_last_stream_may_be_dropped_after_a_call() {
    let Some((_turn, context)) = device() else {
        return;
    };
    let stream = context.new_stream().unwrap();
    let other = context.default_stream();
    let layer = layer(&stream);
    let x = ones(&other, KEYS);
    let mut out = other.alloc_zeros::<f16>(KEYS * ROW).unwrap();
    let mut workspace = other.alloc_zeros::<u8>(64).unwrap();
    attend(&layer, &stream, &x, &mut out, &mut workspace).unwrap();
    drop(stream);
    drop((x, workspace));
    // Done are the releases, unless they wait for the call.
    other.synchronize().unwrap();
    context.synchronize().unwrap();
    assert_ones(&other, &out);
}

#[test]
fn another_context_is_an_error() {
    let Some((_turn, context)) = device() else {
        return;
    };
    let stream = context.new_stream().unwrap();
    // One that is another to all who ask, though the driver knows it as the first device's.
    let (ordinal, device) = (context.ordinal() + 7, context.cu_device());
    // SAFETY: the device and the context are valid; and since it is never dropped, it does not destroy what it does not own.
    let other = unsafe { CudaContext::from_raw_context(ordinal, device, context.cu_ctx()) };
    let other = ManuallyDrop::new(other.unwrap());
    let theirs = other.new_stream().unwrap();
    let ours = layer(&stream);
    every_argument(&stream, &theirs, &ours, |argument, error| match error {
        Error::Context {
            argument: found, ..
        } => assert_eq!(found, argument),
        error => panic!("{argument}: {error}"),
    });
    let (x, mut out) = (ones(&theirs, KEYS), ones(&theirs, KEYS));
    let mut workspace = theirs.alloc_zeros::<u8>(64).unwrap();
    let error = attend(&ours, &theirs, &x, &mut out, &mut workspace).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Context {
                argument: "stream",
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn layers_may_be_dropped_while_their_calls_run() {
    let Some((_turn, context)) = device() else {
        return;
    };
    let stream = context.new_stream().unwrap();
    let x = ones(&stream, KEYS);
    let mut out = stream.alloc_zeros::<f16>(KEYS * ROW).unwrap();
    let mut pages = [(); 2].map(|()| stream.alloc_zeros::<f16>(KEYS * ROW).unwrap());
    let slots = stream
        .clone_htod(&(0..KEYS as i64).collect::<Vec<_>>())
        .unwrap();
    let mut workspace = stream.alloc_zeros::<u8>(64).unwrap();
    let attended = layer(&stream);
    attend(&attended, &stream, &x, &mut out, &mut workspace).unwrap();
    let [k_pages, v_pages] = &mut pages;
    let new = View::new(&x, &[KEYS, HEADS, HEAD_DIM]).unwrap();
    let appended = layer(&stream);
    appended
        .append(
            &stream,
            new,
            new,
            ViewMut::new(k_pages, &PAGES).unwrap(),
            ViewMut::new(v_pages, &PAGES).unwrap(),
            &slots,
        )
        .unwrap();
    // With the only layers, were they what keeps the kernels loaded.
    drop((attended, appended));
    assert_ones(&stream, &out);
    assert_ones(&stream, &pages[0]);
    assert_ones(&stream, &pages[1]);
}

/// So many layers that slopes are released which no layer has any more, while a call with such slopes has not run yet.
#[test]
fn slopes_are_released_when_nothing_reads_them() {
    let Some((_turn, context)) = device() else {
        return;
    };
    let (stream, maker) = (context.new_stream().unwrap(), context.new_stream().unwrap());
    let with_slope = |slope: f32| {
        let attention =
            Attention::new(HEADS, HEADS, HEAD_DIM).slopes(Slopes::per_head(&[slope; HEADS]));
        Layer::new(&maker, attention.build().unwrap()).unwrap()
    };
    let x = ones(&stream, KEYS);
    let mut out = stream.alloc_zeros::<f16>(KEYS * ROW).unwrap();
    let mut workspace = stream.alloc_zeros::<u8>(64).unwrap();
    let before = context.mem_get_info().unwrap().0;
    let called = with_slope(0.125);
    attend(&called, &stream, &x, &mut out, &mut workspace).unwrap();
    drop(called);
    for i in 0..1100 {
        drop(with_slope(1.0 + i as f32));
    }
    assert_ones(&stream, &out);
    // A block of 512 bytes each, were all of them kept.
    let kept = before - context.mem_get_info().unwrap().0;
    assert!(kept < 512 * 1024, "{kept} bytes");
}

fn begin(stream: &CudaStream) {
    let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    stream.begin_capture(mode).unwrap();
}

/// A stream whose context leaves the order of streams to the caller.
fn untracked(context: &Arc<CudaContext>) -> Arc<CudaStream> {
    // SAFETY: one stream uses everything.
    unsafe { context.disable_event_tracking() };
    context.new_stream().unwrap()
}

#[test]
fn a_capture_that_nobody_vouches_for_is_an_error() {
    let Some((_turn, context)) = device() else {
        return;
    };
    let stream = untracked(&context);
    let layer = layer(&stream);
    let (mut own, mut others) = (Buffers::new(&stream), Buffers::new(&stream));
    begin(&stream);
    for (function, _) in ARGUMENTS {
        let called = own.call(function, "none", &mut others, &layer, &stream);
        assert_eq!(called, Err(Error::Capturing), "{function}");
    }
    let inputs = dense(&own.q).seqused_k(&own.seqused_k);
    assert_eq!(inputs.check(&attention(), &stream), Err(Error::Capturing));
    let slopes = Slopes::per_head(&[0.75, 0.375]);
    let other = Attention::new(HEADS, HEADS, HEAD_DIM).slopes(slopes);
    let made = Layer::new(&stream, other.build().unwrap());
    assert!(matches!(made, Err(Error::Capturing)));
    // Slopes that are on the device are found.
    Layer::new(&stream, attention()).unwrap();
    // The capture is as it was.
    let graph = stream.end_capture(CUgraphInstantiate_flags(0)).unwrap();
    drop(graph);
    stream.synchronize().unwrap();
}

type Parts = (CudaSlice<f16>, CudaSlice<f16>, CudaSlice<u8>, Option<Layer>);

fn parts(stream: &Arc<CudaStream>) -> Parts {
    (
        ones(stream, KEYS),
        stream.alloc_zeros(KEYS * ROW).unwrap(),
        stream.alloc_zeros(64).unwrap(),
        Some(layer(stream)),
    )
}

/// A step that is launched and dropped at once: what it owned is released after its work.
#[test]
fn a_step_owns_what_its_graph_uses() {
    let Some((_turn, context)) = device() else {
        return;
    };
    let stream = untracked(&context);
    let capture = || {
        Step::capture(
            &stream,
            parts(&stream),
            |stream, (x, mut out, mut workspace, layer)| {
                attend(layer.unwrap(), stream, &x, &mut out, &mut workspace)
            },
        )
        .unwrap()
    };
    let mut step = capture();
    for _ in 0..2 {
        let (_, mut out, ..) = step.views();
        stream.memset_zeros(&mut out).unwrap();
        step.launch().unwrap();
    }
    let (_, out, ..) = step.into_inner();
    assert_ones(&stream, &out);

    let mut step = capture();
    step.launch().unwrap();
    drop(step);
    stream.synchronize().unwrap();
}

#[test]
fn a_step_holds_all_that_its_calls_use() {
    let Some((_turn, context)) = device() else {
        return;
    };
    let stream = untracked(&context);
    let ours = layer(&stream);
    let (mut own, mut others) = (Buffers::new(&stream), Buffers::new(&stream));
    for (function, _) in ARGUMENTS {
        let held = (ones(&stream, 1), layer(&stream));
        let captured = Step::capture(&stream, held, |stream, _| {
            own.call(function, "none", &mut others, &ours, stream)
        });
        assert!(matches!(captured, Err(Error::NotHeld { .. })), "{function}");
    }

    // What is read back to the host is no part of a graph.
    let captured = Step::capture(&stream, parts(&stream), |stream, (x, ..)| {
        dense(&x).check(&attention(), stream)
    });
    assert!(matches!(captured, Err(Error::Capturing)));

    // Each part that is not held, and a layer with other slopes.
    for missing in ["q", "out", "workspace", "slopes"] {
        let mut theirs = parts(&stream);
        let slopes =
            Attention::new(HEADS, HEADS, HEAD_DIM).slopes(Slopes::per_head(&[0.0625; HEADS]));
        let other = Layer::new(&stream, slopes.build().unwrap()).unwrap();
        let captured = Step::capture(&stream, parts(&stream), |stream, held| {
            let (x, mut out, mut workspace, layer) = held;
            let layer = match missing {
                "slopes" => &other,
                _ => layer.unwrap(),
            };
            match missing {
                "q" => attend(layer, stream, &theirs.0, &mut out, &mut workspace),
                "out" => attend(layer, stream, &x, &mut theirs.1, &mut workspace),
                "workspace" => attend(layer, stream, &x, &mut out, &mut theirs.2),
                _ => attend(layer, stream, &x, &mut out, &mut workspace),
            }
        });
        match captured {
            Err(Error::NotHeld { argument, .. }) => assert_eq!(argument, missing),
            other => panic!("{missing}: {:?}", other.map(drop)),
        }
    }
    // No capture is left under way.
    stream.synchronize().unwrap();
}

#[test]
fn a_step_needs_one_stream_and_no_events() {
    let Some((_turn, context)) = device() else {
        return;
    };
    let nothing = |stream: &Arc<CudaStream>, held| {
        Step::<CudaSlice<u8>>::capture(stream, held, |_, _| Ok(())).map(drop)
    };
    let stream = context.new_stream().unwrap();
    let buffer = stream.alloc_zeros::<u8>(1).unwrap();
    assert!(matches!(
        nothing(&stream, buffer),
        Err(Error::Tracked {
            argument: "stream",
            ..
        })
    ));

    let twin = CudaContext::new(0).unwrap();
    let tracked = twin.new_stream().unwrap().alloc_zeros::<u8>(1).unwrap();
    let stream = untracked(&context);
    assert!(matches!(
        nothing(&stream, tracked),
        Err(Error::Tracked {
            argument: "held",
            ..
        })
    ));
    let other = context.new_stream().unwrap();
    let buffer = other.alloc_zeros::<u8>(1).unwrap();
    assert!(matches!(
        nothing(&stream, buffer),
        Err(Error::Unordered {
            argument: "held",
            ..
        })
    ));
    for default in [context.default_stream(), context.per_thread_stream()] {
        let buffer = default.alloc_zeros::<u8>(1).unwrap();
        let error = nothing(&default, buffer).unwrap_err();
        assert!(error.to_string().starts_with("stream: "), "{error}");
    }
}

#[test]
fn a_capture_ends_with_an_error_or_a_panic_inside() {
    let Some((_turn, context)) = device() else {
        return;
    };
    let stream = untracked(&context);
    let failed = Step::capture(&stream, parts(&stream), |stream, held| {
        let (x, mut out, mut workspace, layer) = held;
        let layer = layer.unwrap();
        attend(layer, stream, &x, &mut out, &mut workspace)?;
        let mut short = out.slice_mut(1..);
        attend(layer, stream, &x, &mut short, &mut workspace)
    });
    assert!(matches!(failed, Err(Error::Argument(_))));
    stream.synchronize().unwrap();

    let panicked = catch_unwind(AssertUnwindSafe(|| {
        Step::capture(&stream, parts(&stream), |_, _| panic!("on purpose"))
    }));
    assert!(panicked.is_err());
    stream.synchronize().unwrap();
    // Nor are later captures taken to be the step's.
    let (x, mut out, mut workspace, layer) = parts(&stream);
    begin(&stream);
    let called = attend(&layer.unwrap(), &stream, &x, &mut out, &mut workspace);
    drop(stream.end_capture(CUgraphInstantiate_flags(0)).unwrap());
    assert_eq!(called, Err(Error::Capturing));
}

/// Lengths, row indices, pages, slots and positions that do not exist.
#[test]
fn what_lies_on_the_device_may_be_anything() {
    let Some((_turn, context)) = device() else {
        return;
    };
    let stream = context.new_stream().unwrap();
    let layer = layer(&stream);
    let (mut own, mut others) = (Buffers::new(&stream), Buffers::new(&stream));
    let wild = [i32::MIN, -1, 41, 1 << 30, i32::MAX];
    for (i, &value) in wild.iter().enumerate() {
        let slots: Vec<i64> = (0..KEYS as i64)
            .map(|t| [i64::MIN, -1, 40 + t, i64::MAX, t << 32][i])
            .collect();
        let copies = [[0, -1], [5, 0], [i64::MAX, 1], [1, i64::MIN], [1 << 32, 0]][i];
        stream
            .memcpy_htod(&[value; PAGES[0]], &mut own.block_table)
            .unwrap();
        stream.memcpy_htod(&[value], &mut own.seqused_k).unwrap();
        stream
            .memcpy_htod(&[wild[(i + 1) % 5]], &mut own.leftpad_k)
            .unwrap();
        stream
            .memcpy_htod(&[wild[(i + 2) % 5]], &mut own.offset)
            .unwrap();
        for cu in [&mut own.cu_seqlens_q, &mut own.cu_seqlens_k] {
            stream.memcpy_htod(&[value, wild[(i + 3) % 5]], cu).unwrap();
        }
        stream.memcpy_htod(&slots, &mut own.slot_mapping).unwrap();
        stream.memcpy_htod(&copies, &mut own.copies).unwrap();
        for (function, _) in ARGUMENTS {
            own.call(function, "none", &mut others, &layer, &stream)
                .unwrap();
            stream
                .synchronize()
                .unwrap_or_else(|error| panic!("{function} with {value}: {error}"));
        }
        let pages = View::new(&own.k, &PAGES).unwrap();
        let row = [1, 1, HEADS, HEAD_DIM];
        let q = View::new(&own.q, &row).unwrap();
        let inputs = Inputs::paged(q, pages, pages, &own.block_table, &own.seqused_k)
            .leftpad_k(&own.leftpad_k)
            .offset(&own.offset);
        let out = ViewMut::new(&mut own.out, &row).unwrap();
        layer
            .decode(&stream, &inputs, out, None, &mut own.workspace)
            .unwrap();
        stream.synchronize().unwrap();
    }
}

#[test]
fn buffers_of_no_elements_are_not_touched() {
    let Some((_turn, context)) = device() else {
        return;
    };
    let stream = context.new_stream().unwrap();
    let layer = layer(&stream);
    let x = ones(&stream, KEYS);
    let (past, none) = (x.slice(x.len()..), x.slice(..0));
    let mut out = stream.alloc_zeros::<f16>(KEYS * ROW).unwrap();
    let mut workspace = stream.alloc_zeros::<u8>(1).unwrap();
    let mut no_workspace = workspace.slice_mut(1..);
    let rows = |rows| [1, rows, HEADS, HEAD_DIM];
    for empty in [&past, &none] {
        // No queries, no keys, no pages.
        let keys = View::new(&x, &rows(KEYS)).unwrap();
        let nothing = View::new(empty, &rows(0)).unwrap();
        let mut end = out.slice_mut(KEYS * ROW..);
        let to = ViewMut::new(&mut end, &rows(0)).unwrap();
        let inputs = Inputs::new(nothing, keys, keys);
        layer
            .forward(&stream, &inputs, to, None, &mut no_workspace)
            .unwrap();
        let to = ViewMut::new(&mut out, &rows(KEYS)).unwrap();
        let inputs = Inputs::new(keys, nothing, nothing);
        layer
            .prefill(&stream, &inputs, to, None, &mut no_workspace)
            .unwrap();
        let found = stream.clone_dtoh(&out).unwrap();
        assert!(found.iter().all(|&x| x == f16::ZERO));
        stream.synchronize().unwrap();
    }
}

/// Sizes whose products overflow, or that 32 bits do not hold.
#[test]
fn sizes_beyond_all_memory_are_errors() {
    let Some((_turn, context)) = device() else {
        return;
    };
    let stream = context.new_stream().unwrap();
    let layer = layer(&stream);
    let x = ones(&stream, KEYS);
    let huge = [1 << 31, 1 << 40, usize::MAX / ROW, usize::MAX];
    for rows in huge {
        assert!(View::new(&x, &[1, rows, HEADS, HEAD_DIM]).is_err());
        assert!(View::new(&x, &[rows, rows, HEADS, HEAD_DIM]).is_err());
        // One row, again and again.
        let shape = [1, rows, HEADS, HEAD_DIM];
        let Ok(keys) = View::strided(&x, &shape, &[0, 0, HEAD_DIM, 1]) else {
            continue;
        };
        let q = View::new(&x, &[1, 1, HEADS, HEAD_DIM]).unwrap();
        let mut out = ones(&stream, 1);
        let to = ViewMut::new(&mut out, &[1, 1, HEADS, HEAD_DIM]).unwrap();
        let mut workspace = stream.alloc_zeros::<u8>(64).unwrap();
        let inputs = Inputs::new(q, keys, keys);
        let error = layer.forward(&stream, &inputs, to, None, &mut workspace);
        assert!(matches!(error, Err(Error::Argument(_))), "{rows} rows");
    }
    assert!(layer.workspace_bytes(usize::MAX, 16, usize::MAX) > 1 << 60);
}
