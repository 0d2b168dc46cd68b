//! What a launch may ask for: the shape, shared memory, and the attributes of `cuLaunchKernelEx`.

use crate::code::{Code, Result};
use crate::device::{MAX_THREADS, PORTABLE_CLUSTER};
use crate::ffi::Host;
use crate::settings::SETTINGS;
use crate::state::{Function, Handle};

/// `CUlaunchConfig`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Config {
    pub shape: Shape,
    pub shared_bytes: u32,
    pub stream: Handle,
    attributes: Host,
    attribute_count: u32,
}

/// Grid and block.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Shape {
    pub grid: [u32; 3],
    pub block: [u32; 3],
}

/// What the attributes of a launch ask for.
#[derive(Clone, Copy, Default)]
pub struct Attributes {
    /// Blocks of a cluster.
    pub cluster: Option<[u32; 3]>,
    /// All blocks run at the same time.
    pub cooperative: bool,
}

/// Says why a call is refused whose code does not.
fn refuse<T>(code: Code, why: &str) -> Result<T> {
    eprintln!("ptx-emulator-driver: {why}");
    Err(code)
}

impl Config {
    /// The configuration of a caller.
    ///
    /// # Safety
    /// It must be null, or a `CUlaunchConfig`.
    pub unsafe fn read(config: Host) -> Result<(Self, Attributes)> {
        if config.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: not null, so there is one, with as many attributes as it says.
        unsafe {
            let config = config.value::<Self>(0);
            let attributes = Attributes::read(config.attributes, config.attribute_count)?;
            Ok((config, attributes))
        }
    }
}

/// A `CUlaunchAttribute`: its name, four bytes, and a union of 64 bytes.
const ATTRIBUTE_BYTES: usize = 72;

impl Attributes {
    /// Those of a configuration.
    ///
    /// # Safety
    /// There must be as many, or the pointer is null.
    unsafe fn read(attributes: Host, count: u32) -> Result<Self> {
        let mut read = Self::default();
        if attributes.is_null() && count > 0 {
            return Err(Code::INVALID_VALUE);
        }
        for i in 0..count as usize {
            let at = ATTRIBUTE_BYTES * i;
            // SAFETY: as the caller says. Every value is at least three numbers long.
            let (name, value) = unsafe {
                let name = attributes.value::<u32>(at);
                (name, attributes.value::<[u32; 3]>(at + 8))
            };
            // CU_LAUNCH_ATTRIBUTE_...
            match name {
                // IGNORE, and what says nothing about results: ACCESS_POLICY_WINDOW, PRIORITY, MEM_SYNC_DOMAIN_MAP,
                // MEM_SYNC_DOMAIN, PREFERRED_SHARED_MEMORY_CARVEOUT, NVLINK_UTIL_CENTRIC_SCHEDULING.
                0 | 1 | 8 | 9 | 10 | 14 | 16 => {}
                // COOPERATIVE
                2 => read.cooperative = value[0] != 0,
                // CLUSTER_DIMENSION
                4 => read.cluster = Some(value),
                // CLUSTER_SCHEDULING_POLICY_PREFERENCE
                5 if value[0] <= 2 => {}
                // PROGRAMMATIC_STREAM_SERIALIZATION: allows to overlap with what is before in the stream, which need not
                // be done.
                6 if value[0] == 0 || SETTINGS.device.is_hopper_or_later() => {}
                6 => {
                    let why = "the device has no programmatic stream serialization";
                    return refuse(Code::NOT_SUPPORTED, why);
                }
                // PROGRAMMATIC_EVENT, PREFERRED_CLUSTER_DIMENSION, LAUNCH_COMPLETION_EVENT,
                // DEVICE_UPDATABLE_KERNEL_NODE
                7 | 11 | 12 | 13 => {
                    let why = format!("launch attribute {name} is not supported");
                    return refuse(Code::NOT_SUPPORTED, &why);
                }
                _ => return Err(Code::INVALID_VALUE),
            }
        }
        Ok(read)
    }
}

