//! The device and how it works, from the environment; read once.

use std::env;
use std::sync::LazyLock;

use ptx_emulator::Checks;

/// What the environment says.
pub struct Settings {
    /// Devices: one, or none.
    pub devices: i32,
    /// Major and minor.
    pub compute_capability: (i32, i32),
    /// Bytes of device memory.
    pub memory: u64,
    /// Whether memory can be allocated in stream order.
    pub memory_pools: bool,
    /// Work is done when it is enqueued, not when something waits for it.
    pub blocking: bool,
    /// Of the emulator.
    pub checks: Checks,
    /// Of schedules.
    pub seed: u64,
}

/// The settings of this process.
pub static SETTINGS: LazyLock<Settings> = LazyLock::new(Settings::read);

impl Settings {
    fn read() -> Self {
        let hidden = env::var("CUDA_VISIBLE_DEVICES").is_ok_and(|list| !list.starts_with('0'));
        let capability = variable("PTX_EMULATOR_COMPUTE_CAPABILITY", (9, 0), |text| {
            let (major, minor) = text.split_once('.')?;
            Some((major.parse().ok()?, minor.parse().ok()?))
        });
        let flag = |name, default| {
            variable(name, default, |text| match text {
                "0" => Some(false),
                "1" => Some(true),
                _ => None,
            })
        };
        Self {
            devices: i32::from(!hidden),
            compute_capability: capability,
            memory: variable("PTX_EMULATOR_MEMORY", 16 << 30, |text| text.parse().ok()),
            memory_pools: flag("PTX_EMULATOR_MEMORY_POOLS", true),
            blocking: flag("CUDA_LAUNCH_BLOCKING", false),
            checks: match flag("PTX_EMULATOR_CHECKS", true) {
                true => Checks::all(),
                false => Checks::none(),
            },
            seed: variable("PTX_EMULATOR_SEED", 1, |text| text.parse().ok()),
        }
    }

    /// Shared memory that a block may have when it asks for more than [`SHARED_BYTES`].
    pub fn shared_optin(&self) -> i32 {
        1024 * match self.compute_capability {
            (8, 0 | 7) => 163,
            (8, _) | (12, _) => 99,
            (7, 5) => 64,
            _ => 227,
        }
    }

    /// The value of an attribute (`CUdevice_attribute`): 0 for what the device cannot do.
    pub fn attribute(&self, attribute: i32) -> i32 {
        let (major, minor) = self.compute_capability;
        let (processors, threads) = match self.compute_capability {
            (8, 0) => (108, 2048),
            (8, _) => (84, 1536),
            (10, _) => (148, 2048),
            (12, _) => (170, 1536),
            _ => (132, 2048),
        };
        match attribute {
            1..=3 => 1024,                    // MAX_THREADS_PER_BLOCK, MAX_BLOCK_DIM_X and _Y
            4 => 64,                          // MAX_BLOCK_DIM_Z
            5 => i32::MAX,                    // MAX_GRID_DIM_X
            6 | 7 => 65535,                   // MAX_GRID_DIM_Y and _Z
            8 => SHARED_BYTES,                // MAX_SHARED_MEMORY_PER_BLOCK
            9 => 65536,                       // TOTAL_CONSTANT_MEMORY
            10 => 32,                         // WARP_SIZE
            12 | 82 => 65536,                 // MAX_REGISTERS_PER_BLOCK, _PER_MULTIPROCESSOR
            13 | 36 => 1_000_000,             // CLOCK_RATE, MEMORY_CLOCK_RATE
            14 => 512,                        // TEXTURE_ALIGNMENT
            16 => processors,                 // MULTIPROCESSOR_COUNT
            31 | 41 => 1,                     // CONCURRENT_KERNELS, UNIFIED_ADDRESSING
            37 => 5120,                       // GLOBAL_MEMORY_BUS_WIDTH
            38 => 50 << 20,                   // L2_CACHE_SIZE
            39 => threads,                    // MAX_THREADS_PER_MULTIPROCESSOR
            75 => major,                      // COMPUTE_CAPABILITY_MAJOR
            76 => minor,                      // COMPUTE_CAPABILITY_MINOR
            81 => self.shared_optin() + 1024, // MAX_SHARED_MEMORY_PER_MULTIPROCESSOR
            97 => self.shared_optin(),        // MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
            106 => 32,                        // MAX_BLOCKS_PER_MULTIPROCESSOR
            111 => 1024,                      // RESERVED_SHARED_MEMORY_PER_BLOCK
            115 => self.memory_pools.into(),  // MEMORY_POOLS_SUPPORTED
            _ => 0,
        }
    }
}

/// Shared memory that a block may have without asking.
pub const SHARED_BYTES: i32 = 48 * 1024;

fn variable<T>(name: &str, default: T, parse: impl Fn(&str) -> Option<T>) -> T {
    match env::var(name) {
        Err(_) => default,
        Ok(text) => parse(&text).unwrap_or_else(|| {
            eprintln!("ptx-emulator-driver: {name}={text} is not understood and not used");
            default
        }),
    }
}
