//! Kernels in a context, loaded once, and their launches.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use cudarc::driver::sys::{CUdevice_attribute, CUfunction, CUfunction_attribute, CUresult};
use cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaStream, DriverError, result::launch_kernel,
};
use cudarc::nvrtc::Ptx;

use super::buffer::check_context;
use super::slopes::Interned;
use super::{Error, Result, hopper};
use crate::plan::{Device, Executor, Launch};

/// The kernels of one context, and the slopes of its layers.
///
/// A context has them once. They are never unloaded, so that nothing need wait until they have run; and they hold the
/// context, whose handle is never another's.
#[derive(Debug)]
pub(crate) struct Kernels {
    context: Arc<CudaContext>,
    device: Device,
    loaded: RwLock<Loaded>,
    pub(super) slopes: Mutex<Interned>,
}

/// By file, and by file and kernel.
#[derive(Debug, Default)]
struct Loaded {
    modules: HashMap<&'static str, Arc<CudaModule>>,
    functions: HashMap<(&'static str, &'static str), CudaFunction>,
}

/// The oldest device that the kernels are compiled for.
const OLDEST: (u32, u32) = (8, 0);

impl Kernels {
    /// The kernels of a context, found or made.
    ///
    /// # Errors
    /// [`Error::DeviceTooOld`] or [`Error::Driver`].
    pub(crate) fn of(context: &Arc<CudaContext>) -> Result<&'static Self> {
        static ALL: Mutex<Vec<&Kernels>> = Mutex::new(Vec::new());
        let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = all.iter().find(|kernels| kernels.context == *context) {
            return Ok(found);
        }
        let made: &'static Self = Box::leak(Box::new(Self {
            context: context.clone(),
            device: device(context)?,
            loaded: RwLock::default(),
            slopes: Mutex::default(),
        }));
        all.push(made);
        Ok(made)
    }

    /// What plans depend on of the context's device.
    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    /// Their context.
    pub(super) fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    /// What launches them on a stream.
    ///
    /// # Errors
    /// [`Error::Context`] for a stream of another context.
    pub(super) fn on<'a>(&'a self, stream: &'a CudaStream) -> Result<Launcher<'a>> {
        check_context("stream", stream.context(), &self.context)?;
        Ok(Launcher {
            kernels: self,
            stream,
        })
    }

    /// Loads what a launch needs, unless it is loaded.
    pub(super) fn function(&self, launch: &Launch) -> Result<CUfunction> {
        let key = (launch.file.name, launch.kernel);
        // What panics while it holds the lock leaves nothing half done.
        let loaded = self.loaded.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = loaded.functions.get(&key) {
            return Ok(function.cu_function());
        }
        drop(loaded);

        let failed = |error: DriverError| self.failed_to_load(error);
        let mut loaded = self.loaded.write().unwrap_or_else(PoisonError::into_inner);
        // Another thread may have been first.
        if let Some(function) = loaded.functions.get(&key) {
            return Ok(function.cu_function());
        }
        let module = match loaded.modules.get(launch.file.name) {
            Some(module) => module.clone(),
            None => {
                if launch.file.fatbin.is_empty() {
                    // A build for documentation.
                    return Err(failed(DriverError(CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU)));
                }
                let image = Ptx::from_binary(launch.file.fatbin.to_vec());
                let module = self.context.load_module(image).map_err(failed)?;
                loaded.modules.insert(launch.file.name, module.clone());
                module
            }
        };
        self.context.bind_to_thread().map_err(failed)?;
        let function = module.load_function(launch.kernel).map_err(failed)?;
        // As much shared memory as there is, here once, so that launches need not say that they want more than 48 KiB.
        let fixed = function.shared_size_bytes().map_err(failed)?;
        let most = self.device.shared_bytes_per_block as i32 - fixed;
        let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        function.set_attribute(attribute, most).map_err(failed)?;
        let handle = function.cu_function();
        loaded.functions.insert(key, function);
        Ok(handle)
    }

    fn failed_to_load(&self, error: DriverError) -> Error {
        match error.0 {
            // Neither machine code, nor PTX that this driver can or may compile.
            code @ (CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU
            | CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
            | CUresult::CUDA_ERROR_JIT_COMPILER_NOT_FOUND
            | CUresult::CUDA_ERROR_JIT_COMPILATION_DISABLED) => Error::NoKernelImage {
                device: self.device.compute_capability,
                name: format!("{code:?}"),
            },
            _ => Error::driver("when kernels were loaded")(error),
        }
    }
}

fn device(context: &CudaContext) -> Result<Device> {
    let attribute = |attribute| match context.attribute(attribute) {
        Ok(value) => Ok(u32::try_from(value).unwrap_or(0)),
        Err(error) => Err(Error::driver("when the device was looked at")(error)),
    };
    let device = Device {
        compute_capability: (
            attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        shared_bytes_per_block: attribute(
            CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
        )?,
        multiprocessors: attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
    };
    match device.compute_capability {
        found if found < OLDEST => Err(Error::DeviceTooOld { found }),
        _ => Ok(device),
    }
}

/// Carries out plans on a stream. See [`Kernels::on`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Launcher<'a> {
    kernels: &'a Kernels,
    stream: &'a CudaStream,
}

impl Executor for Launcher<'_> {
    type Error = Error;

    unsafe fn launch(&self, launch: &Launch, params: &[u8]) -> Result<()> {
        let failed = Error::driver("when a kernel was launched");
        if !launch.is_plain() {
            hopper::check(&self.kernels.device)?;
        }
        let function = self.kernels.function(launch)?;
        // Also reports what failed since, such as waiting for a buffer.
        self.stream.context().bind_to_thread().map_err(&failed)?;
        if !launch.is_plain() {
            // SAFETY: as below.
            return unsafe { hopper::launch(function, launch, self.stream, params) };
        }
        let params: *const c_void = params.as_ptr().cast();
        // SAFETY: kernels stay loaded. The driver reads the parameters before it
        // returns, and only as many bytes as the kernel has; the caller vouches for what they point to.
        unsafe {
            launch_kernel(
                function,
                (launch.grid, 1, 1),
                (launch.block, 1, 1),
                launch.shared_bytes,
                self.stream.cu_stream(),
                &mut [params.cast_mut()],
            )
        }
        .map_err(&failed)
    }
}
