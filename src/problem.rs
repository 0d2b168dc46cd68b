//! One call, validated: shapes that fit the layer and each other, and where every sequence lies in the buffers.

use std::ops::Range;

use crate::attention::Attention;
use crate::error::{Error, Result, value};
use crate::inputs::Inputs;
use crate::sequences::{Paged, Radii, check_lse, lse_len};
use crate::tensor::Layout;

/// The radii of the pages of a call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PageRadii<'a> {
    arrays: Radii<&'a [f32]>,
    heads_k: usize,
}

/// Where one sequence lies. Offsets are in elements, to its first row and head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sequence {
    pub(crate) index: usize,
    pub(crate) seqlen_q: usize,
    pub(crate) seqlen_k: usize,
    pub(crate) leftpad_k: usize,
    /// The key position of the first query row.
    pub(crate) offset: i64,
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
    fn new(entries: &'a [i32], paged: Paged, page_size: usize) -> Self {
        Self {
            entries,
            max_pages: paged.columns,
            page_size,
        }
    }

    /// How many keys the pages of a sequence hold.
    fn capacity(&self) -> usize {
        self.max_pages.saturating_mul(self.page_size)
    }

    /// The pages of a sequence that have the keys `seen`.
    fn needed(&self, seen: Range<usize>) -> Range<usize> {
        match seen.is_empty() {
            true => 0..0,
            false => seen.start / self.page_size..seen.end.div_ceil(self.page_size),
        }
    }

    /// Checks the entries that the keys `seen` of sequence `b` need.
    fn check(&self, b: usize, seen: Range<usize>, pages: usize) -> Result<()> {
        let needed = self.needed(seen);
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
    pub(crate) fn new<Q, KV>(
        attention: &'a Attention,
        inputs: &Inputs<'a, Q, KV>,
        out: Option<Layout>,
    ) -> Result<Self> {
        let [q, k, v] = [inputs.q.layout, inputs.k.layout, inputs.v.layout];
        let out = match out {
            Some(out) => out,
            None => Layout::contiguous("out", &q.shape())?,
        };
        let described = &inputs.sequences;
        let shape = described.check(attention, [q, k, v, out])?;
        let (batch, packed) = (shape.batch, shape.packed.is_some());
        // Rows of each sequence in q and in k, where they are packed.
        let ranges = |argument, cu: Option<&[i32]>, rows, bound: (&'static str, usize)| match cu {
            Some(cu) => row_ranges(argument, cu, rows, bound),
            None => Ok(Vec::new()),
        };
        let bound = ("max_seqlen_q", described.max_seqlen_q);
        let ranges_q = ranges("cu_seqlens_q", described.cu_seqlens_q, q.rows, bound)?;
        let bound = ("max_seqlen_k", described.max_seqlen_k);
        let ranges_k = ranges("cu_seqlens_k", described.cu_seqlens_k, k.rows, bound)?;
        let block_table = (described.block_table.zip(shape.paged))
            .map(|(entries, paged)| BlockTable::new(entries, paged, k.rows));
        let radii = described.radii.map(|arrays| PageRadii {
            arrays,
            heads_k: k.heads,
        });

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
            let used = described.seqused_k;
            let seqlen_k = within("seqused_k", used, rows_k.len(), rows_k.len(), limit)?;
            let leftpad_k = within("leftpad_k", described.leftpad_k, 0, seqlen_k, "seqlen_k")?;
            if seqlen_k > described.max_seqlen_k {
                let expected = format!("at least {seqlen_k}, the keys of sequence {b}");
                return Err(value("max_seqlen_k", described.max_seqlen_k, expected));
            }
            let offset = match described.offset {
                Some(offset) => offset[b].into(),
                // The last query stands at the last key.
                None => seqlen_k as i64 - rows_q.len() as i64,
            };
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
                offset,
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
        let lengths = [described.seqused_k, described.leftpad_k, described.offset];
        let idle = q.rows == 0 && lengths.iter().all(Option::is_none);
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
            radii,
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

    /// The entries of the block table that some query needs: where each is, and its page.
    #[cfg(feature = "candle")]
    pub(crate) fn needed_pages(&self) -> Vec<(usize, usize)> {
        let Some(table) = &self.block_table else {
            return Vec::new();
        };
        let of = |sequence: &Sequence| {
            let needed = table.needed(sequence.seen(self.attention));
            let first = sequence.index * table.max_pages;
            needed.map(move |at| (first + at, table.entries[first + at] as usize))
        };
        self.sequences.iter().flat_map(of).collect()
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
        let head_dim = self.arrays.centres.len() / self.heads_k;
        &self.arrays.centres[head_k * head_dim..][..head_dim]
    }

    /// The radius of a page that exists; NaN where it is no distance.
    pub(crate) fn of(&self, page: i32, head_k: usize) -> f32 {
        let radius = self.arrays.radii[page as usize * self.heads_k + head_k];
        if radius >= 0.0 { radius } else { f32::NAN }
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
    /// The key position at which query row `i` stands.
    pub(crate) fn position(&self, i: usize) -> i64 {
        i as i64 + self.offset
    }

    /// The key from which the distances of a row count: the one that it sees nearest to its position. Where it stands
    /// elsewhere, the rest is in [`Sequence::apart`]: so numbers stay small, whatever the offset.
    pub(crate) fn nearest(&self, attention: &Attention, i: usize) -> i64 {
        let (position, seen) = (self.position(i), self.visible(attention, i));
        match seen.is_empty() {
            true => position,
            false => position.clamp(seen.start as i64, seen.end as i64 - 1),
        }
    }

    /// How far a row stands from its nearest key: what every one of its distances has in addition.
    pub(crate) fn apart(&self, attention: &Attention, i: usize) -> u64 {
        self.position(i).abs_diff(self.nearest(attention, i))
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
        // Where all keys are behind a row's window, the range is the empty one at their end.
        let first = attention
            .window_left()
            .map_or(0, |left| position.saturating_sub(reach(left)))
            .clamp(self.leftpad_k as i64, self.seqlen_k as i64);
        let end = attention
            .window_right()
            .map_or(i64::MAX, |right| {
                position.saturating_add(reach(right)).saturating_add(1)
            })
            .clamp(first, self.seqlen_k as i64);
        first as usize..end as usize
    }
}

/// The row ranges that an array of cumulative lengths describes, none of them longer than the bound.
fn row_ranges(
    argument: &'static str,
    cu: &[i32],
    rows: usize,
    (bound_name, bound): (&'static str, usize),
) -> Result<Vec<Range<usize>>> {
    let bad = |at: usize, expected: String| {
        let found = format!("{} at index {at}", cu[at]);
        Err(value(argument, found, expected))
    };
    if let Some(&first) = cu.first()
        && first != 0
    {
        return bad(0, "0".into());
    }
    if let Some(at) = cu.windows(2).position(|pair| pair[1] < pair[0]) {
        return bad(at + 1, format!("at least {}, its predecessor", cu[at]));
    }
    let last = cu.len() - 1;
    if cu[last] as usize > rows {
        return bad(last, format!("at most the {rows} rows of the tensor"));
    }
    let ranges = cu.windows(2).map(|pair| pair[0] as usize..pair[1] as usize);
    let ranges: Vec<_> = ranges.collect();
    match ranges.iter().map(Range::len).max() {
        Some(longest) if longest > bound => {
            let expected = format!("at least {longest}, the longest sequence in {argument}");
            Err(value(bound_name, bound, expected))
        }
        _ => Ok(ranges),
    }
}
