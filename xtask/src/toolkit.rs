//! nvcc and what goes with it, from the wheels that NVIDIA publishes, into the target directory: so that the tests need
//! nothing but Rust, Python and a C++ compiler.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Pinned: what a kernel compiles to is part of what is tested.
const WHEELS: &[&str] = &[
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-cccl==13.0.85",
    // These two come only in later versions, which read earlier files.
    "nvidia-cuda-cuobjdump==13.5.37",
    "nvidia-cuda-nvdisasm==13.5.37",
    "libclang==18.1.1",
];

/// Where the tools are.
pub struct Toolkit {
    pub nvcc: PathBuf,
    /// The folder of libclang, for bindgen.
    pub libclang: PathBuf,
}

/// The target directory of this build.
pub fn target() -> PathBuf {
    // This program lies in <target>/debug.
    let program = env::current_exe().unwrap_or_default();
    program
        .ancestors()
        .nth(2)
        .unwrap_or(Path::new("target"))
        .to_owned()
}

impl Toolkit {
    /// The toolkit, fetched unless it is there.
    pub fn get() -> Result<Self, String> {
        let folder = target().join("toolkit");
        let toolkit = Self {
            nvcc: folder.join("nvidia/cu13/bin/nvcc"),
            libclang: folder.join("clang/native"),
        };
        // Written last: a fetch that broke off is made again.
        let stamp = folder.join("wheels.txt");
        let wanted = WHEELS.join("\n");
        if fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
            return Ok(toolkit);
        }
        println!("==> fetching {}", WHEELS.join(" "));
        let _ = fs::remove_dir_all(&folder);
        let status = Command::new("python3")
            .args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--no-deps",
                "--only-binary=:all:",
                "--target",
            ])
            .arg(&folder)
            .args(WHEELS)
            .status()
            .map_err(|error| format!("python3, which fetches the CUDA compiler: {error}"))?;
        if !status.success() {
            return Err(format!(
                "python3 -m pip could not fetch the CUDA compiler ({status}); install CUDA 13.0 and set NVCC instead"
            ));
        }
        for programs in ["bin", "nvvm/bin"] {
            let programs = folder.join("nvidia/cu13").join(programs);
            let entries = fs::read_dir(&programs)
                .map_err(|error| format!("{}: {error}", programs.display()))?;
            for program in entries.filter_map(Result::ok) {
                make_executable(&program.path())
                    .map_err(|error| format!("{}: {error}", program.path().display()))?;
            }
        }
        let works = Command::new(&toolkit.nvcc)
            .arg("--version")
            .stdout(Stdio::null())
            .status();
        if !works.is_ok_and(|status| status.success()) {
            return Err(format!("{} does not run", toolkit.nvcc.display()));
        }
        fs::write(&stamp, wanted).map_err(|error| format!("{}: {error}", stamp.display()))?;
        Ok(toolkit)
    }
}

#[cfg(unix)]
fn make_executable(file: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;

    let mut permissions = fs::metadata(file)?.permissions();
    permissions.set_mode(permissions.mode() | 0o755);
    fs::set_permissions(file, permissions)
}

#[cfg(not(unix))]
fn make_executable(_: &Path) -> std::io::Result<()> {
    Ok(())
}
