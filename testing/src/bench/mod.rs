//! Measurements on a GPU.

mod decode;
mod prefill;

use anyhow::Result;
use criterion::Criterion;
use flash_alibi::cuda::{self, Error};
use half::{bf16, f16};

/// All rows that criterion's arguments, such as `--bench '^decode'`, name.
pub fn run() -> Result<()> {
    let context = match cuda::context(0) {
        Ok(context) => context,
        Err(why @ (Error::NoDriver { .. } | Error::NoDevice { .. })) => {
            println!("skipped: {why}");
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    // SAFETY: one stream uses everything.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream()?;
    let mut criterion = Criterion::default().configure_from_args();
    prefill::rows::<bf16>(&mut criterion, &stream, "bf16", bf16::from_f32);
    prefill::rows::<f16>(&mut criterion, &stream, "f16", f16::from_f32);
    decode::rows(&mut criterion, &stream);
    criterion.final_summary();
    Ok(())
}
