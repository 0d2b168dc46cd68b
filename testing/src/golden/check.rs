//! `check_golden`: all golden files, computed by one backend and judged.

use std::path::{Path, PathBuf};
#[cfg(feature = "cuda")]
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
#[cfg(feature = "cuda")]
use flash_alibi::cuda::{self, cudarc::driver::CudaStream};
#[cfg(feature = "emulator")]
use flash_alibi::plan::{Device, Plan};
use flash_alibi::{Horizon, cpu};

#[cfg(feature = "cuda")]
use super::Runner;
use super::{Case, Computed, Golden, Stored, find};
use crate::accuracy::Accuracy;
#[cfg(feature = "emulator")]
use crate::emulator::{DEVICES, SMALLEST};

/// What to check, as arguments of a program.
#[derive(Debug, Args)]
pub struct Check {
    /// What computes the attention.
    #[arg(long, value_enum, default_value_t = Backend::Cpu)]
    pub backend: Backend,
    /// Which keys are left out, because they cannot change the result.
    #[arg(long, default_value = "certified")]
    pub horizon: Horizon,
    /// Of the device that the emulator stands for: kernels are those that a plan chooses for it.
    #[cfg(feature = "emulator")]
    #[arg(long, value_name = "MAJOR.MINOR", value_parser = device)]
    pub compute_capability: Option<Device>,
    /// Golden files (.safetensors), or folders of them.
    #[arg(value_name = "DIR_OR_FILE", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden"))]
    pub paths: Vec<PathBuf>,
}

/// What computes golden cases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    /// The fast path on this machine's processor.
    Cpu,
    /// The f64 oracle.
    Oracle,
    /// The CUDA kernel for prefill, its PTX executed on this machine's processor with a sanitizer's checks: f16 and bf16.
    Emulator,
    /// Likewise the kernels for decoding.
    EmulatorDecode,
    /// The CUDA kernel for prefill on the first GPU: f16 and bf16.
    Cuda,
    /// Likewise the kernels for decoding.
    CudaDecode,
}

/// A backend that is ready.
enum Ready {
    Cpu,
    Oracle,
    #[cfg(feature = "emulator")]
    Emulator(Device),
    #[cfg(feature = "emulator")]
    EmulatorDecode(Device),
    #[cfg(feature = "cuda")]
    Cuda(Arc<CudaStream>),
    #[cfg(feature = "cuda")]
    CudaDecode(Arc<CudaStream>),
}

/// What is known after some files.
#[derive(Debug, Default)]
struct Summary {
    passed: usize,
    failed: usize,
    /// The worst errors, in parts of their limits.
    out_ratio: f64,
    lse_ratio: f64,
    /// Of the backend alone.
    time: Duration,
}

impl Check {
    /// Prints a line a file and a summary. Returns whether all is well.
    pub fn run(&self) -> Result<bool> {
        let files = find(&self.paths)?;
        let ready = self.prepare()?;
        let name = |value: Option<clap::builder::PossibleValue>| {
            let value = value.expect("no variant is hidden");
            value.get_name().to_owned()
        };
        println!(
            "{} golden files, backend {}, horizon {}\n",
            files.len(),
            name(self.backend.to_possible_value()),
            self.horizon,
        );
        println!(
            "{:<40} {:<5} {:>9} {:>9} {:>9}   {:>9} {:>9}",
            "case", "type", "out error", "limit", "of limit", "lse error", "of limit"
        );
        let mut summary = Summary::default();
        for file in &files {
            if let Err(error) = self.check_file(&ready, file, &mut summary) {
                summary.failed += 1;
                let name = file.file_stem().unwrap_or(file.as_os_str());
                println!("{:<40} error: {error:#}", name.to_string_lossy());
            }
        }
        println!(
            "\n{} passed, {} failed; at worst {:.2} of the limit of out and {:.2} of the limit of lse; {:.2?}",
            summary.passed, summary.failed, summary.out_ratio, summary.lse_ratio, summary.time
        );
        Ok(summary.failed == 0)
    }

