//! Bugs in the synchronisation of the kernel, planted into its PTX one at a time: the emulator finds and names each of them under
//! every seed, and is silent about the kernel itself.

use std::collections::HashSet;
use std::sync::{Arc, LazyLock};

use flash_alibi::Mask;
use flash_alibi::kernels::named;
use flash_alibi_testing::emulator::Emulator;
use flash_alibi_testing::{Case, Lengths, UNTOUCHED};
use half::f16;
use ptx_emulator::{Module, Report};

use super::plan;

const FILE: &str = "sm90/prefill";
const KERNEL: &str = "wgmma_prefill_f16_d64";
const SEEDS: u64 = 2;

/// The kernel as it is, and which of its lines are executed.
static KERNEL_PTX: LazyLock<Ptx> = LazyLock::new(Ptx::new);

/// The lines of the kernel, those that all kernels of the file need, and which of the kernel's are executed.
struct Ptx {
    common: Vec<&'static str>,
    kernel: Vec<&'static str>,
    executed: HashSet<usize>,
}

impl Ptx {
    fn new() -> Self {
        let lines: Vec<_> = named(FILE).unwrap().ptx.lines().collect();
        let is_entry = |line: &&str| line.starts_with(".visible .entry");
        let first = lines.iter().position(is_entry).unwrap();
        let start = (lines.iter()).position(|line| line.contains(&format!(".entry {KERNEL}(")));
        let start = start.unwrap();
        let others = lines[start + 1..].iter().position(is_entry);
        let upto = others.map_or(lines.len(), |others| start + 1 + others);
        // What is written in assembly has braces too.
        let end = lines[..upto].iter().rposition(|line| *line == "}").unwrap();
        let mut ptx = Self {
            common: lines[..first].to_vec(),
            kernel: lines[start..=end].to_vec(),
            executed: HashSet::new(),
        };
        let report = ptx.run(&[], 0).unwrap();
        let of_kernel = |line: &ptx_emulator::Line| line.ptx_line as usize - 1 - first;
        ptx.executed = report.lines.iter().map(of_kernel).collect();
        ptx
    }

    /// The numbers of the lines that have an instruction. All of them are executed, or to plant a bug there would say nothing.
    fn sites(&self, instruction: &str) -> Vec<usize> {
        let has = |line: &&str| line.trim_start().starts_with(instruction);
        let sites = (0..self.kernel.len()).filter(|&n| has(&self.kernel[n]));
        let sites: Vec<_> = sites.collect();
        assert!(!sites.is_empty(), "the kernel has no {instruction}");
        for site in &sites {
            let executed = self.executed.contains(site);
            assert!(executed, "{instruction} in line {site} is not executed");
        }
        sites
    }

    /// The last operand of a line, and what is before it.
    fn last_operand(&self, site: usize) -> (&str, &str) {
        let line = self.kernel[site].trim_end_matches(';');
        line.rsplit_once(' ').unwrap()
    }

    /// What the emulator says of the kernel with other lines in place of some.
    fn run(&self, edits: &[(usize, String)], seed: u64) -> Result<Report, String> {
        let mut kernel: Vec<&str> = self.kernel.clone();
        for (site, line) in edits {
            kernel[*site] = line;
        }
        let text = [self.common.join("\n"), kernel.join("\n")].join("\n");
        let module = Arc::new(Module::parse(&text).unwrap());
        // More tiles than stages, and on both sides of them rows that are no keys, whose values become 0.
        let lengths = Lengths {
            q: 130,
            k: 600,
            leftpad: 20,
            unused: 40,
        };
        let case = Case {
            mask: Mask::Bidirectional,
            sequences: vec![lengths],
            ..Case::dense(1, lengths.q, lengths.k, (1, 1), 64)
        };
        let laid_out = case.lay_out::<f16>();
        let out = laid_out.out.like(f16::from_f32(UNTOUCHED));
        let emulator = Emulator::new(seed).with_module(FILE, module);
        let emulated = laid_out.problem(&out, None).emulate_by(&plan, emulator);
        let mut reports = emulated.map_err(|failure| failure.0)?.reports;
        let report = reports.remove(0);
        assert_eq!(report.kernel, KERNEL);
        Ok(report)
    }

