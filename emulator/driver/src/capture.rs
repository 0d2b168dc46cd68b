//! Captures of streams into graphs. What is captured is kept in the order in which it was called, which is one of the
//! orders that the dependencies allow.

use std::collections::HashSet;
use std::thread::{self, ThreadId};

use crate::code::{Code, Result};
use crate::state::{Executable, Handle, State};
use crate::work::Work;

/// Nodes of a graph, and those that they wait for.
type Nodes = HashSet<usize>;

/// A capture under way.
pub struct Capture {
    pub context: Handle,
    /// The stream that began it.
    origin: Handle,
    mode: Mode,
    thread: ThreadId,
    nodes: Vec<Work>,
    /// Something was called that may not be.
    broken: bool,
}

/// Whom a capture keeps from calls that are unsafe while it lasts (`CUstreamCaptureMode`).
#[derive(PartialEq)]
enum Mode {
    Global,
    ThreadLocal,
    Relaxed,
}

/// A stream's part in a capture.
pub struct Joined {
    capture: u64,
    /// What its next node waits for.
    known: Nodes,
}

/// What an event stands for.
pub enum Recording {
    /// Nothing.
    Never,
    /// A point in a stream, by number.
    Stream(u64),
    /// A point in a capture.
    Capture { capture: u64, known: Nodes },
}

impl State {
    /// Lets a stream capture.
    pub fn begin_capture(&mut self, context: Handle, stream: Handle, mode: u32) -> Result {
        let mode = match mode {
            0 => Mode::Global,
            1 => Mode::ThreadLocal,
            2 => Mode::Relaxed,
            _ => return Err(Code::INVALID_VALUE),
        };
        let number = self.new_handle() as u64;
        let found = self.streams.get_mut(&stream).ok_or(Code::INVALID_HANDLE)?;
        if found.legacy {
            return Err(Code::STREAM_CAPTURE_UNSUPPORTED);
        }
        if found.joined.is_some() {
            return Err(Code::ILLEGAL_STATE);
        }
        found.joined = Some(Joined {
            capture: number,
            known: Nodes::new(),
        });
        let capture = Capture {
            context,
            origin: stream,
            mode,
            thread: thread::current().id(),
            nodes: Vec::new(),
            broken: false,
        };
        self.captures.insert(number, capture);
        Ok(())
    }

    /// Ends the capture that a stream began, and makes a graph of it.
    pub fn end_capture(&mut self, stream: Handle) -> Result<Handle> {
        let joined = self.streams[&stream].joined.as_ref();
        let joined = joined.ok_or(Code::ILLEGAL_STATE)?;
        let number = joined.capture;
        let all_known = joined.known.len();
        let capture = &self.captures[&number];
        if capture.origin != stream {
            self.invalidate(number);
            return Err(Code::STREAM_CAPTURE_UNMATCHED);
        }
        if capture.mode != Mode::Relaxed && capture.thread != thread::current().id() {
            return Err(Code::STREAM_CAPTURE_WRONG_THREAD);
        }
        for stream in self.streams.values_mut() {
            stream.joined.take_if(|joined| joined.capture == number);
        }
        let capture = self.captures.remove(&number);
        let capture = capture.expect("streams take part in captures that are there");
        if capture.broken {
            return Err(Code::STREAM_CAPTURE_INVALIDATED);
        }
        if all_known < capture.nodes.len() {
            return Err(Code::STREAM_CAPTURE_UNJOINED);
        }
        let graph = self.new_handle();
        self.graphs.insert(graph, capture.nodes);
        Ok(graph)
    }

    /// Makes a capture end in an error, if it is under way.
    pub fn invalidate(&mut self, number: u64) {
        if let Some(capture) = self.captures.get_mut(&number) {
            capture.broken = true;
        }
    }

    /// 0 if a stream does not capture, 1 if it does, 2 if something went wrong since (`CUstreamCaptureStatus`).
    pub fn capture_status(&self, stream: Handle) -> i32 {
        match &self.streams[&stream].joined {
            None => 0,
            Some(joined) => 1 + i32::from(self.captures[&joined.capture].broken),
        }
    }

    /// Adds work to the capture of a stream; false if it does not capture.
    pub fn capture_work(&mut self, handle: Handle, work: &Work) -> Result<bool> {
        let stream = self.streams.get_mut(&handle).ok_or(Code::INVALID_HANDLE)?;
        let Some(joined) = &mut stream.joined else {
            return Ok(false);
        };
        let capture = self.captures.get_mut(&joined.capture);
        let capture = capture.expect("streams take part in captures that are there");
        if capture.broken {
            return Err(Code::STREAM_CAPTURE_INVALIDATED);
        }
        joined.known.insert(capture.nodes.len());
        capture.nodes.push(work.clone());
        Ok(true)
    }

