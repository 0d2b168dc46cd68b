//! Whether every instruction of the README's table "What it runs" has a case here, and every instruction that cases run is
//! in the table.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use ptx_emulator::Module;

/// For each row of the table, what a case must run. The first word is an opcode, of which others may follow as modifiers of
/// their own (`cp.async.bulk`); each further word is a modifier. `a|b` stands for two patterns, with `a` and with `b`.
/// Modifiers are in any order, and others may be between them.
const ROWS: &[(&str, &[&str])] = &[
    (
        "integer, extended-precision",
        &[
            "add|sub u16|s16|u32|s32|u64|s64",
            "add|sub sat s32",
            "add|sub|addc|subc cc u32|u64",
            "addc|subc u32|s32|u64",
            "mul lo|hi u16|s16|u32|s32|u64|s64",
            "mul|mad wide u16|s16|u32|s32",
            "mad lo u16|s16|u32|s32|u64|s64",
            "mad hi u32|s32|u64|s64",
            "mad hi sat s32",
            "mad|madc lo|hi cc u32|s32",
            "mul24|mad24 lo|hi u32|s32",
            "mad24 hi sat s32",
            "sad u16|s16|u32|s32|u64|s64",
            "div|rem u16|s16|u32|s32|u64|s64",
            "abs|neg s16|s32|s64",
            "min|max u16|s16|u32|s32|u64|s64",
            "popc|clz b32|b64",
            "bfind u32|s32|u64|s64",
            "bfind shiftamt u32|s32",
            "fns b32",
            "brev b32|b64",
            "bfe u32|s32|u64|s64",
            "bfi b32|b64",
            "szext|bmsk clamp|wrap",
            "szext u32|s32",
            "dp4a u32|s32",
            "dp2a lo|hi u32|s32",
        ],
    ),
    (
        "floating point, half precision",
        &[
            "add|sub|mul f32|f64|f16|f16x2|bf16|bf16x2",
            "add|sub|mul|fma rn|rz|rm|rp f32",
            "add|sub|mul|fma rn|rz|rm|rp f64",
            "add|sub|mul|fma ftz|sat f32",
            "add|sub|mul|fma ftz|sat f16",
            "fma f16|f16x2|bf16|bf16x2",
            "fma relu f16|bf16",
            "mad rn f32",
            "div|rcp|sqrt rn|rz|rm|rp f32",
            "div|rcp|sqrt rn|rz|rm|rp f64",
            "div approx|full f32",
            "rcp|rsqrt|sqrt|sin|cos|lg2|ex2|tanh approx f32",
            "rcp|rsqrt approx ftz f64",
            "rsqrt approx f64",
            "ex2|tanh approx f16|f16x2|bf16|bf16x2",
            "abs|neg f32|f64|f16|f16x2|bf16|bf16x2",
            "abs|neg ftz f32",
            "min|max f32|f64|f16|f16x2|bf16|bf16x2",
            "min|max NaN|ftz f32",
            "min|max xorsign abs f32",
            "min|max NaN f16|bf16",
            "copysign f32|f64",
            "testp finite|infinite|number|notanumber|normal|subnormal f32",
            "testp f64",
        ],
    ),
    (
        "comparison and selection, logic and shift",
        &[
            "setp eq|ne|lt|le|gt|ge s32",
            "setp lo|ls|hi|hs u32",
            "setp equ|neu|ltu|leu|gtu|geu|num|nan f32",
            "setp and|or|xor",
            "setp u16|s16|u32|s32|u64|s64|b16|b32|b64|f32|f64|f16|f16x2|bf16|bf16x2",
            "set u32 s32|f32",
            "set f32 s32|f32",
            "selp b16|b32|b64|f32|f64",
            "slct s32|f32",
            "slct ftz f32",
            "and|or|xor|not b16|b32|b64|pred",
            "cnot b16|b32|b64",
            "lop3 b32",
            "shl b16|b32|b64",
            "shr b16|u16|s16|u32|s32|u64|s64",
            "shf l|r clamp|wrap b32",
        ],
    ),
    (
        "data movement",
        &[
            "mov b16|b32|b64|pred|u32|u64|f32|f64",
            "ld global|shared|local|const|param",
            "st global|shared|local",
            "ld|st v2|v4",
            "ld|st volatile global",
            "ld|st relaxed cta|gpu|sys",
            "ld acquire",
            "st release",
            "ld|st weak global",
            "ld ca|cg|cs|cv|lu",
            "st wb|cg|cs|wt",
            "ld nc global",
            "ldu global",
            "cvt rn|rz|rm|rp f32",
            "cvt rni|rzi|rmi|rpi f32",
            "cvt sat|ftz f32",
            "cvt u8|s8|u16|s16|u32|s32|u64|s64 f32",
            "cvt rn f16|bf16|f16x2|bf16x2 f32",
            "cvt rna tf32 f32",
            "cvta global|shared|local|const|param",
            "cvta to global|shared|local",
            "isspacep global|shared|local|const|param",
            "prmt b32",
            "prmt f4e|b4e|rc8|ecl|ecr|rc16",
            "shfl sync up|down|bfly|idx",
            "prefetch global L1|L2",
            "prefetch tensormap",
            "prefetchu L1",
            "applypriority global",
            "discard global L2",
            "createpolicy fractional b64",
            "mapa u64",
            "mapa|getctarank shared::cluster u32",
            "getctarank u64",
        ],
    ),
    (
        "asynchronous copies",
        &[
            "cp.async ca|cg shared global",
            "cp.async.commit_group",
            "cp.async.wait_group",
            "cp.async.wait_all",
            "cp.async.mbarrier.arrive noinc",
            "cp.async.mbarrier.arrive shared",
            "cp.async.bulk shared::cluster global mbarrier::complete_tx::bytes",
            "cp.async.bulk shared::cta global mbarrier::complete_tx::bytes",
            "cp.async.bulk global shared::cta bulk_group",
            "cp.async.bulk multicast::cluster",
            "cp.async.bulk L2::cache_hint",
            "cp.async.bulk.prefetch L2 global",
            "cp.async.bulk.tensor 1d|2d|3d|4d|5d shared::cluster global mbarrier::complete_tx::bytes",
            "cp.async.bulk.tensor tile shared::cluster",
            "cp.async.bulk.tensor 1d|2d|3d|4d|5d global shared::cta bulk_group",
            "cp.async.bulk.tensor multicast::cluster",
            "cp.async.bulk.tensor L2::cache_hint",
            "cp.async.bulk.prefetch.tensor L2 global",
            "cp.async.bulk.commit_group",
            "cp.async.bulk.wait_group",
            "cp.async.bulk.wait_group read",
        ],
    ),
    (
        "control flow",
        &[
            "bra", "bra uni", "brx idx", "call", "call uni", "ret", "ret uni", "exit",
        ],
    ),
    (
        "parallel synchronization",
        &[
            "bar sync|arrive",
            "bar red popc u32",
            "bar red and|or pred",
            "barrier sync|arrive",
            "barrier sync aligned",
            "barrier.cluster arrive|wait",
            "barrier.cluster arrive release|relaxed",
            "barrier.cluster wait acquire",
            "barrier.cluster arrive|wait aligned",
            "bar warp sync",
            "membar gl|cta|sys",
            "fence sc|acq_rel cta|gpu|sys|cluster",
            "fence proxy alias|async",
            "fence proxy async global|shared::cta",
            "fence mbarrier_init release cluster",
            "atom|red and|or|xor b32",
            "atom exch|cas b32|b64",
            "atom|red add u32|s32|u64|f32|f64|f16x2|bf16x2",
            "atom|red inc|dec u32",
            "atom|red min|max u32|s32|u64|s64",
            "atom|red global|shared",
            "atom relaxed|acquire|release|acq_rel",
            "vote sync all|any|uni|ballot",
            "match sync any|all b32|b64",
            "redux sync add|min|max u32|s32",
            "redux sync and|or|xor b32",
            "activemask b32",
            "elect sync",
            "griddepcontrol wait|launch_dependents",
            "mbarrier init|inval|expect_tx|complete_tx",
            "mbarrier arrive|arrive_drop b64",
            "mbarrier arrive|arrive_drop noComplete",
            "mbarrier arrive|arrive_drop expect_tx",
            "mbarrier test_wait|try_wait b64",
            "mbarrier test_wait|try_wait parity",
            "mbarrier arrive release|relaxed",
            "mbarrier test_wait|try_wait acquire|relaxed",
            "mbarrier pending_count",
        ],
    ),
    (
        "warp-level matrix",
        &[
            "ldmatrix m8n8 x1|x2|x4",
            "ldmatrix m8n8 trans x1|x2|x4",
            "stmatrix m8n8 x1|x2|x4",
            "stmatrix m8n8 trans",
            "movmatrix trans",
            "mma.sync m16n8k8|m16n8k16 f16 f32",
            "mma.sync m16n8k8|m16n8k16 bf16 f32",
            "mma.sync m16n8k4|m16n8k8 tf32 f32",
            "mma.sync m16n8k16|m16n8k32 s8|u8 s32",
            "mma.sync satfinite s32",
        ],
    ),
    (
        "warpgroup-level matrix",
        &[
            "wgmma.mma_async m64n8k16|m64n16k16|m64n24k16|m64n32k16|m64n40k16|m64n48k16|m64n56k16|m64n64k16|\
             m64n72k16|m64n80k16|m64n88k16|m64n96k16|m64n104k16|m64n112k16|m64n120k16|m64n128k16|\
             m64n136k16|m64n144k16|m64n152k16|m64n160k16|m64n168k16|m64n176k16|m64n184k16|m64n192k16|\
             m64n200k16|m64n208k16|m64n216k16|m64n224k16|m64n232k16|m64n240k16|m64n248k16|m64n256k16 f32 f16|bf16",
            "wgmma.mma_async f16",
            "wgmma fence|commit_group|wait_group",
        ],
    ),
    (
        "miscellaneous",
        &[
            "setmaxnreg inc|dec",
            "nanosleep u32",
            "pmevent",
            "pmevent mask",
            "trap",
            "brkpt",
        ],
    ),
];

