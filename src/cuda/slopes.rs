//! Slopes on a device: uploaded once for all layers that have the same.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, PoisonError};

use cudarc::driver::sys::CUstreamCaptureStatus;
use cudarc::driver::{CudaContext, CudaStream, result};

use super::{Error, Kernels, Result};

/// So many that no layer has any more are kept.
const MAX_UNUSED: usize = 1024;

/// The slopes of a context, by their bits.
pub(super) type Interned = HashMap<Box<[u32]>, Arc<UploadedSlopes>>;

/// Slopes in device memory. They are there before anybody has this, and stay until nothing can read them any more: calls
/// need no events for them, and nobody waits when a layer is dropped.
#[derive(Debug)]
pub(crate) struct UploadedSlopes {
    address: u64,
    len: usize,
}

impl UploadedSlopes {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The addresses that they have.
    pub(super) fn memory(&self) -> Range<u64> {
        self.address..self.address + (self.len * size_of::<f32>()) as u64
    }

    /// # Safety
    /// Nothing reads them any more.
    unsafe fn release(&self, context: &CudaContext) {
        context.record_err(context.bind_to_thread());
        // SAFETY: they were allocated when this was made, and are released once.
        context.record_err(unsafe { result::free_sync(self.address) });
    }
}

impl Kernels {
    /// Slopes on the device: found, or uploaded by the stream, which is then waited for.
    ///
    /// # Errors
    /// [`Error::Capturing`] where they must be uploaded and the stream captures, [`Error::OutOfMemory`] or
    /// [`Error::Driver`].
    pub(crate) fn slopes(
        &self,
        stream: &Arc<CudaStream>,
        values: &[f32],
    ) -> Result<Arc<UploadedSlopes>> {
        let failed = Error::driver("when slopes were uploaded");
        let bits: Box<[u32]> = values.iter().map(|slope| slope.to_bits()).collect();
        let mut all = self.slopes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = all.get(&bits) {
            return Ok(Arc::clone(found));
        }
        let status = stream.capture_status().map_err(&failed)?;
        if status != CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE {
            return Err(Error::Capturing);
        }
        let unused = |slopes: &Arc<UploadedSlopes>| Arc::strong_count(slopes) == 1;
        // Those that no layer has may still be read by what its calls launched. With one wait for so many, it is rare.
        if all.values().filter(|slopes| unused(slopes)).count() >= MAX_UNUSED
            && self.context().synchronize().is_ok()
        {
            all.retain(|_, slopes| {
                if unused(slopes) {
                    // SAFETY: all work of the context is done, and the lock keeps others from finding them.
                    unsafe { slopes.release(self.context()) };
                }
                !unused(slopes)
            });
        }

        // There is no memory of no elements.
        let values = match values {
            [] => &[0.0],
            values => values,
        };
        let buffer = stream.clone_htod(values).map_err(&failed)?;
        stream.synchronize().map_err(&failed)?;
        let made = Arc::new(UploadedSlopes {
            len: values.len(),
            // Not as a `CudaSlice`, which would keep the caller's stream.
            address: buffer.leak(),
        });
        all.insert(bits, Arc::clone(&made));
        Ok(made)
    }
}
