//! The device that is played: what `cuDeviceGetAttribute` says of it, and what modules and launches are checked against.
//!
//! Limits by compute capability are those of the CUDA C++ programming guide ("Technical specifications per compute
//! capability"); numbers of multiprocessors and sizes of caches are those of one product of that capability.

/// What a device of a compute capability has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// Major and minor.
    pub capability: (i32, i32),
    /// Multiprocessors.
    pub processors: i32,
    /// Threads of a multiprocessor.
    pub threads: i32,
    /// Blocks of a multiprocessor.
    pub blocks: i32,
    /// Shared memory of a multiprocessor, in KiB.
    shared: i32,
    /// L2 cache, in MiB.
    l2: i32,
}

/// Shared memory that a block may have without asking.
pub const SHARED_BYTES: i32 = 48 * 1024;

/// Threads of a block.
pub const MAX_THREADS: u32 = 1024;

/// Largest cluster of blocks that every device with clusters can launch.
pub const PORTABLE_CLUSTER: u32 = 8;

impl Device {
    /// The device that is played for a compute capability. What is not in the table is like the next lower one.
    pub fn new(capability: (i32, i32)) -> Self {
        // Multiprocessors, threads, blocks, KiB of shared memory, MiB of cache.
        let (processors, threads, blocks, shared, l2) = match capability {
            // A100.
            (8, 0) => (108, 2048, 32, 164, 40),
            // RTX A6000.
            (8, 6) => (84, 1536, 16, 100, 6),
            // Jetson Orin.
            (8, 7) => (16, 1536, 16, 164, 4),
            // RTX 4090.
            (8, _) => (128, 1536, 24, 100, 72),
            // H100.
            (9, _) => (132, 2048, 32, 228, 50),
            // B200.
            (10 | 11, _) => (148, 2048, 32, 228, 126),
            // RTX 5090.
            (12.., _) => (170, 1536, 24, 100, 96),
            // RTX 2080 Ti.
            _ => (68, 1024, 16, 64, 5),
        };
        Self {
            capability,
            processors,
            threads,
            blocks,
            shared,
            l2,
        }
    }

    /// Tensor maps, bulk copies, clusters, and launches that overlap with those before them.
    pub fn is_hopper_or_later(&self) -> bool {
        self.capability >= (9, 0)
    }

    /// Shared memory of every block that the system takes.
    pub fn shared_reserved(&self) -> i32 {
        match self.capability.0 {
            8.. => 1024,
            _ => 0,
        }
    }

    /// Shared memory of a multiprocessor.
    pub fn shared_processor(&self) -> i32 {
        self.shared * 1024
    }

    /// Shared memory that a block may have when it asks for more than [`SHARED_BYTES`].
    pub fn shared_optin(&self) -> i32 {
        self.shared_processor() - self.shared_reserved()
    }

    /// The largest cluster that a kernel may be launched with if it allows sizes that not every device has.
    pub fn largest_cluster(&self) -> u32 {
        match self.capability.0 {
            ..9 => 1,
            9..12 => 16,
            12.. => PORTABLE_CLUSTER,
        }
    }

    /// The value of an attribute (`CUdevice_attribute`): 0 for what the device cannot do.
    pub fn attribute(&self, attribute: i32) -> i32 {
        let (major, minor) = self.capability;
        match attribute {
            1..=3 => MAX_THREADS as i32, // MAX_THREADS_PER_BLOCK, MAX_BLOCK_DIM_X and _Y
            4 => 64,                     // MAX_BLOCK_DIM_Z
            5 => i32::MAX,               // MAX_GRID_DIM_X
            6 | 7 => 65535,              // MAX_GRID_DIM_Y and _Z
            8 => SHARED_BYTES,           // MAX_SHARED_MEMORY_PER_BLOCK
            9 => 65536,                  // TOTAL_CONSTANT_MEMORY
            10 => 32,                    // WARP_SIZE
            12 | 82 => 65536,            // MAX_REGISTERS_PER_BLOCK, _PER_MULTIPROCESSOR
            13 | 36 => 1_000_000,        // CLOCK_RATE, MEMORY_CLOCK_RATE
            14 => 512,                   // TEXTURE_ALIGNMENT
            16 => self.processors,       // MULTIPROCESSOR_COUNT
            31 | 41 | 95 => 1, // CONCURRENT_KERNELS, UNIFIED_ADDRESSING, COOPERATIVE_LAUNCH
            37 => 5120,        // GLOBAL_MEMORY_BUS_WIDTH
            38 => self.l2 << 20, // L2_CACHE_SIZE
            39 => self.threads, // MAX_THREADS_PER_MULTIPROCESSOR
            75 => major,       // COMPUTE_CAPABILITY_MAJOR
            76 => minor,       // COMPUTE_CAPABILITY_MINOR
            81 => self.shared_processor(), // MAX_SHARED_MEMORY_PER_MULTIPROCESSOR
            97 => self.shared_optin(), // MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
            106 => self.blocks, // MAX_BLOCKS_PER_MULTIPROCESSOR
            111 => self.shared_reserved(), // RESERVED_SHARED_MEMORY_PER_BLOCK
            120 | 127 => self.is_hopper_or_later().into(), // CLUSTER_LAUNCH, TENSOR_MAP_ACCESS_SUPPORTED
            _ => 0,
        }
    }

    /// Whether it runs code for an architecture: machine code, or PTX.
    pub fn runs(&self, architecture: Architecture, machine_code: bool) -> bool {
        let (major, minor) = self.capability;
        let device = (10 * major + minor) as u32;
        let same_major = architecture.number / 10 == major as u32;
        match architecture.only {
            Only::Exactly => architecture.number == device,
            Only::Family => same_major && architecture.number <= device,
            Only::Anything => architecture.number <= device && (same_major || !machine_code),
        }
    }
}

/// What code is for, such as `sm_90a`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Architecture {
    /// 10 times the major and once the minor compute capability.
    pub number: u32,
    /// Which devices beside those of that number run it.
    pub only: Only,
}

/// How far code for an architecture runs on later devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Only {
    /// As far as its form allows: machine code up to the next major number, PTX without an end.
    Anything,
    /// Up to the next major number (`f`).
    Family,
    /// Nowhere (`a`).
    Exactly,
}

impl Architecture {
    /// The number and the letter of a name such as `90a`.
    pub fn parse(name: &str) -> Option<Self> {
        let number = name.trim_end_matches(char::is_alphabetic);
        let only = match &name[number.len()..] {
            "" => Only::Anything,
            "f" => Only::Family,
            "a" => Only::Exactly,
            _ => return None,
        };
        Some(Self {
            number: number.parse().ok()?,
            only,
        })
    }
}

impl std::fmt::Display for Architecture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let letter = match self.only {
            Only::Anything => "",
            Only::Family => "f",
            Only::Exactly => "a",
        };
        write!(f, "{}{letter}", self.number)
    }
}
