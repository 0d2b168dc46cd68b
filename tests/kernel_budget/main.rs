//! What ptxas and the machine code say of the kernels, without running them. `cargo xtask kernels` prints the table.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use flash_alibi::kernels::{self, Embedded};
use sass::{Instruction, Loop};

mod sass;

/// In the root of the repository.
const BUDGET: &str = "kernels/budget.txt";

const BUDGET_HEAD: &str = "\
# What each kernel may use on each architecture: registers, bytes of shared memory that the compiler knows of, and where it
# multiplies matrices, instructions of a warp in its steady loop: math, memory, control. tests/kernel_budget compares.
# `UPDATE=1 cargo xtask kernels` writes the file anew: whatever grows needs a reason in the review.
";

/// One kernel on one architecture.
#[derive(Debug, Default, Clone, PartialEq)]
struct Usage {
    registers: u32,
    /// Known to the compiler: a launch may add to it.
    shared_bytes: u32,
    stack_bytes: u32,
    spill_bytes: u32,
    /// Loads and stores of local memory in the machine code.
    local_accesses: u32,
    /// Of kernels with products of matrices.
    steady_loop: Option<Loop>,
    /// In it, multiplications by a column of a tile: the bias, unrolled.
    column_multiplications: u32,
}

/// By kernel and architecture.
type Table = BTreeMap<(String, String), Usage>;

/// The number before `unit` in a line of ptxas.
fn before(line: &str, unit: &str) -> Option<u32> {
    let number = line
        .split(unit)
        .next()
        .filter(|rest| rest.len() < line.len())?;
    number
        .split(|c: char| !c.is_ascii_digit())
        .rfind(|digits| !digits.is_empty())?
        .parse()
        .ok()
}

/// Reads the messages of `ptxas -v`.
fn read_ptxas(log: &str, table: &mut Table) {
    let mut key = None;
    for line in log.lines() {
        if let Some(rest) = line.split("Compiling entry function '").nth(1) {
            let mut parts = rest.split('\'');
            let name = parts.next().unwrap_or_default().to_owned();
            let arch = parts.nth(1).unwrap_or_default().to_owned();
            key = Some((name, arch));
        }
        let Some(key) = &key else { continue };
        let usage = table.entry(key.clone()).or_default();
        usage.registers = before(line, " registers").unwrap_or(usage.registers);
        usage.shared_bytes = before(line, " bytes smem").unwrap_or(usage.shared_bytes);
        usage.stack_bytes = before(line, " bytes stack frame").unwrap_or(usage.stack_bytes);
        let spills = ["spill stores", "spill loads"]
            .map(|what| before(line, &format!(" bytes {what}")).unwrap_or(0));
        usage.spill_bytes += spills[0] + spills[1];
    }
}

/// Reads what cuobjdump prints.
fn read_sass(text: &str, table: &mut Table) {
    for (key, code) in sass::parse(text) {
        let usage = table.entry(key).or_default();
        let local = |instruction: &&Instruction| matches!(instruction.name(), "LDL" | "STL");
        usage.local_accesses = code.iter().filter(local).count() as u32;
        let Some(way) = sass::steady_loop(&code) else {
            continue;
        };
        let by_column = |instruction: &&&Instruction| {
            let factor = instruction
                .operands
                .get(2)
                .and_then(|f| f.parse::<f32>().ok());
            instruction.name() == "FMUL"
                && factor.is_some_and(|f| f.fract() == 0.0 && f.abs() <= 64.0)
        };
        usage.column_multiplications = way.iter().filter(by_column).count() as u32;
        usage.steady_loop = Some(Loop::of(way));
    }
}

/// What the kernels may be, by kernel and architecture: a line of `kernels/budget.txt`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Budget {
    registers: u32,
    shared_bytes: u32,
    steady_loop: Option<Loop>,
}

impl Budget {
    fn of(usage: &Usage) -> Self {
        Self {
            registers: usage.registers,
            shared_bytes: usage.shared_bytes,
            steady_loop: usage.steady_loop,
        }
    }

