//! Writing to a paged cache: new keys and values into their slots, and copies of pages.

use super::Element;
use super::pools::{Pools, check_copies, check_pages, copy};
use crate::Inputs;
use crate::error::{Error, Result};
use crate::sequences::check_radii;
use crate::tensor::{Layout, Part, View, ViewMut};

/// Writes the keys and values of new tokens into the pages of a KV cache.
///
/// `k` and `v` are `[tokens, heads_k, head_dim]`, `k_pages` and `v_pages` `[pages, page_size, heads_k, head_dim]` with
/// `page_size` a multiple of 8. Token `t` goes to row `slot_mapping[t] % page_size` of page
/// `slot_mapping[t] / page_size`, and nowhere if `slot_mapping[t]` is negative: vLLM's convention for padding.
///
/// # Errors
/// [`Error`] for tensors that do not fit each other, for another number of slots than of tokens, for a slot that no page
/// has, and for a slot that two tokens have; nothing is written then.
pub fn append<T: Element>(
    k: View<'_, T>,
    v: View<'_, T>,
    k_pages: ViewMut<'_, T>,
    v_pages: ViewMut<'_, T>,
    slot_mapping: &[i64],
) -> Result<()> {
    Pools::new(k_pages, v_pages)?.append(k, v, slot_mapping)
}

/// As [`append`], and also keeps the radii of the pages, for [`Inputs::radii`](crate::Inputs::radii): how far the keys of
/// each page are from a centre.
///
/// `centres` is `[heads_k, head_dim]`: a vector for each head, which must stay the same while the cache has keys. Any vector
/// gives correct bounds; those around the mean key are the tightest, and zeros will do where it is not known. `radii` is
/// `[pages, heads_k]`; its first content does not matter.
///
/// Pages are filled from row 0 on, as [`PagedCache`](crate::PagedCache) does it. A token in row 0 starts its page's radii anew;
/// a token in any other row raises them, if it must. So a key that was overwritten still counts until its page is started
/// anew. Where a page is copied ([`Appended::copies`](crate::Appended::copies)), its row of `radii` must be copied too.
///
/// # Errors
/// As [`append`], also for centres that are not `[heads_k, head_dim]` and radii that are not `[pages, heads_k]`.
pub fn append_with_radii<T: Element>(
    k: View<'_, T>,
    v: View<'_, T>,
    k_pages: ViewMut<'_, T>,
    v_pages: ViewMut<'_, T>,
    slot_mapping: &[i64],
    centres: &[f32],
    radii: &mut [f32],
) -> Result<()> {
    let mut pools = Pools::new(k_pages, v_pages)?;
    pools.append_with_radii(k, v, slot_mapping, centres, radii)
}

/// Copies whole pages within a pool `[pages, page_size, heads_k, head_dim]`, in order, each pair from its first page to its
/// second. [`PagedCache::append`](crate::PagedCache::append) asks for it where sequences that share a page diverge.
///
/// # Errors
/// [`Error`] for a tensor that is no pool and for a page that it does not have; nothing is written then.
pub fn copy_pages<T: Element>(pool: ViewMut<'_, T>, copies: &[(i32, i32)]) -> Result<()> {
    let ViewMut { data, layout } = pool;
    check_pages("pool", layout)?;
    check_copies(copies, layout.batch.unwrap_or(0))?;
    copy(data, &Part { start: 0, layout }, copies);
    Ok(())
}

/// The KV cache of one layer: a pool of pages for its keys and one for its values, each
/// `[pages, page_size, heads_k, head_dim]`, and the radii of the pages ([`append_with_radii`]).
/// [`PagedCache`](crate::PagedCache) says which page belongs to which sequence.
#[derive(Debug, Clone)]
pub struct KvCache<T> {
    k: Vec<T>,
    v: Vec<T>,
    layout: Layout,
    /// `[heads_k, head_dim]`.
    centres: Vec<f32>,
    /// `[pages, heads_k]`.
    radii: Vec<f32>,
}

