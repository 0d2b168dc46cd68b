//! The 128 bytes of a tensor map.

use super::{
    Dimension, ElementType, Fill, Interleave, L2Promotion, MAX_RANK, TensorMap, TensorMapError,
    Tiled,
};
use crate::swizzle::Swizzle;

/// Bytes of an encoded tensor map.
pub const TENSOR_MAP_BYTES: usize = 128;

/// Bytes that are not a tensor map of the emulator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadTensorMap {
    /// They were not made by [`TensorMap::encode`].
    #[error("the 128 bytes were not made by encoding a tensor map")]
    NotMade,
    /// They were, and changed since.
    #[error("the 128 bytes are those of a tensor map that were changed since it was encoded")]
    Changed,
    /// They hold what no tensor map may have.
    #[error("the 128 bytes are those of a tensor map that is not allowed: {0}")]
    NotAllowed(TensorMapError),
}

const MARK: [u8; 8] = *b"ptx-tmap";

/// FNV-1a: the sum is there to find accidents, in bytes that processes with other builds may have made.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, &byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Bytes before the contents: the mark and the checksum of what follows.
const HEADER: usize = 16;

impl TensorMap {
    /// The bytes that a kernel takes.
    pub fn encode(&self) -> [u8; TENSOR_MAP_BYTES] {
        let tiled = self.tiled();
        let mut contents = Vec::with_capacity(TENSOR_MAP_BYTES);
        contents.extend(tiled.address.to_le_bytes());
        let codes = [
            self.rank() as u32,
            tiled.element.number(),
            tiled.interleave.number(),
            tiled.swizzle.number(),
            tiled.l2_promotion.number(),
            tiled.fill.number(),
        ];
        contents.extend(codes.map(|code| code as u8));
        for dimension in &tiled.dimensions {
            // Checked: at most 2^32, 2^40, 256 and 8, none of them 0.
            contents.extend(((dimension.extent - 1) as u32).to_le_bytes());
            contents.extend(dimension.stride.to_le_bytes());
            contents.push((dimension.box_extent - 1) as u8);
            contents.push(dimension.element_stride as u8);
        }
        let mut bytes = [0; TENSOR_MAP_BYTES];
        bytes[HEADER..][..contents.len()].copy_from_slice(&contents);
        bytes[..8].copy_from_slice(&MARK);
        let sum = checksum(&bytes[HEADER..]);
        bytes[8..HEADER].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// The map that was encoded.
    ///
    /// # Errors
    /// The bytes do not come from [`encode`](Self::encode), or were changed.
    pub fn decode(bytes: &[u8; TENSOR_MAP_BYTES]) -> Result<Self, BadTensorMap> {
        if bytes[..8] != MARK {
            return Err(BadTensorMap::NotMade);
        }
        if bytes[8..HEADER] != checksum(&bytes[HEADER..]).to_le_bytes() {
            return Err(BadTensorMap::Changed);
        }
        let tiled = contents(&bytes[HEADER..]).ok_or(BadTensorMap::NotMade)?;
        Self::new(tiled).map_err(BadTensorMap::NotAllowed)
    }
}

fn contents(mut bytes: &[u8]) -> Option<Tiled> {
    let address = u64::from_le_bytes(take(&mut bytes)?);
    let codes: [u8; 6] = take(&mut bytes)?;
    let [rank, element, interleave, swizzle, l2_promotion, fill] = codes.map(u32::from);
    if rank as usize > MAX_RANK {
        return None;
    }
    let mut dimensions = Vec::with_capacity(MAX_RANK);
    for _ in 0..rank {
        dimensions.push(Dimension {
            extent: u64::from(u32::from_le_bytes(take(&mut bytes)?)) + 1,
            stride: u64::from_le_bytes(take(&mut bytes)?),
            box_extent: u32::from(u8::from_le_bytes(take(&mut bytes)?)) + 1,
            element_stride: u8::from_le_bytes(take(&mut bytes)?).into(),
        });
    }
    Some(Tiled {
        element: ElementType::from_number(element)?,
        address,
        dimensions,
        interleave: Interleave::from_number(interleave)?,
        swizzle: Swizzle::from_number(swizzle)?,
        l2_promotion: L2Promotion::from_number(l2_promotion)?,
        fill: Fill::from_number(fill)?,
    })
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*taken)
}
