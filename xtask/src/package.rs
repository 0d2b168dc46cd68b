//! The package: as crates.io would take it, and as an application would build it.

use std::env;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::toolkit::target;

const PACKAGE: &str = "--package=flash-alibi";

/// Packages the library, tries to publish it, and builds it and runs the examples of its documentation from the archive.
pub fn check() -> Result<(), String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    // Its examples, below, build it.
    let said = cargo(&["package", PACKAGE, "--no-verify", "--allow-dirty"], &root)?.stderr;
    let warnings: Vec<&str> = said
        .lines()
        .filter(|line| line.starts_with("warning: "))
        .collect();
    if !warnings.is_empty() {
        return Err(format!("cargo package: {}", warnings.join("\n")));
    }

    let dry_run = [
        "publish",
        PACKAGE,
        "--dry-run",
        "--no-verify",
        "--allow-dirty",
    ];
    match cargo(&dry_run, &root) {
        Err(error) if error.contains("crates-io is replaced") => {
            println!(
                "SKIPPED: cargo publish --dry-run asks crates.io itself, and cargo here asks another source"
            );
        }
        result => drop(result?),
    }

    let id = cargo(&["pkgid", PACKAGE], &root)?.stdout;
    let version = id.trim().rsplit(['#', '@']).next().unwrap_or_default();
    let name = format!("flash-alibi-{version}");
    let scratch = env::temp_dir().join(format!("{name}-{}", std::process::id()));
    let result = run_examples(&name, &scratch);
    let _ = fs::remove_dir_all(&scratch);
    result
}

/// Runs the examples of the documentation from the archive alone, in a folder where no workspace is around it.
fn run_examples(name: &str, scratch: &Path) -> Result<(), String> {
    fs::create_dir_all(scratch).map_err(|error| format!("{}: {error}", scratch.display()))?;
    let archive = target().join("package").join(format!("{name}.crate"));
    let mut tar = Command::new("tar");
    tar.arg("-xzf").arg(&archive).arg("-C").arg(scratch);
    output(&mut tar)?;
    let said = cargo(&["test", "--doc"], &scratch.join(name))?.stdout;
    let passed = said
        .lines()
        .filter_map(|line| line.strip_prefix("test result: ok. ")?.split(' ').next())
        .filter_map(|count| count.parse::<usize>().ok());
    match passed.sum::<usize>() {
        0 => Err(format!(
            "{name}: no example of its documentation ran:\n{said}"
        )),
        count => {
            println!("{count} examples of the documentation ran from {name}.crate");
            Ok(())
        }
    }
}

/// What a program said.
struct Said {
    stdout: String,
    stderr: String,
}

/// Runs cargo where no CUDA compiler is found, with what is built already.
fn cargo(arguments: &[&str], folder: &Path) -> Result<Said, String> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args(arguments)
        .current_dir(folder)
        .env("CARGO_TARGET_DIR", target())
        .env("NVCC", "there-is-none");
    output(&mut command)
}

fn output(command: &mut Command) -> Result<Said, String> {
    let arguments: Vec<_> = command.get_args().map(|a| a.to_string_lossy()).collect();
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or(program.as_os_str());
    let name = format!("{} {}", name.display(), arguments.join(" "));
    println!("==> {name}");
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{name}: {error}"))?;
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    let said = Said {
        stdout: text(&output.stdout),
        stderr: text(&output.stderr),
    };
    match output.status.success() {
        true => Ok(said),
        false => Err(format!(
            "{name}: {}\n{}{}",
            output.status, said.stdout, said.stderr
        )),
    }
}
