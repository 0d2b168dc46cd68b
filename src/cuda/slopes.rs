//! Slopes on a device: uploaded once for all layers that have the same.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, MutexGuard, PoisonError};

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
        if let Some(found) = self.interned().get(&bits) {
            return Ok(Arc::clone(found));
        }
        let status = stream.capture_status().map_err(&failed)?;
        if status != CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE {
            return Err(Error::Capturing);
        }

        // Whoever finds other slopes need not wait for the upload: the lock is not held meanwhile.
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
        let mut all = self.interned();
        if let Some(found) = all.get(&bits) {
            // Another thread was first; nobody has read these.
            // SAFETY: nothing reads what nobody else has.
            unsafe { made.release(self.context()) };
            return Ok(Arc::clone(found));
        }
        self.release_unused(&mut all);
        all.insert(bits, Arc::clone(&made));
        Ok(made)
    }

    fn interned(&self) -> MutexGuard<'_, Interned> {
        self.slopes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Releases slopes that no layer has any more, if they are many.
    fn release_unused(&self, all: &mut Interned) {
        // Whoever finds slopes does so under the lock, so that these stay unused.
        let unused: Vec<_> = (all.iter())
            .filter(|(_, slopes)| Arc::strong_count(slopes) == 1)
            .map(|(bits, _)| bits.clone())
            .collect();
        // What was launched with them may still read them. With one wait for so many, it is rare.
        if unused.len() < MAX_UNUSED || self.context().synchronize().is_err() {
            return;
        }
        for slopes in unused.iter().filter_map(|bits| all.remove(bits)) {
            // SAFETY: nobody had them when all work of the context ended, and nobody has found them since.
            unsafe { slopes.release(self.context()) };
        }
    }
}