/// Instructions that cases have run: their opcodes and modifiers.
static RUN: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Remembers the instructions of a module whose kernels can all be launched.
pub fn record(text: &str, module: &Module) {
    if module.kernels().any(|k| module.check(&k.name).is_err()) {
        return;
    }
    let mut run = RUN.lock().unwrap_or_else(PoisonError::into_inner);
    let lines = text.lines().map(|l| l.split("//").next().unwrap_or(l));
    for piece in lines.flat_map(|l| l.split([';', '{', '}'])) {
        let words = piece.split_whitespace();
        let mut words = words.skip_while(|w| w.starts_with('@') || w.ends_with(':'));
        let word = words.next().unwrap_or("");
        let part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let is_opcode = word.starts_with(|c: char| c.is_ascii_lowercase())
            && word
                .chars()
                .all(|c| part(c) || "._:".contains(c) || c.is_ascii_uppercase());
        if is_opcode && !run.contains(word) {
            run.insert(word.to_owned());
        }
    }
}

/// The patterns that one with alternatives stands for: opcodes, then modifiers.
fn expand(pattern: &str) -> Vec<Vec<&str>> {
    let mut all = vec![Vec::new()];
    for word in pattern.split_whitespace() {
        let alternatives = word.split('|').map(str::trim);
        all = alternatives
            .flat_map(|a| {
                all.iter()
                    .map(move |before| before.iter().copied().chain([a]).collect())
            })
            .collect();
    }
    all
}

