//! What kernels cannot refuse: lengths and page numbers that lie on the device.

use cudarc::driver::{CudaStream, result};

use super::buffer::{Checks, Lent};
use super::{Buffer, Element, Error, Inputs, Result, capture};
use crate::attention::Attention;
use crate::problem::Problem;
use crate::sequences::Sequences;
use crate::tensor::View;

impl<T: Element> Inputs<'_, T> {
    /// Checks the values of lengths, row indices and page numbers, as the CPU does before it computes.
    ///
    /// Kernels cut off what exceeds the tensors, so that no access leaves them, and say nothing. This reads the values back
    /// and waits for them: it is for looking for mistakes, and cannot be captured in a graph.
    ///
    /// # Errors
    /// As [`Layer::forward`](super::Layer::forward), and [`Error::Argument`] for values that do not fit.
    pub fn check(&self, attention: &Attention, stream: &CudaStream) -> Result<()> {
        if capture::is_of_step(stream)? {
            return Err(Error::Capturing);
        }
        let arrays = &self.sequences;
        let (q, k, v) = (self.q.layout, self.k.layout, self.v.layout);
        arrays.check(attention, [q, k, v, q])?;
        self.check_buffers(&Checks::new(stream)?)?;
        let cu_seqlens_q = read("cu_seqlens_q", arrays.cu_seqlens_q, stream)?;
        let cu_seqlens_k = read("cu_seqlens_k", arrays.cu_seqlens_k, stream)?;
        let block_table = read("block_table", arrays.block_table, stream)?;
        let seqused_k = read("seqused_k", arrays.seqused_k, stream)?;
        let leftpad_k = read("leftpad_k", arrays.leftpad_k, stream)?;
        let offset = read("offset", arrays.offset, stream)?;
        stream
            .synchronize()
            .map_err(Error::driver("when lengths were read"))?;
        fn view<T>(layout: crate::tensor::Layout) -> View<'static, T> {
            View { data: &[], layout }
        }
        let inputs = crate::Inputs::<T> {
            q: view(self.q.layout),
            k: view(self.k.layout),
            v: view(self.v.layout),
            sequences: Sequences {
                cu_seqlens_q: cu_seqlens_q.as_deref(),
                cu_seqlens_k: cu_seqlens_k.as_deref(),
                max_seqlen_q: arrays.max_seqlen_q,
                max_seqlen_k: arrays.max_seqlen_k,
                block_table: block_table.as_deref(),
                seqused_k: seqused_k.as_deref(),
                leftpad_k: leftpad_k.as_deref(),
                offset: offset.as_deref(),
                radii: None,
            },
        };
        Problem::new(attention, &inputs, None)?;
        Ok(())
    }
}

/// Begins to copy integers to the host.
fn read(
    argument: &'static str,
    buffer: Option<&dyn Buffer<i32>>,
    stream: &CudaStream,
) -> Result<Option<Vec<i32>>> {
    let Some(buffer) = buffer else {
        return Ok(None);
    };
    let failed = Error::driver("when lengths were read");
    stream.context().bind_to_thread().map_err(&failed)?;
    let mut host = vec![0; buffer.len()];
    let mut lent = Lent::new(stream);
    let address = lent.read(argument, buffer);
    lent.ready()?;
    // SAFETY: the buffer is as long as its copy, and `lent` orders the copy before anything that writes or frees it. A
    // copy to memory of the host that is not pinned is over before the call returns.
    unsafe { result::memcpy_dtoh_async(&mut host, address, stream.cu_stream()) }
        .map_err(&failed)?;
    Ok(Some(host))
}
