//! Runs problems on a GPU.

use std::sync::Arc;

use flash_alibi::cuda::cudarc::driver::{CudaSlice, CudaStream, CudaView, DeviceRepr, DriverError};
use flash_alibi::cuda::{self, Buffer, BufferMut, Inputs, Layer, View, ViewMut};

use crate::problem::{Attended, Failure, OnDevice, Placed, Problem};
use crate::{LaidOut, Rows};

/// A tensor of a call in device memory.
pub struct Uploaded<T> {
    /// The whole buffer, what lies before the tensor included.
    pub buffer: CudaSlice<T>,
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

impl<T: DeviceRepr + Clone> Uploaded<T> {
    /// Enqueues the copy.
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
    pub fn view<'a>(&self, part: &'a dyn Buffer<T>) -> Result<View<'a, T>, cuda::Error> {
        Ok(View::strided(part, &self.shape, &self.strides)?)
    }
}

/// A call in device memory.
pub struct OnGpu<T> {
    /// Queries.
    pub q: Uploaded<T>,
    /// Keys, or their pool.
    pub k: Uploaded<T>,
    /// Values, or their pool.
    pub v: Uploaded<T>,
    /// The output.
    pub out: Uploaded<T>,
    /// One element longer than it is, since there is no buffer of none.
    pub lse: Option<CudaSlice<f32>>,
    cu_seqlens_q: Option<CudaSlice<i32>>,
    cu_seqlens_k: Option<CudaSlice<i32>>,
    max_seqlens: (usize, usize),
    /// `[batch]`.
    pub seqused_k: Option<CudaSlice<i32>>,
    leftpad_k: Option<CudaSlice<i32>>,
    block_table: Option<CudaSlice<i32>>,
    offset: Option<CudaSlice<i32>>,
    /// Sequences, queries and keys.
    most: [usize; 3],
    radii: Option<[CudaSlice<f32>; 2]>,
}

impl<T: OnDevice> OnGpu<T> {
    /// Enqueues the copies.
    pub fn new(stream: &Arc<CudaStream>, problem: &Problem<'_, T>) -> Result<Self, Failure> {
        let longest = |cu: &[i32]| cu.windows(2).map(|w| w[1] - w[0]).max().unwrap_or(0) as usize;
        let integers = |data: Option<&[i32]>| {
            data.map(|data| stream.clone_htod(data))
                .transpose()
                .map_err(Failure::new)
        };
        let tensor = |placed| Uploaded::new(stream, placed).map_err(Failure::new);
        let lse = match problem.lse {
            Some(lse) => Some(
                stream
                    .clone_htod(&[lse, &[0.0]].concat())
                    .map_err(Failure::new)?,
            ),
            None => None,
        };
        let cu_q = integers(problem.cu_seqlens_q)?;
        let cu_k = integers(problem.cu_seqlens_k)?;
        Ok(Self {
            most: problem.most(),
            q: tensor(&problem.q)?,
            k: tensor(&problem.k)?,
            v: tensor(&problem.v)?,
            out: tensor(&problem.out)?,
            lse,
            cu_seqlens_q: cu_q,
            cu_seqlens_k: cu_k,
            max_seqlens: (
                problem.cu_seqlens_q.map_or(0, longest),
                problem.cu_seqlens_k.map_or(0, longest),
            ),
            seqused_k: integers(problem.seqused_k)?,
            leftpad_k: integers(problem.leftpad_k)?,
            offset: integers(problem.offset)?,
            block_table: integers(problem.block_table.map(|(table, _)| table))?,
            radii: match problem.radii {
                Some((centres, radii)) => Some([
                    stream.clone_htod(centres).map_err(Failure::new)?,
                    stream.clone_htod(radii).map_err(Failure::new)?,
                ]),
                None => None,
            },
        })
    }

    /// What the layer needs for the call.
    pub fn workspace(
        &self,
        layer: &Layer,
        stream: &Arc<CudaStream>,
    ) -> Result<CudaSlice<u8>, DriverError> {
        let [batch, seqlen_q, seqlen_k] = self.most;
        stream.alloc_zeros(layer.workspace_bytes(batch, seqlen_q, seqlen_k))
    }

