//! What the driver says and does as each of the devices that it plays.

#![cfg(target_os = "linux")]

#[path = "../common/mod.rs"]
mod common;
mod launches;
mod tensor_maps;

use std::env;
use std::ffi::c_int;
use std::process::Output;
use std::sync::Arc;

use cudarc::driver::sys::{CUdevice_attribute, CUfunction_attribute, CUresult};
use cudarc::driver::{CudaContext, CudaFunction, CudaStream, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::Ptx;

use common::{begin, code, errors, image, one_block, run};

const CAPABILITY: &str = "PTX_EMULATOR_COMPUTE_CAPABILITY";
const CAPABILITIES: [&str; 5] = ["8.0", "8.6", "8.9", "9.0", "12.0"];

/// Runs a test as each device; what each wrote.
fn on_each(name: &str, test: fn()) -> Vec<Output> {
    // In the process of one device there is none.
    let output = |capability: &&str| run(name, &[(CAPABILITY, capability)], test);
    CAPABILITIES.iter().map_while(output).collect()
}

/// The row of a table for the device that is played.
fn of_device<T: Copy>(table: [T; CAPABILITIES.len()]) -> T {
    let capability = env::var(CAPABILITY).unwrap();
    let row = CAPABILITIES.iter().position(|&name| name == capability);
    table[row.unwrap()]
}

/// 9.0 and 12.0.
fn is_new() -> bool {
    of_device([false, false, false, true, true])
}

const SUCCESS: CUresult = CUresult::CUDA_SUCCESS;
const INVALID: CUresult = CUresult::CUDA_ERROR_INVALID_VALUE;
const NOT_SUPPORTED: CUresult = CUresult::CUDA_ERROR_NOT_SUPPORTED;

#[test]
fn the_limits_are_those_of_the_programming_guide() {
    on_each("the_limits_are_those_of_the_programming_guide", || {
        use CUdevice_attribute::*;
        let context = CudaContext::new(0).unwrap();
        let capability = context.compute_capability().unwrap();
        assert_eq!(
            format!("{}.{}", capability.0, capability.1),
            env::var(CAPABILITY).unwrap()
        );
        let table = [
            (
                CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
                [108, 84, 128, 132, 170],
            ),
            (
                CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR,
                [2048, 1536, 1536, 2048, 1536],
            ),
            (
                CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR,
                [32, 16, 24, 32, 24],
            ),
            (
                CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR,
                [65536; 5],
            ),
            (CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK, [65536; 5]),
            (
                CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK,
                [48 << 10; 5],
            ),
            (
                CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
                [163, 99, 99, 227, 99].map(|kib| kib << 10),
            ),
            (
                CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR,
                [164, 100, 100, 228, 100].map(|kib| kib << 10),
            ),
            (
                CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK,
                [1024; 5],
            ),
            (CU_DEVICE_ATTRIBUTE_CLUSTER_LAUNCH, [0, 0, 0, 1, 1]),
            (
                CU_DEVICE_ATTRIBUTE_TENSOR_MAP_ACCESS_SUPPORTED,
                [0, 0, 0, 1, 1],
            ),
        ];
        for (attribute, expected) in table {
            let found = context.attribute(attribute).unwrap();
            assert_eq!(found, of_device(expected), "{attribute:?}");
        }
    });
}

/// What a module's code was compiled for, as `compiled_for` has it.
fn compiled_for(stream: &Arc<CudaStream>, function: &CudaFunction) -> i32 {
    let mut out = stream.alloc_zeros::<i32>(1).unwrap();
    let mut launch = stream.launch_builder(function);
    launch.arg(&mut out);
    // SAFETY: the kernel takes this.
    unsafe { launch.launch(one_block(1)) }.unwrap();
    stream.clone_dtoh(&out).unwrap()[0]
}

#[test]
fn a_device_runs_the_newest_code_that_it_can() {
    let outputs = on_each("a_device_runs_the_newest_code_that_it_can", || {
        use CUfunction_attribute::*;
        let (context, stream, module) = begin();
        let function = module.load_function("compiled_for").unwrap();
        // There is PTX for 8.0, 9.0 and 9.0 alone.
        let expected = of_device([800, 800, 800, 901, 900]);
        assert_eq!(compiled_for(&stream, &function), expected);
        let attribute = |name| function.get_attribute(name).unwrap();
        assert_eq!(attribute(CU_FUNC_ATTRIBUTE_PTX_VERSION), expected / 10);
        let binary = of_device([80, 86, 89, 90, 120]);
        assert_eq!(attribute(CU_FUNC_ATTRIBUTE_BINARY_VERSION), binary);

        // Machine code for 8.0 and 9.0, PTX for 8.0.
        let mixed = context.load_module(image("mixed.fatbin")).unwrap();
        let function = mixed.load_function("compiled_for").unwrap();
        assert_eq!(compiled_for(&stream, &function), 800);

        // Machine code for 9.0 alone, which is not run even there.
        let machine = context.load_module(image("machine.fatbin"));
        assert_eq!(code(machine), CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);

        // A text for one architecture.
        for (target, runs) in [
            ("sm_80", [true; 5]),
            ("sm_86", [false, true, true, true, true]),
            ("sm_90", [false, false, false, true, true]),
            ("sm_90a", [false, false, false, true, false]),
            ("sm_120f", [false, false, false, false, true]),
            ("sm_120a, debug", [false, false, false, false, true]),
            ("sm_121", [false; 5]),
        ] {
            let text = format!(
                ".version 8.8\n.target {target}\n.address_size 64\n.visible .entry e() {{ ret; }}"
            );
            let expected = match of_device(runs) {
                true => SUCCESS,
                false => CUresult::CUDA_ERROR_INVALID_PTX,
            };
            assert_eq!(
                code(context.load_module(Ptx::from_src(text))),
                expected,
                "{target}"
            );
        }
    });
    for (capability, output) in CAPABILITIES.iter().zip(&outputs) {
        let errors = errors(output);
        let said = |what: &str| errors.contains(what);
        let hopper = *capability == "9.0";
        let other = "would run a module's machine code for sm_90; its PTX for sm_80 is run";
        assert_eq!(said(other), hopper, "{capability}: {errors}");
        let none = "has machine code for sm_90a, which cannot be run here";
        assert_eq!(said(none), hopper, "{capability}: {errors}");
    }
}

#[test]
fn dynamic_shared_memory_is_limited_by_the_device() {
    on_each("dynamic_shared_memory_is_limited_by_the_device", || {
        let (_context, stream, module) = begin();
        let function = module.load_function("reverse").unwrap();
        let most = of_device([163, 99, 99, 227, 99]) << 10;
        let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        assert_eq!(code(function.set_attribute(attribute, most + 1)), INVALID);
        function.set_attribute(attribute, most).unwrap();
        let mut x = stream.clone_htod(&[1, 2, 3, 4]).unwrap();
        let mut launch = |bytes: i32| {
            let config = LaunchConfig {
                shared_mem_bytes: bytes as u32,
                ..one_block(4)
            };
            let skip = bytes / 4 - 4;
            let mut launch = stream.launch_builder(&function);
            launch.arg(&mut x).arg(&skip);
            // SAFETY: the kernel takes these.
            code(unsafe { launch.launch(config) })
        };
        assert_eq!(launch(most), SUCCESS);
        assert_eq!(launch(most + 16), INVALID);
        assert_eq!(stream.clone_dtoh(&x).unwrap(), [4, 3, 2, 1]);
    });
}

/// From the limits, by hand.
#[test]
fn occupancy_is_limited_by_threads_blocks_and_shared_memory() {
    let name = "occupancy_is_limited_by_threads_blocks_and_shared_memory";
    on_each(name, || {
        let (context, _, module) = begin();
        let function = module.load_function("reverse").unwrap();
        for (threads, shared, expected) in [
            (1024, 0, [2, 1, 1, 2, 1]),
            (128, 0, [16, 12, 12, 16, 12]),
            // A block has whole warps.
            (97, 0, [16, 12, 12, 16, 12]),
            (32, 0, [32, 16, 24, 32, 24]),
            // And a KiB of the system: not 4 blocks of 25 KiB in 100.
            (128, 25 << 10, [6, 3, 3, 8, 3]),
            (128, 40 << 10, [4, 2, 2, 5, 2]),
            (128, 48 << 10, [3, 2, 2, 4, 2]),
            (128, (48 << 10) + 1, [0; 5]),
            (1025, 0, [0; 5]),
        ] {
            let found =
                function.occupancy_max_active_blocks_per_multiprocessor(threads, shared, None);
            assert_eq!(found.unwrap(), of_device(expected), "{threads} {shared}");
        }
        // The largest block of those that keep most threads busy, and as many as the device holds.
        extern "C" fn none(_: c_int) -> usize {
            0
        }
        extern "C" fn one_a_warp(threads: c_int) -> usize {
            (threads as usize / 32) << 10
        }
        let best =
            |bytes_of, limit| function.occupancy_max_potential_block_size(bytes_of, 0, limit, None);
        let (threads, blocks) = of_device([
            (1024, 2 * 108),
            (768, 2 * 84),
            (768, 2 * 128),
            (1024, 2 * 132),
            (768, 2 * 170),
        ]);
        assert_eq!(best(none, 0).unwrap(), (blocks, threads));
        assert_eq!(best(none, 5000).unwrap(), (blocks, threads));
        let blocks = of_device([16 * 108, 12 * 84, 12 * 128, 16 * 132, 12 * 170]);
        assert_eq!(best(none, 128).unwrap(), (blocks, 128));
        assert_eq!(best(none, 20).unwrap().1, 20);
        // A KiB for each warp: 64 warps of 164 or 228 KiB, 48 of 100.
        assert_eq!(best(one_a_warp, 0).unwrap().1, threads);
        let available = |blocks, threads| {
            context.bind_to_thread().unwrap();
            function.occupancy_available_dynamic_smem_per_block(blocks, threads)
        };
        let kib = of_device([163, 99, 99, 227, 99]);
        assert_eq!(available(1, 128).unwrap(), kib << 10);
        let kib = of_device([81, 49, 49, 113, 49]);
        assert_eq!(available(2, 128).unwrap(), kib << 10);
        assert_eq!(code(available(33, 32)), INVALID);
        assert_eq!(code(available(0, 32)), INVALID);
    });
}
