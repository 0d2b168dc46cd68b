//! A decoder of the BLOOM or MPT family, from a Hugging Face checkpoint folder, in f32: candle's tensors, this crate's
//! attention, which on a GPU is in f16.

#![allow(dead_code)] // Each example uses its part.

mod backend;
mod bloom;
mod checkpoint;
mod mpt;
mod tokenizer;

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{D, Device, IndexOp, Tensor};
use candle_nn::{Embedding, LayerNorm, Linear, Module};
use flash_alibi::Attention;
use flash_alibi::candle::{Lengths, attend};

use backend::attention_dtype;

pub use backend::Backend;
pub use tokenizer::Tokenizer;

/// A loaded model.
pub struct Model {
    embedding: Embedding,
    /// BLOOM normalises its embeddings.
    embedding_norm: Option<LayerNorm>,
    blocks: Vec<Block>,
    norm: LayerNorm,
    head: Linear,
    /// What every block computes.
    attention: Attention,
    pub eos_token: Option<u32>,
}

/// Where q, k and v lie in the fused projection.
#[derive(Clone, Copy)]
enum Fused {
    /// `[heads, 3, head_dim]`: BLOOM.
    WithinHeads,
    /// `[3, heads, head_dim]`: MPT.
    AcrossHeads,
}

#[derive(Clone, Copy)]
enum Gelu {
    Tanh,
    Exact,
}

struct Block {
    norm_1: LayerNorm,
    qkv: Linear,
    fused: Fused,
    /// MPT may clamp q, k and v.
    clip_qkv: Option<f64>,
    out: Linear,
    norm_2: LayerNorm,
    up: Linear,
    gelu: Gelu,
    down: Linear,
    /// Whether the residual is taken after the norm, as some BLOOM variants do.
    residual_after_norm: bool,
}

/// The keys and values of the tokens so far, one pair a block, `[batch, capacity, heads, head_dim]`.
pub struct Cache {
    blocks: Vec<(Tensor, Tensor)>,
    len: usize,
    capacity: usize,
}

impl Model {
    /// Loads a folder with `config.json` and safetensors.
    pub fn load(folder: &Path, device: &Device) -> Result<Self> {
        let config = checkpoint::config(folder)?;
        let weights = checkpoint::weights(folder, device)?;
        let family = config["model_type"].as_str().unwrap_or("none");
        match family {
            "bloom" => bloom::load(&config, weights),
            "mpt" => mpt::load(&config, weights),
            _ => bail!("config.json: found model_type {family}, expected bloom or mpt"),
        }
        .with_context(|| format!("{} ({family})", folder.display()))
    }

    fn device(&self) -> &Device {
        self.embedding.embeddings().device()
    }

    /// An empty cache for `batch` sequences of up to `capacity` tokens.
    pub fn cache(&self, batch: usize, capacity: usize) -> Result<Cache> {
        let shape = (
            batch,
            capacity,
            self.attention.heads_k(),
            self.attention.head_dim(),
        );
        let device = self.device();
        let zeros = || Tensor::zeros(shape, attention_dtype(device), device);
        let blocks = self.blocks.iter().map(|_| Ok((zeros()?, zeros()?)));
        Ok(Cache {
            blocks: blocks.collect::<Result<_>>()?,
            len: 0,
            capacity,
        })
    }

    /// Appends `tokens` to every sequence of the cache (a batch of equal lengths) and returns the hidden states,
    /// `[batch, tokens, hidden]`. A prompt can come at once, in chunks, or token by token.
    pub fn forward(&self, tokens: &[Vec<u32>], cache: &mut Cache) -> Result<Tensor> {
        let n = tokens.first().map_or(0, Vec::len);
        ensure!(
            n > 0 && tokens.iter().all(|t| t.len() == n),
            "sequences of one positive length"
        );
        let space = cache.capacity - cache.len;
        ensure!(
            n <= space,
            "the cache has space for {space} more tokens, found {n}"
        );
        let ids = Tensor::from_vec(tokens.concat(), (tokens.len(), n), self.device())?;
        let mut x = self.embedding.forward(&ids)?;
        if let Some(norm) = &self.embedding_norm {
            x = norm.forward(&x)?;
        }
        for (block, (k, v)) in self.blocks.iter().zip(&cache.blocks) {
            x = block.forward(&x, &self.attention, (k, v), cache.len)?;
        }
        cache.len += n;
        Ok(self.norm.forward(&x)?)
    }

    /// `[.., vocab]` from hidden states.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(self.head.forward(hidden)?)
    }

    /// The likeliest token after the last of the (only) sequence's hidden states.
    pub fn greedy(&self, hidden: &Tensor) -> Result<u32> {
        let last = hidden.i((0, hidden.dim(1)? - 1))?.unsqueeze(0)?;
        Ok(self
            .logits(&last)?
            .squeeze(0)?
            .argmax(D::Minus1)?
            .to_scalar()?)
    }
}

impl Block {
    fn forward(
        &self,
        x: &Tensor,
        attention: &Attention,
        cache: (&Tensor, &Tensor),
        past: usize,
    ) -> Result<Tensor> {
        let normed = self.norm_1.forward(x)?;
        let residual = if self.residual_after_norm { &normed } else { x };
        let x = (residual + self.attend(&normed, attention, cache, past)?)?;

        let normed = self.norm_2.forward(&x)?;
        let residual = if self.residual_after_norm {
            &normed
        } else {
            &x
        };
        let up = self.up.forward(&normed)?;
        let up = match self.gelu {
            Gelu::Tanh => up.gelu()?,
            Gelu::Exact => up.gelu_erf()?,
        };
        Ok((residual + self.down.forward(&up)?)?)
    }

    fn attend(
        &self,
        x: &Tensor,
        attention: &Attention,
        (keys, values): (&Tensor, &Tensor),
        past: usize,
    ) -> Result<Tensor> {
        let (batch, n, _) = x.dims3()?;
        let (heads, head_dim) = (attention.heads_q(), attention.head_dim());
        let mut qkv = self.qkv.forward(x)?;
        if let Some(clip) = self.clip_qkv {
            qkv = qkv.clamp(-clip, clip)?;
        }
        let (shape, three) = match self.fused {
            Fused::WithinHeads => ([batch, n, heads, 3, head_dim], 3),
            Fused::AcrossHeads => ([batch, n, 3, heads, head_dim], 2),
        };
        let qkv = qkv.reshape(&shape[..])?;
        let qkv = qkv.to_dtype(attention_dtype(qkv.device()))?;
        let part = |i| qkv.narrow(three, i, 1)?.squeeze(three);
        // Appended in place; attention reads what is filled, without a copy.
        keys.slice_set(&part(1)?.contiguous()?, 1, past)?;
        values.slice_set(&part(2)?.contiguous()?, 1, past)?;
        let (keys, values) = (keys.narrow(1, 0, past + n)?, values.narrow(1, 0, past + n)?);
        let (out, _lse) = attend(attention, &part(0)?, &keys, &values, Lengths::dense())?;
        let out = out.reshape((batch, n, heads * head_dim))?;
        Ok(self.out.forward(&out.to_dtype(x.dtype())?)?)
    }
}
