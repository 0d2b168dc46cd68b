//! Programs that use CUDA through cudarc, with this driver as the system's. Each runs in a process of its own, since the
//! driver is found, and set up, once a process.

#![cfg(target_os = "linux")]

mod common;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use cudarc::driver::result::{self, stream::StreamKind};
use cudarc::driver::sys::{
    self, CUdevice_attribute, CUevent_flags, CUevent_wait_flags, CUfunction_attribute,
    CUgraphInstantiate_flags, CUresult, CUstreamCaptureMode, CUstreamCaptureStatus,
};
use cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaSlice, CudaStream, DevicePtr, DeviceRepr,
    DriverError, LaunchConfig, PushKernelArg,
};
use cudarc::nvrtc::Ptx;

use common::{begin, code, errors, image, one_block, run};

#[derive(Clone, Copy)]
#[repr(C)]
struct Scale {
    factor: f32,
    n: i32,
}

// SAFETY: as the kernel has it.
unsafe impl DeviceRepr for Scale {}

fn saxpy(
    stream: &Arc<CudaStream>,
    module: &Arc<CudaModule>,
    (x, y): (&CudaSlice<f32>, &mut CudaSlice<f32>),
    factor: f32,
) -> Result<(), DriverError> {
    let function = module.load_function("saxpy")?;
    let n = x.len() as i32;
    let scale = Scale { factor, n };
    let mut launch = stream.launch_builder(&function);
    launch.arg(x).arg(y).arg(&scale);
    // SAFETY: the kernel takes these.
    unsafe { launch.launch(one_block(128)) }.map(drop)
}

#[test]
fn vectors_are_copied_filled_and_added() {
    run("vectors_are_copied_filled_and_added", &[], || {
        let (context, stream, module) = begin();
        assert_eq!(context.compute_capability().unwrap(), (9, 0));
        assert_eq!(context.name().unwrap(), "PTX emulator");
        let x = stream.clone_htod(&[1.0f32, 2.0, 3.0]).unwrap();
        let mut y = stream.alloc_zeros::<f32>(3).unwrap();
        saxpy(&stream, &module, (&x, &mut y), 2.0).unwrap();
        let z = stream.clone_dtod(&y).unwrap();
        saxpy(&stream, &module, (&z, &mut y), 10.0).unwrap();
        assert_eq!(stream.clone_dtoh(&y).unwrap(), [22.0, 44.0, 66.0]);
        let none = stream.clone_htod(&[0f32; 0]).unwrap();
        assert_eq!(stream.clone_dtoh(&none).unwrap(), [0f32; 0]);
        let missing = module.load_function("missing");
        assert_eq!(code(missing), CUresult::CUDA_ERROR_NOT_FOUND);
    });
}

#[test]
fn modules_have_their_own_variables() {
    run("modules_have_their_own_variables", &[], || {
        let (context, stream, module) = begin();
        let images = [
            "kernels.ptx",
            "lz4.fatbin",
            "plain.fatbin",
            "kernels.fatbin",
        ];
        let others = images.map(|name| context.load_module(image(name)).unwrap());
        let count = |module: &Arc<CudaModule>| {
            let function: CudaFunction = module.load_function("count").unwrap();
            let mut out = stream.alloc_zeros::<i32>(1).unwrap();
            let mut launch = stream.launch_builder(&function);
            launch.arg(&mut out);
            // SAFETY: the kernel takes these.
            unsafe { launch.launch(one_block(1)) }.unwrap();
            stream.clone_dtoh(&out).unwrap()[0]
        };
        assert_eq!((count(&module), count(&module)), (11, 12));
        assert_eq!(others.each_ref().map(count), [11; 4]);
    });
}

