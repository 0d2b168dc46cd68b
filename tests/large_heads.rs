//! Head dimensions above those of GPUs, on the CPU: against the oracle, and the same bits from pages.

use flash_alibi::cpu::{self, Element, oracle};
use flash_alibi::{Attention, Inputs, MAX_HEAD_DIM, Mask, Slopes, View};
use half::{bf16, f16};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt as _, SeedableRng as _};

const HEADS_Q: usize = 4;
const HEADS_K: usize = 2;

fn random<T: Element>(len: usize, seed: u64) -> Vec<T> {
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    (0..len)
        .map(|_| T::from_f32(generator.random_range(-1.0..1.0)))
        .collect()
}

#[track_caller]
fn assert_close<T: Element>(output: &cpu::Output<T>, expected: &oracle::Reference, relative: f64) {
    let max = expected
        .out
        .iter()
        .fold(0.0, |max: f64, x| max.max(x.abs()));
    for (found, expected) in output.out.iter().zip(&expected.out) {
        let off = (f64::from(found.to_f32()) - expected).abs();
        assert!(off <= relative * max, "{found:?} for {expected}");
    }
    for (found, expected) in output.lse.iter().zip(&expected.lse) {
        let off = (f64::from(*found) - expected).abs();
        assert!(
            off <= 1e-3 || f64::from(*found) == *expected,
            "{found} for {expected}"
        );
    }
}

fn check<T: Element>(relative: f64) {
    for head_dim in [264, 304, 392, MAX_HEAD_DIM] {
        let layer = Attention::new(HEADS_Q, HEADS_K, head_dim).slopes(Slopes::geometric(HEADS_Q));
        let layers = [
            layer.clone().build().unwrap(),
            layer.mask(Mask::Bidirectional).build().unwrap(),
        ];
        // A prompt, decoding, and more keys than a horizon needs.
        for (seqlen_q, seqlen_k) in [(70, 150), (1, 90), (5, 2300)] {
            let q = random::<T>(2 * seqlen_q * HEADS_Q * head_dim, 1);
            let [k, v] = [2, 3].map(|seed| random::<T>(2 * seqlen_k * HEADS_K * head_dim, seed));
            let view = |x, rows, heads| View::new(x, &[2, rows, heads, head_dim]).unwrap();
            let q = view(&q, seqlen_q, HEADS_Q);
            let inputs = Inputs::new(q, view(&k, seqlen_k, HEADS_K), view(&v, seqlen_k, HEADS_K));
            for layer in &layers {
                let output = cpu::attend(layer, &inputs).unwrap();
                assert_close(&output, &oracle::attend(layer, &inputs).unwrap(), relative);
            }

            // From the pages of a cache that keeps radii.
            let pages = seqlen_k.div_ceil(8);
            let mut cache = cpu::KvCache::<T>::new(2 * pages, 8, HEADS_K, head_dim).unwrap();
            let slots: Vec<i64> = (0..2 * seqlen_k)
                .map(|t| (t / seqlen_k * pages * 8 + t % seqlen_k) as i64)
                .collect();
            let packed = |x| View::new(x, &[2 * seqlen_k, HEADS_K, head_dim]).unwrap();
            cache.append(packed(&k), packed(&v), &slots).unwrap();
            let table: Vec<i32> = (0..2 * pages as i32).collect();
            let used = [seqlen_k as i32; 2];
            let inputs = cache.inputs(q, &table, &used);
            let output = cpu::attend(&layers[0], &inputs).unwrap();
            assert_close(
                &output,
                &oracle::attend(&layers[0], &inputs).unwrap(),
                relative,
            );
        }
    }
}

#[test]
fn f32_heads() {
    check::<f32>(2e-5);
}

#[test]
fn f16_heads() {
    check::<f16>(2e-3);
}

#[test]
fn bf16_heads() {
    check::<bf16>(1.6e-2);
}
