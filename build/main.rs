//! Reads what CUDA and Rust both rely on: the numbers of `kernels/common/limits.h`, always, and the table of kernels of each
//! architecture, `kernels/<architecture>/kernels.def`, with the feature `cuda`.
//!
//! With the feature `cuda`: compiles each `kernels/<architecture>/*.cu` to PTX, and the PTX to a fatbin for the chosen
//! architectures; and writes the module that embeds them. With the feature `ptx` the text is embedded too, and
//! `kernels/tests/*.cu` are compiled as well.
//!
//! nvcc is looked for in `NVCC`, `CUDA_HOME`, `CUDA_PATH`, `PATH`, and where `cargo xtask toolkit` puts it. Architectures
//! come from `FLASH_ALIBI_CUDA_ARCHS` (such as `80,90a,100a`), or from `CUDA_COMPUTE_CAP` (one, such as `90`), or are 80
//! and 90a; PTX of compute_80 is always embedded, for what comes later. nvcc's host compiler is that of `NVCC_CCBIN`, `CXX`,
//! a cross build or Visual Studio, or what nvcc finds.

#[cfg(feature = "cuda")]
mod compile;
#[cfg(feature = "cuda")]
mod host;
#[cfg(feature = "cuda")]
mod nvcc;
#[cfg(feature = "cuda")]
mod tables;

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// The folders of kernels, the oldest first, with their variants of `Architecture`, and with what their PTX is made for.
const ARCHITECTURES: &[(&str, &str, &str)] = &[("sm80", "Sm80", "80"), ("sm90", "Sm90", "90a")];

pub(crate) fn main() {
    println!("cargo::rerun-if-changed=build");
    // Not the notes beside them.
    let architectures = ARCHITECTURES.iter().map(|(folder, ..)| *folder);
    for folder in ["common", "tests"].into_iter().chain(architectures) {
        println!("cargo::rerun-if-changed=kernels/{folder}");
    }
    finish(limits());
    #[cfg(feature = "cuda")]
    cuda();
}

/// What the feature `cuda` is made of.
#[cfg(feature = "cuda")]
fn cuda() {
    for variable in [
        "NVCC",
        "CUDA_HOME",
        "CUDA_PATH",
        "PATH",
        "FLASH_ALIBI_CUDA_ARCHS",
        "CUDA_COMPUTE_CAP",
        "DOCS_RS",
    ] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    finish(tables::make());
    finish(compile::all());
}

fn finish(result: Result<(), String>) {
    if let Err(message) = result {
        println!("cargo::error={}", message.replace('\n', "\ncargo::error="));
        std::process::exit(1);
    }
}

fn out_dir() -> PathBuf {
    PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"))
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}

/// Makes constants of the lines `constexpr int NAME = VALUE;`, with the comments before them.
fn limits() -> Result<(), String> {
    let path = Path::new("kernels/common/limits.h");
    let (mut module, mut documentation) = (String::new(), String::new());
    for line in read(path)?.lines() {
        if let Some(text) = line.strip_prefix("// ") {
            let _ = writeln!(documentation, "/// {text}");
            continue;
        }
        let number = line
            .strip_prefix("constexpr int ")
            .and_then(|rest| rest.strip_suffix(';'))
            .and_then(|rest| rest.split_once(" = "))
            .filter(|(_, value)| value.parse::<i32>().is_ok());
        if let Some((name, value)) = number {
            let _ = writeln!(module, "{documentation}pub const {name}: usize = {value};");
        } else if line.starts_with("constexpr") {
            return Err(format!("{}: {line:?} is no number", path.display()));
        }
        documentation.clear();
    }
    write(&out_dir().join("limits.rs"), &module)
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}
