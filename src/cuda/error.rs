//! What can go wrong on a GPU.

use cudarc::driver::DriverError;
use cudarc::driver::sys::CUresult;

/// A bad argument, or what a driver or device cannot do.
///
/// Except for [`Error::Driver`], which may also report what earlier work of the same context did wrong, every error is found
/// before anything is launched: no output was written then.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument that does not fit the layer or the others.
    #[error(transparent)]
    Argument(#[from] crate::Error),
    /// The driver's library cannot be loaded.
    #[error(
        "found no CUDA driver ({reason}): install NVIDIA's driver (in a container, pass the GPU in), or compute on the CPU"
    )]
    NoDriver {
        /// What the system says.
        reason: String,
    },
    /// There is no such device.
    #[error(
        "found {found} CUDA devices, expected one numbered {ordinal}, from 0: see `nvidia-smi` and CUDA_VISIBLE_DEVICES"
    )]
    NoDevice {
        /// The device that was asked for.
        ordinal: usize,
        /// How many there are.
        found: usize,
    },
    /// The device lacks what every kernel uses.
    #[error(
        "found a device of compute capability {}.{}, expected 8.0 (Ampere) or later: use another device, or compute on the CPU",
        found.0, found.1
    )]
    DeviceTooOld {
        /// Its compute capability, major and minor.
        found: (u32, u32),
    },
    /// The build has no machine code for the device, and the driver cannot make it from PTX.
    #[error(
        "found no kernels for compute capability {}.{} ({name}): build flash-alibi with FLASH_ALIBI_CUDA_ARCHS={}{}, or \
         install a newer driver",
        device.0, device.1, device.0, device.1
    )]
    NoKernelImage {
        /// The device's compute capability, major and minor.
        device: (u32, u32),
        /// The driver's name of the error.
        name: String,
    },
    /// The device has too little free memory.
    #[error("out of device memory {doing}: free some, or use a smaller model or batch")]
    OutOfMemory {
        /// What was being done.
        doing: &'static str,
    },
    /// A stream or a buffer of another context than the layer's.
    #[error(
        "{argument}: found context {found} (device {found_device}), expected {expected} (device {expected_device}), the \
         layer's: copy it there, or make a layer in its context"
    )]
    Context {
        /// The argument's name.
        argument: &'static str,
        /// Its context, as an address.
        found: String,
        /// Its device's ordinal.
        found_device: usize,
        /// The layer's context, as an address.
        expected: String,
        /// The layer's device's ordinal.
        expected_device: usize,
    },
    /// A buffer that another stream may still use, or may release or use too early, since nothing orders both.
    #[error(
        "{argument}: found a buffer of stream {found} for a call on stream {expected}, but {reason}: launch on the buffer's \
         stream, or make both streams in one CudaContext that tracks events"
    )]
    #[non_exhaustive]
    Unordered {
        /// The argument's name.
        argument: &'static str,
        /// The buffer's stream, as an address.
        found: String,
        /// The call's stream, as an address.
        expected: String,
        /// Why they are not ordered.
        reason: &'static str,
    },
    /// A call on a stream that captures a graph, which could be launched when what the call uses is gone.
    #[error(
        "found a stream that captures a graph: capture with cuda::Step, which owns what the graph uses, or vouch for it with \
         cuda::in_unowned_capture"
    )]
    Capturing,
    /// A capture in a context whose events could not be waited for in it.
    #[error(
        "{argument}: found a CudaContext that tracks events, expected one that does not: call \
         `unsafe {{ context.disable_event_tracking() }}` before the buffers of the step are made"
    )]
    #[non_exhaustive]
    Tracked {
        /// The argument's name.
        argument: &'static str,
    },
    /// What a captured call uses, and its step does not own.
    #[error(
        "{argument}: found what the step that is captured does not hold: pass it to Step::capture"
    )]
    #[non_exhaustive]
    NotHeld {
        /// The argument's name.
        argument: &'static str,
    },
    /// Any other error of the driver. It can be one of work that was launched before.
    #[error("the CUDA driver said {name} ({description}) {doing}{hint}", hint = hint(name))]
    Driver {
        /// The driver's name of the error, such as `CUDA_ERROR_ILLEGAL_ADDRESS`.
        name: String,
        /// The driver's description.
        description: String,
        /// What was being done.
        doing: &'static str,
    },
}

/// The result of every fallible function of this module.
pub type Result<T> = std::result::Result<T, Error>;

/// What to do about errors of the driver that have one likely cause.
fn hint(name: &str) -> &'static str {
    match name {
        "CUDA_ERROR_STREAM_CAPTURE_ISOLATION" => {
            ": turn cudarc's event tracking off before a stream captures"
        }
        "CUDA_ERROR_STUB_LIBRARY" => {
            ": a toolkit's stub was found in place of the driver's libcuda; mend the library path"
        }
        "CUDA_ERROR_ILLEGAL_ADDRESS" | "CUDA_ERROR_LAUNCH_FAILED" => {
            ": work that was launched before has failed, and its context can no longer be used; look with compute-sanitizer"
        }
        _ => "",
    }
}

impl Error {
    /// Of what the driver said while `doing` something, such as "when it loaded kernels".
    pub(super) fn driver(doing: &'static str) -> impl Fn(DriverError) -> Self {
        move |error| match error.0 {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => Self::OutOfMemory { doing },
            code => Self::Driver {
                name: format!("{code:?}"),
                description: match error.error_string() {
                    Ok(description) => description.to_string_lossy().into_owned(),
                    Err(_) => "no description".into(),
                },
                doing,
            },
        }
    }
}
