//! Bugs in the synchronisation of the kernel, planted into its PTX one at a time: the emulator finds and names each of them under
//! every seed, and is silent about the kernel itself.

use std::sync::Arc;

use flash_alibi::kernels::named;
use flash_alibi_testing::emulator::Emulator;
use flash_alibi_testing::{Case, UNTOUCHED};
use half::f16;
use ptx_emulator::Module;

use super::plan;

const FILE: &str = "sm90/prefill";
const KERNEL: &str = "wgmma_prefill_f16_d64";
const SEEDS: u64 = 3;

/// The lines of the kernel, and those before and after.
struct Ptx {
    before: String,
    kernel: Vec<&'static str>,
    after: String,
}

impl Ptx {
    fn new() -> Self {
        let lines: Vec<_> = named(FILE).unwrap().ptx.lines().collect();
        let entry = format!(".visible .entry {KERNEL}(");
        let start = lines.iter().position(|line| **line == entry).unwrap();
        // What is written in assembly has braces too.
        let others = (lines[start + 1..].iter()).take_while(|line| !line.starts_with(".visible"));
        let len = 1 + others
            .collect::<Vec<_>>()
            .iter()
            .rposition(|line| **line == "}")
            .unwrap();
        let (before, rest) = lines.split_at(start);
        let (kernel, after) = rest.split_at(len);
        Self {
            before: before.join("\n"),
            kernel: kernel.to_vec(),
            after: after.join("\n"),
        }
    }

    /// The numbers of the lines that have an instruction.
    fn sites(&self, instruction: &str) -> Vec<usize> {
        let has = |line: &&str| line.trim_start().starts_with(instruction);
        let sites = (0..self.kernel.len()).filter(|&n| has(&self.kernel[n]));
        let sites: Vec<_> = sites.collect();
        assert!(!sites.is_empty(), "the kernel has no {instruction}");
        sites
    }

    /// The last operand of a line, and what is before it.
    fn last_operand(&self, site: usize) -> (&str, &str) {
        let line = self.kernel[site].trim_end_matches(';');
        line.rsplit_once(' ').unwrap()
    }

    /// What the emulator says of the kernel with other lines in place of some.
    fn run(&self, edits: &[(usize, String)], seed: u64) -> Result<(), String> {
        let mut lines: Vec<&str> = self.kernel.clone();
        for (site, line) in edits {
            lines[*site] = line;
        }
        let text = format!("{}\n{}\n{}", self.before, lines.join("\n"), self.after);
        let module = Arc::new(Module::parse(&text).unwrap());
        // Two blocks, and a stage for each of many tiles on both sides of the diagonal.
        let case = Case {
            mask: flash_alibi::Mask::Bidirectional,
            ..Case::dense(1, 200, 1100, (1, 1), 64)
        };
        let laid_out = case.lay_out::<f16>();
        let out = laid_out.out.like(f16::from_f32(UNTOUCHED));
        let emulator = Emulator::new(seed).with_module(FILE, module);
        let emulated = laid_out.problem(&out, None).emulate_by(&plan, emulator);
        let emulated = emulated.map_err(|failure| failure.0)?;
        assert_eq!(emulated.reports[0].kernel, KERNEL);
        Ok(())
    }

    /// Every seed finds a bug, and what is said of it has one of these texts.
    #[track_caller]
    fn found(&self, bug: &str, edits: &[(usize, String)], texts: &[&str]) {
        for seed in 0..SEEDS {
            let said = match self.run(edits, seed) {
                Ok(()) => panic!("{bug}, seed {seed}: not found"),
                Err(said) => said,
            };
            println!("{bug}, seed {seed}: {said}\n");
            let named = texts.iter().any(|text| said.contains(text));
            assert!(named, "{bug}, seed {seed}: {said}");
        }
    }
}

#[test]
fn without_a_bug_nothing_is_found() {
    let ptx = Ptx::new();
    for seed in 0..SEEDS {
        ptx.run(&[], seed).unwrap();
    }
}

#[test]
fn a_fence_is_missing() {
    let ptx = Ptx::new();
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
    for site in ptx.sites("fence.mbarrier_init") {
        let bug = format!("no fence of mbarriers in line {site}");
        ptx.found(&bug, &[(site, String::new())], &["fence"]);
    }
}

#[test]
fn a_stage_is_released_before_its_products_are_done() {
    let ptx = Ptx::new();
    for under_way in [0, 1] {
        let wait = format!("wgmma.wait_group.sync.aligned {under_way};");
        let mut edits = Vec::new();
        for site in ptx.sites(&wait) {
            // The wait moves behind the release that follows it, which is one thread's.
            let until_the_next = ptx.kernel[site + 1..].iter();
            let until_the_next: Vec<_> = until_the_next
                .take_while(|line| !line.contains("wgmma.wait_group"))
                .collect();
            let release = "mbarrier.arrive.shared::cta.b64 _";
            let Some(release) = (until_the_next.iter()).position(|line| line.contains(release))
            else {
                continue;
            };
            let label = (until_the_next[release..].iter())
                .position(|line| line.starts_with("$L"))
                .unwrap();
            let label = site + 1 + release + label;
            edits.push((site, String::new()));
            edits.push((label, format!("{}\n{wait}", ptx.kernel[label])));
        }
        assert!(!edits.is_empty());
        let bug = format!("released before wait {under_way}");
        ptx.found(&bug, &edits, &["race"]);
    }
}

#[test]
fn a_copy_is_expected_to_bring_other_bytes() {
    let ptx = Ptx::new();
    for site in ptx.sites("mbarrier.arrive.expect_tx") {
        let (line, bytes) = ptx.last_operand(site);
        for more in [16, -16] {
            let planted =
                format!("{{\n.reg .b32 other;\nadd.s32 other, {bytes}, {more};\n{line} other;\n}}");
            let bug = format!("{more} bytes more in line {site}");
            ptx.found(&bug, &[(site, planted)], &["bytes"]);
        }
    }
}

#[test]
fn a_wait_is_for_the_other_phase() {
    let ptx = Ptx::new();
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
        ptx.found(&bug, &planted, &["race", "parity", "uninitialised"]);
    }
}
