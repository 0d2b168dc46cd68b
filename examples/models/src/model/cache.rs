//! The keys and values of sequences, page by page.

use anyhow::{Result, ensure};
use candle_core::{DType, Device, Tensor};
use flash_alibi::{Attention, PagedCache, SequenceId};

use crate::backend::attention_dtype;

/// The keys and values of all sequences.
pub struct Cache {
    /// Who has which pages.
    pub pages: PagedCache,
    /// Of each block.
    pub(super) pools: Vec<KvCache>,
}

/// The keys and values of a block, each `[pages, page_size, heads, head_dim]`, and how far its keys are from a centre.
pub struct KvCache {
    pub k: Tensor,
    pub v: Tensor,
    /// `[heads, head_dim]`: the mean of the first keys that came.
    pub centres: Option<Tensor>,
    /// `[pages, heads]`.
    pub radii: Tensor,
}

/// New tokens of some sequences, packed one after the other, and where they go: on the model's device.
pub struct Step {
    pub seqlens_q: Tensor,
    pub max_seqlen_q: usize,
    pub slot_mapping: Tensor,
    pub block_table: Tensor,
    pub seqused_k: Tensor,
}

impl Cache {
    /// Of `pages` pages of `page_size` tokens in each block.
    pub(super) fn new(
        attention: &Attention,
        blocks: usize,
        (pages, page_size): (usize, usize),
        device: &Device,
    ) -> Result<Self> {
        let (heads_k, head_dim) = (attention.heads_k(), attention.head_dim());
        let dtype = attention_dtype(device);
        let tokens = pages.saturating_mul(page_size);
        let token_bytes = 2 * blocks * heads_k * head_dim * dtype.size_in_bytes();
        // candle aborts where there is no such memory.
        ensure!(
            !device.is_cpu()
                || Vec::<u8>::new()
                    .try_reserve_exact(tokens.saturating_mul(token_bytes))
                    .is_ok(),
            "found a cache of {tokens} tokens of {token_bytes} bytes each, expected one that fits into memory: ask for fewer tokens"
        );
        let pool = || Tensor::zeros((pages, page_size, heads_k, head_dim), dtype, device);
        let pools = |_| -> Result<KvCache> {
            Ok(KvCache {
                k: pool()?,
                v: pool()?,
                centres: None,
                radii: Tensor::zeros((pages, heads_k), DType::F32, device)?,
            })
        };
        Ok(Self {
            pages: PagedCache::new(pages, page_size)?,
            pools: (0..blocks).map(pools).collect::<Result<_>>()?,
        })
    }

    /// Takes slots for new tokens of each sequence, or for none.
    pub(super) fn append(
        &mut self,
        tokens: &[(SequenceId, &[u32])],
        device: &Device,
    ) -> Result<Step> {
        let (mut slot_mapping, mut seqlens_q) = (Vec::new(), vec![0]);
        for (at, &(sequence, ids)) in tokens.iter().enumerate() {
            let appended = match self.pages.append(sequence, ids.len()) {
                Ok(appended) => appended,
                Err(error) => {
                    for &(sequence, ids) in &tokens[..at] {
                        let len = self.pages.len(sequence)? - ids.len();
                        self.pages.truncate(sequence, len)?;
                    }
                    return Err(error.into());
                }
            };
            for (from, to) in appended.copies {
                let pools = self.pools.iter();
                for pool in pools.flat_map(|pools| [&pools.k, &pools.v, &pools.radii]) {
                    // A copy of its own: candle writes to no tensor that it reads.
                    let page = pool.narrow(0, from as usize, 1)?.copy()?;
                    pool.slice_set(&page, 0, to as usize)?;
                }
            }
            slot_mapping.extend(appended.slot_mapping);
            seqlens_q.push(slot_mapping.len() as u32);
        }
        let sequences: Vec<SequenceId> = tokens.iter().map(|&(id, _)| id).collect();
        let batch = self.pages.batch(&sequences)?;
        let on_device = |numbers: Vec<i32>| {
            let numbers: Vec<u32> = numbers.into_iter().map(|n| n as u32).collect();
            Tensor::new(numbers, device)
        };
        let table = (sequences.len(), batch.max_pages_per_sequence);
        Ok(Step {
            seqlens_q: Tensor::new(seqlens_q, device)?,
            max_seqlen_q: tokens.iter().map(|(_, ids)| ids.len()).max().unwrap_or(0),
            slot_mapping: Tensor::new(slot_mapping, device)?,
            block_table: on_device(batch.block_table)?.reshape(table)?,
            seqused_k: on_device(batch.seqused_k)?,
        })
    }
}
