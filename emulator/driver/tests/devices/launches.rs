//! Launches with attributes.

use std::ptr;

use cudarc::driver::sys::{
    self, CUfunction_attribute, CUlaunchAttribute, CUlaunchAttributeID, CUlaunchAttributeValue,
    CUlaunchConfig, CUresult,
};
use cudarc::driver::{CudaFunction, CudaStream};

use crate::common::{begin, code, one_block};
use crate::{INVALID, NOT_SUPPORTED, SUCCESS, is_new, of_device, on_each};

const CLUSTER: CUresult = CUresult::CUDA_ERROR_INVALID_CLUSTER_SIZE;

fn attribute(id: CUlaunchAttributeID, values: [i32; 3]) -> CUlaunchAttribute {
    let mut pad = [0; 64];
    for (bytes, value) in pad.chunks_exact_mut(4).zip(values) {
        let value = value.to_le_bytes().map(|byte| byte as _);
        bytes.copy_from_slice(&value);
    }
    CUlaunchAttribute {
        id,
        pad: [0; 4],
        value: CUlaunchAttributeValue { pad },
    }
}

fn cluster(x: i32, y: i32, z: i32) -> CUlaunchAttribute {
    let id = CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
    attribute(id, [x, y, z])
}

fn config(
    stream: &CudaStream,
    grid: (u32, u32, u32),
    attributes: &mut [CUlaunchAttribute],
) -> CUlaunchConfig {
    CUlaunchConfig {
        gridDimX: grid.0,
        gridDimY: grid.1,
        gridDimZ: grid.2,
        blockDimX: 32,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: 0,
        hStream: stream.cu_stream(),
        attrs: attributes.as_mut_ptr(),
        numAttrs: attributes.len() as u32,
    }
}

/// Launches a kernel without parameters.
fn launch(
    stream: &CudaStream,
    function: &CudaFunction,
    grid: (u32, u32, u32),
    mut attributes: Vec<CUlaunchAttribute>,
) -> CUresult {
    let config = config(stream, grid, &mut attributes);
    // SAFETY: the kernel takes nothing.
    unsafe {
        sys::cuLaunchKernelEx(
            &config,
            function.cu_function(),
            ptr::null_mut(),
            ptr::null_mut(),
        )
    }
}

#[test]
fn clusters_are_checked_as_the_device_has_them() {
    on_each(
        "launches::clusters_are_checked_as_the_device_has_them",
        || {
            use CUfunction_attribute::*;
            let (_, stream, module) = begin();
            let function = module.load_function("nothing").unwrap();
            let with = |grid, attribute| launch(&stream, &function, grid, vec![attribute]);
            let grid = (32, 2, 1);
            // One block is what every device can do, and all that the emulator does.
            assert_eq!(with(grid, cluster(1, 1, 1)), SUCCESS);
            assert_eq!(with(grid, cluster(2, 1, 1)), NOT_SUPPORTED);
            let misconfigured = if is_new() { CLUSTER } else { NOT_SUPPORTED };
            assert_eq!(with(grid, cluster(3, 1, 1)), misconfigured);
            assert_eq!(with(grid, cluster(1, 1, 2)), misconfigured);
            assert_eq!(with(grid, cluster(16, 1, 1)), misconfigured);
            assert_eq!(with(grid, cluster(8, 2, 1)), misconfigured);
            assert_eq!(with(grid, cluster(4, 2, 1)), NOT_SUPPORTED);

            let set = |name, value| code(function.set_attribute(name, value));
            assert_eq!(
                set(CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 2),
                INVALID
            );
            assert_eq!(
                set(CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1),
                SUCCESS
            );
            let sixteen = of_device([
                NOT_SUPPORTED,
                NOT_SUPPORTED,
                NOT_SUPPORTED,
                NOT_SUPPORTED,
                CLUSTER,
            ]);
            assert_eq!(with(grid, cluster(16, 1, 1)), sixteen);
            assert_eq!(with(grid, cluster(32, 1, 1)), misconfigured);

            // A size that the function requires.
            let without = || launch(&stream, &function, grid, Vec::new());
            assert_eq!(set(CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_WIDTH, 1), SUCCESS);
            assert_eq!(without(), misconfigured);
            assert_eq!(set(CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_HEIGHT, 1), SUCCESS);
            assert_eq!(set(CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_DEPTH, 1), SUCCESS);
            assert_eq!(without(), SUCCESS);
            assert_eq!(with(grid, cluster(2, 1, 1)), CLUSTER);
            assert_eq!(set(CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_WIDTH, -1), INVALID);
            assert_eq!(set(CU_FUNC_ATTRIBUTE_CLUSTER_SIZE_MUST_BE_SET, 1), INVALID);
            stream.synchronize().unwrap();
        },
    );
}