/// Work is done late: what does not wait does not see it.
#[test]
fn streams_and_events_order_work() {
    run("streams_and_events_order_work", &[], || {
        let (context, stream, module) = begin();
        // SAFETY: the streams are ordered below.
        unsafe { context.disable_event_tracking() };
        let other = context.new_stream().unwrap();
        let x = stream.clone_htod(&[1.0f32; 4]).unwrap();
        let mut y = stream.clone_htod(&[0.0f32; 4]).unwrap();
        stream.synchronize().unwrap();

        let flags = Some(CUevent_flags::CU_EVENT_DEFAULT);
        let start = stream.record_event(flags).unwrap();
        saxpy(&stream, &module, (&x, &mut y), 1.0).unwrap();
        let end = stream.record_event(flags).unwrap();
        assert!(!end.is_complete());
        assert_eq!(other.clone_dtoh(&y).unwrap(), [0.0; 4]);
        other.wait(&end).unwrap();
        assert_eq!(other.clone_dtoh(&y).unwrap(), [1.0; 4]);
        assert!(end.is_complete());
        assert!(start.elapsed_ms(&end).unwrap() > 0.0);

        // Asking for an event makes progress.
        saxpy(&stream, &module, (&x, &mut y), 1.0).unwrap();
        let end = stream.record_event(None).unwrap();
        while !end.try_is_complete().unwrap() {}
        assert_eq!(other.clone_dtoh(&y).unwrap(), [2.0; 4]);
        let refused = start.elapsed_ms(&end);
        assert_eq!(code(refused), CUresult::CUDA_ERROR_INVALID_HANDLE);
    });
}

#[test]
fn with_launch_blocking_work_is_done_at_once() {
    let blocking = [("CUDA_LAUNCH_BLOCKING", "1")];
    run(
        "with_launch_blocking_work_is_done_at_once",
        &blocking,
        || {
            let (_, stream, module) = begin();
            let x = stream.clone_htod(&[1.0f32; 4]).unwrap();
            let mut y = stream.clone_htod(&[0.0f32; 4]).unwrap();
            saxpy(&stream, &module, (&x, &mut y), 1.0).unwrap();
            assert!(stream.record_event(None).unwrap().is_complete());
        },
    );
}

#[test]
fn pinned_memory_is_copied_when_its_turn_comes() {
    run("pinned_memory_is_copied_when_its_turn_comes", &[], || {
        let (context, stream, _) = begin();
        // SAFETY: written before it is read.
        let mut host = unsafe { context.alloc_pinned::<i32>(4) }.unwrap();
        host.as_mut_slice().unwrap().fill(7);
        let device = stream.clone_htod(&[1, 2, 3, 4]).unwrap();
        let (address, _record) = device.device_ptr(&stream);
        // Past cudarc, which would wait.
        // SAFETY: `host` is not used until the copy is made.
        unsafe {
            let pointer = host.as_mut_ptr().unwrap();
            let slice = std::slice::from_raw_parts_mut(pointer, 4);
            result::memcpy_dtoh_async(slice, address, stream.cu_stream()).unwrap();
            assert_eq!(std::slice::from_raw_parts(pointer, 4), [7; 4]);
        }
        stream.synchronize().unwrap();
        assert_eq!(host.as_slice().unwrap(), [1, 2, 3, 4]);
    });
}

const MODE: CUstreamCaptureMode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;

#[test]
fn a_capture_is_replayed() {
    run("a_capture_is_replayed", &[], || {
        let (context, stream, module) = begin();
        // SAFETY: the streams are ordered below.
        unsafe { context.disable_event_tracking() };
        let mut x = stream.clone_htod(&[1.0f32; 4]).unwrap();
        let mut y = stream.clone_htod(&[9.0f32; 4]).unwrap();
        let other = context.new_stream().unwrap();

        stream.begin_capture(MODE).unwrap();
        stream.memset_zeros(&mut y).unwrap();
        other.join(&stream).unwrap();
        saxpy(&other, &module, (&x, &mut y), 2.0).unwrap();
        stream.join(&other).unwrap();
        let graph = stream.end_capture(CUgraphInstantiate_flags(0));
        let graph = graph.unwrap().unwrap();

        assert_eq!(stream.clone_dtoh(&y).unwrap(), [9.0; 4]);
        for value in [1.0, 5.0] {
            stream.memcpy_htod(&[value; 4], &mut x).unwrap();
            graph.launch().unwrap();
            assert_eq!(stream.clone_dtoh(&y).unwrap(), [2.0 * value; 4]);
        }
    });
}

