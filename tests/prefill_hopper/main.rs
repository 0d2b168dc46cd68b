//! The kernels of `kernels/sm90`: their PTX, executed on the CPU with every check on, as plans for compute capability 9.0 launch
//! them, against the f64 oracle; and what is in their machine code.

mod machine_code;
mod planted;

use flash_alibi::plan::{Addresses, Call, Device, Dtype, Plan};
use flash_alibi::{Attention, Horizon, Layout, Mask};
use flash_alibi_testing::emulator::{HOPPER, OnEmulator};
use flash_alibi_testing::strategy::{case_with_offsets, config, fail};
use flash_alibi_testing::{Case, LaidOut, Lengths, Memory, SlopeKind, expect, matrix};
use half::{bf16, f16};
use proptest::prelude::*;
use ptx_emulator::Report;

fn plan(attention: &Attention, call: &Call, _: &Device) -> flash_alibi::Result<Plan> {
    Plan::prefill(attention, call, &HOPPER)
}

/// Whether a kernel of this architecture was launched.
fn check<T: OnEmulator>(case: &Case) -> Result<bool, String> {
    let laid_out = case.lay_out::<T>();
    let (rows, reports) = laid_out.attend_on_emulator(&plan)?;
    laid_out.check(&rows)?;
    Ok(by_wgmma(&reports))
}

/// The same with keys and values in pages.
fn check_paged<T: OnEmulator>(case: &Case, page_size: usize) -> Result<bool, String> {
    let paged = case.lay_out_paged::<T>(page_size);
    let (rows, reports) = paged.attend_on_emulator(&plan)?;
    paged.dense.check(&rows)?;
    Ok(by_wgmma(&reports))
}

fn by_wgmma(reports: &[Report]) -> bool {
    let mut kernels = reports.iter().map(|report| &report.kernel);
    kernels.any(|kernel| kernel.starts_with("wgmma"))
}

#[track_caller]
fn check_both(case: &Case, by_wgmma: bool) {
    let expected = |taken| match taken {
        _ if taken == by_wgmma => Ok(()),
        true => Err("a kernel of this architecture was launched".into()),
        false => Err("no kernel of this architecture was launched".into()),
    };
    expect(
        case,
        check::<f16>(case)
            .and_then(expected)
            .map_err(|why| format!("f16: {why}")),
    );
    expect(
        case,
        check::<bf16>(case)
            .and_then(expected)
            .map_err(|why| format!("bf16: {why}")),
    );
}

/// Such as these kernels take: rows that a tensor map can have, and a scale above 0.
fn suited(case: Case) -> Case {
    let aligned = |memory: Memory| Memory {
        gaps: memory.gaps.map(|gap| gap * 8),
        offset: memory.offset * 8,
        broadcast: [false; 3],
        ..memory
    };
    Case {
        scale: case.scale.filter(|&scale| scale > 0.0),
        memory: case.memory.map(aligned),
        horizon: Horizon::Off,
        ..case
    }
}

/// Whether there is anything to compute, and anything to make tensor maps of.
fn has_rows_and_keys(case: &Case) -> bool {
    let any = |of: &dyn Fn(&Lengths) -> usize| case.sequences.iter().any(|s| of(s) > 0);
    any(&|s| s.q) && any(&|s| s.k + s.unused)
}

#[test]
fn head_dims() {
    for case in matrix::head_dims() {
        check_both(&case, true);
    }
}

#[test]
fn edges_of_blocks_and_tiles() {
    for q in [1, 64, 65, 128, 129, 192, 193] {
        for k in [1, 127, 128, 129, 256, 257] {
            let case = Case::dense(1, q, k, (1, 1), 64);
            check_both(&case, true);
            let case = Case {
                mask: Mask::Bidirectional,
                head_dim: 128,
                ..case
            };
            check_both(&case, true);
        }
    }
}

#[test]
fn shapes_that_peers_test() {
    for case in matrix::shapes_that_peers_test() {
        check_both(&suited(case), true);
    }
}

#[test]
fn windows() {
    for window in [
        (Some(0), None),
        (Some(130), Some(0)),
        (Some(300), Some(70)),
        (None, Some(200)),
        (Some(500), Some(500)),
    ] {
        for (q, k) in [(200, 900), (450, 300)] {
            let case = Case {
                mask: Mask::Bidirectional,
                window,
                slopes: SlopeKind::PerSequence(0.2),
                ..Case::dense(2, q, k, (2, 1), 64)
            };
            check_both(&case, true);
        }
    }
}

