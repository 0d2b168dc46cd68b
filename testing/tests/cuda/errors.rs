//! Errors, which need no device.

use flash_alibi::cuda::{self, Error, Layer};
use libtest_mimic::{Completion, Trial};

fn without_a_driver_there_is_an_error_and_no_panic() -> Completion {
    match cuda::context(0) {
        Err(Error::NoDriver { reason }) => {
            assert!(!reason.is_empty());
            let expected = format!(
                "found no CUDA driver ({reason}): install NVIDIA's driver (in a container, pass the GPU in), or compute on \
                 the CPU"
            );
            assert_eq!(Error::NoDriver { reason }.to_string(), expected);
        }
        _ => return Completion::ignored_with("there is a driver"),
    }
    Completion::Completed
}

fn errors_say_what_was_found_and_what_to_do() {
    let driver = |name: &str| Error::Driver {
        name: name.into(),
        description: "as it says".into(),
        doing: "when a kernel was launched",
    };
    for (error, message) in [
        (
            Error::NoDevice {
                ordinal: 2,
                found: 1,
            },
            "found 1 CUDA devices, expected one numbered 2, from 0: see `nvidia-smi` and CUDA_VISIBLE_DEVICES",
        ),
        (
            Error::DeviceTooOld { found: (7, 5) },
            "found a device of compute capability 7.5, expected 8.0 (Ampere) or later: use another device, or compute on the \
             CPU",
        ),
        (
            Error::NoKernelImage {
                device: (12, 0),
                name: "CUDA_ERROR_UNSUPPORTED_PTX_VERSION".into(),
            },
            "found no kernels for compute capability 12.0 (CUDA_ERROR_UNSUPPORTED_PTX_VERSION): build flash-alibi with \
             FLASH_ALIBI_CUDA_ARCHS=120, or install a newer driver",
        ),
        (
            Error::OutOfMemory {
                doing: "when slopes were uploaded",
            },
            "out of device memory when slopes were uploaded: free some, or use a smaller model or batch",
        ),
        (
            Error::Context {
                argument: "seqused_k",
                found: "0x10".into(),
                found_device: 1,
                expected: "0x20".into(),
                expected_device: 0,
            },
            "seqused_k: found context 0x10 (device 1), expected 0x20 (device 0), the layer's: copy it there, or make a layer \
             in its context",
        ),
        (
            Error::Capturing,
            "found a stream that captures a graph: capture with cuda::Step, which owns what the graph uses, or vouch for it \
             with cuda::in_unowned_capture",
        ),
        (
            driver("CUDA_ERROR_INVALID_VALUE"),
            "the CUDA driver said CUDA_ERROR_INVALID_VALUE (as it says) when a kernel was launched",
        ),
        (
            driver("CUDA_ERROR_STREAM_CAPTURE_ISOLATION"),
            "the CUDA driver said CUDA_ERROR_STREAM_CAPTURE_ISOLATION (as it says) when a kernel was launched: turn cudarc's \
             event tracking off before a stream captures",
        ),
    ] {
        assert_eq!(error.to_string(), message);
    }
}

fn layers_are_for_all_threads() {
    fn both<T: Send + Sync>() {}
    both::<Layer>();
    both::<Error>();
}

pub fn trials() -> Vec<Trial> {
    host_trials![
        without_a_driver_there_is_an_error_and_no_panic,
        errors_say_what_was_found_and_what_to_do,
        layers_are_for_all_threads,
    ]
}
