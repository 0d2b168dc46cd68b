//! Runs a test in a process of its own, since the driver is found, and set up, once a process.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, LazyLock};

use cudarc::driver::sys::CUresult;
use cudarc::driver::{CudaContext, CudaModule, CudaStream, DriverError, LaunchConfig};
use cudarc::nvrtc::Ptx;

const CHILD: &str = "PTX_EMULATOR_DRIVER_TEST";
const LIBRARY: &str = "libptx_emulator_driver.so";

/// Runs a test in a process with the driver and the variables; what it wrote.
pub fn run(name: &str, variables: &[(&str, &str)], test: fn()) -> Option<Output> {
    if env::var_os(CHILD).is_some() {
        test();
        return None;
    }
    let program = env::current_exe().unwrap();
    let library = program.with_file_name(LIBRARY);
    // A colon would divide LD_LIBRARY_PATH.
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name.replace("::", "-"));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    for name in ["libcuda.so", "libcuda.so.1"] {
        std::os::unix::fs::symlink(&library, folder.join(name)).unwrap();
    }
    let output = Command::new(&program)
        .args(["--exact", name, "--nocapture"])
        .env("LD_LIBRARY_PATH", &folder)
        .env("PTX_EMULATOR_CALLS", folder.join("calls"))
        .env(CHILD, &*KERNELS)
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    assert!(out.contains("1 passed"), "{out}\n{err}");
    Some(output)
}

pub fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The folder of the compiled kernels.
static KERNELS: LazyLock<PathBuf> = LazyLock::new(|| {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernels.cu");
    let folder =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(concat!(env!("CARGO_CRATE_NAME"), "-kernels"));
    fs::create_dir_all(&folder).unwrap();
    let nvcc = env::var_os("NVCC").unwrap_or_else(|| "nvcc".into());
    for (name, arguments) in [
        ("kernels.ptx", &["-ptx", "-arch=compute_80"][..]),
        (
            "kernels.fatbin",
            &[
                "-fatbin",
                "-gencode=arch=compute_80,code=sm_80",
                "-gencode=arch=compute_80,code=compute_80",
                "-gencode=arch=compute_90,code=compute_90",
                "-gencode=arch=compute_90a,code=compute_90a",
            ],
        ),
        (
            "machine.fatbin",
            &["-fatbin", "-gencode=arch=compute_90a,code=sm_90a"],
        ),
        (
            "mixed.fatbin",
            &[
                "-fatbin",
                "-gencode=arch=compute_80,code=sm_80",
                "-gencode=arch=compute_90,code=sm_90",
                "-gencode=arch=compute_80,code=compute_80",
            ],
        ),
        (
            "lz4.fatbin",
            &[
                "-fatbin",
                "-gencode=arch=compute_80,code=compute_80",
                "-Xfatbin=-compress-mode=speed",
            ],
        ),
        (
            "plain.fatbin",
            &[
                "-fatbin",
                "-gencode=arch=compute_80,code=compute_80",
                "-no-compress",
            ],
        ),
    ] {
        let result = Command::new(&nvcc)
            .args(arguments)
            .arg(&source)
            .arg("-o")
            .arg(folder.join(name))
            .output()
            .expect("nvcc runs: set NVCC, or put it on PATH");
        let text = String::from_utf8_lossy(&result.stderr).into_owned();
        assert!(result.status.success(), "{name}: {text}");
    }
    folder
});

pub fn image(name: &str) -> Ptx {
    let file = PathBuf::from(env::var_os(CHILD).unwrap()).join(name);
    match name.ends_with("ptx") {
        true => Ptx::from_src(fs::read_to_string(file).unwrap()),
        false => Ptx::from_binary(fs::read(file).unwrap()),
    }
}

pub fn begin() -> (Arc<CudaContext>, Arc<CudaStream>, Arc<CudaModule>) {
    let context = CudaContext::new(0).unwrap();
    let stream = context.new_stream().unwrap();
    let module = context.load_module(image("kernels.fatbin")).unwrap();
    (context, stream, module)
}

pub fn one_block(threads: u32) -> LaunchConfig {
    LaunchConfig {
        grid_dim: (1, 1, 1),
        block_dim: (threads, 1, 1),
        shared_mem_bytes: 0,
    }
}

pub fn code<T>(result: Result<T, DriverError>) -> CUresult {
    result.err().map_or(CUresult::CUDA_SUCCESS, |error| error.0)
}
