//! How layers are called: from threads and streams, in graphs, and wrongly.

use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::thread;

use flash_alibi::cuda::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use flash_alibi::cuda::cudarc::driver::{CudaContext, CudaSlice, CudaStream};
use flash_alibi::cuda::{self, BufferMut, Error, Inputs, Layer, View, ViewMut};
use flash_alibi::{Attention, Slopes};
use flash_alibi_testing::device::OnGpu;
use flash_alibi_testing::{Case, Lengths, UNTOUCHED, expect};
use half::{bf16, f16};
use libtest_mimic::Trial;

use crate::device::{alone_on_gpu, on_gpu};

fn a_device_that_is_not_there() {
    on_gpu(|_| {
        let found = CudaContext::device_count().unwrap() as usize;
        for ordinal in [found, usize::MAX] {
            let error = cuda::context(ordinal).unwrap_err();
            assert_eq!(error, Error::NoDevice { ordinal, found });
        }
    });
}

/// A problem for tests of how it is launched: a batch of two, grouped heads, padding.
fn plain_case(seed: u64) -> Case {
    let sequence = |k, leftpad| Lengths {
        q: 130,
        k,
        leftpad,
        unused: 150 - k,
    };
    Case {
        sequences: vec![sequence(150, 0), sequence(140, 9)],
        seed,
        ..Case::dense(0, 0, 0, (4, 2), 64)
    }
}

fn threads_and_streams_share_a_layer() {
    on_gpu(|stream| {
        let layer = Layer::new(stream, plain_case(0).attention()).unwrap();
        thread::scope(|scope| {
            for turn in 0..4 {
                let layer = &layer;
                scope.spawn(move || {
                    let own = stream.context().new_stream().unwrap();
                    for again in 0..3 {
                        let case = plain_case(10 * turn + again);
                        let laid_out = case.lay_out::<f16>();
                        let out = laid_out.out.like(f16::from_f32(UNTOUCHED));
                        let lse = vec![UNTOUCHED; laid_out.lse_len()];
                        let mut call =
                            OnGpu::new(&own, &laid_out.problem(&out, Some(&lse))).unwrap();
                        let mut workspace = call.workspace(layer, &own).unwrap();
                        call.attend(layer, &own, false, &mut workspace).unwrap();
                        let rows = laid_out.rows(&call.outputs(&own).unwrap()).unwrap();
                        expect(&case, laid_out.check(&rows));
                    }
                });
            }
        });
    });
}

/// What one stream writes, another attends to, and the first reads: nobody waits but the streams.
fn streams_wait_for_each_other() {
    on_gpu(|stream| {
        let other = stream.context().new_stream().unwrap();
        let layer = Layer::new(stream, plain_case(0).attention()).unwrap();
        for seed in 0..8 {
            let case = plain_case(seed);
            let laid_out = case.lay_out::<bf16>();
            let out = laid_out.out.like(bf16::from_f32(UNTOUCHED));
            let lse = vec![UNTOUCHED; laid_out.lse_len()];
            let mut call = OnGpu::new(stream, &laid_out.problem(&out, Some(&lse))).unwrap();
            let mut workspace = call.workspace(&layer, stream).unwrap();
            call.attend(&layer, &other, false, &mut workspace).unwrap();
            let rows = laid_out.rows(&call.outputs(stream).unwrap()).unwrap();
            expect(&case, laid_out.check(&rows));
        }
    });
}

fn a_captured_call_is_replayed_on_other_data() {
    alone_on_gpu(|context| {
        // SAFETY: one stream uses everything.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().unwrap();
        let case = plain_case(1);
        let laid_out = case.lay_out::<f16>();
        let out = laid_out.out.like(f16::from_f32(UNTOUCHED));
        let lse = vec![UNTOUCHED; laid_out.lse_len()];
        let mut call = OnGpu::new(&stream, &laid_out.problem(&out, Some(&lse))).unwrap();
        let layer = Layer::new(&stream, case.attention()).unwrap();

        let mut workspace = call.workspace(&layer, &stream).unwrap();
        stream
            .begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
            .unwrap();
        let captured = || call.attend(&layer, &stream, false, &mut workspace);
        // SAFETY: the graph is dropped before the layer and the buffers.
        unsafe { cuda::in_unowned_capture(captured) }.unwrap();
        let graph = stream
            .end_capture(CUgraphInstantiate_flags(0))
            .unwrap()
            .expect("something was captured");

        // Capturing computes nothing.
        let untouched = call.outputs(&stream).unwrap();
        assert!(untouched.out.iter().all(|&x| x == f16::from_f32(UNTOUCHED)));
        for seed in [1, 2, 3] {
            let case = plain_case(seed);
            let laid_out = case.lay_out::<f16>();
            for (tensor, data) in [
                (&mut call.q, &laid_out.q),
                (&mut call.k, &laid_out.k),
                (&mut call.v, &laid_out.v),
            ] {
                stream.memcpy_htod(&data.data, &mut tensor.buffer).unwrap();
            }
            graph.launch().unwrap();
            let rows = laid_out.rows(&call.outputs(&stream).unwrap()).unwrap();
            expect(&case, laid_out.check(&rows));
        }
    });
}

