//! All that uses a GPU, in one program, so that the kernels are embedded once: it can be carried to a machine without Rust.
//!
//! ```text
//! cuda [FILTER]... [--list] [--test-threads N]     the tests; `--help` says more. Without a GPU they are ignored
//! cuda load                                        whether a GPU is found, loads the kernels and computes one tiny case
//! cuda golden [--backend cuda|cuda-decode] ...     golden files, as the example `check_golden`
//! cuda --bench [FILTER]                            measurements, as `cargo bench --bench cuda`
//! ```

#[macro_use]
mod device;

mod cache;
mod decode;
mod devices;
mod driver_calls;
mod errors;
mod layer;
mod layouts;
mod load;
mod prefill;

use std::env;
use std::process::ExitCode;

use clap::Parser;
use flash_alibi_testing::{bench, golden};
use libtest_mimic::Arguments;

/// What the program does but test and measure.
#[derive(Debug, Parser)]
enum Task {
    /// Finds the GPU, loads the kernels and computes one tiny case.
    Load,
    /// Checks a backend against golden files.
    Golden(golden::Check),
}

fn main() -> ExitCode {
    let result = match env::args().nth(1).as_deref() {
        Some("load" | "golden") => match Task::parse() {
            Task::Load => load::run(),
            Task::Golden(check) => check.run(),
        },
        Some("--bench") => bench::run().map(|()| true),
        _ => return test(),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn test() -> ExitCode {
    let arguments = Arguments::from_args();
    let modules = [
        errors::trials(),
        prefill::trials(),
        layer::trials(),
        decode::trials(),
        cache::trials(),
        layouts::trials(),
        driver_calls::trials(),
        devices::trials(),
    ];
    libtest_mimic::run(&arguments, modules.into_iter().flatten().collect()).exit_code()
}
