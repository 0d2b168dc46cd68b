//! Results over separate sets of keys, merged on a device.

use cudarc::driver::CudaStream;

use super::buffer::{Checks, Lent};
use super::call::length;
use super::{Buffer, BufferMut, Element, Error, Kernels, Layer, Result, View, ViewMut};
use crate::error;
use crate::plan::{MergeState, MergeStateAddresses};

impl Layer {
    /// Merges the attention of the same queries over other keys into `(out, lse)`, in place, as
    /// [`merge_states`](crate::merge_states) does: `out` and `other_out` are `[batch, seqlen_q, heads_q, head_dim]`, `lse`
    /// and `other_lse` `[batch, heads_q, seqlen_q]`; or `[total_q, heads_q, head_dim]` and `[heads_q, total_q]`.
    ///
    /// The work is enqueued on `stream`; it allocates nothing, and can be captured in a [`Step`](super::Step).
    ///
    /// # Errors
    /// As [`Layer::forward`].
    pub fn merge_state<T: Element>(
        &self,
        stream: &CudaStream,
        out: ViewMut<'_, T>,
        lse: &mut dyn BufferMut<f32>,
        other_out: View<'_, T>,
        other_lse: &dyn Buffer<f32>,
    ) -> Result<()> {
        let (heads, head_dim) = (self.attention().heads_q(), self.attention().head_dim());
        if (out.layout.heads, out.layout.head_dim) != (heads, head_dim) {
            return Err(Error::Argument(error::Error::Shape {
                argument: "out",
                found: out.layout.shape(),
                expected: format!("[batch, seqlen_q, {heads}, {head_dim}], as the layer has"),
            }));
        }
        self.kernels
            .merge_state(stream, out, lse, other_out, other_lse)
    }
}

impl Kernels {
    /// [`Layer::merge_state`].
    pub(crate) fn merge_state<T: Element>(
        &self,
        stream: &CudaStream,
        out: ViewMut<'_, T>,
        lse: &mut dyn BufferMut<f32>,
        other_out: View<'_, T>,
        other_lse: &dyn Buffer<f32>,
    ) -> Result<()> {
        let launcher = self.on(stream)?;
        let plan = MergeState::new(T::DTYPE, &out.layout, &other_out.layout)?;
        let expected = out.layout.batch.unwrap_or(1) * out.layout.rows * out.layout.heads;
        for (argument, found) in [("lse", lse.len()), ("other_lse", other_lse.len())] {
            if found != expected {
                let expected = format!("{expected}, one a row and head of out");
                return Err(length(argument, found, expected));
            }
        }
        let checks = Checks::new(stream)?;
        checks.buffer("out", &*out.buffer)?;
        checks.buffer("lse", &*lse)?;
        checks.buffer("other_out", other_out.buffer)?;
        checks.buffer("other_lse", other_lse)?;
        if plan.launches().is_empty() {
            return Ok(());
        }

        let mut lent = Lent::new(stream);
        let addresses = MergeStateAddresses {
            out: lent.write("out", out.buffer),
            lse: lent.write("lse", lse),
            other_out: lent.read("other_out", other_out.buffer),
            other_lse: lent.read("other_lse", other_lse),
        };
        lent.ready()?;
        // SAFETY: views are as long as their layouts need, and each lse as its rows. `lent` orders the work before anything
        // that frees or writes the buffers.
        unsafe { plan.run(&launcher, &addresses) }
    }
}
