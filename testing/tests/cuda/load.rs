//! The first thing to know of a machine: whether anything runs at all.

use std::time::Instant;

use anyhow::{Result, anyhow};
use flash_alibi::cuda::cudarc::driver::sys::CUdevice_attribute;
use flash_alibi::cuda::{self, Layer};
use flash_alibi_testing::Case;
use half::f16;

/// Says what it finds, step by step. Returns whether the tiny case is right.
pub fn run() -> Result<bool> {
    let context = cuda::context(0)?;
    let attribute = |attribute| context.attribute(attribute);
    println!(
        "found {}, compute capability {}.{}, {} multiprocessors",
        context.name()?,
        attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
        attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
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
    Ok(true)
}
