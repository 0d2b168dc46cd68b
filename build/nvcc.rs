//! The compiler.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::host::HostCompiler;

/// nvcc and its host compiler.
pub(crate) struct Nvcc {
    program: PathBuf,
    host: HostCompiler,
}

impl Nvcc {
    pub(crate) fn find(out: &Path) -> Result<Self, String> {
        let program = find(out)?;
        let host = HostCompiler::find(&program)?;
        Ok(Self { program, host })
    }

    /// Compiles a file, and gives what was printed.
    pub(crate) fn run(&self, arguments: &[&OsStr], source: &Path) -> Result<String, String> {
        let result = Command::new(&self.program)
            .args(&self.host.arguments)
            .args(arguments)
            .envs(
                self.host
                    .environment
                    .iter()
                    .map(|(name, value)| (name, value)),
            )
            .output()
            .map_err(|error| format!("{}: {error}", self.program.display()))?;
        let text = String::from_utf8_lossy(&result.stderr).into_owned()
            + &String::from_utf8_lossy(&result.stdout);
        match (result.status.success(), self.host.refused(&text)) {
            (true, _) => Ok(text),
            (false, Some(refused)) => Err(refused),
            (false, None) => Err(format!("nvcc failed on {}:\n{text}", source.display())),
        }
    }
}

/// Where nvcc is.
fn find(out: &Path) -> Result<PathBuf, String> {
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
