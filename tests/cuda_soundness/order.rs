//! The order of buffers and streams.

use super::arguments::every_argument;
use super::*;

/// Two `CudaContext`s of one device, as candle makes its own: one does not know of the other's streams.
#[test]
fn a_buffer_that_is_not_ordered_with_the_stream_is_an_error() {
    let Some((_turn, context)) = device() else {
        return;
    };
    let stream = context.new_stream().unwrap();
    let twin = CudaContext::new(0).unwrap();
    assert!(twin == context && !twin.is_managing_stream_synchronization());
    let theirs = twin.per_thread_stream();
    let layer = layer(&stream);
    every_argument(&stream, &theirs, &layer, |argument, error| match error {
        Error::Unordered {
            argument: found, ..
        } => assert_eq!(found, argument),
        error => panic!("{argument}: {error}"),
    });

    // The other way round, the buffer's events would not be recorded, even if the streams are one.
    let theirs = twin.default_stream();
    let ours = context.default_stream();
    let x = ones(&ours, KEYS);
    let mut out = theirs.alloc_zeros::<f16>(KEYS * ROW).unwrap();
    let mut workspace = theirs.alloc_zeros::<u8>(64).unwrap();
    let error = attend(&layer, &theirs, &x, &mut out, &mut workspace).unwrap_err();
    assert!(
        matches!(error, Error::Unordered { argument: "q", .. }),
        "{error}"
    );
}

#[test]
fn buffers_of_twins_that_both_track_events_are_waited_for() {
    let Some((_turn, context)) = device() else {
        return;
    };
    let stream = context.new_stream().unwrap();
    let twin = CudaContext::new(0).unwrap();
    let theirs = twin.new_stream().unwrap();
    let layer = layer(&stream);
    let x = ones(&theirs, KEYS);
    let mut out = stream.alloc_zeros::<f16>(KEYS * ROW).unwrap();
    let mut workspace = theirs.alloc_zeros::<u8>(64).unwrap();
    attend(&layer, &stream, &x, &mut out, &mut workspace).unwrap();
    // Released by their stream, once ours has read them.
    drop((x, workspace));
    theirs.synchronize().unwrap();
    assert_ones(&stream, &out);
}

/// cudarc orders by events only while a `CudaContext` has a stream that it has made.
#[test]
fn the_last_stream_may_be_dropped_after_a_call() {
    let Some((_turn, context)) = device() else {
        return;
    };
    let stream = context.new_stream().unwrap();
    let other = context.default_stream();
    let layer = layer(&stream);
    let x = ones(&other, KEYS);
    let mut out = other.alloc_zeros::<f16>(KEYS * ROW).unwrap();
    let mut workspace = other.alloc_zeros::<u8>(64).unwrap();
    attend(&layer, &stream, &x, &mut out, &mut workspace).unwrap();
    drop(stream);
    drop((x, workspace));
    // Done are the releases, unless they wait for the call.
    other.synchronize().unwrap();
    context.synchronize().unwrap();
    assert_ones(&other, &out);
}

#[test]
fn another_context_is_an_error() {
    let Some((_turn, context)) = device() else {
        return;
    };
    let stream = context.new_stream().unwrap();
    // One that is another to all who ask, though the driver knows it as the first device's.
    let (ordinal, device) = (context.ordinal() + 7, context.cu_device());
    // SAFETY: the device and the context are valid; and since it is never dropped, it does not destroy what it does not own.
    let other = unsafe { CudaContext::from_raw_context(ordinal, device, context.cu_ctx()) };
    let other = ManuallyDrop::new(other.unwrap());
    let theirs = other.new_stream().unwrap();
    let ours = layer(&stream);
    every_argument(&stream, &theirs, &ours, |argument, error| match error {
        Error::Context {
            argument: found, ..
        } => assert_eq!(found, argument),
        error => panic!("{argument}: {error}"),
    });
    let (x, mut out) = (ones(&theirs, KEYS), ones(&theirs, KEYS));
    let mut workspace = theirs.alloc_zeros::<u8>(64).unwrap();
    let error = attend(&ours, &theirs, &x, &mut out, &mut workspace).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Context {
                argument: "stream",
                ..
            }
        ),
        "{error}"
    );
}

/// A buffer has one event for all that read it, which is the last reader's.
#[test]
fn a_buffer_with_two_readers_is_released_after_both() {
    let Some((_turn, context)) = device() else {
        return;
    };
    let (first, second) = (context.new_stream().unwrap(), context.new_stream().unwrap());
    let layer = layer(&first);
    for overwritten in [false, true] {
        let mut x = ones(&first, KEYS);
        let call = |stream: &Arc<CudaStream>, x: &CudaSlice<f16>| {
            let mut out = stream.alloc_zeros::<f16>(KEYS * ROW).unwrap();
            let mut workspace = stream.alloc_zeros::<u8>(64).unwrap();
            attend(&layer, stream, x, &mut out, &mut workspace).unwrap();
            (out, workspace)
        };
        let of_second = call(&second, &x);
        let of_first = call(&first, &x);
        match overwritten {
            true => first.memset_zeros(&mut x).unwrap(),
            false => drop(x),
        }
        first.synchronize().unwrap();
        assert_ones(&first, &of_first.0);
        assert_ones(&second, &of_second.0);
    }
}

/// As buffers are that were made while events were off, and the global variables of modules.
#[test]
fn a_buffer_without_events_is_an_error() {
    let Some((_turn, context)) = device() else {
        return;
    };
    let stream = context.new_stream().unwrap();
    let layer = layer(&stream);
    // SAFETY: nothing is used on another stream.
    unsafe { context.disable_event_tracking() };
    let x = ones(&stream, KEYS);
    // SAFETY: what was made meanwhile is not used.
    unsafe { context.enable_event_tracking() };
    let mut out = stream.alloc_zeros::<f16>(KEYS * ROW).unwrap();
    let mut workspace = stream.alloc_zeros::<u8>(64).unwrap();
    let error = attend(&layer, &stream, &x, &mut out, &mut workspace).unwrap_err();
    assert!(
        matches!(error, Error::Unordered { argument: "v", .. }),
        "{error}"
    );
    stream.synchronize().unwrap();
}
