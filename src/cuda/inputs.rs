//! The inputs of one call on a device.

use cudarc::driver::DeviceSlice;

use super::{Buffer, View};
use crate::sequences::{Array, Radii, Sequences};

/// The inputs of one call, as [`crate::Inputs`], on a device.
///
/// Lengths lie on the device too, where they cannot be checked before a launch: what exceeds the tensors there is cut off,
/// so that no access leaves them.
///
/// `Q` is the type of q, `KV` that of k and v. What can be computed is what [`CacheElement`](super::CacheElement) says:
/// today both are the same.
#[derive(Clone, Copy)]
pub struct Inputs<'a, Q, KV = Q> {
    pub(super) q: View<'a, Q>,
    pub(super) k: View<'a, KV>,
    pub(super) v: View<'a, KV>,
    pub(super) sequences: Sequences<&'a dyn Buffer<i32>, &'a dyn Buffer<f32>>,
}

impl<T> Array for &dyn Buffer<T> {
    fn len(&self) -> usize {
        DeviceSlice::len(*self)
    }
}

impl<'a, Q, KV> Inputs<'a, Q, KV> {
    /// Dense inputs: q `[batch, seqlen_q, heads_q, head_dim]`, k and v `[batch, seqlen_k, heads_k, head_dim]`. Every sequence
    /// has all rows of its tensors.
    pub fn new(q: View<'a, Q>, k: View<'a, KV>, v: View<'a, KV>) -> Self {
        Self {
            q,
            k,
            v,
            sequences: Sequences::default(),
        }
    }

    /// A paged cache: key `j` of sequence `b` is row `j % page_size` of page `block_table[b][j / page_size]` of the pools k
    /// and v, both `[pages, page_size, heads_k, head_dim]`, as [`crate::Inputs::paged`].
    ///
    /// `page_size` is a multiple of 8; `block_table` is `[batch, max_pages_per_sequence]` without gaps; `seqused_k` is
    /// `[batch]`, the keys that each sequence has. q is `[batch, seqlen_q, heads_q, head_dim]`, or packed by
    /// [`Inputs::varlen_q`]. Pages that do not exist are cut off to those that do.
    pub fn paged(
        q: View<'a, Q>,
        k: View<'a, KV>,
        v: View<'a, KV>,
        block_table: &'a dyn Buffer<i32>,
        seqused_k: &'a dyn Buffer<i32>,
    ) -> Self {
        let mut inputs = Self::new(q, k, v).seqused_k(seqused_k);
        inputs.sequences.block_table = Some(block_table);
        inputs
    }

    /// Packed queries of a paged cache: q is `[total_q, heads_q, head_dim]`, and sequence `b` has its rows
    /// `cu_seqlens_q[b]..cu_seqlens_q[b + 1]`, at most `max_seqlen_q`, as in [`Inputs::varlen`].
    pub fn varlen_q(mut self, cu_seqlens_q: &'a dyn Buffer<i32>, max_seqlen_q: usize) -> Self {
        self.sequences.cu_seqlens_q = Some(cu_seqlens_q);
        self.sequences.max_seqlen_q = max_seqlen_q;
        self
    }

    /// No sequence of a paged cache has more keys. Without it, all that its pages in `block_table` hold: as many as that
    /// decide how keys are split over the device.
    pub fn max_seqlen_k(mut self, max_seqlen_k: usize) -> Self {
        self.sequences.max_seqlen_k = max_seqlen_k;
        self
    }

    /// Packed sequences: q `[total_q, heads_q, head_dim]`, k and v `[total_k, heads_k, head_dim]`, where sequence `b` has the
    /// query rows `cu_seqlens_q[b]..cu_seqlens_q[b + 1]` and likewise the key rows.
    ///
    /// Both arrays hold `batch + 1` non-decreasing row indices starting at 0; rows past the last belong to no sequence and
    /// are neither read nor written. `max_seqlen_q` and `max_seqlen_k` are at least the rows of the longest sequence; rows
    /// of a sequence beyond them are neither read nor written.
    pub fn varlen(
        mut self,
        cu_seqlens_q: &'a dyn Buffer<i32>,
        cu_seqlens_k: &'a dyn Buffer<i32>,
        max_seqlen_q: usize,
        max_seqlen_k: usize,
    ) -> Self {
        self.sequences.cu_seqlens_k = Some(cu_seqlens_k);
        self.sequences.max_seqlen_k = max_seqlen_k;
        self.varlen_q(cu_seqlens_q, max_seqlen_q)
    }

    /// Sequence `b` has only its first `seqused_k[b]` key rows: a padded batch, or a cache that is not yet full. The last
    /// query then stands at key position `seqused_k[b] - 1`. `[batch]`.
    pub fn seqused_k(mut self, seqused_k: &'a dyn Buffer<i32>) -> Self {
        self.sequences.seqused_k = Some(seqused_k);
        self
    }

    /// The first `leftpad_k[b]` key rows of sequence `b` are padding that no query sees. `[batch]`.
    pub fn leftpad_k(mut self, leftpad_k: &'a dyn Buffer<i32>) -> Self {
        self.sequences.leftpad_k = Some(leftpad_k);
        self
    }

    /// The first query of sequence `b` stands at key position `offset[b]`, and row `i` at `i + offset[b]`, in place of the
    /// last query at the last key: see [`crate::Inputs::offset`]. `[batch]`, any value.
    pub fn offset(mut self, offset: &'a dyn Buffer<i32>) -> Self {
        self.sequences.offset = Some(offset);
        self
    }

    /// How far the keys of a paged cache are from a centre, as
    /// [`Layer::append_with_radii`](super::Layer::append_with_radii) keeps it: by it, pages that the
    /// [`Horizon`](crate::Horizon) leaves out are not even read.
    ///
    /// `centres` is `[heads_k, head_dim]`, `radii` `[pages, heads_k]`: at least the distance of each key of a page from the
    /// head's centre. Radii of pages that no query needs may be anything; those of NaN keep their pages.
    pub fn radii(mut self, centres: &'a dyn Buffer<f32>, radii: &'a dyn Buffer<f32>) -> Self {
        self.sequences.radii = Some(Radii { centres, radii });
        self
    }
}
