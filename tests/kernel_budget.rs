//! What ptxas and the machine code say of the kernels, without running them. `cargo xtask kernels` prints the table.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use flash_alibi::kernels::{self, Embedded};

/// One kernel on one architecture.
#[derive(Debug, Default, Clone, PartialEq)]
struct Usage {
    registers: u32,
    shared_bytes: u32,
    stack_bytes: u32,
    spill_bytes: u32,
    /// Loads and stores of local memory in the machine code.
    local_accesses: u32,
    /// Multiply-adds with a column of a tile as the factor: the bias, unrolled.
    column_multiply_adds: u32,
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

/// Counts accesses to local memory in what cuobjdump prints.
fn read_sass(sass: &str, table: &mut Table) {
    let (mut arch, mut name) = (String::new(), String::new());
    for line in sass.lines() {
        let line = line.trim();
        if let Some(found) = line.strip_prefix("arch = ") {
            arch = found.into();
        } else if let Some(found) = line.strip_prefix("Function : ") {
            name = found.into();
        } else {
            let words: Vec<&str> = line.split_whitespace().collect();
            let is = |word: &&str, what| word.split('.').next() == Some(what);
            let usage = table.entry((name.clone(), arch.clone()));
            if words.iter().any(|word| is(word, "LDL") || is(word, "STL")) {
                usage.or_default().local_accesses += 1;
            } else if let Some(at) = words.iter().position(|word| is(word, "FFMA"))
                && words
                    .get(at + 3)
                    .and_then(|factor| factor.trim_end_matches(',').parse::<f32>().ok())
                    .is_some_and(|column| column.fract() == 0.0 && column.abs() <= 64.0)
            {
                usage.or_default().column_multiply_adds += 1;
            }
        }
    }
}

/// Everything that must not be, in words.
fn violations(table: &Table, logs: &str, budget: &BTreeMap<String, u32>) -> Vec<String> {
    let mut found = Vec::new();
    for ((name, arch), usage) in table {
        let place = format!("{name} on {arch}");
        for (what, n) in [
            ("bytes of stack", usage.stack_bytes),
            ("bytes of spills", usage.spill_bytes),
            ("accesses to local memory", usage.local_accesses),
        ] {
            if n > 0 {
                found.push(format!("{place}: {n} {what}"));
            }
        }
        match budget.get(name) {
            None => found.push(format!("{name}: not in kernels/budget.txt")),
            Some(&most) if usage.registers > most => {
                found.push(format!(
                    "{place}: {} registers, the budget is {most}",
                    usage.registers
                ));
            }
            Some(_) => {}
        }
    }
    let lines = logs
        .lines()
        .filter(|line| line.contains("Potential Performance Loss") || line.contains("(C75"));
    found.extend(lines.map(str::to_owned));
    found
}

/// `name registers` a line; `#` begins a comment.
fn budget() -> BTreeMap<String, u32> {
    let file = Path::new("../kernels/budget.txt");
    let text =
        fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let entry = |line: &str| {
        let (name, registers) = line.split_once(' ')?;
        Some((name.to_owned(), registers.trim().parse().ok()?))
    };
    lines
        .map(|line| entry(line).unwrap_or_else(|| panic!("kernels/budget.txt: {line:?}")))
        .collect()
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
        "\n| kernel | architecture | registers | shared | spills | local |\n|---|---|---|---|---|---|"
    );
    for ((name, arch), u) in &table {
        let Usage {
            registers,
            shared_bytes,
            spill_bytes,
            local_accesses,
            ..
        } = u;
        let _ = writeln!(
            report,
            "| {name} | {arch} | {registers} | {shared_bytes} | {spill_bytes} | {local_accesses} |"
        );
    }
    println!("{report}");
    assert!(
        !table.is_empty() && table.values().all(|usage| usage.registers > 0),
        "{table:?}"
    );
    let found = violations(&table, &logs, &budget());
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// What the emulator counts of the PTX, the machine code keeps: one multiply-add for each score that a lane has of a tile.
#[test]
fn the_bias_costs_one_multiply_add_a_score() {
    let mut table = Table::new();
    read_sass(&sass(kernels::named("sm80/prefill").unwrap()), &mut table);
    for (head_dim, scores) in [(32, 128), (64, 128), (80, 64), (128, 64), (256, 32)] {
        for dtype in ["f16", "bf16"] {
            let name = format!("prefill_{dtype}_d{head_dim}");
            let found: Vec<_> = table.iter().filter(|((of, _), _)| *of == name).collect();
            assert!(!found.is_empty(), "{name} is not in {:?}", table.keys());
            for ((_, arch), usage) in found {
                let n = usage.column_multiply_adds;
                // Four of them have the factor 0, and one may have the factor 1.
                let expected = scores - 8..=scores;
                assert!(
                    expected.contains(&n),
                    "{name} on {arch}: {n} for {scores} scores"
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
        "arch = sm_90a\n\tFunction : attention\n /*0010*/  STL.64 [R1], R2 ;\n\
            /*0020*/  @P0 FFMA R1, R2.reuse, -16, R3 ;\n /*0030*/  FFMA R1, R2, R4, -16 ;",
        &mut table,
    );
    let expected = Usage {
        registers: 168,
        shared_bytes: 1024,
        stack_bytes: 16,
        spill_bytes: 12,
        local_accesses: 1,
        column_multiply_adds: 1,
    };
    assert_eq!(table[&("attention".into(), "sm_90a".into())], expected);
    assert_eq!(
        violations(&table, log, &BTreeMap::from([("attention".into(), 160)])),
        [
            "attention on sm_90a: 16 bytes of stack",
            "attention on sm_90a: 12 bytes of spills",
            "attention on sm_90a: 1 accesses to local memory",
            "attention on sm_90a: 168 registers, the budget is 160",
            "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized",
        ]
    );
    assert_eq!(
        violations(&table, "", &BTreeMap::new())[3],
        "attention: not in kernels/budget.txt"
    );
}
