//! Runs problems on a GPU.

use std::sync::Arc;

use flash_alibi::cuda::cudarc::driver::{
    CudaSlice, CudaStream, CudaView, DevicePtr, DeviceRepr, DriverError,
};
use flash_alibi::cuda::{self, Inputs, Layer, View, ViewMut};

use super::emulator::{Attended, Failure, OnDevice, Placed, Problem};

fn failure(error: impl std::fmt::Display) -> Failure {
    Failure(error.to_string())
}

/// A tensor of a call in device memory.
pub struct Uploaded<T> {
    pub buffer: CudaSlice<T>,
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

impl<T: DeviceRepr + Clone> Uploaded<T> {
    pub fn new(stream: &Arc<CudaStream>, placed: &Placed<'_, T>) -> Result<Self, DriverError> {
        Ok(Self {
            buffer: stream.clone_htod(placed.data)?,
            offset: placed.offset,
            shape: placed.layout.shape(),
            strides: placed.layout.strides(),
        })
    }

    /// The part of the buffer that the tensor may use.
    pub fn part(&self) -> CudaView<'_, T> {
        self.buffer.slice(self.offset..)
    }

    /// The tensor, of its part.
    pub fn view<'a>(&self, part: &'a dyn DevicePtr<T>) -> Result<View<'a, T>, cuda::Error> {
        Ok(View::strided(part, &self.shape, &self.strides)?)
    }
}

/// A call in device memory.
pub struct OnGpu<T> {
    pub q: Uploaded<T>,
    pub k: Uploaded<T>,
    pub v: Uploaded<T>,
    pub out: Uploaded<T>,
    /// One element longer than it is, since there is no buffer of none.
    pub lse: Option<CudaSlice<f32>>,
    cu_seqlens: Option<(CudaSlice<i32>, CudaSlice<i32>)>,
    max_seqlens: (usize, usize),
    seqused_k: Option<CudaSlice<i32>>,
    leftpad_k: Option<CudaSlice<i32>>,
}

impl<T: OnDevice + cuda::Element> OnGpu<T> {
    pub fn new(stream: &Arc<CudaStream>, problem: &Problem<'_, T>) -> Result<Self, Failure> {
        let longest = |cu: &[i32]| cu.windows(2).map(|w| w[1] - w[0]).max().unwrap_or(0) as usize;
        let integers = |data: Option<&[i32]>| {
            data.map(|data| stream.clone_htod(data))
                .transpose()
                .map_err(failure)
        };
        let tensor = |placed| Uploaded::new(stream, placed).map_err(failure);
        let lse = match problem.lse {
            Some(lse) => Some(
                stream
                    .clone_htod(&[lse, &[0.0]].concat())
                    .map_err(failure)?,
            ),
            None => None,
        };
        let cu_q = integers(problem.cu_seqlens_q)?;
        let cu_k = integers(problem.cu_seqlens_k)?;
        Ok(Self {
            q: tensor(&problem.q)?,
            k: tensor(&problem.k)?,
            v: tensor(&problem.v)?,
            out: tensor(&problem.out)?,
            lse,
            cu_seqlens: cu_q.zip(cu_k),
            max_seqlens: (
                problem.cu_seqlens_q.map_or(0, longest),
                problem.cu_seqlens_k.map_or(0, longest),
            ),
            seqused_k: integers(problem.seqused_k)?,
            leftpad_k: integers(problem.leftpad_k)?,
        })
    }

    /// Enqueues the call.
    pub fn attend(&mut self, layer: &Layer, stream: &CudaStream) -> Result<(), cuda::Error> {
        let (q, k, v) = (self.q.part(), self.k.part(), self.v.part());
        let mut inputs = Inputs::new(self.q.view(&q)?, self.k.view(&k)?, self.v.view(&v)?);
        if let Some((cu_q, cu_k)) = &self.cu_seqlens {
            inputs = inputs.varlen(cu_q, cu_k, self.max_seqlens.0, self.max_seqlens.1);
        }
        if let Some(lengths) = &self.seqused_k {
            inputs = inputs.seqused_k(lengths);
        }
        if let Some(lengths) = &self.leftpad_k {
            inputs = inputs.leftpad_k(lengths);
        }
        let Uploaded {
            buffer,
            offset,
            shape,
            strides,
        } = &mut self.out;
        let mut out = buffer.slice_mut(*offset..);
        let out = ViewMut::strided(&mut out, shape, strides)?;
        match &mut self.lse {
            Some(lse) => {
                let mut lse = lse.slice_mut(..lse.len() - 1);
                layer.prefill(stream, &inputs, out, Some(&mut lse))
            }
            None => layer.prefill(stream, &inputs, out, None),
        }
    }

    /// What the outputs hold, once the stream has come so far.
    pub fn outputs(&self, stream: &Arc<CudaStream>) -> Result<Attended<T>, Failure> {
        let out = stream.clone_dtoh(&self.out.buffer).map_err(failure)?;
        let mut lse = match &self.lse {
            Some(lse) => stream.clone_dtoh(lse).map_err(failure)?,
            None => vec![0.0],
        };
        stream.synchronize().map_err(failure)?;
        lse.pop();
        Ok(Attended {
            out,
            lse,
            reports: Vec::new(),
        })
    }
}

impl<T: OnDevice + cuda::Element> Problem<'_, T> {
    /// Runs it on the stream's device.
    pub fn attend_on(&self, stream: &Arc<CudaStream>) -> Result<Attended<T>, Failure> {
        let mut call = OnGpu::new(stream, self)?;
        let layer = Layer::new(stream, self.attention.clone()).map_err(failure)?;
        call.attend(&layer, stream).map_err(failure)?;
        call.outputs(stream)
    }
}
