//! The first thing to know of a machine: whether anything runs at all.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow};
use flash_alibi::cuda::cudarc::driver::CudaContext;
use flash_alibi::cuda::cudarc::driver::sys::CUdevice_attribute;
use flash_alibi::cuda::cudarc::nvrtc::Ptx;
use flash_alibi::cuda::{self, Layer};
use flash_alibi::kernels;
use flash_alibi_testing::Case;
use half::f16;

/// Says what it finds, step by step. Returns whether the tiny case is right.
pub fn run() -> Result<bool> {
    let context = cuda::context(0)?;
    let attribute = |attribute| context.attribute(attribute);
    let (major, minor) = (
        attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
        attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
    );
    println!(
        "found {}, compute capability {major}.{minor}, {} multiprocessors",
        context.name()?,
        attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
    );
    let stream = context.new_stream()?;
    let case = Case::dense(1, 5, 70, (4, 2), 64);
    let start = Instant::now();
    let _layer = Layer::new(&stream, case.attention())?;
    println!("loaded the kernels in {:.2?}", start.elapsed());
    let laid_out = case.lay_out::<f16>();
    for (name, rows) in [
        ("prefill", laid_out.attend_on_device(&stream)),
        ("decoding", laid_out.decode_on_device(&stream)),
    ] {
        let rows = rows.map_err(|why| anyhow!("{name}: {why}"))?;
        if let Err(why) = laid_out.check(&rows) {
            println!("{name}: {why}");
            return Ok(false);
        }
        println!("{name} follows the oracle");
    }
    let count = load_all(&context, (major as u32, minor as u32))?;
    println!("every kernel can be loaded: {count} of them");
    Ok(true)
}

/// Loads all kernels that the device runs; how many they are.
fn load_all(context: &Arc<CudaContext>, capability: (u32, u32)) -> Result<usize> {
    let mut count = 0;
    for file in kernels::ALL {
        let names = kernels::NAMES
            .iter()
            .filter(|(_, name, _)| *name == file.name);
        // Files that only tests use are in no table.
        if names.clone().count() == 0 || !file.architecture.runs_on(capability) {
            continue;
        }
        let module = context
            .load_module(Ptx::from_binary(file.fatbin.to_vec()))
            .with_context(|| file.name.to_owned())?;
        for (_, _, kernel) in names {
            module
                .load_function(kernel)
                .with_context(|| format!("{kernel} of {}", file.name))?;
            count += 1;
        }
    }
    Ok(count)
}
