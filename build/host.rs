//! The host compiler. nvcc has it preprocess the kernels; none of its code gets into what is embedded.
//!
//! nvcc itself looks for `gcc` in its own folder and on `PATH`, or for `cl.exe` on `PATH`, and obeys `NVCC_CCBIN`. cc knows
//! what else a Rust build goes by: `CXX` and its forms for a target, the compilers of cross builds, and where Visual Studio
//! lies when no developer shell says so.

use std::env;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What nvcc itself reads of the environment, and a host compiler may be set by.
const OF_NVCC: [&str; 3] = ["NVCC_CCBIN", "NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS"];

/// The host compiler, and how nvcc hears of it.
#[derive(Debug)]
pub(crate) struct HostCompiler {
    /// What nvcc is told. Nothing, where it knows or looks by itself.
    pub(super) arguments: Vec<OsString>,
    pub(super) environment: Vec<(OsString, OsString)>,
    program: PathBuf,
    /// What the compiler says of itself.
    version: Option<String>,
    /// The variable that names it.
    variable: Option<String>,
}

/// The triples that code is compiled on and for.
#[derive(Clone, Copy)]
struct Triples<'a> {
    host: &'a str,
    target: &'a str,
}

impl Triples<'_> {
    fn is_windows(self) -> bool {
        self.host.contains("-windows-")
    }

    /// Where cc looks for the compiler, the first that is set.
    fn variables(self) -> [String; 4] {
        let kind = match self.host == self.target {
            true => "HOST",
            false => "TARGET",
        };
        [
            format!("CXX_{}", self.target),
            format!("CXX_{}", self.target.replace(['-', '.'], "_")),
            format!("{kind}_CXX"),
            "CXX".to_owned(),
        ]
    }
}

/// Who finds the host compiler.
#[derive(Debug, PartialEq)]
enum Finder {
    /// nvcc: the program that this variable of its own names or, without one, what it looks for.
    Nvcc(Option<(&'static str, String)>),
    /// cc, as this variable says or, without one, by its own rules.
    Cc(Option<String>),
}

fn finder(
    triples: Triples<'_>,
    variable: impl Fn(&str) -> Option<OsString>,
    nvcc_has_gcc: impl Fn() -> bool,
) -> Finder {
    let said = |name: &str| variable(name).filter(|value| !value.is_empty());
    let of_nvcc = |name: &'static str| {
        let value = said(name)?.to_string_lossy().into_owned();
        let program = match name {
            "NVCC_CCBIN" => Some(value),
            _ => in_flags(&value).map(str::to_owned),
        };
        Some((name, program?))
    };
    if let Some(found) = OF_NVCC.into_iter().find_map(of_nvcc) {
        return Finder::Nvcc(Some(found));
    }
    if let Some(name) = triples
        .variables()
        .into_iter()
        .find(|name| said(name).is_some())
    {
        return Finder::Cc(Some(name));
    }
    // Toolkits of distributions put the `gcc` that they are made for where their nvcc looks first: it knows better than `c++`.
    if triples.host == triples.target && !triples.is_windows() && nvcc_has_gcc() {
        return Finder::Nvcc(None);
    }
    Finder::Cc(None)
}

/// The host compiler that flags of nvcc name.
fn in_flags(flags: &str) -> Option<&str> {
    let mut words = flags
        .split([' ', '='])
        .skip_while(|word| !matches!(word.trim_start_matches('-'), "ccbin" | "compiler-bindir"));
    words.nth(1)
}

impl HostCompiler {
    /// What this nvcc takes, and is told.
    pub(super) fn find(nvcc: &Path) -> Result<Self, String> {
        let of_cargo = |name| env::var(name).map_err(|error| format!("{name}: {error}"));
        let (host, target) = (&of_cargo("HOST")?, &of_cargo("TARGET")?);
        let width = of_cargo("CARGO_CFG_TARGET_POINTER_WIDTH")?;
        if width != "64" {
            return Err(format!(
                "the feature `cuda` needs a target of 64-bit pointers, as CUDA has: found {target}, of {width}"
            ));
        }
        let triples = Triples { host, target };
        let variables = OF_NVCC.map(str::to_owned).into_iter();
        for variable in variables.chain(triples.variables()) {
            println!("cargo::rerun-if-env-changed={variable}");
        }

        let nvccs_own = match triples.is_windows() {
            true => "cl.exe",
            false => "gcc",
        };
        let folder = nvcc.parent().unwrap_or(Path::new(""));
        let has_gcc = || locate(nvccs_own.as_ref(), folder).is_some();
        match finder(triples, |name| env::var_os(name), has_gcc) {
            Finder::Nvcc(None) => Ok(Self::of_nvcc(nvccs_own, folder, None)),
            Finder::Nvcc(Some((variable, program))) => {
                Ok(Self::of_nvcc(&program, folder, Some(variable)))
            }
            // nvcc may have better luck, and says so if it has not.
            Finder::Cc(None) => Ok(Self::of_cc(triples, None)
                .unwrap_or_else(|_| Self::of_nvcc(nvccs_own, folder, None))),
            // Said outright: no other is taken.
            Finder::Cc(Some(variable)) => Self::of_cc(triples, Some(&variable))
                .map_err(|error| format!("{variable}: {error}")),
        }
    }