#[test]
fn clusters_are_counted() {
    on_each("launches::clusters_are_counted", || {
        let (_, stream, module) = begin();
        let function = module.load_function("nothing").unwrap();
        let count = |mut attributes: Vec<CUlaunchAttribute>| {
            let config = config(&stream, (32, 2, 1), &mut attributes);
            let mut clusters = -1;
            // SAFETY: a function and a configuration for it.
            let code = unsafe {
                sys::cuOccupancyMaxActiveClusters(&mut clusters, function.cu_function(), &config)
            };
            (code, clusters)
        };
        // Of one warp: as many blocks as a multiprocessor takes.
        let blocks = of_device([32 * 108, 16 * 84, 24 * 128, 32 * 132, 24 * 170]);
        assert_eq!(count(vec![cluster(1, 1, 1)]), (SUCCESS, blocks));
        assert_eq!(count(Vec::new()), (INVALID, -1));
        let four = match is_new() {
            true => (SUCCESS, blocks / 4),
            false => (NOT_SUPPORTED, -1),
        };
        assert_eq!(count(vec![cluster(2, 2, 1)]), four);

        let largest = || function.occupancy_max_potential_cluster_size(one_block(32), &stream);
        assert_eq!(largest().unwrap(), of_device([1, 1, 1, 8, 8]));
        let allowed = CUfunction_attribute::CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED;
        function.set_attribute(allowed, 1).unwrap();
        assert_eq!(largest().unwrap(), of_device([1, 1, 1, 16, 8]));
    });
}

#[test]
fn launch_attributes_are_known_or_refused() {
    on_each("launches::launch_attributes_are_known_or_refused", || {
        use CUlaunchAttributeID::*;
        let (_, stream, module) = begin();
        let function = module.load_function("nothing").unwrap();
        let on_new = if is_new() { SUCCESS } else { NOT_SUPPORTED };
        for (id, value, expected) in [
            (CU_LAUNCH_ATTRIBUTE_IGNORE, 7, SUCCESS),
            (CU_LAUNCH_ATTRIBUTE_PRIORITY, 1, SUCCESS),
            (
                CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
                1,
                on_new,
            ),
            (
                CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
                0,
                SUCCESS,
            ),
            (
                CU_LAUNCH_ATTRIBUTE_CLUSTER_SCHEDULING_POLICY_PREFERENCE,
                2,
                SUCCESS,
            ),
            (
                CU_LAUNCH_ATTRIBUTE_CLUSTER_SCHEDULING_POLICY_PREFERENCE,
                3,
                INVALID,
            ),
            // Of streams.
            (CU_LAUNCH_ATTRIBUTE_SYNCHRONIZATION_POLICY, 1, INVALID),
            (CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_EVENT, 0, NOT_SUPPORTED),
            (CU_LAUNCH_ATTRIBUTE_COOPERATIVE, 1, SUCCESS),
        ] {
            let attributes = vec![attribute(id, [value, 0, 0])];
            let found = launch(&stream, &function, (4, 1, 1), attributes);
            assert_eq!(found, expected, "{id:?} {value}");
        }
        // More blocks than the device holds.
        let most = of_device([32 * 108, 16 * 84, 24 * 128, 32 * 132, 24 * 170]);
        let too_large = CUresult::CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE;
        for (blocks, expected) in [(most, SUCCESS), (most + 1, too_large)] {
            let attributes = vec![attribute(CU_LAUNCH_ATTRIBUTE_COOPERATIVE, [1, 0, 0])];
            let found = launch(&stream, &function, (blocks, 1, 1), attributes);
            assert_eq!(found, expected, "{blocks}");
        }
    });
}
