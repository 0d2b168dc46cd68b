//! New keys and values into a paged cache.

use cudarc::driver::{CudaStream, DevicePtr};

use super::{Element, Error, Kernels, Result, View, ViewMut};
use crate::error;
use crate::plan::{Append, AppendAddresses};

impl Kernels {
    /// Writes the keys and values of new tokens, `[tokens, heads_k, head_dim]`, into the pools `k_pages` and `v_pages`,
    /// `[pages, page_size, heads_k, head_dim]`.
    ///
    /// Token `t` goes to row `slot_mapping[t] % page_size` of page `slot_mapping[t] / page_size`, as in vLLM. A token whose
    /// slot is negative, or beyond the last page, is left out; which of two tokens with the same slot stays is not said.
    /// The work is enqueued on `stream`; it allocates nothing, and can be captured in a graph.
    ///
    /// # Errors
    /// [`Error::Argument`] for tensors that do not fit each other, [`Error::Context`] for a stream or a buffer of another
    /// context: nothing is launched then. [`Error::Driver`] when the driver refuses.
    pub fn append<T: Element>(
        &self,
        stream: &CudaStream,
        k: View<'_, T>,
        v: View<'_, T>,
        k_pages: ViewMut<'_, T>,
        v_pages: ViewMut<'_, T>,
        slot_mapping: &dyn DevicePtr<i64>,
    ) -> Result<()> {
        let launcher = self.on(stream)?;
        let append = Append::new(&k.layout, &v.layout, &k_pages.layout, &v_pages.layout)?;
        let tokens = k.layout.rows;
        if slot_mapping.len() != tokens {
            return Err(Error::Argument(error::Error::Length {
                argument: "slot_mapping",
                found: slot_mapping.len(),
                expected: format!("{tokens}, one a token"),
            }));
        }
        for (argument, other) in [
            ("k", k.buffer.stream()),
            ("v", v.buffer.stream()),
            ("k_pages", k_pages.buffer.stream()),
            ("v_pages", v_pages.buffer.stream()),
            ("slot_mapping", slot_mapping.stream()),
        ] {
            self.check_context(argument, other.context())?;
        }

        let (k, _k) = k.buffer.device_ptr(stream);
        let (v, _v) = v.buffer.device_ptr(stream);
        let (slot_mapping, _slot_mapping) = slot_mapping.device_ptr(stream);
        let (k_pages, _k_pages) = k_pages.buffer.device_ptr_mut(stream);
        let (v_pages, _v_pages) = v_pages.buffer.device_ptr_mut(stream);
        let addresses = AppendAddresses {
            k,
            v,
            k_pages,
            v_pages,
            slot_mapping,
        };
        // SAFETY: views are as long as their layouts need, and there is a slot for each token; the kernel leaves out slots
        // that the pools do not have. The guards order the work before anything that frees or writes the buffers.
        unsafe { append.run(&launcher, &addresses) }
    }
}
