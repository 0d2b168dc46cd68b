//! Every way in which safe code reaches a launch, a release or an unload on a GPU, used wrongly: an error, a wait, or nothing
//! that harms memory. They mean most on the emulated driver (`cargo xtask emulate test --workspace --test cuda_soundness`),
//! which does work as late as it may, and reports every access to memory that is not there, or not aligned, any more.
//!
//! What types make impossible stands in `src/cuda/mod.rs`, as examples that do not compile.
// With candle's CUDA the driver is linked: without one, the program does not start.
#![cfg(not(feature = "candle-cuda"))]

mod arguments;
mod lifetimes;
mod order;
mod steps;
mod values;

use std::io::Write as _;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flash_alibi::cuda::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use flash_alibi::cuda::cudarc::driver::{CudaContext, CudaSlice, CudaStream};
use flash_alibi::cuda::{
    self, Buffer, BufferMut, Error, Inputs, Layer, Pools, Result, Step, View, ViewMut,
};
use flash_alibi::{Attention, Horizon, Layout, Slopes};
use half::f16;

/// A device that no other test uses meanwhile; none, and a message, where there is no GPU.
fn device() -> Option<(MutexGuard<'static, ()>, Arc<CudaContext>)> {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    match cuda::context(0) {
        Ok(context) => Some((turn, context)),
        Err(why @ (Error::NoDriver { .. } | Error::NoDevice { .. })) => {
            let _ = writeln!(std::io::stderr(), "skipped: {why}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

const HEADS: usize = 2;
const HEAD_DIM: usize = 64;
const ROW: usize = HEADS * HEAD_DIM;
const KEYS: usize = 40;
const DENSE: [usize; 4] = [1, KEYS, HEADS, HEAD_DIM];
const PAGES: [usize; 4] = [KEYS / 8, 8, HEADS, HEAD_DIM];

fn attention() -> Attention {
    let attention = Attention::new(HEADS, HEADS, HEAD_DIM).slopes(Slopes::per_head(&[0.5, 0.25]));
    attention.build().unwrap()
}

fn layer(stream: &Arc<CudaStream>) -> Layer {
    Layer::new(stream, attention()).unwrap()
}

/// Keys and values of one: so is every output.
fn ones(stream: &Arc<CudaStream>, rows: usize) -> CudaSlice<f16> {
    stream.clone_htod(&vec![f16::ONE; rows * ROW]).unwrap()
}

fn dense(x: &dyn Buffer<f16>) -> Inputs<'_, f16> {
    let view = View::new(x, &DENSE).unwrap();
    Inputs::new(view, view, view)
}

#[track_caller]
fn assert_ones(stream: &Arc<CudaStream>, out: &CudaSlice<f16>) {
    let found = stream.clone_dtoh(out).unwrap();
    stream.synchronize().unwrap();
    assert!(found.iter().all(|&x| x == f16::ONE), "{found:?}");
}

/// A call without an lse, of rows that are as many as the keys.
fn attend(
    layer: &Layer,
    stream: &CudaStream,
    x: &dyn Buffer<f16>,
    out: &mut dyn BufferMut<f16>,
    workspace: &mut dyn BufferMut<u8>,
) -> Result<()> {
    let out = ViewMut::new(out, &DENSE)?;
    layer.forward(stream, &dense(x), out, None, workspace)
}
