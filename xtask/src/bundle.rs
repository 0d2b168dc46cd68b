//! What a machine with a driver and without Rust needs to test and measure: the test and bench programs, their data, the
//! peers, and one script.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::toolkit::{Toolkit, target};

const SCRIPT: &str = include_str!("../gpu-bundle/run.sh");

pub fn make() -> Result<(), String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let bundle = target().join("gpu-bundle");
    let _ = fs::remove_dir_all(&bundle);
    for folder in ["tests", "benches", "package"] {
        let folder = bundle.join(folder);
        fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    }
    for (kind, arguments) in [("tests", &["--tests"][..]), ("benches", &["--benches"])] {
        let of_crate = ["--profile=bundle", "--package=flash-alibi"];
        for (name, program) in programs(&[&of_crate, arguments].concat())? {
            // Those that use a device; the others need none.
            if name.starts_with("cuda") {
                copy(Path::new(&program), &bundle.join(kind).join(name))?;
            }
        }
    }
    // What the tests read, by paths relative to the package.
    let data = ["tests", "models"].map(|folder| root.join(folder));
    copy_folders(&data, &bundle.join("package"))?;
    copy_folders(&[root.join("benches/peers")], &bundle)?;
    let commit = Command::new("git")
        .args(["describe", "--always", "--dirty"])
        .current_dir(&root)
        .output();
    let commit = commit.map_or_else(|_| b"unknown\n".to_vec(), |output| output.stdout);
    write(&bundle.join("commit.txt"), &commit)?;
    let script = bundle.join("run.sh");
    write(&script, SCRIPT.as_bytes())?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))
        .map_err(|error| error.to_string())?;
    println!("{}", bundle.display());
    Ok(())
}

/// The names and files of the programs that `cargo test` builds with these arguments.
pub fn programs(arguments: &[&str]) -> Result<Vec<(String, String)>, String> {
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

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    fs::copy(from, to)
        .map(drop)
        .map_err(|error| format!("{}: {error}", from.display()))
}

fn copy_folders(from: &[PathBuf], to: &Path) -> Result<(), String> {
    let status = Command::new("cp").arg("-r").args(from).arg(to).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        _ => Err(format!("cp could not copy {from:?} to {}", to.display())),
    }
}

fn write(path: &Path, content: &[u8]) -> Result<(), String> {
    fs::write(path, content).map_err(|error| format!("{}: {error}", path.display()))
}
