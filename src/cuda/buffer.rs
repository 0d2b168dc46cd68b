//! Device memory that calls take, and its order with their streams.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{
    CudaContext, CudaSlice, CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut, SyncOnDrop,
};

use super::capture;
use super::{Error, Result};
use crate::error;

/// Device memory that a call can read: a `CudaSlice`, a `CudaView` or a `CudaViewMut`.
///
/// The trait is sealed. cudarc's own `DevicePtr` is a safe trait that anybody can implement for any address, so it cannot
/// vouch for memory that a kernel will access; these three types do, since safe code makes them of owned memory, or of a
/// module's global variables, which calls refuse where they can be told by having no events.
/// Memory of another kind can be made one of them by `CudaStream::upgrade_device_ptr`, whose caller vouches for it.
pub trait Buffer<T>: DevicePtr<T> + sealed::Sealed {}

/// Device memory that a call can write: a `CudaSlice` or a `CudaViewMut`. Sealed, as [`Buffer`].
pub trait BufferMut<T>: Buffer<T> + DevicePtrMut<T> {}

mod sealed {
    use cudarc::driver::{CudaSlice, CudaView, CudaViewMut};

    pub trait Sealed {}
    impl<T> Sealed for CudaSlice<T> {}
    impl<T> Sealed for CudaView<'_, T> {}
    impl<T> Sealed for CudaViewMut<'_, T> {}
}

impl<T> Buffer<T> for CudaSlice<T> {}
impl<T> Buffer<T> for CudaView<'_, T> {}
impl<T> Buffer<T> for CudaViewMut<'_, T> {}
impl<T> BufferMut<T> for CudaSlice<T> {}
impl<T> BufferMut<T> for CudaViewMut<'_, T> {}

/// Where a buffer of a `CudaContext` without event tracking begins; others' streams would wait here.
pub(super) fn address<T>(buffer: &dyn Buffer<T>) -> u64 {
    buffer.device_ptr(buffer.stream()).0
}

/// What the buffers of a call on a stream must be.
#[derive(Clone, Copy)]
pub(super) struct Checks<'a> {
    stream: &'a CudaStream,
    /// Whether a step captures the call, and must hold them.
    held: bool,
}

impl<'a> Checks<'a> {
    /// # Errors
    /// [`Error::Capturing`] where the stream captures, and nobody vouches for what a graph of it would use.
    pub(super) fn new(stream: &'a CudaStream) -> Result<Self> {
        let held = capture::is_of_step(stream)?;
        Ok(Self { stream, held })
    }

    /// Checks that the call may use a buffer: it is of the stream's context, ordered with the stream, and held by the step
    /// that captures, if one does.
    pub(super) fn buffer<T>(&self, argument: &'static str, buffer: &dyn Buffer<T>) -> Result<()> {
        check_context(argument, buffer.stream().context(), self.stream.context())?;
        check_order(argument, buffer.stream(), self.stream)?;
        // cudarc multiplies lengths without a check where the build has no overflow checks: such a buffer is shorter than
        // it says.
        let bytes = buffer.len().checked_mul(size_of::<T>());
        let Some(bytes) = bytes.filter(|&bytes| isize::try_from(bytes).is_ok()) else {
            return Err(Error::Argument(error::Error::Length {
                argument,
                found: buffer.len(),
                expected: "fewer than 2^63 bytes".into(),
            }));
        };
        match self.held {
            true => {
                let start = address(buffer);
                self.memory(argument, start..start + bytes as u64)
            }
            false => Ok(()),
        }
    }

    /// [`Checks::buffer`], if there is one.
    pub(super) fn some<T>(
        &self,
        argument: &'static str,
        buffer: Option<&dyn Buffer<T>>,
    ) -> Result<()> {
        buffer.map_or(Ok(()), |buffer| self.buffer(argument, buffer))
    }

    /// Checks that the step that captures holds memory, if one does.
    pub(super) fn memory(&self, argument: &'static str, memory: Range<u64>) -> Result<()> {
        match !self.held || capture::holds(&memory) {
            true => Ok(()),
            false => Err(Error::NotHeld { argument }),
        }
    }
}

/// Checks that two contexts are one. Objects that stand for the same context of the driver are.
pub(super) fn check_context(
    argument: &'static str,
    found: &CudaContext,
    expected: &CudaContext,
) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    let address = |context: &CudaContext| format!("{:p}", context.cu_ctx());
    Err(Error::Context {
        argument,
        found: address(found),
        found_device: found.ordinal(),
        expected: address(expected),
        expected_device: expected.ordinal(),
    })
}

