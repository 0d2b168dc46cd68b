//! The prefill kernels against the oracle.

use std::path::PathBuf;
use std::sync::Arc;

use flash_alibi::cuda::cudarc::driver::CudaStream;
use flash_alibi_testing::golden::{self, Golden, Runner, Stored};
use flash_alibi_testing::problem::OnDevice;
use flash_alibi_testing::strategy::{case_with_offsets, config, fail};
use flash_alibi_testing::{Case, LaidOut, Lengths, SlopeKind, expect, matrix};
use half::{bf16, f16};
use libtest_mimic::Trial;
use proptest::prelude::*;

use crate::device::on_gpu;

/// How much work one random case may be.
const WORK: usize = 1_000_000;

fn check<T: OnDevice>(stream: &Arc<CudaStream>, case: &Case) -> Result<(), String> {
    let laid_out = case.lay_out::<T>();
    let rows = laid_out.attend_on_device(stream)?;
    laid_out.check(&rows)
}

#[track_caller]
fn check_both(stream: &Arc<CudaStream>, case: &Case) {
    let f16 = check::<f16>(stream, case).map_err(|why| format!("f16: {why}"));
    expect(case, f16);
    let bf16 = check::<bf16>(stream, case).map_err(|why| format!("bf16: {why}"));
    expect(case, bf16);
}

fn random_problems() {
    fn of<T: OnDevice>(stream: &Arc<CudaStream>) {
        let cases = config(60);
        proptest!(cases, |(case in case_with_offsets(WORK))| fail(check::<T>(stream, &case))?);
    }
    on_gpu(of::<f16>);
    on_gpu(of::<bf16>);
}

fn a_value_that_is_not_finite_reaches_the_rows_that_see_it_and_no_other() {
    on_gpu(|stream| {
        let attend = |laid_out: &LaidOut<_>| laid_out.attend_on_device(stream);
        let part = || 0.0..1.0;
        proptest!(config(60), |(
            case in case_with_offsets(WORK / 4),
            place in [part(), part(), part(), part()],
            value in prop::sample::select(vec![f32::NAN, f32::INFINITY]),
        )| fail(matrix::not_finite(case, place, value, attend))?);
    });
}

/// The cases that the emulator runs too.
fn check_all(cases: fn() -> Vec<Case>) {
    on_gpu(|stream| cases().iter().for_each(|case| check_both(stream, case)));
}

fn head_dims() {
    check_all(matrix::head_dims);
}

fn edges_of_tiles() {
    check_all(matrix::edges_of_tiles);
}

fn shapes_that_peers_test() {
    check_all(matrix::shapes_that_peers_test);
}

fn variable_lengths() {
    check_all(matrix::variable_lengths);
}

fn unaligned_tensors() {
    check_all(matrix::unaligned_tensors);
}

fn scales_and_softcaps() {
    check_all(matrix::scales);
    check_all(matrix::softcaps);
}

fn calls_with_nothing_to_do() {
    let packed = |sequences: &[Lengths]| Case {
        sequences: sequences.to_vec(),
        packed: true,
        slopes: SlopeKind::PerSequence(0.3),
        ..Case::dense(0, 0, 0, (4, 2), 64)
    };
    let no_queries = Lengths {
        k: 7,
        ..Lengths::default()
    };
    let cases = [
        packed(&[no_queries, Lengths::default()]),
        packed(&[]),
        Case::dense(2, 0, 5, (2, 2), 64),
        Case::dense(0, 5, 5, (2, 2), 64),
    ];
    on_gpu(|stream| cases.iter().for_each(|case| check_both(stream, case)));
}

fn golden_files() {
    fn check<T: Stored>(stream: &Arc<CudaStream>, case: &golden::Case<T>) {
        let (computed, _) = case.launch(Runner::Gpu(stream)).unwrap();
        let accuracy = case.judge(&computed);
        let (name, limit) = (&case.name, accuracy.out_limit());
        assert!(accuracy.passes(), "{name}: {accuracy:?}, limit {limit:e}");
    }
    on_gpu(|stream| {
        // Tests run in the package's folder, wherever it is.
        for file in golden::find(&[PathBuf::from("../tests/golden")]).unwrap() {
            match Golden::read(&file).unwrap() {
                Golden::F16(case) => check(stream, &case),
                Golden::Bf16(case) => check(stream, &case),
                // The kernels take no f32.
                Golden::F32(_) => {}
            }
        }
    });
}

pub fn trials() -> Vec<Trial> {
    trials![
        random_problems,
        a_value_that_is_not_finite_reaches_the_rows_that_see_it_and_no_other,
        head_dims,
        edges_of_tiles,
        shapes_that_peers_test,
        variable_lengths,
        unaligned_tensors,
        scales_and_softcaps,
        calls_with_nothing_to_do,
        golden_files,
    ]
}
