//! Calls that a stream captures in a graph, and what must outlive it.

use std::cell::RefCell;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode, CUstreamCaptureStatus};
use cudarc::driver::{CudaGraph, CudaSlice, CudaStream, CudaViewMut, DeviceSlice};

use super::{Error, Layer, Result, buffer};
use crate::error;

/// Work that was captured once and can be launched again and again, and all that it uses.
///
/// A graph holds the addresses of buffers, not the buffers: cudarc's own `CudaGraph` can be launched after they are gone.
/// A step owns them, so that they stay where they are as long as it can be launched. Between launches [`Step::views`] lends
/// them, for new tokens and lengths to be written and results to be read.
///
/// ```no_run
/// use flash_alibi::cuda::{self, Inputs, Layer, Step, View, ViewMut};
/// use flash_alibi::Attention;
/// use half::f16;
///
/// let context = cuda::context(0)?;
/// // SAFETY: everything here is of one stream, whose order is enough.
/// unsafe { context.disable_event_tracking() };
/// let stream = context.new_stream()?;
/// let layer = Layer::new(&stream, Attention::new(16, 16, 64).build()?)?;
/// let held = (
///     stream.alloc_zeros::<f16>(16 * 64)?,          // q
///     stream.alloc_zeros::<f16>(2 * 1024 * 16 * 64)?, // k and v
///     stream.clone_htod(&[1])?,                     // seqused_k
///     stream.alloc_zeros::<f16>(16 * 64)?,          // out
///     stream.alloc_zeros::<u8>(layer.workspace_bytes(1, 1, 1024))?,
///     layer,
/// );
/// let mut step = Step::capture(&stream, held, |stream, (q, kv, lengths, mut out, mut workspace, layer)| {
///     let (k, v) = kv.as_view().split_at(1024 * 16 * 64);
///     let (shape_q, shape_k) = ([1, 1, 16, 64], [1, 1024, 16, 64]);
///     let [k, v] = [View::new(&k, &shape_k)?, View::new(&v, &shape_k)?];
///     let inputs = Inputs::new(View::new(&q, &shape_q)?, k, v).seqused_k(&lengths);
///     layer.forward(stream, &inputs, ViewMut::new(&mut out, &shape_q)?, None, &mut workspace)
/// })?;
/// for length in 2..10 {
///     let (_, _, mut lengths, ..) = step.views();
///     stream.memcpy_htod(&[length], &mut lengths)?;
///     step.launch()?;
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Step<R> {
    // Dropped before what it uses.
    graph: Graph,
    held: R,
}

/// A graph, which its context must be current for when it is dropped.
struct Graph {
    graph: CudaGraph,
    stream: Arc<CudaStream>,
}

// SAFETY: the driver's graphs belong to no thread, and a step calls it for its graph through `&mut self` alone.
unsafe impl<R: Send> Send for Step<R> {}

impl Drop for Graph {
    fn drop(&mut self) {
        let context = self.stream.context();
        context.record_err(context.bind_to_thread());
    }
}

impl<R: Held> Step<R> {
    /// Captures what `record` enqueues on the stream, which is not carried out yet.
    ///
    /// `record` gets the stream and views of all that the step will own, in the same order. What calls of this module use
    /// there must be held: buffers, workspaces and layers. That of other work cannot be checked, nor that `record` does not
    /// end the capture by cudarc's own `CudaStream::end_capture` and begin another. In particular, memory of the
    /// host that cudarc copies from or to within a capture is read or written again by every launch, and must outlive the
    /// step.
    ///
    /// The stream must be one of its own (`CudaContext::new_stream`), and the order of the buffers between streams the
    /// caller's matter: cudarc's event tracking is off (`CudaContext::disable_event_tracking`), since a capture may not wait
    /// for events from before it, and launches record none.
    ///
    /// # Errors
    /// [`Error::Argument`] for a default stream, [`Error::Tracked`] where events are tracked, [`Error::Unordered`] for a
    /// buffer of another stream, what `record` returns, such as [`Error::NotHeld`], and [`Error::Driver`] when the driver
    /// refuses. The stream captures no longer then.
    pub fn capture(
        stream: &Arc<CudaStream>,
        mut held: R,
        record: impl FnOnce(&Arc<CudaStream>, R::Views<'_>) -> Result<()>,
    ) -> Result<Self> {
        if stream.cu_stream().addr() <= LAST_DEFAULT {
            let expected = "one of its own, as CudaContext::new_stream makes it";
            return Err(error::value("stream", "a default stream", expected).into());
        }
        let mut checked = match stream.context().is_event_tracking() {
            true => Err(Error::Tracked { argument: "stream" }),
            false => Ok(()),
        };
        let mut memory = Vec::new();
        held.each(&mut |part| {
            if checked.is_ok() {
                checked = part.check(stream);
                memory.push(part.memory);
            }
        });
        checked?;

        let failed = Error::driver("when a graph was captured");
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        stream.begin_capture(mode).map_err(&failed)?;
        let capture = Capture(Some(stream));
        let stream_handle = stream.cu_stream().addr();
        let scope = Scope::Step {
            stream: stream_handle,
            memory,
        };
        let recorded = scope.during(|| record(stream, held.views()));
        let status = stream.capture_status().map_err(&failed)?;
        if status == CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE {
            // Somebody may have a graph of what was recorded, and launch it.
            std::mem::forget(held);
            std::mem::forget(capture);
            let expected = "a capture that goes on until Step::capture ends it";
            return Err(error::value("record", "an end of the capture", expected).into());
        }
        let graph = capture.end();
        recorded?;
        let graph = graph
            .map_err(&failed)?
            .ok_or_else(|| Error::from(error::value("record", "no work", "calls on the stream")))?;
        let stream = Arc::clone(stream);
        let graph = Graph { graph, stream };
        Ok(Self { graph, held })
    }

    /// Enqueues the work on the stream that it was captured on.
    ///
    /// # Errors
    /// [`Error::Driver`] when the driver refuses.
    pub fn launch(&mut self) -> Result<()> {
        let launched = self.graph.graph.launch();
        launched.map_err(Error::driver("when a graph was launched"))
    }

    /// What the step owns, to be used before the next launch: on the stream that it was captured on, which orders both.
    pub fn views(&mut self) -> R::Views<'_> {
        self.held.views()
    }

