//! Merging attention results by their lse.

use flash_alibi::cpu::{self, oracle};
use flash_alibi::{Attention, Inputs, View, ViewMut, merge_state, merge_states};
use flash_alibi_testing::normal;
use proptest::prelude::*;
use proptest::sample::select;

const NONE: f32 = f32::NEG_INFINITY;

/// A row that saw some keys, or none.
#[derive(Debug, Clone, PartialEq)]
struct State {
    out: Vec<f32>,
    lse: f32,
}

impl State {
    fn merged(&self, other: &Self) -> Self {
        let Self { mut out, mut lse } = self.clone();
        merge_state(&mut out, &mut lse, &other.out, other.lse).unwrap();
        Self { out, lse }
    }
}

fn state() -> impl Strategy<Value = State> {
    let lse = prop_oneof![
        6 => -30f32..30.0,
        2 => select(vec![NONE, 1e30, -1e30, f32::MAX, f32::MIN, 80.0, 79.0]),
    ];
    let out = prop::collection::vec(-4f32..4.0, 5);
    (out, lse).prop_map(|(out, lse)| match lse {
        NONE => State {
            out: vec![0.0; 5],
            lse,
        },
        _ => State { out, lse },
    })
}

/// By the definition, in f64.
fn definition(states: &[State]) -> (Vec<f64>, f64) {
    let max = states
        .iter()
        .map(|s| f64::from(s.lse))
        .fold(f64::MIN, f64::max);
    let weights = states.iter().map(|s| (f64::from(s.lse) - max).exp());
    let sum: f64 = weights.clone().sum();
    let mut out = vec![0.0; 5];
    for (state, weight) in states.iter().zip(weights) {
        for (out, &x) in out.iter_mut().zip(&state.out) {
            *out += weight / sum * f64::from(x);
        }
    }
    (out, max + sum.ln())
}

/// `of_lse` is by how much an lse that went in may have been off: weights are off by `e` to that.
fn close(found: &State, (out, lse): &(Vec<f64>, f64), of_lse: f64) -> Result<(), TestCaseError> {
    // A weighted mean leaves the range of what it takes by no more than rounding.
    let allowed = (8.0 * (2.0 * of_lse).exp_m1()).min(8.0) + 4e-6;
    for (&found, out) in found.out.iter().zip(out) {
        let error = (f64::from(found) - out).abs();
        prop_assert!(error < allowed, "{found}, {out}");
    }
    let error = (f64::from(found.lse) - lse).abs();
    prop_assert!(
        error <= 4e-7 * lse.abs().max(1.0),
        "lse {}, {lse}",
        found.lse
    );
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn follows_the_definition_in_any_order(a in state(), b in state(), c in state()) {
        let pair = a.merged(&b);
        prop_assert_eq!(&pair, &b.merged(&a));
        let (left, right) = (pair.merged(&c), a.merged(&b.merged(&c)));
        if a.lse == NONE && b.lse == NONE {
            prop_assert_eq!(&pair, &a);
        } else {
            close(&pair, &definition(&[a.clone(), b.clone()]), 0.0)?;
        }
        if [&a, &b, &c].iter().all(|s| s.lse == NONE) {
            prop_assert_eq!(&left, &a);
            prop_assert_eq!(&right, &a);
            return Ok(());
        }
        // The lse of the two that merge first rounds to 2^-24 of itself.
        let expected = definition(&[a, b, c]);
        let of_lse = 2e-7 * expected.1.abs().max(1.0);
        close(&left, &expected, of_lse)?;
        close(&right, &expected, of_lse)?;
    }

    #[test]
    fn a_row_that_saw_nothing_changes_no_bit(a in state()) {
        // Whatever its buffer holds.
        let empty = State { out: vec![f32::NAN; 5], lse: NONE };
        prop_assert_eq!(&a.merged(&empty), &a);
        prop_assert_eq!(&empty.merged(&a), &a);
    }
}

#[test]
fn two_rows_that_saw_nothing_are_zero() {
    let empty = State {
        out: vec![f32::NAN; 5],
        lse: NONE,
    };
    let merged = empty.merged(&empty);
    assert_eq!((merged.out, merged.lse), (vec![0.0; 5], NONE));
}

#[test]
fn a_nan_stays_one() {
    let fine = State {
        out: vec![1.0; 5],
        lse: 0.5,
    };
    for lse in [f32::NAN, f32::INFINITY] {
        let bad = State {
            out: vec![1.0; 5],
            lse,
        };
        assert!(fine.merged(&bad).out.iter().all(|x| x.is_nan()));
        assert!(bad.merged(&fine).out.iter().all(|x| x.is_nan()));
    }
}

