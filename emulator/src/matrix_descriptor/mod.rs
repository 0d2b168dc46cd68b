//! Matrix descriptors: where `wgmma` finds the elements of an operand in shared memory.
//!
//! An operand of `wgmma` is a matrix of M or N rows with 32 bytes along K: 16 elements of 16 bits. A descriptor says
//! where it is in shared memory. With `c` for a 16-byte chunk, `W` for the chunks of a swizzle's row (1, 2, 4 or 8), LBO
//! and SBO for the leading and the stride byte offset, and before the swizzle is applied to the bits of the address:
//!
//! | | element (row, k) is in the chunk at |
//! |---|---|
//! | K-major, no swizzle | `start + 16 (row mod 8) + SBO (row / 8) + LBO c`, `c` = chunk along K |
//! | K-major, swizzle | `start + 16 W (row mod 8) + SBO (row / 8) + 16 c` |
//! | MN-major, no swizzle | `start + 16 (k mod 8) + LBO (k / 8) + SBO c`, `c` = chunk along the rows |
//! | MN-major, swizzle | `start + 16 W (k mod 8) + SBO (k / 8) + 16 (c mod W) + LBO (c / W)` |
//!
//! Each field was read from two sources that do not depend on each other: the PTX ISA (version 9.1, subsections of 9.7.15.5.1.2
//! "Shared Memory Matrix Layout"), and kernels that run: CUTLASS, `include/cute/arch/mma_sm90_desc.hpp` and the canonical
//! layouts in `include/cute/atom/mma_traits_sm90_gmma.hpp`, and ThunderKittens, `include/types/shared/st_descriptor.cuh`.
//!
//! | field | PTX ISA | use |
//! |---|---|---|
//! | start address, bits 0-13 | "Matrix Descriptor Format": `(x & 0x3FFFF) >> 4` | CUTLASS: 14 bits, "4LSB not included". ThunderKittens advances along K by adding 32 bytes to it inside a row of the swizzle (K-major), or two groups of eight lines (MN-major) |
//! | leading byte offset, bits 16-29, K-major | "Leading Dimension Byte Offset": "the offset from the first column to the second columns of the 8x2 tile"; swizzled "not used" | CUTLASS: "from the first col to the second col of the 8x2 brick in INTERLEAVED. Unused for all SWIZZLE_* layouts". ThunderKittens: "this line doesn't matter" |
//! | the same, MN-major | without a swizzle "from the first 8 columns to the next 8 columns", with one "from the first (swizzle-byte-size/16) rows to the next" | CUTLASS' canonical layouts have LBO in those places. ThunderKittens, swizzled: the bytes of a whole panel of one swizzle's width |
//! | stride byte offset, bits 32-45, K-major | "Stride Dimension Byte Offset": "from the first 8 rows to the next 8 rows" | CUTLASS: the same words. ThunderKittens: 1024, 512, 256 bytes, a pattern |
//! | the same, MN-major | without a swizzle "from the first row to the next row" (of chunks), with one "from the first 8 columns to the next 8 columns" | CUTLASS: "from the first 8 cols to the next 8 cols", and SBO so placed in its layouts. ThunderKittens, swizzled: a pattern |
//! | base offset, bits 49-51 | "Matrix Descriptor Format": 0 where patterns begin at multiples of their size | CUTLASS: those bits, "Valid only for SWIZZLE_128B and SWIZZLE_64B", always 0. ThunderKittens: 0 |
//! | swizzle, bits 62-63 | 0 none, 1 128 bytes, 2 64 bytes, 3 32 bytes | CUTLASS: `LayoutType`, the same numbers; ThunderKittens too |
//! | the permutation | "Canonical Layouts": `Swizzle<1..3, 4, 3>` on each layout; 5.5.7 "Swizzling Modes" has the tables | the same as that of tensor copies, which fill the tiles of both libraries |
//!
//! That the swizzle acts on the bits of the address, and not on offsets from the start address, follows from how
//! ThunderKittens advances along K, and is what the CUDA programming guide says of tensor copies. The sources differ in one
//! point: after the ISA a base offset counts with every swizzle, after CUTLASS not with that of 32 bytes.
//!
//! What the ISA leaves undefined, and what only one source describes, is an error ([`DescriptorError`]): bits that no
//! field has, a start address in the middle of a swizzle's pattern, offsets that lead there, an operand that leaves the
//! row of the swizzle in which it starts. A base offset other than 0 is refused even where the ISA's formula gives it: no
//! public kernel was found that uses one.

#[cfg(test)]
mod tests;

use crate::swizzle::Swizzle;

/// Bytes of a chunk.
const CHUNK: u32 = 16;
/// Bytes of an operand along K.
const K_BYTES: u32 = 32;

/// Which dimension of an operand is contiguous in shared memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Major {
    /// K: `imm-trans-a` or `imm-trans-b` is 0.
    K,
    /// M of the first operand, N of the second: `imm-trans-a` or `imm-trans-b` is 1.
    Mn,
}

