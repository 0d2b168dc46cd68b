//! How sequences lie in the tensors of a call.

use candle_core::{DType, Result, Tensor};

use super::error::{NAMES, bad_dtype, bad_shape, rename};
use super::integers::{check_integers, read_i32, read_pages};
use super::memory::to_host;
use crate::error::Error;
use crate::problem::Problem;
use crate::tensor::{Layout, View};
use crate::{Attention, Inputs};

/// How sequences lie in the tensors of [`attend`](super::attend).
///
/// Tensors of integers may be U32, I32 or I64, each of its own type, with the values of an i32. On the CPU another value is an
/// error. On a CUDA device I64 is converted there, and only the low 32 bits of a value count.
///
/// ```
/// # use candle_core::{Device, Tensor};
/// # use flash_alibi::candle::Lengths;
/// # fn main() -> candle_core::Result<()> {
/// // Two prompts of 3 and 5 tokens, packed.
/// let seqlens = Tensor::new(&[0u32, 3, 8], &Device::Cpu)?;
/// let lengths = Lengths::varlen(&seqlens, &seqlens, 5, 5);
/// // One query each against a cache of which 17 and 4 rows are in use.
/// let used = Tensor::new(&[17u32, 4], &Device::Cpu)?;
/// let lengths = Lengths::dense().seqused_k(&used);
/// // The same from pages of 16 rows: pages 2 and 0 of the first sequence, 3 of the second, which needs no other.
/// let block_table = Tensor::new(&[[2u32, 0], [3, 0]], &Device::Cpu)?;
/// let lengths = Lengths::paged(&block_table, &used);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct Lengths<'a> {
    packed_q: Option<Packed<'a>>,
    packed_k: Option<Packed<'a>>,
    block_table: Option<&'a Tensor>,
    seqused_k: Option<&'a Tensor>,
    leftpad_k: Option<&'a Tensor>,
    offset: Option<&'a Tensor>,
    radii: Option<PageRadii<'a>>,
    max_seqlen_k: Option<usize>,
}

#[derive(Debug, Clone, Copy)]
struct Packed<'a> {
    seqlens: &'a Tensor,
    max_seqlen: usize,
}

/// How far the keys of a paged cache are from a centre.
#[derive(Debug, Clone, Copy)]
pub(super) struct PageRadii<'a> {
    pub(super) centres: &'a Tensor,
    pub(super) radii: &'a Tensor,
}

impl<'a> Lengths<'a> {
    /// q `[batch, seqlen_q, heads_q, head_dim]`, k and v `[batch, seqlen_k, heads_k, head_dim]`: every sequence has all
    /// rows.
    pub fn dense() -> Self {
        Self::default()
    }

    /// q `[total_q, heads_q, head_dim]`, k and v `[total_k, heads_k, head_dim]`: sequence `b` has the query rows
    /// `seqlens_q[b]..seqlens_q[b + 1]` and likewise the key rows. Both tensors are `[batch + 1]`, start at 0 and do not
    /// decrease. No sequence is longer than `max_seqlen_q` and `max_seqlen_k`, which need not be tight: they size the launch
    /// where lengths lie in device memory.
    pub fn varlen(
        seqlens_q: &'a Tensor,
        seqlens_k: &'a Tensor,
        max_seqlen_q: usize,
        max_seqlen_k: usize,
    ) -> Self {
        let packed_k = Some(Packed {
            seqlens: seqlens_k,
            max_seqlen: max_seqlen_k,
        });
        Self {
            packed_k,
            ..Self::default().varlen_q(seqlens_q, max_seqlen_q)
        }
    }

    /// A paged cache: k and v are pools `[pages, page_size, heads_k, head_dim]`, and key `j` of sequence `b` is row
    /// `j % page_size` of page `block_table[b][j / page_size]`, as in vLLM.
    ///
    /// `page_size` is a multiple of 8. `block_table` is `[batch, max_pages_per_sequence]`; sequences may share pages, and
    /// entries that no query needs may be anything. `seqused_k` is `[batch]`, the keys that each sequence has, those of this
    /// call's tokens included (see [`append`](super::append)); the last query stands at the last of them. q is
    /// `[batch, seqlen_q, heads_q, head_dim]`, or packed by [`Lengths::varlen_q`], or `[batch, heads_q, head_dim]`: one query a
    /// sequence. [`CacheLayout`](super::CacheLayout) has other layouts of pools.
    pub fn paged(block_table: &'a Tensor, seqused_k: &'a Tensor) -> Self {
        Self {
            block_table: Some(block_table),
            ..Self::dense().seqused_k(seqused_k)
        }
    }

    /// No sequence of a paged cache has more keys. Without it, all that its pages in `block_table` hold: on a CUDA device as many
    /// as that decide how keys are split over it.
    pub fn max_seqlen_k(mut self, max_seqlen_k: usize) -> Self {
        self.max_seqlen_k = Some(max_seqlen_k);
        self
    }