    /// With their names, and 0 for those of a loop that is not there.
    fn numbers(&self) -> [(&'static str, u32); 5] {
        let Loop {
            math,
            memory,
            control,
        } = self.steady_loop.unwrap_or_default();
        [
            ("registers", self.registers),
            ("bytes of shared memory", self.shared_bytes),
            ("math instructions a tile", math),
            ("memory instructions a tile", memory),
            ("control instructions a tile", control),
        ]
    }
}

/// The lines of `kernels/budget.txt`: a kernel, an architecture, and two or five numbers. `#` begins a comment.
fn read_budget(text: &str) -> BTreeMap<(String, String), Budget> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let entry = |line: &str| {
        let (name, rest) = line.split_once(' ')?;
        let (arch, rest) = rest.split_once(' ')?;
        let numbers: Option<Vec<u32>> = rest.split(' ').map(|n| n.parse().ok()).collect();
        let (registers, shared_bytes, steady_loop) = match numbers?[..] {
            [registers, shared_bytes] => (registers, shared_bytes, None),
            [registers, shared_bytes, math, memory, control] => {
                let steady_loop = Loop {
                    math,
                    memory,
                    control,
                };
                (registers, shared_bytes, Some(steady_loop))
            }
            _ => return None,
        };
        let budget = Budget {
            registers,
            shared_bytes,
            steady_loop,
        };
        Some(((name.to_owned(), arch.to_owned()), budget))
    };
    lines
        .map(|line| entry(line).unwrap_or_else(|| panic!("{BUDGET}: {line:?}")))
        .collect()
}

fn write_budget(table: &Table) -> String {
    let mut text = String::from(BUDGET_HEAD);
    for ((name, arch), usage) in table {
        let budget = Budget::of(usage);
        let count = if budget.steady_loop.is_some() { 5 } else { 2 };
        let _ = write!(text, "{name} {arch}");
        for (_, number) in &budget.numbers()[..count] {
            let _ = write!(text, " {number}");
        }
        text.push('\n');
    }
    text
}

/// Everything that must not be, in words.
fn violations(
    table: &Table,
    logs: &str,
    budgets: &BTreeMap<(String, String), Budget>,
) -> Vec<String> {
    let mut found = Vec::new();
    for (key, usage) in table {
        let place = format!("{} on {}", key.0, key.1);
        for (what, n) in [
            ("bytes of stack", usage.stack_bytes),
            ("bytes of spills", usage.spill_bytes),
            ("accesses to local memory", usage.local_accesses),
        ] {
            if n > 0 {
                found.push(format!("{place}: {n} {what}"));
            }
        }
        match budgets.get(key) {
            None => found.push(format!("{place}: not in {BUDGET}")),
            Some(budget) => {
                for ((what, n), (_, most)) in
                    Budget::of(usage).numbers().iter().zip(budget.numbers())
                {
                    if *n > most {
                        found.push(format!("{place}: {n} {what}, the budget is {most}"));
                    }
                }
            }
        }
    }
    let gone = budgets.keys().filter(|key| !table.contains_key(*key));
    found.extend(gone.map(|(name, arch)| format!("{name} on {arch}: in {BUDGET}, and no kernel")));
    let lines = logs
        .lines()
        .filter(|line| line.contains("Potential Performance Loss") || line.contains("(C75"));
    found.extend(lines.map(str::to_owned));
    found
}

