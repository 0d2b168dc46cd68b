//! One call, validated: shapes that fit the layer and each other, and where every sequence lies in the buffers.

use std::ops::Range;

use crate::attention::Attention;
use crate::error::{Error, Result, value};
use crate::tensor::{Layout, View};

/// The inputs of one call: tensors, and how sequences lie in them.
///
/// Dense: q `[batch, seqlen_q, heads_q, head_dim]`, k and v `[batch, seqlen_k, heads_k, head_dim]`. Variable length
/// ([`Inputs::varlen`]): q `[total_q, heads_q, head_dim]`, k and v `[total_k, heads_k, head_dim]`.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a, T> {
    pub(crate) q: View<'a, T>,
    pub(crate) k: View<'a, T>,
    pub(crate) v: View<'a, T>,
    pub(crate) lengths: Lengths<'a>,
}

/// How sequences lie in the tensors of a call.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Lengths<'a> {
    pub(crate) cu_seqlens: Option<(&'a [i32], &'a [i32])>,
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
        }
    }

    /// Packed sequences: sequence `b` has the query rows `cu_seqlens_q[b]..cu_seqlens_q[b + 1]` and likewise the key
    /// rows. Both arrays hold `batch + 1` non-decreasing row indices starting at 0; rows past the last belong to no
    /// sequence and are neither read nor written.
    pub fn varlen(mut self, cu_seqlens_q: &'a [i32], cu_seqlens_k: &'a [i32]) -> Self {
        self.lengths.cu_seqlens = Some((cu_seqlens_q, cu_seqlens_k));
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

/// A validated call.
#[derive(Debug, Clone)]
pub(crate) struct Problem<'a> {
    pub(crate) attention: &'a Attention,
    pub(crate) q: Layout,
    pub(crate) k: Layout,
    pub(crate) v: Layout,
    pub(crate) out: Layout,
    /// The distance between heads in `lse`: `seqlen_q`, or `total_q` for packed sequences.
    pub(crate) lse_head_stride: usize,
    pub(crate) sequences: Vec<Sequence>,
}

impl<'a> Problem<'a> {
    /// Checks that everything fits. `out` defaults to a tensor without gaps of q's shape.
    pub(crate) fn new<T>(
        attention: &'a Attention,
        inputs: &Inputs<'_, T>,
        out: Option<Layout>,
    ) -> Result<Self> {
        let [q, k, v] = [inputs.q.layout, inputs.k.layout, inputs.v.layout];
        let out = match out {
            Some(out) => out,
            None => Layout::contiguous("out", &q.shape())?,
        };
        let Lengths {
            cu_seqlens,
            seqused_k,
            leftpad_k,
        } = inputs.lengths;

        check_shapes(attention, cu_seqlens.is_some(), [q, k, v, out])?;

        // Rows of each sequence in q and in k.
        let ranges: Vec<(Range<usize>, Range<usize>)> = match cu_seqlens {
            Some((cu_q, cu_k)) => {
                let starts_q = row_ranges("cu_seqlens_q", cu_q, q.rows)?;
                let starts_k = row_ranges("cu_seqlens_k", cu_k, k.rows)?;
                if cu_k.len() != cu_q.len() {
                    return Err(Error::Length {
                        argument: "cu_seqlens_k",
                        found: cu_k.len(),
                        expected: format!("{}, as for q", cu_q.len()),
                    });
                }
                starts_q.into_iter().zip(starts_k).collect()
            }
            None => Vec::new(),
        };
        let batch = q.batch.unwrap_or(ranges.len());
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

        let packed = cu_seqlens.is_some();
        let sequence = |b: usize| {
            let (rows_q, rows_k) = match packed {
                true => ranges[b].clone(),
                false => (0..q.rows, 0..k.rows),
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
            let seqlen_k = within(
                "seqused_k",
                seqused_k,
                rows_k.len(),
                rows_k.len(),
                "seqlen_k",
            )?;
            let leftpad_k = within("leftpad_k", leftpad_k, 0, seqlen_k, "seqlen_k")?;
            // Strides are checked only where there are elements to step over.
            let at = |layout: &Layout, row: usize| match layout.span() {
                0 => 0,
                _ => layout.batch.map_or(0, |_| b * layout.batch_stride) + row * layout.row_stride,
            };
            Ok(Sequence {
                index: b,
                seqlen_q: rows_q.len(),
                seqlen_k,
                leftpad_k,
                q: at(&q, rows_q.start),
                k: at(&k, rows_k.start),
                v: at(&v, rows_k.start),
                out: at(&out, rows_q.start),
                lse: match packed {
                    true => rows_q.start,
                    false => b * attention.heads_q() * q.rows,
                },
            })
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
            q,
            k,
            v,
            out,
            lse_head_stride: q.rows,
            sequences,
        })
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

/// Checks that q, k, v and out fit the layer and each other; `packed` says which of the two forms is expected.
pub(crate) fn check_shapes(
    attention: &Attention,
    packed: bool,
    [q, k, v, out]: [Layout; 4],
) -> Result<()> {
    let expect = |argument, found: Layout, rows: &str, heads: usize, fits: bool| {
        if fits
            && found.batch.is_none() == packed
            && found.heads == heads
            && found.head_dim == attention.head_dim()
        {
            return Ok(());
        }
        Err(Error::Shape {
            argument,
            found: found.shape(),
            expected: format!("[{rows}, {heads}, {}]", attention.head_dim()),
        })
    };
    let (q_rows, k_rows) = match packed {
        true => ("total_q", "total_k"),
        false => ("batch, seqlen_q", "batch, seqlen_k"),
    };
    expect("q", q, q_rows, attention.heads_q(), true)?;
    let k_rows = match q.batch {
        Some(batch) => k_rows.replace("batch", &batch.to_string()),
        None => k_rows.into(),
    };
    expect("k", k, &k_rows, attention.heads_k(), k.batch == q.batch)?;
    let rows = |l: Layout| match l.batch {
        Some(batch) => format!("{batch}, {}", l.rows),
        None => l.rows.to_string(),
    };
    let same_as_k = v.batch == k.batch && v.rows == k.rows;
    expect("v", v, &rows(k), attention.heads_k(), same_as_k)?;
    let same_as_q = out.batch == q.batch && out.rows == q.rows;
    expect("out", out, &rows(q), attention.heads_q(), same_as_q)
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
