//! Memory, copies and fills.

use std::alloc::{self, Layout};

use super::api;
use crate::code::{Code, Result};
use crate::ffi::{Host, Out};
use crate::state::{Handle, State, with};
use crate::work::{Side, Work};

impl State {
    /// Whether memory of the host is pinned, so that copies need not be made before a call returns.
    fn is_pinned(&self, host: Host) -> bool {
        let before = self.pinned.range(..=host.address()).next_back();
        before.is_some_and(|(&base, layout)| host.address() < base + layout.size())
    }

    fn enqueue_copy(&mut self, stream: Handle, to: Side, from: Side, len: usize) -> Result {
        for side in [&to, &from] {
            match side {
                Side::Device(address) => self.check_device(*address, len)?,
                Side::Host(host) if len > 0 && host.is_null() => return Err(Code::INVALID_VALUE),
                _ => {}
            }
        }
        if len == 0 {
            return Ok(());
        }
        let capturing = self.capture_status(stream) != 0;
        let pageable = |side: &Side| match side {
            Side::Host(host) if !capturing && !self.is_pinned(*host) => Some(*host),
            _ => None,
        };
        let returns_late = pageable(&to).is_some();
        let from = match pageable(&from) {
            // SAFETY: the caller has memory of that length there.
            Some(host) => Side::Bytes(unsafe { host.read(0, len) }.into()),
            None => from,
        };
        self.enqueue(stream, Work::Copy { to, from, len })?;
        if returns_late {
            self.drain(stream);
            self.check(self.streams[&stream].context)?;
        }
        Ok(())
    }

    fn enqueue_fill(
        &mut self,
        stream: Handle,
        to: u64,
        fill: ([u8; 4], usize),
        count: usize,
    ) -> Result {
        let (value, size) = fill;
        let len = count.checked_mul(size).ok_or(Code::INVALID_VALUE)?;
        self.check_device(to, len)?;
        if !to.is_multiple_of(size as u64) {
            return Err(Code::INVALID_VALUE);
        }
        match len {
            0 => Ok(()),
            _ => self.enqueue(
                stream,
                Work::Fill {
                    to,
                    value,
                    size,
                    count,
                },
            ),
        }
    }
}

/// A copy in a stream.
fn copy(to: Side, from: Side, len: usize, stream: Handle) -> Result {
    with(|state, context| {
        let stream = state.stream(context, stream)?;
        state.enqueue_copy(stream, to, from, len)
    })
}

/// A copy that was made when the call returns.
fn copy_now(to: Side, from: Side, len: usize) -> Result {
    with(|state, context| {
        state.check_safe()?;
        let stream = state.stream(context, 0)?;
        state.enqueue_copy(stream, to, from, len)?;
        state.drain(stream);
        state.check(context)
    })
}

fn fill(to: u64, value: u32, size: usize, count: usize, stream: Handle) -> Result {
    with(|state, context| {
        let stream = state.stream(context, stream)?;
        state.enqueue_fill(stream, to, (value.to_le_bytes(), size), count)
    })
}

/// A fill by a function without a stream.
fn fill_now(to: u64, value: u32, size: usize, count: usize) -> Result {
    with(|state, _| state.check_safe())?;
    fill(to, value, size, count, 0)
}