    /// Packed queries of a paged cache: q is `[total_q, heads_q, head_dim]`, and sequence `b` has its rows
    /// `seqlens_q[b]..seqlens_q[b + 1]`, at most `max_seqlen_q`, as in [`Lengths::varlen`].
    pub fn varlen_q(mut self, seqlens_q: &'a Tensor, max_seqlen_q: usize) -> Self {
        self.packed_q = Some(Packed {
            seqlens: seqlens_q,
            max_seqlen: max_seqlen_q,
        });
        self
    }

    /// Sequence `b` has only its first `seqused_k[b]` key rows, `[batch]`: a padded batch, or a cache that is not
    /// yet full. The last query then stands at key position `seqused_k[b] - 1`.
    pub fn seqused_k(mut self, seqused_k: &'a Tensor) -> Self {
        self.seqused_k = Some(seqused_k);
        self
    }

    /// The first `leftpad_k[b]` key rows of sequence `b`, `[batch]`, are padding that no query sees.
    pub fn leftpad_k(mut self, leftpad_k: &'a Tensor) -> Self {
        self.leftpad_k = Some(leftpad_k);
        self
    }

    /// Row `i` of sequence `b` stands at key position `i + offset[b]`. Without this, the last query stands at the last key.
    ///
    /// `offset` is `[batch]`. Queries may stand before all keys or far after them. The bias, the causal limit and windows follow
    /// the position. A batch that is padded at its right end has offsets of 0. For
    /// queries against keys that begin elsewhere (another device's part of a context, a shared prefix), the offset is the
    /// first query's position minus the first key's, and [`merge_states`](super::merge_states) puts the results together.
    pub fn offset(mut self, offset: &'a Tensor) -> Self {
        self.offset = Some(offset);
        self
    }

    /// How far the keys of a paged cache are from a centre, as [`append_with_radii`](super::append_with_radii) keeps it: by it,
    /// pages that the [`Horizon`](crate::Horizon) leaves out are not even read.
    ///
    /// `centres` is f32 `[heads_k, head_dim]`, `radii` f32 `[pages, heads_k]`: at least the distance of each key of a page
    /// from the head's centre. Radii of pages that no query needs may be anything; those of NaN keep their pages.
    pub fn radii(mut self, centres: &'a Tensor, radii: &'a Tensor) -> Self {
        self.radii = Some(PageRadii { centres, radii });
        self
    }

    /// Where the rows of q begin, if it is packed.
    pub(super) fn seqlens_q(&self) -> Option<&'a Tensor> {
        self.packed_q.map(|packed| packed.seqlens)
    }

    /// Where keys are in pages.
    pub(super) fn block_table(&self) -> Option<&'a Tensor> {
        self.block_table
    }

    pub(super) fn page_radii(&self) -> Option<PageRadii<'a>> {
        self.radii
    }

    /// The same lengths of keys that lie in other pages.
    pub(super) fn with_pages(self, block_table: &'a Tensor, radii: Option<PageRadii<'a>>) -> Self {
        Self {
            block_table: Some(block_table),
            radii,
            ..self
        }
    }

    /// Whether a sequence has its queries in a row of q's first dimension: neither packed nor without pages.
    pub(super) fn is_paged_batch(&self) -> bool {
        self.block_table.is_some() && self.packed_q.is_none()
    }

    /// `max_seqlen_q` of packed queries, and `max_seqlen_k`, where there are such bounds.
    pub(super) fn max_seqlens(&self) -> [Option<usize>; 2] {
        let [q, k] = [self.packed_q, self.packed_k].map(|packed| Some(packed?.max_seqlen));
        [q, k.or(self.max_seqlen_k)]
    }

    /// `centres` and `radii`.
    pub(super) fn floats(&self) -> [(&'static str, Option<&'a Tensor>); 2] {
        [
            ("centres", self.radii.map(|radii| radii.centres)),
            ("radii", self.radii.map(|radii| radii.radii)),
        ]
    }

    pub(super) fn tensors(&self) -> [(&'static str, Option<&'a Tensor>); 6] {
        [
            ("seqlens_q", self.packed_q.map(|packed| packed.seqlens)),
            ("seqlens_k", self.packed_k.map(|packed| packed.seqlens)),
            ("block_table", self.block_table),
            ("seqused_k", self.seqused_k),
            ("leftpad_k", self.leftpad_k),
            ("offset", self.offset),
        ]
    }

    /// Checks what can be checked without reading them.
    ///
    /// `k` is the shape of k: `[pages, page_size, heads_k, head_dim]`, if there are pages.
    pub(super) fn check(&self, q: &Tensor, k: &[usize]) -> std::result::Result<(), Error> {
        for (argument, tensor) in self.tensors() {
            let Some(tensor) = tensor else { continue };
            check_integers(argument, tensor)?;
            let cumulative = argument.starts_with("seqlens");
            if argument == "block_table" {
                let batch = match (self.packed_q, q.dims()) {
                    (Some(packed), _) => packed.seqlens.elem_count().saturating_sub(1),
                    (None, [batch, ..]) => *batch,
                    (None, []) => 0, // q is refused for it.
                };
                if !matches!(*tensor.dims(), [rows, _] if rows == batch) {
                    let expected = format!("[{batch}, max_pages_per_sequence]");
                    return Err(bad_shape(argument, tensor, expected));
                }
            } else if tensor.rank() != 1 {
                let expected = if cumulative { "[batch + 1]" } else { "[batch]" };
                return Err(bad_shape(argument, tensor, expected.into()));
            }
            // At least one sequence, as candle-flash-attn requires.
            if cumulative && tensor.elem_count() < 2 {
                return Err(Error::Length {
                    argument,
                    found: tensor.elem_count(),
                    expected: "batch + 1, at least 2".into(),
                });
            }
        }
        match (self.radii, self.block_table, k) {
            (Some(radii), Some(_), &[pages, _, heads_k, head_dim]) => {
                radii.check([pages, heads_k, head_dim])
            }
            _ => Ok(()), // Pages of another rank are refused.
        }
    }

    /// Their values, read from the CPU.
    pub(super) fn to_host(self, q: &Tensor, k: &[usize]) -> Result<HostLengths> {
        self.check(q, k)?;
        let mut values = [const { None }; 6];
        for (values, (argument, tensor)) in values.iter_mut().zip(self.tensors()) {
            *values = match (argument, tensor) {
                (_, None) => None,
                ("block_table", Some(tensor)) => Some(read_pages(tensor)?),
                (_, Some(tensor)) => Some(read_i32(argument, tensor)?),
            };
        }
        let [
            seqlens_q,
            seqlens_k,
            block_table,
            seqused_k,
            leftpad_k,
            offset,
        ] = values;
        let [max_seqlen_q, max_seqlen_k] = self.max_seqlens().map(|max| max.unwrap_or(usize::MAX));
        Ok(HostLengths {
            seqlens_q,
            seqlens_k,
            max_seqlen_q,
            max_seqlen_k,
            block_table,
            seqused_k,
            leftpad_k,
            offset,
            radii: match self.radii {
                Some(radii) => Some([to_host(radii.centres)?, to_host(radii.radii)?]),
                None => None,
            },
        })
    }
}

