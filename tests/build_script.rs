//! The build script, run as cargo runs it, with an nvcc that writes down what it is told.
#![cfg(unix)]

#[path = "../build/main.rs"]
mod build;

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Says to this program that it is the build script.
const AS_SCRIPT: &str = "FLASH_ALIBI_TEST_AS_BUILD_SCRIPT";

const LINUX: &str = "x86_64-unknown-linux-gnu";
const ARM: &str = "aarch64-unknown-linux-gnu";

/// As nvcc: makes what it is asked for, or fails as the variable COMPLAINT says.
const NVCC: &str = r#"#!/bin/sh
[ "$1" = --version ] && exit
echo "$@" >>"$OUT_DIR/log"
[ -z "$COMPLAINT" ] || { echo "$COMPLAINT" >&2; exit 2; }
while [ $# -gt 0 ]; do
    [ "$1" != -o ] || : >"$2"
    shift
done
"#;

/// As a compiler: says its version, and to cc that it is one of GNU.
const COMPILER: &str = r#"#!/bin/sh
[ "$1" = --version ] && echo "tested++ (GCC) 16.1.0" || echo '"gcc"'
"#;

/// Not a test: what the tests run.
#[test]
fn as_build_script() {
    if env::var_os(AS_SCRIPT).is_some() {
        build::main();
    }
}

/// A machine with nothing but an nvcc and these compilers.
struct Machine {
    folder: PathBuf,
}

impl Machine {
    fn new(name: &str, compilers: &[&str]) -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join("build_script")
            .join(name);
        let _ = fs::remove_dir_all(&folder);
        for inner in ["bin", "out"] {
            fs::create_dir_all(folder.join(inner)).unwrap();
        }
        let programs = compilers.iter().map(|compiler| (*compiler, COMPILER));
        for (program, text) in [("nvcc", NVCC)].into_iter().chain(programs) {
            let file = folder.join("bin").join(program);
            fs::write(&file, text).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        }
        Self { folder }
    }

    fn program(&self, name: &str) -> String {
        self.folder.join("bin").join(name).display().to_string()
    }

    /// What nvcc was told of the host compiler, or the errors.
    fn build(&self, target: &str, variables: &[(&str, &str)]) -> Result<Option<String>, String> {
        let (arch, _) = target.split_once('-').unwrap();
        let out = self.folder.join("out");
        let _ = fs::remove_file(out.join("log"));
        let output = Command::new(env::current_exe().unwrap())
            .args(["--exact", "as_build_script", "--nocapture"])
            .env_clear()
            .env(AS_SCRIPT, "1")
            .env("PATH", self.folder.join("bin"))
            .env("OUT_DIR", &out)
            .env("HOST", LINUX)
            .env("TARGET", target)
            .env("OPT_LEVEL", "0")
            .env("CARGO_CFG_TARGET_ARCH", arch)
            .env("CARGO_CFG_TARGET_OS", "linux")
            .env("CARGO_CFG_TARGET_ENV", "gnu")
            .env("CARGO_CFG_TARGET_VENDOR", "unknown")
            .env(
                "CARGO_CFG_TARGET_POINTER_WIDTH",
                if arch == "i686" { "32" } else { "64" },
            )
            .envs(variables.iter().copied())
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        if !output.status.success() {
            let errors: Vec<&str> = text
                .lines()
                .filter_map(|line| line.strip_prefix("cargo::error="))
                .collect();
            return Err(errors.join("\n"));
        }
        // Every call was told the same, which is what comes before the flags.
        let log = fs::read_to_string(out.join("log")).unwrap();
        let mut told = log
            .lines()
            .map(|line| line.split_once("-O3").unwrap().0.trim());
        let first = told.next().unwrap();
        assert!(told.all(|other| other == first), "{log}");
        Ok((!first.is_empty()).then(|| first.to_owned()))
    }

    #[track_caller]
    fn expect(&self, target: &str, variables: &[(&str, &str)], told: Option<&str>) {
        let found = self.build(target, variables);
        assert_eq!(
            found,
            Ok(told.map(str::to_owned)),
            "{target}, {variables:?}"
        );
    }
}

