//! What a call asks of the CUDA driver: how often, which the emulator's counts, and that others wait for it, which shows
//! best there, since it does work as late as it may (`cargo xtask emulate test --test cuda driver_calls`).

use std::ffi::{CStr, c_char};
use std::sync::Arc;

use flash_alibi::cuda::cudarc::driver::{CudaSlice, CudaStream, sys};
use flash_alibi::cuda::{Inputs, Layer, View, ViewMut};
use flash_alibi::{Attention, Slopes};
use half::f16;
use libtest_mimic::{Completion, Trial};

use crate::device::alone;

/// A function that says how often another was called, if the driver has it.
type Calls = unsafe extern "C" fn(*const c_char) -> u64;

fn counter() -> Option<Calls> {
    // SAFETY: the driver is there, or `cuda::context` would have failed; if the function is, it is of that type.
    unsafe {
        let found = sys::culib().get::<Calls>(b"ptx_emulator_driver_calls");
        found.ok().map(|calls| *calls)
    }
}

/// What takes long, or makes the host wait for the device.
const NONE_OF: &[&CStr] = &[
    c"cuCtxSynchronize",
    c"cuEventCreate",
    c"cuEventQuery",
    c"cuEventSynchronize",
    c"cuFuncGetAttribute",
    c"cuFuncSetAttribute",
    c"cuDeviceGetAttribute",
    c"cuMemAllocAsync",
    c"cuMemAlloc_v2",
    c"cuMemFreeAsync",
    c"cuMemFree_v2",
    c"cuMemHostAlloc",
    c"cuMemcpyDtoDAsync_v2",
    c"cuMemcpyDtoHAsync_v2",
    c"cuMemcpyDtoH_v2",
    c"cuMemcpyHtoDAsync_v2",
    c"cuMemcpyHtoD_v2",
    c"cuMemsetD8Async",
    c"cuMemsetD8_v2",
    c"cuModuleGetFunction",
    c"cuModuleLoadData",
    c"cuStreamCreate",
    c"cuStreamQuery",
    c"cuStreamSynchronize",
];

/// A call on one stream, and what another stream does at once; then what the call wrote.
fn call_and_then(
    then: impl FnOnce(&Arc<CudaStream>, Layer, [CudaSlice<f16>; 3], [CudaSlice<i32>; 2]),
) {
    let (_alone, context) = alone();
    let (stream, other) = (context.new_stream().unwrap(), context.new_stream().unwrap());
    let attention = Attention::new(2, 2, 64).slopes(Slopes::per_head(&[0.5, 0.25]));
    let called = Layer::new(&stream, attention.build().unwrap()).unwrap();
    let shape = [1, 5, 2, 64];
    let tensors = [(); 3].map(|()| stream.clone_htod(&[f16::ONE; 640]).unwrap());
    let lengths = [5, 0].map(|length| stream.clone_htod(&[length]).unwrap());
    let mut out = stream.alloc_zeros::<f16>(640).unwrap();
    let mut lse = stream.alloc_zeros::<f32>(10).unwrap();

    let [q, k, v] = tensors
        .each_ref()
        .map(|tensor| View::new(tensor, &shape).unwrap());
    let inputs = Inputs::new(q, k, v)
        .seqused_k(&lengths[0])
        .leftpad_k(&lengths[1]);
    let into = ViewMut::new(&mut out, &shape).unwrap();
    let mut workspace = stream.alloc_zeros::<u8>(1).unwrap();
    called
        .prefill(&other, &inputs, into, Some(&mut lse), &mut workspace)
        .unwrap();
    then(&stream, called, tensors, lengths);
    assert_eq!(stream.clone_dtoh(&out).unwrap(), [f16::ONE; 640]);
    let lse = stream.clone_dtoh(&lse).unwrap();
    assert!(lse.iter().all(|&x| (8.0..10.0).contains(&x)), "{lse:?}");
}

fn inputs_may_be_overwritten_after_a_call() {
    for i in 0..5 {
        call_and_then(|stream, layer, mut tensors, mut lengths| {
            match tensors.get_mut(i) {
                Some(tensor) => stream.memcpy_htod(&[f16::NAN; 640], tensor).unwrap(),
                None => stream.memcpy_htod(&[3], &mut lengths[i - 3]).unwrap(),
            }
            // Dropping buffers waits, which is not the matter here.
            std::mem::forget((layer, tensors, lengths));
        });
    }
}

fn inputs_may_be_dropped_after_a_call() {
    call_and_then(|_, layer, tensors, lengths| {
        drop((tensors, lengths));
        std::mem::forget(layer);
    });
}

fn a_layer_may_be_dropped_after_a_call() {
    call_and_then(|_, layer, tensors, lengths| {
        drop(layer);
        std::mem::forget((tensors, lengths));
    });
}

fn a_call_launches_one_kernel_and_waits_for_nothing() -> Completion {
    let (_alone, context) = alone();
    let Some(counter) = counter() else {
        return Completion::ignored_with("the driver does not count calls");
    };
    // SAFETY: a string that ends in a NUL.
    let count = |name: &CStr| unsafe { counter(name.as_ptr()) };

    let stream = context.new_stream().unwrap();
    let attention = Attention::new(2, 2, 64).build().unwrap();
    let layer = Layer::new(&stream, attention).unwrap();
    let shape = [1, 5, 2, 64];
    let x = stream.alloc_zeros::<f16>(640).unwrap();
    let mut out = stream.alloc_zeros::<f16>(640).unwrap();
    let view = || View::new(&x, &shape).unwrap();
    let inputs = Inputs::new(view(), view(), view());
    let mut workspace = stream.alloc_zeros::<u8>(1).unwrap();

    // The first call too: the layer has loaded what it needs.
    for _ in 0..2 {
        let before: Vec<u64> = NONE_OF.iter().map(|name| count(name)).collect();
        let launches = || count(c"cuLaunchKernel") + count(c"cuLaunchKernelEx");
        let launched = launches();
        let into = ViewMut::new(&mut out, &shape).unwrap();
        layer
            .prefill(&stream, &inputs, into, None, &mut workspace)
            .unwrap();
        assert_eq!(launches(), launched + 1);
        for (name, before) in NONE_OF.iter().zip(before) {
            assert_eq!(count(name), before, "{name:?}");
        }
    }
    assert_eq!(stream.clone_dtoh(&out).unwrap(), [f16::ZERO; 640]);
    Completion::Completed
}

pub fn trials() -> Vec<Trial> {
    trials![
        inputs_may_be_overwritten_after_a_call,
        inputs_may_be_dropped_after_a_call,
        a_layer_may_be_dropped_after_a_call,
        a_call_launches_one_kernel_and_waits_for_nothing,
    ]
}
