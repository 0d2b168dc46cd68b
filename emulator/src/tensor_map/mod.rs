//! Tensor maps: what `cp.async.bulk.tensor` copies, and where each byte of a box goes.
//!
//! [`TensorMap::new`] checks the arguments of `cuTensorMapEncodeTiled`. [`TensorMap::encode`] makes the 128 bytes that a
//! kernel takes; they are opaque on hardware too, and these have a form of their own, with a mark and a checksum, so that
//! bytes which come from anywhere else are recognised. [`TensorMap::tile`] lists the bytes of a box.
//!
//! Each argument was read from two sources: NVIDIA's text (the driver API's "Tensor Map Object Management", and section 5.5
//! "Tensors" of the PTX ISA, version 9.1), and what kernels that run pass: ThunderKittens, `create_tensor_map` in
//! `include/types/global/tma.cuh`, which asserts the limits too, and CUTLASS, `include/cute/arch/copy_sm90_desc.hpp`.
//!
//! | argument | text | use |
//! |---|---|---|
//! | data type | driver API: `CUtensorMapDataType` and its bytes; the first 13 values | CUTLASS: the value of each type of C++; floats as `FLOAT32`, tf32 as `TFLOAT32` |
//! | rank | "must be non-zero and less than or equal to ... 5" | ThunderKittens: 4, and 5 with a swizzle |
//! | address | "16 byte aligned" | ThunderKittens asserts it |
//! | extents | "non-zero and less than or equal to 2^32"; the innermost first | ThunderKittens: columns first |
//! | strides | "multiple of 16 and less than 2^40", in bytes, of all dimensions but the first | ThunderKittens asserts the multiple, and passes one fewer than extents, the row's bytes first |
//! | box | "non-zero and less than or equal to 256"; bytes of a row "a multiple of 16" and at most the swizzle's; ISA 5.5.3.1 "Bounding Box" | ThunderKittens asserts all three |
//! | element strides | "non-zero and less than or equal to 8", the first "ignored"; `ceil(boxDim / elementStrides)` elements | ThunderKittens: 1, asserts at most 8. No kernel was found that passes others |
//! | interleave | `NC/8HWC8` and `NC/16HWC16`, rank at least 3 | both: none; refused here after the checks |
//! | swizzle | "Swizzle 16B chunks within" 32, 64 or 128 bytes; ISA 5.5.7 "Swizzling Modes" has the permutations | both choose it by the bytes of a row, and read the tile through a matrix descriptor of the same swizzle |
//! | promotion to L2 | `CUtensorMapL2promotion`; no effect on results | CUTLASS: the same numbers |
//! | fill | zeros, or a NaN for floating-point types; ISA 5.5.3.3 "Out of Boundary Access" | both: zeros. CUTLASS names the other a constant |
//!
//! The numbers of the enumerations are those of `cuda.h`; the tests of the emulated driver pass them as `cudarc`'s bindings have
//! them. Shared memory is laid out as the CUDA programming guide says in "Using the tensor memory accelerator": elements of
//! a box follow one another, the first dimension innermost. Under a swizzle a row of the box takes the whole span of the
//! swizzle, even if the row is shorter.

mod checks;
mod encoding;
mod tile;

#[cfg(test)]
mod tests;

pub use checks::TensorMapError;
pub use encoding::{BadTensorMap, TENSOR_MAP_BYTES};
pub use tile::{Chunk, Element, Tile, TileError};

use crate::swizzle::Swizzle;

/// Most dimensions of a tensor map.
pub const MAX_RANK: usize = 5;

/// Enumerations with the numbers that the driver API gives their values.
macro_rules! driver_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $number:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$variant_doc])* $variant,)* }

        impl $name {
            /// The value with this number in the driver API.
            pub const fn from_number(number: u32) -> Option<Self> {
                match number {
                    $($number => Some(Self::$variant),)*
                    _ => None,
                }
            }

            /// Its number in the driver API.
            pub const fn number(self) -> u32 {
                match self {
                    $(Self::$variant => $number,)*
                }
            }
        }
    };
}