#[test]
fn nvcc_is_told_of_the_compiler_that_cc_finds() {
    let machine = Machine::new("told", &["gcc", "c++", "cross++", "aarch64-linux-gnu-g++"]);
    let cross = &machine.program("cross++");
    let told = &format!("-ccbin {cross}");
    machine.expect(LINUX, &[("CXX", cross)], Some(told));
    // Wherever it lies on PATH; what wraps it is left out, its own arguments are not.
    machine.expect(LINUX, &[("CXX", "cross++")], Some(told));
    let with_argument = &format!("{told} -Xcompiler -m64");
    machine.expect(
        LINUX,
        &[("CXX", "ccache cross++ -m64")],
        Some(with_argument),
    );
    machine.expect(ARM, &[("CXX_aarch64_unknown_linux_gnu", cross)], Some(told));
    let of_arm = machine.program("aarch64-linux-gnu-g++");
    machine.expect(ARM, &[], Some(&format!("-ccbin {of_arm}")));
}

#[test]
fn nvcc_is_left_to_what_it_is_told_by_others_and_to_its_gcc() {
    let machine = Machine::new("left", &["gcc", "c++"]);
    machine.expect(LINUX, &[], None);
    machine.expect(LINUX, &[("CXX", "c++"), ("NVCC_CCBIN", "gcc")], None);
    let flags = ("NVCC_APPEND_FLAGS", "-ccbin gcc");
    machine.expect(LINUX, &[("CXX", "c++"), flags], None);
    // Nor is it told of a compiler that is not there.
    machine.expect(ARM, &[], None);

    let machine = Machine::new("without_gcc", &["c++"]);
    let told = format!("-ccbin {}", machine.program("c++"));
    machine.expect(LINUX, &[], Some(&told));
}

#[test]
fn a_compiler_that_nvcc_refuses_is_named() {
    let machine = Machine::new("refused", &["gcc", "cross++"]);
    let complaint = "unsupported GNU version! gcc versions later than 15 are not supported!";
    let output = format!("host_config.h:137:2: error: #error -- {complaint} The nvcc flag ...");
    let complains = ("COMPLAINT", output.as_str());
    for (variables, program, named) in [
        (vec![("CXX", "cross++")], "cross++", ", which CXX names"),
        (vec![], "gcc", ""),
        (
            vec![("NVCC_CCBIN", "cross++")],
            "cross++",
            ", which NVCC_CCBIN names",
        ),
    ] {
        let error = machine.build(LINUX, &[&variables[..], &[complains]].concat());
        let program = machine.program(program);
        let expected = format!(
            "nvcc cannot use its host compiler {program} (tested++ (GCC) 16.1.0){named}.\n\
             nvcc says: {complaint}\n\
             Set CXX or NVCC_CCBIN to a compiler that this nvcc accepts, such as g++-13, or take a newer CUDA toolkit."
        );
        assert_eq!(error, Err(expected));
    }
    // What is wrong with a kernel is shown as nvcc shows it.
    let error = machine.build(LINUX, &[("COMPLAINT", "kernel.cu(1): error: x")]);
    let error = error.unwrap_err();
    assert!(error.starts_with("nvcc failed on kernels/"), "{error}");
    assert!(error.ends_with("kernel.cu(1): error: x\n"), "{error}");
}

#[test]
fn what_cannot_be_is_said_before_nvcc_runs() {
    let machine = Machine::new("cannot", &["gcc"]);
    let missing = machine.build(LINUX, &[("CXX", "missing++")]).unwrap_err();
    assert_eq!(missing, "CXX: missing++ does not run");
    let narrow = machine.build("i686-unknown-linux-gnu", &[]).unwrap_err();
    assert!(narrow.contains("64-bit pointers"), "{narrow}");
    assert!(narrow.contains("i686-unknown-linux-gnu, of 32"), "{narrow}");
}
