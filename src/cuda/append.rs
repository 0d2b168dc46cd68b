//! New keys and values into a paged cache.

use std::sync::Arc;

use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut};

use super::{Element, Error, Kernels, Result, View, ViewMut};
use crate::error;
use crate::plan::{Append, AppendAddresses};
use crate::sequences::check_radii as check_radii_lengths;
use crate::tensor::Layout;

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
        self.append_to(stream, k, v, k_pages, v_pages, slot_mapping, None)
    }

    /// As [`Kernels::append`], for a cache that keeps how far its keys are from a centre: [`Inputs::radii`](super::Inputs::radii).
    ///
    /// `centres` is `[heads_k, head_dim]`, a vector for each head that stays the same while the cache has keys. Any is
    /// sound: bounds are tightest around the mean key, and zeros do where it is not known. `radii` is `[pages, heads_k]`, of
    /// any content before.
    ///
    /// A page is filled from row 0 on, as by [`PagedCache`](crate::PagedCache): a token in row 0 begins its page's radii
    /// anew, and every other raises them; a key that is overwritten counts until then. Where a page is copied
    /// ([`Appended::copies`](crate::Appended::copies)), its row of `radii` must be copied too.
    ///
    /// # Errors
    /// As [`Kernels::append`], also for centres that are not `[heads_k, head_dim]` and radii that are not
    /// `[pages, heads_k]`.
    #[allow(clippy::too_many_arguments)]
    pub fn append_with_radii<T: Element>(
        &self,
        stream: &CudaStream,
        k: View<'_, T>,
        v: View<'_, T>,
        k_pages: ViewMut<'_, T>,
        v_pages: ViewMut<'_, T>,
        slot_mapping: &dyn DevicePtr<i64>,
        centres: &dyn DevicePtr<f32>,
        radii: &mut dyn DevicePtrMut<f32>,
    ) -> Result<()> {
        let radii = Some((centres, radii));
        self.append_to(stream, k, v, k_pages, v_pages, slot_mapping, radii)
    }

    #[allow(clippy::too_many_arguments)]
    fn append_to<T: Element>(
        &self,
        stream: &CudaStream,
        k: View<'_, T>,
        v: View<'_, T>,
        k_pages: ViewMut<'_, T>,
        v_pages: ViewMut<'_, T>,
        slot_mapping: &dyn DevicePtr<i64>,
        radii: Option<(&dyn DevicePtr<f32>, &mut dyn DevicePtrMut<f32>)>,
    ) -> Result<()> {
        let launcher = self.on(stream)?;
        let (new, pages) = ((&k.layout, &v.layout), (&k_pages.layout, &v_pages.layout));
        let append = match &radii {
            None => Append::new(new.0, new.1, pages.0, pages.1)?,
            Some((centres, radii)) => {
                let append = Append::with_radii(T::DTYPE, new.0, new.1, pages.0, pages.1)?;
                check_radii(self, pages.0, *centres, (radii.len(), radii.stream()))?;
                append
            }
        };
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
        let (centres, radii) = radii.unzip();
        let (centres, _centres) = centres.map(|centres| centres.device_ptr(stream)).unzip();
        let (radii, _radii) = radii.map(|radii| radii.device_ptr_mut(stream)).unzip();
        let addresses = AppendAddresses {
            k,
            v,
            k_pages,
            v_pages,
            slot_mapping,
            centres: centres.unwrap_or(0),
            radii: radii.unwrap_or(0),
        };
        // SAFETY: views are as long as their layouts need, there is a slot for each token, and `check_radii` has checked the
        // rest; the kernels leave out slots that the pools do not have. The guards order the work before anything that frees or writes the buffers.
        unsafe { append.run(&launcher, &addresses) }
    }
}

/// Checks the centres, and the radii by their length and stream, of pages `[pages, page_size, heads_k, head_dim]`.
pub(super) fn check_radii(
    kernels: &Kernels,
    pages: &Layout,
    centres: &dyn DevicePtr<f32>,
    (radii, stream): (usize, &Arc<CudaStream>),
) -> Result<()> {
    check_radii_lengths(pages, centres.len(), radii).map_err(Error::Argument)?;
    kernels.check_context("centres", centres.stream().context())?;
    kernels.check_context("radii", stream.context())
}