driver_enum! {
    /// The type of the elements (`CUtensorMapDataType`).
    ElementType {
        /// Unsigned, 8 bits.
        U8 = 0,
        /// Unsigned, 16 bits.
        U16 = 1,
        /// Unsigned, 32 bits.
        U32 = 2,
        /// Signed, 32 bits.
        S32 = 3,
        /// Unsigned, 64 bits.
        U64 = 4,
        /// Signed, 64 bits.
        S64 = 5,
        /// Half precision.
        F16 = 6,
        /// Single precision.
        F32 = 7,
        /// Double precision.
        F64 = 8,
        /// Brain floating point.
        Bf16 = 9,
        /// Single precision, of which subnormal numbers are copied as zeros.
        F32Ftz = 10,
        /// Single precision, rounded to TF32 by the copy.
        Tf32 = 11,
        /// Single precision, rounded to TF32 by the copy, subnormal numbers as zeros.
        Tf32Ftz = 12,
    }
}

impl ElementType {
    /// Bytes of an element.
    pub const fn bytes(self) -> u32 {
        match self {
            Self::U8 => 1,
            Self::U16 | Self::F16 | Self::Bf16 => 2,
            Self::U64 | Self::S64 | Self::F64 => 8,
            _ => 4,
        }
    }

    /// Whether it is a floating-point type.
    pub const fn is_float(self) -> bool {
        !matches!(
            self,
            Self::U8 | Self::U16 | Self::U32 | Self::S32 | Self::U64 | Self::S64
        )
    }

    /// Whether a copy leaves the bits of an element alone. The other types are converted by the copy, in ways that are
    /// not documented to the bit.
    pub const fn copies_bits(self) -> bool {
        !matches!(self, Self::F32Ftz | Self::Tf32 | Self::Tf32Ftz)
    }
}

driver_enum! {
    /// How the channels of an image are interleaved (`CUtensorMapInterleave`).
    Interleave {
        /// They are not.
        None = 0,
        /// In groups of 16 bytes.
        B16 = 1,
        /// In groups of 32 bytes.
        B32 = 2,
    }
}

driver_enum! {
    /// How much a copy brings into the L2 cache (`CUtensorMapL2promotion`). It has no effect on results.
    L2Promotion {
        /// No more than is asked for.
        None = 0,
        /// 64 bytes at a time.
        B64 = 1,
        /// 128 bytes at a time.
        B128 = 2,
        /// 256 bytes at a time.
        B256 = 3,
    }
}

driver_enum! {
    /// What elements outside the tensor are in shared memory (`CUtensorMapFloatOOBfill`).
    Fill {
        /// Zeros.
        Zeros = 0,
        /// A NaN; only for floating-point types.
        Nan = 1,
    }
}

impl Swizzle {
    /// The swizzle with this number in the driver API (`CUtensorMapSwizzle`), of those that devices of compute
    /// capability 9.0 have.
    pub const fn from_number(number: u32) -> Option<Self> {
        match number {
            0 => Some(Self::None),
            1 => Some(Self::B32),
            2 => Some(Self::B64),
            3 => Some(Self::B128),
            _ => None,
        }
    }

    /// Its number in the driver API.
    pub const fn number(self) -> u32 {
        match self {
            Self::None => 0,
            Self::B32 => 1,
            Self::B64 => 2,
            Self::B128 => 3,
        }
    }
}

/// A dimension of the tensor and of the boxes that are copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Dimension {
    /// Elements of the tensor.
    pub extent: u64,
    /// Bytes from one element to the next. The first dimension has none: its elements are adjacent.
    pub stride: u64,
    /// Elements of the tensor that a box spans.
    pub box_extent: u32,
    /// A box takes every so manieth element. It does nothing in the first dimension unless channels are interleaved.
    pub element_stride: u32,
}

