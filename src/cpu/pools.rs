//! The pools of a paged cache, in whatever layout: where a row of a head lies in them.

use super::Element;
use super::bounds::{distance, larger};
use super::machine::Portable;
use crate::error::{Error, Result, value};
use crate::sequences::{check_page_size, check_radii};
use crate::tensor::{Layout, Part, View, ViewMut};

/// The pools of a paged cache, borrowed to be written: one of keys, one of values, each of them
/// `[pages, page_size, heads_k, head_dim]`.
///
/// [`append`](super::append) and [`copy_pages`](super::copy_pages) do for pools in buffers of their own; this is for other
/// layouts too. Here every page has its keys and then its values, as in FlashInfer's `[pages, 2, page_size, heads_k, head_dim]`:
///
/// ```
/// use flash_alibi::{Inputs, Layout, View, cpu};
///
/// let (pages, page_size, heads, head_dim) = (4, 16, 2, 8);
/// let page = page_size * heads * head_dim;
/// let shape = [pages, page_size, heads, head_dim];
/// let layout = Layout::new("pages", &shape, &[2 * page, heads * head_dim, head_dim, 1])?;
/// let mut kv = vec![0f32; pages * 2 * page];
///
/// let data = vec![0.5; 3 * heads * head_dim];
/// let x = View::new(&data, &[3, heads, head_dim])?;
/// let mut pools = cpu::Pools::of_one_buffer(&mut kv, (0, layout), (page, layout))?;
/// pools.append(x, x, &[32, 33, 34])?;                        // the first rows of page 2
///
/// let (strides, shape) = (layout.strides(), layout.shape());
/// let k_pages = View::strided(&kv, &shape, &strides)?;
/// let v_pages = View::strided(&kv[page..], &shape, &strides)?;
/// let inputs = Inputs::paged(x, k_pages, v_pages, &[2], &[3]).varlen_q(&[0, 3]);
/// # let layer = flash_alibi::Attention::new(heads, heads, head_dim).build()?;
/// # cpu::attend(&layer, &inputs)?;
/// # Ok::<(), flash_alibi::Error>(())
/// ```
#[derive(Debug)]
pub struct Pools<'a, T> {
    memory: Memory<'a, T>,
    /// Where the pool of keys lies in its memory, and that of values: `[pages, page_size, pieces, piece]`. A piece is what stays
    /// together of a head, in most layouts all of it.
    parts: [Part; 2],
    /// Its shape is `[pages, page_size, heads_k, head_dim]`.
    pages: Layout,
}

/// The memory of two pools.
#[derive(Debug)]
pub(crate) enum Memory<'a, T> {
    Two(&'a mut [T], &'a mut [T]),
    One(&'a mut [T]),
}

impl<T> Memory<'_, T> {
    /// That of keys (0), or of values (1).
    fn of(&mut self, pool: usize) -> &mut [T] {
        match self {
            Self::Two(k, _) if pool == 0 => k,
            Self::Two(_, v) => v,
            Self::One(kv) => kv,
        }
    }
}

/// The bytes that stay together in vLLM's first layout.
const CHUNK_BYTES: usize = 16;

/// The two parts of vLLM's first layout, whose pages are without gaps; for each, where it begins, and the distance between its
/// pages. What stays together of a head is a piece.
pub(crate) fn split_x(
    pages: Layout,
    places: [(usize, usize); 2],
    element_bytes: usize,
) -> Result<[Part; 2]> {
    let x = CHUNK_BYTES / element_bytes;
    if !pages.head_dim.is_multiple_of(x) {
        let expected = format!("a multiple of {x}");
        return Err(value("head_dim", pages.head_dim, expected));
    }
    let part = |argument, (start, page), piece: usize| {
        let pieces = pages.heads.saturating_mul(pages.head_dim / piece);
        let shape = [pages.batch.unwrap_or(0), pages.rows, pieces, piece];
        let strides = [page, piece, pages.rows.saturating_mul(piece), 1];
        let layout = Layout::new(argument, &shape, &strides)?;
        Ok(Part { start, layout })
    };
    Ok([
        part("k_pages", places[0], x)?,
        part("v_pages", places[1], 1)?,
    ])
}

