//! Initialisation, errors, devices and contexts.

use std::ffi::{CStr, c_char};

use super::api;
use crate::calls;
use crate::code::{Code, Result};
use crate::ffi::{Host, Out, Text};
use crate::settings::SETTINGS;
use crate::state::{self, Handle, state, with};

/// How often a function of this library was called, such as `cuMemAlloc_v2`. Not of the CUDA driver API.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ptx_emulator_driver_calls(name: Text) -> u64 {
    name.get().map_or(0, calls::of)
}

/// The only device.
fn check_device(device: i32) -> Result {
    drop(state()?);
    match (0..SETTINGS.devices).contains(&device) {
        true => Ok(()),
        false => Err(Code::INVALID_DEVICE),
    }
}

fn text_of(code: i32, text: fn(Code) -> Option<&'static CStr>, out: Out<*const c_char>) -> Result {
    match text(Code(code)) {
        Some(text) => out.set(text.as_ptr()),
        None => {
            out.set_if_wanted(std::ptr::null());
            Err(Code::INVALID_VALUE)
        }
    }
}

fn handle(context: Option<Handle>) -> Handle {
    context.unwrap_or(0)
}

api! {
    fn cuInit(flags: u32) {
        match flags {
            0 => state::initialise(),
            _ => Err(Code::INVALID_VALUE),
        }
    }

    fn cuDriverGetVersion(version: Out<i32>) {
        version.set(13000)
    }

    fn cuGetErrorName(error: i32, name: Out<*const c_char>) {
        text_of(error, Code::name, name)
    }

    fn cuGetErrorString(error: i32, text: Out<*const c_char>) {
        text_of(error, Code::description, text)
    }

    fn cuDeviceGetCount(count: Out<i32>) {
        drop(state()?);
        count.set(SETTINGS.devices)
    }

    fn cuDeviceGet(device: Out<i32>, ordinal: i32) {
        check_device(ordinal)?;
        device.set(ordinal)
    }

    fn cuDeviceGetAttribute(value: Out<i32>, attribute: i32, device: i32) {
        check_device(device)?;
        value.set(SETTINGS.attribute(attribute))
    }

    fn cuDeviceGetName(name: Out<c_char>, len: i32, device: i32) {
        check_device(device)?;
        name.set_text("PTX emulator", len)
    }

    fn cuDeviceGetUuid_v2(uuid: Out<[u8; 16]>, device: i32) {
        check_device(device)?;
        uuid.set(*b"the PTX emulator")
    }

    fn cuDeviceTotalMem_v2(bytes: Out<usize>, device: i32) {
        check_device(device)?;
        bytes.set(SETTINGS.memory as usize)
    }

    fn cuDevicePrimaryCtxRetain(context: Out<Handle>, device: i32) {
        check_device(device)?;
        let handle = state()?.retain_primary();
        context.set(handle)
    }

    fn cuDevicePrimaryCtxRelease_v2(device: i32) {
        check_device(device)?;
        state()?.release_primary()
    }

    fn cuDevicePrimaryCtxGetState(device: i32, flags: Out<u32>, active: Out<i32>) {
        check_device(device)?;
        flags.set(0)?;
        active.set(i32::from(state()?.primary_count() > 0))
    }

    fn cuCtxCreate_v4(context: Out<Handle>, parameters: Host, _flags: u32, device: i32) {
        check_device(device)?;
        if !parameters.is_null() {
            return Err(Code::NOT_SUPPORTED);
        }
        let handle = state()?.new_context();
        state::push_current(handle);
        context.set(handle)
    }

    fn cuCtxDestroy_v2(context: Handle) {
        state()?.destroy_context(context)?;
        if state::current() == Some(context) {
            state::pop_current();
        }
        Ok(())
    }

    fn cuCtxGetCurrent(context: Out<Handle>) {
        drop(state()?);
        context.set(handle(state::current()))
    }

    fn cuCtxSetCurrent(context: Handle) {
        if context != 0 && !state()?.contexts.contains_key(&context) {
            return Err(Code::INVALID_CONTEXT);
        }
        state::set_current((context != 0).then_some(context));
        Ok(())
    }

    fn cuCtxPushCurrent_v2(context: Handle) {
        if !state()?.contexts.contains_key(&context) {
            return Err(Code::INVALID_CONTEXT);
        }
        state::push_current(context);
        Ok(())
    }

    fn cuCtxPopCurrent_v2(context: Out<Handle>) {
        let popped = state::pop_current().ok_or(Code::INVALID_CONTEXT)?;
        context.set_if_wanted(popped);
        Ok(())
    }

    fn cuCtxGetDevice(device: Out<i32>) {
        with(|_, _| device.set(0))
    }

    fn cuCtxGetStreamPriorityRange(least: Out<i32>, greatest: Out<i32>) {
        with(|_, _| {
            least.set_if_wanted(0);
            greatest.set_if_wanted(0);
            Ok(())
        })
    }

    fn cuCtxSynchronize() {
        with(|state, context| {
            state.check_no_capture(context)?;
            state.drain_context(context);
            state.check(context)
        })
    }
}
