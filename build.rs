//! With the feature `cuda`: compiles each `kernels/*.cu` to a fatbin for the chosen architectures, with the feature `ptx` to
//! PTX text too, and writes the module that embeds them. Without it: nothing.
//!
//! nvcc is looked for in `NVCC`, `CUDA_HOME`, `CUDA_PATH`, `PATH`, and where `cargo xtask toolkit` puts it. Architectures
//! come from `FLASH_ALIBI_CUDA_ARCHS` (such as `80,90a,100a`), or from `CUDA_COMPUTE_CAP` (one, such as `90`), or are 80
//! and 90a; PTX of compute_80 is always embedded, for what comes later.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

/// What PTX is made for: the oldest architecture that the kernels run on.
const PTX_ARCH: &str = "80";

const FLAGS: &[&str] = &["-O3", "-std=c++17", "-Werror", "all-warnings"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    for variable in [
        "NVCC",
        "CUDA_HOME",
        "CUDA_PATH",
        "PATH",
        "FLASH_ALIBI_CUDA_ARCHS",
        "CUDA_COMPUTE_CAP",
        "DOCS_RS",
    ] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    println!("cargo::rerun-if-changed=kernels");
    if let Err(message) = build() {
        println!("cargo::error={}", message.replace('\n', "\ncargo::error="));
        std::process::exit(1);
    }
}

/// A kernel file and what is made of it.
struct Kernel {
    name: String,
    source: PathBuf,
    fatbin: PathBuf,
    ptx: PathBuf,
    log: PathBuf,
}

fn build() -> Result<(), String> {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let mut kernels: Vec<Kernel> = fs::read_dir("kernels")
        .map_err(|error| format!("kernels: {error}"))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "cu"))
        .map(|source| {
            let name = source
                .file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let made = |extension| out.join(&name).with_extension(extension);
            let (fatbin, ptx, log) = (made("fatbin"), made("ptx"), made("ptxas"));
            Kernel {
                name,
                source,
                fatbin,
                ptx,
                log,
            }
        })
        .collect();
    kernels.sort_by(|a, b| a.name.cmp(&b.name));

    if env::var_os("DOCS_RS").is_some() {
        // The documentation needs no kernels.
        for kernel in &kernels {
            for file in [&kernel.fatbin, &kernel.ptx, &kernel.log] {
                write(file, "")?;
            }
        }
    } else {
        let nvcc = nvcc(&out)?;
        let archs = archs()?;
        let compile = |kernel: &Kernel| kernel.compile(&nvcc, &archs);
        let results: Vec<Result<(), String>> = thread::scope(|scope| {
            let jobs: Vec<_> = kernels
                .iter()
                .map(|kernel| scope.spawn(|| compile(kernel)))
                .collect();
            jobs.into_iter()
                .map(|job| job.join().expect("compiling does not panic"))
                .collect()
        });
        results.into_iter().collect::<Result<(), String>>()?;
    }

    let mut module = String::from("/// All kernel files.\npub const ALL: &[Embedded] = &[\n");
    for Kernel {
        name,
        fatbin,
        ptx,
        log,
        ..
    } in &kernels
    {
        let _ = writeln!(
            module,
            "    Embedded {{ name: {name:?}, fatbin: include_bytes!({fatbin:?}), {} }},",
            if with_text() {
                format!("ptx: include_str!({ptx:?}), ptxas: include_str!({log:?})")
            } else {
                String::new()
            }
        );
    }
    module.push_str("];\n");
    write(&out.join("kernels.rs"), &module)
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}