impl<T: Element> KvCache<T> {
    /// A cache full of zeros.
    ///
    /// # Errors
    /// [`Error`] for a `page_size` that is no multiple of 8, and for sizes that no memory holds.
    pub fn new(pages: usize, page_size: usize, heads_k: usize, head_dim: usize) -> Result<Self> {
        let shape = [pages, page_size, heads_k, head_dim];
        let layout = Layout::contiguous("cache", &shape)?;
        check_pages("cache", layout)?;
        fn filled<E: Clone>(shape: [usize; 4], len: usize, value: E) -> Result<Vec<E>> {
            let mut pool = Vec::new();
            let reserved = pool.try_reserve_exact(len);
            reserved.map_err(|_| Error::Shape {
                argument: "cache",
                found: shape.to_vec(),
                expected: "a shape that fits in memory".into(),
            })?;
            pool.resize(len, value);
            Ok(pool)
        }
        let pool = || filled(shape, layout.elements(), T::default());
        let (k, v) = (pool()?, pool()?);
        // Nothing is known of what no append has written.
        let of = |a: usize, b: usize| a.saturating_mul(b);
        Ok(Self {
            k,
            v,
            layout,
            centres: filled(shape, of(heads_k, head_dim), 0.0)?,
            radii: filled(shape, of(pages, heads_k), f32::NAN)?,
        })
    }

    /// Sets the centres, `[heads_k, head_dim]`, which are zeros otherwise: the nearer they are to the mean key of each head,
    /// the less of a long sequence is read. Pages that have been written lose their radii, not their keys: they are never left
    /// out until they are started anew.
    ///
    /// # Errors
    /// [`Error::Length`] for another number of elements.
    pub fn with_centres(mut self, centres: &[f32]) -> Result<Self> {
        check_radii(&self.layout, centres.len(), self.radii.len())?;
        self.centres.copy_from_slice(centres);
        self.radii.fill(f32::NAN);
        Ok(self)
    }

    /// Attention over these pages: [`Inputs::paged`](crate::Inputs::paged), with [`Inputs::radii`](crate::Inputs::radii).
    pub fn inputs<'a>(
        &'a self,
        q: View<'a, T>,
        block_table: &'a [i32],
        seqused_k: &'a [i32],
    ) -> Inputs<'a, T> {
        Inputs::paged(q, self.k(), self.v(), block_table, seqused_k)
            .radii(&self.centres, &self.radii)
    }

    /// The keys, `[pages, page_size, heads_k, head_dim]`.
    pub fn k(&self) -> View<'_, T> {
        View {
            data: &self.k,
            layout: self.layout,
        }
    }

    /// The values, `[pages, page_size, heads_k, head_dim]`.
    pub fn v(&self) -> View<'_, T> {
        View {
            data: &self.v,
            layout: self.layout,
        }
    }

    /// Writes new keys and values into their slots, as the function [`append_with_radii`] does.
    ///
    /// # Errors
    /// As [`append`].
    pub fn append(&mut self, k: View<'_, T>, v: View<'_, T>, slot_mapping: &[i64]) -> Result<()> {
        let layout = self.layout;
        let [k_pages, v_pages] = [&mut self.k, &mut self.v].map(|data| ViewMut { data, layout });
        let (centres, radii) = (&self.centres, &mut self.radii);
        append_with_radii(k, v, k_pages, v_pages, slot_mapping, centres, radii)
    }

    /// Copies pages of both pools, as the function [`copy_pages`] does, and their radii.
    ///
    /// # Errors
    /// As [`copy_pages`].
    pub fn copy_pages(&mut self, copies: &[(i32, i32)]) -> Result<()> {
        let layout = self.layout;
        for data in [&mut self.k, &mut self.v] {
            copy_pages(ViewMut { data, layout }, copies)?;
        }
        let heads_k = layout.heads;
        for &(from, to) in copies {
            let from = from as usize * heads_k;
            (self.radii).copy_within(from..from + heads_k, to as usize * heads_k);
        }
        Ok(())
    }
}
