//! Offsets in the kernels' PTX, executed on the CPU with every check on, against the f64 oracle.

use flash_alibi::plan::{Call, Device, Plan};
use flash_alibi::{Attention, Horizon, Mask};
use flash_alibi_testing::emulator::Planner;
use flash_alibi_testing::horizon::{Path, Probe};
use flash_alibi_testing::strategy::{case, config, fail};
use flash_alibi_testing::{Case, Lengths, SlopeKind, expect};
use half::{bf16, f16};
use proptest::prelude::*;

const FARTHEST: [i32; 6] = [i32::MIN, -1_000_000, -1 << 30, 1 << 30, 1_000_000, i32::MAX];

/// How much work the emulator may have in one random case.
const WORK: usize = 300_000;

fn in_parts(attention: &Attention, call: &Call, device: &Device) -> flash_alibi::Result<Plan> {
    Plan::decode_with_splits(attention, call, device, 3)
}

const PLANNERS: [(&str, &Planner); 3] = [
    ("prefill", &Plan::prefill),
    ("decode", &Plan::decode),
    ("in parts", &in_parts),
];

/// Before, among and behind the keys, for up to four sequences.
fn offsets() -> impl Strategy<Value = Vec<i32>> {
    let offset = prop_oneof![
        4 => -300i32..600,
        1 => prop::sample::select(&FARTHEST[..]),
    ];
    prop::collection::vec(offset, 4)
}

fn with_offsets(mut case: Case, mut offsets: Vec<i32>) -> Case {
    offsets.truncate(case.sequences.len());
    for (offset, sequence) in offsets.iter_mut().zip(&case.sequences) {
        // The oracle counts from the first key that is no padding.
        *offset = (*offset).max(i32::MIN + sequence.leftpad as i32);
    }
    case.offsets = Some(offsets);
    case
}

fn check(case: &Case, page_size: usize) -> Result<(), String> {
    let dense = case.lay_out::<f16>();
    let paged = case.lay_out_paged::<f16>(page_size);
    for (name, planner) in PLANNERS {
        let why = |why| format!("{name}: {why}");
        let rows = dense.attend_on_emulator(planner).map_err(why)?.0;
        dense.check(&rows).map_err(why)?;
        let why = |why| format!("{name}, in pages: {why}");
        let rows = paged.attend_on_emulator(planner).map_err(why)?.0;
        paged.dense.check(&rows).map_err(why)?;
    }
    Ok(())
}

proptest! {
    #![proptest_config(config(30))]

    /// All shapes, strides, lengths, windows and slopes that other random cases have.
    #[test]
    fn rows_stand_where_the_offset_says(case in case(WORK), offsets in offsets()) {
        fail(check(&with_offsets(case, offsets), 16))?;
    }
}

/// Windows that reach back to keys from far behind them, and from before them; whole blocks of rows and some that straddle
/// the ends.
#[test]
fn windows_follow_the_position() {
    for (mask, offset, left, right) in [
        (Mask::Causal, i32::MAX, Some(i32::MAX as usize - 100), None),
        (Mask::Causal, 1_000_000, Some(1_000_000 - 150), None),
        (Mask::Causal, 1_000_000, Some(1_000_000 - 300), None),
        (Mask::Bidirectional, i32::MIN, None, Some(1 << 31)),
        (Mask::Bidirectional, i32::MIN, None, Some((1 << 31) - 100)),
        (Mask::Bidirectional, -1_000_000, Some(5), Some(1_000_200)),
        (Mask::Bidirectional, 100, Some(90), Some(40)),
        (Mask::Bidirectional, -100, Some(0), Some(0)),
        (Mask::Causal, 100, Some(usize::MAX), None),
    ] {
        let case = Case {
            mask,
            window: (left, right),
            slopes: SlopeKind::PerHead(0.3),
            offsets: Some(vec![offset]),
            ..Case::dense(1, 270, 200, (4, 2), 24)
        };
        expect(&case, check(&case, 16));
    }
}

