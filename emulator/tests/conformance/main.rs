//! Conformance: tables of single instructions against values worked out from the PTX ISA
//! (NVIDIA, "Parallel Thread Execution ISA"). "ISA: ..." in a comment names the section that a
//! value comes from by its title, since the numbers change between versions.
//!
//! The program has a `main` of its own, so that after all cases it can say which instructions none of them ran.

// Bits and constants as the ISA writes them.
#![allow(clippy::excessive_precision, clippy::manual_rotate, clippy::precedence)]

mod coverage;
mod harness;

/// The tests of a module, by name.
macro_rules! trials {
    ($($test:ident),* $(,)?) => {
        vec![$(crate::trial(module_path!(), stringify!($test), $test)),*]
    };
}

mod atomics;
mod bulk;
mod cluster;
mod collective;
mod convert;
mod copies;
mod float;
mod flow;
mod forms;
mod fragments;
mod half_precision;
mod integer;
mod logic;
mod matrix;
mod mbarrier;
mod memory;
mod unknown;
mod wgmma;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

/// A test, named without the program.
fn trial(module: &str, name: &str, test: fn()) -> Trial {
    let (_, module) = module.split_once("::").expect("tests are in modules");
    Trial::test(format!("{module}::{name}"), move || {
        test();
        Ok(())
    })
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let modules = [
        atomics::trials(),
        bulk::trials(),
        cluster::trials(),
        collective::trials(),
        convert::trials(),
        copies::trials(),
        float::trials(),
        flow::trials(),
        forms::trials(),
        fragments::trials(),
        half_precision::trials(),
        integer::trials(),
        logic::trials(),
        matrix::trials(),
        mbarrier::trials(),
        memory::trials(),
        unknown::trials(),
        wgmma::trials(),
    ];
    let conclusion = libtest_mimic::run(&arguments, modules.into_iter().flatten().collect());
    let all = conclusion.num_filtered_out == 0 && !arguments.list;
    if conclusion.has_failed() || !all {
        return conclusion.exit_code();
    }
    let missing = coverage::missing();
    for line in &missing {
        eprintln!("{line}");
    }
    match missing.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}