    /// Records an event.
    pub fn record(&mut self, event: Handle, stream: Handle) -> Result {
        let context = self.streams[&stream].context;
        let number = self.new_handle() as u64;
        let found = self.events.get_mut(&event).ok_or(Code::INVALID_HANDLE)?;
        if found.context != context {
            return Err(Code::INVALID_HANDLE);
        }
        found.time = None;
        if let Some(joined) = &self.streams[&stream].joined {
            if self.captures[&joined.capture].broken {
                return Err(Code::STREAM_CAPTURE_INVALIDATED);
            }
            found.last = Recording::Capture {
                capture: joined.capture,
                known: joined.known.clone(),
            };
            return Ok(());
        }
        found.last = Recording::Stream(number);
        self.recorded.insert(number, stream);
        self.enqueue(stream, Work::Record { event, number })
    }

    /// Makes a stream wait for an event.
    pub fn wait(&mut self, stream: Handle, event: Handle) -> Result {
        let event = self.events.get(&event).ok_or(Code::INVALID_HANDLE)?;
        let joined = self
            .streams
            .get_mut(&stream)
            .map(|stream| &mut stream.joined);
        let joined = joined.ok_or(Code::INVALID_HANDLE)?;
        match (&event.last, joined) {
            (Recording::Never, _) => Ok(()),
            (&Recording::Stream(number), None) => match self.recorded.contains_key(&number) {
                true => self.enqueue(stream, Work::Wait(number)),
                false => Ok(()),
            },
            (Recording::Stream(_), Some(joined)) => {
                let number = joined.capture;
                self.invalidate(number);
                Err(Code::STREAM_CAPTURE_ISOLATION)
            }
            (Recording::Capture { capture, known }, joined) => {
                if !self.captures.contains_key(capture) {
                    return Err(Code::CAPTURED_EVENT);
                }
                match joined {
                    None => {
                        let (capture, known) = (*capture, known.clone());
                        *joined = Some(Joined { capture, known });
                        Ok(())
                    }
                    Some(joined) if joined.capture == *capture => {
                        joined.known.extend(known);
                        Ok(())
                    }
                    Some(joined) => {
                        let both = [joined.capture, *capture];
                        both.into_iter().for_each(|number| self.invalidate(number));
                        Err(Code::STREAM_CAPTURE_MERGE)
                    }
                }
            }
        }
    }

    /// Refuses, and ends in error the captures that a condition holds for.
    fn refuse(&mut self, code: Code, condition: impl Fn(&Capture) -> bool) -> Result {
        let mut result = Ok(());
        for capture in self
            .captures
            .values_mut()
            .filter(|capture| condition(capture))
        {
            capture.broken = true;
            result = Err(code);
        }
        result
    }

    /// For calls that are unsafe while there is a capture, such as allocating.
    pub fn check_safe(&mut self) -> Result {
        let this = thread::current().id();
        self.refuse(Code::STREAM_CAPTURE_UNSUPPORTED, |capture| {
            match capture.mode {
                Mode::Global => true,
                Mode::ThreadLocal => capture.thread == this,
                Mode::Relaxed => false,
            }
        })
    }

    /// For calls that wait for all streams of a context.
    pub fn check_no_capture(&mut self, context: Handle) -> Result {
        self.refuse(Code::STREAM_CAPTURE_UNSUPPORTED, |capture| {
            capture.context == context
        })
    }

    /// For calls that wait for a stream.
    pub fn check_not_capturing(&mut self, stream: Handle) -> Result {
        match &self.streams[&stream].joined {
            None => Ok(()),
            Some(joined) => {
                let number = joined.capture;
                self.invalidate(number);
                Err(Code::STREAM_CAPTURE_UNSUPPORTED)
            }
        }
    }

    /// For the legacy stream, which would wait for every blocking stream.
    pub fn check_no_blocking_capture(&mut self, context: Handle) -> Result {
        let streams = self.streams.values();
        let capturing: Vec<u64> = streams
            .filter(|stream| stream.context == context && stream.blocking)
            .filter_map(|stream| Some(stream.joined.as_ref()?.capture))
            .collect();
        for &number in &capturing {
            self.invalidate(number);
        }
        match capturing.is_empty() {
            true => Ok(()),
            false => Err(Code::STREAM_CAPTURE_IMPLICIT),
        }
    }

    /// Makes a graph that can be launched.
    pub fn instantiate(&mut self, graph: Handle, flags: u64) -> Result<Handle> {
        let nodes = self.graphs.get(&graph).ok_or(Code::INVALID_HANDLE)?.clone();
        // AUTO_FREE_ON_LAUNCH, UPLOAD, DEVICE_LAUNCH, USE_NODE_PRIORITY; the first and the third exclude each other.
        if flags > 15 || flags & 5 == 5 {
            return Err(Code::INVALID_VALUE);
        }
        let handle = self.new_handle();
        self.executables
            .insert(handle, Executable { nodes, stream: 0 });
        Ok(handle)
    }

    /// Launches a graph.
    pub fn launch_graph(&mut self, executable: Handle, stream: Handle) -> Result {
        let executable = self.executables.get_mut(&executable);
        let executable = executable.ok_or(Code::INVALID_HANDLE)?;
        let nodes = executable.nodes.clone();
        let before = std::mem::replace(&mut executable.stream, stream);
        if before != stream {
            // A graph does not overlap itself.
            self.drain(before);
        }
        nodes
            .into_iter()
            .try_for_each(|work| self.enqueue(stream, work))
    }
}
