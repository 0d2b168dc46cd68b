//! How tensor copies and `wgmma` permute 16-byte chunks of shared memory.

/// A swizzle: which bits of a shared address choose among the 16-byte chunks of a row.
///
/// The permutation acts on the bits of the shared *address*, not on offsets in a tile: address bits 7 to 9 (128-byte
/// swizzle), 7 and 8 (64-byte) or 7 (32-byte) are added without carry to the bits from 4 upwards. A tile whose address
/// is not a multiple of [`pattern`](Self::pattern) therefore begins in the middle of the pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Swizzle {
    /// Chunks stay where they are.
    #[default]
    None,
    /// Two chunks of a row of 32 bytes.
    B32,
    /// Four chunks of a row of 64 bytes.
    B64,
    /// Eight chunks of a row of 128 bytes.
    B128,
}

impl Swizzle {
    /// Bytes of a row, in which chunks change places; 16 without a swizzle.
    pub const fn span(self) -> u32 {
        match self {
            Self::None => 16,
            Self::B32 => 32,
            Self::B64 => 64,
            Self::B128 => 128,
        }
    }

    /// Bytes after which the permutation repeats: eight rows.
    pub const fn pattern(self) -> u32 {
        8 * self.span()
    }

    /// Where the byte is that would be at `address` without the swizzle. It is its own inverse.
    #[inline]
    pub const fn apply(self, address: u32) -> u32 {
        address ^ ((address >> 3) & (self.span() - 16))
    }
}

impl std::fmt::Display for Swizzle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::None => f.write_str("no swizzle"),
            _ => write!(f, "{}-byte swizzle", self.span()),
        }
    }
}