impl<'a, T: Element> Pools<'a, T> {
    /// Pools in buffers of their own, each `[pages, page_size, heads_k, head_dim]` with strides of its own.
    ///
    /// # Errors
    /// [`Error`] for views that are no pools, or of different shapes.
    pub fn new(k_pages: ViewMut<'a, T>, v_pages: ViewMut<'a, T>) -> Result<Self> {
        let pages = k_pages.layout;
        check_pages("k_pages", pages)?;
        check_same_shape(v_pages.layout, pages)?;
        let parts = [pages, v_pages.layout].map(|layout| Part { start: 0, layout });
        let memory = Memory::Two(k_pages.data, v_pages.data);
        Self::of_parts(memory, parts, pages)
    }

    /// Pools that lie in one buffer, such as the halves of `[2, pages, page_size, heads_k, head_dim]` or of
    /// `[pages, 2, page_size, heads_k, head_dim]`: where each begins in the buffer, and its layout from there on.
    ///
    /// # Errors
    /// [`Error`] for layouts that are no pools', of different shapes, too large for the buffer, or that may have elements in
    /// common. They have none where one pool ends before the other begins, or where their strides are the same and step over
    /// both.
    pub fn of_one_buffer(
        data: &'a mut [T],
        (k_start, k_pages): (usize, Layout),
        (v_start, v_pages): (usize, Layout),
    ) -> Result<Self> {
        check_pages("k_pages", k_pages)?;
        check_same_shape(v_pages, k_pages)?;
        let part = |start, layout| Part { start, layout };
        let parts = [part(k_start, k_pages), part(v_start, v_pages)];
        Self::of_parts(Memory::One(data), parts, k_pages)
    }

    /// Pools in vLLM's first layout, both without gaps: keys `[pages, heads_k, head_dim / x, page_size, x]`, where `x` elements
    /// have 16 bytes, and values `[pages, heads_k, head_dim, page_size]`. `shape` is `[pages, page_size, heads_k, head_dim]`.
    ///
    /// # Errors
    /// [`Error`] for a `page_size` that is no multiple of 8, a `head_dim` that is none of `x`, and buffers that are too short.
    pub fn split_x(k_pages: &'a mut [T], v_pages: &'a mut [T], shape: [usize; 4]) -> Result<Self> {
        let pages = Layout::contiguous("shape", &shape)?;
        check_pages("shape", pages)?;
        let place = (0, pages.batch_stride);
        let parts = split_x(pages, [place; 2], size_of::<T>())?;
        Self::of_parts(Memory::Two(k_pages, v_pages), parts, pages)
    }

    /// Pools of the shape of `pages`, once their parts have been found to be in their memory, without an element in common.
    pub(crate) fn of_parts(
        mut memory: Memory<'a, T>,
        parts: [Part; 2],
        pages: Layout,
    ) -> Result<Self> {
        for (pool, argument) in ["k_pages", "v_pages"].into_iter().enumerate() {
            parts[pool].check(argument, memory.of(pool).len())?;
        }
        if matches!(memory, Memory::One(_)) {
            check_apart(parts)?;
        }
        Ok(Self {
            memory,
            parts,
            pages,
        })
    }

    /// Writes new keys and values into their slots, as the function [`append`](super::append) does.
    ///
    /// # Errors
    /// As [`append`](super::append).
    pub fn append(&mut self, k: View<'_, T>, v: View<'_, T>, slot_mapping: &[i64]) -> Result<()> {
        self.check_new(k.layout, v.layout)?;
        check_slots(slot_mapping, k.layout.rows, self.pages)?;
        let (rows, head_dim) = (self.pages.rows, self.pages.head_dim);
        for (pool, from) in [k, v].into_iter().enumerate() {
            let part = self.parts[pool];
            let Layout {
                heads: pieces,
                head_dim: piece,
                ..
            } = part.layout;
            if part.layout.span() == 0 {
                continue; // Strides are checked only where there are elements to step over.
            }
            let to = self.memory.of(pool);
            for (token, slot) in slots(slot_mapping) {
                for n in 0..pieces {
                    let (head, column) = (n * piece / head_dim, n * piece % head_dim);
                    let new = at_new(&from.layout, token, head) + column;
                    let new = &from.data[new..][..piece];
                    to[at(&part, slot / rows, slot % rows, n)..][..piece].copy_from_slice(new);
                }
            }
        }
        Ok(())
    }

