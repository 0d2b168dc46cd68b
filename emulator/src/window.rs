//! Where the state spaces lie in the generic address space.

/// Bases of the windows. Device memory lies below them all.
pub(crate) struct Window;

impl Window {
    pub const SHARED: u64 = 0x0001_0000_0000_0000;
    pub const LOCAL: u64 = 0x0002_0000_0000_0000;
    pub const PARAM: u64 = 0x0003_0000_0000_0000;
    /// Size of each window.
    pub const SIZE: u64 = 1 << 32;
}
