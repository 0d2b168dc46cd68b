//! Encoders of the BERT family that attend with ALiBi in both directions, from a Hugging Face checkpoint folder, in f32 (on a
//! GPU with attention in f16): Jina embeddings v2, its variant for code, MosaicBERT and DNABERT-2.
//!
//! Texts of any lengths are computed together without padding: their tokens lie one text after the other, and attention is
//! told where each begins. As for decoders, what a checkpoint says is computed, or known to change nothing, or refused by
//! name.

mod block;
mod layout;

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use block::{Block, Packed};
use candle_core::{D, Device, Tensor};
use candle_nn::{Embedding, LayerNorm, Module};
use flash_alibi::{Attention, Horizon};

/// A loaded encoder.
pub struct Encoder {
    /// Of tokens, with that of the first token type: all tokens here are of this type.
    embedding: Embedding,
    norm: LayerNorm,
    blocks: Vec<Block>,
    /// What every block computes.
    attention: Attention,
    vocab: usize,
}

impl Encoder {
    /// Loads a folder with `config.json` and safetensors.
    ///
    /// # Errors
    /// When a file is missing or not what its name says, or when a key or a tensor says what is not computed here.
    pub fn load(folder: &Path, device: &Device, horizon: Horizon) -> Result<Self> {
        layout::load(folder, device, horizon).with_context(|| folder.display().to_string())
    }

    /// The hidden states of all texts, `[total, hidden]`, one text after the other. What a text gets does not depend on the
    /// others.
    ///
    /// # Errors
    /// When there is no text, one without tokens, or a token that the vocabulary has not.
    pub fn forward(&self, texts: &[&[u32]]) -> Result<Tensor> {
        ensure!(!texts.is_empty(), "found no texts, expected at least one");
        for (i, text) in texts.iter().enumerate() {
            ensure!(!text.is_empty(), "found no tokens in text {i}");
            if let Some(id) = text.iter().find(|&&id| id as usize >= self.vocab) {
                let vocab = self.vocab;
                bail!(
                    "found token {id} in text {i}, expected one of the {vocab} of the vocabulary"
                );
            }
        }
        let device = self.embedding.embeddings().device();
        let packed = Packed::new(texts, device)?;
        let ids = Tensor::new(texts.concat(), device)?;
        let mut x = self.norm.forward(&self.embedding.forward(&ids)?)?;
        for block in &self.blocks {
            x = block.forward(&x, &self.attention, &packed)?;
        }
        Ok(x)
    }

    /// One vector a text, `[texts, hidden]`: the mean of its hidden states.
    ///
    /// # Errors
    /// As [`Encoder::forward`].
    pub fn embed(&self, texts: &[&[u32]]) -> Result<Tensor> {
        let hidden = self.forward(texts)?;
        let mut start = 0;
        let means = texts.iter().map(|text| {
            let rows = hidden.narrow(0, start, text.len());
            start += text.len();
            rows?.mean(0)
        });
        let means = means.collect::<candle_core::Result<Vec<_>>>()?;
        Ok(Tensor::stack(&means, 0)?)
    }
}

/// Vectors of length 1 in the directions of `[texts, hidden]`.
pub fn normalised(embeddings: &Tensor) -> Result<Tensor> {
    let lengths = embeddings.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?;
    Ok(embeddings.broadcast_div(&lengths)?)
}

/// The cosines between all pairs of the vectors of `[texts, hidden]`.
pub fn cosines(embeddings: &Tensor) -> Result<Vec<Vec<f32>>> {
    let unit = normalised(embeddings)?;
    Ok(unit.matmul(&unit.t()?)?.to_vec2()?)
}
