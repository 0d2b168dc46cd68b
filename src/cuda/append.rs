//! New keys and values into a paged cache, and copies within it.

use cudarc::driver::CudaStream;

use super::buffer::{Checks, Lent};
use super::call::length;
use super::pools::Pools;
use super::{Buffer, BufferMut, Element, Error, Kernels, Layer, Result, View, ViewMut};
use crate::error;
use crate::plan::{Append, AppendAddresses, CopyPages, CopyPagesAddresses};
use crate::sequences::check_radii;

impl Layer {
    /// Writes the keys and values of new tokens, `[tokens, heads_k, head_dim]`, into the pools `k_pages` and `v_pages`,
    /// `[pages, page_size, heads_k, head_dim]`.
    ///
    /// Token `t` goes to row `slot_mapping[t] % page_size` of page `slot_mapping[t] / page_size`, as in vLLM. A token whose
    /// slot is negative, or beyond the last page, is left out; which of two tokens with the same slot stays is not said.
    /// [`Pools`] has pools that lie in one buffer.
    /// The work is enqueued on `stream`; it allocates nothing, and can be captured in a [`Step`](super::Step).
    ///
    /// # Errors
    /// As [`Layer::forward`].
    pub fn append<T: Element>(
        &self,
        stream: &CudaStream,
        k: View<'_, T>,
        v: View<'_, T>,
        k_pages: ViewMut<'_, T>,
        v_pages: ViewMut<'_, T>,
        slot_mapping: &dyn Buffer<i64>,
    ) -> Result<()> {
        Pools::new(k_pages, v_pages).append(self, stream, k, v, slot_mapping)
    }

    /// As [`Layer::append`], for a cache that keeps how far its keys are from a centre: [`Inputs::radii`](super::Inputs::radii).
    ///
    /// `centres` is `[heads_k, head_dim]`, a vector for each head that stays the same while the cache has keys. Any is
    /// sound: bounds are tightest around the mean key, and zeros do where it is not known. `radii` is `[pages, heads_k]`, of
    /// any content before.
    ///
    /// A page is filled from row 0 on, as by [`PagedCache`](crate::PagedCache): a token in row 0 begins its page's radii
    /// anew, and every other raises them; a key that is overwritten counts until then. Where a page is copied
    /// ([`Appended::copies`](crate::Appended::copies)), its row of `radii` must be copied too: [`Layer::copy_pages`] does.
    ///
    /// # Errors
    /// As [`Layer::append`], also for centres that are not `[heads_k, head_dim]` and radii that are not
    /// `[pages, heads_k]`.
    #[allow(clippy::too_many_arguments)]
    pub fn append_with_radii<T: Element>(
        &self,
        stream: &CudaStream,
        k: View<'_, T>,
        v: View<'_, T>,
        k_pages: ViewMut<'_, T>,
        v_pages: ViewMut<'_, T>,
        slot_mapping: &dyn Buffer<i64>,
        centres: &dyn Buffer<f32>,
        radii: &mut dyn BufferMut<f32>,
    ) -> Result<()> {
        let mut pools = Pools::new(k_pages, v_pages);
        pools.append_with_radii(self, stream, k, v, slot_mapping, centres, radii)
    }

    /// Copies whole pages within the pools `k_pages` and `v_pages`, `[pages, page_size, heads_k, head_dim]`, and of `radii`,
    /// `[pages, heads_k]`, if there are any: what [`PagedCache::append`](crate::PagedCache::append) asks for before sequences
    /// that share a page diverge.
    ///
    /// `copies` is `[copies, 2]`: from which page to which. They are made in this order. A copy from or to a page that the
    /// pools do not have is left out. The work is enqueued on `stream`; it allocates nothing, and can be captured in a
    /// [`Step`](super::Step).
    ///
    /// # Errors
    /// As [`Layer::forward`].
    pub fn copy_pages<T: Element>(
        &self,
        stream: &CudaStream,
        copies: &dyn Buffer<i64>,
        k_pages: ViewMut<'_, T>,
        v_pages: ViewMut<'_, T>,
        radii: Option<&mut dyn BufferMut<f32>>,
    ) -> Result<()> {
        Pools::new(k_pages, v_pages).copy_pages(self, stream, copies, radii)
    }

    /// Checks that new keys have the layer's heads.
    pub(super) fn check_new<T>(&self, k: &View<'_, T>) -> Result<()> {
        let (heads, head_dim) = (self.attention.heads_k(), self.attention.head_dim());
        if (k.layout.heads, k.layout.head_dim) != (heads, head_dim) {
            return Err(Error::Argument(error::Error::Shape {
                argument: "k",
                found: k.layout.shape(),
                expected: format!("[tokens, {heads}, {head_dim}]"),
            }));
        }
        Ok(())
    }
}