    fn of_nvcc(program: &str, folder: &Path, variable: Option<&str>) -> Self {
        let program = Path::new(program);
        let program = locate(program, folder).unwrap_or(program.to_owned());
        let version = first_line(Command::new(&program).arg("--version"));
        Self {
            arguments: Vec::new(),
            environment: Vec::new(),
            program,
            version,
            variable: variable.map(str::to_owned),
        }
    }

    fn of_cc(triples: Triples<'_>, variable: Option<&str>) -> Result<Self, String> {
        let tool = match triples.is_windows() && variable.is_none() {
            // nvcc takes no other, also where Rust's target is that of MinGW.
            true => {
                let arch = triples.target.split('-').next().unwrap_or_default();
                cc::windows_registry::find_tool(&format!("{arch}-pc-windows-msvc"), "cl.exe")
                    .ok_or("there is no Visual Studio")?
            }
            false => cc::Build::new()
                .cpp(true)
                .no_default_flags(true)
                .inherit_rustflags(false)
                .cargo_metadata(false)
                .cargo_warnings(false)
                .try_get_compiler()
                .map_err(|error| error.to_string())?,
        };
        let program = locate(tool.path(), Path::new("")).unwrap_or(tool.path().to_owned());
        // Of `CXX`, what stands behind the compiler: `clang++ --target=aarch64-linux-gnu`. `CXXFLAGS` is not for kernels.
        let command = tool.to_command();
        let all: Vec<&OsStr> = command.get_args().collect();
        let own = all.len().saturating_sub(tool.args().len());
        let own: Vec<&OsStr> = all[..own]
            .iter()
            .copied()
            .filter(|argument| *argument != tool.path())
            .collect();
        let mut environment = Vec::new();
        if triples.is_windows() {
            // `get_envs`, which takes the place of `env`, is younger than the cc that an application may have.
            #[allow(deprecated)]
            environment.extend_from_slice(tool.env());
        }

        let mut ask = Command::new(&program);
        ask.args(&own).envs(environment.iter().cloned());
        // cl.exe says its name when it is asked for nothing.
        if !triples.is_windows() || tool.is_like_clang_cl() {
            ask.arg("--version");
        }
        let version =
            first_line(&mut ask).ok_or_else(|| format!("{} does not run", program.display()))?;

        let mut arguments = vec![OsString::from("-ccbin"), program.clone().into()];
        for argument in own {
            arguments.extend(["-Xcompiler".into(), argument.to_owned()]);
        }
        if !environment.is_empty() {
            // It is what a developer shell would have made.
            arguments.push("-use-local-env".into());
        }
        Ok(Self {
            arguments,
            environment,
            program,
            version: Some(version),
            variable: variable.map(str::to_owned),
        })
    }

