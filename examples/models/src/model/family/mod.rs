//! What a checkpoint's family computes: read once from its configuration, and followed by the tensors and the blocks.

mod bloom;
mod falcon;
mod mpt;

use std::path::Path;

use anyhow::{Result, bail, ensure};
use candle_core::{Device, Tensor};
use candle_nn::{Embedding, LayerNorm, Linear};
use flash_alibi::{Attention, Horizon};

use super::Model;
use super::block::{Activation, Block, Feed, Fused};
use crate::checkpoint::{Document, Keys, Tensors, end_tokens, require_folder};
use crate::weights::{Projection, layer_norm};

/// The names of a family's tensors, without the prefix, the number of the block and `.weight` or `.bias`.
struct Names {
    embedding: &'static str,
    /// Of the norm after the embedding, where there is one.
    embedding_norm: Option<&'static str>,
    blocks: &'static str,
    /// Of the norm before attention.
    norm_1: &'static str,
    qkv: &'static str,
    out: &'static str,
    /// Of the norm before the feed-forward layers, where they have one of their own.
    norm_2: Option<&'static str>,
    up: &'static str,
    down: &'static str,
    norm: &'static str,
    /// Ends of names that hold nothing of the model.
    inert: &'static [&'static str],
}

/// A model without its weights.
struct Family {
    names: Names,
    vocab: usize,
    hidden: usize,
    layers: usize,
    /// Features between the feed-forward layers.
    wide: usize,
    /// Of every norm.
    epsilon: f64,
    /// Whether norms have a bias.
    norm_bias: bool,
    /// Whether the other layers have one.
    bias: bool,
    /// Whether the head's weights are the embedding's.
    tied: bool,
    attention: Attention,
    fused: Fused,
    /// The largest magnitude of q, k and v.
    clip_qkv: Option<f64>,
    activation: Activation,
    feed: Feed,
    /// Whether the residual is taken after the norm.
    residual_after_norm: bool,
}

/// Reads a family's configuration. It may look at which tensors there are.
type Describe = fn(&Keys<'_>, &Tensors, Horizon) -> Result<Family>;

/// Loads a folder with `config.json` and safetensors.
pub fn load(folder: &Path, device: &Device, horizon: Horizon) -> Result<Model> {
    require_folder(folder)?;
    let config = Document::read(folder, "config.json")?;
    let generation = Document::read_if_there(folder, "generation_config.json")?;
    let keys = Keys::new(config.name, &config.keys);
    let (describe, inert): (Describe, _) = match keys.text("model_type")?.unwrap_or("none") {
        "bloom" => (bloom::describe, bloom::INERT),
        "falcon" | "RefinedWeb" | "RefinedWebModel" => (falcon::describe, falcon::INERT),
        "mpt" => (mpt::describe, mpt::INERT),
        other => {
            bail!("config.json: found model_type {other}, expected bloom, falcon or mpt")
        }
    };
    let tensors = Tensors::open(folder, device)?;
    let family = describe(&keys, &tensors, horizon)?;
    keys.finish(inert)?;
    let end_tokens = end_tokens(&config, generation.as_ref())?;
    family.build(&tensors, end_tokens)
}

impl Family {
    fn build(self, tensors: &Tensors, end_tokens: Vec<u32>) -> Result<Model> {
        let prefix = tensors.prefix(&format!("{}.weight", self.names.norm))?;
        let (embedding, head) = self.words(tensors, prefix)?;
        let top = |name: &str| self.norm(tensors, &format!("{prefix}{name}"));
        let embedding_norm = self.names.embedding_norm.map(top).transpose()?;
        let norm = top(self.names.norm)?;
        let blocks = (0..self.layers).map(|i| self.block(tensors, prefix, i));
        let blocks = blocks.collect::<Result<_>>()?;
        tensors.finish(self.names.inert)?;
        Ok(Model {
            embedding: Embedding::new(embedding, self.hidden),
            embedding_norm,
            blocks,
            norm,
            head: Projection::new(&Linear::new(head, None))?,
            attention: self.attention,
            vocab: self.vocab,
            end_tokens,
        })
    }

    /// The weights of the embedding and of the head. Of a tied pair, a file may have either name, or both; where both are
    /// there and differ, each is used as it is, as transformers 5 does.
    fn words(&self, tensors: &Tensors, prefix: &str) -> Result<(Tensor, Tensor)> {
        let shape = [self.vocab, self.hidden];
        let embedding = format!("{prefix}{}.weight", self.names.embedding);
        let head = tensors.only("lm_head.weight")?;
        match head {
            Some(head) if self.tied && !tensors.has(&embedding) => {
                let words = tensors.get(head, &shape)?;
                Ok((words.clone(), words))
            }
            Some(head) => Ok((tensors.get(&embedding, &shape)?, tensors.get(head, &shape)?)),
            None => {
                ensure!(
                    self.tied,
                    "found no tensor lm_head.weight, expected one of {shape:?}: config.json has tie_word_embeddings = false"
                );
                let words = tensors.get(&embedding, &shape)?;
                Ok((words.clone(), words))
            }
        }
    }

    fn norm(&self, tensors: &Tensors, name: &str) -> Result<LayerNorm> {
        layer_norm(tensors, name, self.hidden, self.epsilon, self.norm_bias)
    }

    fn block(&self, tensors: &Tensors, prefix: &str, i: usize) -> Result<Block> {
        let names = &self.names;
        let name = |part: &str| format!("{prefix}{}.{i}.{part}", names.blocks);
        let linear = |part: &str, outputs, features| {
            Projection::load(tensors, &name(part), outputs, features, self.bias)
        };
        let attention = &self.attention;
        let heads = attention.heads_q() + 2 * attention.heads_k();
        let (hidden, wide) = (self.hidden, self.wide);
        Ok(Block {
            norm_1: self.norm(tensors, &name(names.norm_1))?,
            qkv: linear(names.qkv, heads * attention.head_dim(), hidden)?,
            fused: self.fused,
            clip_qkv: self.clip_qkv,
            out: linear(names.out, hidden, hidden)?,
            norm_2: names
                .norm_2
                .map(|part| self.norm(tensors, &name(part)))
                .transpose()?,
            up: linear(names.up, wide, hidden)?,
            activation: self.activation,
            down: linear(names.down, hidden, wide)?,
            feed: self.feed,
            residual_after_norm: self.residual_after_norm,
        })
    }
}