/// Checks that work on `stream` comes after what was done with a buffer of the stream `own`, and before what will be done
/// with it, its release included.
///
/// cudarc orders by the events of a buffer: what uses the buffer waits for them if the buffer's `CudaContext` manages
/// streams, and records them if the stream's `CudaContext` does. These can be two objects for one context of the driver.
fn check_order(argument: &'static str, own: &CudaStream, stream: &CudaStream) -> Result<()> {
    let manages = |stream: &CudaStream| stream.context().is_managing_stream_synchronization();
    let reason = match (manages(own), manages(stream)) {
        (true, true) => {
            if own.cu_stream() != stream.cu_stream() {
                keep_managing(own.context())?;
                keep_managing(stream.context())?;
            }
            return Ok(());
        }
        // Nobody orders by events.
        (false, _) if own.cu_stream() == stream.cu_stream() => return Ok(()),
        (false, _) => "its CudaContext does not order streams by events",
        (true, false) => {
            "its CudaContext orders streams by events, and the CudaContext of the call's stream records none"
        }
    };
    Err(unordered(argument, own, stream, reason))
}

fn unordered(
    argument: &'static str,
    own: &CudaStream,
    stream: &CudaStream,
    reason: &'static str,
) -> Error {
    Error::Unordered {
        argument,
        found: format!("{:p}", own.cu_stream()),
        expected: format!("{:p}", stream.cu_stream()),
        reason,
    }
}

/// Makes a `CudaContext` order its streams by events for good.
///
/// cudarc stops once the last stream that a `CudaContext` has made is dropped, though its work may go on: then a buffer that
/// the work uses could be released too early. So each context that was relied on keeps a stream of its own.
fn keep_managing(context: &Arc<CudaContext>) -> Result<()> {
    static KEPT: Mutex<Vec<Arc<CudaStream>>> = Mutex::new(Vec::new());
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    if !kept
        .iter()
        .any(|stream| Arc::ptr_eq(stream.context(), context))
    {
        let stream = context.new_stream();
        kept.push(stream.map_err(Error::driver("when streams were ordered"))?);
    }
    Ok(())
}

/// The buffers of a call, ordered with its stream: it waits for what others do with them, and once this is dropped, others
/// wait for what it did. So it lives until after the launch.
pub(super) struct Lent<'a> {
    stream: &'a CudaStream,
    guards: Vec<SyncOnDrop<'a>>,
    /// Of the buffers of other streams that are read: those streams, and a guard for each.
    ///
    /// A buffer has one event for all of its readers, which says nothing of those before the last. So a buffer's own stream
    /// waits for each reader, and the event is recorded there: it then stands for all of them.
    elsewhere: Vec<(&'a CudaStream, SyncOnDrop<'a>)>,
    /// Of a buffer that has no events, though its context orders by them.
    untracked: Option<Error>,
}

impl<'a> Lent<'a> {
    pub(super) fn new(stream: &'a CudaStream) -> Self {
        Self {
            stream,
            guards: Vec::with_capacity(18),
            elsewhere: Vec::new(),
            untracked: None,
        }
    }

    /// Where a buffer lies that the call reads.
    pub(super) fn read<T>(&mut self, argument: &'static str, buffer: &'a dyn Buffer<T>) -> u64 {
        let (address, guard) = buffer.device_ptr(self.stream);
        let own: &CudaStream = buffer.stream();
        if own.cu_stream() != self.stream.cu_stream() {
            self.elsewhere.push((own, buffer.device_ptr(own).1));
        }
        self.keep(argument, own, guard);
        address
    }

    /// Where a buffer lies that the call reads; 0 if there is none.
    pub(super) fn read_some<T>(
        &mut self,
        argument: &'static str,
        buffer: Option<&'a dyn Buffer<T>>,
    ) -> u64 {
        buffer.map_or(0, |buffer| self.read(argument, buffer))
    }

    /// Where a buffer lies that the call writes.
    pub(super) fn write<T>(
        &mut self,
        argument: &'static str,
        buffer: &'a mut dyn BufferMut<T>,
    ) -> u64 {
        let own = Arc::clone(buffer.stream());
        let (address, guard) = buffer.device_ptr_mut(self.stream);
        self.keep(argument, &own, guard);
        address
    }

    fn keep(&mut self, argument: &'static str, own: &CudaStream, guard: SyncOnDrop<'a>) {
        let manages = own.context().is_managing_stream_synchronization();
        if manages && matches!(guard, SyncOnDrop::Record(None)) {
            let reason = "it has no events, though its CudaContext orders streams by them";
            self.untracked = Some(unordered(argument, own, self.stream, reason));
        }
        self.guards.push(guard);
    }

    /// Checks, once all buffers are there, that the call may be launched.
    ///
    /// # Errors
    /// [`Error::Unordered`] for a buffer without events, such as a global variable of a module, and [`Error::Capturing`]
    /// where waiting for a buffer has made the stream part of a capture.
    pub(super) fn ready(&self) -> Result<()> {
        if let Some(error) = &self.untracked {
            return Err(error.clone());
        }
        match self.elsewhere.is_empty() {
            true => Ok(()),
            false => capture::is_of_step(self.stream).map(drop),
        }
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        self.guards.clear();
        let mut joined: Vec<&CudaStream> = Vec::new();
        for (own, _) in &self.elsewhere {
            if !joined
                .iter()
                .any(|stream| stream.cu_stream() == own.cu_stream())
            {
                own.context().record_err(own.join(self.stream));
                joined.push(own);
            }
        }
        self.elsewhere.clear();
    }
}
