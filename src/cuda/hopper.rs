//! Launches with tensor maps and in clusters, which devices have from compute capability 9.0 on.

use std::ffi::c_void;
use std::ptr;

use cudarc::driver::CudaStream;
use cudarc::driver::sys::{
    self, CUfunction, CUlaunchAttribute, CUlaunchAttributeID, CUlaunchAttributeValue,
    CUlaunchConfig, CUtensorMap, CUtensorMapDataType, CUtensorMapFloatOOBfill,
    CUtensorMapInterleave, CUtensorMapL2promotion, CUtensorMapSwizzle,
};

use super::{Error, Result};
use crate::error::value;
use crate::plan::{Device, Dtype, Launch, Swizzle, TensorMap};

/// Whether the device has what such launches need. Its driver then has the functions, which came with CUDA 12.0: an older one
/// does not load the machine code that nvcc makes for the device.
pub(super) fn check(device: &Device) -> Result<()> {
    let (major, minor) = device.compute_capability;
    match device.compute_capability >= (9, 0) {
        true => Ok(()),
        false => Err(value(
            "device",
            format!("compute capability {major}.{minor}"),
            "9.0 or later, for clusters and tensor maps",
        )
        .into()),
    }
}

/// Launches a kernel whose parameters are `params` and the maps of the launch.
///
/// # Safety
/// The function is that of the launch, the device passes [`check`], and the caller vouches for what the parameters point to.
pub(super) unsafe fn launch(
    function: CUfunction,
    launch: &Launch,
    stream: &CudaStream,
    params: &[u8],
) -> Result<()> {
    let maps = launch.tensor_maps.iter();
    let mut maps = maps
        .map(|map| encode(map, map.operand.address(params)?))
        .collect::<Result<Vec<CUtensorMap>>>()?;
    let params: *const c_void = params.as_ptr().cast();
    let mut arguments = vec![params.cast_mut()];
    arguments.extend(
        maps.iter_mut()
            .map(|map| ptr::from_mut(map).cast::<c_void>()),
    );

    let [x, y, z] = launch.cluster;
    let mut attributes = [cluster(x, y, z)];
    let config = CUlaunchConfig {
        gridDimX: launch.grid,
        gridDimY: 1,
        gridDimZ: 1,
        blockDimX: launch.block,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: launch.shared_bytes,
        hStream: stream.cu_stream(),
        attrs: attributes.as_mut_ptr(),
        numAttrs: attributes.len() as u32,
    };
    // SAFETY: the driver reads the configuration and the parameters before it returns, and only as many bytes as the kernel
    // has; the caller vouches for what they point to.
    unsafe { sys::cuLaunchKernelEx(&config, function, arguments.as_mut_ptr(), ptr::null_mut()) }
        .result()
        .map_err(Error::driver("when a kernel was launched"))
}

fn cluster(x: u32, y: u32, z: u32) -> CUlaunchAttribute {
    let mut value = CUlaunchAttributeValue { pad: [0; 64] };
    value.clusterDim.x = x;
    value.clusterDim.y = y;
    value.clusterDim.z = z;
    CUlaunchAttribute {
        id: CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
        pad: [0; 4],
        value,
    }
}

