//! What nvcc makes of the kernels.

use std::env;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use super::nvcc::Nvcc;
use super::{ARCHITECTURES, out_dir, write};

/// Kernels that only tests use, and what their PTX is made for. In the tables they are of the oldest architecture.
const TESTS: &[(&str, &str)] = &[("tests", ARCHITECTURES[0].2), ("tests/sm90", "90a")];

const FLAGS: &[&str] = &["-O3", "-std=c++17"];

/// Where the kernels are tested. Elsewhere a host compiler may have headers that NVIDIA's do not quite fit.
const NO_WARNINGS: &[&str] = &["-Werror", "all-warnings"];

/// A kernel file and what is made of it.
struct Kernel {
    /// With its folder, such as `sm80/prefill`.
    name: String,
    /// The variant of `Architecture`.
    architecture: &'static str,
    ptx_arch: &'static str,
    source: PathBuf,
    fatbin: PathBuf,
    ptx: PathBuf,
    log: PathBuf,
}

/// The kernel files of a folder.
fn folder(
    folder: &str,
    architecture: &'static str,
    ptx_arch: &'static str,
    out: &Path,
) -> Result<Vec<Kernel>, String> {
    let path = Path::new("kernels").join(folder);
    let entries = fs::read_dir(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let sources = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "cu"));
    let mut kernels: Vec<Kernel> = sources
        .map(|source| {
            let stem = source.file_stem().unwrap_or_default().to_string_lossy();
            let made = |extension| {
                let file = format!("{}-{stem}", folder.replace('/', "-"));
                out.join(file).with_extension(extension)
            };
            let (fatbin, ptx, log) = (made("fatbin"), made("ptx"), made("ptxas"));
            Kernel {
                name: format!("{folder}/{stem}"),
                architecture,
                ptx_arch,
                fatbin,
                ptx,
                log,
                source,
            }
        })
        .collect();
    kernels.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(kernels)
}

/// Compiles all kernels, and writes the module that embeds them.
pub(crate) fn all() -> Result<(), String> {
    let out = out_dir();
    let mut kernels = Vec::new();
    for (name, architecture, ptx_arch) in ARCHITECTURES {
        kernels.extend(folder(name, architecture, ptx_arch, &out)?);
    }
    if with_text() {
        for (name, ptx_arch) in TESTS {
            kernels.extend(folder(name, ARCHITECTURES[0].1, ptx_arch, &out)?);
        }
    }

    if env::var_os("DOCS_RS").is_some() {
        // The documentation needs no kernels.
        for kernel in &kernels {
            for file in [&kernel.fatbin, &kernel.ptx, &kernel.log] {
                write(file, "")?;
            }
        }
    } else {
        let nvcc = Nvcc::find(&out)?;
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
        architecture,
        fatbin,
        ptx,
        log,
        ..
    } in &kernels
    {
        let _ = writeln!(
            module,
            "    Embedded {{ architecture: Architecture::{architecture}, name: {name:?}, fatbin: include_bytes!({fatbin:?}), {} }},",
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

impl Kernel {
    /// To PTX once, and from it to machine code: the text that the emulator runs is the text that devices get.
    fn compile(&self, nvcc: &Nvcc, archs: &[String]) -> Result<(), String> {
        let run = |arguments: &[String], source: &Path, output: &Path| {
            let mut all: Vec<&OsStr> = FLAGS.iter().map(OsStr::new).collect();
            if with_text() {
                all.extend(NO_WARNINGS.iter().map(OsStr::new));
            }
            all.extend(arguments.iter().map(OsStr::new));
            all.extend([source.as_ref(), "-o".as_ref(), output.as_os_str()]);
            nvcc.run(&all, &self.source)
        };
        let ptx = self.ptx_arch;
        let dependencies = self.ptx.with_extension("d");
        let mut text = vec![
            "-ptx".into(),
            format!("-arch=compute_{ptx}"),
            "-I".into(),
            "kernels".into(),
            "-MD".into(),
            "-MF".into(),
            dependencies.display().to_string(),
        ];
        if with_text() {
            // For the emulator; without it the fatbin is half as large.
            text.push("-lineinfo".into());
        }
        run(&text, &self.source, &self.ptx)?;

        // nvcc compresses PTX by itself, machine code only when it is told to: all is a quarter then.
        let mut fatbin = [
            "-fatbin",
            "-Xfatbin=-compress-all",
            "-Xptxas",
            "-v",
            "--threads",
            "0",
        ]
        .map(String::from)
        .to_vec();
        // What is for one architecture only, such as 90a, is for no other; what is for all needs no such instructions.
        let only = ptx.ends_with(char::is_alphabetic);
        let mut codes: Vec<String> = if only {
            archs.iter().filter(|arch| *arch == ptx).cloned().collect()
        } else {
            let numbers = archs.iter().map(|arch| number(arch).to_owned());
            numbers.collect()
        };
        codes.sort();
        codes.dedup();
        for code in codes {
            fatbin.push(format!("-gencode=arch=compute_{ptx},code=sm_{code}"));
        }
        fatbin.push(format!("-gencode=arch=compute_{ptx},code=compute_{ptx}"));
        let log = run(&fatbin, &self.ptx, &self.fatbin)?;
        write(&self.log, &log)?;

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
        if !number(arch).parse::<u32>().is_ok_and(|number| number >= 80) {
            return Err(format!(
                "FLASH_ALIBI_CUDA_ARCHS: found {arch:?}, expected compute capabilities of 80 and above, such as 80,90a"
            ));
        }
    }
    Ok(archs)
}

/// Of an architecture such as `90a`.
fn number(arch: &str) -> &str {
    arch.trim_end_matches(['a', 'f'])
}
