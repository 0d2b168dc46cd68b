//! What a machine with a driver and without Rust needs to test and measure: the test and bench programs, their data, and
//! one script.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::toolkit::{Toolkit, target};

/// Runs each program and writes report.txt beside itself; fails if any failed.
const SCRIPT: &str = r#"#!/usr/bin/env bash
# Runs the bundled tests (and, with `bench`, the benches) on this machine; writes report.txt.
set -u
cd "$(dirname "$0")"
failed=0
{
    echo "commit: $(cat commit.txt)"
    echo "date: $(date -u +%FT%TZ)"
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null || echo "no GPU found"
    for program in tests/*; do
        echo "== $program"
        (cd package && "../$program") || { failed=1; echo "FAILED: $program"; }
    done
    if [ "${1:-}" = bench ]; then
        for program in benches/*; do
            echo "== $program"
            (cd package && "../$program" --bench) || { failed=1; echo "FAILED: $program"; }
        done
    fi
} 2>&1 | tee report.txt
grep -q '^FAILED' report.txt && exit 1
exit 0
"#;

pub fn make() -> Result<(), String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let bundle = target().join("gpu-bundle");
    let _ = fs::remove_dir_all(&bundle);
    for folder in ["tests", "benches", "package"] {
        let folder = bundle.join(folder);
        fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    }
    for (kind, arguments) in [("tests", &["--tests"][..]), ("benches", &["--benches"])] {
        for (name, program) in build(&root, arguments)? {
            // Those that use a device; the others need none.
            if name.starts_with("cuda") {
                copy(Path::new(&program), &bundle.join(kind).join(name))?;
            }
        }
    }
    // What the tests read, by paths relative to the package.
    let status = Command::new("cp")
        .arg("-r")
        .args(["tests", "models"].map(|data| root.join(data)))
        .arg(bundle.join("package"))
        .status();
    if !status.is_ok_and(|status| status.success()) {
        return Err("cp could not copy the data of the tests".into());
    }
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

/// Builds programs of the crate without what only a debugger reads, and returns their names and files.
fn build(root: &Path, kind: &[&str]) -> Result<Vec<(String, String)>, String> {
    let toolkit = Toolkit::get()?;
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut child = Command::new(cargo)
        .args([
            "test",
            "--profile=bundle",
            "--no-run",
            "--message-format=json-render-diagnostics",
            "--package",
            "flash-alibi",
        ])
        .args(kind)
        .current_dir(root)
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

fn write(path: &Path, content: &[u8]) -> Result<(), String> {
    fs::write(path, content).map_err(|error| format!("{}: {error}", path.display()))
}
