//! Writing to a paged cache: new keys and values into their slots, and copies of pages.

use super::Element;
use super::bounds::{distance, larger};
use super::machine::Portable;
use crate::Inputs;
use crate::error::{Error, Result, value};
use crate::sequences::{check_page_size, check_radii};
use crate::tensor::{Layout, View, ViewMut};

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
    let pool = k_pages.layout;
    let slots = check_pages("k_pages", pool)?;
    if v_pages.layout.shape() != pool.shape() {
        return Err(Error::Shape {
            argument: "v_pages",
            found: v_pages.layout.shape(),
            expected: format!("{:?}, as k_pages", pool.shape()),
        });
    }
    let (heads_k, head_dim) = (pool.heads, pool.head_dim);
    let tokens = k.layout.rows;
    for (argument, layout) in [("k", k.layout), ("v", v.layout)] {
        let fits = layout.batch.is_none() && layout.rows == tokens;
        if !fits || layout.heads != heads_k || layout.head_dim != head_dim {
            let tokens = match argument {
                "k" => "tokens".into(),
                _ => tokens.to_string(),
            };
            return Err(Error::Shape {
                argument,
                found: layout.shape(),
                expected: format!("[{tokens}, {heads_k}, {head_dim}]"),
            });
        }
    }
    check_slots(slot_mapping, tokens, slots)?;

    for (from, to) in [(k, k_pages), (v, v_pages)] {
        for (token, &slot) in slot_mapping.iter().enumerate() {
            let Ok(slot) = usize::try_from(slot) else {
                continue;
            };
            for head in 0..heads_k {
                let at = token * from.layout.row_stride + head * from.layout.head_stride;
                let row = &from.data[at..][..head_dim];
                let at = row_of(&to.layout, slot / pool.rows, slot % pool.rows, head);
                to.data[at..][..head_dim].copy_from_slice(row);
            }
        }
    }
    Ok(())
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
    let pool = k_pages.layout;
    check_radii(&pool, centres.len(), radii.len())?;
    append(k, v, k_pages, v_pages, slot_mapping)?;
    let (heads_k, head_dim) = (pool.heads, pool.head_dim);
    let slots = || {
        let slots = slot_mapping.iter().enumerate();
        slots.filter_map(|(token, &slot)| Some((token, usize::try_from(slot).ok()?)))
    };
    for (_, slot) in slots().filter(|(_, slot)| slot % pool.rows == 0) {
        radii[slot / pool.rows * heads_k..][..heads_k].fill(0.0);
    }
    let machine = Portable(pulp::Scalar);
    for (token, slot) in slots() {
        for head in 0..heads_k {
            let at = token * k.layout.row_stride + head * k.layout.head_stride;
            let (key, centre) = (&k.data[at..], &centres[head * head_dim..]);
            let radius = &mut radii[slot / pool.rows * heads_k + head];
            *radius = larger(
                *radius,
                distance(machine, &key[..head_dim], &centre[..head_dim]),
            );
        }
    }
    Ok(())
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
    for &(from, to) in copies {
        for row in 0..layout.rows {
            for head in 0..layout.heads {
                let from = row_of(&layout, from as usize, row, head);
                let to = row_of(&layout, to as usize, row, head);
                data.copy_within(from..from + layout.head_dim, to);
            }
        }
    }
    Ok(())
}

/// Checks that a pool has the pages that are copied.
pub(crate) fn check_copies(copies: &[(i32, i32)], pages: usize) -> Result<()> {
    for (at, &(from, to)) in copies.iter().enumerate() {
        for page in [from, to] {
            if !usize::try_from(page).is_ok_and(|page| page < pages) {
                let found = format!("page {page} at index {at}");
                let expected = format!("one of the {pages} pages, from 0");
                return Err(value("copies", found, expected));
            }
        }
    }
    Ok(())
}

/// Checks that a layout is a pool's, and returns how many slots it has.
fn check_pages(argument: &'static str, pool: Layout) -> Result<usize> {
    let Some(pages) = pool.batch else {
        return Err(Error::Shape {
            argument,
            found: pool.shape(),
            expected: "[pages, page_size, heads_k, head_dim]".into(),
        });
    };
    check_page_size(pool.rows)?;
    Ok(pages * pool.rows)
}

fn check_slots(slot_mapping: &[i64], tokens: usize, slots: usize) -> Result<()> {
    if slot_mapping.len() != tokens {
        return Err(Error::Length {
            argument: "slot_mapping",
            found: slot_mapping.len(),
            expected: format!("{tokens}, one a token"),
        });
    }
    let bad = |at: usize, expected: String| {
        let found = format!("{} at index {at}", slot_mapping[at]);
        Err(value("slot_mapping", found, expected))
    };
    let beyond = |&slot: &i64| usize::try_from(slot).is_ok_and(|slot| slot >= slots);
    if let Some(at) = slot_mapping.iter().position(beyond) {
        return bad(at, format!("less than pages * page_size = {slots}"));
    }
    let mut used: Vec<(i64, usize)> = slot_mapping.iter().copied().zip(0..).collect();
    used.retain(|&(slot, _)| slot >= 0);
    used.sort_unstable();
    match used.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        Some(pair) => bad(pair[1].1, format!("another than at index {}", pair[0].1)),
        None => Ok(()),
    }
}

fn row_of(pool: &Layout, page: usize, row: usize, head: usize) -> usize {
    page * pool.batch_stride + row * pool.row_stride + head * pool.head_stride
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
