//! Golden problems, computed by the kernels.

use std::sync::Arc;

use anyhow::{Result, bail};
use flash_alibi::Layout;
use flash_alibi::cuda::cudarc::driver::CudaStream;
use half::{bf16, f16};

use super::{Case, Computed, Stored};
#[cfg(feature = "emulator")]
use crate::emulator::Planner;
use crate::problem::{Attended, Placed, Problem};

/// What runs the CUDA kernels.
#[derive(Clone, Copy)]
pub enum Runner<'a> {
    /// The emulator runs the PTX of those that a planner chooses.
    #[cfg(feature = "emulator")]
    Emulator(&'a Planner),
    /// A stream's GPU runs those for prefill.
    Gpu(&'a Arc<CudaStream>),
    /// Likewise those for decoding.
    GpuDecode(&'a Arc<CudaStream>),
}

/// Runs a problem's kernels, if there are any for the type.
pub trait Launch: Sized {
    /// Runs them, and names them where the runner does.
    fn launch(problem: &Problem<Self>, runner: Runner) -> Result<(Attended<Self>, Vec<String>)>;
}

macro_rules! launch {
    ($type:ty) => {
        impl Launch for $type {
            fn launch(
                problem: &Problem<Self>,
                runner: Runner,
            ) -> Result<(Attended<Self>, Vec<String>)> {
                Ok(match runner {
                    #[cfg(feature = "emulator")]
                    Runner::Emulator(planner) => {
                        let (attended, reports) = problem.emulate(planner, 1)?.split();
                        let kernels = reports.into_iter().map(|report| report.kernel);
                        (attended, kernels.collect())
                    }
                    Runner::Gpu(stream) => (problem.attend_on(stream)?, Vec::new()),
                    Runner::GpuDecode(stream) => (problem.decode_on(stream)?, Vec::new()),
                })
            }
        }
    };
}
launch!(f16);
launch!(bf16);

impl Launch for f32 {
    fn launch(_: &Problem<Self>, _: Runner) -> Result<(Attended<Self>, Vec<String>)> {
        bail!("the kernels take f16 and bf16")
    }
}

impl<T: Stored> Case<T> {
    /// Runs the CUDA kernels, and names them, in their order, where the runner does.
    pub fn launch(&self, runner: Runner) -> Result<(Computed, Vec<String>)> {
        let (out, lse) = (
            vec![T::from_f32(0.0); self.out.len()],
            vec![0.0; self.lse.len()],
        );
        fn placed<'a, T>(data: &'a [T], shape: &[usize]) -> Result<Placed<'a, T>> {
            Ok(Placed {
                data,
                offset: 0,
                layout: Layout::contiguous("tensor", shape)?,
            })
        }
        let problem = Problem {
            attention: &self.attention,
            q: placed(&self.q.data, &self.q.shape)?,
            k: placed(&self.k.data, &self.k.shape)?,
            v: placed(&self.v.data, &self.v.shape)?,
            out: placed(&out, &self.q.shape)?,
            lse: Some(&lse),
            cu_seqlens_q: None,
            cu_seqlens_k: None,
            seqused_k: self.seqused_k.as_deref(),
            leftpad_k: self.leftpad_k.as_deref(),
            offset: self.offset.as_deref(),
            block_table: None,
            radii: None,
        };
        let (attended, kernels) = T::launch(&problem, runner)?;
        let computed = Computed {
            out: attended.out.iter().map(|x| x.to_f32().into()).collect(),
            lse: attended.lse.iter().map(|&x| x.into()).collect(),
        };
        Ok((computed, kernels))
    }
}
