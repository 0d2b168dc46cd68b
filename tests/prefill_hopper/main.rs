//! The kernels of `kernels/sm90`: their PTX, executed on the CPU with every check on, as plans for compute capability 9.0 launch
//! them, against the f64 oracle; and what is in their machine code.

mod machine_code;
mod planted;

use flash_alibi::plan::{Addresses, Call, Device, Dtype, Plan};
use flash_alibi::{Attention, Horizon, Layout, Mask};
use flash_alibi_testing::emulator::{HOPPER, OnEmulator};
use flash_alibi_testing::strategy::{case, config, fail};
use flash_alibi_testing::{Case, Memory, SlopeKind, expect, matrix};
use half::{bf16, f16};
use proptest::prelude::*;

fn plan(attention: &Attention, call: &Call, _: &Device) -> flash_alibi::Result<Plan> {
    Plan::prefill(attention, call, &HOPPER)
}

/// Whether a kernel of this architecture was launched.
fn check<T: OnEmulator>(case: &Case) -> Result<bool, String> {
    let laid_out = case.lay_out::<T>();
    let (rows, reports) = laid_out.attend_on_emulator(&plan)?;
    laid_out.check(&rows)?;
    Ok(reports
        .iter()
        .any(|report| report.kernel.starts_with("wgmma")))
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

/// Such as these kernels take.
fn suited(case: Case) -> Case {
    Case {
        head_dim: if case.head_dim <= 64 { 64 } else { 128 },
        softcap: None,
        horizon: Horizon::Off,
        ..case
    }
}

#[test]
fn head_dims() {
    for case in matrix::head_dims() {
        let there = [56, 64, 120, 128].contains(&case.head_dim);
        check_both(&case, there);
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
    for case in matrix::variable_lengths()
        .into_iter()
        .chain(matrix::softcaps())
    {
        check_both(&case, false);
    }
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
        Addresses {
            seqused_k: 64,
            ..aligned
        },
        Addresses {
            leftpad_k: 64,
            ..aligned
        },
        Addresses {
            offset: 64,
            ..aligned
        },
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
    // Enough keys for a horizon, which these kernels do not have.
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
    assert!(
        launches(&bitwise)
            .iter()
            .all(|kernel| !kernel.starts_with("wgmma"))
    );
}

proptest! {
    #![proptest_config(config(40))]

    #[test]
    fn any_case_follows_the_oracle(case in case(1_000_000)) {
        fail(check::<f16>(&suited(case)).map(drop))?;
    }

    #[test]
    fn a_value_that_is_not_finite_reaches_the_rows_that_see_it_and_no_other(
        case in case(250_000),
        place in [0.0..1.0, 0.0..1.0, 0.0..1.0, 0.0..1.0],
        value in prop::sample::select(vec![f32::NAN, f32::INFINITY]),
    ) {
        let attend = |laid_out: &flash_alibi_testing::LaidOut<_>| Ok(laid_out.attend_on_emulator(&plan)?.0);
        fail(matrix::not_finite(suited(case), place, value, attend))?;
    }
}