impl Function {
    /// Largest block that it can be launched with.
    pub fn max_threads(&self) -> u32 {
        let required = self.info.required_block.map(|(x, y, z)| x * y * z);
        required.or(self.info.max_threads).unwrap_or(MAX_THREADS)
    }

    /// Blocks on a multiprocessor, by what is known: not by registers.
    pub fn occupancy(&self, threads: u32, shared_bytes: usize) -> i32 {
        let device = &SETTINGS.device;
        if threads > self.max_threads() || shared_bytes as i64 > self.max_dynamic.into() {
            return 0;
        }
        let shared = (shared_bytes + self.info.static_shared as usize).next_multiple_of(128);
        let shared = (shared as i32 + device.shared_reserved()).max(1);
        let by_threads = device.threads / threads.next_multiple_of(32) as i32;
        let by_shared = device.shared_processor() / shared;
        by_threads.min(by_shared).min(device.blocks)
    }

    /// What a driver checks of a launch before anything runs.
    pub fn check_launch(&self, shape: Shape, shared_bytes: u32, attributes: Attributes) -> Result {
        let Shape { grid, block } = shape;
        let [x, y, z] = block;
        let threads = block.into_iter().try_fold(1u32, u32::checked_mul);
        let fits = grid.iter().chain(&block).all(|&extent| extent > 0)
            && grid[0] <= i32::MAX as u32
            && grid[1].max(grid[2]) <= 65535
            && z <= 64
            && threads.is_some_and(|threads| threads <= self.max_threads())
            && self
                .info
                .required_block
                .is_none_or(|block| block == (x, y, z))
            && i64::from(shared_bytes) <= self.max_dynamic.into();
        if !fits {
            return Err(Code::INVALID_VALUE);
        }
        let cluster = self.cluster(grid, attributes.cluster)?;
        if cluster != 1 {
            return refuse(
                Code::NOT_SUPPORTED,
                "clusters of several blocks are not supported",
            );
        }
        if attributes.cooperative {
            let blocks: u64 = grid.into_iter().map(u64::from).product();
            let at_once =
                self.occupancy(x * y * z, shared_bytes as usize) * SETTINGS.device.processors;
            if blocks > at_once as u64 {
                return Err(Code::COOPERATIVE_LAUNCH_TOO_LARGE);
            }
        }
        Ok(())
    }

    /// Blocks of a cluster, of which the grid is made: as a launch asks, or as the function requires.
    pub fn cluster(&self, grid: [u32; 3], asked: Option<[u32; 3]>) -> Result<u32> {
        let required = (self.cluster != [0; 3]).then(|| self.cluster.map(|extent| extent as u32));
        let cluster = match (asked, required) {
            (Some(asked), Some(required)) if asked != required => {
                return Err(Code::INVALID_CLUSTER_SIZE);
            }
            (asked, required) => asked.or(required).unwrap_or([1; 3]),
        };
        let blocks = cluster.into_iter().try_fold(1u32, u32::checked_mul);
        let largest = self.largest_cluster();
        match blocks {
            Some(1) => Ok(1),
            Some(_) if !SETTINGS.device.is_hopper_or_later() => {
                refuse(Code::NOT_SUPPORTED, "the device has no clusters")
            }
            Some(blocks @ 1..) if blocks <= largest => {
                let whole = grid
                    .iter()
                    .zip(cluster)
                    .all(|(grid, extent)| grid % extent == 0);
                whole.then_some(blocks).ok_or(Code::INVALID_CLUSTER_SIZE)
            }
            _ => Err(Code::INVALID_CLUSTER_SIZE),
        }
    }

    /// The largest cluster that it may be launched with.
    pub fn largest_cluster(&self) -> u32 {
        let largest = SETTINGS.device.largest_cluster();
        match self.non_portable_cluster {
            true => largest,
            false => largest.min(PORTABLE_CLUSTER),
        }
    }
}
