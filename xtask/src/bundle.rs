//! What a machine with a driver and without Rust needs to test and measure: one program, its data, the peers, and one script.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::toolkit::{Toolkit, target};

const SCRIPT: &str = include_str!("../gpu-bundle/run.sh");

/// A GPU machine may take no more at once.
const MOST_BYTES: u64 = 40 << 20;

/// Builds the program small, and gathers everything in a folder and in an archive of it.
pub fn make() -> Result<(), String> {
    let arguments = [
        "--profile=bundle",
        "--package=flash-alibi-testing",
        "--features=cuda",
        "--test=cuda",
    ];
    // Hopper's own code, and PTX for what is newer. Others are for who names them.
    let archs = env::var_os("FLASH_ALIBI_CUDA_ARCHS").unwrap_or_else(|| "90a".into());
    let programs = programs(&arguments, &[("FLASH_ALIBI_CUDA_ARCHS", &archs)])?;
    let bundle = target().join("gpu-bundle");
    gather(&bundle, program(&programs)?)?;
    let archive = bundle.with_extension("tar.gz");
    let (parent, name) = (target(), bundle.file_name().expect("it has a name"));
    let mut tar = Command::new("tar");
    tar.arg("-czf")
        .arg(&archive)
        .arg("-C")
        .arg(parent)
        .arg(name);
    done(&mut tar)?;
    for (what, bytes) in [(&bundle, size(&bundle)?), (&archive, size(&archive)?)] {
        println!(
            "{}: {:.1} MiB",
            what.display(),
            bytes as f64 / f64::from(1 << 20)
        );
        if bytes > MOST_BYTES {
            return Err(format!(
                "{}: found {bytes} bytes, expected at most {MOST_BYTES}",
                what.display()
            ));
        }
    }
    Ok(())
}

/// Runs the whole bundle on the emulated driver, with the program as `cargo xtask test` has built it.
pub fn dry_run() -> Result<(), String> {
    // The driver's own test brings the driver.
    let tests = ["--test=cuda", "--test=driver"];
    let programs = programs(&[crate::EVERYTHING, &tests].concat(), &[])?;
    let folders = crate::emulated_driver("debug/deps/libptx_emulator_driver.so")?;
    let bundle = target().join("gpu-bundle-dry-run");
    gather(&bundle, program(&programs)?)?;
    crate::run(
        bundle.join("run.sh").as_os_str(),
        &[],
        &[("LD_LIBRARY_PATH", &folders), ("DRY_RUN", "1".as_ref())],
    )
}

fn program(programs: &[(String, String)]) -> Result<&Path, String> {
    let (_, program) = (programs.iter())
        .find(|(name, _)| name == "cuda")
        .ok_or("no test is named cuda")?;
    Ok(Path::new(program))
}

/// Puts the program, and what goes with it, into an empty folder.
fn gather(bundle: &Path, program: &Path) -> Result<(), String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let _ = fs::remove_dir_all(bundle);
    // The tests read what lies beside their package, and run in its folder.
    for folder in ["package/tests", "package/testing"] {
        let folder = bundle.join(folder);
        fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    }
    copy(program, &bundle.join("cuda"))?;
    copy_folder(&root.join("tests/golden"), &bundle.join("package/tests"))?;
    copy_folder(&root.join("benches/peers"), bundle)?;
    let commit = Command::new("git")
        .args(["describe", "--always", "--dirty"])
        .current_dir(&root)
        .output();
    let commit = commit.map_or_else(|_| b"unknown\n".to_vec(), |output| output.stdout);
    write(&bundle.join("commit.txt"), &commit)?;
    let script = bundle.join("run.sh");
    write(&script, SCRIPT.as_bytes())?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))
        .map_err(|error| error.to_string())
}

/// The names and files of the programs that `cargo test` builds with these arguments.
fn programs(
    arguments: &[&str],
    variables: &[(&str, &OsStr)],
) -> Result<Vec<(String, String)>, String> {
    let toolkit = Toolkit::get()?;
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut child = Command::new(cargo)
        .args([
            "test",
            "--no-run",
            "--message-format=json-render-diagnostics",
        ])
        .args(arguments)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .env("NVCC", env::var_os("NVCC").unwrap_or(toolkit.nvcc.into()))
        .env("LIBCLANG_PATH", &toolkit.libclang)
        .envs(variables.iter().copied())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("cargo: {error}"))?;
    let mut programs = Vec::new();
    for line in BufReader::new(child.stdout.take().expect("piped")).lines() {
        let message: serde_json::Value =
            serde_json::from_str(&line.map_err(|error| error.to_string())?).unwrap_or_default();
        if let (Some(program), Some(name)) = (
            message["executable"].as_str(),
            message["target"]["name"].as_str(),
        ) {
            programs.push((name.to_owned(), program.to_owned()));
        }
    }
    match child.wait() {
        Ok(status) if status.success() => Ok(programs),
        _ => Err("the programs were not built".into()),
    }
}

/// The bytes of a file, or of all files of a folder.
fn size(path: &Path) -> Result<u64, String> {
    let failed = |error| format!("{}: {error}", path.display());
    if !path.is_dir() {
        return Ok(fs::metadata(path).map_err(failed)?.len());
    }
    let mut bytes = 0;
    for entry in fs::read_dir(path).map_err(failed)? {
        bytes += size(&entry.map_err(failed)?.path())?;
    }
    Ok(bytes)
}

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    fs::copy(from, to)
        .map(drop)
        .map_err(|error| format!("{}: {error}", from.display()))
}

fn copy_folder(from: &PathBuf, to: &Path) -> Result<(), String> {
    done(Command::new("cp").arg("-r").arg(from).arg(to))
}

fn done(command: &mut Command) -> Result<(), String> {
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{command:?}: {status}")),
        Err(error) => Err(format!("{command:?}: {error}")),
    }
}

fn write(path: &Path, content: &[u8]) -> Result<(), String> {
    fs::write(path, content).map_err(|error| format!("{}: {error}", path.display()))
}
