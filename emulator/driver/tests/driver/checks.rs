//! What the emulator finds in a kernel, and what the driver makes of it.

use cudarc::driver::sys::CUresult;
use cudarc::driver::{CudaFunction, CudaSlice, CudaStream, DriverError, PushKernelArg};

use crate::common::{begin, code, errors, one_block, run};

/// The error of a kernel, when it is launched and when it is waited for, and ever after.
fn fault(
    name: &str,
    arguments: impl Fn(&CudaStream, &CudaFunction, &mut CudaSlice<i32>),
) -> CUresult {
    let (context, stream, module) = begin();
    let mut x = stream.alloc_zeros::<i32>(4).unwrap();
    let function = module.load_function(name).unwrap();
    arguments(&stream, &function, &mut x);
    let found = code(stream.synchronize());
    assert_ne!(found, CUresult::CUDA_SUCCESS);
    assert_eq!(code(stream.clone_htod(&[1])), found);
    assert_eq!(code(context.synchronize()), found);
    assert_eq!(code(stream.record_event(None)), found);
    std::mem::forget((context, stream, module, x, function));
    found
}

#[test]
fn faults_stay_and_are_explained() {
    let output = run("checks::faults_stay_and_are_explained", &[], || {
        let found = fault("stray", |stream, function, x| {
            let mut launch = stream.launch_builder(function);
            launch.arg(x).arg(&4i32);
            // SAFETY: it is not: the emulator finds out.
            unsafe { launch.launch(one_block(1)) }.unwrap();
        });
        assert_eq!(found, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    });
    if let Some(output) = output {
        let errors = errors(&output);
        assert!(
            errors.contains("kernel `stray`, block (0,0,0) thread (0,0,0)"),
            "{errors}"
        );
        assert!(errors.contains("out of bounds"), "{errors}");
    }
}

#[test]
fn traps_are_illegal_instructions() {
    run("checks::traps_are_illegal_instructions", &[], || {
        let found = fault("fails", |stream, function, _| {
            // SAFETY: it takes nothing.
            unsafe { stream.launch_builder(function).launch(one_block(1)) }.unwrap();
        });
        assert_eq!(found, CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION);
    });
}

fn read_unwritten() -> Result<(), DriverError> {
    let (_, stream, module) = begin();
    // SAFETY: that it is not written is the matter.
    let x = unsafe { stream.alloc::<i32>(1) }.unwrap();
    let mut out = stream.alloc_zeros::<i32>(1).unwrap();
    let function = module.load_function("unwritten").unwrap();
    let mut launch = stream.launch_builder(&function);
    launch.arg(&x).arg(&mut out);
    // SAFETY: the kernel takes these.
    unsafe { launch.launch(one_block(1)) }.unwrap();
    stream.synchronize()
}

#[test]
fn the_checks_of_the_emulator() {
    run("checks::the_checks_of_the_emulator", &[], || {
        assert_eq!(code(read_unwritten()), CUresult::CUDA_ERROR_LAUNCH_FAILED);
    });
}

#[test]
fn the_checks_of_the_emulator_switched_off() {
    let off = [("PTX_EMULATOR_CHECKS", "0")];
    run(
        "checks::the_checks_of_the_emulator_switched_off",
        &off,
        || {
            assert_eq!(code(read_unwritten()), CUresult::CUDA_SUCCESS);
        },
    );
}

#[test]
fn approximate_results_are_perturbed_where_that_is_asked_for() {
    let name = "checks::approximate_results_are_perturbed_where_that_is_asked_for";
    let results = |perturb, seed| {
        let variables = [
            ("PTX_EMULATOR_PERTURB", perturb),
            ("PTX_EMULATOR_SEED", seed),
        ];
        let output = run(name, &variables, || {
            let (_, stream, module) = begin();
            let values: Vec<f32> = (1..=128).map(|i| i as f32 / 8.0).collect();
            let mut x = stream.clone_htod(&values).unwrap();
            let function = module.load_function("approximate").unwrap();
            let mut launch = stream.launch_builder(&function);
            launch.arg(&mut x);
            // SAFETY: the kernel takes this.
            unsafe { launch.launch(one_block(128)) }.unwrap();
            let found = stream.clone_dtoh(&x).unwrap();
            for (found, value) in found.iter().zip(values) {
                let exact = value.ln().exp2();
                assert!((found / exact - 1.0).abs() < 1e-5, "{found} for {exact}");
            }
            println!("results {found:?}");
        });
        let text = String::from_utf8(output?.stdout).unwrap();
        let line = text.lines().find(|line| line.contains("results"));
        Some(line.unwrap().to_owned())
    };
    let Some(exact) = results("0", "1") else {
        return;
    };
    assert_eq!(results("0", "2").unwrap(), exact);
    let perturbed = results("1", "1").unwrap();
    assert_ne!(perturbed, exact);
    assert_eq!(results("1", "1").unwrap(), perturbed);
    assert_ne!(results("1", "2").unwrap(), perturbed);
}