impl PageRadii<'_> {
    /// Checks that they are those of so many pages, of heads of such a number and size.
    pub(super) fn check(
        &self,
        [pages, heads_k, head_dim]: [usize; 3],
    ) -> std::result::Result<(), Error> {
        for (argument, tensor, expected) in [
            ("centres", self.centres, [heads_k, head_dim]),
            ("radii", self.radii, [pages, heads_k]),
        ] {
            if tensor.dtype() != DType::F32 {
                return Err(bad_dtype(argument, tensor.dtype(), "dtype F32"));
            }
            if tensor.dims() != expected {
                return Err(bad_shape(argument, tensor, format!("{expected:?}")));
            }
        }
        Ok(())
    }
}

/// [`Lengths`] that have been read.
pub(super) struct HostLengths {
    seqlens_q: Option<Vec<i32>>,
    seqlens_k: Option<Vec<i32>>,
    max_seqlen_q: usize,
    max_seqlen_k: usize,
    block_table: Option<Vec<i32>>,
    seqused_k: Option<Vec<i32>>,
    leftpad_k: Option<Vec<i32>>,
    offset: Option<Vec<i32>>,
    radii: Option<[Vec<f32>; 2]>,
}

impl HostLengths {
    /// The tensors with these lengths, validated.
    pub(super) fn of<'a, T>(
        &'a self,
        attention: &Attention,
        inputs: Inputs<'a, T>,
    ) -> std::result::Result<Inputs<'a, T>, Error> {
        let inputs = self.described(inputs);
        Problem::new(attention, &inputs, None).map_err(|error| rename(error, &NAMES))?;
        Ok(inputs)
    }

    /// The entries of the block table that some query needs: where each is, and its page. Pages are of the layout `pages`.
    pub(super) fn needed_pages(
        &self,
        attention: &Attention,
        q: Layout,
        pages: Layout,
    ) -> std::result::Result<Vec<(usize, usize)>, Error> {
        // A description does not read tensors.
        let view = |layout| View::<f32> { data: &[], layout };
        let inputs = self.described(Inputs::new(view(q), view(pages), view(pages)));
        let problem = Problem::new(attention, &inputs, None);
        let problem = problem.map_err(|error| rename(error, &NAMES))?;
        Ok(problem.needed_pages())
    }

    fn described<'a, T>(&'a self, mut inputs: Inputs<'a, T>) -> Inputs<'a, T> {
        let sequences = &mut inputs.sequences;
        sequences.cu_seqlens_q = self.seqlens_q.as_deref();
        sequences.cu_seqlens_k = self.seqlens_k.as_deref();
        sequences.max_seqlen_q = self.max_seqlen_q;
        sequences.max_seqlen_k = self.max_seqlen_k;
        sequences.block_table = self.block_table.as_deref();
        sequences.seqused_k = self.seqused_k.as_deref();
        sequences.leftpad_k = self.leftpad_k.as_deref();
        sequences.offset = self.offset.as_deref();
        match &self.radii {
            Some([centres, radii]) => inputs.radii(centres, radii),
            None => inputs,
        }
    }
}
