//! Damaged PTX and wild kernels give errors, never a panic or a hang.

mod common;

use common::{Rng, ptx};
use ptx_emulator::{LaunchConfig, Memory, Module, Params};

/// Parses, and launches every kernel with pointers that may or may not be right.
fn run(text: &str) -> (usize, usize) {
    let Ok(module) = Module::parse(text) else {
        return (0, 0);
    };
    let (mut ran, mut faults) = (0, 0);
    for k in module.kernels() {
        let memory = Memory::new();
        let buffer = memory.alloc_zeroed(1 << 14).expect("memory");
        let mut params = Params::new();
        for p in &k.params {
            params = match p.size {
                8 => params.arg(buffer),
                4 => params.arg(64u32),
                n => params.arg_bytes(&vec![1; n as usize], p.align as usize),
            };
        }
        let config = LaunchConfig::new(2, 64)
            .shared_bytes(8192)
            .max_warp_instructions(20_000)
            .threads(1);
        match module.launch(&memory, &k.name, &config, params.as_bytes()) {
            Ok(_) => ran += 1,
            Err(f) => {
                // The message can always be built.
                assert!(!f.to_string().is_empty());
                faults += 1;
            }
        }
    }
    (ran, faults)
}

#[test]
fn damaged_text() {
    let mut rng = Rng(77);
    let (mut ran, mut faults) = (0, 0);
    for name in ["basic", "gemm", "mbarrier", "planted"] {
        let text = ptx(name);
        let words: Vec<&str> = text
            .split_inclusive([' ', '\n', '\t', ',', '.', ';'])
            .collect();
        for _ in 0..150 {
            let mut w = words.clone();
            for _ in 0..1 + rng.next() % 4 {
                let (i, j) = (rng.next() as usize % w.len(), rng.next() as usize % w.len());
                match rng.next() % 4 {
                    0 => w[i] = "",
                    1 => w[i] = w[j],
                    2 => w.swap(i, j),
                    _ => {
                        w[i] = [
                            "0",
                            "%r1",
                            "%rd1",
                            "[%rd2+",
                            "}",
                            "{",
                            "v8.",
                            "4294967295",
                            "-1",
                        ][rng.next() as usize % 9]
                    }
                }
            }
            let (r, f) = run(&w.concat());
            ran += r;
            faults += f;
        }
    }
    println!("{ran} launches ran, {faults} faulted");
    assert!(ran > 0 && faults > 0);
}

#[test]
fn pathological_text() {
    for text in [
        String::new(),
        "\"".into(),
        "/*".into(),
        ".".into(),
        "{".repeat(100_000),
        format!(".visible .entry k() {{ {} }}", "{".repeat(100_000)),
        format!(
            ".visible .entry k() {{ add.u32 {}%r; }}",
            "%r|".repeat(100_000)
        ),
        format!(".visible .entry k() {{ add.u32 {}; }}", "[".repeat(100_000)),
        ".global .b8 x[99999999999999999999];".into(),
        ".global .align 3 .b8 x[4];".into(),
        ".visible .entry k() { .reg .b32 %r<1000000>; .reg .b32 %s<1000000>; ret; }".into(),
        ".visible .entry k() { .local .b8 x[1000000000]; ret; }".into(),
        ".visible .entry k() { .shared .b8 x[1000000000]; ret; }".into(),
        ".visible .entry k() { L: bra L; }".into(),
        ".visible .entry k() { bra M; }".into(),
        ".visible .entry k() { .reg .pred p; @p exit; }".into(),
        ".visible .entry k() { @%p0 bra L; L: }".into(),
        ".func f() { call g, (); } .func g() { call f, (); } .visible .entry k() { call f, (); }"
            .into(),
        ".visible .entry k(.param .align 1048576 .b8 p[5], .param .u64 q) { ret; }".into(),
    ] {
        run(&text);
    }
}

#[test]
fn modules_and_memory_are_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Module>();
    shared::<Memory>();
    let module = Module::parse(&ptx("basic")).expect("it parses");
    let memory = Memory::new();
    std::thread::scope(|s| {
        for _ in 0..4 {
            s.spawn(|| {
                let x = memory.upload(&[2.0f32; 256]).expect("memory");
                let p = Params::new().arg(x).arg(x).arg(3.0f32).arg(256i32);
                module
                    .launch(&memory, "saxpy", &LaunchConfig::new(2, 128), p.as_bytes())
                    .expect("it runs");
                assert_eq!(memory.download::<f32>(x, 256).expect("memory"), [8.0; 256]);
            });
        }
    });
}

/// A kernel that was compiled for clusters is not run as if it had none.
#[test]
fn clusters_that_a_kernel_requires_are_not_left_out() {
    let launch = |x: u32| {
        let text = format!(
            ".version 8.0\n.target sm_90\n.address_size 64\n\
             .visible .entry e() .reqnctapercluster {x}, 1, 1 {{ ret; }}"
        );
        let module = Module::parse(&text).unwrap();
        let required = module.kernel("e").unwrap().required_cluster;
        assert_eq!(required, Some((x, 1, 1)));
        module.launch(&Memory::new(), "e", &LaunchConfig::new(4, 32), &[])
    };
    launch(1).unwrap();
    assert_eq!(
        launch(2).unwrap_err().to_string(),
        "kernel `e`: not supported by the emulator: clusters of (2, 1, 1) blocks, which the kernel requires"
    );
}
