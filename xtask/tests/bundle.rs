//! The bundle for machines with a GPU: the whole of it on the emulated driver, and its script on programs that fail.
#![cfg(target_os = "linux")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

#[test]
fn the_bundle_runs_on_the_emulated_driver() {
    let output = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args(["gpu-bundle", "--dry-run"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{complaints}");
    // What was run, and what was not.
    for line in [
        "prefill follows the oracle",
        "decoding follows the oracle",
        "golden files, backend cuda, horizon off",
        "golden files, backend cuda-decode, horizon certified",
        "test prefill::random_problems",
        "not run: compute-sanitizer needs a GPU",
        "ok: peers-decode",
        "13 of 13 steps are well",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    assert!(!said.contains("ignored (found no"), "{said}");
}

/// A bundle whose program is a script.
struct Bundle(PathBuf);

impl Bundle {
    fn new(name: &str, program: &str) -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(folder.join("package/testing")).unwrap();
        fs::write(folder.join("commit.txt"), "abc\n").unwrap();
        let script = include_str!("../gpu-bundle/run.sh");
        for (file, content) in [("run.sh", script), ("cuda", program)] {
            let file = folder.join(file);
            fs::write(&file, content).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        }
        Self(folder)
    }

    fn run(&self, steps: &[&str]) -> Output {
        Command::new(self.0.join("run.sh"))
            .args(steps)
            .env("DRY_RUN", "1")
            .env("STEP_SECONDS", "2")
            .output()
            .unwrap()
    }

    fn report(&self, step: &str) -> String {
        fs::read_to_string(self.0.join(format!("report-{step}.txt"))).unwrap()
    }
}

#[test]
fn a_step_that_fails_is_seen_and_the_next_is_run() {
    let bundle = Bundle::new(
        "failing-golden",
        "#!/bin/sh\necho \"was $1\"\n[ \"$1 $3 $5\" != 'golden cuda certified' ]\n",
    );
    let output = bundle.run(&["load", "goldens", "tests"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("2 of 3 steps are well"), "{said}");
    assert!(bundle.report("load").contains("was load\nok: load"));
    assert_eq!(bundle.report("goldens").matches("was golden").count(), 4);
    assert_eq!(bundle.report("goldens").matches("FAILED with 1").count(), 1);
    assert!(bundle.report("tests").contains("ok: tests"));
    assert_eq!(bundle.run(&["load"]).status.code(), Some(0));
}

#[test]
fn a_step_that_takes_too_long_is_stopped() {
    let bundle = Bundle::new("slow", "#!/bin/sh\nexec sleep 60\n");
    let output = bundle.run(&["load"]);
    assert_eq!(output.status.code(), Some(1));
    let report = bundle.report("load");
    assert!(
        report.contains("FAILED: load was not done after 2 s"),
        "{report}"
    );
}

#[test]
fn steps_that_are_not_there_are_refused() {
    let bundle = Bundle::new("unknown", "#!/bin/sh\n");
    assert_eq!(bundle.run(&["laod"]).status.code(), Some(2));
}
