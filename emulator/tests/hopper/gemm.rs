//! C = A B with wgmma: both operands in shared memory or A in registers, two to four stages.

use half::{bf16, f16};
use ptx_emulator::tensor_map::{ElementType, TensorMap, Tiled};
use ptx_emulator::{LaunchConfig, Memory, Params, Report, Scalar, Swizzle};

use crate::common::{Rng, module};

/// A 16-bit element.
trait Element: Scalar + Copy {
    const TYPE: ElementType;
    fn from(x: f32) -> Self;
    fn value(self) -> f64;
}

impl Element for f16 {
    const TYPE: ElementType = ElementType::F16;
    fn from(x: f32) -> Self {
        f16::from_f32(x)
    }
    fn value(self) -> f64 {
        self.to_f64()
    }
}

impl Element for bf16 {
    const TYPE: ElementType = ElementType::Bf16;
    fn from(x: f32) -> Self {
        bf16::from_f32(x)
    }
    fn value(self) -> f64 {
        self.to_f64()
    }
}

/// A matrix in memory whose rows begin at multiples of 16 bytes, and a map of its boxes.
struct Matrix<T> {
    map: TensorMap,
    values: Vec<T>,
}

/// `rows` x `columns`, random, in boxes of `tall` rows of 64 columns.
fn matrix<T: Element>(
    memory: &Memory,
    rng: &mut Rng,
    [rows, columns]: [usize; 2],
    tall: u32,
) -> Matrix<T> {
    let pitch = columns.next_multiple_of(8);
    let values: Vec<T> = (0..rows * columns).map(|_| T::from(rng.unit())).collect();
    // What is between the rows must not be read.
    let mut padded = vec![T::from(f32::NAN); rows * pitch];
    for (to, from) in padded.chunks_mut(pitch).zip(values.chunks(columns)) {
        to[..columns].copy_from_slice(from);
    }
    let address = memory.upload(&padded).unwrap().0;
    let extents = [columns as u64, rows as u64];
    let mut tiled = Tiled::dense(T::TYPE, address, &extents, &[64, tall]).swizzle(Swizzle::B128);
    tiled.dimensions[1].stride = 2 * pitch as u64;
    let map = TensorMap::new(tiled).unwrap();
    Matrix { map, values }
}

/// Runs a kernel and returns C and the report.
fn run<T: Element>(
    kernel: &str,
    [m, n, k]: [usize; 3],
    rs: bool,
    stages: u32,
    seed: u64,
) -> (Vec<f32>, Vec<f64>, Report) {
    let memory = Memory::new();
    let mut rng = Rng(7);
    let a: Matrix<T> = matrix(&memory, &mut rng, [m, k], 128);
    let b: Matrix<T> = match rs {
        true => matrix(&memory, &mut rng, [k, n], 64),
        false => matrix(&memory, &mut rng, [n, k], 64),
    };
    let pitch = n.next_multiple_of(4);
    let c = memory.upload(&vec![-1.0f32; m * pitch]).unwrap();
    let mut tiled = Tiled::dense(ElementType::F32, c.0, &[n as u64, m as u64], &[32, 64]);
    tiled.dimensions[1].stride = 4 * pitch as u64;
    let map_c = TensorMap::new(tiled.swizzle(Swizzle::B128)).unwrap();
    let mut params = Params::new();
    for map in [&a.map, &b.map, &map_c] {
        params = params.arg_bytes(&map.encode(), 64);
    }
    let params = params.arg(k as i32);
    let grid = (n.div_ceil(64) as u32, m.div_ceil(128) as u32);
    let config = LaunchConfig::new(grid, 384)
        .shared_bytes(stages * (128 + 64) * 128)
        .seed(seed);
    let report = module("wgmma_gemm")
        .launch(&memory, kernel, &config, params.as_bytes())
        .unwrap_or_else(|f| panic!("seed {seed}: {f}"));
    let c: Vec<f32> = memory.download(c, m * pitch).unwrap();
    let mut sums = Vec::with_capacity(m * n);
    for i in 0..m {
        for j in 0..n {
            let b = |l: usize| b.values[if rs { l * n + j } else { j * k + l }].value();
            sums.push((0..k).map(|l| a.values[i * k + l].value() * b(l)).sum());
        }
    }
    // Nothing beside the matrix was written.
    for row in c.chunks(pitch) {
        assert!(row[n..].iter().all(|x| *x == -1.0));
    }
    let c = c.chunks(pitch).flat_map(|row| row[..n].to_vec()).collect();
    (c, sums, report)
}

/// One rounding a step of 16, of sums of `k` products below 1.
fn close(c: &[f32], sums: &[f64], k: usize) {
    let tolerance = k as f64 / 16.0 * f64::from(f32::EPSILON) / 2.0 * k as f64;
    for (i, (x, y)) in c.iter().zip(sums).enumerate() {
        assert!(
            (f64::from(*x) - y).abs() <= tolerance,
            "element {i}: {x}, expected {y} within {tolerance:e}"
        );
    }
}

fn check<T: Element>(kernel: &str, rs: bool, stages: u32) {
    for size in [
        [128, 64, 64],
        [256, 128, 320],
        [130, 72, 200],
        [77, 61, 93],
        [1, 1, 1],
    ] {
        let (c, sums, report) = run::<T>(kernel, size, rs, stages, 0);
        close(&c, &sums, size[2]);
        let blocks = size[0].div_ceil(128) * size[1].div_ceil(64);
        let flops = 2 * 128 * 64 * size[2].next_multiple_of(64) * blocks;
        assert_eq!(
            report.total().tensor_flops,
            flops as u64,
            "{kernel} {size:?}"
        );
    }
    let size = [130, 72, 200];
    let bits = |c: Vec<f32>| c.into_iter().map(f32::to_bits).collect::<Vec<_>>();
    let first = bits(run::<T>(kernel, size, rs, stages, 0).0);
    for seed in 1..40 {
        let again = bits(run::<T>(kernel, size, rs, stages, seed).0);
        assert!(again == first, "seed {seed} gives other bits");
    }
}

#[test]
fn both_operands_in_shared_memory() {
    check::<f16>("gemm_ss_f16_2", false, 2);
    check::<f16>("gemm_ss_f16_3", false, 3);
    check::<bf16>("gemm_ss_bf16_4", false, 4);
}

#[test]
fn a_in_registers_and_b_transposed() {
    check::<f16>("gemm_rs_f16_2", true, 2);
    check::<bf16>("gemm_rs_bf16_3", true, 3);
    check::<bf16>("gemm_rs_bf16_4", true, 4);
}
