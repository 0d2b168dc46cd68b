//! Kernels in a context, loaded once, and their launches.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

use cudarc::driver::sys::{CUdevice_attribute, CUfunction, CUfunction_attribute, CUresult};
use cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaStream, DriverError, result::launch_kernel,
};
use cudarc::nvrtc::Ptx;

use super::{Error, Result};
use crate::plan::{Device, Executor, Launch};

/// The kernels of one context.
///
/// A context has them once, shared by its layers and unloaded with the last of them. Each is loaded when it is first asked
/// for; [`Layer::new`](super::Layer::new) does so.
#[derive(Debug)]
pub struct Kernels {
    context: Arc<CudaContext>,
    device: Device,
    loaded: RwLock<Loaded>,
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
    pub fn of(context: &Arc<CudaContext>) -> Result<Arc<Self>> {
        // Weak, so that nothing here keeps a context alive.
        static ALL: Mutex<Vec<Weak<Kernels>>> = Mutex::new(Vec::new());
        let mut all: MutexGuard<'_, _> = ALL.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|kernels| kernels.strong_count() > 0);
        // Whoever upgrades may come to be the last to hold them: dropping them here unloads them, and takes no lock.
        let found = all
            .iter()
            .filter_map(Weak::upgrade)
            .find(|kernels| kernels.context == *context);
        if let Some(found) = found {
            return Ok(found);
        }
        let made = Arc::new(Self {
            context: context.clone(),
            device: device(context)?,
            loaded: RwLock::default(),
        });
        all.push(Arc::downgrade(&made));
        Ok(made)
    }

    /// What plans depend on of the context's device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Their context.
    pub fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    /// What launches them on a stream.
    ///
    /// # Errors
    /// [`Error::Context`] for a stream of another context.
    pub fn on<'a>(&'a self, stream: &'a CudaStream) -> Result<Launcher<'a>> {
        self.check_context("stream", stream.context())?;
        Ok(Launcher {
            kernels: self,
            stream,
        })
    }

    pub(super) fn check_context(
        &self,
        argument: &'static str,
        context: &CudaContext,
    ) -> Result<()> {
        if *context == *self.context {
            return Ok(());
        }
        let address = |context: &CudaContext| format!("{:p}", context.cu_ctx());
        Err(Error::Context {
            argument,
            found: address(context),
            found_device: context.ordinal(),
            expected: address(&self.context),
            expected_device: self.context.ordinal(),
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
pub struct Launcher<'a> {
    kernels: &'a Kernels,
    stream: &'a CudaStream,
}

impl Executor for Launcher<'_> {
    type Error = Error;

    unsafe fn launch(&self, launch: &Launch, params: &[u8]) -> Result<()> {
        let failed = Error::driver("when a kernel was launched");
        let function = self.kernels.function(launch)?;
        // Also reports what failed since, such as waiting for a buffer.
        self.stream.context().bind_to_thread().map_err(&failed)?;
        let params: *const c_void = params.as_ptr().cast();
        // SAFETY: the kernels, which are borrowed, keep the function loaded. The driver reads the parameters before it
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