#[test]
fn lengths_padding_and_packed_sequences() {
    for case in matrix::variable_lengths() {
        check_both(&case, true);
        // The tiles of the largest heads are of other sizes.
        let case = Case {
            head_dim: 192,
            ..case
        };
        check_both(&case, true);
    }
    for head_dim in [64, 256] {
        for leftpad in [1, 127, 128, 200] {
            let mut case = Case::dense(2, 150, 260, (2, 1), head_dim);
            case.sequences[1] = Lengths {
                leftpad,
                unused: 60,
                k: 200,
                ..case.sequences[1]
            };
            check_both(&case, true);
            let case = Case {
                mask: Mask::Bidirectional,
                ..case
            };
            check_both(&case, true);
        }
    }
}

/// Values that are no keys are zeros where they are multiplied: no row is computed again because of what they hold.
#[test]
fn padding_that_is_not_finite_costs_nothing() {
    for packed in [false, true] {
        let lengths = Lengths {
            q: 100,
            k: 150,
            leftpad: 20,
            unused: 40,
        };
        let case = Case {
            packed,
            mask: Mask::Bidirectional,
            sequences: vec![lengths; 2],
            ..Case::dense(2, 100, 150, (2, 1), 64)
        };
        let bytes = |laid_out: &LaidOut<f16>| -> u64 {
            let (_, reports) = laid_out.attend_on_emulator(&plan).unwrap();
            let bytes = reports.iter().map(|report| report.total().global_bytes);
            bytes.sum()
        };
        let poisoned = case.lay_out::<f16>();
        let mut finite = case.lay_out::<f16>();
        assert!(poisoned.v.data.iter().any(|x| !x.is_finite()));
        for x in finite.v.data.iter_mut().filter(|x| !x.is_finite()) {
            *x = f16::ONE;
        }
        assert_eq!(bytes(&poisoned), bytes(&finite), "packed: {packed}");
    }
}

/// Smaller than a tile, as large, larger, and of no common size.
#[test]
fn pages() {
    for (head_dim, page_size) in [
        (64, 8),
        (64, 16),
        (128, 64),
        (192, 64),
        (80, 128),
        (256, 256),
    ] {
        for mask in [Mask::Causal, Mask::Bidirectional] {
            let mut case = Case {
                mask,
                window: (Some(140), None),
                ..Case::dense(2, 130, 300, (2, 1), head_dim)
            };
            case.sequences[1].k = 217;
            case.sequences[1].leftpad = 20;
            let taken = check_paged::<f16>(&case, page_size);
            let taken = taken.and_then(|taken| taken.then_some(()).ok_or("not taken".into()));
            expect(
                &case,
                taken.map_err(|why| format!("{page_size} keys a page: {why}")),
            );
        }
    }
}

/// Rows before, among and behind the keys, as far as an offset can say, with padding before the keys.
#[test]
fn offsets() {
    for offset in [i32::MIN + 70, -290, -127, 5, 149, 150, 300, i32::MAX] {
        for mask in [Mask::Causal, Mask::Bidirectional] {
            let mut case = Case {
                mask,
                slopes: SlopeKind::PerHead(0.3),
                offsets: Some(vec![offset, offset.saturating_add(7)]),
                ..Case::dense(2, 200, 150, (2, 1), 64)
            };
            case.sequences[1].leftpad = 70;
            check_both(&case, true);
        }
    }
}

#[test]
fn softcaps() {
    for case in matrix::softcaps() {
        check_both(&case, true);
        // Tiles that all rows see, on both sides.
        let case = Case {
            softcap: case.softcap,
            amplitude: case.amplitude,
            mask: Mask::Bidirectional,
            ..Case::dense(1, 130, 700, (2, 1), 128)
        };
        check_both(&case, true);
    }
}

#[test]
fn strides_and_addresses() {
    let with = |memory| Case {
        memory: [memory; 4],
        ..Case::dense(2, 70, 150, (4, 2), 64)
    };
    for order in 0..6 {
        let gaps = [8, 16, 24];
        let memory = Memory {
            order,
            gaps,
            offset: 8,
            ..Memory::default()
        };
        check_both(&with(memory), true);
    }
    for (offset, gaps, broadcast) in [
        (1, [0; 3], [false; 3]),
        (0, [0, 1, 0], [false; 3]),
        (0, [4, 0, 0], [false; 3]),
        (0, [0; 3], [true, false, false]),
    ] {
        let memory = Memory {
            offset,
            gaps,
            broadcast,
            ..Memory::default()
        };
        check_both(&with(memory), false);
    }
}

