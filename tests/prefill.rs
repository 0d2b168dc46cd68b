//! The prefill kernel's PTX, executed on the CPU with every check on, against the f64 oracle. Some of the problems are the
//! decode kernels' too.

mod support;

use flash_alibi::cpu::oracle;
use flash_alibi::plan::{Addresses, Call, Dtype, Plan};
use flash_alibi::{Attention, Inputs, Layout, Mask, Slopes, View};
use half::{bf16, f16};
use proptest::prelude::*;
use ptx_emulator::{Class, DevicePtr, Line, Report};
use support::emulator::{Emulator, OnDevice, Planner, SMALLEST};
use support::strategy::{case, config, fail, pick};
use support::{Case, Lengths, Memory, Rows, SlopeKind, expect, random};

/// How much work the emulator may have in one random case.
const WORK: usize = 1_000_000;

fn check<T: OnDevice>(case: &Case) -> Result<(), String> {
    let laid_out = case.lay_out::<T>();
    let (rows, _) = laid_out.attend_on_emulator(&Plan::prefill)?;
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
        fail(not_finite(&case, place, value, &Plan::prefill))?;
        let parts = |attention: &_, call: &_, device: &_| Plan::decode_with_splits(attention, call, device, 2);
        let decoded = not_finite(&case, place, value, &parts);
        fail(decoded.map_err(|why| format!("decode: {why}")))?;
    }
}

