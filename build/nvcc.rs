//! The compiler.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where it is.
pub(crate) fn find(out: &Path) -> Result<PathBuf, String> {
    let program = format!("nvcc{}", env::consts::EXE_SUFFIX);
    if let Some(nvcc) = env::var_os("NVCC") {
        // Said outright: no other is looked for.
        return works(Path::new(&nvcc))
            .ok_or_else(|| format!("NVCC: {} does not run", nvcc.display()));
    }
    let homes = ["CUDA_HOME", "CUDA_PATH"]
        .into_iter()
        .filter_map(env::var_os);
    let in_homes = homes.map(|home| Path::new(&home).join("bin").join(&program));
    // OUT_DIR lies within the target directory.
    let in_target = out
        .ancestors()
        .map(|folder| folder.join("toolkit/nvidia/cu13/bin").join(&program));
    in_homes
        .chain([PathBuf::from(&program)])
        .chain(in_target)
        .find_map(|nvcc| works(&nvcc))
        .ok_or_else(|| {
            "the feature `cuda` needs nvcc (CUDA 12.8 or later): set NVCC or CUDA_HOME, put it on PATH, or run \
             `cargo xtask toolkit` in a checkout of flash-alibi"
                .to_owned()
        })
}

fn works(nvcc: &Path) -> Option<PathBuf> {
    let status = Command::new(nvcc)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    status
        .is_ok_and(|status| status.success())
        .then(|| nvcc.to_owned())
}
