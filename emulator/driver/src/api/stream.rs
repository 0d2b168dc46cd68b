//! Streams, events, captures and graphs.

use super::api;
use crate::capture::Recording;
use crate::code::{Code, Result};
use crate::ffi::{Host, Out};
use crate::state::{Handle, State, with};
use crate::work::{Event, HostFunction, Work};

fn create(out: Out<Handle>, flags: u32) -> Result {
    with(|state, context| match flags {
        0 | 1 => out.set(state.new_stream(context, flags == 0, false)),
        _ => Err(Code::INVALID_VALUE),
    })
}

fn elapsed(milliseconds: Out<f32>, start: Handle, end: Handle) -> Result {
    with(|state, _| {
        let time = |event| {
            let event: &Event = state.events.get(&event).ok_or(Code::INVALID_HANDLE)?;
            match event.last {
                Recording::Stream(_) if event.timing => event.time.ok_or(Code::NOT_READY),
                _ => Err(Code::INVALID_HANDLE),
            }
        };
        let (start, end) = (time(start)?, time(end)?);
        let forth = end.saturating_duration_since(start).as_secs_f32();
        let back = start.saturating_duration_since(end).as_secs_f32();
        milliseconds.set(1e3 * (forth - back))
    })
}

impl State {
    /// The number of what an event recorded, unless that was reached.
    fn pending(&mut self, event: Handle) -> Result<Option<u64>> {
        let event = self.events.get(&event).ok_or(Code::INVALID_HANDLE)?;
        let number = match event.last {
            Recording::Never => None,
            Recording::Stream(number) => Some(number),
            Recording::Capture { capture, .. } => {
                self.invalidate(capture);
                return Err(Code::CAPTURED_EVENT);
            }
        };
        self.check_safe()?;
        Ok(number.filter(|number| self.recorded.contains_key(number)))
    }
}

