//! Each device that the emulated driver plays: this program, with the task `load`, as a process of its own on that driver,
//! since a driver is found and set up once a process. All other tests can be run on each by hand:
//! `PTX_EMULATOR_COMPUTE_CAPABILITY=12.0 cargo xtask emulate test --test cuda`.

use libtest_mimic::Trial;

#[cfg(not(target_os = "linux"))]
pub fn trials() -> Vec<Trial> {
    Vec::new()
}

#[cfg(target_os = "linux")]
pub use linux::trials;

#[cfg(target_os = "linux")]
mod linux {
    use std::env;
    use std::fs;
    use std::path::Path;
    use std::process::Command;

    use libtest_mimic::Completion;

    use super::Trial;
    use crate::device::host_trial;

    /// The library, where cargo puts it beside this program when it builds the whole workspace.
    const DRIVER: &str = "libptx_emulator_driver.so";

    /// Loads every kernel as a device of the compute capability, and computes.
    fn load_on(capability: &str) -> Completion {
        let program = env::current_exe().unwrap();
        let driver = program.with_file_name(DRIVER);
        if !driver.exists() {
            return Completion::ignored_with(format!("there is no {}", driver.display()));
        }
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("driver-{capability}"));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        for name in ["libcuda.so", "libcuda.so.1"] {
            std::os::unix::fs::symlink(&driver, folder.join(name)).unwrap();
        }
        let output = Command::new(&program)
            .arg("load")
            .env("LD_LIBRARY_PATH", &folder)
            .env("PTX_EMULATOR_COMPUTE_CAPABILITY", capability)
            .output()
            .unwrap();
        let [out, errors] =
            [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
        assert!(output.status.success(), "{out}{errors}");
        let found = format!("compute capability {capability},");
        for expected in [
            found.as_str(),
            "every kernel can be loaded",
            "prefill follows the oracle",
            "decoding follows the oracle",
        ] {
            assert!(out.contains(expected), "{expected}: {out}{errors}");
        }
        Completion::Completed
    }

    macro_rules! capabilities {
        ($($test:ident: $capability:literal),* $(,)?) => {
            $(fn $test() -> Completion {
                load_on($capability)
            })*

            pub fn trials() -> Vec<Trial> {
                vec![$(host_trial("cuda::devices", stringify!($test), $test)),*]
            }
        };
    }

    capabilities! {
        kernels_load_and_compute_on_8_0: "8.0",
        kernels_load_and_compute_on_8_6: "8.6",
        kernels_load_and_compute_on_8_9: "8.9",
        kernels_load_and_compute_on_9_0: "9.0",
        kernels_load_and_compute_on_12_0: "12.0",
    }
}
