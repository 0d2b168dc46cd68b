//! Where a model runs.

use anyhow::{Result, ensure};
use candle_core::{DType, Device};
use clap::ValueEnum;

/// `--device`.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Backend {
    /// This machine's processor.
    Cpu,
    /// The first NVIDIA GPU.
    Cuda,
}

impl Backend {
    /// The device, or why there is none.
    pub fn device(self) -> Result<Device> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda => {
                // candle panics without a driver; this says what is missing.
                #[cfg(feature = "cuda")]
                flash_alibi::cuda::context(0)?;
                ensure!(
                    cfg!(feature = "candle-cuda"),
                    "this program was built without candle's CUDA path: build it with `--features candle-cuda`"
                );
                Ok(Device::new_cuda(0)?)
            }
        }
    }
}

/// The type of keys, values and queries: the kernels take no f32.
pub fn attention_dtype(device: &Device) -> DType {
    match device {
        Device::Cuda(_) => DType::F16,
        _ => DType::F32,
    }
}
