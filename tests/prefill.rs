//! The prefill kernel's PTX, executed on the CPU with every check on, against the f64 oracle. Some of the problems are the
//! decode kernels' too.

use flash_alibi::cpu::oracle;
use flash_alibi::plan::{Addresses, Call, Dtype, Plan};
use flash_alibi::{Attention, Horizon, Inputs, Layout, Slopes, View};
use flash_alibi_testing::emulator::{Emulator, OnEmulator, Planner, SMALLEST};
use flash_alibi_testing::horizon::copied;
use flash_alibi_testing::strategy::{case_with_offsets, config, fail};
use flash_alibi_testing::{Case, LaidOut, Rows, SlopeKind, expect, matrix, normal};
use half::{bf16, f16};
use proptest::prelude::*;
use ptx_emulator::{Class, DevicePtr, Line, Report};

/// How much work the emulator may have in one random case.
const WORK: usize = 1_000_000;

fn check<T: OnEmulator>(case: &Case) -> Result<(), String> {
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
    fn f16_follows_the_oracle(case in case_with_offsets(WORK)) {
        fail(check::<f16>(&case))?;
    }

    #[test]
    fn bf16_follows_the_oracle(case in case_with_offsets(WORK)) {
        fail(check::<bf16>(&case))?;
    }

    #[test]
    fn a_value_that_is_not_finite_reaches_the_rows_that_see_it_and_no_other(
        case in case_with_offsets(WORK / 4),
        place in [0.0..1.0, 0.0..1.0, 0.0..1.0, 0.0..1.0],
        value in prop::sample::select(vec![f32::NAN, f32::INFINITY]),
    ) {
        let parts = |attention: &_, call: &_, device: &_| Plan::decode_with_splits(attention, call, device, 2);
        for planner in [&Plan::prefill as &Planner, &parts] {
            let attend = |laid_out: &LaidOut<_>| Ok(laid_out.attend_on_emulator(planner)?.0);
            fail(matrix::not_finite(case.clone(), place, value, attend))?;
        }
    }
}

#[test]
fn head_dims() {
    matrix::head_dims().iter().for_each(check_both);
}

#[test]
fn edges_of_tiles() {
    matrix::edges_of_tiles().iter().for_each(check_both);
}

#[test]
fn shapes_that_peers_test() {
    matrix::shapes_that_peers_test().iter().for_each(check_both);
}

#[test]
fn variable_lengths_with_empty_sequences_and_padding() {
    matrix::variable_lengths().iter().for_each(check_both);
}

#[test]
fn unaligned_tensors() {
    matrix::unaligned_tensors().iter().for_each(check_both);
}

