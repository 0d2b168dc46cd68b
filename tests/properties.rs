//! The fast path against the oracle: over random problems, over the shapes that FlashAttention and FlashInfer test, and
//! where attention kernels tend to go wrong.

use flash_alibi::cpu::{self, Element, oracle};
use flash_alibi::{Attention, Inputs, Mask, Slopes, View};
use flash_alibi_testing::strategy::{case, case_with_offsets, config, fail, pick};
use flash_alibi_testing::{Case, LaidOut, Lengths, Rows, SlopeKind, Tensor, expect, normal};
use half::{bf16, f16};
use proptest::prelude::*;
use proptest::sample::select;

/// How much work the reference may have in one random case.
const WORK: usize = 2_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dtype {
    F16,
    Bf16,
    F32,
}
use Dtype::{Bf16, F16, F32};

const DTYPES: [Dtype; 3] = [F16, Bf16, F32];

/// Calls a generic function with the type that `dtype` names.
macro_rules! with_dtype {
    ($dtype:expr, $function:ident($($argument:expr),*)) => {
        match $dtype {
            F16 => $function::<f16>($($argument),*),
            Bf16 => $function::<bf16>($($argument),*),
            F32 => $function::<f32>($($argument),*),
        }
    };
}

fn check<T: Element>(case: &Case) -> Result<(), String> {
    case.check::<T>()
}

#[track_caller]
fn check_all(case: &Case) {
    for dtype in DTYPES {
        let result = with_dtype!(dtype, check(case));
        expect(case, result.map_err(|why| format!("{dtype:?}: {why}")));
    }
}

/// A case, and where in it: a fraction each of the sequences, query rows, keys, heads and elements.
fn case_and_place() -> impl Strategy<Value = (Case, Dtype, [f64; 5])> {
    let fraction = || 0.0..1.0;
    let place = [fraction(), fraction(), fraction(), fraction(), fraction()];
    (case(WORK), select(DTYPES.to_vec()), place)
}

proptest! {
    #![proptest_config(config(160))]

    #[test]
    fn f16_follows_the_oracle(case in case_with_offsets(WORK)) {
        fail(case.check::<f16>())?;
    }

    #[test]
    fn bf16_follows_the_oracle(case in case_with_offsets(WORK)) {
        fail(case.check::<bf16>())?;
    }

    #[test]
    fn f32_follows_the_oracle(case in case_with_offsets(WORK)) {
        fail(case.check::<f32>())?;
    }
}

proptest! {
    #![proptest_config(config(100))]

    #[test]
    fn the_oracle_finds_sequences_wherever_they_lie(case in case_with_offsets(WORK)) {
        fail(case.lay_out::<bf16>().check_oracle())?;
    }

    #[test]
    fn a_nan_in_a_key_reaches_the_rows_that_see_it_and_no_other((case, dtype, place) in case_and_place()) {
        fail(with_dtype!(dtype, nan_in_k(&case, place)))?;
    }

    #[test]
    fn a_nan_in_a_value_reaches_one_element_of_the_rows_that_see_it((case, dtype, place) in case_and_place()) {
        fail(with_dtype!(dtype, nan_in_v(&case, place)))?;
    }

    #[test]
    fn a_row_never_depends_on_keys_it_does_not_see((case, dtype, place) in case_and_place()) {
        fail(with_dtype!(dtype, unseen_keys(&case, place)))?;
    }

    #[test]
    fn a_nan_in_a_query_stays_in_its_row((case, dtype, place) in case_and_place()) {
        fail(with_dtype!(dtype, nan_in_q(&case, place)))?;
    }

    #[test]
    fn a_sequence_gives_the_same_bits_alone((case, dtype, _) in case_and_place()) {
        fail(with_dtype!(dtype, alone(&case)))?;
    }

    #[test]
    fn the_number_of_threads_changes_no_bit((case, dtype, _) in case_and_place()) {
        fail(with_dtype!(dtype, threads(&case)))?;
    }
}

