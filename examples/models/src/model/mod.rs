//! A decoder of the BLOOM, Falcon or MPT family, from a Hugging Face checkpoint folder, in f32 (on a GPU with attention in
//! f16): candle's tensors, this crate's attention and paged cache.
//!
//! What a checkpoint says is computed, or known to change nothing, or refused by name: keys of `config.json`, tensors, and
//! settings of `generation_config.json` that would change the likeliest token. Absent keys mean what they mean to
//! transformers.

mod block;
mod cache;
mod family;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use block::Block;
use candle_core::{D, Device, Tensor};
use candle_nn::{Embedding, LayerNorm, Module};
use flash_alibi::{Attention, Horizon, SequenceId};

use crate::weights::Projection;

pub use cache::Cache;

/// A loaded model.
pub struct Model {
    embedding: Embedding,
    /// BLOOM normalises its embeddings.
    embedding_norm: Option<LayerNorm>,
    blocks: Vec<Block>,
    norm: LayerNorm,
    head: Projection,
    /// What every block computes.
    attention: Attention,
    vocab: usize,
    end_tokens: Vec<u32>,
}

/// Sees the queries, keys and values of new tokens, each `[total, heads, head_dim]`: of one block after the other.
pub type Watch<'a> = dyn FnMut(&Tensor, &Tensor, &Tensor) -> Result<()> + 'a;

impl Model {
    /// Loads a folder with `config.json` and safetensors.
    ///
    /// # Errors
    /// When a file is missing or not what its name says, or when a key or a tensor says what is not computed here.
    pub fn load(folder: &Path, device: &Device, horizon: Horizon) -> Result<Self> {
        family::load(folder, device, horizon).with_context(|| folder.display().to_string())
    }

    /// What every block computes.
    pub fn attention(&self) -> &Attention {
        &self.attention
    }

    /// The tokens that end a text: none, one or several.
    pub fn end_tokens(&self) -> &[u32] {
        &self.end_tokens
    }

    fn device(&self) -> &Device {
        self.embedding.embeddings().device()
    }

    /// A cache of `pages` pages of `page_size` tokens.
    pub fn cache(&self, pages: usize, page_size: usize) -> Result<Cache> {
        Cache::new(
            &self.attention,
            self.blocks.len(),
            (pages, page_size),
            self.device(),
        )
    }

    /// Appends tokens to sequences of the cache and returns their hidden states, `[total, hidden]`, in the same order. A
    /// prompt can come at once, in chunks, or token by token; sequences can be anywhere in theirs. What a sequence gets
    /// does not depend on the others; to the last bit unless it is so long that a horizon leaves out keys, by their distance
    /// from the first that came.
    pub fn forward(&self, tokens: &[(SequenceId, &[u32])], cache: &mut Cache) -> Result<Tensor> {
        self.forward_watched(tokens, cache, &mut |_, _, _| Ok(()))
    }

    /// The same, under someone's eyes.
    pub fn forward_watched(
        &self,
        tokens: &[(SequenceId, &[u32])],
        cache: &mut Cache,
        watch: &mut Watch<'_>,
    ) -> Result<Tensor> {
        let ids = tokens
            .iter()
            .map(|(_, ids)| *ids)
            .collect::<Vec<_>>()
            .concat();
        ensure!(!ids.is_empty(), "found no tokens");
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.vocab) {
            let vocab = self.vocab;
            anyhow::bail!("found token {id}, expected one of the {vocab} of the vocabulary");
        }
        let step = cache.append(tokens, self.device())?;
        let ids = Tensor::new(ids, self.device())?;
        let mut x = self.embedding.forward(&ids)?;
        if let Some(norm) = &self.embedding_norm {
            x = norm.forward(&x)?;
        }
        for (block, pools) in self.blocks.iter().zip(&mut cache.pools) {
            x = block.forward(&x, &self.attention, pools, &step, watch)?;
        }
        Ok(self.norm.forward(&x)?)
    }

    /// `[total, vocab]` from hidden states.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.head.forward(hidden)
    }

    /// The likeliest token after each of some rows of the hidden states.
    pub fn greedy(&self, hidden: &Tensor, rows: &[u32]) -> Result<Vec<u32>> {
        let last = hidden.index_select(&Tensor::new(rows, hidden.device())?, 0)?;
        Ok(self.logits(&last)?.argmax(D::Minus1)?.to_vec1()?)
    }
}
