//! The prefill kernel's PTX, executed on the CPU with every check on, against the f64 oracle.

mod support;

use flash_alibi::Mask;
use half::{bf16, f16};
use proptest::prelude::*;
use support::emulator::OnDevice;
use support::strategy::{case, config, fail, pick};
use support::{Case, Lengths, Memory, Rows, SlopeKind, expect};

/// How much work the emulator may have in one random case.
const WORK: usize = 1_000_000;

fn check<T: OnDevice>(case: &Case) -> Result<(), String> {
    let laid_out = case.lay_out::<T>();
    let (rows, _) = laid_out.attend_on_emulator()?;
    laid_out.check(&rows)
}

#[track_caller]
fn check_both(case: &Case) {
    expect(
        case,
        check::<f16>(case).map_err(|why| format!("f16: {why}")),
    );
    expect(
        case,
        check::<bf16>(case).map_err(|why| format!("bf16: {why}")),
    );
}

proptest! {
    #![proptest_config(config(60))]

    #[test]
    fn f16_follows_the_oracle(case in case(WORK)) {
        fail(check::<f16>(&case))?;
    }

    #[test]
    fn bf16_follows_the_oracle(case in case(WORK)) {
        fail(check::<bf16>(&case))?;
    }

    #[test]
    fn a_value_that_is_not_finite_reaches_the_rows_that_see_it_and_no_other(
        case in case(WORK / 4),
        place in [0.0..1.0, 0.0..1.0, 0.0..1.0, 0.0..1.0],
        value in prop::sample::select(vec![f32::NAN, f32::INFINITY]),
    ) {
        fail(not_finite(case, place, value))?;
    }
}

/// Puts `value` into one element of V.
fn not_finite(mut case: Case, place: [f64; 4], value: f32) -> Result<(), String> {
    for memory in &mut case.memory {
        memory.broadcast = [false; 3];
    }
    let b = pick(place[0], case.sequences.len());
    let Lengths { q, k, leftpad, .. } = case.sequences[b];
    if k <= leftpad {
        return Ok(());
    }
    let (j, head_k) = (
        leftpad + pick(place[1], k - leftpad),
        pick(place[2], case.heads_k),
    );
    let c = pick(place[3], case.head_dim);
    let mut laid_out = case.lay_out::<bf16>();
    let (before, _) = laid_out.attend_on_emulator()?;
    let [entry, row] = laid_out.row_k(b, j);
    let at = laid_out.v.at([entry, row, head_k]) + c;
    laid_out.v.data[at] = bf16::from_f32(value);
    let (mut after, _) = laid_out.attend_on_emulator()?;

    // What must not be finite is looked at here, and what is left compared as ever.
    let heads = case.heads_q();
    for i in 0..q {
        for head in (0..heads).filter(|head| head / case.group == head_k) {
            let at = (i * heads + head) * case.head_dim + c;
            let (was, is) = (before[b].out[at], after[b].out[at]);
            let finite = f32::from_bits(is).is_finite();
            match case.sees(b, i, j) {
                // A weight may be too small for f32: then it is zero, and what it multiplies is lost, or NaN.
                true if !finite || is == was => after[b].out[at] = was,
                false if finite => {}
                sees => return Err(format!("row {i}, head {head}: {is:#x}, and sees: {sees}")),
            }
        }
    }
    laid_out.check(&after)
}

#[test]
fn head_dims() {
    for head_dim in (8..=256).step_by(8) {
        check_both(&Case::dense(1, 67, 131, (2, 1), head_dim));
    }
}

/// Rows and keys beside the edges of blocks and tiles.
#[test]
fn edges_of_tiles() {
    for q in [1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 255, 257] {
        for k in [1, 63, 64, 65, 127, 128, 129, 192, 257] {
            let case = Case::dense(1, q, k, (1, 1), 64);
            check_both(&case);
            check_both(&Case {
                mask: Mask::Bidirectional,
                head_dim: 80,
                ..case
            });
        }
    }
}