/// Calls `expected` for every row with its sequence, index and query head; it says whether each element and lse must be
/// NaN or else stay as they were.
fn compare(
    case: &Case,
    before: &[Rows],
    after: &[Rows],
    expected: impl Fn(usize, usize, usize) -> (NanIn, bool),
) -> Result<(), String> {
    let (heads, d) = (case.heads_q(), case.head_dim);
    for (b, (before, after)) in before.iter().zip(after).enumerate() {
        for i in 0..case.sequences[b].q {
            for head in 0..heads {
                let (out_nan, lse_nan) = expected(b, i, head);
                let fits = |nan: bool, before: u32, after: u32| match nan {
                    true => f32::from_bits(after).is_nan(),
                    false => before == after,
                };
                let place = || format!("sequence {b}, row {i}, head {head}");
                let at = (i * heads + head) * d;
                for c in 0..d {
                    let nan = match out_nan {
                        NanIn::None => false,
                        NanIn::Element(element) => element == c,
                        NanIn::All => true,
                    };
                    if !fits(nan, before.out[at + c], after.out[at + c]) {
                        let [before, after] =
                            [before, after].map(|rows| f32::from_bits(rows.out[at + c]));
                        let want = if nan { "NaN" } else { "no change" };
                        return Err(format!(
                            "{}: out[{c}] from {before} to {after}, expected {want}",
                            place()
                        ));
                    }
                }
                let at = head * case.sequences[b].q + i;
                if !fits(lse_nan, before.lse[at], after.lse[at]) {
                    return Err(format!(
                        "{}: lse became {}",
                        place(),
                        f32::from_bits(after.lse[at])
                    ));
                }
            }
        }
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum NanIn {
    None,
    Element(usize),
    All,
}

/// Without shared memory, so that a poisoned row is one row.
fn without_broadcast(case: &Case) -> Case {
    let mut case = case.clone();
    for memory in &mut case.memory {
        memory.broadcast = [false; 3];
    }
    case
}

/// The sequence, key and key head at `place`, if there is such a key.
fn key(case: &Case, place: [f64; 5]) -> Option<(usize, usize, usize)> {
    let b = pick(place[0], case.sequences.len());
    let Lengths { k, leftpad, .. } = case.sequences[b];
    (k > leftpad).then(|| {
        (
            b,
            leftpad + pick(place[2], k - leftpad),
            pick(place[3], case.heads_k),
        )
    })
}

fn poison<T: Element>(tensor: &mut Tensor<T>, [b, row]: [usize; 2], head: usize, c: usize) {
    let at = tensor.at([b, row, head]) + c;
    tensor.data[at] = T::from_f32(f32::NAN);
}

fn nan_in_k<T: Element>(case: &Case, place: [f64; 5]) -> Result<(), String> {
    let case = &without_broadcast(case);
    let Some((b, j, head_k)) = key(case, place) else {
        return Ok(());
    };
    let mut laid_out: LaidOut<T> = case.lay_out();
    let before = laid_out.attend_into()?;
    let row = laid_out.row_k(b, j);
    poison(&mut laid_out.k, row, head_k, pick(place[4], case.head_dim));
    compare(
        case,
        &before,
        &laid_out.attend_into()?,
        |at, i, head| match at == b && head / case.group == head_k && case.sees(b, i, j) {
            true => (NanIn::All, true),
            false => (NanIn::None, false),
        },
    )
}

fn nan_in_v<T: Element>(case: &Case, place: [f64; 5]) -> Result<(), String> {
    let case = &without_broadcast(case);
    let Some((b, j, head_k)) = key(case, place) else {
        return Ok(());
    };
    let mut laid_out: LaidOut<T> = case.lay_out();
    let before = laid_out.attend_into()?;
    let (row, c) = (laid_out.row_k(b, j), pick(place[4], case.head_dim));
    poison(&mut laid_out.v, row, head_k, c);
    compare(
        case,
        &before,
        &laid_out.attend_into()?,
        |at, i, head| match at == b && head / case.group == head_k && case.sees(b, i, j) {
            true => (NanIn::Element(c), false),
            false => (NanIn::None, false),
        },
    )
}

fn unseen_keys<T: Element>(case: &Case, place: [f64; 5]) -> Result<(), String> {
    let case = &without_broadcast(case);
    let b = pick(place[0], case.sequences.len());
    let Lengths { q, k, .. } = case.sequences[b];
    if q == 0 {
        return Ok(());
    }
    let i = pick(place[1], q);
    let mut laid_out: LaidOut<T> = case.lay_out();
    let before = laid_out.attend_into()?;
    for j in (0..k).filter(|&j| !case.sees(b, i, j)) {
        let row = laid_out.row_k(b, j);
        for head in 0..case.heads_k {
            for c in 0..case.head_dim {
                poison(&mut laid_out.k, row, head, c);
                poison(&mut laid_out.v, row, head, c);
            }
        }
    }
    let after = laid_out.attend_into()?;
    let (heads, d) = (case.heads_q(), case.head_dim);
    let out = |rows: &[Rows]| rows[b].out[i * heads * d..][..heads * d].to_vec();
    let lse = |rows: &[Rows]| -> Vec<u32> { (0..heads).map(|h| rows[b].lse[h * q + i]).collect() };
    match out(&before) == out(&after) && lse(&before) == lse(&after) {
        true => Ok(()),
        false => Err(format!(
            "sequence {b}, row {i} changed with keys it does not see"
        )),
    }
}

fn nan_in_q<T: Element>(case: &Case, place: [f64; 5]) -> Result<(), String> {
    let case = &without_broadcast(case);
    let b = pick(place[0], case.sequences.len());
    let Lengths { q, k, .. } = case.sequences[b];
    if q == 0 {
        return Ok(());
    }
    let (i, head) = (pick(place[1], q), pick(place[3], case.heads_q()));
    let mut laid_out: LaidOut<T> = case.lay_out();
    let before = laid_out.attend_into()?;
    let row = laid_out.row_q(b, i);
    poison(&mut laid_out.q, row, head, pick(place[4], case.head_dim));
    let sees_any = (0..k).any(|j| case.sees(b, i, j));
    compare(
        case,
        &before,
        &laid_out.attend_into()?,
        |at, row, of| match sees_any && (at, row, of) == (b, i, head) {
            true => (NanIn::All, true),
            false => (NanIn::None, false),
        },
    )
}

fn alone<T: Element>(case: &Case) -> Result<(), String> {
    let laid_out: LaidOut<T> = case.lay_out();
    let together = laid_out.attend_into()?;
    for (b, rows) in together.iter().enumerate() {
        // Left padding moves the keys within their tiles; that may change the last bit.
        if case.sequences[b].leftpad == 0 && laid_out.attend_alone(b)? != *rows {
            return Err(format!("sequence {b} differs from the same alone"));
        }
    }
    Ok(())
}

fn threads<T: Element>(case: &Case) -> Result<(), String> {
    let laid_out: LaidOut<T> = case.lay_out();
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.expect("threads start")
            .install(|| laid_out.attend_into())
    };
    let one = with(1)?;
    for n in [2, 5] {
        if with(n)? != one {
            return Err(format!("{n} threads differ from one"));
        }
    }
    Ok(())
}

/// Pairs of seqlen_q and seqlen_k from the tests of FlashAttention-2, FlashAttention-3 and 4, and FlashInfer.
#[rustfmt::skip]
const PEER_SHAPES: &[(usize, usize)] = &[
    // FlashAttention-2, test_flash_attn.py: output, split KV and KV cache.
    (113, 203), (128, 217), (113, 211), (108, 256), (256, 512), (512, 256), (1024, 1024), (1023, 1024),
    (1024, 1023), (2048, 2048), (1, 147), (3, 1024), (1, 339), (64, 800), (3, 799), (64, 2048), (16, 20_000),
    (16, 100_000), (128, 128), (256, 256), (1024, 3), (339, 1), (800, 64), (799, 3), (2048, 64),
    (20_000, 16), (100_000, 16),
    (1, 128), (64, 256), (1, 128 * 1024), (16, 128 * 1024),
    (97, 97), (200, 200), (384, 384), (768, 768), (1025, 1025),
    // FlashAttention-3 and 4.
    (1, 1), (64, 128), (128, 192), (239, 1), (384, 256), (640, 128), (4096, 4096), (4224, 4224),
    // FlashInfer, test_alibi.py.
    (1, 9), (1, 81), (1, 729), (17, 17), (17, 81), (81, 81), (17, 987), (81, 987), (987, 987), (1, 987),
];

#[test]
fn shapes_that_peers_test() {
    // FlashAttention-2's head dimensions, of those that are multiples of 8.
    let head_dims = [32, 40, 64, 80, 96, 128, 160, 192, 224, 256];
    let layers: [fn(Case) -> Case; 6] = [
        |case| case,
        |case| Case {
            mask: Mask::Bidirectional,
            slopes: SlopeKind::PerSequence(0.3),
            ..case
        },
        |case| Case {
            window: (Some(57), None),
            ..case
        },
        |case| Case {
            mask: Mask::Bidirectional,
            window: (Some(33), Some(20)),
            slopes: SlopeKind::PerHead(0.3),
            ..case
        },
        |case| Case {
            softcap: Some(50.0),
            amplitude: 5.0,
            ..case
        },
        |case| Case {
            mask: Mask::Bidirectional,
            softcap: Some(3.0),
            slopes: SlopeKind::Zero,
            ..case
        },
    ];
    let mut turn = 0;
    for &(q, k) in PEER_SHAPES {
        for (layer, of) in layers.iter().enumerate() {
            // Large shapes take one layer each: what varies there is only how many tiles there are.
            if q * k > 20_000 && layer != turn % layers.len() {
                continue;
            }
            let (heads, head_dim) = match q * k {
                0..20_000 => (
                    [(2, 2), (4, 2), (3, 1)][turn % 3],
                    head_dims[turn % head_dims.len()],
                ),
                20_000..1_000_000 => ((2, 1), head_dims[turn % head_dims.len()]),
                _ => ((1, 1), 32),
            };
            let case = of(Case {
                seed: turn as u64,
                ..Case::dense(1, q, k, heads, head_dim)
            });
            let dtype = DTYPES[(turn + layer) % 3];
            let result = with_dtype!(dtype, check(&case));
            expect(&case, result.map_err(|why| format!("{dtype:?}: {why}")));
            if q * k <= 20_000 {
                continue;
            }
            turn += 1;
            break;
        }
        turn += 1;
    }
}

#[test]
fn variable_lengths_that_peers_test() {
    // FlashAttention-4, test_score_mod_varlen.py: single tokens among longer sequences, and one that is far longer.
    let lists: [&[(usize, usize)]; 5] = [
        &[(1, 1), (1, 1), (1, 1)],
        &[(1, 300), (17, 17), (1, 1), (128, 129), (64, 256)],
        &[(0, 0), (5, 0), (0, 5), (7, 7), (0, 0)],
        &[(2, 40_000), (1, 3)],
        &[(33, 20), (0, 64), (65, 64), (1, 2)],
    ];
    for (turn, list) in lists.into_iter().enumerate() {
        let sequences = list.iter().map(|&(q, k)| Lengths {
            q,
            k,
            ..Lengths::default()
        });
        let case = Case {
            sequences: sequences.collect(),
            packed: true,
            slopes: SlopeKind::PerSequence(0.3),
            ..Case::dense(0, 0, 0, (4, 2), 64 + 16 * turn)
        };
        check_all(&case);
        check_all(&Case {
            mask: Mask::Bidirectional,
            ..case
        });
    }
}

#[test]
fn decoding_a_few_tokens() {
    for (turn, k) in [
        1, 2, 7, 16, 17, 63, 64, 65, 129, 511, 1000, 2049, 4097, 5000,
    ]
    .into_iter()
    .enumerate()
    {
        for q in [1, 2, 3, 8, 16] {
            let heads = [(8, 1), (2, 2), (8, 2)][(turn + q) % 3];
            let case = Case {
                seed: turn as u64,
                ..Case::dense(1 + turn % 2, q, k, heads, [64, 128, 80][turn % 3])
            };
            let dtype = DTYPES[(turn + q) % 3];
            let result = with_dtype!(dtype, check(&case));
            expect(&case, result.map_err(|why| format!("{dtype:?}: {why}")));
        }
    }
}

#[test]
fn head_counts_of_real_models() {
    // Falcon-7B has 71 heads on one key head, Baichuan-13B 40, BLOOM-176B 112, MPT-30B 64.
    for (heads, head_dim) in [
        ((71, 1), 64),
        ((40, 40), 128),
        ((112, 112), 128),
        ((64, 64), 112),
    ] {
        check_all(&Case::dense(1, 5, 70, heads, head_dim));
    }
}

#[test]
fn every_head_dim() {
    for head_dim in (8..=256).step_by(8) {
        check_all(&Case::dense(1, 19, 37, (2, 1), head_dim));
    }
}

#[test]
fn single_tokens() {
    for mask in [Mask::Causal, Mask::Bidirectional] {
        check_all(&Case {
            mask,
            ..Case::dense(3, 1, 1, (4, 2), 64)
        });
    }
    // One key has all the weight: out is its value, to the bit, and lse its score.
    let laid_out = Case::dense(1, 1, 1, (1, 1), 8).lay_out::<bf16>();
    let rows = laid_out.attend_into().unwrap();
    let at = laid_out.v.at([0, 0, 0]);
    let value: Vec<u32> = laid_out.v.data[at..][..8]
        .iter()
        .map(|x| x.to_f32().to_bits())
        .collect();
    assert_eq!(rows[0].out, value);
}

#[test]
fn rows_that_see_no_key_are_zero_with_an_lse_of_minus_infinity() {
    let masked = |q, k, used, leftpad, window| Case {
        sequences: vec![Lengths {
            q,
            k: used,
            leftpad,
            unused: k - used,
        }],
        window,
        ..Case::dense(1, 0, 0, (4, 2), 64)
    };
    let cases = [
        // More queries than keys: the first ones stand before key 0.
        masked(100, 37, 37, 0, (None, None)),
        // No keys at all, or none in use, or all of them padding.
        masked(5, 0, 0, 0, (None, None)),
        masked(5, 9, 0, 0, (None, None)),
        masked(5, 9, 9, 9, (None, None)),
        // The padding covers the whole window of the first rows.
        masked(80, 80, 80, 70, (Some(3), None)),
    ];
    for case in cases {
        check_all(&case);
        let rows = case.lay_out::<f16>().attend_into().unwrap();
        let Lengths { q, k, .. } = case.sequences[0];
        let mut blind = 0;
        for i in (0..q).filter(|&i| !(0..k).any(|j| case.sees(0, i, j))) {
            blind += 1;
            for head in 0..4 {
                assert_eq!(f32::from_bits(rows[0].lse[head * q + i]), f32::NEG_INFINITY);
                // Positive zero, to the bit.
                assert!(
                    rows[0].out[(i * 4 + head) * 64..][..64]
                        .iter()
                        .all(|&x| x == 0)
                );
            }
        }
        assert!(blind > 0, "every row of {case:?} sees a key");
    }
    // A window that ends before the first key, seen from rows that stand before it.
    check_all(&Case {
        mask: Mask::Bidirectional,
        window: (Some(2), Some(1)),
        ..Case::dense(2, 40, 10, (2, 1), 32)
    });
}

#[test]
fn nothing_to_do() {
    for (batch, q, k) in [(0, 5, 5), (2, 0, 5), (2, 0, 0), (0, 0, 0)] {
        check_all(&Case::dense(batch, q, k, (4, 2), 64));
        let attention = Case::dense(1, 1, 1, (4, 2), 64).attention();
        let k_data = vec![0f32; batch * k * 2 * 64];
        let view = || View::new(&k_data, &[batch, k, 2, 64]).unwrap();
        let inputs = Inputs::new(View::new(&[], &[batch, q, 4, 64]).unwrap(), view(), view());
        let output = cpu::attend(&attention, &inputs).unwrap();
        assert!(output.out.is_empty() && output.lse.is_empty());
    }
    // Packed: no sequences, only rows that belong to none.
    check_all(&Case {
        packed: true,
        ..Case::dense(0, 0, 0, (4, 2), 64)
    });
}

#[test]
fn large_and_equal_scores() {
    let case = Case::dense(1, 40, 200, (4, 2), 128);
    // Scores of up to some hundred: without the running maximum, exp would overflow. With larger ones it would be luck whether
    // `low`, twice whose error is the limit in f32, rounds the scores of the largest weights well.
    check_all(&Case {
        amplitude: 60.0,
        ..case.clone()
    });
    // A bonus that grows with distance, up to e^900.
    check_all(&Case {
        slopes: SlopeKind::All(-4.5),
        ..case.clone()
    });
    check_all(&Case {
        amplitude: 0.0,
        ..case.clone()
    });
    check_all(&Case {
        scale: Some(0.0),
        slopes: SlopeKind::Zero,
        ..case.clone()
    });
    let mut equal_keys = case;
    equal_keys.memory[1].broadcast = [false, true, false];
    check_all(&equal_keys);
}

#[test]
fn equal_scores_give_the_mean() {
    // q = 0 and no bias: lse is ln(number of visible keys), out the mean of their values.
    let case = Case {
        amplitude: 0.0,
        slopes: SlopeKind::Zero,
        ..Case::dense(1, 130, 130, (1, 1), 8)
    };
    let laid_out = case.lay_out::<f32>();
    let rows = &laid_out.attend_into().unwrap()[0];
    for i in 0..130 {
        let lse = f32::from_bits(rows.lse[i]);
        assert!(
            (f64::from(lse) - ((i + 1) as f64).ln()).abs() < 1e-6,
            "row {i}: {lse}"
        );
        let sum: f64 = (0..=i)
            .map(|j| f64::from(laid_out.v.data[laid_out.v.at([0, j, 0])]))
            .sum();
        let out = f64::from(f32::from_bits(rows.out[i * 8]));
        assert!((out - sum / (i + 1) as f64).abs() < 1e-6, "row {i}: {out}");
    }
}

/// Keys around position 1,000,000 without the memory of a million rows: rows overlap, each one element after the one
/// before. `values` are those of V's buffer.
fn far<T: Element>(
    slope: f32,
    q: usize,
    left: usize,
    values: impl Iterator<Item = f32>,
) -> (cpu::Output<T>, oracle::Reference) {
    const KEYS: usize = 1_000_000;
    const D: usize = 64;
    let attention = Attention::new(1, 1, D)
        .slopes(Slopes::per_head(&[slope]))
        .window(Some(left), None)
        .build()
        .unwrap();
    fn data<T: Element>(values: impl Iterator<Item = f32>, n: usize) -> Vec<T> {
        values.map(T::from_f32).take(n).collect()
    }
    let q_data: Vec<T> = data(normal(3, 0, [0; 4]), q * D);
    let k_data: Vec<T> = data(normal(3, 1, [0; 4]), KEYS + D);
    let v_data: Vec<T> = data(values, KEYS + D);
    let rows = |data| View::strided(data, &[1, KEYS, 1, D], &[0, 1, 0, 1]).unwrap();
    let inputs = Inputs::new(
        View::new(&q_data, &[1, q, 1, D]).unwrap(),
        rows(&k_data),
        rows(&v_data),
    );
    (
        cpu::attend(&attention, &inputs).unwrap(),
        oracle::attend(&attention, &inputs).unwrap(),
    )
}

#[test]
fn probabilities_are_exact_at_position_1_000_000() {
    // Row j of V is 1 at the one element c with (j + c) % 64 == 0: out holds the probabilities themselves, summed over
    // keys 64 apart.
    let one_hot = (0usize..).map(|n| if n.is_multiple_of(64) { 1.0 } else { 0.0 });
    // Products of a power of two with a position are exact in f32, which would hide a bias formed from positions.
    for slope in [0.5, 2f32.powi(-8), 0.5f32.sqrt()] {
        for (q, left) in [(1, 63), (3, 63), (70, 63), (1, 5000), (16, 2000)] {
            let (found, reference) = far::<f32>(slope, q, left, one_hot.clone());
            for (at, (&p, &exact)) in found.out.iter().zip(&reference.out).enumerate() {
                let error = (f64::from(p) - exact).abs() / exact;
                assert!(
                    error <= 1e-5,
                    "slope {slope}, {q} rows, element {at}: P = {p:e}, exact {exact:e}"
                );
            }
            for (&lse, &exact) in found.lse.iter().zip(&reference.lse) {
                assert!(
                    (f64::from(lse) - exact).abs() <= 1e-5,
                    "lse {lse}, exact {exact}"
                );
            }
        }
    }
}

#[test]
fn halves_are_accurate_at_position_1_000_000() {
    fn check<T: Element>() {
        let limit = flash_alibi_testing::accuracy::out_ratio_limit::<T>();
        for slope in [0.5, 2f32.powi(-8)] {
            for q in [1, 40] {
                let (found, reference) = far::<T>(slope, q, 700, normal(3, 2, [0; 4]));
                let max = reference.out.iter().fold(0f64, |max, x| max.max(x.abs()));
                for (&x, &exact) in found.out.iter().zip(&reference.out) {
                    assert!((f64::from(x.to_f32()) - exact).abs() <= limit * max);
                }
                for (&lse, &exact) in found.lse.iter().zip(&reference.lse) {
                    assert!(
                        (f64::from(lse) - exact).abs() <= 1e-5,
                        "lse {lse}, exact {exact}"
                    );
                }
            }
        }
    }
    check::<f16>();
    check::<bf16>();
}

#[test]
fn positions_beyond_32_bits() {
    // A stride of 0 makes as many rows as one likes. All scores are equal, so lse is theirs plus the bias's.
    let attention = Attention::new(2, 1, 8)
        .slopes(Slopes::per_head(&[0.5, 2f32.powi(-8)]))
        .window(Some(100), None)
        .build()
        .unwrap();
    let row = [0.5f32; 8];
    let keys = || View::strided(&row, &[1, 1 << 33, 1, 8], &[0, 0, 0, 1]).unwrap();
    let q = View::strided(&row, &[1, 3, 2, 8], &[0, 0, 0, 1]).unwrap();
    let found = cpu::attend(&attention, &Inputs::new(q, keys(), keys())).unwrap();
    let score = f64::from(attention.scale()) * 2.0;
    for (at, &lse) in found.lse.iter().enumerate() {
        let slope = f64::from(attention.slopes().get(0, at / 3));
        let sum: f64 = (0..=100)
            .map(|distance| (-slope * f64::from(distance)).exp())
            .sum();
        assert!(
            (f64::from(lse) - score - sum.ln()).abs() < 1e-5,
            "lse {lse}"
        );
    }
    assert!(found.out.iter().all(|&x| (x - 0.5).abs() < 1e-6));
}

#[test]
fn long_inputs_give_the_same_bits_on_any_number_of_threads_and_alone() {
    // Long enough that an implementation has work to divide, over keys as well as over rows.
    for (lengths, heads) in [
        ([(1, 5000), (1, 4096), (1, 17)], (2, 1)),
        ([(3, 2500), (3, 64), (3, 3000)], (8, 2)),
        ([(700, 700), (1, 2000), (130, 900)], (2, 2)),
    ] {
        let sequences = lengths.map(|(q, k)| Lengths {
            q,
            k,
            ..Lengths::default()
        });
        for dtype in DTYPES {
            let case = Case {
                sequences: sequences.to_vec(),
                packed: true,
                ..Case::dense(0, 0, 0, heads, 64)
            };
            expect(&case, with_dtype!(dtype, threads(&case)));
            expect(&case, with_dtype!(dtype, alone(&case)));
        }
    }
}

#[test]
fn the_oracle_keeps_a_nan_beside_a_score_of_minus_infinity() {
    let attention = Attention::new(1, 1, 8).build().unwrap();
    let (q, v) = ([1f32; 16], [1f32; 16]);
    let mut k = [0f32; 16];
    (k[0], k[8]) = (f32::NAN, f32::NEG_INFINITY);
    let view = |data| View::new(data, &[1, 2, 1, 8]).unwrap();
    let found = oracle::attend(&attention, &Inputs::new(view(&q), view(&k), view(&v))).unwrap();
    assert!(found.lse.iter().all(|x| x.is_nan()), "{:?}", found.lse);
    assert!(found.out.iter().all(|x| x.is_nan()), "{:?}", found.out);
}
