//! The decode kernels' PTX, executed on the CPU with every check on, against the f64 oracle.

mod support;

use flash_alibi::plan::{Call, Device, Plan};
use flash_alibi::{Attention, Mask};
use half::{bf16, f16};
use proptest::prelude::*;
use support::emulator::OnDevice;
use support::strategy::{case, config, fail};
use support::{Case, expect};

/// How much work the emulator may have in one random case.
const WORK: usize = 1_000_000;

fn with_splits(splits: usize) -> impl Fn(&Attention, &Call, &Device) -> flash_alibi::Result<Plan> {
    move |attention, call, device| Plan::decode_with_splits(attention, call, device, splits)
}

fn check<T: OnDevice>(case: &Case, splits: usize) -> Result<(), String> {
    let laid_out = case.lay_out::<T>();
    let (rows, _) = laid_out.attend_on_emulator(&with_splits(splits))?;
    laid_out.check(&rows)
}

#[track_caller]
fn check_both(case: &Case, splits: usize) {
    let f16 = check::<f16>(case, splits).map_err(|why| format!("f16: {why}"));
    expect(case, f16);
    let bf16 = check::<bf16>(case, splits).map_err(|why| format!("bf16: {why}"));
    expect(case, bf16);
}

/// From pages, and with both kinds of kernels.
fn check_pages<T: OnDevice>(case: &Case, page_size: usize, splits: usize) -> Result<(), String> {
    let laid_out = case.lay_out::<T>();
    let pages = laid_out.in_pages(page_size, case.seed);
    let (rows, _) = laid_out.attend_pages_on_emulator(&pages, &with_splits(splits))?;
    laid_out.check(&rows)?;
    let (rows, _) = laid_out.attend_pages_on_emulator(&pages, &Plan::prefill)?;
    laid_out
        .check(&rows)
        .map_err(|why| format!("prefill: {why}"))
}

proptest! {
    #![proptest_config(config(60))]

    #[test]
    fn f16_follows_the_oracle(case in case(WORK), splits in 1usize..5) {
        fail(check::<f16>(&case, splits))?;
    }

    #[test]
    fn bf16_follows_the_oracle(case in case(WORK), splits in 1usize..5) {
        fail(check::<bf16>(&case, splits))?;
    }

    #[test]
    fn pages_follow_the_oracle(
        case in case(WORK / 2),
        page_size in prop::sample::select(vec![8usize, 16, 24, 32, 64, 128, 256]),
        splits in 1usize..5,
    ) {
        fail(check_pages::<bf16>(&case, page_size, splits))?;
    }
}

#[test]
fn head_dims() {
    for head_dim in (8..=256).step_by(8) {
        check_both(&Case::dense(1, 1, 131, (2, 1), head_dim), 2);
        check_both(&Case::dense(1, 9, 131, (2, 1), head_dim), 1);
    }
    let case = Case {
        mask: Mask::Bidirectional,
        ..Case::dense(2, 3, 300, (4, 2), 64)
    };
    check_both(&case, 3);
}