/// A descriptor or its use that the PTX ISA leaves undefined.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DescriptorError {
    /// Bits that are set and that no field has.
    #[error("matrix descriptor {bits:#018x} has bits set that no field has: {reserved:#018x}")]
    Reserved {
        /// The descriptor.
        bits: u64,
        /// Those of its bits that must be 0.
        reserved: u64,
    },
    /// A base offset that does not go with the start address.
    #[error(
        "the base offset is {found}, expected {expected}: the start address is {start:#x}, and the pattern of a \
         {swizzle} begins at multiples of {}",
        .swizzle.pattern()
    )]
    BaseOffset {
        /// The base offset.
        found: u32,
        /// What it must be.
        expected: u32,
        /// The start address.
        start: u32,
        /// The swizzle.
        swizzle: Swizzle,
    },
    /// A start address whose row of the pattern no base offset can express, or that needs one.
    #[error(
        "the start address is {start:#x}, expected one in the first row of the pattern of a {swizzle}, which begins at \
         multiples of {}",
        .swizzle.pattern()
    )]
    Start {
        /// The start address.
        start: u32,
        /// The swizzle.
        swizzle: Swizzle,
    },
    /// An offset that does not lead to the begin of a pattern.
    #[error("the {field} byte offset is {found}, expected a multiple of {} with a {swizzle}", .swizzle.pattern())]
    Offset {
        /// `leading` or `stride`.
        field: &'static str,
        /// The offset.
        found: u32,
        /// The swizzle.
        swizzle: Swizzle,
    },
    /// Chunks past the row of the swizzle.
    #[error(
        "the operand starts at chunk {first} of a row and has {chunks} chunks there, more than the {} of a {swizzle}",
        .swizzle.span() / CHUNK
    )]
    Row {
        /// The chunk of the row that the start address is in.
        first: u32,
        /// Chunks that the operand has in a row.
        chunks: u32,
        /// The swizzle.
        swizzle: Swizzle,
    },
    /// A number of rows that no shape has.
    #[error("the operand has {found} rows, expected a multiple of 8 up to 256")]
    Rows {
        /// The rows.
        found: u32,
    },
    /// Elements of a size that the layout is not for.
    #[error("elements have {found} bytes, expected {expected}")]
    ElementBytes {
        /// Bytes of an element.
        found: u32,
        /// What is allowed.
        expected: &'static str,
    },
}

/// A matrix descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MatrixDescriptor {
    /// The shared address of the first element; a multiple of 16 below 2^18.
    pub start: u32,
    /// Leading dimension byte offset; a multiple of 16 below 2^18.
    pub leading: u32,
    /// Stride dimension byte offset; a multiple of 16 below 2^18.
    pub stride: u32,
    /// Base offset; below 8.
    pub base_offset: u32,
    /// The swizzle.
    pub swizzle: Swizzle,
}

/// Bits 14-15, 30-31, 46-48 and 52-61.
const RESERVED: u64 = 0x3ff1_c000_c000_c000;

impl MatrixDescriptor {
    /// Reads the 64 bits of a descriptor.
    ///
    /// # Errors
    /// [`DescriptorError::Reserved`] when bits are set that no field has.
    pub fn parse(bits: u64) -> Result<Self, DescriptorError> {
        if bits & RESERVED != 0 {
            return Err(DescriptorError::Reserved {
                bits,
                reserved: bits & RESERVED,
            });
        }
        let bytes = |shift: u32| ((bits >> shift) as u32 & 0x3fff) << 4;
        Ok(Self {
            start: bytes(0),
            leading: bytes(16),
            stride: bytes(32),
            base_offset: (bits >> 49) as u32 & 7,
            swizzle: match bits >> 62 {
                0 => Swizzle::None,
                1 => Swizzle::B128,
                2 => Swizzle::B64,
                _ => Swizzle::B32,
            },
        })
    }

    /// The 64 bits. Of addresses and offsets bits 4 to 17 are kept, as the ISA's `matrix-descriptor-encode` does.
    pub fn bits(&self) -> u64 {
        let encode = |bytes: u32, shift: u32| u64::from((bytes & 0x3_ffff) >> 4) << shift;
        let swizzle = match self.swizzle {
            Swizzle::None => 0,
            Swizzle::B128 => 1,
            Swizzle::B64 => 2,
            Swizzle::B32 => 3,
        };
        encode(self.start, 0)
            | encode(self.leading, 16)
            | encode(self.stride, 32)
            | u64::from(self.base_offset & 7) << 49
            | swizzle << 62
    }