    /// As [`Pools::append`], and also keeps the radii of the pages, as the function
    /// [`append_with_radii`](super::append_with_radii) does.
    ///
    /// # Errors
    /// As [`append_with_radii`](super::append_with_radii).
    pub fn append_with_radii(
        &mut self,
        k: View<'_, T>,
        v: View<'_, T>,
        slot_mapping: &[i64],
        centres: &[f32],
        radii: &mut [f32],
    ) -> Result<()> {
        let pages = self.pages;
        check_radii(&pages, centres.len(), radii.len())?;
        self.append(k, v, slot_mapping)?;
        let (heads_k, head_dim) = (pages.heads, pages.head_dim);
        for (_, slot) in slots(slot_mapping).filter(|(_, slot)| slot % pages.rows == 0) {
            radii[slot / pages.rows * heads_k..][..heads_k].fill(0.0);
        }
        if k.layout.span() == 0 {
            return Ok(());
        }
        let machine = Portable(pulp::Scalar);
        for (token, slot) in slots(slot_mapping) {
            for head in 0..heads_k {
                let key = &k.data[at_new(&k.layout, token, head)..][..head_dim];
                let centre = &centres[head * head_dim..][..head_dim];
                let radius = &mut radii[slot / pages.rows * heads_k + head];
                *radius = larger(*radius, distance(machine, key, centre));
            }
        }
        Ok(())
    }

    /// Copies whole pages within both pools, as the function [`copy_pages`](super::copy_pages) does.
    ///
    /// # Errors
    /// As [`copy_pages`](super::copy_pages).
    pub fn copy_pages(&mut self, copies: &[(i32, i32)]) -> Result<()> {
        check_copies(copies, self.pages.batch.unwrap_or(0))?;
        for (pool, part) in self.parts.iter().enumerate() {
            copy(self.memory.of(pool), part, copies);
        }
        Ok(())
    }

    /// Checks new keys and values.
    fn check_new(&self, k: Layout, v: Layout) -> Result<()> {
        let (heads_k, head_dim) = (self.pages.heads, self.pages.head_dim);
        let tokens = k.rows;
        for (argument, layout) in [("k", k), ("v", v)] {
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
        Ok(())
    }
}

/// Copies pages of one pool, once its pages are known to be there.
pub(super) fn copy<T: Copy>(data: &mut [T], part: &Part, copies: &[(i32, i32)]) {
    let layout = part.layout;
    if layout.span() == 0 {
        return;
    }
    for &(from, to) in copies {
        for row in 0..layout.rows {
            for piece in 0..layout.heads {
                let from = at(part, from as usize, row, piece);
                let to = at(part, to as usize, row, piece);
                data.copy_within(from..from + layout.head_dim, to);
            }
        }
    }
}

/// The tokens that have a slot, and the slots.
fn slots(slot_mapping: &[i64]) -> impl Iterator<Item = (usize, usize)> {
    let slots = slot_mapping.iter().enumerate();
    slots.filter_map(|(token, &slot)| Some((token, usize::try_from(slot).ok()?)))
}

/// Where a head of a new token lies.
fn at_new(layout: &Layout, token: usize, head: usize) -> usize {
    token * layout.row_stride + head * layout.head_stride
}

/// Where a piece of a row lies in the memory.
fn at(part: &Part, page: usize, row: usize, piece: usize) -> usize {
    let layout = &part.layout;
    let row = page * layout.batch_stride + row * layout.row_stride;
    part.start + row + piece * layout.head_stride
}

/// Checks that pools in one memory have no element in common.
pub(crate) fn check_apart([k, v]: [Part; 2]) -> Result<()> {
    match k.is_apart(&v) {
        true => Ok(()),
        false => Err(value(
            "v_pages",
            "a tensor in the memory of k_pages",
            "memory of its own",
        )),
    }
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

/// Checks that a layout is a pool's.
pub(super) fn check_pages(argument: &'static str, pool: Layout) -> Result<()> {
    if pool.batch.is_none() {
        return Err(Error::Shape {
            argument,
            found: pool.shape(),
            expected: "[pages, page_size, heads_k, head_dim]".into(),
        });
    }
    check_page_size(pool.rows)
}

fn check_same_shape(v_pages: Layout, k_pages: Layout) -> Result<()> {
    match v_pages.shape() == k_pages.shape() {
        true => Ok(()),
        false => Err(Error::Shape {
            argument: "v_pages",
            found: v_pages.shape(),
            expected: format!("{:?}, as k_pages", k_pages.shape()),
        }),
    }
}

fn check_slots(slot_mapping: &[i64], tokens: usize, pages: Layout) -> Result<()> {
    let slots = pages.batch.unwrap_or(0) * pages.rows;
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