/// Puts `value` into one element of V.
fn not_finite(case: &Case, place: [f64; 4], value: f32, planner: &Planner) -> Result<(), String> {
    let mut case = case.clone();
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
    let (before, _) = laid_out.attend_on_emulator(planner)?;
    let [entry, row] = laid_out.row_k(b, j);
    let at = laid_out.v.at([entry, row, head_k]) + c;
    laid_out.v.data[at] = bf16::from_f32(value);
    let (mut after, _) = laid_out.attend_on_emulator(planner)?;

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
    let (rows, _) = laid_out.attend_on_emulator(&Plan::prefill).unwrap();
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

/// Keys at position 1,000,000 and beyond, in a cache of 16 GB of which only the window's rows exist: a read elsewhere is a
/// fault, and offsets in q, k, v and out exceed 2^31 elements.
#[test]
fn probabilities_are_exact_at_position_1_000_000_and_offsets_exceed_32_bits() {
    const ROWS: usize = 3;
    const EXISTING: usize = 800;
    const HEAD_DIM: usize = 64;
    let (seqlen_k, stride_k, stride_q) = (1_000_100, 8192, 1 << 31);
    let slopes = [0.5, 2f32.powi(-8), 0.5f32.sqrt()];
    let heads = slopes.len();
    let values = |tag, rows: usize, heads: usize| -> Vec<f16> {
        let value = |i| f16::from_f32(random(5, tag, [i, 0, 0, 0]));
        (0..rows * heads * HEAD_DIM).map(value).collect()
    };
    let (q, k, v) = (
        values(0, ROWS, heads),
        values(1, EXISTING, 1),
        values(2, EXISTING, 1),
    );

    let emulator = Emulator::new(3);
    let memory = &emulator.memory;
    let layout = |rows: usize, heads: usize, stride: usize| {
        Layout::new(
            "tensor",
            &[1, rows, heads, HEAD_DIM],
            &[0, stride, HEAD_DIM, 1],
        )
        .unwrap()
    };
    let place = |layout: &Layout, data: &[f16]| {
        let buffer = memory.alloc(2 * layout.span() as u64).unwrap();
        let [_, rows, heads, _] = layout.shape()[..] else {
            unreachable!()
        };
        let first = rows - data.len() / (heads * HEAD_DIM);
        for (row, data) in data.chunks(heads * HEAD_DIM).enumerate() {
            let at = (first + row) * layout.strides()[1] * 2;
            memory
                .write_slice(DevicePtr(buffer.0 + at as u64), data)
                .unwrap();
        }
        buffer.0
    };
    let (layout_q, layout_k) = (layout(ROWS, heads, stride_q), layout(seqlen_k, 1, stride_k));
    let call = Call {
        dtype: Dtype::F16,
        q: layout_q,
        k: layout_k,
        v: layout_k,
        out: layout_q,
        packed: None,
        paged: None,
    };
    let lse = memory.alloc((heads * ROWS * 4) as u64).unwrap();
    let addresses = Addresses {
        q: place(&layout_q, &q),
        k: place(&layout_k, &k),
        v: place(&layout_k, &v),
        out: place(&layout_q, &[]),
        lse: lse.0,
        slopes: memory.upload(&slopes).unwrap().0,
        ..Addresses::default()
    };

    // exp(lse) of a window is the sum of its weights, so two windows that differ by a key give the key's: in f32, where out
    // is rounded to f16.
    let lse_of = |planner: &Planner, window: usize| -> Vec<(f64, f64)> {
        let attention = Attention::new(heads, 1, HEAD_DIM)
            .slopes(Slopes::per_head(&slopes))
            .window(Some(window), None)
            .build()
            .unwrap();
        let plan = planner(&attention, &call, &SMALLEST).unwrap();
        let workspace = memory.alloc(plan.workspace_bytes()).unwrap().0;
        let addresses = Addresses {
            workspace,
            ..addresses
        };
        // SAFETY: the emulator checks every access itself.
        unsafe { plan.run(&emulator, &addresses) }.unwrap();
        let found: Vec<f32> = memory.download(lse, heads * ROWS).unwrap();

        let view =
            |data, rows: usize, heads: usize| View::new(data, &[1, rows, heads, HEAD_DIM]).unwrap();
        let inputs = Inputs::new(
            view(&q, ROWS, heads),
            view(&k, EXISTING, 1),
            view(&v, EXISTING, 1),
        );
        let exact = oracle::attend(&attention, &inputs).unwrap();
        for (row, exact) in exact.out.chunks(heads * HEAD_DIM).enumerate() {
            let at = DevicePtr(addresses.out + (row * stride_q * 2) as u64);
            let out: Vec<f16> = memory.download(at, exact.len()).unwrap();
            for (x, exact) in out.iter().zip(exact) {
                assert!(
                    (x.to_f64() - exact).abs() <= 4e-3,
                    "row {row}: {x}, exact {exact}"
                );
            }
        }
        found
            .iter()
            .zip(exact.lse)
            .map(|(&x, exact)| (x.into(), exact))
            .collect()
    };
    let decode =
        |attention: &_, call: &_, device: &_| Plan::decode_with_splits(attention, call, device, 3);
    for planner in [&Plan::prefill as &Planner, &decode] {
        let all = lse_of(planner, 700);
        for distance in [1, 2, 7, 31, 63, 64, 65, 127, 128, 300] {
            let (with, without) = (lse_of(planner, distance), lse_of(planner, distance - 1));
            for (row, ((with, without), all)) in with.iter().zip(&without).zip(&all).enumerate() {
                let p = (with.0 - all.0).exp() - (without.0 - all.0).exp();
                let exact = (with.1 - all.1).exp() - (without.1 - all.1).exp();
                let error = (p - exact).abs();
                assert!(
                    error <= 1e-5,
                    "row {row}, distance {distance}: P = {p:e}, exact {exact:e}"
                );
            }
        }
    }
}

/// What a warp executes for each tile that all of its rows see, where the maximum does not move.
#[test]
fn the_bias_costs_one_multiply_add_a_score() {
    const TILES: usize = 4;
    for (head_dim, keys) in [(64, 128), (128, 64)] {
        let report = |k| {
            let case = Case {
                slopes: SlopeKind::All(1.0),
                ..Case::dense(1, 128, k, (1, 1), head_dim)
            };
            let attended = case.lay_out::<bf16>().attend_on_emulator(&Plan::prefill);
            attended.unwrap().1.remove(0)
        };
        let (few, many) = (report(1024), report(1024 + TILES * keys));
        // Of a warp in a tile. Moves are where paths of the program meet; ptxas leaves none of them.
        let each = |of: &dyn Fn(&Line) -> bool| -> u64 {
            let sum = |report: &Report| -> u64 {
                let lines = report.lines.iter();
                let lines = lines.filter(|line| line.class != Class::Move && of(line));
                lines.map(|line| line.counters.warp_instructions).sum()
            };
            (sum(&many) - sum(&few)) / (4 * TILES as u64)
        };
        let of_class = |class| each(&|line| line.class == class);
        let all = each(&|_| true);
        let bias = each(&|line| {
            let source = line.source.as_deref().unwrap_or_default();
            source.contains("alibi.cuh")
        });
        let scores = keys as u64; // Of a lane: 32 rows in 32 lanes.
        println!(
            "d{head_dim}, {keys} keys: {all} PTX instructions a tile with ALiBi, {} without",
            all - bias
        );
        for class in Class::ALL {
            println!("    {class:?}: {}", of_class(class));
        }
        assert!(bias <= scores + 32, "{bias} for {scores} scores");
        // S = Q K^T and O += P V for 32 rows, in products of 16 x 8 x 16.
        let products = 2 * (32 * keys * head_dim) / (16 * 8 * 16);
        assert_eq!(of_class(Class::Tensor), products as u64);
        // The powers of two, and one that shrinks each row.
        assert_eq!(of_class(Class::Special), scores + 4);
        // Bias, maximum, exponent and sum; and what each row takes.
        assert!(of_class(Class::F32) <= 4 * scores + 60);
    }
}

#[test]
fn no_head_dim_has_bank_conflicts() {
    for head_dim in (8..=256).step_by(8) {
        let case = Case::dense(1, 128, 128, (1, 1), head_dim);
        let report = case
            .lay_out::<f16>()
            .attend_on_emulator(&Plan::prefill)
            .unwrap()
            .1
            .remove(0);
        assert_eq!(
            report.total().bank_conflicts,
            0,
            "head_dim {head_dim}: {report}"
        );
    }
}
