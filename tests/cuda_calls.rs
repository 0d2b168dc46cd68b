//! What a call asks of the CUDA driver, counted by the emulator's. On any other driver the test says so and passes:
//! `cargo xtask emulate test --test cuda_calls`.

use std::ffi::{CStr, c_char};
use std::io::Write as _;

use flash_alibi::Attention;
use flash_alibi::cuda::cudarc::driver::sys;
use flash_alibi::cuda::{self, Error, Inputs, Layer, View, ViewMut};
use half::f16;

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

#[test]
fn a_call_launches_one_kernel_and_waits_for_nothing() {
    let skipped = |why: String| {
        let _ = writeln!(std::io::stderr(), "skipped: {why}");
    };
    let context = match cuda::context(0) {
        Ok(context) => context,
        Err(why @ (Error::NoDriver { .. } | Error::NoDevice { .. })) => {
            return skipped(why.to_string());
        }
        Err(error) => panic!("{error}"),
    };
    let Some(counter) = counter() else {
        return skipped("the driver does not count calls".into());
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

    // The first call too: the layer has loaded what it needs.
    for _ in 0..2 {
        let before: Vec<u64> = NONE_OF.iter().map(|name| count(name)).collect();
        let launches = count(c"cuLaunchKernel");
        let into = ViewMut::new(&mut out, &shape).unwrap();
        layer.prefill(&stream, &inputs, into, None).unwrap();
        assert_eq!(count(c"cuLaunchKernel"), launches + 1);
        for (name, before) in NONE_OF.iter().zip(before) {
            assert_eq!(count(name), before, "{name:?}");
        }
    }
    assert_eq!(stream.clone_dtoh(&out).unwrap(), [f16::ZERO; 640]);
}