    /// The operand of `rows` rows (M or N) with elements of `element_bytes` bytes that the descriptor is of.
    ///
    /// # Errors
    /// What the ISA leaves undefined.
    pub fn operand(
        self,
        major: Major,
        rows: u32,
        element_bytes: u32,
    ) -> Result<Operand, DescriptorError> {
        if rows == 0 || rows > 256 || !rows.is_multiple_of(8) {
            return Err(DescriptorError::Rows { found: rows });
        }
        let (allowed, expected) = match major {
            Major::K => (matches!(element_bytes, 1 | 2 | 4), "1, 2 or 4"),
            Major::Mn => (element_bytes == 2, "2 in an operand that is MN-major"),
        };
        if !allowed {
            return Err(DescriptorError::ElementBytes {
                found: element_bytes,
                expected,
            });
        }
        let operand = Operand {
            descriptor: self,
            major,
            rows,
            element_bytes,
        };
        self.check_start()?;
        operand.check_rows()?;
        Ok(operand)
    }

    /// The start address is in the first row of a pattern, and the base offset says so.
    fn check_start(&self) -> Result<(), DescriptorError> {
        let Self {
            start,
            swizzle,
            base_offset: found,
            ..
        } = *self;
        let in_first_row = start % swizzle.pattern() < swizzle.span();
        let expected = match in_first_row || swizzle == Swizzle::None {
            true => 0,
            false => (start >> 7) & 7,
        };
        if found != expected {
            return Err(DescriptorError::BaseOffset {
                found,
                expected,
                start,
                swizzle,
            });
        }
        match in_first_row || swizzle == Swizzle::None {
            true => Ok(()),
            false => Err(DescriptorError::Start { start, swizzle }),
        }
    }
}

/// An operand in shared memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Operand {
    descriptor: MatrixDescriptor,
    major: Major,
    rows: u32,
    element_bytes: u32,
}

impl Operand {
    /// The shared address of an element. `row` is below the rows of the operand, `k` below 32 bytes of elements.
    #[inline]
    pub fn address(&self, row: u32, k: u32) -> u32 {
        let per_chunk = CHUNK / self.element_bytes;
        match self.major {
            Major::K => self.chunk(row, k / per_chunk) + k % per_chunk * self.element_bytes,
            Major::Mn => self.chunk(k, row / per_chunk) + row % per_chunk * self.element_bytes,
        }
    }

    /// The shared address of a chunk of 16 bytes. A line is a row of a K-major operand, or a `k` of one that is
    /// MN-major; the chunks of a line follow one another along the other dimension.
    #[inline]
    pub fn chunk(&self, line: u32, chunk: u32) -> u32 {
        let MatrixDescriptor {
            start,
            leading,
            stride,
            swizzle,
            ..
        } = self.descriptor;
        let width = swizzle.span() / CHUNK;
        let group = line / 8;
        let line = start + line % 8 * swizzle.span();
        let address = match (self.major, swizzle) {
            (Major::K, Swizzle::None) => line + group * stride + chunk * leading,
            (Major::K, _) => line + group * stride + chunk * CHUNK,
            (Major::Mn, Swizzle::None) => line + group * leading + chunk * stride,
            (Major::Mn, _) => {
                line + group * stride + chunk % width * CHUNK + chunk / width * leading
            }
        };
        swizzle.apply(address)
    }

    /// Lines of the operand (see [`chunk`](Self::chunk)), and chunks in each.
    pub fn lines_and_chunks(&self) -> (u32, u32) {
        match self.major {
            Major::K => (self.rows, K_BYTES / CHUNK),
            Major::Mn => (
                K_BYTES / self.element_bytes,
                self.rows * self.element_bytes / CHUNK,
            ),
        }
    }

    /// Addresses of all chunks of the operand.
    pub fn chunks(&self) -> impl Iterator<Item = u32> + use<> {
        let operand = *self;
        let (lines, chunks) = self.lines_and_chunks();
        (0..lines).flat_map(move |line| (0..chunks).map(move |chunk| operand.chunk(line, chunk)))
    }

    /// Every group of eight lines begins where a pattern does, and no line leaves the row of the swizzle.
    fn check_rows(&self) -> Result<(), DescriptorError> {
        let MatrixDescriptor {
            start,
            leading,
            stride,
            swizzle,
            ..
        } = self.descriptor;
        if swizzle == Swizzle::None {
            return Ok(());
        }
        let width = swizzle.span() / CHUNK;
        let (lines, chunks) = self.lines_and_chunks();
        let first = start % swizzle.span() / CHUNK;
        if first + chunks.min(width) > width {
            return Err(DescriptorError::Row {
                first,
                chunks: chunks.min(width),
                swizzle,
            });
        }
        let offsets = [
            ("stride", stride, lines > 8),
            ("leading", leading, chunks > width),
        ];
        for (field, found, used) in offsets {
            if used && !found.is_multiple_of(swizzle.pattern()) {
                return Err(DescriptorError::Offset {
                    field,
                    found,
                    swizzle,
                });
            }
        }
        Ok(())
    }
}
