//! One call, validated: shapes that fit the layer and each other, and where every sequence lies in the buffers.

use std::ops::Range;

use crate::attention::Attention;
use crate::error::{Error, Result, value};
use crate::tensor::{Layout, View};

/// The inputs of one call: tensors, and how sequences lie in them.
///
/// Dense ([`Inputs::new`]): q `[batch, seqlen_q, heads_q, head_dim]`, k and v `[batch, seqlen_k, heads_k, head_dim]`.
/// Variable length ([`Inputs::varlen`]): q `[total_q, heads_q, head_dim]`, k and v `[total_k, heads_k, head_dim]`. From a
/// paged cache ([`Inputs::paged`]): q of either form, k and v `[pages, page_size, heads_k, head_dim]`.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a, T> {
    pub(crate) q: View<'a, T>,
    pub(crate) k: View<'a, T>,
    pub(crate) v: View<'a, T>,
    pub(crate) lengths: Lengths<'a>,
    pub(crate) radii: Option<PageRadii<'a>>,
}

/// How far the keys of a paged cache are from a centre.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PageRadii<'a> {
    /// `[heads_k, head_dim]`.
    centres: &'a [f32],
    /// `[pages, heads_k]`.
    radii: &'a [f32],
    heads_k: usize,
}

/// How sequences lie in the tensors of a call.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Lengths<'a> {
    pub(crate) cu_seqlens_q: Option<&'a [i32]>,
    pub(crate) cu_seqlens_k: Option<&'a [i32]>,
    pub(crate) block_table: Option<&'a [i32]>,
    pub(crate) seqused_k: Option<&'a [i32]>,
    pub(crate) leftpad_k: Option<&'a [i32]>,
}

impl<'a, T> Inputs<'a, T> {
    /// Dense inputs: every sequence has all rows of its tensors.
    pub fn new(q: View<'a, T>, k: View<'a, T>, v: View<'a, T>) -> Self {
        Self {
            q,
            k,
            v,
            lengths: Lengths::default(),
            radii: None,
        }
    }

    /// A paged cache: key `j` of sequence `b` is row `j % page_size` of page `block_table[b][j / page_size]` of the pools
    /// `k` and `v`, both `[pages, page_size, heads_k, head_dim]`: the layout of vLLM and FlashAttention.
    ///
    /// `page_size` is a multiple of 8. `block_table` is `[batch, max_pages_per_sequence]`, without gaps; sequences may
    /// share pages, and entries that no query needs may be anything. `seqused_k` is `[batch]`, the keys that each sequence
    /// has, those of this call's tokens included (see [`cpu::append`](crate::cpu::append)); the last query stands at the
    /// last of them, so a prompt may come in chunks. q is `[batch, seqlen_q, heads_q, head_dim]`, or packed by
    /// [`Inputs::varlen_q`].
    pub fn paged(
        q: View<'a, T>,
        k: View<'a, T>,
        v: View<'a, T>,
        block_table: &'a [i32],
        seqused_k: &'a [i32],
    ) -> Self {
        let mut inputs = Self::new(q, k, v).seqused_k(seqused_k);
        inputs.lengths.block_table = Some(block_table);
        inputs
    }

    /// Packed queries of a paged cache: q is `[total_q, heads_q, head_dim]`, and sequence `b` has its rows
    /// `cu_seqlens_q[b]..cu_seqlens_q[b + 1]`, as in [`Inputs::varlen`].
    pub fn varlen_q(mut self, cu_seqlens_q: &'a [i32]) -> Self {
        self.lengths.cu_seqlens_q = Some(cu_seqlens_q);
        self
    }

    /// Packed sequences: sequence `b` has the query rows `cu_seqlens_q[b]..cu_seqlens_q[b + 1]` and likewise the key
    /// rows. Both arrays hold `batch + 1` non-decreasing row indices starting at 0; rows past the last belong to no
    /// sequence and are neither read nor written.
    pub fn varlen(mut self, cu_seqlens_q: &'a [i32], cu_seqlens_k: &'a [i32]) -> Self {
        self.lengths.cu_seqlens_q = Some(cu_seqlens_q);
        self.lengths.cu_seqlens_k = Some(cu_seqlens_k);
        self
    }

    /// Sequence `b` has only its first `seqused_k[b]` key rows: a padded batch, or a cache that is not yet full. The
    /// last query then stands at key position `seqused_k[b] - 1`.
    pub fn seqused_k(mut self, seqused_k: &'a [i32]) -> Self {
        self.lengths.seqused_k = Some(seqused_k);
        self
    }

