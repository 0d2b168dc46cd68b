//! Measures lane-instructions per second: `cargo run --release --example throughput -- FILE.ptx`
//! with the PTX of `tests/kernels/gemm.cu` or `tests/kernels/basic.cu`.

use ptx_emulator::{Checks, LaunchConfig, Memory, Module, Params};
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("a PTX file is needed")?;
    let module = Module::parse(&std::fs::read_to_string(path)?)?;
    let memory = Memory::new();
    for checks in [Checks::all(), Checks::none()] {
        let (kernel, config, params) = if module.kernels().any(|k| k == "gemm_f16") {
            let n = 512u32;
            let a = memory.alloc_zeroed(u64::from(n * n * 2))?;
            let c = memory.alloc(u64::from(n * n * 4))?;
            let params = Params::new().arg(a).arg(a).arg(c).arg(n).arg(n);
            let grid = (n / 64, n / 64, 1);
            ("gemm_f16", LaunchConfig::new_3d(grid, (128, 1, 1)), params)
        } else {
            let n = 1u32 << 14;
            let x: Vec<u32> = (1..=n).collect();
            let x = memory.alloc_from(&x)?;
            let y = memory.alloc(u64::from(4 * n))?;
            let params = Params::new().arg(x).arg(y).arg(n);
            ("collatz", LaunchConfig::new(n / 128, 128), params)
        };
        let start = Instant::now();
        let report = module.launch(&memory, kernel, &config.checks(checks), params.bytes())?;
        let t = start.elapsed().as_secs_f64();
        println!("{report}");
        println!(
            "{kernel}, {checks:?}: {t:.3} s, {:.0} M lane-instructions/s, {:.2} M warp-instructions/s, {:.2} GFLOP/s\n",
            report.total.lanes as f64 / t / 1e6,
            report.total.warps as f64 / t / 1e6,
            report.tensor_flops as f64 / t / 1e9,
        );
    }
    Ok(())
}
