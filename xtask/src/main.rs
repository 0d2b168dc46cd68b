//! Project tasks; `cargo xtask` lists them.

mod bundle;
mod package;
mod public_api;
mod toolkit;

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use toolkit::Toolkit;

const USAGE: &str = "usage: cargo xtask TASK

    test         format, lints, builds with and without features, all tests, the documentation, the package
    emulate      runs cargo with the arguments that follow, such as `test --test cuda`, on an emulated GPU
    toolkit      fetches the pinned CUDA compiler into the target directory, and prints where nvcc is
    kernels      compiles the kernels and prints their registers, shared memory and spills
    package      makes the package, tries to publish it, and runs the examples of the documentation from it
    public-api   writes the listing of the public interface, public-api.txt, anew
    gpu-bundle   gathers what tests and measures on a machine with a GPU and without Rust; with --dry-run, runs it on an
                 emulated GPU instead, as far as that goes";

/// All packages, with all that can be built without CUDA's libraries. Always the same, so that nothing is built twice.
const EVERYTHING: &[&str] = &[
    "--workspace",
    "--features=flash-alibi-tests/ptx,flash-alibi-models/compare",
];

fn main() -> ExitCode {
    let task = env::args().nth(1).unwrap_or_default();
    let result = match task.as_str() {
        "test" => test(),
        "toolkit" => Toolkit::get().map(|toolkit| println!("{}", toolkit.nvcc.display())),
        "kernels" => {
            let test = ["--test", "kernel_budget", "--", "--nocapture", "--quiet"];
            cargo(&[&["test"], EVERYTHING, &test].concat())
        }
        "emulate" => {
            let arguments: Vec<String> = env::args().skip(2).collect();
            on_emulated_device(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
        }
        "package" => package::check(),
        "public-api" => public_api::check(true),
        "gpu-bundle" if env::args().nth(2).as_deref() == Some("--dry-run") => bundle::dry_run(),
        "gpu-bundle" => bundle::make(),
        _ => Err(USAGE.into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

/// Everything that can be tested on this machine: the cheapest and the most telling first.
fn test() -> Result<(), String> {
    cargo(&["fmt", "--all", "--check"])?;
    // As most users build it: without nvcc, and without what the tests bring.
    cargo(&["check", "--package", "flash-alibi", "--lib"])?;
    // As they test it.
    cargo_with(
        &["check", "--tests", "--examples"],
        &[("NVCC", "there-is-none".as_ref())],
    )?;
    // Without kernels, as docs.rs builds it: cargo keeps what build scripts do for clippy apart, and nvcc would run twice.
    let all_targets = ["--all-targets", "--", "-D", "warnings"];
    cargo_with(
        &[&["clippy"], EVERYTHING, &all_targets].concat(),
        &[("DOCS_RS", "1".as_ref())],
    )?;
    // The bundle's dry run, among these, has all tests of the testing crate on an emulated GPU.
    cargo(&[&["test"], EVERYTHING].concat())?;
    if cfg!(target_os = "linux") {
        // On the driver that reports every access to memory that is not there any more; and what the library tests of its
        // own launches.
        let folders = emulated_driver("debug/deps/libptx_emulator_driver.so")?;
        let test = ["--lib", "--test=cuda_soundness"];
        cargo_with(
            &[&["test"], EVERYTHING, &test].concat(),
            &[("LD_LIBRARY_PATH", &folders)],
        )?;
    }
    oldest_candle()?;
    candle_cuda()?;
    other_platforms()?;
    // As docs.rs makes it: without kernels.
    cargo_with(
        &[
            "doc",
            "--workspace",
            "--no-deps",
            "--features=flash-alibi/candle,flash-alibi/cuda",
        ],
        &[("DOCS_RS", "1".as_ref())],
    )?;
    public_api::check(false)?;
    package::check()
}

/// Checks the feature `candle-cuda` with the newest candle and with the oldest that it accepts: its types. candle's own
/// kernels take nvcc many minutes and are not looked at.
fn candle_cuda() -> Result<(), String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let stand_in = root.join("stand-in");
    let (folder, nvcc) = (stand_in.join("bin"), stand_in.join("bin/nvcc"));
    let found = env::var_os("PATH").unwrap_or_default();
    let folders = env::join_paths([folder].into_iter().chain(env::split_paths(&found)))
        .map_err(|error| error.to_string())?;
    let target = toolkit::target();
    let variables = [
        ("CARGO_TARGET_DIR", target.as_os_str()),
        ("PATH", folders.as_os_str()),
        ("NVCC", nvcc.as_os_str()),
        ("CUDA_ROOT", stand_in.as_os_str()),
        ("CUDA_COMPUTE_CAP", "80".as_ref()),
    ];
    let newest = [
        "--package=flash-alibi",
        "--package=flash-alibi-models",
        "--package=flash-alibi-tests",
        "--features=candle-cuda",
        "--lib",
        "--examples",
        "--test=cuda_candle",
    ];
    let oldest = ["--manifest-path=testing/candle-0.9.2/Cargo.toml", "--tests"];
    let no_warnings = ["--", "-D", "warnings"];
    cargo_with(
        &[&["clippy"], &newest[..], &no_warnings].concat(),
        &variables,
    )?;
    cargo_with(
        &[&["clippy"], &oldest[..], &no_warnings].concat(),
        &variables,
    )
}

/// Checks the types on other systems and processors, as far as rustup has their standard library. The feature `candle` has
/// nothing that differs there.
fn other_platforms() -> Result<(), String> {
    for platform in [
        "aarch64-apple-darwin",
        "aarch64-unknown-linux-gnu",
        "x86_64-pc-windows-msvc",
    ] {
        let said = Command::new("rustup")
            .args(["target", "add", platform])
            .output();
        if !said.is_ok_and(|said| said.status.success()) {
            println!(
                "SKIPPED: rustup has no standard library of {platform}, whose types are not checked"
            );
            continue;
        }
        let target = format!("--target={platform}");
        let check = ["check", "--package=flash-alibi", "--lib", "--features=cuda"];
        // Without kernels, as docs.rs builds it: nvcc would want that system's C++ compiler.
        let docs = ("DOCS_RS", OsStr::new("1"));
        cargo_with(&[&check[..], &[&target]].concat(), &[docs])?;
    }
    Ok(())
}

/// The tests of the feature `candle` with the oldest candle that it accepts; the other tests have the newest.
fn oldest_candle() -> Result<(), String> {
    cargo_with(
        &["test", "--manifest-path=testing/candle-0.8.4/Cargo.toml"],
        &[("CARGO_TARGET_DIR", toolkit::target().as_os_str())],
    )
}

/// Runs cargo with the arguments where the emulator's CUDA driver is found before any other.
fn on_emulated_device(arguments: &[&str]) -> Result<(), String> {
    cargo(&["build", "--package", "ptx-emulator-driver"])?;
    let folders = emulated_driver("debug/libptx_emulator_driver.so")?;
    // Tests and benches are those of the whole workspace, unless something else is said.
    let said = arguments.iter().any(|argument| {
        ["--workspace", "--package", "-p", "--features", "-F"]
            .iter()
            .any(|option| argument.starts_with(option))
    });
    let arguments = match arguments {
        [task @ ("test" | "bench"), rest @ ..] if !said => [&[*task], EVERYTHING, rest].concat(),
        _ => arguments.to_vec(),
    };
    cargo_with(&arguments, &[("LD_LIBRARY_PATH", &folders)])
}

/// Where programs look for libraries so that they find this one, in the target directory, as the CUDA driver.
fn emulated_driver(library: &str) -> Result<OsString, String> {
    let folder = toolkit::target().join("driver");
    let failed = |error| format!("{}: {error}", folder.display());
    fs::create_dir_all(&folder).map_err(failed)?;
    let library = toolkit::target().join(library);
    for name in ["libcuda.so", "libcuda.so.1"] {
        // A program may be using the one that is there: it keeps it.
        let _ = fs::remove_file(folder.join(name));
        fs::copy(&library, folder.join(name)).map_err(failed)?;
    }
    let found = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let folders = [folder].into_iter().chain(env::split_paths(&found));
    env::join_paths(folders).map_err(|error| error.to_string())
}

/// Runs cargo with the arguments, the toolkit and a fixed seed of random cases.
fn cargo(arguments: &[&str]) -> Result<(), String> {
    cargo_with(arguments, &[])
}

fn cargo_with(arguments: &[&str], variables: &[(&str, &OsStr)]) -> Result<(), String> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    run(&cargo, arguments, variables)
}

fn run(program: &OsStr, arguments: &[&str], variables: &[(&str, &OsStr)]) -> Result<(), String> {
    let toolkit = Toolkit::get()?;
    let name = Path::new(program).file_name().unwrap_or(program);
    let name = format!("{} {}", name.display(), arguments.join(" "));
    println!("==> {name}");
    let mut command = Command::new(program);
    command
        .args(arguments)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .env("RUSTDOCFLAGS", "-D warnings")
        .env("LIBCLANG_PATH", &toolkit.libclang);
    // A compiler that was chosen is used.
    if env::var_os("NVCC").is_none() {
        command.env("NVCC", &toolkit.nvcc);
    }
    // The same cases every time, so that a test fails for a change that was made; `cargo test` alone looks at others.
    if env::var_os("PROPTEST_RNG_SEED").is_none() {
        command.env("PROPTEST_RNG_SEED", "2022");
    }
    // These win over what the toolkit says.
    command.envs(variables.iter().copied());
    let status = command
        .status()
        .map_err(|error| format!("{name}: {error}"))?;
    match status.success() {
        true => Ok(()),
        false => Err(format!("{name}: {status}")),
    }
}