#[test]
fn scales_of_any_sign_and_size() {
    matrix::scales().iter().for_each(check_both);
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
    matrix::softcaps().iter().for_each(check_both);
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
        let numbers = normal(5, tag, [0; 4]).map(f16::from_f32);
        numbers.take(rows * heads * HEAD_DIM).collect()
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
fn the_bias_costs_half_a_multiplication_a_score() {
    const TILES: usize = 4;
    for (head_dim, keys) in [(64, 64), (128, 64)] {
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
        // The sums of each column begin with it, for all blocks of rows.
        assert!(bias <= scores / 2 + 8, "{bias} for {scores} scores");
        // S = Q K^T and O += P V for 32 rows, in products of 16 x 8 x 16.
        let products = 2 * (32 * keys * head_dim) / (16 * 8 * 16);
        assert_eq!(of_class(Class::Tensor), products as u64);
        // The powers of two; in a few of the tiles near the diagonal, others that shrink the rows.
        let powers = of_class(Class::Special);
        assert!(powers.abs_diff(scores) <= 1, "{powers} for {scores} scores");
        // Bias, maximum, exponent and sum; and what each row takes.
        assert!(of_class(Class::F32) <= 7 * scores / 2 + 60);
    }
}

/// What a warp executes to find that a tile is needed.
#[test]
fn the_horizon_costs_little_where_nothing_is_left_out() {
    const TILES: usize = 4;
    for (head_dim, keys) in [(64, 64), (128, 64)] {
        let instructions = |horizon, k| {
            let case = Case {
                slopes: SlopeKind::All(1e-7),
                horizon,
                ..Case::dense(1, 128, k, (1, 1), head_dim)
            };
            let attended = case.lay_out::<bf16>().attend_on_emulator(&Plan::prefill);
            let reports = attended.unwrap().1;
            let report = (reports.iter()).find(|report| report.kernel.starts_with("prefill"));
            let lines = report.unwrap().lines.iter();
            let lines = lines.filter(|line| line.class != Class::Move);
            lines
                .map(|line| line.counters.warp_instructions)
                .sum::<u64>()
        };
        let [with, without] = [Horizon::default(), Horizon::Off].map(|horizon| {
            let (few, many) = (2560, 2560 + TILES * keys);
            (instructions(horizon, many) - instructions(horizon, few)) / (4 * TILES as u64)
        });
        println!("d{head_dim}: {with} PTX instructions a tile, {without} without the horizon");
        // The same for each kept tile, of 64 keys as of 128.
        assert!(with - without <= 125, "{with}, {without}");
    }
}

/// Of a model's heads at 4096 tokens, with normal scores, about a half of the tiles is needed; no other is read.
#[test]
fn the_horizon_reads_what_it_keeps() {
    let (heads, tokens, head_dim) = (8, 4096, 64);
    let case = Case::dense(1, tokens, tokens, (heads, heads), head_dim);
    let laid_out = case.lay_out::<f16>();
    let out = laid_out.out.like(f16::ZERO);
    let emulated = laid_out
        .problem(&out, None)
        .emulate(&Plan::prefill, 1)
        .unwrap();
    let [kept, all] = [0, 1].map(|at| emulated.tiles.iter().skip(at).step_by(2).sum::<u64>());
    println!("{kept} of {all} tiles");
    assert_eq!(all, (heads * 2 * (1..=tokens / 128).sum::<usize>()) as u64);
    let least = all as f64 / kept as f64;
    assert!((1.93..=2.13).contains(&least), "{least}");
    let report = (emulated.reports.iter()).find(|report| report.kernel.starts_with("prefill"));
    let report = report.unwrap();
    let of_keys = kept * (2 * 64 * head_dim * size_of::<f16>()) as u64;
    let of_queries = (heads * tokens * head_dim * size_of::<f16>()) as u64;
    assert_eq!(copied(report), of_keys + of_queries);
    let flops = kept * (4 * 128 * 64 * head_dim) as u64;
    assert_eq!(report.total().tensor_flops, flops);
}

/// Of a chunk of a prompt, on a cache whose pages have radii: what all kernels read follows the horizon, not the context.
#[test]
fn a_cache_with_radii_is_read_only_as_far_as_the_horizon() {
    const PAGE_SIZE: usize = 16;
    let (heads, chunk, head_dim) = (4, 128, 64);
    let read = |keys| {
        let case = Case {
            slopes: SlopeKind::All(0.3),
            ..Case::dense(1, chunk, keys, (heads, heads), head_dim)
        };
        let mut paged = case.lay_out_paged::<f16>(PAGE_SIZE);
        paged.keep_radii(true);
        let (rows, reports) = paged.attend_on_emulator(&Plan::prefill).unwrap();
        expect(&case, paged.dense.check(&rows));
        let kernels: Vec<_> = reports.iter().map(|report| &report.kernel[..]).collect();
        assert_eq!(
            kernels,
            ["radii_of_pages", "farther_radii", "prefill_any_f16_d64"]
        );
        let bytes = reports.iter().map(|report| report.total().global_bytes);
        bytes.sum::<u64>()
    };
    let (short, long) = (read(4096), read(8192));
    println!("{short} and {long} bytes");
    // Of each page a number in the table and a radius, for each head; of each tile a few more.
    let pages = (4096 / PAGE_SIZE * heads * 8) as u64;
    let tiles = (4096 / 64 * heads * 3 * 4 * 4) as u64;
    assert!(long - short <= pages + tiles, "{short}, {long}");
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
