//! Broken PTX and broken launches end in errors, never in a panic.

mod support;

use ptx_emulator::{FaultKind, LaunchConfig, Memory, Module, Params};

struct Rng(u64);

impl Rng {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % n.max(1)
    }
}

/// Runs every kernel of a text that may be anything.
fn run(ptx: &str) {
    let Ok(module) = Module::parse(ptx) else {
        return;
    };
    let kernels: Vec<String> = module.kernels().map(str::to_owned).collect();
    for kernel in kernels {
        let mem = Memory::new();
        let p = mem.alloc_zeroed(4096).unwrap();
        let size = module.param_size(&kernel).unwrap_or(0);
        if size > 4096 {
            continue;
        }
        let mut params = Params::new().arg(p).arg(p).arg(p).arg(64u32).arg(32u32);
        while params.bytes().len() < size {
            params = params.arg(1u32);
        }
        let config = LaunchConfig::new(2, 64).max_warp_instructions(300);
        let _ = module.launch(&mem, &kernel, &config, &params.bytes()[..size]);
    }
}

#[test]
fn mutated_modules() {
    let words = [
        "%r1",
        "%rd1",
        "%p1",
        "%f1",
        "0",
        "-1",
        "99999999999",
        "0f7FC00000",
        ".u32",
        ".b64",
        ";",
        "{",
        "}",
        "[",
        "]",
        ",",
        "|",
        "!",
        "@",
        "_",
        "ld",
        ".shared",
        ".v4",
        "bra",
        "$L__BB0_1",
        "mov",
        "<",
        "ret",
        "call",
        "(",
        ")",
        "65535",
        "0x80000000",
        ".reg",
        ".param",
        "+",
        ":",
    ];
    let mut rng = Rng(0x1234_5678_9abc_def1);
    for name in ["basic", "mbarrier", "gemm", "bugs"] {
        let text = support::compile(name);
        let lines: Vec<&str> = text.lines().collect();
        for _ in 0..150 {
            let mut new: Vec<String> = lines.iter().map(|s| (*s).to_owned()).collect();
            for _ in 0..1 + rng.below(4) {
                let i = rng.below(new.len());
                match rng.below(5) {
                    0 => {
                        new.remove(i);
                    }
                    1 => {
                        let j = rng.below(new.len());
                        new.swap(i, j);
                    }
                    2 => {
                        let j = rng.below(new.len());
                        new[i] = new[j].clone();
                    }
                    _ => {
                        let mut parts: Vec<&str> =
                            new[i].split_inclusive([' ', ',', '\t', '.']).collect();
                        let j = rng.below(parts.len());
                        if let Some(p) = parts.get_mut(j) {
                            *p = words[rng.below(words.len())];
                        }
                        new[i] = parts.concat();
                    }
                }
            }
            run(&new.join("\n"));
        }
    }
}

#[test]
fn truncated_modules() {
    let text = support::compile("basic");
    let mut rng = Rng(77);
    for _ in 0..200 {
        let mut at = rng.below(text.len());
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        run(&text[..at]);
    }
}

#[test]
fn bad_launches() {
    let ptx = "
.version 8.0
.target sm_80
.address_size 64
.visible .entry k(.param .u64 p, .param .u32 n) .reqntid 64, 1, 1 { ret; }";
    let m = Module::parse(ptx).unwrap();
    let mem = Memory::new();
    let params = Params::new().arg(0u64).arg(0u32);
    let launch = |kernel: &str, c: &LaunchConfig, bytes: &[u8]| {
        m.launch(&mem, kernel, c, bytes).map_err(|f| f.kind)
    };
    let good = LaunchConfig::new(1, 64);
    assert!(launch("k", &good, params.bytes()).is_ok());
    assert!(matches!(
        launch("other", &good, params.bytes()),
        Err(FaultKind::UnknownKernel(_))
    ));
    for bad in [
        LaunchConfig::new(0, 64),
        LaunchConfig::new(1, 0),
        LaunchConfig::new(1, 32),
        LaunchConfig::new(1, 2048),
        LaunchConfig::new_3d((1, 70000, 1), (64, 1, 1)),
        LaunchConfig::new_3d((u32::MAX, u32::MAX, u32::MAX), (64, 1, 1)),
        LaunchConfig::new_3d((1, 1, 1), (u32::MAX, u32::MAX, u32::MAX)),
        LaunchConfig::new(1, 64).shared_bytes(u32::MAX),
    ] {
        assert!(matches!(
            launch("k", &bad, params.bytes()),
            Err(FaultKind::InvalidLaunch(_))
        ));
    }
    assert!(matches!(
        launch("k", &good, &params.bytes()[..8]),
        Err(FaultKind::InvalidLaunch(_))
    ));
}