/// Keys split at any places and merged in any order are the whole, in f32.
#[test]
fn parts_of_the_keys_merge_to_the_whole() {
    let (batch, heads, d, seqlen_k) = (2, 4, 16, 700);
    let values = |tag, n: usize| -> Vec<f32> { normal(3, tag, [0; 4]).take(n).collect() };
    let (shape_q, shape_k) = ([batch, 1, heads, d], [batch, seqlen_k, 1, d]);
    let q = values(1, batch * heads * d);
    let [k, v] = [2, 3].map(|tag| values(tag, batch * seqlen_k * d));
    fn view<'a>(data: &'a [f32], shape: &[usize]) -> View<'a, f32> {
        View::new(data, shape).unwrap()
    }
    let inputs = Inputs::new(view(&q, &shape_q), view(&k, &shape_k), view(&v, &shape_k));
    let attention = Attention::new(heads, 1, d).build().unwrap();
    let whole = oracle::attend(&attention, &inputs).unwrap();

    for cuts in [vec![350], vec![1, 2, 690], vec![128, 256, 384, 512, 640]] {
        let bounds = [vec![0], cuts, vec![seqlen_k]].concat();
        let mut out = vec![f32::NAN; q.len()];
        let mut lse = vec![NONE; batch * heads];
        // From the middle outwards.
        let mut parts: Vec<&[usize]> = bounds.windows(2).collect();
        parts.sort_by_key(|part| (part[0] as i64 - 300).abs());
        for part in parts {
            let (start, end) = (vec![part[0] as i32; batch], vec![part[1] as i32; batch]);
            let inputs = inputs.seqused_k(&end).leftpad_k(&start);
            let mut part = cpu::attend(&attention, &inputs).unwrap();
            // The query stood at the part's end, nearer than it is.
            for (row, lse) in part.lse.iter_mut().enumerate() {
                let slope = attention.slopes().get(0, row % heads);
                *lse -= slope * (seqlen_k as i32 - end[0]) as f32;
            }
            let out = ViewMut::new(&mut out, &shape_q).unwrap();
            merge_states(out, &mut lse, view(&part.out, &shape_q), &part.lse).unwrap();
        }
        let error = |found: &[f32], expected: &[f64]| {
            let errors = found
                .iter()
                .zip(expected)
                .map(|(&x, y)| (f64::from(x) - y).abs());
            errors.fold(0.0, f64::max)
        };
        let (out, lse) = (error(&out, &whole.out), error(&lse, &whole.lse));
        println!("{bounds:?}: out {out:.1e}, lse {lse:.1e}");
        assert!(out < 1e-6 && lse < 2e-6, "{bounds:?}: {out}, {lse}");
    }
}

#[test]
fn rows_of_a_result_are_found_by_head_and_token() {
    // Packed: lse is [heads_q, total_q]; other_out has gaps.
    let (total, heads, d) = (3, 2, 8);
    let mut out: Vec<f32> = (0..48).map(|i| i as f32).collect();
    let before = out.clone();
    let other = vec![-1f32; 3 * 40];
    let mut lse = vec![0f32; 6];
    let mut other_lse = vec![NONE; 6];
    other_lse[2] = 100.0; // head 0, token 2
    merge_states(
        ViewMut::new(&mut out, &[total, heads, d]).unwrap(),
        &mut lse,
        View::strided(&other, &[total, heads, d], &[40, 20, 1]).unwrap(),
        &other_lse,
    )
    .unwrap();
    assert_eq!(out[32..40], [-1.0; 8]);
    out[32..40].copy_from_slice(&before[32..40]);
    assert_eq!(out, before);
    assert_eq!(lse, [0.0, 0.0, 100.0, 0.0, 0.0, 0.0]);
}

#[test]
fn shapes_that_differ_are_errors_and_nothing_is_written() {
    let other = [1f32; 96];
    let check = |shape: &[usize], lse: usize, other_lse: usize, message: &str| {
        let (mut out, mut ours) = ([0f32; 48], vec![0f32; lse]);
        let out_view = ViewMut::new(&mut out, &[1, 3, 2, 8]).unwrap();
        let other = View::new(&other, shape).unwrap();
        let result = merge_states(out_view, &mut ours, other, &other.data()[..other_lse]);
        assert_eq!(result.unwrap_err().to_string(), message);
        assert!(out.iter().chain(&ours).all(|&x| x == 0.0));
    };
    check(
        &[1, 3, 2, 16],
        6,
        6,
        "other_out: found shape [1, 3, 2, 16], expected [1, 3, 2, 8], as out",
    );
    let shape = [1, 3, 2, 8];
    check(
        &shape,
        5,
        6,
        "lse: found 5 elements, expected 6, one a row and head of out",
    );
    check(
        &shape,
        6,
        7,
        "other_lse: found 7 elements, expected 6, one a row and head of out",
    );
    let row = merge_state(&mut [0.0; 3], &mut 0.0, &[0.0; 4], 0.0);
    assert_eq!(
        row.unwrap_err().to_string(),
        "other_out: found 4 elements, expected 3, as out"
    );
}
