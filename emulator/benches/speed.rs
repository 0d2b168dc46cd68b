//! Emulated lane-instructions per second, with and without checks, the best of five runs: `cargo bench --bench speed`.

#[path = "../tests/common/mod.rs"]
mod common;

use std::time::Instant;

use common::{Rng, module};
use ptx_emulator::tensor_map::{ElementType, TensorMap, Tiled};
use ptx_emulator::{Checks, LaunchConfig, Memory, Module, Params, Swizzle};

fn time(name: &str, m: &Module, memory: &Memory, kernel: &str, config: &LaunchConfig, p: &Params) {
    for (checks, what) in [(Checks::all(), "all checks"), (Checks::none(), "no checks")] {
        let config = config.clone().checks(checks);
        let run = || {
            let start = Instant::now();
            let report = m
                .launch(memory, kernel, &config, p.as_bytes())
                .unwrap_or_else(|f| panic!("{f}"));
            (start.elapsed(), report)
        };
        // What else the machine does can only make a run longer.
        let best = (0..5).map(|_| run()).min_by_key(|(time, _)| *time);
        let (time, report) = best.expect("there are runs");
        let s = time.as_secs_f64();
        let t = report.total();
        // An operation is the instruction of four warps.
        let operations = report
            .lines
            .iter()
            .filter(|l| l.mnemonic.starts_with("wgmma.mma_async"));
        let operations: u64 = operations.map(|l| l.counters.warp_instructions / 4).sum();
        println!(
            "{name:<22} {what:<11} {:>7.1} M warp-instr/s {:>8.0} M lane-instr/s {:>8.3} s {:>8.2} Gflop/s tensor {:>7.1} k wgmma/s",
            t.warp_instructions as f64 / s / 1e6,
            t.lane_instructions as f64 / s / 1e6,
            s,
            t.tensor_flops as f64 / s / 1e9,
            operations as f64 / s / 1e3,
        );
    }
}

fn main() {
    let memory = Memory::new();
    let m = module("speed");
    let y = memory.alloc(4 * 256 * 64).expect("memory");
    time(
        "alu loop",
        m,
        &memory,
        "alu",
        &LaunchConfig::new(64, 256),
        &Params::new().arg(y).arg(400i32),
    );
    let mut rng = Rng(1);
    let x: Vec<f32> = (0..512 * 1024).map(|_| rng.unit()).collect();
    let (x, y) = (
        memory.upload(&x).expect("memory"),
        memory.alloc(4 * 512 * 1024).expect("memory"),
    );
    let p = Params::new().arg(x).arg(y).arg(1024i32);
    time(
        "softmax",
        m,
        &memory,
        "softmax",
        &LaunchConfig::new(512, 128).shared_bytes(4096),
        &p,
    );
    let m = module("gemm");
    let n = 512;
    let a: Vec<half::f16> = (0..n * n)
        .map(|_| half::f16::from_f32(rng.unit()))
        .collect();
    let (pa, pb) = (
        memory.upload(&a).expect("memory"),
        memory.upload(&a).expect("memory"),
    );
    let pc = memory.alloc(4 * (n * n) as u64).expect("memory");
    let p = Params::new().arg(pa).arg(pb).arg(pc).arg(n).arg(n);
    time(
        "gemm f16 512^3",
        m,
        &memory,
        "gemm_f16",
        &LaunchConfig::new((n as u32 / 64, n as u32 / 64), 128),
        &p,
    );
    // Two heads of 512 rows of 64: what a small attention costs.
    let m = module("fused");
    let t: Vec<half::f16> = (0..2 * 512 * 64)
        .map(|_| half::f16::from_f32(rng.unit()))
        .collect();
    let [q, k, v] = [0; 3].map(|_| memory.upload(&t).expect("memory"));
    let o = memory.alloc(4 * t.len() as u64).expect("memory");
    let p = Params::new()
        .arg(q)
        .arg(k)
        .arg(v)
        .arg(o)
        .arg(512i32)
        .arg(0.18f32);
    let config = LaunchConfig::new((8, 2), 128).shared_bytes(3 * 64 * 128);
    time("fused 2 x 512 x 64", m, &memory, "fused", &config, &p);
    // The same size with tensor copies and wgmma.
    let m = module("wgmma_attention");
    let mut p = Params::new();
    for tensor in [q, k, v] {
        let tiled = Tiled::dense(ElementType::F16, tensor.0, &[64, 1024], &[64, 64]);
        let map = TensorMap::new(tiled.swizzle(Swizzle::B128)).expect("a map");
        p = p.arg_bytes(&map.encode(), 64);
    }
    let p = p.arg(o).arg(512i32).arg(0.18f32);
    let config = LaunchConfig::new((8, 2), 128).shared_bytes(5 * 64 * 128);
    time("wgmma 2 x 512 x 64", m, &memory, "attention", &config, &p);
}