    /// The first `leftpad_k[b]` key rows of sequence `b` are padding that no query sees.
    pub fn leftpad_k(mut self, leftpad_k: &'a [i32]) -> Self {
        self.lengths.leftpad_k = Some(leftpad_k);
        self
    }

    /// How far the keys of a paged cache are from a centre, as [`cpu::append_with_radii`](crate::cpu::append_with_radii)
    /// keeps it: by it, pages that the [`Horizon`](crate::Horizon) leaves out are not even read.
    ///
    /// `centres` is `[heads_k, head_dim]`, `radii` `[pages, heads_k]`: at least the distance of each key of a page from the
    /// head's centre. Radii of pages that no query needs may be anything; those of NaN keep their pages.
    pub fn radii(mut self, centres: &'a [f32], radii: &'a [f32]) -> Self {
        let heads_k = self.k.layout.heads;
        self.radii = Some(PageRadii {
            centres,
            radii,
            heads_k,
        });
        self
    }
}

/// Where one sequence lies. Offsets are in elements, to its first row and head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sequence {
    pub(crate) index: usize,
    pub(crate) seqlen_q: usize,
    pub(crate) seqlen_k: usize,
    pub(crate) leftpad_k: usize,
    pub(crate) q: usize,
    pub(crate) k: usize,
    pub(crate) v: usize,
    pub(crate) out: usize,
    pub(crate) lse: usize,
}

/// The pages of every sequence of a paged call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlockTable<'a> {
    entries: &'a [i32],
    max_pages: usize,
    pub(crate) page_size: usize,
}

impl<'a> BlockTable<'a> {
    fn new(entries: &'a [i32], batch: usize, page_size: usize) -> Result<Self> {
        if !entries.len().is_multiple_of(batch) {
            return Err(Error::Length {
                argument: "block_table",
                found: entries.len(),
                expected: format!("a multiple of batch = {batch}"),
            });
        }
        Ok(Self {
            entries,
            max_pages: entries.len() / batch.max(1),
            page_size,
        })
    }

    /// How many keys the pages of a sequence hold.
    fn capacity(&self) -> usize {
        self.max_pages.saturating_mul(self.page_size)
    }

    /// Checks the entries that the keys `seen` of sequence `b` need.
    fn check(&self, b: usize, seen: Range<usize>, pages: usize) -> Result<()> {
        if seen.is_empty() {
            return Ok(());
        }
        let needed = seen.start / self.page_size..seen.end.div_ceil(self.page_size);
        for (at, &page) in needed.clone().zip(&self.of(b)[needed]) {
            if !usize::try_from(page).is_ok_and(|page| page < pages) {
                let found = format!("{page} at index [{b}, {at}]");
                let expected = format!("one of the {pages} pages, from 0");
                return Err(value("block_table", found, expected));
            }
        }
        Ok(())
    }

    /// The pages of sequence `b`. Those of keys that some query sees are valid.
    pub(crate) fn of(&self, b: usize) -> &'a [i32] {
        &self.entries[b * self.max_pages..][..self.max_pages]
    }
}

/// A validated call.
#[derive(Debug, Clone)]
pub(crate) struct Problem<'a> {
    pub(crate) attention: &'a Attention,
    pub(crate) block_table: Option<BlockTable<'a>>,
    pub(crate) q: Layout,
    pub(crate) k: Layout,
    pub(crate) v: Layout,
    pub(crate) out: Layout,
    /// The distance between heads in `lse`: `seqlen_q`, or `total_q` for packed sequences.
    pub(crate) lse_head_stride: usize,
    pub(crate) sequences: Vec<Sequence>,
    pub(crate) radii: Option<PageRadii<'a>>,
}

