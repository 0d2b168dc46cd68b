//! An attention-like kernel with wgmma, and the mode that perturbs results within documented errors.

use half::f16;
use ptx_emulator::tensor_map::{ElementType, TensorMap, Tiled};
use ptx_emulator::{LaunchConfig, Memory, Params, Swizzle};

use crate::common::{Rng, module};

const HEADS: usize = 2;
const ROWS: usize = 512;
const D: usize = 64;

struct Inputs {
    q: Vec<f16>,
    k: Vec<f16>,
    v: Vec<f16>,
}

fn inputs() -> Inputs {
    let mut rng = Rng(3);
    let mut tensor = || {
        (0..HEADS * ROWS * D)
            .map(|_| f16::from_f32(rng.unit() * 2.0))
            .collect()
    };
    Inputs {
        q: tensor(),
        k: tensor(),
        v: tensor(),
    }
}

fn run(x: &Inputs, seed: u64, perturb: bool) -> Vec<f32> {
    let memory = Memory::new();
    let mut params = Params::new();
    for tensor in [&x.q, &x.k, &x.v] {
        let at = memory.upload(tensor).unwrap();
        let extents = [D as u64, (HEADS * ROWS) as u64];
        let tiled = Tiled::dense(ElementType::F16, at.0, &extents, &[64, 64]);
        let map = TensorMap::new(tiled.swizzle(Swizzle::B128)).unwrap();
        params = params.arg_bytes(&map.encode(), 64);
    }
    let out = memory.alloc(4 * x.q.len() as u64).unwrap();
    let scale = std::f32::consts::LOG2_E / 8.0;
    let params = params.arg(out).arg(ROWS as i32).arg(scale);
    let config = LaunchConfig::new((ROWS as u32 / 64, HEADS as u32), 128)
        .shared_bytes(5 * 64 * 128)
        .seed(seed)
        .perturb(perturb);
    module("wgmma_attention")
        .launch(&memory, "attention", &config, params.as_bytes())
        .unwrap_or_else(|f| panic!("seed {seed}: {f}"));
    memory.download(out, x.q.len()).unwrap()
}

fn reference(x: &Inputs) -> Vec<f64> {
    let value = |t: &[f16], i: usize| t[i].to_f64();
    let mut out = Vec::with_capacity(x.q.len());
    for row in 0..HEADS * ROWS {
        let first = row / ROWS * ROWS;
        let scores: Vec<f64> = (first..first + ROWS)
            .map(|j| {
                let products = (0..D).map(|c| value(&x.q, row * D + c) * value(&x.k, j * D + c));
                products.sum::<f64>() / 8.0
            })
            .collect();
        let top = scores.iter().fold(f64::MIN, |m, s| m.max(*s));
        let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
        let sum: f64 = weights.iter().sum();
        for c in 0..D {
            let column = weights.iter().enumerate();
            let total: f64 = column
                .map(|(j, w)| w * value(&x.v, (first + j) * D + c))
                .sum();
            out.push(total / sum);
        }
    }
    out
}

/// Probabilities are rounded to half precision: each at most by 2^-11 of itself, and values are below 2.
fn close(out: &[f32], expected: &[f64]) {
    for (i, (x, y)) in out.iter().zip(expected).enumerate() {
        let error = (f64::from(*x) - y).abs();
        assert!(
            error <= 2.0 * f64::powi(2.0, -11) * 1.1,
            "{i}: {x}, not {y}"
        );
    }
}

#[test]
fn attention_like() {
    let x = inputs();
    let expected = reference(&x);
    let exact = run(&x, 0, false);
    close(&exact, &expected);
    for seed in 1..6 {
        assert!(
            run(&x, seed, false) == exact,
            "seed {seed} gives other bits"
        );
    }
}

#[test]
fn perturbed_results_are_within_the_documented_error() {
    let x = inputs();
    let expected = reference(&x);
    let exact = run(&x, 0, false);
    let perturbed: Vec<_> = (0..3).map(|seed| run(&x, seed, true)).collect();
    for (seed, out) in perturbed.iter().enumerate() {
        close(out, &expected);
        let moved = out.iter().zip(&exact).filter(|(a, b)| a != b).count();
        assert!(
            moved > out.len() / 2,
            "seed {seed}: only {moved} results moved"
        );
        // The same seed perturbs in the same way.
        assert!(*out == run(&x, seed as u64, true));
    }
    assert!(perturbed[0] != perturbed[1] && perturbed[1] != perturbed[2]);
}