api! {
    fn cuStreamCreate(stream: Out<Handle>, flags: u32) {
        create(stream, flags)
    }

    fn cuStreamCreateWithPriority(stream: Out<Handle>, flags: u32, _priority: i32) {
        create(stream, flags)
    }

    fn cuStreamDestroy_v2(stream: Handle) {
        with(|state, context| {
            // Nothing waits for its work, which is done when something else needs it done.
            match state.streams.get_mut(&stream) {
                Some(found) if !found.legacy && !found.destroyed => {
                    found.destroyed = true;
                    if found.queue.is_empty() {
                        state.streams.remove(&stream);
                    }
                }
                _ => return Err(Code::INVALID_HANDLE),
            }
            state.check(context)
        })
    }

    fn cuStreamGetCtx(stream: Handle, out: Out<Handle>) {
        with(|state, context| {
            let stream = state.stream(context, stream)?;
            out.set(state.streams[&stream].context)
        })
    }

    fn cuStreamSynchronize(stream: Handle) {
        with(|state, context| {
            let stream = state.stream(context, stream)?;
            state.check_not_capturing(stream)?;
            state.drain(stream);
            state.check(state.streams[&stream].context)
        })
    }

    fn cuStreamQuery(stream: Handle) {
        with(|state, context| {
            let stream = state.stream(context, stream)?;
            state.check_not_capturing(stream)?;
            // Whoever asks again and again sees progress.
            state.step(stream);
            let found = &state.streams[&stream];
            state.check(found.context)?;
            match found.queue.is_empty() {
                true => Ok(()),
                false => Err(Code::NOT_READY),
            }
        })
    }

    fn cuStreamWaitEvent(stream: Handle, event: Handle, _flags: u32) {
        with(|state, context| {
            let stream = state.stream(context, stream)?;
            state.wait(stream, event)
        })
    }

    fn cuLaunchHostFunc(stream: Handle, function: Option<HostFunction>, argument: Host) {
        with(|state, context| {
            let stream = state.stream(context, stream)?;
            let function = function.ok_or(Code::INVALID_VALUE)?;
            state.enqueue(stream, Work::Call(function, argument))
        })
    }

    fn cuEventCreate(event: Out<Handle>, flags: u32) {
        with(|state, context| {
            // BLOCKING_SYNC, DISABLE_TIMING, INTERPROCESS.
            if flags > 7 {
                return Err(Code::INVALID_VALUE);
            }
            let handle = state.new_handle();
            let created = Event {
                context,
                timing: flags & 2 == 0,
                last: Recording::Never,
                time: None,
            };
            state.events.insert(handle, created);
            event.set(handle)
        })
    }

    fn cuEventDestroy_v2(event: Handle) {
        with(|state, _| {
            let removed = state.events.remove(&event);
            removed.map(drop).ok_or(Code::INVALID_HANDLE)
        })
    }

    fn cuEventRecord(event: Handle, stream: Handle) {
        with(|state, context| {
            let stream = state.stream(context, stream)?;
            state.record(event, stream)
        })
    }

    fn cuEventQuery(event: Handle) {
        with(|state, context| {
            let Some(number) = state.pending(event)? else {
                return Ok(());
            };
            state.step(state.recorded[&number]);
            state.check(context)?;
            match state.recorded.contains_key(&number) {
                false => Ok(()),
                true => Err(Code::NOT_READY),
            }
        })
    }

    fn cuEventSynchronize(event: Handle) {
        with(|state, context| {
            if let Some(number) = state.pending(event)? {
                state.reach(number);
            }
            state.check(context)
        })
    }

    fn cuEventElapsedTime(milliseconds: Out<f32>, start: Handle, end: Handle) {
        elapsed(milliseconds, start, end)
    }

    fn cuEventElapsedTime_v2(milliseconds: Out<f32>, start: Handle, end: Handle) {
        elapsed(milliseconds, start, end)
    }

    fn cuStreamBeginCapture_v2(stream: Handle, mode: u32) {
        with(|state, context| {
            let stream = state.stream(context, stream)?;
            state.begin_capture(context, stream, mode)
        })
    }

    fn cuStreamEndCapture(stream: Handle, graph: Out<Handle>) {
        with(|state, context| {
            let stream = state.stream(context, stream)?;
            let ended = state.end_capture(stream);
            graph.set(ended.unwrap_or(0))?;
            ended.map(drop)
        })
    }

    fn cuStreamIsCapturing(stream: Handle, status: Out<i32>) {
        with(|state, context| {
            let stream = state.stream(context, stream)?;
            status.set(state.capture_status(stream))
        })
    }

    fn cuGraphInstantiateWithFlags(executable: Out<Handle>, graph: Handle, flags: u64) {
        with(|state, _| executable.set(state.instantiate(graph, flags)?))
    }

    fn cuGraphUpload(executable: Handle, stream: Handle) {
        with(|state, context| {
            state.stream(context, stream)?;
            match state.executables.contains_key(&executable) {
                true => Ok(()),
                false => Err(Code::INVALID_HANDLE),
            }
        })
    }

    fn cuGraphLaunch(executable: Handle, stream: Handle) {
        with(|state, context| {
            let stream = state.stream(context, stream)?;
            state.launch_graph(executable, stream)
        })
    }

    fn cuGraphDestroy(graph: Handle) {
        with(|state, _| {
            let removed = state.graphs.remove(&graph);
            removed.map(drop).ok_or(Code::INVALID_VALUE)
        })
    }

    fn cuGraphExecDestroy(executable: Handle) {
        with(|state, _| {
            let removed = state.executables.remove(&executable);
            removed.map(drop).ok_or(Code::INVALID_VALUE)
        })
    }

    fn cuGraphGetNodes(graph: Handle, nodes: Host, count: Out<usize>) {
        with(|state, _| {
            let found = state.graphs.get(&graph).ok_or(Code::INVALID_VALUE)?;
            match nodes.is_null() {
                true => count.set(found.len()),
                false => Err(Code::NOT_SUPPORTED),
            }
        })
    }
}