#[test]
fn captures_refuse_what_they_must() {
    run("captures_refuse_what_they_must", &[], || {
        let (context, stream, module) = begin();
        // SAFETY: one stream does all work.
        unsafe { context.disable_event_tracking() };
        let x = stream.clone_htod(&[1.0f32; 4]).unwrap();
        let mut y = stream.clone_htod(&[9.0f32; 4]).unwrap();
        let other = context.new_stream().unwrap();
        let earlier = stream.record_event(None).unwrap();
        // What a call answers in a capture, and what the end of that does.
        let mut during = |call: &mut dyn FnMut() -> Result<(), DriverError>| {
            stream.begin_capture(MODE).unwrap();
            saxpy(&stream, &module, (&x, &mut y), 2.0).unwrap();
            let refused = code(call());
            let broken = stream.capture_status().unwrap()
                == CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_INVALIDATED;
            let ended = code(stream.end_capture(CUgraphInstantiate_flags(0)));
            assert_eq!(
                broken,
                ended == CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
            );
            (refused, ended)
        };
        use CUresult as R;
        let unsupported = R::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
        let invalidated = R::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
        // SAFETY: nothing comes of it.
        let allocated = during(&mut || unsafe { result::malloc_sync(16) }.map(drop));
        assert_eq!(allocated, (unsupported, invalidated));
        assert_eq!(
            during(&mut || stream.synchronize()),
            (unsupported, invalidated)
        );
        assert_eq!(
            during(&mut || context.synchronize()),
            (unsupported, invalidated)
        );
        let waited = during(&mut || stream.wait(&earlier));
        assert_eq!(
            waited,
            (R::CUDA_ERROR_STREAM_CAPTURE_ISOLATION, invalidated)
        );
        let begun = during(&mut || stream.begin_capture(MODE));
        assert_eq!(begun, (R::CUDA_ERROR_ILLEGAL_STATE, R::CUDA_SUCCESS));
        let mut z = stream.null::<f32>().unwrap();
        let forked = during(&mut || {
            other.join(&stream)?;
            saxpy(&other, &module, (&x, &mut z), 2.0)
        });
        assert_eq!(
            forked,
            (R::CUDA_SUCCESS, R::CUDA_ERROR_STREAM_CAPTURE_UNJOINED)
        );
        // Another stream is free, and so are other threads.
        assert_eq!(
            during(&mut || other.synchronize()),
            (R::CUDA_SUCCESS, R::CUDA_SUCCESS)
        );
        let elsewhere = during(&mut || {
            let allocate = || {
                context.bind_to_thread()?;
                // SAFETY: it is released.
                unsafe { result::free_sync(result::malloc_sync(16)?) }
            };
            std::thread::scope(|scope| scope.spawn(allocate).join().unwrap())
        });
        assert_eq!(elsewhere, (R::CUDA_SUCCESS, R::CUDA_SUCCESS));
        let ended = code(stream.end_capture(CUgraphInstantiate_flags(0)));
        assert_eq!(ended, R::CUDA_ERROR_ILLEGAL_STATE);
    });
}

/// The error of a kernel, when it is launched and when it is waited for, and ever after.
fn fault(
    name: &str,
    arguments: impl Fn(&CudaStream, &CudaFunction, &mut CudaSlice<i32>),
) -> CUresult {
    let (context, stream, module) = begin();
    let mut x = stream.alloc_zeros::<i32>(4).unwrap();
    let function = module.load_function(name).unwrap();
    arguments(&stream, &function, &mut x);
    let found = code(stream.synchronize());
    assert_ne!(found, CUresult::CUDA_SUCCESS);
    assert_eq!(code(stream.clone_htod(&[1])), found);
    assert_eq!(code(context.synchronize()), found);
    assert_eq!(code(stream.record_event(None)), found);
    std::mem::forget((context, stream, module, x, function));
    found
}

