//! The GPU that tests run on, and how they share it.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use flash_alibi::cuda::cudarc::driver::{CudaContext, CudaStream};
use flash_alibi::cuda::{self, Error};
use libtest_mimic::{Completion, Trial};

/// What captures a graph, counts calls, or counts who holds a context, is alone: other tests wait for their contexts.
static ALONE: RwLock<()> = RwLock::new(());

/// What a test returns: nothing, or that it could not be run.
pub trait Ran {
    fn completion(self) -> Completion;
}

impl Ran for () {
    fn completion(self) -> Completion {
        Completion::Completed
    }
}

impl Ran for Completion {
    fn completion(self) -> Completion {
        self
    }
}

/// A test that needs no device.
pub fn host_trial<R: Ran + 'static>(module: &str, name: &str, test: fn() -> R) -> Trial {
    Trial::ignorable_test(full(module, name), move || Ok(test().completion()))
}

/// A test that needs a device: ignored where there is none.
pub fn trial<R: Ran + 'static>(module: &str, name: &str, test: fn() -> R) -> Trial {
    Trial::ignorable_test(full(module, name), move || match cuda::context(0) {
        Err(why @ (Error::NoDriver { .. } | Error::NoDevice { .. })) => {
            Ok(Completion::ignored_with(why))
        }
        // Other errors are the test's to meet.
        _ => Ok(test().completion()),
    })
}

/// A test's name without that of the program.
fn full(module: &str, name: &str) -> String {
    let (_, module) = module.split_once("::").expect("tests are in modules");
    format!("{module}::{name}")
}

/// The tests of a module, by name.
macro_rules! trials {
    ($($test:ident),* $(,)?) => {
        vec![$($crate::device::trial(module_path!(), stringify!($test), $test)),*]
    };
}

/// Likewise those that need no device.
macro_rules! host_trials {
    ($($test:ident),* $(,)?) => {
        vec![$($crate::device::host_trial(module_path!(), stringify!($test), $test)),*]
    };
}

/// The first device's context.
pub fn context() -> Arc<CudaContext> {
    cuda::context(0).unwrap_or_else(|error| panic!("{error}"))
}

/// A stream, on a device that others may use too.
pub fn stream() -> (RwLockReadGuard<'static, ()>, Arc<CudaStream>) {
    let shared = ALONE.read().unwrap_or_else(PoisonError::into_inner);
    (shared, context().new_stream().unwrap())
}

/// Runs a test on a stream of its own.
pub fn on_gpu(test: impl FnOnce(&Arc<CudaStream>)) {
    let (_shared, stream) = stream();
    test(&stream);
}

/// Keeps all other tests from the device.
pub fn alone() -> (RwLockWriteGuard<'static, ()>, Arc<CudaContext>) {
    let alone = ALONE.write().unwrap_or_else(PoisonError::into_inner);
    (alone, context())
}

/// A stream that can capture, and that no other test disturbs.
pub fn capturing_stream() -> (RwLockWriteGuard<'static, ()>, Arc<CudaStream>) {
    let (alone, context) = alone();
    // SAFETY: one stream uses everything.
    unsafe { context.disable_event_tracking() };
    (alone, context.new_stream().unwrap())
}

/// Runs a test while no other uses the device.
pub fn alone_on_gpu(test: impl FnOnce(Arc<CudaContext>)) {
    let (_alone, context) = alone();
    test(context);
}
