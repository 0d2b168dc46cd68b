//! Compiles the tests' kernels with nvcc.
#![allow(dead_code)]

use ptx_emulator::Module;
use std::path::{Path, PathBuf};
use std::process::Command;

pub fn nvcc() -> PathBuf {
    std::env::var_os("NVCC").map_or_else(|| PathBuf::from("nvcc"), PathBuf::from)
}

/// The PTX of `tests/kernels/<name>.cu`.
pub fn compile(name: &str) -> String {
    let source = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/kernels")
        .join(name)
        .with_extension("cu");
    // Several tests may compile one file at once.
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!(
        "{name}-{}-{:?}.ptx",
        std::process::id(),
        std::thread::current().id()
    ));
    let run = Command::new(nvcc())
        .args(["-ptx", "-arch=compute_80", "-lineinfo", "-o"])
        .arg(&out)
        .arg(&source)
        .output();
    let run = match run {
        Ok(r) => r,
        Err(e) => panic!(
            "cannot run {:?}: {e}. These tests compile CUDA C++: put nvcc (CUDA 12.8 or later; the \
             PyPI wheels nvidia-cuda-nvcc, nvidia-nvvm, nvidia-cuda-crt and nvidia-cuda-runtime \
             have it) on PATH or set NVCC to it",
            nvcc()
        ),
    };
    assert!(
        run.status.success(),
        "nvcc failed on {}:\n{}",
        source.display(),
        String::from_utf8_lossy(&run.stderr)
    );
    let text = std::fs::read_to_string(&out).expect("nvcc wrote the PTX");
    let _ = std::fs::remove_file(&out);
    text
}

pub fn module(name: &str) -> Module {
    Module::parse(&compile(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// The line of `tests/kernels/<name>.cu` that is marked `// <mark>`.
pub fn line_of(name: &str, mark: &str) -> u32 {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/kernels")
        .join(name)
        .with_extension("cu");
    let text = std::fs::read_to_string(path).expect("the source is there");
    let mark = format!("// {mark}");
    let at = text.lines().position(|l| l.ends_with(&mark));
    at.expect("the mark is there") as u32 + 1
}
