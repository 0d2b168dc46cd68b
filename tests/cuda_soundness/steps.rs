//! Captures, and what their graphs use.

use super::arguments::{ARGUMENTS, Buffers};
use super::*;

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

/// A graph that somebody else has may be launched when the step is gone.
#[test]
fn a_capture_that_its_record_ends_is_no_step() {
    let Some((_turn, context)) = device() else {
        return;
    };
    let stream = untracked(&context);
    let mut taken = None;
    let step = Step::capture(
        &stream,
        parts(&stream),
        |stream, (x, mut out, mut workspace, layer)| {
            let layer = layer.expect("held");
            attend(layer, stream, &x, &mut out, &mut workspace)?;
            taken = stream.end_capture(CUgraphInstantiate_flags(0)).unwrap();
            Ok(())
        },
    );
    let error = step.map(drop).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("record: found an end of the capture"),
        "{error}"
    );
    let graph = taken.expect("something was captured");
    graph.launch().unwrap();
    stream.synchronize().unwrap();
}