#[test]
fn faults_stay_and_are_explained() {
    let output = run("faults_stay_and_are_explained", &[], || {
        let found = fault("stray", |stream, function, x| {
            let mut launch = stream.launch_builder(function);
            launch.arg(x).arg(&4i32);
            // SAFETY: it is not: the emulator finds out.
            unsafe { launch.launch(one_block(1)) }.unwrap();
        });
        assert_eq!(found, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    });
    if let Some(output) = output {
        let errors = errors(&output);
        assert!(
            errors.contains("kernel `stray`, block (0,0,0) thread (0,0,0)"),
            "{errors}"
        );
        assert!(errors.contains("out of bounds"), "{errors}");
    }
}

#[test]
fn traps_are_illegal_instructions() {
    run("traps_are_illegal_instructions", &[], || {
        let found = fault("fails", |stream, function, _| {
            // SAFETY: it takes nothing.
            unsafe { stream.launch_builder(function).launch(one_block(1)) }.unwrap();
        });
        assert_eq!(found, CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION);
    });
}

fn read_unwritten() -> Result<(), DriverError> {
    let (_, stream, module) = begin();
    // SAFETY: that it is not written is the matter.
    let x = unsafe { stream.alloc::<i32>(1) }.unwrap();
    let mut out = stream.alloc_zeros::<i32>(1).unwrap();
    let function = module.load_function("unwritten").unwrap();
    let mut launch = stream.launch_builder(&function);
    launch.arg(&x).arg(&mut out);
    // SAFETY: the kernel takes these.
    unsafe { launch.launch(one_block(1)) }.unwrap();
    stream.synchronize()
}

#[test]
fn the_checks_of_the_emulator() {
    run("the_checks_of_the_emulator", &[], || {
        assert_eq!(code(read_unwritten()), CUresult::CUDA_ERROR_LAUNCH_FAILED);
    });
}

#[test]
fn the_checks_of_the_emulator_switched_off() {
    let off = [("PTX_EMULATOR_CHECKS", "0")];
    run("the_checks_of_the_emulator_switched_off", &off, || {
        assert_eq!(code(read_unwritten()), CUresult::CUDA_SUCCESS);
    });
}

#[test]
fn memory_runs_out_and_comes_back() {
    for pools in ["0", "1"] {
        let limits = [
            ("PTX_EMULATOR_MEMORY", "1048576"),
            ("PTX_EMULATOR_MEMORY_POOLS", pools),
        ];
        run("memory_runs_out_and_comes_back", &limits, || {
            let (context, stream, _) = begin();
            assert_eq!(context.total_mem().unwrap(), 1 << 20);
            let x = stream.alloc_zeros::<u8>(700_000).unwrap();
            let refused = stream.alloc_zeros::<u8>(700_000);
            assert_eq!(code(refused), CUresult::CUDA_ERROR_OUT_OF_MEMORY);
            assert!(context.mem_get_info().unwrap().0 < 350_000);
            // Enough once what is released is.
            drop(x);
            let x = stream.alloc_zeros::<u8>(700_000).unwrap();
            drop(x);
            context.synchronize().unwrap();
            assert_eq!(context.mem_get_info().unwrap().0, 1 << 20);
            let huge = code(stream.alloc_zeros::<u8>(isize::MAX as usize));
            assert_eq!(huge, CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        });
    }
}

#[test]
fn shared_memory_above_48_kib_is_asked_for() {
    run("shared_memory_above_48_kib_is_asked_for", &[], || {
        let (context, stream, module) = begin();
        let optin = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        assert_eq!(context.attribute(optin).unwrap(), 227 * 1024);
        let function = module.load_function("reverse").unwrap();
        let mut x = stream.clone_htod(&[1, 2, 3, 4]).unwrap();
        let mut launch = |shared_mem_bytes| {
            let config = LaunchConfig {
                shared_mem_bytes,
                ..one_block(4)
            };
            let skip = shared_mem_bytes as i32 / 4 - 4;
            let mut launch = stream.launch_builder(&function);
            launch.arg(&mut x).arg(&skip);
            // SAFETY: the kernel takes these.
            code(unsafe { launch.launch(config) })
        };
        let (ok, invalid) = (CUresult::CUDA_SUCCESS, CUresult::CUDA_ERROR_INVALID_VALUE);
        assert_eq!(launch(48 << 10), ok);
        assert_eq!(launch((48 << 10) + 16), invalid);
        let most = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        assert_eq!(code(function.set_attribute(most, (227 << 10) + 1)), invalid);
        function.set_attribute(most, 100 << 10).unwrap();
        assert_eq!(launch(100 << 10), ok);
        assert_eq!(launch((100 << 10) + 16), invalid);
        assert_eq!(stream.clone_dtoh(&x).unwrap(), [1, 2, 3, 4]);
    });
}

#[test]
fn there_may_be_no_device() {
    let hidden = [("CUDA_VISIBLE_DEVICES", "")];
    run("there_may_be_no_device", &hidden, || {
        assert_eq!(code(CudaContext::new(0)), CUresult::CUDA_ERROR_NO_DEVICE);
    });
}

#[test]
fn an_old_device_finds_no_kernels() {
    let old = [("PTX_EMULATOR_COMPUTE_CAPABILITY", "7.5")];
    run("an_old_device_finds_no_kernels", &old, || {
        let context = CudaContext::new(0).unwrap();
        assert_eq!(context.compute_capability().unwrap(), (7, 5));
        let loaded = context.load_module(image("kernels.fatbin"));
        assert_eq!(code(loaded), CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);
        let text = Ptx::from_src(".version 8.0\n.target sm_75\n.visible .entry (");
        assert_eq!(
            code(context.load_module(text)),
            CUresult::CUDA_ERROR_INVALID_PTX
        );
    });
}

/// How often a function was called.
fn calls(name: &std::ffi::CStr) -> u64 {
    type Calls = unsafe extern "C" fn(*const std::ffi::c_char) -> u64;
    // SAFETY: the library has the function, of that type.
    unsafe {
        let calls = sys::culib().get::<Calls>(b"ptx_emulator_driver_calls");
        calls.unwrap()(name.as_ptr())
    }
}

#[test]
fn calls_are_counted() {
    let name = "calls_are_counted";
    let parent = run(name, &[], || {
        let (_, stream, module) = begin();
        let x = stream.clone_htod(&[1.0f32; 4]).unwrap();
        let mut y = stream.clone_htod(&[0.0f32; 4]).unwrap();
        let before = [c"cuLaunchKernel", c"cuMemAllocAsync"].map(calls);
        saxpy(&stream, &module, (&x, &mut y), 1.0).unwrap();
        let after = [c"cuLaunchKernel", c"cuMemAllocAsync"].map(calls);
        assert_eq!((before, after), ([0, 2], [1, 2]));
    });
    let file = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join(name)
        .join("calls");
    if parent.is_some() {
        let text = fs::read_to_string(file).unwrap();
        assert!(text.contains("cuLaunchKernel 1\n"), "{text}");
    }
}

/// A stream that waits for the legacy stream and the other way round, unlike those of cudarc.
#[test]
fn the_legacy_stream_waits() {
    run("the_legacy_stream_waits", &[], || {
        let (context, _, module) = begin();
        // SAFETY: the streams are ordered by what they are.
        unsafe { context.disable_event_tracking() };
        let legacy = context.default_stream();
        let raw = result::stream::create(StreamKind::Default).unwrap();
        // SAFETY: it is of the context, and left to the end of the process.
        let stream = unsafe { context.wrap_borrowed_stream(raw) };
        let x = legacy.clone_htod(&[1.0f32; 4]).unwrap();
        let mut y = legacy.clone_htod(&[0.0f32; 4]).unwrap();
        saxpy(&stream, &module, (&x, &mut y), 1.0).unwrap();
        assert_eq!(legacy.clone_dtoh(&y).unwrap(), [1.0; 4]);
        saxpy(&legacy, &module, (&x, &mut y), 1.0).unwrap();
        assert_eq!(stream.clone_dtoh(&y).unwrap(), [2.0; 4]);

        // A captured stream cannot be waited for.
        stream.begin_capture(MODE).unwrap();
        let refused = code(saxpy(&legacy, &module, (&x, &mut y), 1.0));
        assert_eq!(refused, CUresult::CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
        let event = context.new_event(None).unwrap();
        let flags = CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: all three are there.
        let waited = unsafe { result::stream::wait_event(raw, event.cu_event(), flags) };
        assert_eq!(code(waited), CUresult::CUDA_SUCCESS);
    });
}
