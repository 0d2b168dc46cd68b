//! The results of the API's functions.

use std::ffi::CStr;

/// What a call answers: 0, or the number of an error (`CUresult`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Code(pub i32);

/// The result of a call before it becomes a [`Code`].
pub type Result<T = ()> = std::result::Result<T, Code>;

/// Constants, and text that C can read.
macro_rules! codes {
    ($($number:literal $name:ident $text:literal)*) => {
        impl Code {
            $(#[doc = $text] pub const $name: Self = Self($number);)*

            /// The name without `CUDA_ERROR_`, and a description; both end in a NUL.
            fn texts(self) -> Option<(&'static str, &'static str)> {
                match self.0 {
                    0 => Some(("CUDA_SUCCESS\0", "no error\0")),
                    $($number => Some((
                        concat!("CUDA_ERROR_", stringify!($name), "\0"),
                        concat!($text, "\0"),
                    )),)*
                    _ => None,
                }
            }
        }
    };
}

codes! {
    1 INVALID_VALUE "invalid argument"
    2 OUT_OF_MEMORY "out of memory"
    3 NOT_INITIALIZED "initialization error"
    100 NO_DEVICE "no CUDA-capable device is detected"
    101 INVALID_DEVICE "invalid device ordinal"
    200 INVALID_IMAGE "device kernel image is invalid"
    201 INVALID_CONTEXT "invalid device context"
    209 NO_BINARY_FOR_GPU "no kernel image is available for execution on the device"
    218 INVALID_PTX "a PTX JIT compilation failed"
    301 FILE_NOT_FOUND "file not found"
    400 INVALID_HANDLE "invalid resource handle"
    401 ILLEGAL_STATE "the operation cannot be performed in the present state"
    500 NOT_FOUND "named symbol not found"
    600 NOT_READY "device not ready"
    700 ILLEGAL_ADDRESS "an illegal memory access was encountered"
    702 LAUNCH_TIMEOUT "the launch timed out and was terminated"
    709 CONTEXT_IS_DESTROYED "context is destroyed"
    710 ASSERT "device-side assert triggered"
    715 ILLEGAL_INSTRUCTION "an illegal instruction was encountered"
    716 MISALIGNED_ADDRESS "misaligned address"
    719 LAUNCH_FAILED "unspecified launch failure"
    720 COOPERATIVE_LAUNCH_TOO_LARGE "too many blocks in cooperative launch"
    801 NOT_SUPPORTED "operation not supported"
    900 STREAM_CAPTURE_UNSUPPORTED "operation not permitted when stream is capturing"
    901 STREAM_CAPTURE_INVALIDATED "operation failed due to a previous error during capture"
    902 STREAM_CAPTURE_MERGE "operation would result in a merge of separate capture sequences"
    903 STREAM_CAPTURE_UNMATCHED "capture was not ended in the same stream as it began"
    904 STREAM_CAPTURE_UNJOINED "capturing stream has unjoined work"
    905 STREAM_CAPTURE_ISOLATION "dependency created on uncaptured work in another stream"
    906 STREAM_CAPTURE_IMPLICIT "operation would make the legacy stream depend on a capturing blocking stream"
    907 CAPTURED_EVENT "operation not permitted on an event last recorded in a capturing stream"
    908 STREAM_CAPTURE_WRONG_THREAD "attempt to terminate a thread-local capture sequence from another thread"
    912 INVALID_CLUSTER_SIZE "misconfiguration of a cluster"
}

impl Code {
    /// No error.
    pub const SUCCESS: Self = Self(0);

    /// The name, such as `CUDA_ERROR_INVALID_VALUE`.
    pub fn name(self) -> Option<&'static CStr> {
        CStr::from_bytes_with_nul(self.texts()?.0.as_bytes()).ok()
    }

    /// The description.
    pub fn description(self) -> Option<&'static CStr> {
        CStr::from_bytes_with_nul(self.texts()?.1.as_bytes()).ok()
    }
}

impl From<Result> for Code {
    fn from(result: Result) -> Self {
        result.err().unwrap_or(Self::SUCCESS)
    }
}
