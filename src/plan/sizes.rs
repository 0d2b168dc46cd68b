//! The sizes of a call, checked, and what kernels are told of them.

use super::{Call, Paged, check_head_dim};
use crate::attention::Attention;
use crate::error::{Error, Result, value};
use crate::horizon::Horizon;
use crate::kernels::{AttentionParams, TensorStrides};
use crate::limits::MAX_SEQLEN;
use crate::sequences::{check_shapes, check_slopes};
use crate::tensor::Layout;

/// A call's sizes, checked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub(super) batch: usize,
    /// Of the longest sequence.
    pub(super) seqlen_q: usize,
    pub(super) seqlen_k: usize,
}

/// The bytes of an element of every [`Dtype`](super::Dtype).
pub(super) const ELEMENT_BYTES: usize = 2;

/// The indices in cu_seqlens have 32 bits.
pub(super) const MAX_ROWS: usize = i32::MAX as usize;

impl Sizes {
    pub(super) fn of(attention: &Attention, call: &Call) -> Result<Self> {
        let Call {
            q,
            k,
            v,
            out,
            packed,
            paged,
            ..
        } = *call;
        check_head_dim(attention.head_dim())?;
        check_shapes(attention, packed.is_some(), paged.is_some(), [q, k, v, out])?;
        let batch = match packed {
            Some(packed) => packed.batch,
            None => q.batch.expect("checked to be dense"),
        };
        check_slopes(attention, batch)?;
        if !out.is_injective() {
            return Err(Error::Strides {
                argument: "out",
                found: out.strides(),
                expected: "strides that keep the output's elements apart".into(),
            });
        }
        let sizes = Self {
            batch,
            seqlen_q: packed.map_or(q.rows, |packed| packed.max_seqlen_q.min(q.rows)),
            seqlen_k: match paged {
                None => packed.map_or(k.rows, |packed| packed.max_seqlen_k.min(k.rows)),
                Some(paged) => paged.seqlen_k(&k)?,
            },
        };
        if let Some(paged) = paged
            && sizes.seqlen_k > MAX_SEQLEN
        {
            let found = format!("{} columns of pages of {} keys", paged.columns, k.rows);
            let expected = format!("at most {MAX_SEQLEN} keys a sequence, or a max_seqlen_k");
            return Err(value("block_table", found, expected));
        }
        for (argument, layout, rows) in [("q", q, sizes.seqlen_q), ("k", k, sizes.seqlen_k)] {
            let entries = layout.batch.unwrap_or(0);
            if rows > MAX_SEQLEN || layout.rows > MAX_ROWS || entries > MAX_ROWS {
                return Err(Error::Shape {
                    argument,
                    found: layout.shape(),
                    expected: format!("at most {MAX_SEQLEN} rows a sequence and {MAX_ROWS} in all"),
                });
            }
        }
        Ok(sizes)
    }

    /// At most so many keys of a sequence are seen by any of its queries.
    pub(super) fn seen(&self, attention: &Attention) -> usize {
        match (attention.window_left(), attention.window_right()) {
            (Some(left), Some(right)) => left
                .saturating_add(right)
                .saturating_add(self.seqlen_q)
                .min(self.seqlen_k),
            _ => self.seqlen_k,
        }
    }
}

impl Paged {
    /// The bound of the lengths.
    fn seqlen_k(&self, k: &Layout) -> Result<usize> {
        let page_size = k.rows;
        if self.columns == 0 || self.columns > MAX_ROWS {
            return Err(value(
                "block_table",
                format!("{} columns", self.columns),
                format!("1 to {MAX_ROWS}"),
            ));
        }
        let pages = k.batch.unwrap_or(0);
        let room = match pages {
            0 => 0,
            _ => self.columns.saturating_mul(page_size),
        };
        Ok(room.min(self.max_seqlen_k))
    }
}

/// The number of blocks, where each has `part` of a tensor.
pub(super) fn grid(
    argument: &'static str,
    tensor: &Layout,
    part: &str,
    blocks: Option<usize>,
) -> Result<u32> {
    blocks
        .and_then(|blocks| i32::try_from(blocks).ok())
        .map(|blocks| blocks as u32)
        .ok_or_else(|| Error::Shape {
            argument,
            found: tensor.shape(),
            expected: format!("fewer than 2^31 blocks of {part}"),
        })
}

pub(super) fn rows_of_all(rows: usize) -> String {
    format!("{rows} rows, over all heads and sequences")
}

/// The parameters that do not depend on addresses.
pub(super) fn params(attention: &Attention, call: &Call, sizes: &Sizes) -> AttentionParams {
    let Call {
        q,
        k,
        v,
        out,
        packed,
        paged,
        ..
    } = *call;
    let heads_q = attention.heads_q();
    let lse_batch_stride = if packed.is_some() {
        0
    } else {
        heads_q * q.rows
    };
    // No row and key are as far apart: rows have offsets of 32 bits. So no sum of a position and a window overflows.
    const FARTHEST: i64 = 1 << 33;
    let window = |side: Option<usize>| {
        let side = side.and_then(|n| i64::try_from(n).ok());
        side.filter(|&n| n < FARTHEST).unwrap_or(-1)
    };
    let pages = match paged {
        Some(paged) => AttentionParams {
            table_stride: paged.stride as i64,
            table_columns: paged.columns as i32,
            page_size: k.rows as i32,
            pages: k.batch.unwrap_or(0) as i32,
            ..AttentionParams::default()
        },
        None => AttentionParams::default(),
    };
    AttentionParams {
        q_strides: strides(&q),
        k_strides: strides(&k),
        v_strides: strides(&v),
        out_strides: strides(&out),
        lse_batch_stride: lse_batch_stride as i64,
        lse_head_stride: q.rows as i64,
        slopes_batch_stride: attention.slopes().batch().map_or(0, |_| heads_q as i64),
        seqlen_q: sizes.seqlen_q as i32,
        seqlen_k: sizes.seqlen_k as i32,
        rows_q: q.rows as i32,
        rows_k: k.rows as i32,
        batch: sizes.batch as i32,
        heads_q: heads_q as i32,
        group: attention.group() as i32,
        head_dim: attention.head_dim() as i32,
        window_left: window(attention.window_left()),
        window_right: window(attention.window_right()),
        splits: 1,
        scale: attention.scale(),
        softcap: attention.softcap().unwrap_or(0.0),
        tolerance: match attention.horizon() {
            Horizon::Off => 0.0,
            Horizon::Certified { tolerance } => tolerance,
            Horizon::Bitwise => -1.0,
        },
        ..pages
    }
}

pub(super) fn strides(layout: &Layout) -> TensorStrides {
    // A dimension of one index, or of none, is not stepped over: its stride may be anything.
    let stride = |n: usize, stride: usize| if n > 1 { stride as i64 } else { 0 };
    match layout.span() {
        0 => TensorStrides::default(),
        _ => TensorStrides {
            batch: layout
                .batch
                .map_or(0, |batch| stride(batch, layout.batch_stride)),
            row: stride(layout.rows, layout.row_stride),
            head: stride(layout.heads, layout.head_stride),
        },
    }
}
