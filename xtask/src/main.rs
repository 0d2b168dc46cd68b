//! Project tasks: `cargo xtask test`.

use std::env;
use std::process::{Command, ExitCode};

const USAGE: &str = "usage: cargo xtask test\n\n\
    test    format, lints, builds with and without features, all tests, the documentation";

/// What `test` runs, in order: the cheapest and the most telling first.
const TEST: &[&[&str]] = &[
    &["fmt", "--all", "--check"],
    &["check", "--package", "flash-alibi", "--lib"],
    &[
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ],
    &["test", "--workspace"],
    &["doc", "--workspace", "--no-deps", "--all-features"],
];

fn main() -> ExitCode {
    let task = env::args().nth(1);
    let done = match task.as_deref() {
        Some("test") => TEST.iter().all(|arguments| cargo(arguments)),
        _ => {
            eprintln!("{USAGE}");
            false
        }
    };
    if done {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Runs cargo with the arguments, says which, and whether it succeeded.
fn cargo(arguments: &[&str]) -> bool {
    println!("==> cargo {}", arguments.join(" "));
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(arguments)
        .env("RUSTDOCFLAGS", "-D warnings")
        .status();
    match status {
        Ok(status) if status.success() => true,
        Ok(status) => {
            eprintln!("cargo {}: {status}", arguments.join(" "));
            false
        }
        Err(error) => {
            eprintln!("cargo {}: {error}", arguments.join(" "));
            false
        }
    }
}
