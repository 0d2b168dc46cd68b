//! The device and how it works, from the environment; read once.

use std::env;
use std::sync::LazyLock;

use ptx_emulator::Checks;

use crate::device::Device;

/// What the environment says.
pub struct Settings {
    /// Devices: one, or none.
    pub devices: i32,
    /// The device that is played.
    pub device: Device,
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
            device: Device::new(capability),
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

    /// The value of an attribute (`CUdevice_attribute`): 0 for what the device cannot do.
    pub fn attribute(&self, attribute: i32) -> i32 {
        /// `CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED`
        const MEMORY_POOLS: i32 = 115;
        match attribute {
            MEMORY_POOLS => self.memory_pools.into(),
            _ => self.device.attribute(attribute),
        }
    }
}

fn variable<T>(name: &str, default: T, parse: impl Fn(&str) -> Option<T>) -> T {
    match env::var(name) {
        Err(_) => default,
        Ok(text) => parse(&text).unwrap_or_else(|| {
            eprintln!("ptx-emulator-driver: {name}={text} is not understood and not used");
            default
        }),
    }
}
