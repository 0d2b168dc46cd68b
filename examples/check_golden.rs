//! Checks a backend against golden files: does this machine compute ALiBi attention to the crate's accuracy contract?
//!
//! ```text
//! cargo run --release --features ptx --example check_golden -- \
//!     [--backend cpu|oracle|emulator|emulator-decode|cuda|cuda-decode] [--horizon off|certified|bitwise] \
//!     [--compute-capability 8.0|8.6|8.9|9.0|10.0|12.0] [DIR_OR_FILE]...
//! ```
//!
//! Without paths it checks the files that come with the crate, `tests/golden`. The exit status is 0 when all cases pass,
//! 1 otherwise. The format of the files is described in `flash_alibi_testing::golden`. `cpu` and `oracle` need no
//! feature; `cuda` needs the feature `cuda`, and the emulator `ptx`, both of them nvcc.

use std::process::ExitCode;

use clap::Parser;
use flash_alibi_testing::golden::Check;

/// Checks a backend against golden files.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    check: Check,
}

fn main() -> ExitCode {
    match Arguments::parse().check.run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
