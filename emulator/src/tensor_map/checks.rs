//! What `cuTensorMapEncodeTiled` asks of its arguments.

use super::{Dimension, Fill, Interleave, MAX_RANK, Tiled};
use crate::swizzle::Swizzle;

/// An argument of a tensor map that is not allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TensorMapError {
    /// A wrong number of dimensions.
    #[error("tensorRank is {found}, expected {least} to {MAX_RANK}")]
    Rank {
        /// The rank.
        found: usize,
        /// The least that is allowed.
        least: usize,
    },
    /// An address or a stride that is not a multiple of what it must be.
    #[error("{argument} is {found:#x}, expected a multiple of {align}")]
    Misaligned {
        /// The argument, with its index if it is an array.
        argument: String,
        /// Its value.
        found: u64,
        /// What it must be a multiple of.
        align: u64,
    },
    /// An extent or a stride outside its range.
    #[error("{argument} is {found}, expected {least} to {most}")]
    OutOfRange {
        /// The argument, with its index if it is an array.
        argument: String,
        /// Its value.
        found: u64,
        /// The least that is allowed.
        least: u64,
        /// The most that is allowed.
        most: u64,
    },
    /// A row of the box that is not a whole number of 16-byte chunks.
    #[error("a row of boxDim[0] elements has {found} bytes, expected a multiple of 16")]
    BoxRow {
        /// Bytes of a row.
        found: u32,
    },
    /// A row of the box that is longer than the span of the swizzle.
    #[error(
        "a row of boxDim[0] elements has {found} bytes, expected at most {span} with a {swizzle}"
    )]
    SwizzleSpan {
        /// Bytes of a row.
        found: u32,
        /// The span.
        span: u32,
        /// The swizzle.
        swizzle: Swizzle,
    },
    /// A swizzle that the interleaved layout does not go with.
    #[error("swizzle is {found}, expected a 32-byte swizzle with a 32-byte interleave")]
    InterleaveSwizzle {
        /// The swizzle.
        found: Swizzle,
    },
    /// NaNs for elements that have none.
    #[error("oobFill asks for NaNs, expected zeros: the elements are integers")]
    Fill,
    /// Something that hardware does and the emulator does not.
    #[error("{0} is not supported by the emulator")]
    Unsupported(&'static str),
}

fn range(
    argument: impl Fn() -> String,
    found: u64,
    least: u64,
    most: u64,
) -> Result<(), TensorMapError> {
    if (least..=most).contains(&found) {
        return Ok(());
    }
    Err(TensorMapError::OutOfRange {
        argument: argument(),
        found,
        least,
        most,
    })
}

fn multiple(argument: impl Fn() -> String, found: u64, align: u64) -> Result<(), TensorMapError> {
    if found.is_multiple_of(align) {
        return Ok(());
    }
    Err(TensorMapError::Misaligned {
        argument: argument(),
        found,
        align,
    })
}

pub(super) fn check(tiled: &Tiled) -> Result<(), TensorMapError> {
    let rank = tiled.dimensions.len();
    let least = match tiled.interleave {
        Interleave::None => 1,
        _ => 3,
    };
    if !(least..=MAX_RANK).contains(&rank) {
        return Err(TensorMapError::Rank { found: rank, least });
    }
    let align = match tiled.interleave {
        Interleave::B32 => 32,
        _ => 16,
    };
    multiple(|| "globalAddress".to_owned(), tiled.address, align)?;
    for (i, dimension) in tiled.dimensions.iter().enumerate() {
        let &Dimension {
            extent,
            stride,
            box_extent,
            element_stride,
        } = dimension;
        range(|| format!("globalDim[{i}]"), extent, 1, 1 << 32)?;
        if i > 0 {
            // The driver takes the strides of all dimensions but the first. A stride of 0 would make all elements of a
            // dimension the same; the documentation does not say that it may.
            let name = || format!("globalStrides[{}]", i - 1);
            multiple(name, stride, align)?;
            range(name, stride, align, (1 << 40) - align)?;
        }
        range(|| format!("boxDim[{i}]"), box_extent.into(), 1, 256)?;
        range(
            || format!("elementStrides[{i}]"),
            element_stride.into(),
            1,
            8,
        )?;
    }
    let row = tiled.dimensions[0].box_extent * tiled.element.bytes();
    match tiled.interleave {
        Interleave::None if !row.is_multiple_of(16) => {
            return Err(TensorMapError::BoxRow { found: row });
        }
        Interleave::None if tiled.swizzle != Swizzle::None && row > tiled.swizzle.span() => {
            return Err(TensorMapError::SwizzleSpan {
                found: row,
                span: tiled.swizzle.span(),
                swizzle: tiled.swizzle,
            });
        }
        Interleave::B32 if tiled.swizzle != Swizzle::B32 => {
            return Err(TensorMapError::InterleaveSwizzle {
                found: tiled.swizzle,
            });
        }
        _ => {}
    }
    if tiled.fill == Fill::Nan && !tiled.element.is_float() {
        return Err(TensorMapError::Fill);
    }
    match tiled.interleave {
        Interleave::None => Ok(()),
        _ => Err(TensorMapError::Unsupported("an interleaved tensor map")),
    }
}