impl<'a> Problem<'a> {
    /// Checks that everything fits. `out` defaults to a tensor without gaps of q's shape.
    pub(crate) fn new<T>(
        attention: &'a Attention,
        inputs: &Inputs<'a, T>,
        out: Option<Layout>,
    ) -> Result<Self> {
        let [q, k, v] = [inputs.q.layout, inputs.k.layout, inputs.v.layout];
        let out = match out {
            Some(out) => out,
            None => Layout::contiguous("out", &q.shape())?,
        };
        let Lengths {
            cu_seqlens_q,
            cu_seqlens_k,
            block_table,
            seqused_k,
            leftpad_k,
        } = inputs.lengths;

        let packed = cu_seqlens_q.is_some();
        check_shapes(attention, packed, block_table.is_some(), [q, k, v, out])?;
        // Rows of each sequence in q and in k, where they are packed.
        let ranges_q = match cu_seqlens_q {
            Some(cu) => row_ranges("cu_seqlens_q", cu, q.rows)?,
            None => Vec::new(),
        };
        let batch = q.batch.unwrap_or(ranges_q.len());
        let ranges_k = match cu_seqlens_k {
            Some(_) if block_table.is_some() => {
                let expected = "none: the lengths of a paged cache are seqused_k";
                return Err(value("cu_seqlens_k", "row indices", expected));
            }
            Some(cu) => row_ranges("cu_seqlens_k", cu, k.rows)?,
            None if packed && block_table.is_none() => {
                return Err(value("cu_seqlens_k", "none", "as many as cu_seqlens_q"));
            }
            None => Vec::new(),
        };
        if let (Some(cu_q), Some(cu_k)) = (cu_seqlens_q, cu_seqlens_k)
            && cu_k.len() != cu_q.len()
        {
            return Err(Error::Length {
                argument: "cu_seqlens_k",
                found: cu_k.len(),
                expected: format!("{}, as for q", cu_q.len()),
            });
        }
        let block_table = match block_table {
            Some(entries) => Some(BlockTable::new(entries, batch, k.rows)?),
            None => None,
        };
        if let Some(radii) = inputs.radii {
            match block_table {
                Some(_) => check_radii(&k, radii.centres.len(), radii.radii.len())?,
                None => return Err(radii_without_pages()),
            }
        }
        check_slopes(attention, batch)?;
        for (argument, lengths) in [("seqused_k", seqused_k), ("leftpad_k", leftpad_k)] {
            if let Some(lengths) = lengths
                && lengths.len() != batch
            {
                return Err(Error::Length {
                    argument,
                    found: lengths.len(),
                    expected: format!("batch = {batch}"),
                });
            }
        }

        let sequence = |b: usize| {
            let rows_q = match packed {
                true => ranges_q[b].clone(),
                false => 0..q.rows,
            };
            let (rows_k, limit) = match (&block_table, packed) {
                (Some(table), _) => (0..table.capacity(), "max_pages_per_sequence * page_size"),
                (None, true) => (ranges_k[b].clone(), "seqlen_k"),
                (None, false) => (0..k.rows, "seqlen_k"),
            };
            let within = |argument, lengths: Option<&[i32]>, default, limit: usize, name: &str| {
                let Some(lengths) = lengths else {
                    return Ok(default);
                };
                usize::try_from(lengths[b])
                    .ok()
                    .filter(|&n| n <= limit)
                    .ok_or_else(|| {
                        let found = format!("{} at index {b}", lengths[b]);
                        value(argument, found, format!("0 to {name} = {limit}"))
                    })
            };
            let seqlen_k = within("seqused_k", seqused_k, rows_k.len(), rows_k.len(), limit)?;
            let leftpad_k = within("leftpad_k", leftpad_k, 0, seqlen_k, "seqlen_k")?;
            // Strides are checked only where there are elements to step over.
            let at = |layout: &Layout, row: usize| match layout.span() {
                0 => 0,
                _ => layout.batch.map_or(0, |_| b * layout.batch_stride) + row * layout.row_stride,
            };
            // A paged sequence starts wherever its first page lies.
            let at_k = |layout| match block_table {
                Some(_) => 0,
                None => at(layout, rows_k.start),
            };
            let sequence = Sequence {
                index: b,
                seqlen_q: rows_q.len(),
                seqlen_k,
                leftpad_k,
                q: at(&q, rows_q.start),
                k: at_k(&k),
                v: at_k(&v),
                out: at(&out, rows_q.start),
                lse: match packed {
                    true => rows_q.start,
                    false => b * attention.heads_q() * q.rows,
                },
            };
            if let Some(table) = &block_table {
                table.check(b, sequence.seen(attention), k.batch.unwrap_or(0))?;
            }
            Ok(sequence)
        };
        // A batch without query rows takes no memory, whatever its size; nor may it here.
        let idle = q.rows == 0 && seqused_k.is_none() && leftpad_k.is_none();
        let count = if idle { 0 } else { batch };
        let mut sequences = reserve(&q, count)?;
        for b in 0..count {
            sequences.push(sequence(b)?);
        }
        Ok(Self {
            attention,
            block_table,
            q,
            k,
            v,
            out,
            lse_head_stride: q.rows,
            sequences,
            radii: inputs.radii,
        })
    }