#[test]
fn what_the_kernels_do_not_take() {
    for case in matrix::scales() {
        check_both(&case, case.scale > Some(1e-30));
    }
}

/// By addresses, one plan launches the one kernel or the other.
#[test]
fn what_is_known_with_addresses_alone() {
    let layout = Layout::contiguous("tensor", &[1, 300, 2, 64]).unwrap();
    let call = Call {
        dtype: Dtype::F16,
        q: layout,
        k: layout,
        v: layout,
        out: layout,
        packed: None,
        paged: None,
    };
    let attention = Attention::new(2, 2, 64).build().unwrap();
    let plan = Plan::prefill(&attention, &call, &HOPPER).unwrap();
    let kernel = |plan: &Plan, addresses| plan.launches_at(&addresses)[0].kernel;
    let aligned = Addresses {
        q: 64,
        k: 32,
        v: 16,
        out: 2,
        ..Addresses::default()
    };
    assert_eq!(kernel(&plan, aligned), "wgmma_prefill_f16_d64");
    for others in [
        Addresses { q: 8, ..aligned },
        Addresses { k: 8, ..aligned },
        Addresses { v: 8, ..aligned },
    ] {
        assert!(kernel(&plan, others).starts_with("prefill_"), "{others:?}");
    }
    // Other devices have no such kernel.
    for compute_capability in [(8, 0), (8, 9), (10, 0), (12, 0)] {
        let device = Device {
            compute_capability,
            ..HOPPER
        };
        let plan = Plan::prefill(&attention, &call, &device).unwrap();
        assert!(
            kernel(&plan, aligned).starts_with("prefill_"),
            "{compute_capability:?}"
        );
    }
    // With enough keys for a horizon, what it needs to know of them is found before.
    let long = Layout::contiguous("tensor", &[1, 4096, 2, 64]).unwrap();
    let call = Call {
        q: long,
        k: long,
        v: long,
        out: long,
        ..call
    };
    let dense = attention.clone().with_horizon(Horizon::Off).unwrap();
    let launches = |attention| {
        let plan = Plan::prefill(attention, &call, &HOPPER).unwrap();
        let launches = plan.launches_at(&aligned);
        launches
            .iter()
            .map(|launch| launch.kernel)
            .collect::<Vec<_>>()
    };
    assert_eq!(launches(&dense), ["wgmma_prefill_f16_d64"]);
    let bitwise = attention.with_horizon(Horizon::Bitwise).unwrap();
    let bounds = ["centres_f16", "radii_f16", "farther_radii"];
    assert_eq!(launches(&bitwise)[..3], bounds);
    assert_eq!(launches(&bitwise)[3..], ["wgmma_horizon_f16_d64"]);
}

proptest! {
    #![proptest_config(config(12))]

    #[test]
    fn any_case_follows_the_oracle(case in case_with_offsets(1_000_000)) {
        let case = suited(case);
        let by_wgmma = check::<f16>(&case).map_err(TestCaseError::fail)?;
        prop_assert_eq!(by_wgmma, has_rows_and_keys(&case));
    }

    #[test]
    fn any_case_in_pages_follows_the_oracle(
        case in case_with_offsets(500_000),
        page_size in prop::sample::select(vec![8usize, 16, 24, 32, 64, 128, 256]),
    ) {
        let case = suited(case);
        let by_wgmma = check_paged::<f16>(&case, page_size).map_err(TestCaseError::fail)?;
        prop_assert_eq!(by_wgmma, case.sequences.iter().any(|s| s.q > 0));
    }

    #[test]
    fn a_value_that_is_not_finite_reaches_the_rows_that_see_it_and_no_other(
        case in case_with_offsets(250_000),
        place in [0.0..1.0, 0.0..1.0, 0.0..1.0, 0.0..1.0],
        value in prop::sample::select(vec![f32::NAN, f32::INFINITY]),
    ) {
        let attend = |laid_out: &LaidOut<_>| Ok(laid_out.attend_on_emulator(&plan)?.0);
        fail(matrix::not_finite(suited(case), place, value, attend))?;
    }
}
