//! Modules, and functions with their attributes.

use super::api;
use crate::code::{Code, Result};
use crate::ffi::{Host, Out, Text};
use crate::image;
use crate::settings::SETTINGS;
use crate::state::{Function, Handle, LoadedModule, with};

fn load(out: Out<Handle>, image: &[u8]) -> Result {
    with(|state, context| {
        state.check_safe()?;
        let (code, architecture) = image::load(image)?;
        let handle = state.new_handle();
        let module = LoadedModule {
            context,
            code,
            architecture,
        };
        state.modules.insert(handle, module);
        out.set(handle)
    })
}

fn load_data(out: Out<Handle>, image: Host) -> Result {
    // SAFETY: the caller has an image there.
    load(out, unsafe { image::bytes(image) }?)
}

/// The attributes that are numbers (`CUfunction_attribute`).
fn attribute(function: &Function, attribute: i32) -> Result<i32> {
    let (major, minor) = SETTINGS.device.capability;
    Ok(match attribute {
        0 => function.max_threads() as i32,
        1 => function.info.static_shared as i32,
        // Constants, local memory, registers: not known. Whether global loads are cached.
        2 | 3 | 4 | 7 => 0,
        // PTX_VERSION, BINARY_VERSION
        5 => function.architecture as i32,
        6 => 10 * major + minor,
        8 => function.max_dynamic,
        // PREFERRED_SHARED_MEMORY_CARVEOUT
        9 => -1,
        // CLUSTER_SIZE_MUST_BE_SET, CLUSTER_SCHEDULING_POLICY_PREFERENCE
        10 | 15 => 0,
        11..=13 => function.cluster[attribute as usize - 11],
        14 => function.non_portable_cluster.into(),
        _ => return Err(Code::INVALID_VALUE),
    })
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
            let most = SETTINGS.device.shared_optin() - function.info.static_shared as i32;
            match name {
                // MAX_DYNAMIC_SHARED_SIZE_BYTES
                8 if (0..=most).contains(&value) => {
                    function.max_dynamic = value;
                    Ok(())
                }
                // PREFERRED_SHARED_MEMORY_CARVEOUT
                9 if (-1..=100).contains(&value) => Ok(()),
                // REQUIRED_CLUSTER_WIDTH, _HEIGHT and _DEPTH, checked by launches.
                11..=13 if value >= 0 => {
                    function.cluster[name as usize - 11] = value;
                    Ok(())
                }
                // NON_PORTABLE_CLUSTER_SIZE_ALLOWED
                14 if (0..=1).contains(&value) => {
                    function.non_portable_cluster = value == 1;
                    Ok(())
                }
                // CLUSTER_SCHEDULING_POLICY_PREFERENCE
                15 if (0..=2).contains(&value) => Ok(()),
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
}