impl Kernel {
    fn compile(&self, nvcc: &Path, archs: &[String]) -> Result<(), String> {
        let run = |arguments: &[String], output: &Path| {
            let result = Command::new(nvcc)
                .args(FLAGS)
                .args(arguments)
                .arg(&self.source)
                .arg("-o")
                .arg(output)
                .output()
                .map_err(|error| format!("{}: {error}", nvcc.display()))?;
            let text = String::from_utf8_lossy(&result.stderr).into_owned()
                + &String::from_utf8_lossy(&result.stdout);
            match result.status.success() {
                true => Ok(text),
                false => Err(format!("nvcc failed on {}:\n{text}", self.source.display())),
            }
        };
        let mut fatbin = ["-fatbin", "-Xptxas", "-v", "--threads", "0"]
            .map(String::from)
            .to_vec();
        for arch in archs {
            fatbin.push(format!("-gencode=arch=compute_{arch},code=sm_{arch}"));
        }
        fatbin.push(format!(
            "-gencode=arch=compute_{PTX_ARCH},code=compute_{PTX_ARCH}"
        ));
        let dependencies = self.fatbin.with_extension("d");
        fatbin.extend([
            "-MD".into(),
            "-MF".into(),
            dependencies.display().to_string(),
        ]);
        let log = run(&fatbin, &self.fatbin)?;
        write(&self.log, &log)?;
        if with_text() {
            // Line numbers are for the emulator; in the fatbin they would be most of its size.
            let arguments = [
                "-ptx".into(),
                "-lineinfo".into(),
                format!("-arch=compute_{PTX_ARCH}"),
            ];
            run(&arguments, &self.ptx)?;
        }

        // Headers of the toolkit too: a new one compiles anew.
        let dependencies = fs::read_to_string(&dependencies).unwrap_or_default();
        for header in dependencies
            .split_once(':')
            .map_or("", |(_, list)| list)
            .split_whitespace()
        {
            if header != "\\" {
                println!("cargo::rerun-if-changed={header}");
            }
        }
        Ok(())
    }
}

fn with_text() -> bool {
    env::var_os("CARGO_FEATURE_PTX").is_some()
}

/// The architectures to compile for, such as `80` or `90a`.
fn archs() -> Result<Vec<String>, String> {
    let list = match (
        env::var("FLASH_ALIBI_CUDA_ARCHS"),
        env::var("CUDA_COMPUTE_CAP"),
    ) {
        (Ok(list), _) => list,
        // Hopper's own instructions need the `a`.
        (_, Ok(one)) => one.replace('.', "").replace("90", "90a").replace("aa", "a"),
        _ => "80,90a".into(),
    };
    let archs: Vec<String> = list
        .split([',', ';', ' '])
        .map(|arch| arch.trim().trim_start_matches("sm_").replace('.', ""))
        .filter(|arch| !arch.is_empty())
        .collect();
    for arch in &archs {
        let number = arch.trim_end_matches(['a', 'f']);
        if !number.parse::<u32>().is_ok_and(|number| number >= 80) {
            return Err(format!(
                "FLASH_ALIBI_CUDA_ARCHS: found {arch:?}, expected compute capabilities of 80 and above, such as 80,90a"
            ));
        }
    }
    Ok(archs)
}

/// The compiler.
fn nvcc(out: &Path) -> Result<PathBuf, String> {
    let program = format!("nvcc{}", env::consts::EXE_SUFFIX);
    if let Some(nvcc) = env::var_os("NVCC") {
        // Said outright: no other is looked for.
        return works(Path::new(&nvcc))
            .ok_or_else(|| format!("NVCC: {} does not run", nvcc.display()));
    }
    let homes = ["CUDA_HOME", "CUDA_PATH"]
        .into_iter()
        .filter_map(env::var_os);
    let in_homes = homes.map(|home| Path::new(&home).join("bin").join(&program));
    // OUT_DIR lies within the target directory.
    let in_target = out
        .ancestors()
        .map(|folder| folder.join("toolkit/nvidia/cu13/bin").join(&program));
    in_homes
        .chain([PathBuf::from(&program)])
        .chain(in_target)
        .find_map(|nvcc| works(&nvcc))
        .ok_or_else(|| {
            "the feature `cuda` needs nvcc (CUDA 12.8 or later): set NVCC or CUDA_HOME, put it on PATH, or run \
             `cargo xtask toolkit` in a checkout of flash-alibi"
                .to_owned()
        })
}

fn works(nvcc: &Path) -> Option<PathBuf> {
    let status = Command::new(nvcc)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    status
        .is_ok_and(|status| status.success())
        .then(|| nvcc.to_owned())
}
