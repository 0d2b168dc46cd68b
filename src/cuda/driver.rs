//! Looks for a driver and a device.

use std::error::Error as _;
use std::sync::Arc;

use cudarc::driver::sys::CUresult;
use cudarc::driver::{CudaContext, DriverError};
use libloading::Library;

use super::{Error, Result};

#[cfg(windows)]
const DRIVER: &str = "nvcuda.dll";
#[cfg(not(windows))]
const DRIVER: &str = "libcuda.so.1";

/// The primary context of a device, numbered from 0: the one that other CUDA libraries of the process use too.
///
/// Any other way to come by a context does as well. This one returns an error where `CudaContext::new` panics: without a
/// driver.
///
/// # Errors
/// [`Error::NoDriver`], [`Error::NoDevice`], [`Error::OutOfMemory`] or [`Error::Driver`].
pub fn context(ordinal: usize) -> Result<Arc<CudaContext>> {
    find_driver()?;
    let found = match CudaContext::device_count() {
        Ok(found) => usize::try_from(found).unwrap_or(0),
        Err(DriverError(CUresult::CUDA_ERROR_NO_DEVICE)) => 0,
        Err(error) => return Err(Error::driver("when it was initialised")(error)),
    };
    if ordinal >= found {
        return Err(Error::NoDevice { ordinal, found });
    }
    CudaContext::new(ordinal).map_err(Error::driver("when the context was made"))
}

/// cudarc panics when it looks for a driver in vain, so this looks first.
fn find_driver() -> Result<()> {
    // SAFETY: the driver's library does nothing harmful when it is loaded or unloaded: every CUDA program loads it.
    match unsafe { Library::new(DRIVER) } {
        Ok(_) => Ok(()),
        Err(error) => Err(Error::NoDriver {
            // The cause names the file; the error does not.
            reason: error.source().unwrap_or(&error).to_string(),
        }),
    }
}
