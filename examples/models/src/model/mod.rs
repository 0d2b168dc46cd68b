//! A decoder of the BLOOM or MPT family, from a Hugging Face checkpoint folder, in f32 (on a GPU with attention in f16):
//! candle's tensors, this crate's attention and paged cache.

mod backend;
mod bloom;
mod checkpoint;
mod mpt;
mod tokenizer;

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use backend::attention_dtype;
use candle_core::{D, DType, Device, IndexOp, Tensor};
use candle_nn::{Embedding, LayerNorm, Linear, Module};
use flash_alibi::candle::{self, Lengths};
use flash_alibi::{Attention, Horizon, PagedCache, SequenceId};

pub use backend::Backend;
pub use tokenizer::Tokenizer;

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
    /// What ends a text, if the checkpoint says.
    pub eos_token: Option<u32>,
}

/// Sees the queries, keys and values of new tokens, each `[total, heads, head_dim]`: of one block after the other.
pub type Watch<'a> = dyn FnMut(&Tensor, &Tensor, &Tensor) -> Result<()> + 'a;

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
    qkv: Projection,
    fused: Fused,
    /// MPT may clamp q, k and v.
    clip_qkv: Option<f64>,
    out: Projection,
    norm_2: LayerNorm,
    up: Projection,
    gelu: Gelu,
    down: Projection,
    /// Whether the residual is taken after the norm, as some BLOOM variants do.
    residual_after_norm: bool,
}

/// The keys and values of all sequences.
pub struct Cache {
    /// Who has which pages.
    pub pages: PagedCache,
    /// Of each block.
    pools: Vec<KvCache>,
}

/// The keys and values of a block, each `[pages, page_size, heads, head_dim]`, and how far its keys are from a centre.
struct KvCache {
    k: Tensor,
    v: Tensor,
    /// `[heads, head_dim]`: the mean of the first keys that came.
    centres: Option<Tensor>,
    /// `[pages, heads]`.
    radii: Tensor,
}

/// New tokens of some sequences, packed one after the other, and where they go: on the model's device.
struct Step {
    seqlens_q: Tensor,
    max_seqlen_q: usize,
    slot_mapping: Tensor,
    block_table: Tensor,
    seqused_k: Tensor,
}

impl Model {
    /// Loads a folder with `config.json` and safetensors.
    pub fn load(folder: &Path, device: &Device, horizon: Horizon) -> Result<Self> {
        let config = checkpoint::config(folder)?;
        let weights = checkpoint::weights(folder, device)?;
        let family = config["model_type"].as_str().unwrap_or("none");
        match family {
            "bloom" => bloom::load(&config, weights, horizon),
            "mpt" => mpt::load(&config, weights, horizon),
            _ => bail!("config.json: found model_type {family}, expected bloom or mpt"),
        }
        .with_context(|| format!("{} ({family})", folder.display()))
    }

    /// What every block computes.
    pub fn attention(&self) -> &Attention {
        &self.attention
    }

    fn device(&self) -> &Device {
        self.embedding.embeddings().device()
    }

    /// A cache of `pages` pages of `page_size` tokens.
    pub fn cache(&self, pages: usize, page_size: usize) -> Result<Cache> {
        let (heads_k, head_dim) = (self.attention.heads_k(), self.attention.head_dim());
        let (device, dtype) = (self.device(), attention_dtype(self.device()));
        let pool = || Tensor::zeros((pages, page_size, heads_k, head_dim), dtype, device);
        let pools = |_: &Block| -> Result<KvCache> {
            Ok(KvCache {
                k: pool()?,
                v: pool()?,
                centres: None,
                radii: Tensor::zeros((pages, heads_k), DType::F32, device)?,
            })
        };
        Ok(Cache {
            pages: PagedCache::new(pages, page_size)?,
            pools: self.blocks.iter().map(pools).collect::<Result<_>>()?,
        })
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

impl Cache {
    /// Takes slots for new tokens of each sequence, or for none.
    fn append(&mut self, tokens: &[(SequenceId, &[u32])], device: &Device) -> Result<Step> {
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

/// A linear layer, its weights `[features, outputs]`: in this order candle's product reads them in place.
struct Projection {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Projection {
    fn new(linear: &Linear) -> Result<Self> {
        Ok(Self {
            weight: linear.weight().t()?.contiguous()?,
            bias: linear.bias().cloned(),
        })
    }

    /// `[rows, outputs]` from `[rows, features]`. candle multiplies a single row by a routine of its own, which sums in
    /// another order: the row comes twice, so that its result is the same in any batch.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let out = match x.dim(0)? {
            1 => x.repeat((2, 1))?.matmul(&self.weight)?.narrow(0, 0, 1)?,
            _ => x.matmul(&self.weight)?,
        };
        Ok(match &self.bias {
            Some(bias) => out.broadcast_add(bias)?,
            None => out,
        })
    }
}

impl Block {
    fn forward(
        &self,
        x: &Tensor,
        attention: &Attention,
        pools: &mut KvCache,
        step: &Step,
        watch: &mut Watch<'_>,
    ) -> Result<Tensor> {
        let normed = self.norm_1.forward(x)?;
        let residual = if self.residual_after_norm { &normed } else { x };
        let x = (residual + self.attend(&normed, attention, pools, step, watch)?)?;

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
        pools: &mut KvCache,
        step: &Step,
        watch: &mut Watch<'_>,
    ) -> Result<Tensor> {
        let (heads, head_dim) = (attention.heads_q(), attention.head_dim());
        let (total, hidden) = (x.dim(0)?, heads * head_dim);
        let mut qkv = self.qkv.forward(x)?;
        if let Some(clip) = self.clip_qkv {
            qkv = qkv.clamp(-clip, clip)?;
        }
        let qkv = qkv.to_dtype(pools.k.dtype())?;
        // Views of the fused projection: nothing is taken apart.
        let part = |i: usize| match self.fused {
            Fused::WithinHeads => qkv.reshape((total, heads, 3, head_dim))?.i((.., .., i)),
            Fused::AcrossHeads => qkv.reshape((total, 3, heads, head_dim))?.i((.., i)),
        };
        let (q, k, v) = (part(0)?, part(1)?, part(2)?);
        watch(&q, &k, &v)?;
        let centres = match &pools.centres {
            Some(centres) => centres,
            None => pools.centres.insert(k.to_dtype(DType::F32)?.mean(0)?),
        };
        let radii = &pools.radii;
        candle::append_with_radii(
            &k,
            &v,
            &pools.k,
            &pools.v,
            &step.slot_mapping,
            centres,
            radii,
        )?;
        let lengths = Lengths::paged(&step.block_table, &step.seqused_k)
            .varlen_q(&step.seqlens_q, step.max_seqlen_q)
            .radii(centres, radii);
        let (out, _) = candle::attend(attention, &q, &pools.k, &pools.v, lengths)?;
        self.out
            .forward(&out.reshape((total, hidden))?.to_dtype(x.dtype())?)
    }
}
