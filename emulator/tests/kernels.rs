//! Whole kernels compiled by nvcc.

mod support;

use half::{bf16, f16};
use ptx_emulator::{Class, LaunchConfig, Memory, Params, Plain};
use support::module;

/// Reproducible numbers in [-1, 1).
fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..n)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            (x >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

#[test]
fn reduction_with_shuffles() {
    let m = module("basic");
    let n = 10_000;
    let x = numbers(n, 1);
    let want: f64 = x.iter().map(|&v| f64::from(v)).sum();
    for seed in 0..4 {
        let mem = Memory::new();
        let data = mem.alloc_from(&x).unwrap();
        let out = mem.alloc_zeroed(4).unwrap();
        let params = Params::new().arg(data).arg(out).arg(n as i32);
        let config = LaunchConfig::new(5, 256).seed(seed);
        let report = m
            .launch(&mem, "reduce", &config, params.bytes())
            .unwrap_or_else(|f| panic!("{f}"));
        let got = f64::from(mem.read_vec::<f32>(out, 1).unwrap()[0]);
        assert!((got - want).abs() < 1e-3, "{got} {want}");
        assert_eq!(report.bank_conflicts, 0);
        assert_eq!(report.class(Class::Shuffle).warps, 5 * (8 * 5 + 5));
        assert_eq!(report.global_load_bytes, 4 * n as u64);
        assert_eq!(report.global_load_sectors, 4 * n as u64 / 32);
    }
}

#[test]
fn divergent_loop() {
    let m = module("basic");
    let n = 300u32;
    let input: Vec<u32> = (1..=n).collect();
    let mem = Memory::new();
    let data = mem.alloc_from(&input).unwrap();
    let out = mem.alloc(4 * u64::from(n)).unwrap();
    let params = Params::new().arg(data).arg(out).arg(n);
    let report = m
        .launch(&mem, "collatz", &LaunchConfig::new(3, 128), params.bytes())
        .unwrap_or_else(|f| panic!("{f}"));
    let want: Vec<u32> = input
        .iter()
        .map(|&x| {
            let (mut x, mut s) = (u64::from(x), 0);
            while x != 1 {
                x = if x % 2 == 0 { x / 2 } else { 3 * x + 1 };
                s += 1;
            }
            s
        })
        .collect();
    assert_eq!(mem.read_vec::<u32>(out, n as usize).unwrap(), want);
    assert!(report.divergent_branches > 0);
}

#[test]
fn histogram_with_atomics() {
    let m = module("basic");
    let data: Vec<u8> = (0..5000u32).map(|i| ((i * i) >> 3) as u8).collect();
    let mut want = vec![0u32; 256];
    data.iter().for_each(|&b| want[b as usize] += 1);
    let mem = Memory::new();
    let input = mem.alloc_from(&data).unwrap();
    let bins = mem.alloc_zeroed(1024).unwrap();
    let params = Params::new().arg(input).arg(bins).arg(5000);
    m.launch(&mem, "histogram", &LaunchConfig::new(4, 96), params.bytes())
        .unwrap_or_else(|f| panic!("{f}"));
    assert_eq!(mem.read_vec::<u32>(bins, 256).unwrap(), want);
}

#[test]
fn last_block_done_is_no_race() {
    let m = module("basic");
    let input: Vec<i32> = (0..32 * 64).collect();
    for seed in 0..4 {
        let mem = Memory::new();
        let data = mem.alloc_from(&input).unwrap();
        let partial = mem.alloc(64 * 4).unwrap();
        let out = mem.alloc(4).unwrap();
        let params = Params::new().arg(data).arg(partial).arg(out);
        // compute_80 has redux for this.
        m.launch(
            &mem,
            "last_block",
            &LaunchConfig::new(64, 32).seed(seed),
            params.bytes(),
        )
        .unwrap_or_else(|f| panic!("{f}"));
        let want: i32 = input.iter().sum();
        assert_eq!(mem.read_vec::<i32>(out, 1).unwrap(), [want]);
    }
}

#[test]
fn functions_that_are_not_inlined() {
    let m = module("basic");
    let x: Vec<f64> = (0..64).map(|i| f64::from(i) * 0.37 - 4.0).collect();
    let mem = Memory::new();
    let input = mem.alloc_from(&x).unwrap();
    let out = mem.alloc(64 * 8).unwrap();
    let fact = mem.alloc(64 * 4).unwrap();
    let params = Params::new().arg(input).arg(out).arg(fact);
    m.launch(&mem, "calls", &LaunchConfig::new(1, 64), params.bytes())
        .unwrap_or_else(|f| panic!("{f}"));
    let table = [1.0, 2.0, 4.0, 8.0];
    let want: Vec<f64> = x
        .iter()
        .enumerate()
        .map(|(i, &x)| (0..i % 7).fold(0.0f64, |r, j| r.mul_add(x, table[j & 3])))
        .collect();
    assert_eq!(mem.read_vec::<f64>(out, 64).unwrap(), want);
    let want: Vec<i32> = (0..64).map(|i| (1..=i % 11).product()).collect();
    assert_eq!(mem.read_vec::<i32>(fact, 64).unwrap(), want);
}

#[test]
fn struct_parameters_and_local_arrays() {
    let m = module("basic");
    let mem = Memory::new();
    let out = mem.alloc(32 * 8).unwrap();
    let mut w = Vec::new();
    [3i32, 5, 7, 11].iter().for_each(|v| v.put(&mut w));
    [2f32, 4.0, 6.0].iter().for_each(|v| v.put(&mut w));
    w.extend([0; 4]);
    1_000_000_000_000i64.put(&mut w);
    w.extend([0; 8]);
    let params = Params::new().raw(&w, 16).arg(out);
    m.launch(&mem, "by_value", &LaunchConfig::new(1, 32), params.bytes())
        .unwrap_or_else(|f| panic!("{f}"));
    let want: Vec<i64> = (0..32)
        .map(|t| {
            let s: i64 = (0..8).map(|i| 3 * ((i * t) & 7)).sum();
            s + 23 + 2 * (t % 3 + 1) + 1_000_000_000_000
        })
        .collect();
    assert_eq!(mem.read_vec::<i64>(out, 32).unwrap(), want);
}

#[test]
fn lanes_run_independently() {
    let m = module("basic");
    let mem = Memory::new();
    let out = mem.alloc(4).unwrap();
    let params = Params::new().arg(out);
    m.launch(&mem, "spin_lock", &LaunchConfig::new(1, 64), params.bytes())
        .unwrap_or_else(|f| panic!("{f}"));
    assert_eq!(mem.read_vec::<i32>(out, 1).unwrap(), [64]);
}

#[test]
fn named_barriers() {
    let m = module("basic");
    let input: Vec<i32> = (0..64).collect();
    for seed in 0..8 {
        let mem = Memory::new();
        let data = mem.alloc_from(&input).unwrap();
        let out = mem.alloc(256).unwrap();
        let params = Params::new().arg(data).arg(out);
        let config = LaunchConfig::new(1, 128).seed(seed);
        m.launch(&mem, "named", &config, params.bytes())
            .unwrap_or_else(|f| panic!("{f}"));
        let want: Vec<i32> = (0..64).map(|i| 2 * (63 - i)).collect();
        assert_eq!(mem.read_vec::<i32>(out, 64).unwrap(), want);
    }
}

#[test]
fn pipeline_with_mbarriers() {
    let m = module("mbarrier");
    let tiles = 9;
    let input: Vec<i32> = (0..tiles * 128).collect();
    for seed in 0..8 {
        let mem = Memory::new();
        let data = mem.alloc_from(&input).unwrap();
        let out = mem.alloc(512).unwrap();
        let params = Params::new().arg(data).arg(out).arg(tiles);
        let config = LaunchConfig::new(1, 160).seed(seed);
        m.launch(&mem, "pipeline", &config, params.bytes())
            .unwrap_or_else(|f| panic!("{f}"));
        let want: Vec<i32> = (0..128)
            .map(|i| (0..tiles).map(|t| t * 128 + i).sum())
            .collect();
        assert_eq!(mem.read_vec::<i32>(out, 128).unwrap(), want);
    }
}

fn gemm<T: Plain>(kernel: &str, round: impl Fn(f32) -> T, value: impl Fn(T) -> f64) {
    let module = module("gemm");
    let (m, n, k) = (128usize, 192usize, 160usize);
    let a: Vec<T> = numbers(m * k, 3).into_iter().map(&round).collect();
    let b: Vec<T> = numbers(n * k, 5).into_iter().map(&round).collect();
    let mem = Memory::new();
    let pa = mem.alloc_from(&a).unwrap();
    let pb = mem.alloc_from(&b).unwrap();
    let pc = mem.alloc((m * n * 4) as u64).unwrap();
    let params = Params::new()
        .arg(pa)
        .arg(pb)
        .arg(pc)
        .arg(n as i32)
        .arg(k as i32);
    let config = LaunchConfig::new_3d((n as u32 / 64, m as u32 / 64, 1), (128, 1, 1)).seed(11);
    let report = module
        .launch(&mem, kernel, &config, params.bytes())
        .unwrap_or_else(|f| panic!("{f}"));
    let c = mem.read_vec::<f32>(pc, m * n).unwrap();
    for i in 0..m {
        for j in 0..n {
            let want: f64 = (0..k)
                .map(|x| value(a[i * k + x]) * value(b[j * k + x]))
                .sum();
            let got = f64::from(c[i * n + j]);
            assert!((got - want).abs() < 2e-5, "({i},{j}): {got} {want}");
        }
    }
    assert_eq!(report.tensor_flops, 2 * (m * n * k) as u64);
    assert_eq!(report.bank_conflicts, 0, "the swizzle has no conflicts");
    // Counters do not depend on who ran what.
    let again = module
        .launch(&mem, kernel, &config, params.bytes())
        .unwrap();
    assert_eq!(report, again);
}

#[test]
fn tensor_core_gemm_f16() {
    gemm("gemm_f16", f16::from_f32, f64::from);
}

#[test]
fn tensor_core_gemm_bf16() {
    gemm("gemm_bf16", bf16::from_f32, f64::from);
}

#[test]
fn offsets_past_four_gibibytes() {
    let ptx = "
.version 8.0
.target sm_80
.address_size 64
.visible .entry far(.param .u64 p, .param .u64 offset) {
    .reg .b32 %r<2>;
    .reg .b64 %rd<4>;
    ld.param.u64 %rd1, [p];
    ld.param.u64 %rd2, [offset];
    add.s64 %rd3, %rd1, %rd2;
    mov.u32 %r1, 77;
    st.global.u32 [%rd3], %r1;
    ret;
}";
    let m = ptx_emulator::Module::parse(ptx).unwrap();
    let mem = Memory::new();
    let big = mem.alloc(1 << 40).unwrap();
    for offset in [(1u64 << 31) + 4, (1 << 32) + 8, (1 << 40) - 4] {
        let params = Params::new().arg(big).arg(offset);
        m.launch(&mem, "far", &LaunchConfig::new(1, 1), params.bytes())
            .unwrap_or_else(|f| panic!("{f}"));
        assert_eq!(mem.read_vec::<u32>(big.offset(offset), 1).unwrap(), [77]);
    }
    let params = Params::new().arg(big).arg(1u64 << 40);
    assert!(
        m.launch(&mem, "far", &LaunchConfig::new(1, 1), params.bytes())
            .is_err()
    );
}
