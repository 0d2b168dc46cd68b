//! Modules, functions, launches and occupancy.

use std::sync::Arc;

use ptx_emulator::LaunchConfig;

use super::api;
use crate::code::{Code, Result};
use crate::ffi::{Arguments, Host, Out, Text};
use crate::image;
use crate::settings::SETTINGS;
use crate::state::{Function, Handle, LoadedModule, with};
use crate::work::{Launch, Work};

fn load(out: Out<Handle>, image: &[u8]) -> Result {
    with(|state, context| {
        state.check_safe()?;
        let code = image::load(image)?;
        let handle = state.new_handle();
        state.modules.insert(handle, LoadedModule { context, code });
        out.set(handle)
    })
}

fn load_data(out: Out<Handle>, image: Host) -> Result {
    // SAFETY: the caller has an image there.
    load(out, unsafe { image::bytes(image) }?)
}

/// Largest block that a function can be launched with.
fn max_threads(function: &Function) -> u32 {
    let required = function.info.required_block;
    let required = required.map(|(x, y, z)| x * y * z);
    required.or(function.info.max_threads).unwrap_or(1024)
}

/// Grid and block.
type Shape = [u32; 6];

fn launch(
    function: Handle,
    shape: Shape,
    shared_bytes: u32,
    stream: Handle,
    arguments: [Arguments; 2],
) -> Result {
    with(|state, context| {
        let stream = state.stream(context, stream)?;
        let found = state.functions.get(&function).ok_or(Code::INVALID_HANDLE)?;
        if found.context != state.streams[&stream].context {
            return Err(Code::INVALID_HANDLE);
        }
        let [grid_x, grid_y, grid_z, x, y, z] = shape;
        let threads = [x, y, z].into_iter().try_fold(1u32, u32::checked_mul);
        let fits = shape.iter().all(|&extent| extent > 0)
            && grid_x <= i32::MAX as u32
            && grid_y.max(grid_z) <= 65535
            && z <= 64
            && threads.is_some_and(|threads| threads <= max_threads(found))
            && found
                .info
                .required_block
                .is_none_or(|required| required == (x, y, z))
            && i64::from(shared_bytes) <= found.max_dynamic.into();
        if !fits {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: the caller passes what the function takes.
        let params = unsafe { params(found, arguments) }?;
        let config = LaunchConfig::new((grid_x, grid_y, grid_z), (x, y, z))
            .shared_bytes(shared_bytes)
            .shared_limit(SETTINGS.shared_optin() as u32)
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

/// `CUlaunchConfig`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Config {
    shape: Shape,
    shared_bytes: u32,
    stream: Handle,
    attributes: Host,
    attribute_count: u32,
}

/// The attributes that are numbers (`CUfunction_attribute`).
fn attribute(function: &Function, attribute: i32) -> Result<i32> {
    let (major, minor) = SETTINGS.compute_capability;
    Ok(match attribute {
        0 => max_threads(function) as i32,
        1 => function.info.static_shared as i32,
        // Constants, local memory, registers: not known. Whether global loads are cached.
        2 | 3 | 4 | 7 => 0,
        5 | 6 => 10 * major + minor,
        8 => function.max_dynamic,
        9 => -1,
        10..=15 => 0,
        _ => return Err(Code::INVALID_VALUE),
    })
}

/// Blocks on a multiprocessor, by what is known: not by registers.
fn occupancy(function: &Function, block: i32, shared_bytes: usize) -> Result<i32> {
    if block <= 0 {
        return Err(Code::INVALID_VALUE);
    }
    if block > max_threads(function) as i32 || shared_bytes as i64 > function.max_dynamic.into() {
        return Ok(0);
    }
    let shared = (shared_bytes + function.info.static_shared as usize).next_multiple_of(128);
    let by_shared = SETTINGS.attribute(81) / (shared as i32 + SETTINGS.attribute(111));
    let by_threads = SETTINGS.attribute(39) / (block as u32).next_multiple_of(32) as i32;
    Ok(by_shared.min(by_threads).min(SETTINGS.attribute(106)))
}

api! {
    fn cuModuleLoad(module: Out<Handle>, file: Text) {
        let image = std::fs::read(file.get()?).map_err(|_| Code::FILE_NOT_FOUND)?;
        load(module, &image)
    }

    fn cuModuleLoadData(module: Out<Handle>, image: Host) {
        load_data(module, image)
    }

    fn cuModuleLoadDataEx(module: Out<Handle>, image: Host, _count: u32, _options: Host, _values: Host) {
        load_data(module, image)
    }

    fn cuModuleLoadFatBinary(module: Out<Handle>, image: Host) {
        load_data(module, image)
    }

    fn cuModuleUnload(module: Handle) {
        with(|state, _| {
            state.check_safe()?;
            state.unload(module)
        })
    }

    fn cuModuleGetFunction(function: Out<Handle>, module: Handle, name: Text) {
        with(|state, _| function.set(state.function(module, name.get()?)?))
    }

    fn cuModuleGetGlobal_v2(address: Out<u64>, len: Out<usize>, module: Handle, name: Text) {
        with(|state, _| {
            let module = state.modules.get(&module).ok_or(Code::INVALID_HANDLE)?;
            let found = module.code.variable(&state.memory, name.get()?);
            let found = found.map_err(|_| Code::OUT_OF_MEMORY)?;
            let (at, size) = found.ok_or(Code::NOT_FOUND)?;
            address.set_if_wanted(at.0);
            len.set_if_wanted(size as usize);
            Ok(())
        })
    }

    fn cuFuncGetModule(module: Out<Handle>, function: Handle) {
        with(|state, _| {
            let function = state.functions.get(&function).ok_or(Code::INVALID_HANDLE)?;
            module.set(function.module)
        })
    }

    fn cuFuncGetAttribute(value: Out<i32>, name: i32, function: Handle) {
        with(|state, _| {
            let function = state.functions.get(&function).ok_or(Code::INVALID_HANDLE)?;
            value.set(attribute(function, name)?)
        })
    }

    fn cuFuncSetAttribute(function: Handle, name: i32, value: i32) {
        with(|state, _| {
            let function = state.functions.get_mut(&function).ok_or(Code::INVALID_HANDLE)?;
            match name {
                8 if (0..=SETTINGS.shared_optin() - function.info.static_shared as i32).contains(&value) => {
                    function.max_dynamic = value;
                    Ok(())
                }
                9 if (-1..=100).contains(&value) => Ok(()),
                _ => Err(Code::INVALID_VALUE),
            }
        })
    }

    fn cuFuncSetCacheConfig(function: Handle, _config: i32) {
        with(|state, _| match state.functions.contains_key(&function) {
            true => Ok(()),
            false => Err(Code::INVALID_HANDLE),
        })
    }

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
        launch(function, [grid_x, grid_y, grid_z, x, y, z], shared_bytes, stream, [each, all])
    }

    fn cuLaunchKernelEx(config: Host, function: Handle, each: Arguments, all: Arguments) {
        if config.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: the caller has a configuration there.
        let config = unsafe { config.value::<Config>(0) };
        for i in 0..config.attribute_count as usize {
            /// `CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION`
            const CLUSTER: u32 = 4;
            // SAFETY: there are so many attributes, each of a name, four bytes, and a union of 64 bytes.
            let (name, cluster) = unsafe {
                let name = config.attributes.value::<u32>(72 * i);
                (name, config.attributes.value::<[u32; 3]>(72 * i + 8))
            };
            if name == CLUSTER && cluster != [1; 3] {
                eprintln!("ptx-emulator-driver: clusters are not supported");
                return Err(Code::NOT_SUPPORTED);
            }
        }
        launch(function, config.shape, config.shared_bytes, config.stream, [each, all])
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
        launch(function, [grid_x, grid_y, grid_z, x, y, z], shared_bytes, stream, [each, Arguments::NONE])
    }

    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(count: Out<i32>, function: Handle, block: i32, shared_bytes: usize) {
        with(|state, _| {
            let function = state.functions.get(&function).ok_or(Code::INVALID_HANDLE)?;
            count.set(occupancy(function, block, shared_bytes)?)
        })
    }

    fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
        count: Out<i32>,
        function: Handle,
        block: i32,
        shared_bytes: usize,
        _flags: u32,
    ) {
        with(|state, _| {
            let function = state.functions.get(&function).ok_or(Code::INVALID_HANDLE)?;
            count.set(occupancy(function, block, shared_bytes)?)
        })
    }
}
