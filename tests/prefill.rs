//! The prefill kernel's PTX, executed on the CPU with every check on, against the f64 oracle.

mod support;

use flash_alibi::Mask;
use half::{bf16, f16};
use support::emulator::OnDevice;
use support::{Case, Lengths, expect};

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

#[test]
fn head_dims() {
    for head_dim in (8..=256).step_by(8) {
        check_both(&Case::dense(1, 67, 131, (2, 1), head_dim));
    }
}
