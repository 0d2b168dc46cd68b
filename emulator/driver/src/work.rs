//! Work of streams: enqueued, and done as late as the API allows, so that a missing wait shows.

use std::collections::VecDeque;
use std::ffi::c_void;
use std::sync::Arc;
use std::time::Instant;

use ptx_emulator::{DevicePtr, Fault, FaultKind, LaunchConfig, MemoryError, Space};

use crate::capture::Recording;
use crate::code::{Code, Result};
use crate::ffi::Host;
use crate::settings::SETTINGS;
use crate::state::{Handle, State};

/// Work that is not done yet.
pub type Queue = VecDeque<Work>;

/// Enqueued work beyond this is done at once.
const LONGEST_QUEUE: usize = 4096;

/// A unit of work.
#[derive(Clone)]
pub enum Work {
    /// A kernel.
    Launch(Arc<Launch>),
    /// A copy of so many bytes.
    Copy { to: Side, from: Side, len: usize },
    /// So many elements of a value's first bytes.
    Fill {
        to: u64,
        value: [u8; 4],
        size: usize,
        count: usize,
    },
    /// Released memory.
    Release(u64),
    /// An event is reached.
    Record { event: Handle, number: u64 },
    /// Waits until an event was reached.
    Wait(u64),
    /// A function of the host, and its argument.
    Call(HostFunction, Host),
}

/// A function that a stream calls.
pub type HostFunction = unsafe extern "C" fn(*mut c_void);

/// What a launch runs.
pub struct Launch {
    pub function: Handle,
    pub config: LaunchConfig,
    pub params: Vec<u8>,
}

/// An end of a copy.
#[derive(Clone)]
pub enum Side {
    /// Device memory.
    Device(u64),
    /// Memory of the host, which is valid until the copy was made.
    Host(Host),
    /// What the host had when the copy was enqueued.
    Bytes(Arc<[u8]>),
}

/// An event.
pub struct Event {
    pub context: Handle,
    /// Whether it can tell the time.
    pub timing: bool,
    pub last: Recording,
    /// When it was reached.
    pub time: Option<Instant>,
}

impl State {
    /// Enqueues work, or adds it to the capture of the stream.
    pub fn enqueue(&mut self, handle: Handle, work: Work) -> Result {
        if self.capture_work(handle, &work)? {
            return Ok(());
        }
        let stream = &self.streams[&handle];
        let (context, legacy, blocking) = (stream.context, stream.legacy, stream.blocking);
        if legacy {
            self.check_no_blocking_capture(context)?;
        }
        if blocking {
            // The legacy stream and the blocking ones wait for each other: what may be early is done now.
            for other in self.streams_of(context) {
                let other_stream = &self.streams[&other];
                if other != handle && other_stream.blocking && (legacy || other_stream.legacy) {
                    self.drain(other);
                }
            }
            self.check(context)?;
        }
        let queue = &mut self.queue(handle);
        queue.push_back(work);
        if SETTINGS.blocking || queue.len() > LONGEST_QUEUE {
            self.drain(handle);
            self.check(context)?;
        }
        Ok(())
    }

    fn queue(&mut self, stream: Handle) -> &mut Queue {
        let stream = self.streams.get_mut(&stream);
        &mut stream.expect("streams are looked up first").queue
    }

    /// The streams of a context.
    pub fn streams_of(&self, context: Handle) -> Vec<Handle> {
        let all = self.streams.iter();
        all.filter(|(_, stream)| stream.context == context)
            .map(|(&handle, _)| handle)
            .collect()
    }

    /// Does all work of a stream, and of others what it waits for.
    pub fn drain(&mut self, stream: Handle) {
        while self.step(stream) {}
    }

    /// Does all work of a context, a unit of one stream and one of another as chance has it.
    pub fn drain_context(&mut self, context: Handle) {
        let mut streams = self.streams_of(context);
        while !streams.is_empty() {
            // Constants of Knuth's MMIX.
            self.random = (self.random ^ SETTINGS.seed)
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            let i = (self.random >> 33) as usize % streams.len();
            if !self.step(streams[i]) {
                streams.swap_remove(i);
            }
        }
    }