/// Whether an instruction is what a pattern without alternatives asks for.
fn matches(instruction: &str, pattern: &[&str]) -> bool {
    let given: Vec<&str> = instruction.split('.').collect();
    let opcode: Vec<&str> = pattern[0].split('.').collect();
    let Some(rest) = given.strip_prefix(&opcode[..]) else {
        return false;
    };
    // As often as the pattern names it.
    pattern[1..].iter().all(|m| {
        let times = |words: &[&str]| words.iter().filter(|w| w == &m).count();
        times(rest) >= times(&pattern[1..])
    })
}

/// The rows of the table of the README, but those of which nothing is executed.
fn readme() -> Vec<(String, String)> {
    let text = include_str!("../../README.md");
    let (_, rest) = text.split_once("## What it runs").expect("a section");
    let (section, _) = rest.split_once("\n## ").expect("another section");
    let rows = section.lines().filter_map(|line| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        match cells[..] {
            ["", name, what, ""] if !name.starts_with("--") && name != "section" => {
                Some((name.to_owned(), what.to_owned()))
            }
            _ => None,
        }
    });
    rows.filter(|(_, what)| what != "none").collect()
}

/// What is missing in the table, or in the cases.
pub fn missing() -> Vec<String> {
    let run = RUN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut missing = Vec::new();
    let patterns: Vec<_> = ROWS
        .iter()
        .flat_map(|(row, p)| p.iter().map(move |p| (row, p)))
        .collect();
    for (row, pattern) in &patterns {
        for one in expand(pattern) {
            if !run.iter().any(|i| matches(i, &one)) {
                missing.push(format!("{row}: no case runs `{}`", one.join(" ")));
            }
        }
    }
    for instruction in run.iter() {
        let named = |p: &&str| expand(p).iter().any(|one| matches(instruction, &one[..1]));
        if !patterns.iter().any(|(_, p)| named(p)) {
            missing.push(format!("no row has `{instruction}`, which a case runs"));
        }
    }
    let readme = readme();
    for (name, what) in &readme {
        let Some((_, patterns)) = ROWS.iter().find(|(row, _)| row == name) else {
            missing.push(format!("no cases are listed for the README's row `{name}`"));
            continue;
        };
        // What follows is what is not executed.
        let executed = what.split("; no ").next().unwrap_or(what);
        let words = patterns.iter().flat_map(|p| p.split([' ', '|', '.']));
        let words: BTreeSet<&str> = words.collect();
        let named: Vec<&str> = executed.split('`').skip(1).step_by(2).collect();
        for one in &named {
            let mut parts = one.split('.').filter(|part| !part.is_empty());
            if !parts.all(|part| words.contains(part)) {
                missing.push(format!("{name}: no case is listed for `{one}`"));
            }
        }
        // A row that names opcodes names all.
        if named.iter().all(|one| one.starts_with('.')) {
            continue;
        }
        for opcode in patterns.iter().flat_map(|p| expand(p)).map(|p| p[0]) {
            let is = |one: &&str| format!("{opcode}.").starts_with(&format!("{one}."));
            if !named.iter().any(is) {
                missing.push(format!("{name}: the README does not name `{opcode}`"));
            }
        }
    }
    for (row, _) in ROWS {
        if !readme.iter().any(|(name, _)| name == row) {
            missing.push(format!("the README has no row `{row}`"));
        }
    }
    missing
}