    /// Finds the GPU, if the backend needs one.
    ///
    /// # Errors
    /// Also where the build has no such backend.
    fn prepare(&self) -> Result<Ready> {
        #[cfg(feature = "emulator")]
        if let (Some(device), false) = (self.compute_capability, self.backend.is_emulator()) {
            let (major, minor) = device.compute_capability;
            bail!(
                "compute-capability: found {major}.{minor}, expected none: only the emulator stands for any device"
            );
        }
        Ok(match self.backend {
            Backend::Cpu => Ready::Cpu,
            Backend::Oracle => Ready::Oracle,
            #[cfg(feature = "emulator")]
            Backend::Emulator => Ready::Emulator(self.compute_capability.unwrap_or(SMALLEST)),
            #[cfg(feature = "emulator")]
            Backend::EmulatorDecode => {
                Ready::EmulatorDecode(self.compute_capability.unwrap_or(SMALLEST))
            }
            #[cfg(not(feature = "emulator"))]
            Backend::Emulator | Backend::EmulatorDecode => {
                bail!("this build has no emulator: run it with `--features ptx`, which needs nvcc")
            }
            #[cfg(feature = "cuda")]
            Backend::Cuda => Ready::Cuda(cuda::context(0)?.new_stream()?),
            #[cfg(feature = "cuda")]
            Backend::CudaDecode => Ready::CudaDecode(cuda::context(0)?.new_stream()?),
            #[cfg(not(feature = "cuda"))]
            Backend::Cuda | Backend::CudaDecode => {
                bail!("this build has no CUDA: run it with `--features cuda`, which needs nvcc")
            }
        })
    }

    fn check_file(&self, ready: &Ready, file: &Path, summary: &mut Summary) -> Result<()> {
        match Golden::read(file)? {
            Golden::F16(case) => self.check_case(ready, case, summary),
            Golden::Bf16(case) => self.check_case(ready, case, summary),
            Golden::F32(case) => self.check_case(ready, case, summary),
        }
        .with_context(|| format!("{}: cannot be computed", file.display()))
    }

    /// Computes one case and prints its line.
    fn check_case<T: Stored>(
        &self,
        ready: &Ready,
        mut case: Case<T>,
        summary: &mut Summary,
    ) -> Result<()> {
        case.attention = case.attention.with_horizon(self.horizon)?;
        let start = Instant::now();
        let (computed, kernels) = ready.attend(&case)?;
        summary.time += start.elapsed();
        let accuracy = case.judge(&computed);
        summary.add(&accuracy);
        println!(
            "{:<40} {:<5} {:>9.1e} {:>9.1e} {:>9.2}   {:>9.1e} {:>9.2}  {}  {}",
            case.name,
            T::NAME,
            accuracy.out_error,
            accuracy.out_limit(),
            accuracy.out_ratio(),
            accuracy.lse_error,
            accuracy.lse_ratio(),
            if accuracy.passes() { "pass" } else { "FAIL" },
            kernels.join(", ")
        );
        Ok(())
    }
}

impl Summary {
    fn add(&mut self, accuracy: &Accuracy) {
        match accuracy.passes() {
            true => self.passed += 1,
            false => self.failed += 1,
        }
        self.out_ratio = self.out_ratio.max(accuracy.out_ratio());
        self.lse_ratio = self.lse_ratio.max(accuracy.lse_ratio());
    }
}

#[cfg(feature = "emulator")]
impl Backend {
    fn is_emulator(self) -> bool {
        matches!(self, Self::Emulator | Self::EmulatorDecode)
    }
}

/// The device of a compute capability such as `9.0`.
#[cfg(feature = "emulator")]
fn device(text: &str) -> Result<Device, String> {
    let name = |device: &Device| {
        let (major, minor) = device.compute_capability;
        format!("{major}.{minor}")
    };
    let found = DEVICES.iter().find(|device| name(device) == text);
    found.copied().ok_or_else(|| {
        let names: Vec<_> = DEVICES.iter().map(name).collect();
        format!("expected one of {}", names.join(", "))
    })
}

impl Ready {
    /// The one place that knows how each backend is called. The result, and which kernels made it, where that is known.
    fn attend<T: Stored>(&self, case: &Case<T>) -> Result<(Computed, Vec<String>)> {
        Ok(match self {
            Self::Cpu => {
                let result = cpu::attend(&case.attention, &case.inputs()?)?;
                let computed = Computed {
                    out: result.out.iter().map(|x| x.to_f32().into()).collect(),
                    lse: result.lse.iter().map(|&x| x.into()).collect(),
                };
                (computed, Vec::new())
            }
            Self::Oracle => {
                let result = cpu::oracle::attend(&case.attention, &case.inputs()?)?;
                let computed = Computed {
                    out: result.out,
                    lse: result.lse,
                };
                (computed, Vec::new())
            }
            #[cfg(feature = "emulator")]
            &Self::Emulator(device) => {
                case.launch(Runner::Emulator(&move |attention, call, _| {
                    Plan::prefill(attention, call, &device)
                }))?
            }
            #[cfg(feature = "emulator")]
            &Self::EmulatorDecode(device) => {
                case.launch(Runner::Emulator(&move |attention, call, _| {
                    Plan::decode(attention, call, &device)
                }))?
            }
            #[cfg(feature = "cuda")]
            Self::Cuda(stream) => case.launch(Runner::Gpu(stream))?,
            #[cfg(feature = "cuda")]
            Self::CudaDecode(stream) => case.launch(Runner::GpuDecode(stream))?,
        })
    }
}