    /// Where row `j` of a sequence's keys (or values) lies; `start` is where the sequence does, unless it has pages.
    pub(crate) fn key_row(
        &self,
        sequence: &Sequence,
        layout: &Layout,
        start: usize,
        j: usize,
    ) -> usize {
        match &self.block_table {
            Some(table) => {
                let page = table.of(sequence.index)[j / table.page_size] as usize;
                page * layout.batch_stride + j % table.page_size * layout.row_stride
            }
            None => start + j * layout.row_stride,
        }
    }

    /// A buffer for results of `len` elements.
    pub(crate) fn buffer<T: Clone>(&self, value: T, len: usize) -> Result<Vec<T>> {
        let mut buffer = reserve(&self.q, len)?;
        buffer.resize(len, value);
        Ok(buffer)
    }

    pub(crate) fn lse_len(&self) -> usize {
        lse_len(self.attention, &self.q)
    }

    pub(crate) fn check_lse(&self, lse: &[f32]) -> Result<()> {
        check_lse(self.attention, &self.q, lse.len())
    }
}

impl<'a> PageRadii<'a> {
    /// The centre of a head.
    pub(crate) fn centre(&self, head_k: usize) -> &'a [f32] {
        let head_dim = self.centres.len() / self.heads_k;
        &self.centres[head_k * head_dim..][..head_dim]
    }

    /// The radius of a page that exists; NaN where it is no distance.
    pub(crate) fn of(&self, page: i32, head_k: usize) -> f32 {
        let radius = self.radii[page as usize * self.heads_k + head_k];
        if radius >= 0.0 { radius } else { f32::NAN }
    }
}

/// Checks how many centres and radii there are, for pages `[pages, page_size, heads_k, head_dim]`.
pub(crate) fn check_radii(pages: &Layout, centres: usize, radii: usize) -> Result<()> {
    let (count, heads, head_dim) = (pages.batch.unwrap_or(0), pages.heads, pages.head_dim);
    for (argument, found, expected, of) in [
        ("centres", centres, (heads, head_dim), "heads_k * head_dim"),
        ("radii", radii, (count, heads), "pages * heads_k"),
    ] {
        let expected = expected.0.saturating_mul(expected.1);
        if found != expected {
            return Err(Error::Length {
                argument,
                found,
                expected: format!("{of} = {expected}"),
            });
        }
    }
    Ok(())
}

pub(crate) fn radii_without_pages() -> Error {
    let found = "those of keys that are not in pages";
    value("radii", found, "a block_table")
}

/// The number of elements of lse: `[batch, heads_q, seqlen_q]`, or `[heads_q, total_q]` for packed sequences.
fn lse_len(attention: &Attention, q: &Layout) -> usize {
    q.batch.unwrap_or(1) * attention.heads_q() * q.rows
}

/// Checks the length of lse, once q fits the layer.
pub(crate) fn check_lse(attention: &Attention, q: &Layout, found: usize) -> Result<()> {
    let (len, heads_q, rows) = (lse_len(attention, q), attention.heads_q(), q.rows);
    if found == len {
        return Ok(());
    }
    let shape = match q.batch {
        Some(batch) => format!("[batch, heads_q, seqlen_q] = [{batch}, {heads_q}, {rows}]"),
        None => format!("[heads_q, total_q] = [{heads_q}, {rows}]"),
    };
    Err(Error::Length {
        argument: "lse",
        found,
        expected: format!("{len} for {shape}"),
    })
}