    /// Does what an event waits for.
    pub fn reach(&mut self, number: u64) {
        while let Some(&stream) = self.recorded.get(&number) {
            if !self.step(stream) {
                // Its context has failed or is gone.
                self.recorded.remove(&number);
            }
        }
    }

    /// Does the first work of a stream; false if there is none.
    pub fn step(&mut self, handle: Handle) -> bool {
        let Some(stream) = self.streams.get_mut(&handle) else {
            return false;
        };
        let context = stream.context;
        let Some(work) = stream.queue.pop_front() else {
            return false;
        };
        if let Err(code) = self.perform(work) {
            let failed = self.contexts.get_mut(&context);
            failed.expect("a context outlives its streams").error = Some(code);
            for stream in self.streams_of(context) {
                self.queue(stream).clear();
            }
        }
        true
    }

    fn perform(&mut self, work: Work) -> Result {
        match work {
            Work::Launch(launch) => self.launch(&launch),
            Work::Copy { to, from, len } => self.copy(&to, &from, len),
            Work::Fill {
                to,
                value,
                size,
                count,
            } => {
                let filled = match size {
                    1 => self.memory.fill(DevicePtr(to), value[0], count as u64),
                    _ => self
                        .memory
                        .write(DevicePtr(to), &value[..size].repeat(count)),
                };
                filled.map_err(illegal)
            }
            Work::Release(address) => {
                self.release(address);
                Ok(())
            }
            Work::Record { event, number } => {
                self.recorded.remove(&number);
                if let Some(event) = self.events.get_mut(&event)
                    && matches!(event.last, Recording::Stream(last) if last == number)
                {
                    event.time = Some(Instant::now());
                }
                Ok(())
            }
            Work::Wait(number) => {
                self.reach(number);
                Ok(())
            }
            Work::Call(function, argument) => {
                // SAFETY: who enqueued them vouches for both until the function was called.
                unsafe { function(argument.as_ptr()) };
                Ok(())
            }
        }
    }

    fn launch(&self, launch: &Launch) -> Result {
        let Some(function) = self.functions.get(&launch.function) else {
            eprintln!("ptx-emulator-driver: a kernel was launched whose module is unloaded");
            return Err(Code::LAUNCH_FAILED);
        };
        let name = &function.info.name;
        let done = function
            .code
            .launch(&self.memory, name, &launch.config, &launch.params);
        done.map(drop).map_err(|fault| {
            eprintln!("ptx-emulator-driver: {fault}");
            code(&fault)
        })
    }

    fn copy(&self, to: &Side, from: &Side, len: usize) -> Result {
        let mut buffer = Vec::new();
        let bytes: &[u8] = match from {
            Side::Bytes(bytes) => bytes,
            // SAFETY: who enqueued the copy keeps the memory valid until it was made.
            Side::Host(host) => unsafe { host.read(0, len) },
            Side::Device(address) => {
                buffer.resize(len, 0);
                let read = self.memory.read(DevicePtr(*address), &mut buffer);
                read.map_err(illegal)?;
                &buffer
            }
        };
        match to {
            Side::Device(address) => {
                let written = self.memory.write(DevicePtr(*address), bytes);
                written.map_err(illegal)?;
            }
            Side::Host(host) => {
                // SAFETY: as above.
                unsafe { host.write(0..len) }.copy_from_slice(bytes);
            }
            Side::Bytes(_) => {}
        }
        Ok(())
    }
}

fn illegal(error: MemoryError) -> Code {
    eprintln!("ptx-emulator-driver: {error}");
    Code::ILLEGAL_ADDRESS
}

/// What a device would report.
fn code(fault: &Fault) -> Code {
    match &fault.kind {
        FaultKind::OutOfBounds { space, .. } if *space != Space::Param => Code::ILLEGAL_ADDRESS,
        FaultKind::UseAfterFree { .. } => Code::ILLEGAL_ADDRESS,
        FaultKind::Misaligned { .. } => Code::MISALIGNED_ADDRESS,
        FaultKind::Trap(why) if why.contains("assert") => Code::ASSERT,
        FaultKind::Trap(_) | FaultKind::UnknownInstruction(_) => Code::ILLEGAL_INSTRUCTION,
        FaultKind::Timeout { .. } => Code::LAUNCH_TIMEOUT,
        _ => Code::LAUNCH_FAILED,
    }
}
