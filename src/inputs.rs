//! The inputs of one call on the CPU.

use crate::sequences::{Radii, Sequences};
use crate::tensor::View;

/// The inputs of one call: tensors, and how sequences lie in them.
///
/// Dense ([`Inputs::new`]): q `[batch, seqlen_q, heads_q, head_dim]`, k and v `[batch, seqlen_k, heads_k, head_dim]`.
/// Variable length ([`Inputs::varlen`]): q `[total_q, heads_q, head_dim]`, k and v `[total_k, heads_k, head_dim]`. From a
/// paged cache ([`Inputs::paged`]): q of either form, k and v `[pages, page_size, heads_k, head_dim]`.
///
/// `Q` is the type of q, and `KV` that of k and v. Today both must be the same;
/// [`cpu::CacheElement`](crate::cpu::CacheElement) says which pairs can be computed.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a, Q, KV = Q> {
    pub(crate) q: View<'a, Q>,
    pub(crate) k: View<'a, KV>,
    pub(crate) v: View<'a, KV>,
    pub(crate) sequences: Sequences<&'a [i32], &'a [f32]>,
}

impl<'a, Q, KV> Inputs<'a, Q, KV> {
    /// Dense inputs: every sequence has all rows of its tensors.
    pub fn new(q: View<'a, Q>, k: View<'a, KV>, v: View<'a, KV>) -> Self {
        Self {
            q,
            k,
            v,
            sequences: Sequences::default(),
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
        q: View<'a, Q>,
        k: View<'a, KV>,
        v: View<'a, KV>,
        block_table: &'a [i32],
        seqused_k: &'a [i32],
    ) -> Self {
        let mut inputs = Self::new(q, k, v).seqused_k(seqused_k);
        inputs.sequences.block_table = Some(block_table);
        inputs
    }

    /// Packed queries of a paged cache: q is `[total_q, heads_q, head_dim]`, and sequence `b` has its rows
    /// `cu_seqlens_q[b]..cu_seqlens_q[b + 1]`, as in [`Inputs::varlen`].
    pub fn varlen_q(mut self, cu_seqlens_q: &'a [i32]) -> Self {
        self.sequences.cu_seqlens_q = Some(cu_seqlens_q);
        self
    }

    /// Packed sequences: sequence `b` has the query rows `cu_seqlens_q[b]..cu_seqlens_q[b + 1]` and likewise the key
    /// rows. Both arrays hold `batch + 1` non-decreasing row indices starting at 0; rows past the last belong to no
    /// sequence and are neither read nor written.
    pub fn varlen(mut self, cu_seqlens_q: &'a [i32], cu_seqlens_k: &'a [i32]) -> Self {
        self.sequences.cu_seqlens_q = Some(cu_seqlens_q);
        self.sequences.cu_seqlens_k = Some(cu_seqlens_k);
        self
    }

    /// Sequence `b` has only its first `seqused_k[b]` key rows: a padded batch, or a cache that is not yet full. The
    /// last query then stands at key position `seqused_k[b] - 1`.
    pub fn seqused_k(mut self, seqused_k: &'a [i32]) -> Self {
        self.sequences.seqused_k = Some(seqused_k);
        self
    }

    /// The first `leftpad_k[b]` key rows of sequence `b` are padding that no query sees.
    pub fn leftpad_k(mut self, leftpad_k: &'a [i32]) -> Self {
        self.sequences.leftpad_k = Some(leftpad_k);
        self
    }

    /// Row `i` of sequence `b` stands at key position `i + offset[b]`. Without this, the last query stands at the last key.
    ///
    /// `offset` is `[batch]`. Any value will do, also one by which queries stand before all keys or far after them. The bias,
    /// the causal limit and windows follow the position.
    ///
    /// A batch that is padded at its right end has offsets of 0. For a block of queries against keys that begin elsewhere
    /// (another device's part of a context, a shared prefix), the offset is the first query's position minus the first key's,
    /// and [`merge_states`](crate::merge_states) puts the results together.
    pub fn offset(mut self, offset: &'a [i32]) -> Self {
        self.sequences.offset = Some(offset);
        self
    }

    /// The radii of a paged cache, as [`cpu::append_with_radii`](crate::cpu::append_with_radii) keeps them. With them, pages
    /// that the [`Horizon`](crate::Horizon) leaves out are not even read.
    ///
    /// `centres` is `[heads_k, head_dim]`. `radii` is `[pages, heads_k]`, each at least the distance of every key of its page
    /// from the head's centre. A page whose radius is NaN is never left out; radii of pages that no query needs may be
    /// anything.
    pub fn radii(mut self, centres: &'a [f32], radii: &'a [f32]) -> Self {
        self.sequences.radii = Some(Radii { centres, radii });
        self
    }
}
