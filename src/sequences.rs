//! How sequences lie in the tensors of a call: described and checked once, for the CPU, for plans and for candle.

use crate::attention::Attention;
use crate::error::{Error, Result, value};
use crate::tensor::Layout;

/// The arrays that say where sequences lie. `I` is how a backend holds integers, `F` how it holds floats: slices on the
/// CPU, buffers on a device.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sequences<I, F> {
    /// `[batch + 1]`: packed queries.
    pub(crate) cu_seqlens_q: Option<I>,
    /// `[batch + 1]`: packed keys.
    pub(crate) cu_seqlens_k: Option<I>,
    /// At least the query rows of the longest packed sequence; `usize::MAX` where the caller gave no bound.
    pub(crate) max_seqlen_q: usize,
    /// Likewise the keys of the longest packed or paged sequence.
    pub(crate) max_seqlen_k: usize,
    /// `[batch, max_pages_per_sequence]`: keys and values in pages.
    pub(crate) block_table: Option<I>,
    /// `[batch]`: the key rows in use.
    pub(crate) seqused_k: Option<I>,
    /// `[batch]`: the key rows that are padding.
    pub(crate) leftpad_k: Option<I>,
    /// `[batch]`: the key position at which the first query stands.
    pub(crate) offset: Option<I>,
    /// The key bounds of a paged cache.
    pub(crate) radii: Option<Radii<F>>,
}

/// How far the keys of each page of a cache are from a centre.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Radii<F> {
    /// `[heads_k, head_dim]`.
    pub(crate) centres: F,
    /// `[pages, heads_k]`.
    pub(crate) radii: F,
}

/// An array of which a description needs only the length.
pub(crate) trait Array {
    fn len(&self) -> usize;
}

impl<T> Array for &[T] {
    fn len(&self) -> usize {
        (**self).len()
    }
}

/// The part of a description that does not depend on the values in its arrays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    /// The number of sequences.
    pub(crate) batch: usize,
    /// Bounds of the lengths of packed queries, and of packed keys.
    pub(crate) packed: Option<Packed>,
    pub(crate) paged: Option<Paged>,
}

/// How many sequences are packed, and the bounds of their lengths. The lengths themselves may lie on a device: what exceeds
/// these bounds there is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packed {
    /// The number of sequences: `cu_seqlens` have one more.
    pub batch: usize,
    /// At least the query rows of the longest sequence.
    pub max_seqlen_q: usize,
    /// At least the key rows of the longest sequence. Where keys are in pages, [`Paged`] has the bound.
    pub max_seqlen_k: usize,
}

/// How pages are found: `block_table[b][j / page_size]` is the page of key `j` of sequence `b`. The block table and the
/// lengths may lie on a device: page numbers that do not exist are cut off there, and so are lengths that exceed these
/// bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Paged {
    /// The columns of the block table.
    pub columns: usize,
    /// The distance between its rows, in elements.
    pub stride: usize,
    /// At least the keys of the longest sequence.
    pub max_seqlen_k: usize,
    /// Whether the cache keeps the radii of its pages. With them a horizon need not read the keys that it leaves out; without
    /// them decoding has no horizon.
    pub radii: bool,
}

impl<I, F> Default for Sequences<I, F> {
    fn default() -> Self {
        Self {
            cu_seqlens_q: None,
            cu_seqlens_k: None,
            max_seqlen_q: usize::MAX,
            max_seqlen_k: usize::MAX,
            block_table: None,
            seqused_k: None,
            leftpad_k: None,
            offset: None,
            radii: None,
        }
    }
}

impl<I: Array, F: Array> Sequences<I, F> {
    /// Checks everything but the values in the arrays: which of them there are, their lengths, and the layouts of q, k, v
    /// and out.
    pub(crate) fn check(&self, attention: &Attention, tensors: [Layout; 4]) -> Result<Shape> {
        let [q, k, ..] = tensors;
        let packed = self.cu_seqlens_q.is_some();
        check_shapes(attention, packed, self.block_table.is_some(), tensors)?;
        let batch = match &self.cu_seqlens_q {
            Some(cu) => sequences("cu_seqlens_q", cu.len())?,
            None => q.batch.unwrap_or(0),
        };
        match (&self.cu_seqlens_k, &self.block_table) {
            (Some(_), Some(_)) => {
                let expected = "none: the lengths of a paged cache are seqused_k";
                return Err(value("cu_seqlens_k", "row indices", expected));
            }
            (Some(cu), None) => {
                let found = sequences("cu_seqlens_k", cu.len())?;
                let expected = match packed {
                    true if found == batch => None,
                    true => Some(format!("{}, as for q", batch + 1)),
                    false => Some("none, as for q".into()),
                };
                if let Some(expected) = expected {
                    return Err(length("cu_seqlens_k", cu.len(), expected));
                }
            }
            (None, None) if packed => {
                return Err(value("cu_seqlens_k", "none", "as many as cu_seqlens_q"));
            }
            _ => {}
        }
        let paged = match &self.block_table {
            Some(table) => Some(self.paged(table.len(), batch)?),
            None => None,
        };
        if let Some(radii) = &self.radii {
            if paged.is_none() {
                let found = "those of keys that are not in pages";
                return Err(value("radii", found, "a block_table"));
            }
            check_radii(&k, radii.centres.len(), radii.radii.len())?;
        }
        check_slopes(attention, batch)?;
        for (argument, lengths) in [
            ("seqused_k", &self.seqused_k),
            ("leftpad_k", &self.leftpad_k),
            ("offset", &self.offset),
        ] {
            if let Some(lengths) = lengths
                && lengths.len() != batch
            {
                let expected = format!("batch = {batch}");
                return Err(length(argument, lengths.len(), expected));
            }
        }
        Ok(Shape {
            batch,
            packed: packed.then_some(Packed {
                batch,
                max_seqlen_q: self.max_seqlen_q,
                max_seqlen_k: self.max_seqlen_k,
            }),
            paged,
        })
    }

    fn paged(&self, entries: usize, batch: usize) -> Result<Paged> {
        if !entries.is_multiple_of(batch) {
            let expected = format!("a multiple of batch = {batch}");
            return Err(length("block_table", entries, expected));
        }
        let columns = entries / batch.max(1);
        Ok(Paged {
            columns,
            stride: columns,
            max_seqlen_k: self.max_seqlen_k,
            radii: self.radii.is_some(),
        })
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
            return Err(length(argument, found, format!("{of} = {expected}")));
        }
    }
    Ok(())
}

/// The number of sequences of an array of cumulative lengths.
fn sequences(argument: &'static str, len: usize) -> Result<usize> {
    len.checked_sub(1)
        .ok_or_else(|| length(argument, 0, "batch + 1, at least 1".into()))
}

fn length(argument: &'static str, found: usize, expected: String) -> Error {
    Error::Length {
        argument,
        found,
        expected,
    }
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

/// The number of elements of lse: `[batch, heads_q, seqlen_q]`, or `[heads_q, total_q]` for packed sequences.
pub(crate) fn lse_len(attention: &Attention, q: &Layout) -> usize {
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
    Err(length("lse", found, format!("{len} for {shape}")))
}