    /// Enqueues the call, by the kernels for decoding or those for prefill.
    pub fn attend(
        &mut self,
        layer: &Layer,
        stream: &CudaStream,
        decode: bool,
        workspace: &mut CudaSlice<u8>,
    ) -> Result<(), cuda::Error> {
        let (q, k, v) = (self.q.part(), self.k.part(), self.v.part());
        let (q, k, v) = (self.q.view(&q)?, self.k.view(&k)?, self.v.view(&v)?);
        let mut inputs = match (&self.block_table, &self.seqused_k) {
            (Some(table), Some(lengths)) => Inputs::paged(q, k, v, table, lengths),
            (_, Some(lengths)) => Inputs::new(q, k, v).seqused_k(lengths),
            _ => Inputs::new(q, k, v),
        };
        if let Some(cu_q) = &self.cu_seqlens_q {
            inputs = match &self.cu_seqlens_k {
                Some(cu_k) => inputs.varlen(cu_q, cu_k, self.max_seqlens.0, self.max_seqlens.1),
                None => inputs.varlen_q(cu_q, self.max_seqlens.0),
            };
        }
        if let Some(lengths) = &self.leftpad_k {
            inputs = inputs.leftpad_k(lengths);
        }
        if let Some(offset) = &self.offset {
            inputs = inputs.offset(offset);
        }
        if let Some([centres, radii]) = &self.radii {
            inputs = inputs.radii(centres, radii);
        }
        let Uploaded {
            buffer,
            offset,
            shape,
            strides,
        } = &mut self.out;
        let mut out = buffer.slice_mut(*offset..);
        let out = ViewMut::strided(&mut out, shape, strides)?;
        let mut lse = self.lse.as_mut().map(|lse| lse.slice_mut(..lse.len() - 1));
        let lse = lse.as_mut().map(|lse| lse as &mut dyn BufferMut<f32>);
        match decode {
            false => layer.prefill(stream, &inputs, out, lse, workspace),
            true => layer.decode(stream, &inputs, out, lse, workspace),
        }
    }

    /// What the outputs hold, once the stream has come so far.
    pub fn outputs(&self, stream: &Arc<CudaStream>) -> Result<Attended<T>, Failure> {
        let out = stream.clone_dtoh(&self.out.buffer).map_err(Failure::new)?;
        let mut lse = match &self.lse {
            Some(lse) => stream.clone_dtoh(lse).map_err(Failure::new)?,
            None => vec![0.0],
        };
        stream.synchronize().map_err(Failure::new)?;
        lse.pop();
        Ok(Attended { out, lse })
    }
}

impl<T: OnDevice> Problem<'_, T> {
    /// Runs it on the stream's device.
    pub fn attend_on(&self, stream: &Arc<CudaStream>) -> Result<Attended<T>, Failure> {
        self.run_on(stream, false)
    }

    /// Likewise with the kernels for decoding.
    pub fn decode_on(&self, stream: &Arc<CudaStream>) -> Result<Attended<T>, Failure> {
        self.run_on(stream, true)
    }

    fn run_on(&self, stream: &Arc<CudaStream>, decode: bool) -> Result<Attended<T>, Failure> {
        let mut call = OnGpu::new(stream, self)?;
        let layer = Layer::new(stream, self.attention.clone()).map_err(Failure::new)?;
        let mut workspace = call.workspace(&layer, stream).map_err(Failure::new)?;
        call.attend(&layer, stream, decode, &mut workspace)
            .map_err(Failure::new)?;
        call.outputs(stream)
    }

    /// The number of sequences, and at least the queries and keys of the longest.
    fn most(&self) -> [usize; 3] {
        let (q, k) = (self.q.layout.shape(), self.k.layout.shape());
        let batch = match self.cu_seqlens_q {
            Some(cu_q) => cu_q.len() - 1,
            None => q[0],
        };
        // Of packed tensors, of all sequences together.
        let (rows_q, rows_k) = (q[q.len() - 3], k[k.len() - 3]);
        let seqlen_k = (self.block_table).map_or(rows_k, |(_, paged)| paged.columns * rows_k);
        [batch, rows_q, seqlen_k]
    }
}

impl<T: OnDevice> LaidOut<T> {
    /// Runs the prefill kernel on a GPU, twice.
    pub fn attend_on_device(&self, stream: &Arc<CudaStream>) -> Result<Vec<Rows>, String> {
        let (rows, _) = self.attend_twice(|problem, _| Ok((problem.attend_on(stream)?, ())))?;
        Ok(rows)
    }

    /// Runs the kernels for decoding on a GPU, twice.
    pub fn decode_on_device(&self, stream: &Arc<CudaStream>) -> Result<Vec<Rows>, String> {
        let (rows, _) = self.attend_twice(|problem, _| Ok((problem.decode_on(stream)?, ())))?;
        Ok(rows)
    }
}
