//! Compiles the kernels of `tests/kernels` with nvcc.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use ptx_emulator::Module;

/// nvcc by the variable `NVCC`, else from `PATH`.
fn nvcc() -> PathBuf {
    std::env::var_os("NVCC").map_or_else(|| PathBuf::from("nvcc"), PathBuf::from)
}

/// PTX of `tests/kernels/<name>.cu`, compiled once per test binary, for the architecture that a first line
/// `// arch: compute_90a` names, else `compute_80`.
pub fn ptx(name: &str) -> String {
    static CACHE: Mutex<BTreeMap<String, String>> = Mutex::new(BTreeMap::new());
    // A failed compilation of another test leaves nothing half-done here.
    let mut cache = CACHE.lock().unwrap_or_else(|e| e.into_inner());
    cache
        .entry(name.to_owned())
        .or_insert_with(|| compile(name))
        .clone()
}

fn compile(name: &str) -> String {
    let source = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/kernels")
        .join(format!("{name}.cu"));
    let out =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}.ptx", std::process::id()));
    let text = std::fs::read_to_string(&source).expect("the kernel's source");
    let arch = text
        .lines()
        .next()
        .and_then(|l| l.strip_prefix("// arch: "));
    let result = Command::new(nvcc())
        .arg(format!("-arch={}", arch.unwrap_or("compute_80")))
        .args(["-ptx", "-lineinfo", "-std=c++17", "-o"])
        .arg(&out)
        .arg(&source)
        .output();
    let result = match result {
        Ok(r) => r,
        Err(e) => panic!(
            "cannot run nvcc ({e}). Install the CUDA toolkit (or the nvidia-cuda-nvcc wheel) and put nvcc on PATH, \
             or set NVCC to it."
        ),
    };
    assert!(
        result.status.success(),
        "nvcc failed on {}:\n{}{}",
        source.display(),
        String::from_utf8_lossy(&result.stdout),
        String::from_utf8_lossy(&result.stderr)
    );
    let text = std::fs::read_to_string(&out).expect("nvcc wrote its output");
    std::fs::remove_file(&out).ok();
    text
}

/// The module of `tests/kernels/<name>.cu`, parsed once.
pub fn module(name: &str) -> &'static Module {
    static CACHE: Mutex<BTreeMap<String, &'static Module>> = Mutex::new(BTreeMap::new());
    let mut cache = CACHE.lock().unwrap_or_else(|e| e.into_inner());
    cache.entry(name.to_owned()).or_insert_with(|| {
        let module = Module::parse(&ptx(name)).expect("nvcc's output parses");
        Box::leak(Box::new(module))
    })
}

/// A small generator of test data.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    /// Uniform in `[-1, 1)`.
    pub fn unit(&mut self) -> f32 {
        (self.next() % (1 << 20)) as f32 / (1 << 19) as f32 - 1.0
    }
}