/// What a tensor map is made from: the arguments of `cuTensorMapEncodeTiled`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tiled {
    /// The type of an element.
    pub element: ElementType,
    /// The address of the first element in global memory.
    pub address: u64,
    /// The dimensions, the innermost first.
    pub dimensions: Vec<Dimension>,
    /// Whether channels are interleaved.
    pub interleave: Interleave,
    /// The swizzle of shared memory.
    pub swizzle: Swizzle,
    /// How much is brought into the L2 cache.
    pub l2_promotion: L2Promotion,
    /// What is outside the tensor.
    pub fill: Fill,
}

impl Tiled {
    /// A dense tensor with the given extents, of which boxes of the given extents are copied: no interleaving, no
    /// swizzle, zeros outside. `extents` and `box_extents` have the innermost dimension first, and as many entries.
    pub fn dense(element: ElementType, address: u64, extents: &[u64], box_extents: &[u32]) -> Self {
        let mut stride = u64::from(element.bytes());
        let dimension = |(&extent, &box_extent): (&u64, &u32)| {
            let this = stride;
            stride = stride.saturating_mul(extent);
            Dimension {
                extent,
                stride: this,
                box_extent,
                element_stride: 1,
            }
        };
        Self {
            element,
            address,
            dimensions: extents.iter().zip(box_extents).map(dimension).collect(),
            interleave: Interleave::None,
            swizzle: Swizzle::None,
            l2_promotion: L2Promotion::None,
            fill: Fill::Zeros,
        }
    }

    /// The same with a swizzle.
    #[must_use]
    pub fn swizzle(mut self, swizzle: Swizzle) -> Self {
        self.swizzle = swizzle;
        self
    }
}

/// A tensor map whose arguments were checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorMap {
    tiled: Tiled,
}

impl TensorMap {
    /// Checks the arguments.
    ///
    /// # Errors
    /// The first argument that `cuTensorMapEncodeTiled` would refuse, or that is not supported here.
    pub fn new(tiled: Tiled) -> Result<Self, TensorMapError> {
        checks::check(&tiled)?;
        Ok(Self { tiled })
    }

    /// What it was made from.
    pub fn tiled(&self) -> &Tiled {
        &self.tiled
    }

    /// Dimensions.
    pub fn rank(&self) -> usize {
        self.tiled.dimensions.len()
    }

    /// The same map of another tensor (`cuTensorMapReplaceAddress`).
    ///
    /// # Errors
    /// The address is not aligned.
    pub fn with_address(&self, address: u64) -> Result<Self, TensorMapError> {
        let mut tiled = self.tiled.clone();
        tiled.address = address;
        Self::new(tiled)
    }

    /// Elements that a box takes along a dimension.
    fn count(&self, dimension: usize) -> u32 {
        let Dimension {
            box_extent,
            element_stride,
            ..
        } = self.tiled.dimensions[dimension];
        match dimension {
            0 => box_extent,
            _ => box_extent.div_ceil(element_stride),
        }
    }

    /// Rows of a box: the elements of every dimension but the first.
    fn rows(&self) -> u32 {
        // Four dimensions of 256 are more than 32 bits hold; no shared memory is as large.
        (1..self.rank())
            .map(|i| self.count(i))
            .fold(1, u32::saturating_mul)
    }

    /// Bytes of a row of a box.
    fn row_bytes(&self) -> u32 {
        self.count(0) * self.tiled.element.bytes()
    }

    /// Bytes from one row of a box to the next in shared memory.
    fn pitch(&self) -> u32 {
        match self.tiled.swizzle {
            Swizzle::None => self.row_bytes(),
            swizzle => swizzle.span(),
        }
    }

    /// Bytes that the barrier of a copy is told of: those of the whole box, whether they are in the tensor or not.
    pub fn transaction_bytes(&self) -> u32 {
        self.rows().saturating_mul(self.row_bytes())
    }

    /// Bytes of shared memory that a box takes.
    pub fn shared_bytes(&self) -> u32 {
        self.rows().saturating_mul(self.pitch())
    }
}