/// Small buffers of one problem, to be called wrongly: `[2, 3, 2, 8]`, or packed `[6, 2, 8]`.
struct Small {
    x: CudaSlice<f16>,
    out: CudaSlice<f16>,
    lse: CudaSlice<f32>,
    cu_seqlens: CudaSlice<i32>,
    used: CudaSlice<i32>,
}

const DENSE: [usize; 4] = [2, 3, 2, 8];
const PACKED: [usize; 3] = [6, 2, 8];

impl Small {
    fn new(stream: &Arc<CudaStream>) -> Self {
        Self {
            x: stream.clone_htod(&[f16::ONE; 96]).unwrap(),
            out: stream.clone_htod(&[f16::NAN; 96]).unwrap(),
            lse: stream.clone_htod(&[f32::NAN; 13]).unwrap(),
            cu_seqlens: stream.clone_htod(&[0, 3, 6]).unwrap(),
            used: stream.clone_htod(&[3, 2]).unwrap(),
        }
    }

    fn layer(stream: &Arc<CudaStream>) -> Layer {
        let attention = Attention::new(2, 2, 8).slopes(Slopes::zero(2));
        Layer::new(stream, attention.build().unwrap()).unwrap()
    }
}

fn inputs<'a>(shape: &[usize], [q, k, v]: [&'a CudaSlice<f16>; 3]) -> Inputs<'a, f16> {
    let view = |x| View::new(x, shape).unwrap();
    Inputs::new(view(q), view(k), view(v))
}

/// The error of a call, after which the output is as before.
fn refused(
    layer: &Layer,
    stream: &CudaStream,
    inputs: Inputs<'_, f16>,
    shape: &[usize],
    out: &mut CudaSlice<f16>,
    lse: &mut dyn BufferMut<f32>,
) -> Error {
    let mut workspace = out.stream().alloc_zeros::<u8>(1).unwrap();
    let view = ViewMut::new(out, shape).unwrap();
    let error = (layer.prefill(stream, &inputs, view, Some(lse), &mut workspace)).unwrap_err();
    let out = out.stream().clone_dtoh(out).unwrap();
    stream.context().synchronize().unwrap();
    assert!(out.iter().all(|x| x.is_nan()));
    error
}

fn wrong_lengths_are_errors_and_launch_nothing() {
    on_gpu(|stream| {
        let layer = Small::layer(stream);
        let Small {
            x,
            mut out,
            mut lse,
            cu_seqlens: cu,
            used,
        } = Small::new(stream);
        let none = used.slice(..0);
        let (dense, packed) = (inputs(&DENSE, [&x; 3]), inputs(&PACKED, [&x; 3]));
        let cases: [(Inputs<f16>, &[usize], usize, &str); 8] = [
            (
                dense,
                &DENSE,
                11,
                "lse: found 11 elements, expected 12 for [batch, heads_q, seqlen_q] = [2, 2, 3]",
            ),
            (
                packed.varlen(&cu, &cu, 3, 3),
                &PACKED,
                13,
                "lse: found 13 elements, expected 12 for [heads_q, total_q] = [2, 6]",
            ),
            (
                packed,
                &PACKED,
                12,
                "q: found shape [6, 2, 8], expected [batch, seqlen_q, 2, 8]",
            ),
            (
                dense.varlen(&cu, &cu, 3, 3),
                &DENSE,
                12,
                "q: found shape [2, 3, 2, 8], expected [total_q, 2, 8]",
            ),
            (
                dense.seqused_k(&cu),
                &DENSE,
                12,
                "seqused_k: found 3 elements, expected batch = 2",
            ),
            (
                dense.leftpad_k(&none),
                &DENSE,
                12,
                "leftpad_k: found 0 elements, expected batch = 2",
            ),
            (
                packed.varlen(&cu, &used, 3, 3),
                &PACKED,
                12,
                "cu_seqlens_k: found 2 elements, expected 3, as for q",
            ),
            (
                packed.varlen(&none, &none, 3, 3),
                &PACKED,
                12,
                "cu_seqlens_q: found 0 elements, expected batch + 1, at least 1",
            ),
        ];
        for (inputs, shape, len, expected) in cases {
            let mut lse = lse.slice_mut(..len);
            let error = refused(&layer, stream, inputs, shape, &mut out, &mut lse);
            assert_eq!(error.to_string(), expected);
        }
    });
}

