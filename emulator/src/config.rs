//! Launch geometry, checks and parameter bytes.

/// Which checks a launch makes. Bounds and alignment are always checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Checks {
    /// Races on shared memory, and touching a pending asynchronous copy.
    pub shared_races: bool,
    /// Races on global memory, between the blocks of the launch and between the warps of a block.
    pub global_races: bool,
    /// Reads of shared memory nobody wrote.
    pub uninit_shared: bool,
    /// Reads of global memory (from [`Memory::alloc`](crate::Memory::alloc)) nobody wrote.
    pub uninit_global: bool,
}

impl Checks {
    /// Every check.
    pub const fn all() -> Self {
        Self {
            shared_races: true,
            global_races: true,
            uninit_shared: true,
            uninit_global: true,
        }
    }

    /// Only bounds, alignment and barrier rules.
    pub const fn none() -> Self {
        Self {
            shared_races: false,
            global_races: false,
            uninit_shared: false,
            uninit_global: false,
        }
    }

    /// Switches the shared race detector.
    pub const fn shared_races(mut self, on: bool) -> Self {
        self.shared_races = on;
        self
    }

    /// Switches the global race detector.
    pub const fn global_races(mut self, on: bool) -> Self {
        self.global_races = on;
        self
    }

    /// Switches the check for uninitialised shared memory.
    pub const fn uninit_shared(mut self, on: bool) -> Self {
        self.uninit_shared = on;
        self
    }

    /// Switches the check for uninitialised global memory.
    pub const fn uninit_global(mut self, on: bool) -> Self {
        self.uninit_global = on;
        self
    }
}

impl Default for Checks {
    fn default() -> Self {
        Self::all()
    }
}

/// Geometry and policy of one launch.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LaunchConfig {
    /// Blocks in x, y, z.
    pub grid: (u32, u32, u32),
    /// Threads of a block in x, y, z.
    pub block: (u32, u32, u32),
    /// Dynamic shared memory in bytes.
    pub shared_bytes: u32,
    /// Shared memory one block may have, static and dynamic together (default: 227 KiB).
    pub shared_limit: u32,
    /// Seeds the order of blocks and warps. The same seed gives the same schedule within a block.
    pub seed: u64,
    /// Blocks run at once; 0 means as many as the rayon pool has threads. With 1 even the order of
    /// blocks is a function of the seed.
    pub threads: usize,
    /// Registers of each thread when the kernel starts, which `setmaxnreg` exchanges (default: `.maxnreg`
    /// of the kernel, else what a compiler may use for as many threads).
    pub registers: Option<u32>,
    /// The checks.
    pub checks: Checks,
    /// Warp-instructions per block after which the launch is a [`FaultKind::Timeout`](crate::FaultKind::Timeout).
    pub max_warp_instructions: u64,
}

impl LaunchConfig {
    /// A launch of `grid` blocks of `block` threads, no dynamic shared memory, all checks on.
    pub fn new(grid: impl Into<Dim3>, block: impl Into<Dim3>) -> Self {
        Self {
            grid: grid.into().0,
            block: block.into().0,
            shared_bytes: 0,
            shared_limit: 227 * 1024,
            seed: 0,
            threads: 0,
            registers: None,
            checks: Checks::all(),
            max_warp_instructions: 1_000_000_000,
        }
    }

    /// Sets the dynamic shared memory in bytes.
    pub fn shared_bytes(mut self, bytes: u32) -> Self {
        self.shared_bytes = bytes;
        self
    }

    /// Sets the shared memory one block may have.
    pub fn shared_limit(mut self, bytes: u32) -> Self {
        self.shared_limit = bytes;
        self
    }

    /// Sets the seed of the schedule.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Sets how many blocks run at once.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// Sets the registers of each thread when the kernel starts.
    pub fn registers(mut self, registers: u32) -> Self {
        self.registers = Some(registers);
        self
    }

    /// Sets the checks.
    pub fn checks(mut self, checks: Checks) -> Self {
        self.checks = checks;
        self
    }

    /// Sets the limit of warp-instructions per block.
    pub fn max_warp_instructions(mut self, limit: u64) -> Self {
        self.max_warp_instructions = limit;
        self
    }
}

/// Three extents; converts from a number, a pair or a triple.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dim3(pub (u32, u32, u32));

impl From<u32> for Dim3 {
    fn from(x: u32) -> Self {
        Self((x, 1, 1))
    }
}

impl From<(u32, u32)> for Dim3 {
    fn from((x, y): (u32, u32)) -> Self {
        Self((x, y, 1))
    }
}

impl From<(u32, u32, u32)> for Dim3 {
    fn from(d: (u32, u32, u32)) -> Self {
        Self(d)
    }
}

/// A value that can be a kernel argument or an array element: a plain little-endian number.
pub trait Scalar: Copy + sealed::Sealed {
    /// Size, and natural alignment, in bytes.
    const SIZE: usize;
    /// Appends the little-endian bytes.
    fn put(self, out: &mut Vec<u8>);
    /// Reads the little-endian bytes; `bytes` has [`Self::SIZE`] of them.
    fn get(bytes: &[u8]) -> Self;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! scalar {
    ($($t:ty),*) => {$(
        impl sealed::Sealed for $t {}
        impl Scalar for $t {
            const SIZE: usize = size_of::<$t>();
            fn put(self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
            fn get(bytes: &[u8]) -> Self {
                let mut b = [0u8; size_of::<$t>()];
                b.copy_from_slice(&bytes[..size_of::<$t>()]);
                <$t>::from_le_bytes(b)
            }
        }
    )*};
}

scalar!(
    u8,
    i8,
    u16,
    i16,
    u32,
    i32,
    u64,
    i64,
    f32,
    f64,
    half::f16,
    half::bf16
);

impl sealed::Sealed for crate::DevicePtr {}

impl Scalar for crate::DevicePtr {
    const SIZE: usize = 8;
    fn put(self, out: &mut Vec<u8>) {
        self.0.put(out);
    }
    fn get(bytes: &[u8]) -> Self {
        Self(u64::get(bytes))
    }
}

/// Builds the parameter bytes of a kernel by value, with C's alignment rules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Params {
    bytes: Vec<u8>,
}

impl Params {
    /// No parameters yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a number or a pointer at its natural alignment.
    pub fn arg<T: Scalar>(mut self, value: T) -> Self {
        self.align(T::SIZE);
        value.put(&mut self.bytes);
        self
    }

    /// Appends a structure passed by value, as its bytes.
    pub fn arg_bytes(mut self, bytes: &[u8], align: usize) -> Self {
        self.align(align);
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// The bytes so far.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The parameter block.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    fn align(&mut self, align: usize) {
        let len = self.bytes.len().next_multiple_of(align.max(1));
        self.bytes.resize(len, 0);
    }
}

impl AsRef<[u8]> for Params {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}