#[test]
fn shapes_that_peers_test() {
    // FlashAttention-2's, 3's and 4's and FlashInfer's, of those that take the emulator no more than seconds.
    let shapes = [
        (113, 203),
        (128, 217),
        (113, 211),
        (108, 256),
        (256, 512),
        (512, 256),
        (1, 147),
        (3, 1024),
        (1, 339),
        (64, 800),
        (3, 799),
        (64, 2048),
        (16, 20_000),
        (128, 128),
        (256, 256),
        (1024, 3),
        (339, 1),
        (800, 64),
        (97, 97),
        (200, 200),
        (384, 384),
        (1, 1),
        (64, 128),
        (128, 192),
        (239, 1),
        (384, 256),
        (1, 9),
        (1, 81),
        (1, 729),
        (17, 17),
        (17, 81),
        (81, 81),
        (17, 987),
        (81, 987),
    ];
    for (turn, (q, k)) in shapes.into_iter().enumerate() {
        let case = Case {
            seed: turn as u64,
            ..Case::dense(
                1,
                q,
                k,
                [(2, 2), (4, 2), (3, 1)][turn % 3],
                [64, 128, 96, 40][turn % 4],
            )
        };
        let case = match turn % 5 {
            0 => case,
            1 => Case {
                mask: Mask::Bidirectional,
                slopes: SlopeKind::PerSequence(0.3),
                ..case
            },
            2 => Case {
                window: (Some(57), None),
                ..case
            },
            3 => Case {
                mask: Mask::Bidirectional,
                window: (Some(33), Some(20)),
                slopes: SlopeKind::PerHead(0.3),
                ..case
            },
            _ => Case {
                softcap: Some(50.0),
                amplitude: 5.0,
                ..case
            },
        };
        check_both(&case);
    }
}

#[test]
fn variable_lengths_with_empty_sequences_and_padding() {
    let sequence = |q, k, leftpad, unused| Lengths {
        q,
        k,
        leftpad,
        unused,
    };
    let lists = [
        vec![
            sequence(1, 1, 0, 0),
            sequence(130, 130, 0, 0),
            sequence(1, 300, 0, 0),
        ],
        vec![
            sequence(0, 0, 0, 0),
            sequence(5, 0, 0, 9),
            sequence(0, 5, 0, 0),
            sequence(200, 70, 3, 5),
        ],
        vec![
            sequence(33, 20, 0, 0),
            sequence(65, 64, 64, 0),
            sequence(129, 257, 130, 1),
        ],
    ];
    for sequences in lists {
        let case = Case {
            sequences,
            packed: true,
            slopes: SlopeKind::PerSequence(0.3),
            ..Case::dense(0, 0, 0, (4, 2), 64)
        };
        check_both(&case);
        check_both(&Case {
            mask: Mask::Bidirectional,
            ..case
        });
    }
}

/// Buffers that are not aligned to 16 bytes, and rows that are not.
#[test]
fn unaligned_tensors() {
    for (offset, gaps) in [(1, [0, 0, 0]), (0, [0, 1, 0]), (8, [3, 0, 5])] {
        let memory = Memory {
            order: 4,
            gaps,
            offset,
            ..Memory::default()
        };
        check_both(&Case {
            memory: [memory; 4],
            ..Case::dense(2, 70, 150, (4, 2), 72)
        });
    }
}

#[test]
fn scales_of_any_sign_and_size() {
    for scale in [0.0, -0.0, -0.125, 1e-20, -1e-35, 4.0] {
        check_both(&Case {
            scale: Some(scale),
            ..Case::dense(1, 70, 140, (2, 2), 64)
        });
    }
    // An infinite element of a query counts, whatever the scale.
    let case = Case {
        scale: Some(0.0),
        ..Case::dense(1, 1, 3, (1, 1), 8)
    };
    let mut laid_out = case.lay_out::<f16>();
    let at = laid_out.q.at([0, 0, 0]);
    laid_out.q.data[at] = f16::INFINITY;
    let (rows, _) = laid_out.attend_on_emulator().unwrap();
    assert!(
        rows.iter()
            .all(|Rows { out, .. }| out.iter().all(|&x| f32::from_bits(x).is_nan()))
    );
}

#[test]
fn softcaps_from_tight_to_loose() {
    for softcap in [0.01, 1.0, 30.0, 1000.0] {
        check_both(&Case {
            softcap: Some(softcap),
            amplitude: 3.0,
            ..Case::dense(1, 70, 140, (2, 2), 64)
        });
    }
}