/// The map of a tensor that begins at an address.
fn encode(map: &TensorMap, address: u64) -> Result<CUtensorMap> {
    let rank = map.dims.len();
    for (argument, found, expected) in [
        (
            "tensor map: strides",
            map.strides.len(),
            rank.saturating_sub(1),
        ),
        ("tensor map: tile", map.tile.len(), rank),
    ] {
        if found != expected {
            let error = value(argument, format!("{found} of them"), format!("{expected}"));
            return Err(error.into());
        }
    }
    let dtype = match map.dtype {
        Dtype::F16 => CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        Dtype::Bf16 => CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
    };
    let swizzle = match map.swizzle {
        Swizzle::None => CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
        Swizzle::Bytes32 => CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_32B,
        Swizzle::Bytes64 => CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_64B,
        Swizzle::Bytes128 => CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
    };
    let mut encoded = CUtensorMap { opaque: [0; 16] };
    // SAFETY: there is a map's room, and the arrays are as long as the driver reads them: the rank, one fewer for strides.
    // It does not read the tensor.
    unsafe {
        sys::cuTensorMapEncodeTiled(
            &mut encoded,
            dtype,
            rank as u32,
            ptr::without_provenance_mut(address as usize),
            map.dims.as_ptr(),
            map.strides.as_ptr(),
            map.tile.as_ptr(),
            vec![1; rank].as_ptr(),
            CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            swizzle,
            CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    }
    .result()
    .map_err(Error::driver("when a tensor map was made"))?;
    Ok(encoded)
}

/// Where there is a device that has them, if only the emulated one: `cargo xtask emulate test --lib`. Elsewhere they end at
/// once.
#[cfg(all(test, feature = "ptx"))]
mod tests {
    use super::*;
    use crate::cuda;
    use crate::cuda::kernels::Kernels;
    use crate::kernels::{self, Params as _};
    use crate::plan::{Addresses, Call, Executor as _, Operand, Plan};
    use crate::{Attention, Layout};
    use cudarc::driver::{DevicePtr as _, DevicePtrMut as _};

    const ROWS: usize = 40;
    const COLUMNS: usize = 96;

    /// A plan, and a launch of tiles of q and out, which are matrices.
    fn launch(device: &Device) -> (Plan, Launch) {
        let attention = Attention::new(1, 1, COLUMNS).build().unwrap();
        let layout = Layout::contiguous("tensor", &[1, ROWS, 1, COLUMNS]).unwrap();
        let call = Call {
            dtype: Dtype::F16,
            q: layout,
            k: layout,
            v: layout,
            out: layout,
            packed: None,
            paged: None,
        };
        let plan = Plan::prefill(&attention, &call, device).unwrap();
        let mut launch = plan.launches()[0].clone();
        launch.file = kernels::named("tests/sm90/tile").unwrap();
        launch.kernel = "copy_tile";
        launch.grid = 6;
        launch.block = 32;
        launch.shared_bytes = 0;
        launch.tensor_maps = [Operand::Q, Operand::Out]
            .map(|operand| TensorMap {
                operand,
                dtype: Dtype::F16,
                dims: vec![COLUMNS as u64, ROWS as u64],
                strides: vec![2 * COLUMNS as u64],
                tile: vec![64, 16],
                swizzle: Swizzle::Bytes128,
            })
            .to_vec();
        (plan, launch)
    }

    #[test]
    fn a_kernel_copies_tiles_by_tensor_maps() {
        let Ok(context) = cuda::context(0) else {
            return;
        };
        let kernels = Kernels::of(&context).unwrap();
        let stream = context.new_stream().unwrap();
        let launcher = kernels.on(&stream).unwrap();
        let (plan, launch) = launch(kernels.device());
        let values: Vec<u16> = (1..).take(ROWS * COLUMNS).collect();
        let q = stream.clone_htod(&values).unwrap();
        let mut out = stream.alloc_zeros::<u16>(values.len()).unwrap();
        let addresses = Addresses {
            q: q.device_ptr(&stream).0,
            out: out.device_ptr_mut(&stream).0,
            ..Addresses::default()
        };
        let params = plan.params(&addresses);
        // SAFETY: the kernel reads q and writes out, which are as large as the maps say.
        let launched = |launch: &Launch| unsafe { launcher.launch(launch, params.bytes()) };
        let refused = |launch: &Launch| launched(launch).unwrap_err().to_string();
        if check(kernels.device()).is_err() {
            let error = refused(&launch);
            assert!(error.contains("expected 9.0 or later"), "{error}");
            return;
        }
        if kernels.device().compute_capability.0 > 9 {
            // The kernel is for 9.0 alone.
            return;
        }
        launched(&launch).unwrap();
        assert_eq!(stream.clone_dtoh(&out).unwrap(), values);

        let changed = |change: fn(&mut Launch)| {
            let mut launch = launch.clone();
            change(&mut launch);
            refused(&launch)
        };
        let error = changed(|launch| launch.tensor_maps[1].tile[0] = 65);
        assert!(error.contains("when a tensor map was made"), "{error}");
        let error = changed(|launch| launch.tensor_maps[0].strides.clear());
        assert!(
            error.contains("strides: found 0 of them, expected 1"),
            "{error}"
        );
        let error = changed(|launch| launch.cluster = [4, 1, 1]);
        assert!(error.contains("INVALID_CLUSTER_SIZE"), "{error}");
    }
}
