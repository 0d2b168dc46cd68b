//! Offsets: where queries stand, on the CPU and in the oracle.

use flash_alibi::cpu::{self, oracle};
use flash_alibi::{
    Attention, AttentionBuilder, Horizon, Inputs, Mask, Slopes, View, ViewMut, merge_states,
};
use proptest::prelude::*;

/// Numbers between -1 and 1.
fn numbers(seed: u64, len: usize) -> Vec<f32> {
    let mut x = seed | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// One sequence, and what its layer computes.
#[derive(Debug, Clone)]
struct Problem {
    heads: (usize, usize),
    head_dim: usize,
    seqlen_q: usize,
    seqlen_k: usize,
    mask: Mask,
    window: (Option<usize>, Option<usize>),
    slopes: Vec<f32>,
    horizon: Horizon,
    seed: u64,
}

impl Problem {
    fn builder(&self) -> AttentionBuilder {
        Attention::new(self.heads.0, self.heads.1, self.head_dim)
            .slopes(Slopes::per_head(&self.slopes))
            .mask(self.mask)
            .window(self.window.0, self.window.1)
            .horizon(self.horizon)
    }

    fn q(&self) -> Vec<f32> {
        numbers(self.seed, self.seqlen_q * self.heads.0 * self.head_dim)
    }

    fn k(&self) -> Vec<f32> {
        let len = self.seqlen_k * self.heads.1 * self.head_dim;
        numbers(self.seed ^ 0x9e37_79b9, len)
    }

    fn v(&self) -> Vec<f32> {
        let len = self.seqlen_k * self.heads.1 * self.head_dim;
        numbers(self.seed ^ 0x85eb_ca6b, len)
    }

    /// `out` and `lse` of the definition, in f64, for the keys of a range as if they were alone.
    fn defined(&self, offset: i64) -> (Vec<f64>, Vec<f64>) {
        let attention = self.builder().build().unwrap();
        let (q, k, v) = (self.q(), self.k(), self.v());
        let (heads_q, d) = (self.heads.0, self.head_dim);
        let mut out = vec![0.0; q.len()];
        let mut lse = vec![f64::NEG_INFINITY; self.seqlen_q * heads_q];
        for i in 0..self.seqlen_q {
            for h in 0..heads_q {
                let head_k = h / attention.group();
                let position = i as i64 + offset;
                let row = |of: &[f32], r: usize, heads: usize, head: usize| {
                    of[(r * heads + head) * d..][..d].to_vec()
                };
                let query = row(&q, i, heads_q, h);
                let mut scores = Vec::new();
                for j in 0..self.seqlen_k {
                    let distance = i128::from(position) - j as i128;
                    let left = attention.window_left().map_or(i128::MAX, |n| n as i128);
                    let right = attention.window_right().map_or(i128::MAX, |n| n as i128);
                    if distance > left || -distance > right {
                        continue;
                    }
                    let key = row(&k, j, self.heads.1, head_k);
                    let dot = query
                        .iter()
                        .zip(key)
                        .map(|(&a, b)| f64::from(a) * f64::from(b));
                    let score = f64::from(attention.scale()) * dot.sum::<f64>();
                    let slope = f64::from(self.slopes[h]);
                    scores.push((j, score - slope * distance.abs() as f64));
                }
                let max = scores.iter().map(|x| x.1).fold(f64::NEG_INFINITY, f64::max);
                if scores.is_empty() {
                    continue;
                }
                let sum: f64 = scores.iter().map(|x| (x.1 - max).exp()).sum();
                lse[h * self.seqlen_q + i] = max + sum.ln();
                for (j, x) in scores {
                    let weight = (x - max).exp() / sum;
                    let value = row(&v, j, self.heads.1, head_k);
                    let to = &mut out[(i * heads_q + h) * d..][..d];
                    to.iter_mut()
                        .zip(value)
                        .for_each(|(to, v)| *to += weight * f64::from(v));
                }
            }
        }
        (out, lse)
    }

    /// `out` and `lse` of some of the keys.
    fn computed(&self, keys: std::ops::Range<usize>, offset: Option<i32>) -> (Vec<f32>, Vec<f32>) {
        let attention = self.builder().build().unwrap();
        let (q, k, v) = (self.q(), self.k(), self.v());
        let row = self.heads.1 * self.head_dim;
        let shape = |rows, heads| [1, rows, heads, self.head_dim];
        let of = |x: &[f32]| x[keys.start * row..keys.end * row].to_vec();
        let (k, v) = (of(&k), of(&v));
        let shape_k = shape(keys.len(), self.heads.1);
        let offset = offset.map(|offset| [offset]);
        let mut inputs = Inputs::new(
            View::new(&q, &shape(self.seqlen_q, self.heads.0)).unwrap(),
            View::new(&k, &shape_k).unwrap(),
            View::new(&v, &shape_k).unwrap(),
        );
        if let Some(offset) = &offset {
            inputs = inputs.offset(offset);
        }
        let output = cpu::attend(&attention, &inputs).unwrap();
        let exact = oracle::attend(&attention, &inputs).unwrap();
        close(&output.out, &exact.out, 1e-5);
        close_lse(&output.lse, &exact.lse);
        (output.out, output.lse)
    }
}

fn widened(x: Vec<f32>) -> Vec<f64> {
    x.into_iter().map(f64::from).collect()
}

fn close(found: &[f32], expected: &[f64], limit: f64) {
    for (at, (&x, &y)) in found.iter().zip(expected).enumerate() {
        assert!((f64::from(x) - y).abs() <= limit, "at {at}: {x}, not {y}");
    }
}

fn close_lse(found: &[f32], expected: &[f64]) {
    for (at, (&x, &y)) in found.iter().zip(expected).enumerate() {
        let limit = 1e-4 + 0.5f64.powi(22) * y.abs();
        let same = f64::from(x) == y || (f64::from(x) - y).abs() <= limit;
        assert!(same, "lse at {at}: {x}, not {y}");
    }
}

fn problem() -> impl Strategy<Value = Problem> {
    let side = || prop_oneof![Just(None), (0usize..400).prop_map(Some)];
    (
        prop_oneof![Just((1, 1)), Just((4, 2)), Just((6, 1))],
        prop_oneof![Just(8usize), Just(24)],
        1usize..40,
        1usize..300,
        (any::<bool>(), side(), side()),
        -0.05f32..0.8,
        any::<u64>(),
    )
        .prop_map(
            |(heads, head_dim, seqlen_q, seqlen_k, (causal, left, right), slope, seed)| {
                let mask = match causal {
                    true => Mask::Causal,
                    false => Mask::Bidirectional,
                };
                Problem {
                    heads,
                    head_dim,
                    seqlen_q,
                    seqlen_k,
                    mask,
                    window: (left, right),
                    slopes: (0..heads.0).map(|h| slope / (1 + h) as f32).collect(),
                    horizon: Horizon::default(),
                    seed,
                }
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Anywhere: before, among and behind the keys, on the edges and at the ends of what an i32 can say.
    #[test]
    fn rows_stand_where_the_offset_says(
        problem in problem(),
        offset in prop_oneof![
            -600i32..600,
            Just(-1), Just(0), Just(1_000_000), Just(-1_000_000), Just(i32::MAX), Just(i32::MIN),
        ],
    ) {
        let (out, lse) = problem.defined(offset.into());
        let found = problem.computed(0..problem.seqlen_k, Some(offset));
        close(&found.0, &out, 1e-5);
        close_lse(&found.1, &lse);
    }

    /// The offset of the alignment changes no bit.
    #[test]
    fn the_default_is_the_alignment(problem in problem()) {
        let offset = problem.seqlen_k as i32 - problem.seqlen_q as i32;
        let all = 0..problem.seqlen_k;
        prop_assert_eq!(problem.computed(all.clone(), Some(offset)), problem.computed(all, None));
    }

    /// What `merge_states` is for: the keys of two ranks, each with the difference of the starts.
    #[test]
    fn ranks_are_merged(problem in problem(), part in 0.0f64..1.0) {
        let (keys, rows) = (problem.seqlen_k, problem.seqlen_q);
        let cut = (keys as f64 * part) as usize;
        let whole = problem.computed(0..keys, None);
        let start = keys as i32 - rows as i32;
        let (mut out, mut lse) = problem.computed(0..cut, Some(start));
        let (other_out, other_lse) = problem.computed(cut..keys, Some(start - cut as i32));
        let shape = [1, rows, problem.heads.0, problem.head_dim];
        merge_states(
            ViewMut::new(&mut out, &shape).unwrap(),
            &mut lse,
            View::new(&other_out, &shape).unwrap(),
            &other_lse,
        ).unwrap();
        close(&out, &widened(whole.0), 1e-5);
        close_lse(&lse, &widened(whole.1));
    }
}

/// Few and many rows whose keys lie wholly before them, wholly after them or on both sides, so many that the horizon
/// leaves out most; against the same without a horizon.
#[test]
fn the_horizon_follows_the_offset() {
    for (seqlen_q, mask) in [
        (2, Mask::Causal),
        (2, Mask::Bidirectional),
        (130, Mask::Causal),
        (130, Mask::Bidirectional),
    ] {
        let problem = Problem {
            heads: (2, 1),
            head_dim: 16,
            seqlen_q,
            seqlen_k: 5000,
            mask,
            window: (None, None),
            slopes: vec![0.2, 0.05],
            horizon: Horizon::Off,
            seed: 7,
        };
        for offset in [-700, -1, 0, 2500, 4999, 5000, 6000, 1_000_000] {
            let (exact, exact_lse) = problem.computed(0..5000, Some(offset));
            let (exact, exact_lse) = (widened(exact), widened(exact_lse));
            for horizon in [
                Horizon::default(),
                Horizon::Certified { tolerance: 1e-3 },
                Horizon::Bitwise,
            ] {
                let tolerance = match horizon {
                    Horizon::Certified { tolerance } => f64::from(tolerance),
                    _ => 0.0,
                };
                let problem = Problem {
                    horizon,
                    ..problem.clone()
                };
                let attention = problem.builder().build().unwrap();
                let (q, k, v) = (problem.q(), problem.k(), problem.v());
                let shape = [1, 5000, 1, 16];
                let offsets = [offset];
                let inputs = Inputs::new(
                    View::new(&q, &[1, seqlen_q, 2, 16]).unwrap(),
                    View::new(&k, &shape).unwrap(),
                    View::new(&v, &shape).unwrap(),
                )
                .offset(&offsets);
                let output = cpu::attend(&attention, &inputs).unwrap();
                close(&output.out, &exact, 2.0 * tolerance + 1e-5);
                for (&x, &y) in output.lse.iter().zip(&exact_lse) {
                    let limit = tolerance + 1e-4 + 0.5f64.powi(22) * y.abs();
                    assert!(f64::from(x) == y || (f64::from(x) - y).abs() <= limit);
                }
                // A float's last bits say nothing of bounds a million positions away.
                let has_far_keys = mask == Mask::Bidirectional || offset >= 2500;
                if has_far_keys && offset < 1_000_000 {
                    assert!(
                        output.report.kept() * 10 < output.report.total() * 9,
                        "{mask:?}, {seqlen_q} rows at {offset}, {horizon:?}: {} of {}",
                        output.report.kept(),
                        output.report.total()
                    );
                }
            }
        }
    }
}

/// One key, as far from the query as an offset can say: the whole weight is its own, whatever a float makes of the distance.
#[test]
fn the_farthest_key_has_its_weight() {
    for offset in [2_145_386_496, i32::MAX, i32::MIN, 1 << 30] {
        for slope in [4.0, 1.0, 0.3, -0.5] {
            for seqlen_q in [1, 9] {
                let problem = Problem {
                    heads: (1, 1),
                    head_dim: 8,
                    seqlen_q,
                    seqlen_k: 1,
                    mask: Mask::Bidirectional,
                    window: (None, None),
                    slopes: vec![slope],
                    horizon: Horizon::default(),
                    seed: 3,
                };
                let (out, lse) = problem.defined(offset.into());
                let found = problem.computed(0..1, Some(offset));
                close(&found.0, &out, 1e-6);
                close_lse(&found.1, &lse);
            }
        }
    }
}