/// Checks that q, k, v and out fit the layer and each other: whether q is packed, and whether k and v are in pages.
pub(crate) fn check_shapes(
    attention: &Attention,
    packed: bool,
    paged: bool,
    [q, k, v, out]: [Layout; 4],
) -> Result<()> {
    let expect = |argument, found: Layout, rows: &str, heads: usize, fits: bool| {
        if fits && found.heads == heads && found.head_dim == attention.head_dim() {
            return Ok(());
        }
        Err(Error::Shape {
            argument,
            found: found.shape(),
            expected: format!("[{rows}, {heads}, {}]", attention.head_dim()),
        })
    };
    let rows = |l: Layout| match l.batch {
        Some(batch) => format!("{batch}, {}", l.rows),
        None => l.rows.to_string(),
    };
    let (heads_q, heads_k) = (attention.heads_q(), attention.heads_k());
    let q_rows = if packed { "total_q" } else { "batch, seqlen_q" };
    expect("q", q, q_rows, heads_q, q.batch.is_none() == packed)?;
    let (k_rows, k_fits) = match (paged, q.batch) {
        (true, _) => ("pages, page_size".into(), k.batch.is_some()),
        (false, Some(batch)) => (format!("{batch}, seqlen_k"), k.batch == q.batch),
        (false, None) => ("total_k".into(), k.batch.is_none()),
    };
    expect("k", k, &k_rows, heads_k, k_fits)?;
    let same = |a: Layout, b: Layout| a.batch == b.batch && a.rows == b.rows;
    expect("v", v, &rows(k), heads_k, same(v, k))?;
    expect("out", out, &rows(q), heads_q, same(out, q))?;
    if paged {
        check_page_size(k.rows)?;
    }
    Ok(())
}

/// Checks the number of tokens of a page.
pub(crate) fn check_page_size(page_size: usize) -> Result<()> {
    match page_size > 0 && page_size.is_multiple_of(8) {
        true => Ok(()),
        false => Err(value("page_size", page_size, "a positive multiple of 8")),
    }
}

/// Checks that slopes that differ between sequences are for as many as there are.
pub(crate) fn check_slopes(attention: &Attention, batch: usize) -> Result<()> {
    match attention.slopes().batch() {
        Some(found) if found != batch => {
            let found = format!("{found} sequences");
            Err(value("slopes", found, format!("batch = {batch}")))
        }
        _ => Ok(()),
    }
}

/// Room for `len` elements. A view with strides of 0 can be larger than any memory, and its results then are.
fn reserve<T>(q: &Layout, len: usize) -> Result<Vec<T>> {
    let mut buffer = Vec::new();
    buffer.try_reserve_exact(len).map_err(|_| Error::Shape {
        argument: "q",
        found: q.shape(),
        expected: "one whose output fits in memory".into(),
    })?;
    Ok(buffer)
}

impl Sequence {
    /// The key position at which query row `i` stands: rows are aligned at the end.
    pub(crate) fn position(&self, i: usize) -> i64 {
        i as i64 + self.seqlen_k as i64 - self.seqlen_q as i64
    }

    /// The keys that any query row sees: with a window, few of a long cache.
    pub(crate) fn seen(&self, attention: &Attention) -> Range<usize> {
        if self.seqlen_q == 0 {
            return 0..0;
        }
        // Limits grow from row to row by one at most, so the rows between leave no gap.
        let first = self.visible(attention, 0);
        let last = self.visible(attention, self.seqlen_q - 1);
        first.start.min(last.start)..first.end.max(last.end)
    }

    /// The keys that query row `i` sees. They are contiguous.
    pub(crate) fn visible(&self, attention: &Attention, i: usize) -> Range<usize> {
        let position = self.position(i);
        let reach = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let first = attention
            .window_left()
            .map_or(0, |left| position.saturating_sub(reach(left)))
            .max(self.leftpad_k as i64);
        let end = attention
            .window_right()
            .map_or(i64::MAX, |right| {
                position.saturating_add(reach(right)).saturating_add(1)
            })
            .min(self.seqlen_k as i64);
        first as usize..end.max(first) as usize
    }
}

/// The row ranges that an array of cumulative lengths describes.
fn row_ranges(argument: &'static str, cu: &[i32], rows: usize) -> Result<Vec<Range<usize>>> {
    let bad = |at: usize, expected: String| {
        let found = format!("{} at index {at}", cu[at]);
        Err(value(argument, found, expected))
    };
    match cu {
        [] => {
            return Err(Error::Length {
                argument,
                found: 0,
                expected: "batch + 1, at least 1".into(),
            });
        }
        [first, ..] if *first != 0 => return bad(0, "0".into()),
        _ => {}
    }
    if let Some(at) = cu.windows(2).position(|pair| pair[1] < pair[0]) {
        return bad(at + 1, format!("at least {}, its predecessor", cu[at]));
    }
    let last = cu.len() - 1;
    if cu[last] as usize > rows {
        return bad(last, format!("at most the {rows} rows of the tensor"));
    }
    Ok(cu
        .windows(2)
        .map(|pair| pair[0] as usize..pair[1] as usize)
        .collect())
}