api! {
    fn cuMemGetInfo_v2(free: Out<usize>, total: Out<usize>) {
        with(|state, _| {
            let (free_bytes, total_bytes) = state.free_and_total();
            free.set(free_bytes)?;
            total.set(total_bytes)
        })
    }

    fn cuMemAlloc_v2(address: Out<u64>, len: usize) {
        with(|state, context| {
            state.check_safe()?;
            match len {
                0 => Err(Code::INVALID_VALUE),
                _ => address.set(state.allocate(context, len, false)?),
            }
        })
    }

    fn cuMemFree_v2(address: u64) {
        with(|state, context| {
            state.check_safe()?;
            if address == 0 {
                return Ok(());
            }
            // Nothing is waited for where the memory was allocated in stream order.
            if !state.begin_release(address)? {
                state.drain_context(context);
                state.check(context)?;
            }
            state.release(address);
            Ok(())
        })
    }

    fn cuMemAllocAsync(address: Out<u64>, len: usize, stream: Handle) {
        with(|state, context| {
            let stream = state.stream(context, stream)?;
            if state.capture_status(stream) != 0 {
                eprintln!("ptx-emulator-driver: allocations in graphs are not supported");
                return Err(Code::NOT_SUPPORTED);
            }
            match len {
                0 => address.set(0),
                _ => address.set(state.allocate(context, len, true)?),
            }
        })
    }

    fn cuMemFreeAsync(address: u64, stream: Handle) {
        with(|state, context| {
            let stream = state.stream(context, stream)?;
            if state.capture_status(stream) != 0 {
                eprintln!("ptx-emulator-driver: releases in graphs are not supported");
                return Err(Code::NOT_SUPPORTED);
            }
            if address == 0 {
                return Ok(());
            }
            state.begin_release(address)?;
            state.enqueue(stream, Work::Release(address))
        })
    }

    fn cuMemHostAlloc(pointer: Out<*mut u8>, len: usize, _flags: u32) {
        with(|state, _| {
            state.check_safe()?;
            let layout = Layout::from_size_align(len, 4096).map_err(|_| Code::INVALID_VALUE)?;
            if len == 0 {
                return Err(Code::INVALID_VALUE);
            }
            // SAFETY: the layout is not empty.
            let memory = unsafe { alloc::alloc_zeroed(layout) };
            if memory.is_null() {
                return Err(Code::OUT_OF_MEMORY);
            }
            state.pinned.insert(memory.addr(), layout);
            pointer.set(memory)
        })
    }

    fn cuMemFreeHost(pointer: Host) {
        with(|state, context| {
            state.check_safe()?;
            let layout = state.pinned.remove(&pointer.address());
            let layout = layout.ok_or(Code::INVALID_VALUE)?;
            // Copies may be under way.
            state.drain_context(context);
            // SAFETY: it was allocated with that layout, and the caller gives it up.
            unsafe { alloc::dealloc(pointer.as_ptr().cast(), layout) };
            state.check(context)
        })
    }

    fn cuMemcpyHtoD_v2(to: u64, from: Host, len: usize) {
        copy_now(Side::Device(to), Side::Host(from), len)
    }

    fn cuMemcpyDtoH_v2(to: Host, from: u64, len: usize) {
        copy_now(Side::Host(to), Side::Device(from), len)
    }

    fn cuMemcpyDtoD_v2(to: u64, from: u64, len: usize) {
        copy_now(Side::Device(to), Side::Device(from), len)
    }

    fn cuMemcpyHtoDAsync_v2(to: u64, from: Host, len: usize, stream: Handle) {
        copy(Side::Device(to), Side::Host(from), len, stream)
    }

    fn cuMemcpyDtoHAsync_v2(to: Host, from: u64, len: usize, stream: Handle) {
        copy(Side::Host(to), Side::Device(from), len, stream)
    }

    fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, len: usize, stream: Handle) {
        copy(Side::Device(to), Side::Device(from), len, stream)
    }

    fn cuMemcpyPeerAsync(to: u64, _to_context: Handle, from: u64, _from_context: Handle, len: usize, stream: Handle) {
        copy(Side::Device(to), Side::Device(from), len, stream)
    }

    fn cuMemsetD8_v2(to: u64, value: u8, count: usize) {
        fill_now(to, value.into(), 1, count)
    }

    fn cuMemsetD16_v2(to: u64, value: u16, count: usize) {
        fill_now(to, value.into(), 2, count)
    }

    fn cuMemsetD32_v2(to: u64, value: u32, count: usize) {
        fill_now(to, value, 4, count)
    }

    fn cuMemsetD8Async(to: u64, value: u8, count: usize, stream: Handle) {
        fill(to, value.into(), 1, count, stream)
    }

    fn cuMemsetD16Async(to: u64, value: u16, count: usize, stream: Handle) {
        fill(to, value.into(), 2, count, stream)
    }

    fn cuMemsetD32Async(to: u64, value: u32, count: usize, stream: Handle) {
        fill(to, value, 4, count, stream)
    }
}