    /// Gives the buffers and layers back, without the graph.
    pub fn into_inner(self) -> R {
        self.held
    }
}

impl<R: fmt::Debug> fmt::Debug for Step<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Step").field("held", &self.held).finish()
    }
}

/// The handles of the legacy stream, which cannot capture, and of a thread's own, which is another one in every thread.
const LAST_DEFAULT: usize = 2;

/// A capture under way, which ends when it is dropped too.
struct Capture<'a>(Option<&'a Arc<CudaStream>>);

impl Capture<'_> {
    fn end(mut self) -> std::result::Result<Option<CudaGraph>, cudarc::driver::DriverError> {
        match self.0.take() {
            Some(stream) => stream.end_capture(CUgraphInstantiate_flags(0)),
            None => Ok(None),
        }
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        if let Some(stream) = self.0 {
            // What was recorded panics: nobody wants its graph.
            let _ = stream.end_capture(CUgraphInstantiate_flags(0));
        }
    }
}

/// What a [`Step`] can own: `CudaSlice`s, [`Layer`]s, and arrays, vectors, options and tuples of these. Sealed.
///
/// Only views come out of a step, so that nothing that its graph uses can be replaced or dropped.
pub trait Held: sealed::Sealed + 'static {
    /// What is lent.
    type Views<'a>;

    #[doc(hidden)]
    fn views(&mut self) -> Self::Views<'_>;

    #[doc(hidden)]
    fn each(&self, visit: &mut dyn FnMut(Part<'_>));
}

/// A buffer that a step owns, or what a layer has on the device.
#[doc(hidden)]
pub struct Part<'a> {
    memory: Range<u64>,
    /// None for what no stream frees.
    stream: Option<&'a CudaStream>,
}

impl Part<'_> {
    fn check(&self, stream: &CudaStream) -> Result<()> {
        let Some(own) = self.stream else {
            return Ok(());
        };
        let argument = "held";
        buffer::check_context(argument, own.context(), stream.context())?;
        if own.context().is_event_tracking() {
            return Err(Error::Tracked { argument });
        }
        if own.cu_stream() != stream.cu_stream() {
            return Err(Error::Unordered {
                argument,
                found: format!("{:p}", own.cu_stream()),
                expected: format!("{:p}", stream.cu_stream()),
                reason: "a step needs all buffers to be of the stream that captures",
            });
        }
        Ok(())
    }
}

mod sealed {
    pub trait Sealed {}
}

impl<T> sealed::Sealed for CudaSlice<T> {}
impl<T: 'static> Held for CudaSlice<T> {
    type Views<'a> = CudaViewMut<'a, T>;

    fn views(&mut self) -> CudaViewMut<'_, T> {
        self.as_view_mut()
    }

    fn each(&self, visit: &mut dyn FnMut(Part<'_>)) {
        let stream = DeviceSlice::stream(self);
        // A buffer whose context tracks events is refused, and its address is not used.
        let start = match stream.context().is_event_tracking() {
            true => 0,
            false => buffer::address(self),
        };
        visit(Part {
            memory: start..start.saturating_add(self.num_bytes() as u64),
            stream: Some(stream),
        });
    }
}

impl sealed::Sealed for Layer {}
impl Held for Layer {
    type Views<'a> = &'a Layer;

    fn views(&mut self) -> &Layer {
        self
    }

