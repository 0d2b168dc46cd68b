//! Tensor maps.

use ptx_emulator::Swizzle;
use ptx_emulator::tensor_map::{
    Dimension, ElementType, Fill, Interleave, L2Promotion, MAX_RANK, TENSOR_MAP_BYTES, TensorMap,
    TensorMapError, Tiled,
};

use super::api;
use crate::code::{Code, Result};
use crate::ffi::Host;
use crate::settings::SETTINGS;
use crate::state::with;

/// What the address of a tensor map must be a multiple of.
const ALIGN: usize = 64;

/// The map that the caller has room for, on a device that has tensor maps.
fn check_map(map: Host) -> Result {
    if !SETTINGS.device.is_hopper_or_later() {
        eprintln!("ptx-emulator-driver: the device has no tensor maps");
        return Err(Code::NOT_SUPPORTED);
    }
    match map.is_null() || !map.address().is_multiple_of(ALIGN) {
        true => Err(Code::INVALID_VALUE),
        false => Ok(()),
    }
}

/// Stores a map, or says why there is none.
///
/// # Safety
/// There must be room for it.
unsafe fn store(map: Host, made: std::result::Result<TensorMap, TensorMapError>) -> Result {
    match made {
        Ok(made) => {
            // SAFETY: as the caller says.
            unsafe { map.write(0..TENSOR_MAP_BYTES) }.copy_from_slice(&made.encode());
            Ok(())
        }
        Err(error) => {
            eprintln!("ptx-emulator-driver: a tensor map is not allowed: {error}");
            Err(match error {
                TensorMapError::Unsupported(_) => Code::NOT_SUPPORTED,
                _ => Code::INVALID_VALUE,
            })
        }
    }
}

api! {
    fn cuTensorMapEncodeTiled(
        map: Host,
        element: u32,
        rank: u32,
        address: u64,
        extents: Host,
        strides: Host,
        box_extents: Host,
        element_strides: Host,
        interleave: u32,
        swizzle: u32,
        l2_promotion: u32,
        fill: u32,
    ) {
        with(|_, _| {
            check_map(map)?;
            let rank = rank as usize;
            let arrays = [extents, box_extents, element_strides];
            if rank > MAX_RANK || arrays.iter().any(|a| a.is_null()) || strides.is_null() && rank > 1 {
                return Err(Code::INVALID_VALUE);
            }
            let element = ElementType::from_number(element).ok_or(Code::INVALID_VALUE)?;
            let dimension = |i: usize| {
                // SAFETY: not null, so there are as many values as dimensions, of strides one fewer.
                unsafe {
                    Dimension {
                        extent: extents.value(8 * i),
                        stride: match i {
                            0 => element.bytes().into(),
                            _ => strides.value(8 * (i - 1)),
                        },
                        box_extent: box_extents.value(4 * i),
                        element_stride: element_strides.value(4 * i),
                    }
                }
            };
            let made = TensorMap::new(Tiled {
                element,
                address,
                dimensions: (0..rank).map(dimension).collect(),
                interleave: Interleave::from_number(interleave).ok_or(Code::INVALID_VALUE)?,
                swizzle: Swizzle::from_number(swizzle).ok_or(Code::INVALID_VALUE)?,
                l2_promotion: L2Promotion::from_number(l2_promotion).ok_or(Code::INVALID_VALUE)?,
                fill: Fill::from_number(fill).ok_or(Code::INVALID_VALUE)?,
            });
            // SAFETY: the caller has room for a map there.
            unsafe { store(map, made) }
        })
    }

    fn cuTensorMapReplaceAddress(map: Host, address: u64) {
        with(|_, _| {
            check_map(map)?;
            // SAFETY: the caller has a map there.
            let bytes = unsafe { map.value::<[u8; TENSOR_MAP_BYTES]>(0) };
            let old = TensorMap::decode(&bytes).map_err(|error| {
                eprintln!("ptx-emulator-driver: {error}");
                Code::INVALID_VALUE
            })?;
            // SAFETY: as above.
            unsafe { store(map, old.with_address(address)) }
        })
    }
}
