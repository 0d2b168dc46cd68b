//! Cases in a paged cache, for the kernels.

use std::sync::Arc;

use flash_alibi::cuda::cudarc::driver::CudaStream;
use flash_alibi::plan;
#[cfg(feature = "emulator")]
use ptx_emulator::Report;

use super::Paged;
use crate::Rows;
#[cfg(feature = "emulator")]
use crate::emulator::{OnEmulator, Planner};
use crate::problem::{OnDevice, Problem};

#[cfg(feature = "emulator")]
impl<T: OnEmulator> Paged<T> {
    /// As [`LaidOut::attend_on_emulator`], from pages.
    pub fn attend_on_emulator(
        &self,
        planner: &Planner,
    ) -> Result<(Vec<Rows>, Vec<Report>), String> {
        self.dense.attend_twice(|problem, turn| {
            let emulated = self.of_pages(problem).emulate(planner, turn)?;
            Ok(emulated.split())
        })
    }
}

impl<T: OnDevice> Paged<T> {
    /// Runs the kernels for decoding on a GPU, or those for prefill.
    pub fn attend_on_device(
        &self,
        stream: &Arc<CudaStream>,
        decode: bool,
    ) -> Result<Vec<Rows>, String> {
        let attend = |problem: &Problem<'_, T>, _| match decode {
            true => Ok((self.of_pages(problem).decode_on(stream)?, ())),
            false => Ok((self.of_pages(problem).attend_on(stream)?, ())),
        };
        Ok(self.dense.attend_twice(attend)?.0)
    }

    /// The same problem, with keys and values in the pages.
    pub fn of_pages<'a>(&'a self, problem: &Problem<'a, T>) -> Problem<'a, T> {
        let paged = plan::Paged {
            columns: self.max_pages,
            stride: self.max_pages,
            max_seqlen_k: usize::MAX,
            radii: false,
        };
        Problem {
            k: self.k.placed(),
            v: self.v.placed(),
            cu_seqlens_k: None,
            seqused_k: Some(&self.seqused_k),
            block_table: Some((&self.block_table, paged)),
            radii: self
                .radii
                .as_ref()
                .map(|(centres, radii)| (&centres[..], &radii[..])),
            ..*problem
        }
    }
}
