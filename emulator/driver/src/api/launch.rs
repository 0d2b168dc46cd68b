//! Launches.

use std::sync::Arc;

use ptx_emulator::LaunchConfig;

use super::api;
use crate::code::{Code, Result};
use crate::ffi::{Arguments, Host};
use crate::launch::{Attributes, Config, Shape};
use crate::settings::SETTINGS;
use crate::state::{Function, Handle, with};
use crate::work::{Launch, Work};

fn launch(
    function: Handle,
    shape: Shape,
    shared_bytes: u32,
    stream: Handle,
    attributes: Attributes,
    arguments: [Arguments; 2],
) -> Result {
    with(|state, context| {
        let stream = state.stream(context, stream)?;
        let found = state.functions.get(&function).ok_or(Code::INVALID_HANDLE)?;
        if found.context != state.streams[&stream].context {
            return Err(Code::INVALID_HANDLE);
        }
        found.check_launch(shape, shared_bytes, attributes)?;
        // SAFETY: the caller passes what the function takes.
        let params = unsafe { params(found, arguments) }?;
        let ([grid_x, grid_y, grid_z], [x, y, z]) = (shape.grid, shape.block);
        let config = LaunchConfig::new((grid_x, grid_y, grid_z), (x, y, z))
            .shared_bytes(shared_bytes)
            .shared_limit(SETTINGS.device.shared_optin() as u32)
            .checks(SETTINGS.checks)
            .seed(SETTINGS.seed);
        let launch = Launch {
            function,
            config,
            params,
        };
        state.enqueue(stream, Work::Launch(Arc::new(launch)))
    })
}

/// The bytes of the parameters.
///
/// # Safety
/// The arguments are those that the function takes.
unsafe fn params(function: &Function, [each, all]: [Arguments; 2]) -> Result<Vec<u8>> {
    let len = function.info.param_bytes as usize;
    let mut bytes = vec![0; len];
    match (each.is_null(), all.is_null()) {
        (true, true) if len == 0 => {}
        (false, true) => {
            for (i, param) in function.info.params.iter().enumerate() {
                let (at, size) = (param.offset as usize, param.size as usize);
                // SAFETY: there is a pointer for each parameter, to as many bytes.
                let argument = unsafe { each.get(i).read(0, size) };
                bytes[at..at + size].copy_from_slice(argument);
            }
        }
        (true, false) => {
            const END: usize = 0;
            const POINTER: usize = 1;
            const SIZE: usize = 2;
            let (mut pointer, mut size) = (None, None);
            for i in 0.. {
                // SAFETY: names and values take turns, until the name that ends them.
                let (name, value) = unsafe {
                    match all.get(2 * i).address() {
                        END => break,
                        name => (name, all.get(2 * i + 1)),
                    }
                };
                match name {
                    POINTER => pointer = Some(value),
                    // SAFETY: the value points to a size.
                    SIZE => size = Some(unsafe { value.value::<usize>(0) }),
                    _ => return Err(Code::INVALID_VALUE),
                }
            }
            match (pointer, size) {
                (Some(pointer), Some(size)) if size == len => {
                    // SAFETY: that is where and how long the parameters are.
                    bytes.copy_from_slice(unsafe { pointer.read(0, size) });
                }
                _ => return Err(Code::INVALID_VALUE),
            }
        }
        _ => return Err(Code::INVALID_VALUE),
    }
    Ok(bytes)
}

api! {
    fn cuLaunchKernel(
        function: Handle,
        grid_x: u32,
        grid_y: u32,
        grid_z: u32,
        x: u32,
        y: u32,
        z: u32,
        shared_bytes: u32,
        stream: Handle,
        each: Arguments,
        all: Arguments,
    ) {
        let shape = Shape { grid: [grid_x, grid_y, grid_z], block: [x, y, z] };
        launch(function, shape, shared_bytes, stream, Attributes::default(), [each, all])
    }

    fn cuLaunchKernelEx(config: Host, function: Handle, each: Arguments, all: Arguments) {
        // SAFETY: the caller has a configuration there.
        let (config, attributes) = unsafe { Config::read(config) }?;
        launch(function, config.shape, config.shared_bytes, config.stream, attributes, [each, all])
    }

    fn cuLaunchCooperativeKernel(
        function: Handle,
        grid_x: u32,
        grid_y: u32,
        grid_z: u32,
        x: u32,
        y: u32,
        z: u32,
        shared_bytes: u32,
        stream: Handle,
        each: Arguments,
    ) {
        let shape = Shape { grid: [grid_x, grid_y, grid_z], block: [x, y, z] };
        let attributes = Attributes { cooperative: true, ..Attributes::default() };
        launch(function, shape, shared_bytes, stream, attributes, [each, Arguments::NONE])
    }
}