impl Kernels {
    /// [`Pools::append`], or with centres and radii [`Pools::append_with_radii`].
    pub(crate) fn append<T: Element>(
        &self,
        stream: &CudaStream,
        k: View<'_, T>,
        v: View<'_, T>,
        pools: &mut Pools<'_, T>,
        slot_mapping: &dyn Buffer<i64>,
        radii: Option<(&dyn Buffer<f32>, &mut dyn BufferMut<f32>)>,
    ) -> Result<()> {
        let launcher = self.on(stream)?;
        let (new, [k_pages, v_pages]) = ((&k.layout, &v.layout), &pools.layouts());
        let append = match &radii {
            None => Append::new(new.0, new.1, k_pages, v_pages)?,
            Some((centres, radii)) => {
                let append = Append::with_radii(T::DTYPE, new.0, new.1, k_pages, v_pages)?;
                check_radii(k_pages, centres.len(), radii.len())?;
                append
            }
        };
        let tokens = k.layout.rows;
        if slot_mapping.len() != tokens {
            let expected = format!("{tokens}, one a token");
            return Err(length("slot_mapping", slot_mapping.len(), expected));
        }
        let checks = Checks::new(stream)?;
        checks.buffer("k", k.buffer)?;
        checks.buffer("v", v.buffer)?;
        pools.check(&checks)?;
        checks.buffer("slot_mapping", slot_mapping)?;
        if let Some((centres, radii)) = &radii {
            checks.buffer("centres", *centres)?;
            checks.buffer("radii", &**radii)?;
        }
        if append.launches().is_empty() {
            return Ok(());
        }

        let mut lent = Lent::new(stream);
        let (centres, radii) = radii.unzip();
        let [k_pages, v_pages] = pools.write(&mut lent);
        let addresses = AppendAddresses {
            k: lent.read("k", k.buffer),
            v: lent.read("v", v.buffer),
            k_pages,
            v_pages,
            slot_mapping: lent.read("slot_mapping", slot_mapping),
            centres: lent.read_some("centres", centres),
            radii: radii.map_or(0, |radii| lent.write("radii", radii)),
        };
        lent.ready()?;
        // SAFETY: views and pools are as long as their layouts need, there is a slot for each token, and `check_radii` has
        // checked the rest; the kernels leave out slots that the pools do not have. `lent` orders the work before anything that frees
        // or writes the buffers.
        unsafe { append.run(&launcher, &addresses) }
    }

    /// [`Pools::copy_pages`].
    pub(crate) fn copy_pages<T: Element>(
        &self,
        stream: &CudaStream,
        copies: &dyn Buffer<i64>,
        pools: &mut Pools<'_, T>,
        radii: Option<&mut dyn BufferMut<f32>>,
    ) -> Result<()> {
        let launcher = self.on(stream)?;
        if !copies.len().is_multiple_of(2) {
            let expected = "pairs of pages: an even number".into();
            return Err(length("copies", copies.len(), expected));
        }
        let [k_pages, v_pages] = &pools.layouts();
        let plan = CopyPages::new(copies.len() / 2, k_pages, v_pages)?;
        if let Some(radii) = &radii {
            let (pages, heads) = (k_pages.batch.unwrap_or(0), k_pages.heads);
            let expected = pages.saturating_mul(heads);
            if radii.len() != expected {
                let expected = format!("pages * heads_k = {expected}");
                return Err(length("radii", radii.len(), expected));
            }
        }
        let checks = Checks::new(stream)?;
        checks.buffer("copies", copies)?;
        pools.check(&checks)?;
        if let Some(radii) = &radii {
            checks.buffer("radii", &**radii)?;
        }
        if plan.launches().is_empty() {
            return Ok(());
        }

        let mut lent = Lent::new(stream);
        let [k_pages, v_pages] = pools.write(&mut lent);
        let addresses = CopyPagesAddresses {
            copies: lent.read("copies", copies),
            k_pages,
            v_pages,
            radii: radii.map_or(0, |radii| lent.write("radii", radii)),
        };
        lent.ready()?;
        // SAFETY: pools are as long as their layouts need, and the lines above have checked the rest; the kernel leaves out
        // pages that the pools do not have. `lent` orders the work before anything that frees or writes the buffers.
        unsafe { plan.run(&launcher, &addresses) }
    }
}