fn sass(kernel: &Embedded) -> String {
    let nvcc = PathBuf::from(env::var_os("NVCC").expect("NVCC is set by `cargo xtask test`"));
    let file = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join(kernel.name.replace('/', "-"))
        .with_extension("fatbin");
    fs::write(&file, kernel.fatbin).unwrap();
    let program = nvcc.with_file_name("cuobjdump");
    let output = Command::new(&program).arg("-sass").arg(&file).output();
    let output = output.unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn no_kernel_spills_or_uses_local_memory() {
    let (mut table, mut logs, mut report) = (Table::new(), String::new(), String::new());
    for kernel in kernels::ALL {
        read_ptxas(kernel.ptxas, &mut table);
        read_sass(&sass(kernel), &mut table);
        logs += kernel.ptxas;
        let _ = writeln!(
            report,
            "{}.cu: {} KiB embedded",
            kernel.name,
            kernel.fatbin.len() / 1024
        );
    }
    let _ = writeln!(
        report,
        "\n| kernel | architecture | registers | shared | spills | local | math + memory + control a tile |\n|---|---|---|---|---|---|---|"
    );
    for ((name, arch), u) in &table {
        let Usage {
            registers,
            shared_bytes,
            spill_bytes,
            local_accesses,
            steady_loop,
            ..
        } = u;
        let of_loop = steady_loop.map_or("-".into(), |l| {
            format!("{} + {} + {}", l.math, l.memory, l.control)
        });
        let _ = writeln!(
            report,
            "| {name} | {arch} | {registers} | {shared_bytes} | {spill_bytes} | {local_accesses} | {of_loop} |"
        );
    }
    println!("{report}");
    assert!(
        !table.is_empty() && table.values().all(|usage| usage.registers > 0),
        "{table:?}"
    );
    let file = Path::new("..").join(BUDGET);
    if env::var_os("UPDATE").is_some() {
        fs::write(&file, write_budget(&table)).unwrap();
    }
    let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{BUDGET}: {error}"));
    let found = violations(&table, &logs, &read_budget(&text));
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// Four for each 8 keys, whatever the number of rows; two by 0 and two by 1 are none.
#[test]
fn the_bias_costs_half_a_multiplication_a_score() {
    let mut table = Table::new();
    read_sass(&sass(kernels::named("sm80/prefill").unwrap()), &mut table);
    for (head_dim, keys) in [(64, 64), (80, 64), (128, 64), (256, 64)] {
        for variant in ["dense", "horizon", "any"] {
            let name = format!("prefill_{variant}_f16_d{head_dim}");
            let found: Vec<_> = table.iter().filter(|((of, _), _)| *of == name).collect();
            assert!(!found.is_empty(), "{name} is not in {:?}", table.keys());
            for ((_, arch), usage) in found {
                let n = usage.column_multiplications;
                let expected = keys / 2 - 4..=keys / 2;
                assert!(
                    expected.contains(&n),
                    "{name} on {arch}: {n} of {keys} keys"
                );
            }
        }
    }
}

#[test]
fn a_kernel_that_spills_is_found() {
    let log = "ptxas info    : Compiling entry function 'attention' for 'sm_90a'\n\
        ptxas info    : Function properties for attention\n    \
        16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads\n\
        ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized\n\
        ptxas info    : Used 168 registers, used 0 barriers, 1024 bytes smem";
    let mut table = Table::new();
    read_ptxas(log, &mut table);
    read_sass(
        "arch = sm_90a\n\tFunction : attention\n /*0000*/ HMMA.16816.F32 R12, R4, R8, R12 ;\n\
            /*0010*/  STL.64 [R1], R2 ;\n /*0020*/  @P0 FMUL R1, R2.reuse, -16 ;\n /*0030*/  FMUL R1, R2, R4 ;\n\
            /*0040*/ @P0 BRA 0x0 ;\n",
        &mut table,
    );
    let key = ("attention".to_owned(), "sm_90a".to_owned());
    let steady_loop = Loop {
        math: 3,
        memory: 1,
        control: 1,
    };
    let expected = Usage {
        registers: 168,
        shared_bytes: 1024,
        stack_bytes: 16,
        spill_bytes: 12,
        local_accesses: 1,
        steady_loop: Some(steady_loop),
        column_multiplications: 1,
    };
    assert_eq!(table[&key], expected);
    let written = write_budget(&table);
    assert_eq!(read_budget(&written)[&key], Budget::of(&expected));
    let less = read_budget("attention sm_90a 160 1024 3 1 0\ngone sm_80 32 0");
    assert_eq!(
        violations(&table, log, &less),
        [
            "attention on sm_90a: 16 bytes of stack",
            "attention on sm_90a: 12 bytes of spills",
            "attention on sm_90a: 1 accesses to local memory",
            "attention on sm_90a: 168 registers, the budget is 160",
            "attention on sm_90a: 1 control instructions a tile, the budget is 0",
            "gone on sm_80: in kernels/budget.txt, and no kernel",
            "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized",
        ]
    );
    assert_eq!(
        violations(&table, "", &BTreeMap::new())[3],
        "attention on sm_90a: not in kernels/budget.txt"
    );
}