    fn each(&self, visit: &mut dyn FnMut(Part<'_>)) {
        visit(Part {
            memory: self.slopes().memory(),
            stream: None,
        });
    }
}

impl sealed::Sealed for Arc<Layer> {}
impl Held for Arc<Layer> {
    type Views<'a> = &'a Layer;

    fn views(&mut self) -> &Layer {
        self
    }

    fn each(&self, visit: &mut dyn FnMut(Part<'_>)) {
        Layer::each(self, visit);
    }
}

/// What is made of any number of one kind.
macro_rules! held_many {
    ($([$($generics:tt)*] $many:ty => $views:ty, |$held:ident| $views_of:expr;)*) => {$(
        impl<R: Held, $($generics)*> sealed::Sealed for $many {}
        impl<R: Held, $($generics)*> Held for $many {
            type Views<'a> = $views;

            fn views(&mut self) -> Self::Views<'_> {
                let $held = self;
                $views_of
            }

            fn each(&self, visit: &mut dyn FnMut(Part<'_>)) {
                self.iter().for_each(|one| one.each(visit));
            }
        }
    )*};
}

held_many! {
    [] Vec<R> => Vec<R::Views<'a>>, |many| many.iter_mut().map(R::views).collect();
    [] Option<R> => Option<R::Views<'a>>, |one| one.as_mut().map(R::views);
    [const N: usize] [R; N] => [R::Views<'a>; N], |many| many.each_mut().map(R::views);
}

macro_rules! held_tuples {
    () => {};
    ($first:ident $($rest:ident)*) => {
        impl<$first: Held, $($rest: Held,)*> sealed::Sealed for ($first, $($rest,)*) {}
        impl<$first: Held, $($rest: Held,)*> Held for ($first, $($rest,)*) {
            type Views<'a> = ($first::Views<'a>, $($rest::Views<'a>,)*);

            #[allow(non_snake_case)]
            fn views(&mut self) -> Self::Views<'_> {
                let ($first, $($rest,)*) = self;
                ($first.views(), $($rest.views(),)*)
            }

            #[allow(non_snake_case)]
            fn each(&self, visit: &mut dyn FnMut(Part<'_>)) {
                let ($first, $($rest,)*) = self;
                $first.each(visit);
                $($rest.each(visit);)*
            }
        }
        held_tuples!($($rest)*);
    };
}
held_tuples!(A B C D E F G H I J K L M N O P);

/// Whose captures a thread's calls may be part of.
enum Scope {
    /// Anybody's.
    Unowned,
    /// That of a step's stream, of memory that the step holds.
    Step {
        stream: usize,
        memory: Vec<Range<u64>>,
    },
}

thread_local! {
    static SCOPE: RefCell<Option<Scope>> = const { RefCell::new(None) };
}

impl Scope {
    fn during<T>(self, body: impl FnOnce() -> T) -> T {
        struct Restore(Option<Scope>);
        impl Drop for Restore {
            fn drop(&mut self) {
                SCOPE.set(self.0.take());
            }
        }
        let _restore = Restore(SCOPE.replace(Some(self)));
        body()
    }
}

/// Lets the calls of `body` be part of captures that cudarc's own `CudaStream::begin_capture` began, in place of a [`Step`]:
/// for engines that capture more than this crate's calls in a graph.
///
/// Otherwise a call on a stream that captures is [`Error::Capturing`], because safe code can launch a `CudaGraph` after
/// what it uses is gone. cudarc's event tracking must be off, as for [`Step::capture`].
///
/// # Safety
/// The layers and buffers of these calls stay allocated until no graph that is made of the capture will be launched any
/// more, and its last launch has ended. Launches are ordered with what else is done with the buffers.
pub unsafe fn in_unowned_capture<T>(body: impl FnOnce() -> T) -> T {
    Scope::Unowned.during(body)
}

/// Whether a call on the stream is captured by a step, which must then hold what the call uses.
///
/// # Errors
/// [`Error::Capturing`] where the stream captures, and nobody vouches for what a graph of it would use.
pub(super) fn is_of_step(stream: &CudaStream) -> Result<bool> {
    let status = stream
        .capture_status()
        .map_err(Error::driver("when a call began"))?;
    if status == CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE {
        return Ok(false);
    }
    SCOPE.with_borrow(|scope| match scope {
        Some(Scope::Unowned) => Ok(false),
        Some(Scope::Step { stream: own, .. }) if *own == stream.cu_stream().addr() => Ok(true),
        _ => Err(Error::Capturing),
    })
}

/// Whether the step that is being captured holds all of some memory.
pub(super) fn holds(memory: &Range<u64>) -> bool {
    let inside = |held: &Range<u64>| held.start <= memory.start && memory.end <= held.end;
    SCOPE.with_borrow(|scope| match scope {
        Some(Scope::Step { memory: held, .. }) => memory.is_empty() || held.iter().any(inside),
        _ => true,
    })
}
