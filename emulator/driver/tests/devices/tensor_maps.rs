//! Tensor maps.

use std::ptr;

use cudarc::driver::sys::{
    self, CUresult, CUtensorMap, CUtensorMapDataType, CUtensorMapFloatOOBfill,
    CUtensorMapInterleave, CUtensorMapL2promotion, CUtensorMapSwizzle,
};
use cudarc::driver::{
    CudaContext, DevicePtr, DevicePtrMut, DeviceRepr, LaunchConfig, PushKernelArg,
};

use crate::common::{begin, code, errors, one_block};
use crate::{CAPABILITIES, INVALID, NOT_SUPPORTED, SUCCESS, is_new, on_each};

/// Arguments of `cuTensorMapEncodeTiled` for a matrix of halves.
#[derive(Clone, Copy)]
struct Arguments {
    rank: u32,
    address: usize,
    extents: [u64; 2],
    stride: u64,
    box_extents: [u32; 2],
    element_strides: [u32; 2],
    interleave: CUtensorMapInterleave,
    swizzle: CUtensorMapSwizzle,
}

const MATRIX: Arguments = Arguments {
    rank: 2,
    address: 0x10_0000_0000,
    extents: [96, 40],
    stride: 192,
    box_extents: [64, 16],
    element_strides: [1, 1],
    interleave: CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
    swizzle: CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
};