fn a_report_adds_up_what_the_horizon_keeps() {
    on_gpu(|stream| {
        let slopes = Slopes::per_head(&[0.5, 1e-6]);
        let attention = Attention::new(2, 2, 8).slopes(slopes).build().unwrap();
        let layer = Layer::new(stream, attention).unwrap();
        let shape = [1, 2304, 2, 8];
        let len = shape.iter().product();
        let x = stream.clone_htod(&vec![f16::ONE; len]).unwrap();
        let mut out = stream.clone_htod(&vec![f16::NAN; len]).unwrap();
        let mut workspace = stream
            .alloc_zeros(layer.workspace_bytes(1, shape[1], shape[1]))
            .unwrap();
        let mut report = stream.clone_htod(&[0u64; 5]).unwrap();
        let mut attend = |report: &mut dyn BufferMut<u64>| {
            let inputs = inputs(&shape, [&x; 3]);
            let out = ViewMut::new(&mut out, &shape).unwrap();
            layer.prefill_with_report(stream, &inputs, out, None, &mut workspace, report)
        };
        let error = attend(&mut report).unwrap_err();
        let expected = "report: found 5 elements, expected 2 * heads_q = 4";
        assert_eq!(error.to_string(), expected);
        let mut of_heads = report.slice_mut(..4);
        attend(&mut of_heads).unwrap();
        attend(&mut of_heads).unwrap();
        // Rows of a block, as the kernel for this device has them; tiles have 128 keys.
        let rows = match stream.context().compute_capability().unwrap() {
            (9, 0) => 192,
            _ => 128,
        };
        let (mut kept, mut all) = (0, 0);
        for first in (0..2304u64).step_by(rows) {
            let last_tile = (first + rows as u64 - 1) / 128;
            all += last_tile + 1;
            // 127 steps of 0.5 beside a key are beyond what a tolerance of 2^-24 sees.
            kept += last_tile + 1 - (first / 128).saturating_sub(1);
        }
        let found = stream.clone_dtoh(&report).unwrap();
        assert_eq!(found, [2 * kept, 2 * all, 2 * all, 2 * all, 0]);
    });
}

fn views_must_fit_their_buffers() {
    on_gpu(|stream| {
        let mut buffer = stream.clone_htod(&[f16::ONE; 95]).unwrap();
        let expected = flash_alibi::Error::Length {
            argument: "buffer",
            found: 95,
            expected: "at least 96 for shape [2, 3, 2, 8] and strides [48, 16, 8, 1]".into(),
        };
        assert_eq!(View::new(&buffer, &DENSE).err(), Some(expected));
        let strides = [0, 16, 8, 1];
        assert!(View::strided(&buffer, &DENSE, &strides).is_ok());
        assert!(ViewMut::new(&mut buffer, &DENSE).is_err());
        let error = ViewMut::strided(&mut buffer, &DENSE, &strides).err();
        let expected = "strides: found strides [0, 16, 8, 1]";
        assert!(error.unwrap().to_string().starts_with(expected));
    });
}

/// A context that is another to all who ask, though the driver knows it as the first device's.
fn other_context(context: &Arc<CudaContext>) -> ManuallyDrop<Arc<CudaContext>> {
    let (device, handle) = (context.cu_device(), context.cu_ctx());
    // SAFETY: the device and the context are valid; and since it is never dropped, it does not destroy what it does not own.
    let other = unsafe { CudaContext::from_raw_context(context.ordinal() + 7, device, handle) };
    ManuallyDrop::new(other.unwrap())
}

fn streams_and_buffers_of_other_contexts_are_errors() {
    on_gpu(|stream| {
        let other = other_context(stream.context()).default_stream();
        let layer = Small::layer(stream);
        let (mut here, mut there) = (Small::new(stream), Small::new(&other));
        let wrong = |argument, stream: &CudaStream, inputs, out: &mut _, lse: &mut CudaSlice<_>| {
            let lse = &mut lse.slice_mut(..12);
            let error = refused(&layer, stream, inputs, &PACKED, out, lse);
            match error {
                Error::Context {
                    argument: found,
                    found_device: 7,
                    expected_device: 0,
                    ..
                } => assert_eq!(found, argument),
                error => panic!("{argument}: {error}"),
            }
        };
        let (x, y) = (&here.x, &there.x);
        let (cu, cu_there) = (&here.cu_seqlens, &there.cu_seqlens);
        let (out, lse) = (&mut here.out, &mut here.lse);
        let of = |views| inputs(&PACKED, views).varlen(cu, cu, 3, 3);
        let right = of([x, x, x]);
        wrong("stream", &other, right, out, lse);
        wrong("q", stream, of([y, x, x]), out, lse);
        wrong("k", stream, of([x, y, x]), out, lse);
        wrong("v", stream, of([x, x, y]), out, lse);
        let inputs = right.varlen(cu_there, cu, 3, 3);
        wrong("cu_seqlens_q", stream, inputs, out, lse);
        let inputs = right.varlen(cu, cu_there, 3, 3);
        wrong("cu_seqlens_k", stream, inputs, out, lse);
        wrong("seqused_k", stream, right.seqused_k(&there.used), out, lse);
        wrong("leftpad_k", stream, right.leftpad_k(&there.used), out, lse);
        wrong("out", stream, right, &mut there.out, lse);
        wrong("lse", stream, right, out, &mut there.lse);
    });
}

pub fn trials() -> Vec<Trial> {
    trials![
        a_device_that_is_not_there,
        threads_and_streams_share_a_layer,
        streams_wait_for_each_other,
        a_captured_call_is_replayed_on_other_data,
        wrong_lengths_are_errors_and_launch_nothing,
        a_report_adds_up_what_the_horizon_keeps,
        views_must_fit_their_buffers,
        streams_and_buffers_of_other_contexts_are_errors,
    ]
}
