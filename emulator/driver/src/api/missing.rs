//! Functions that programs look for, and that this library does not have.

use crate::calls;
use crate::code::Code;

/// Exported functions that answer `CUDA_ERROR_NOT_SUPPORTED`. Their arguments are not looked at.
macro_rules! missing {
    ($($name:ident)*) => {$(
        #[doc = concat!("`", stringify!($name), "` of the CUDA driver API, which is not supported.")]
        #[unsafe(no_mangle)]
        pub extern "C" fn $name() -> Code {
            calls::count(stringify!($name));
            Code::NOT_SUPPORTED
        }
    )*};
}

missing! {
    cuCtxCreate_v3
    cuCtxGetCacheConfig
    cuCtxGetLimit
    cuCtxSetCacheConfig
    cuCtxSetFlags
    cuCtxSetLimit
    cuDestroyExternalMemory
    cuDeviceGetDefaultMemPool
    cuDeviceGetMemPool
    cuDeviceGetUuid
    cuDeviceSetMemPool
    cuExternalMemoryGetMappedBuffer
    cuGetProcAddress_v2
    cuImportExternalMemory
    cuMemAdvise_v2
    cuMemAllocFromPoolAsync
    cuMemAllocManaged
    cuMemPoolCreate
    cuMemPoolDestroy
    cuMemPoolGetAttribute
    cuMemPoolSetAttribute
    cuMemPoolTrimTo
    cuMemPrefetchAsync_v2
    cuProfilerStart
    cuProfilerStop
    cuStreamAttachMemAsync
    cuStreamGetCaptureInfo_v3
    cuTensorMapEncodeIm2col
    cuTensorMapEncodeIm2colWide
    cuThreadExchangeStreamCaptureMode
}