fn encode(map: *mut CUtensorMap, arguments: Arguments) -> CUresult {
    // SAFETY: there is room for a map, unless that is what the driver refuses, and the arrays are as long as they must be.
    unsafe {
        sys::cuTensorMapEncodeTiled(
            map,
            CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            arguments.rank,
            ptr::without_provenance_mut(arguments.address),
            arguments.extents.as_ptr(),
            &arguments.stride,
            arguments.box_extents.as_ptr(),
            arguments.element_strides.as_ptr(),
            arguments.interleave,
            arguments.swizzle,
            CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
            CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    }
}

#[test]
fn tensor_maps_are_made_where_the_device_has_them() {
    let name = "tensor_maps::tensor_maps_are_made_where_the_device_has_them";
    let outputs = on_each(name, || {
        use ptx_emulator::tensor_map::TensorMap;
        let context = CudaContext::new(0).unwrap();
        context.bind_to_thread().unwrap();
        let mut map = CUtensorMap { opaque: [0; 16] };
        if !is_new() {
            assert_eq!(encode(&mut map, MATRIX), NOT_SUPPORTED);
            assert_eq!(map.opaque, [0; 16]);
            return;
        }
        let decoded = |map: &CUtensorMap| {
            let bytes: Vec<u8> = map
                .opaque
                .iter()
                .flat_map(|word| word.to_le_bytes())
                .collect();
            TensorMap::decode(bytes.as_slice().try_into().unwrap()).unwrap()
        };
        assert_eq!(encode(&mut map, MATRIX), SUCCESS);
        let made = decoded(&map);
        let tiled = made.tiled();
        assert_eq!(tiled.address, MATRIX.address as u64);
        let dimensions: Vec<_> = tiled.dimensions.iter().collect();
        let fields = |i: usize| {
            let d = dimensions[i];
            (d.extent, d.stride, d.box_extent, d.element_stride)
        };
        assert_eq!((fields(0), fields(1)), ((96, 2, 64, 1), (40, 192, 16, 1)));
        assert_eq!(tiled.swizzle, ptx_emulator::Swizzle::B128);
        assert_eq!(tiled.l2_promotion.number(), 2);

        // SAFETY: a map.
        let replace = |map: &mut CUtensorMap, address: usize| unsafe {
            sys::cuTensorMapReplaceAddress(map, ptr::without_provenance_mut(address))
        };
        assert_eq!(replace(&mut map, 0x1230), SUCCESS);
        assert_eq!(decoded(&map).tiled().address, 0x1230);
        assert_eq!(replace(&mut map, 0x1238), INVALID);
        assert_eq!(decoded(&map).tiled().address, 0x1230);
        let mut other = CUtensorMap { opaque: [3; 16] };
        assert_eq!(replace(&mut other, 0x1230), INVALID);

        // Each argument wrong by itself.
        let table: &[fn(&mut Arguments)] = &[
            |a| a.rank = 0,
            |a| a.rank = 6,
            |a| a.address += 8,
            |a| a.extents[1] = 0,
            |a| a.extents[0] = (1 << 32) + 1,
            |a| a.stride = 200,
            |a| a.stride = 1 << 40,
            |a| a.box_extents[1] = 257,
            |a| a.box_extents[0] = 65,
            |a| a.swizzle = CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_64B,
            |a| a.swizzle = CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B_ATOM_32B,
            |a| a.element_strides[1] = 9,
            |a| a.interleave = CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_16B,
        ];
        for (i, change) in table.iter().enumerate() {
            let mut arguments = MATRIX;
            change(&mut arguments);
            let before = map.opaque;
            assert_eq!(encode(&mut map, arguments), INVALID, "row {i}");
            assert_eq!(map.opaque, before, "row {i}");
        }
        assert_eq!(encode(ptr::null_mut(), MATRIX), INVALID);
        // SAFETY: inside the array; nothing is written to it.
        let unaligned = unsafe { (&raw mut map).cast::<u8>().add(32).cast::<CUtensorMap>() };
        assert_eq!(encode(unaligned, MATRIX), INVALID);
    });
    for (capability, output) in CAPABILITIES.iter().zip(&outputs) {
        let errors = errors(output);
        let expected = match *capability {
            "9.0" | "12.0" => "a tensor map is not allowed: boxDim[1] is 257, expected 1 to 256",
            _ => "the device has no tensor maps",
        };
        assert!(errors.contains(expected), "{capability}: {errors}");
    }
}

/// A tile at the end of a matrix, of which a part is outside.
#[test]
fn a_kernel_copies_a_tile() {
    on_each("tensor_maps::a_kernel_copies_a_tile", || {
        if !is_new() {
            return;
        }
        let (_context, stream, module) = begin();
        let function = module.load_function("copy_tile").unwrap();
        let [columns, rows] = MATRIX.extents.map(|extent| extent as usize);
        let values: Vec<u16> = (1..).take(columns * rows).collect();
        let from = stream.clone_htod(&values).unwrap();
        let mut to = stream.alloc_zeros::<u16>(columns * rows).unwrap();
        let map = |address: u64| {
            let mut map = CUtensorMap { opaque: [0; 16] };
            let address = address as usize;
            assert_eq!(encode(&mut map, Arguments { address, ..MATRIX }), SUCCESS);
            Map(map)
        };
        let maps = [
            map(from.device_ptr(&stream).0),
            map(to.device_ptr_mut(&stream).0),
        ];
        let config = LaunchConfig {
            shared_mem_bytes: 64 * 16 * 2,
            ..one_block(1)
        };
        let launch = |column: i32, row: i32, bytes: i32| {
            let mut launch = stream.launch_builder(&function);
            launch.arg(&maps[0]).arg(&maps[1]);
            launch.arg(&column).arg(&row).arg(&bytes);
            // SAFETY: the kernel takes these.
            unsafe { launch.launch(config) }.unwrap();
        };
        launch(64, 32, 64 * 16 * 2);
        let copied = stream.clone_dtoh(&to).unwrap();
        for (i, (copied, value)) in copied.iter().zip(&values).enumerate() {
            let inside = i % columns >= 64 && i / columns >= 32;
            assert_eq!(*copied, if inside { *value } else { 0 }, "{i}");
        }
        // Fewer bytes than the whole box has: the wait ends too early.
        launch(64, 32, 32 * 8 * 2);
        assert_ne!(code(stream.synchronize()), SUCCESS);
    });
}

/// A tensor map as an argument of a kernel.
struct Map(#[expect(dead_code, reason = "the driver reads it")] CUtensorMap);

// SAFETY: what a kernel with such a parameter takes.
unsafe impl DeviceRepr for Map {}