    /// Every seed finds a bug, and what is said of it has one of these texts.
    #[track_caller]
    fn found(&self, bug: &str, edits: &[(usize, String)], texts: &[&str]) {
        for seed in 0..SEEDS {
            let said = match self.run(edits, seed) {
                Ok(_) => panic!("{bug}, seed {seed}: not found"),
                Err(said) => said,
            };
            let named = texts.iter().any(|text| said.contains(text));
            assert!(named, "{bug}, seed {seed}: {said}");
        }
    }
}

#[test]
fn without_a_bug_nothing_is_found() {
    let ptx = &*KERNEL_PTX;
    for seed in 0..SEEDS {
        ptx.run(&[], seed).unwrap();
    }
}

#[test]
fn a_fence_is_missing() {
    let ptx = &*KERNEL_PTX;
    let waits = ptx.sites("wgmma.wait_group");
    let mut before = 0;
    for site in ptx.sites("wgmma.fence") {
        // One is enough for all products until the next wait.
        let is_first = before == 0 || waits.iter().any(|wait| (before..site).contains(wait));
        before = site;
        if is_first {
            let bug = format!("no fence of wgmma in line {site}");
            ptx.found(&bug, &[(site, String::new())], &["missing wgmma.fence"]);
        }
    }
    for fence in ["fence.mbarrier_init", "fence.proxy.async"] {
        for site in ptx.sites(fence) {
            let bug = format!("no {fence} in line {site}");
            ptx.found(&bug, &[(site, String::new())], &["missing proxy fence"]);
        }
    }
}

#[test]
fn a_stage_is_released_before_its_products_are_done() {
    let ptx = &*KERNEL_PTX;
    let mut releases = Vec::new();
    for wait in ptx.sites("wgmma.wait_group") {
        // What one thread does, up to a label, is the release.
        let after = &ptx.kernel[wait + 1..];
        let label = after.iter().position(|line| line.starts_with("$L"));
        let label = label.unwrap();
        let is_release = |line: &&str| line.starts_with("\tmbarrier.arrive.");
        if after[..label].iter().any(is_release) {
            releases.push((wait, wait + 1 + label));
        }
    }
    // Nothing is copied any more to the stage that is released last.
    releases.pop();
    assert!(releases.len() >= 5, "{releases:?}");
    for (wait, label) in releases {
        let waits_behind = format!("{}\n{}", ptx.kernel[label], ptx.kernel[wait]);
        let edits = [(wait, String::new()), (label, waits_behind)];
        let bug = format!("released before the wait in line {wait}");
        ptx.found(&bug, &edits, &["race on shared address"]);
    }
}

#[test]
fn a_copy_is_expected_to_bring_other_bytes() {
    let ptx = &*KERNEL_PTX;
    for site in ptx.sites("mbarrier.arrive.expect_tx") {
        let (line, bytes) = ptx.last_operand(site);
        for more in [16, -16] {
            let planted =
                format!("{{\n.reg .b32 other;\nadd.s32 other, {bytes}, {more};\n{line} other;\n}}");
            let bug = format!("{more:+} bytes in line {site}");
            let said = format!(" {more} bytes missing");
            ptx.found(&bug, &[(site, planted)], &[&said]);
        }
    }
}

#[test]
fn a_wait_is_for_the_other_phase() {
    let ptx = &*KERNEL_PTX;
    // Who does not wait meets what is not there yet, not all there or still in use; who waits too long waits for ever.
    let texts = &[
        "uninitialised shared memory",
        "an asynchronous copy to it is pending",
        "race on shared address",
        "waits for a phase of parity",
    ];
    for site in ptx.sites("mbarrier.try_wait.parity") {
        let (line, parity) = ptx.last_operand(site);
        // The label of the loop is the line before.
        let again = ptx.kernel[site - 1];
        assert!(again.ends_with(':'), "{again}");
        let planted = [
            (
                site - 1,
                format!(".reg .b32 other;\nxor.b32 other, {parity}, 1;\n{again}"),
            ),
            (site, format!("{line} other;")),
        ];
        let bug = format!("the other phase in line {site}");
        ptx.found(&bug, &planted, texts);
    }
}
