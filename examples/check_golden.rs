//! Checks a backend against golden files: does this machine compute ALiBi attention to the crate's accuracy contract?
//!
//! ```text
//! cargo run --release --example check_golden -- [--backend cpu|oracle|emulator|emulator-decode|cuda|cuda-decode] [DIR_OR_FILE]...
//! ```
//!
//! Without paths it checks the files that come with the crate, `tests/golden`. The exit status is 0 when all cases pass,
//! 1 otherwise. The format of the files is described in `flash_alibi_testing::golden`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use flash_alibi::cuda::cudarc::driver::CudaStream;
use flash_alibi::plan::Plan;
use flash_alibi::{cpu, cuda};
use flash_alibi_testing::accuracy::LSE_LIMIT;
use flash_alibi_testing::golden::{Case, Computed, Golden, Launch, Runner};

/// Checks a backend against golden files.
#[derive(Parser)]
struct Arguments {
    /// What computes the attention.
    #[arg(long, value_enum, default_value_t = Backend::Cpu)]
    backend: Backend,
    /// Golden files (.safetensors), or folders of them.
    #[arg(value_name = "DIR_OR_FILE", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden"))]
    paths: Vec<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Backend {
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

impl Backend {
    /// The one place that knows how each backend is called. `stream` is one of the GPU's, for the backend that needs it.
    fn attend<T: Launch>(
        self,
        case: &Case<T>,
        stream: Option<&Arc<CudaStream>>,
    ) -> Result<Computed> {
        let inputs = case.inputs()?;
        Ok(match self {
            Self::Cpu => {
                let result = cpu::attend(&case.attention, &inputs)?;
                Computed {
                    out: result.out.iter().map(|x| x.to_f32().into()).collect(),
                    lse: result.lse.iter().map(|&x| x.into()).collect(),
                }
            }
            Self::Oracle => {
                let result = cpu::oracle::attend(&case.attention, &inputs)?;
                Computed {
                    out: result.out,
                    lse: result.lse,
                }
            }
            Self::Emulator => case.launch(Runner::Emulator(&Plan::prefill))?,
            Self::EmulatorDecode => case.launch(Runner::Emulator(&Plan::decode))?,
            Self::Cuda => case.launch(Runner::Gpu(stream.expect("made for this backend")))?,
            Self::CudaDecode => {
                case.launch(Runner::GpuDecode(stream.expect("made for this backend")))?
            }
        })
    }
}

fn main() -> ExitCode {
    let Arguments { backend, paths } = Arguments::parse();
    match check_files(backend, &paths) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Prints a line a case, and returns how many are bad.
fn check_files(backend: Backend, paths: &[PathBuf]) -> Result<usize> {
    let files = flash_alibi_testing::golden::find(paths)?;
    let stream = match backend {
        Backend::Cuda | Backend::CudaDecode => Some(cuda::context(0)?.new_stream()?),
        _ => None,
    };
    let stream = stream.as_ref();
    let backend_name = backend.to_possible_value().expect("no variant is hidden");
    println!(
        "{} golden files, backend {}\n",
        files.len(),
        backend_name.get_name()
    );
    println!(
        "{:<40} {:<5} {:>9} {:>9}   {:>9} {:>9}",
        "case", "type", "out error", "limit", "lse error", "limit"
    );
    let mut bad = 0;
    for file in &files {
        let passes = Golden::read(file).and_then(|golden| {
            let context =
                |e: anyhow::Error| e.context(format!("{}: cannot be computed", file.display()));
            match &golden {
                Golden::F16(case) => check(backend, case, stream),
                Golden::Bf16(case) => check(backend, case, stream),
                Golden::F32(case) => check(backend, case, stream),
            }
            .map_err(context)
        });
        bad += usize::from(!passes.unwrap_or_else(|error| {
            eprintln!("error: {error:#}");
            false
        }));
    }
    println!("\n{} passed, {bad} failed", files.len() - bad);
    Ok(bad)
}

/// Computes one case and prints its line.
fn check<T: Launch>(
    backend: Backend,
    case: &Case<T>,
    stream: Option<&Arc<CudaStream>>,
) -> Result<bool> {
    let accuracy = case.judge(&backend.attend(case, stream)?);
    println!(
        "{:<40} {:<5} {:>9.1e} {:>9.1e}   {:>9.1e} {:>9.1e}  {}",
        case.name,
        T::NAME,
        accuracy.out_error,
        accuracy.out_limit(),
        accuracy.lse_error,
        LSE_LIMIT,
        if accuracy.passes() { "pass" } else { "FAIL" }
    );
    Ok(accuracy.passes())
}