    /// What is wrong with this compiler, if nvcc's output says that it is.
    pub(crate) fn refused(&self, output: &str) -> Option<String> {
        let complaint = complaint(output)?;
        let version = match &self.version {
            Some(version) => format!(" ({version})"),
            None => String::new(),
        };
        let from = match &self.variable {
            Some(variable) => format!(", which {variable} names"),
            None => String::new(),
        };
        Some(format!(
            "nvcc cannot use its host compiler {}{version}{from}.\n\
             nvcc says: {complaint}\n\
             Set CXX or NVCC_CCBIN to a compiler that this nvcc accepts, such as g++-13, or take a newer CUDA toolkit.",
            self.program.display(),
        ))
    }
}

/// What nvcc has against its host compiler, of its output.
fn complaint(output: &str) -> Option<&str> {
    output.lines().find_map(|line| {
        // Of the header that looks at the compiler's version, printed by that compiler.
        let of_header = line
            .split_once("#error")
            .map(|(_, text)| text.trim_start_matches([' ', ':', '-', '!']))
            .filter(|text| text.to_lowercase().starts_with("unsupported"));
        // Of nvcc, which is `nvcc fatal   : ...` or `nvcc warning : ...`.
        let of_nvcc = line
            .strip_prefix("nvcc ")
            .and_then(|rest| rest.split_once(" : "))
            .map(|(_, text)| text)
            .filter(|text| {
                text.to_lowercase().contains("host compiler")
                    || text.contains("Cannot find compiler")
            });
        let text = of_header.or(of_nvcc)?;
        Some(text.split(" The nvcc flag").next().unwrap_or(text).trim())
    })
}

/// Where a program lies that is named without a folder.
fn locate(program: &Path, first: &Path) -> Option<PathBuf> {
    if program.components().count() > 1 {
        return Some(program.to_owned());
    }
    let mut name = program.as_os_str().to_owned();
    if cfg!(windows) && program.extension().is_none() {
        name.push(env::consts::EXE_SUFFIX);
    }
    let path = env::var_os("PATH").unwrap_or_default();
    [first.to_owned()]
        .into_iter()
        .chain(env::split_paths(&path))
        .filter(|folder| !folder.as_os_str().is_empty())
        .map(|folder| folder.join(&name))
        .find(|file| file.is_file())
}

/// What a compiler says of itself, if it runs. cl.exe says it on stderr.
fn first_line(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    let line = text.lines().next().unwrap_or_default().trim();
    output.status.success().then(|| line.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINUX: &str = "x86_64-unknown-linux-gnu";
    const ARM: &str = "aarch64-unknown-linux-gnu";
    const MSVC: &str = "x86_64-pc-windows-msvc";

    fn found(host: &str, target: &str, variables: &[(&str, &str)], gcc: bool) -> Finder {
        let variable = |name: &str| {
            let (_, value) = variables.iter().find(|(set, _)| *set == name)?;
            Some((*value).into())
        };
        finder(Triples { host, target }, variable, || gcc)
    }

    #[test]
    fn what_nvcc_is_told_by_its_own_variables_wins() {
        let cxx = ("CXX", "clang++");
        let nvcc = |name, program: &str| Finder::Nvcc(Some((name, program.to_owned())));
        for (name, value, program) in [
            ("NVCC_CCBIN", "g++-13", "g++-13"),
            ("NVCC_PREPEND_FLAGS", "-O1 -ccbin g++-12", "g++-12"),
            (
                "NVCC_APPEND_FLAGS",
                "--compiler-bindir=/opt/gcc/bin -O1",
                "/opt/gcc/bin",
            ),
        ] {
            for host in [LINUX, MSVC] {
                let found = found(host, host, &[cxx, (name, value)], true);
                assert_eq!(found, nvcc(name, program), "{name}={value}");
            }
        }
        let others = [
            cxx,
            ("NVCC_CCBIN", ""),
            ("NVCC_APPEND_FLAGS", "-O1 -allow-unsupported-compiler"),
        ];
        assert_eq!(
            found(LINUX, LINUX, &others, true),
            Finder::Cc(Some("CXX".into()))
        );
    }

    #[test]
    fn the_closest_variable_of_cc_is_named() {
        let all = [
            ("CXX", "a"),
            ("HOST_CXX", "b"),
            ("TARGET_CXX", "c"),
            ("CXX_aarch64_unknown_linux_gnu", "d"),
            ("CXX_aarch64-unknown-linux-gnu", "e"),
        ];
        for (target, count, name) in [
            (ARM, 5, "CXX_aarch64-unknown-linux-gnu"),
            (ARM, 4, "CXX_aarch64_unknown_linux_gnu"),
            (ARM, 3, "TARGET_CXX"),
            (ARM, 2, "CXX"),
            (LINUX, 5, "HOST_CXX"),
            (LINUX, 1, "CXX"),
        ] {
            let found = found(LINUX, target, &all[..count], true);
            assert_eq!(found, Finder::Cc(Some(name.into())), "{target}, {count}");
        }
    }

    #[test]
    fn without_variables_nvcc_takes_the_gcc_that_it_finds_for_its_own_machine() {
        assert_eq!(found(LINUX, LINUX, &[], true), Finder::Nvcc(None));
        assert_eq!(found(LINUX, LINUX, &[], false), Finder::Cc(None));
        assert_eq!(found(LINUX, ARM, &[], true), Finder::Cc(None));
        assert_eq!(found(MSVC, MSVC, &[], true), Finder::Cc(None));
    }

    #[test]
    fn complaints_are_read_of_all_who_make_them() {
        let gnu = "unsupported GNU version! gcc versions later than 15 are not supported!";
        let flag = "The nvcc flag '-allow-unsupported-compiler' can be used to override this version check; however, ...";
        let studio = "unsupported Microsoft Visual Studio version! Only the versions between 2019 and 2022 (inclusive) are supported!";
        let version = "The version ('4.8') of the host compiler ('gcc') is not supported";
        let standard = "The -std=c++17 flag is not supported with the configured host compiler. Flag will be ignored.";
        for (output, complaint) in [
            (
                format!(
                    "In file included from x.h:82:\nhost_config.h:137:2: error: #error -- {gnu} {flag}\n  137 | ..."
                ),
                gnu,
            ),
            (
                format!("host_config.h(153): fatal error C1189: #error:  -- {studio} {flag}"),
                studio,
            ),
            (
                "host_config.h:60:2: error: #error --- !!! UNSUPPORTED COMPILER !!! ---".into(),
                "UNSUPPORTED COMPILER !!! ---",
            ),
            (format!("nvcc fatal   : {version}"), version),
            (format!("nvcc warning : {standard}"), standard),
            (
                "nvcc fatal   : Cannot find compiler 'cl.exe' in PATH".into(),
                "Cannot find compiler 'cl.exe' in PATH",
            ),
        ] {
            assert_eq!(super::complaint(&output), Some(complaint), "{output}");
        }
        for output in [
            "kernels/sm80/prefill.cu(12): error: identifier \"x\" is undefined",
            "kernels/common/limits.h:3:2: error: #error -- the head is too large",
            "nvcc fatal   : Unsupported gpu architecture 'compute_200'",
        ] {
            assert_eq!(super::complaint(output), None, "{output}");
        }
    }
}