/// Slopes of any sign and padding on the left, in blocks that stand before, on and behind the keys.
#[test]
fn blocks_straddle_the_ends_of_the_keys() {
    for offset in [-290, -127, 5, 60, 149, 150, 300] {
        for slope in [-0.02, 0.5] {
            let mut case = Case {
                mask: Mask::Bidirectional,
                slopes: SlopeKind::All(slope),
                offsets: Some(vec![offset, offset + 7]),
                ..Case::dense(2, 140, 150, (2, 1), 64)
            };
            case.sequences[1].leftpad = 70;
            expect(&case, check(&case, 8));
        }
    }
}

/// As far from the keys as a float's bits do not say: the lse keeps to the contract, and the output to every bit.
#[test]
fn far_rows_keep_their_bits() {
    let at = |offset: i32, planner: &Planner| {
        let case = Case {
            mask: Mask::Bidirectional,
            slopes: SlopeKind::PerHead(1.0),
            offsets: Some(vec![offset]),
            ..Case::dense(1, 20, 300, (4, 2), 40)
        };
        let laid_out = case.lay_out::<bf16>();
        let rows = laid_out.attend_on_emulator(planner).unwrap().0;
        expect(&case, laid_out.check(&rows));
        rows.into_iter().next().unwrap()
    };
    for (name, planner) in PLANNERS {
        for (near, far) in [(400, i32::MAX), (-400, i32::MIN)] {
            let (near, far) = (at(near, planner), at(far, planner));
            assert_eq!(near.out, far.out, "{name}");
            assert_ne!(near.lse, far.lse, "{name}");
        }
    }
}

/// The offset of the alignment changes no bit.
#[test]
fn the_default_is_the_alignment() {
    let mut case = Case {
        window: (Some(100), Some(3)),
        mask: Mask::Bidirectional,
        ..Case::dense(2, 150, 260, (2, 1), 64)
    };
    case.sequences[1].k = 170;
    case.sequences[1].unused = 90;
    for (name, planner) in PLANNERS {
        let attend = |case: &Case| case.lay_out::<f16>().attend_on_emulator(planner).unwrap().0;
        let aligned = attend(&case);
        let offsets = Some(vec![110, 20]);
        let said = attend(&Case {
            offsets,
            ..case.clone()
        });
        assert!(aligned == said, "{name}");
    }
}

/// What the horizon leaves out weighs no more than it may, wherever rows stand; and it leaves out most.
fn horizon_follows(path: Path, seqlen_q: usize) {
    for mask in [Mask::Causal, Mask::Bidirectional] {
        for offset in [-700, 1200, 2450, 2600, i32::MAX] {
            for horizon in [
                Horizon::default(),
                Horizon::Certified { tolerance: 1e-3 },
                Horizon::Bitwise,
            ] {
                if path == Path::Decode && horizon == Horizon::Bitwise {
                    continue;
                }
                let lengths = Lengths {
                    q: seqlen_q,
                    k: 2500,
                    leftpad: 50,
                    unused: 0,
                };
                let case = Case {
                    mask,
                    slopes: SlopeKind::All(0.2),
                    horizon,
                    sequences: vec![lengths],
                    offsets: Some(vec![offset]),
                    ..Case::dense(1, seqlen_q, 2500, (2, 1), 64)
                };
                let mut probe = Probe::<f16>::new(path, case, 16);
                let seen = mask == Mask::Bidirectional || offset > 0;
                if !seen && path == Path::Decode {
                    // Nothing is copied, of which a part would say something.
                    continue;
                }
                let compared = probe.certified();
                // Prefill leaves out nothing of fewer than 2048 keys.
                let enough = mask == Mask::Bidirectional || offset > 2048;
                if seen && (enough || path == Path::Decode) {
                    assert!(compared.part < 0.5, "{offset}: {}", compared.part);
                }
                if horizon != (Horizon::Certified { tolerance: 1e-3 }) {
                    expect(&probe.case, probe.follow_the_oracle());
                }
            }
        }
    }
}

#[test]
fn the_horizon_of_prefill_follows_the_offset() {
    horizon_follows(Path::Prefill, 130);
}

#[test]
fn the_horizon_of_decode_follows_the_offset() {
    horizon_follows(Path::Decode, 2);
    horizon_follows(Path::Decode, 20);
}
