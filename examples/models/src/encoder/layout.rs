//! What a checkpoint computes: read once from its configuration and the names of its tensors, and followed by the blocks.

use std::path::Path;

use anyhow::{Result, bail, ensure};
use candle_core::{Device, Tensor};
use candle_nn::{Embedding, LayerNorm, Linear};
use flash_alibi::{Attention, Horizon, Mask, Slopes};

use super::Encoder;
use super::block::Block;
use crate::checkpoint::{Document, Fixed, Keys, Tensors, head_dim, require_folder};
use crate::weights::{Projection, layer_norm};

/// Keys that change nothing here: how it was trained. `alibi_starting_size` is how large a table of the bias was made first.
const INERT: &[&str] = &[
    "alibi_starting_size",
    "attention_probs_dropout_prob",
    "classifier_dropout",
    "hidden_dropout_prob",
    "output_past",
];

/// `emb_pooler` is what Jina's own code does with the hidden states. Gates are of the exact GELU.
const FIXED: &[Fixed] = &[
    ("emb_pooler", r#""mean""#),
    ("feed_forward_type", r#""geglu""#),
    ("hidden_act", r#""gelu""#),
    ("is_decoder", "false"),
];

/// Ends of the names of what follows the encoder, which embeddings do not need, and of a list of numbers from 0 on.
const INERT_TENSORS: &[&str] = &[
    "cls.predictions.bias",
    "cls.predictions.decoder.bias",
    "cls.predictions.decoder.weight",
    "cls.predictions.transform.LayerNorm.bias",
    "cls.predictions.transform.LayerNorm.weight",
    "cls.predictions.transform.dense.bias",
    "cls.predictions.transform.dense.weight",
    "embeddings.position_ids",
    "pooler.dense.bias",
    "pooler.dense.weight",
];

/// What implementations name and order differently within a block.
#[derive(Clone, Copy)]
struct Layout {
    /// The tensor of queries, keys and values, where it is one.
    fused: Option<&'static str>,
    /// Whether queries and keys have norms, and attention's output a second one.
    more_norms: bool,
    /// The first feed-forward layer, both halves.
    gated: &'static str,
    /// Whether the half that goes through the activation is the first.
    gate_first: bool,
    down: &'static str,
    feed_norm: &'static str,
}

/// `jinaai/jina-bert-implementation`.
const JINA: Layout = Layout {
    fused: None,
    more_norms: false,
    gated: "mlp.gated_layers",
    gate_first: true,
    down: "mlp.wo",
    feed_norm: "mlp.layernorm",
};

/// `jinaai/jina-bert-v2-qk-post-norm`, of the models for code.
const JINA_CODE: Layout = Layout {
    more_norms: true,
    gated: "mlp.up_gated_layer",
    gate_first: false,
    down: "mlp.down_layer",
    feed_norm: "layer_norm_2",
    ..JINA
};

/// MosaicBERT and DNABERT-2.
const MOSAIC: Layout = Layout {
    fused: Some("attention.self.Wqkv"),
    ..JINA
};

impl Layout {
    fn of(tensors: &Tensors) -> Self {
        let has = |end: &str| tensors.names().any(|name| name.ends_with(end));
        if has(".mlp.up_gated_layer.weight") {
            JINA_CODE
        } else if has(".attention.self.Wqkv.weight") {
            MOSAIC
        } else {
            JINA
        }
    }
}

/// An encoder without its weights.
struct Shape {
    layout: Layout,
    vocab: usize,
    hidden: usize,
    layers: usize,
    /// Features between the feed-forward layers.
    wide: usize,
    token_types: usize,
    /// Of every norm.
    epsilon: f64,
    attention: Attention,
}

/// Loads a folder with `config.json` and safetensors.
pub fn load(folder: &Path, device: &Device, horizon: Horizon) -> Result<Encoder> {
    require_folder(folder)?;
    let config = Document::read(folder, "config.json")?;
    let keys = Keys::new(config.name, &config.keys);
    match keys.text("model_type")?.unwrap_or("none") {
        "bert" => {}
        other => bail!("config.json: found model_type {other}, expected bert"),
    }
    let tensors = Tensors::open(folder, device)?;
    let shape = Shape::read(&keys, Layout::of(&tensors), horizon)?;
    keys.finish(INERT)?;
    shape.build(&tensors)
}

impl Shape {
    fn read(keys: &Keys<'_>, layout: Layout, horizon: Horizon) -> Result<Self> {
        keys.fixed(FIXED)?;
        // MosaicBERT's code has ALiBi whatever the key says; Jina's has learned positions unless it says so.
        let positions = keys.text("position_embedding_type")?.unwrap_or("absolute");
        ensure!(
            layout.fused.is_some() || positions == "alibi",
            "config.json: found position_embedding_type = {positions}, expected alibi"
        );
        let hidden = keys.size(&["hidden_size"], 768)?;
        let heads = keys.size(&["num_attention_heads"], 12)?;
        Ok(Self {
            layout,
            vocab: keys.size(&["vocab_size"], 30_522)?,
            hidden,
            layers: keys.size(&["num_hidden_layers"], 12)?,
            wide: keys.size(&["intermediate_size"], 3072)?,
            token_types: keys.size(&["type_vocab_size"], 2)?,
            epsilon: keys.positive("layer_norm_eps", 1e-12)?,
            attention: Attention::new(heads, heads, head_dim(hidden, heads)?)
                .slopes(Slopes::geometric(heads))
                .mask(Mask::Bidirectional)
                .horizon(horizon)
                .build()?,
        })
    }

    fn build(self, tensors: &Tensors) -> Result<Encoder> {
        let prefix = tensors.prefix("embeddings.LayerNorm.weight")?;
        let embeddings = |name: &str| format!("{prefix}embeddings.{name}");
        let table = |name: &str, rows| {
            tensors.get(&embeddings(&format!("{name}.weight")), &[rows, self.hidden])
        };
        let types = table("token_type_embeddings", self.token_types)?;
        let words = table("word_embeddings", self.vocab)?.broadcast_add(&types.narrow(0, 0, 1)?)?;
        let norm = self.norm(tensors, &embeddings("LayerNorm"))?;
        let blocks = (0..self.layers)
            .map(|i| self.block(tensors, &format!("{prefix}encoder.layer.{i}")))
            .collect::<Result<_>>()?;
        tensors.finish(INERT_TENSORS)?;
        Ok(Encoder {
            embedding: Embedding::new(words, self.hidden),
            norm,
            blocks,
            attention: self.attention,
            vocab: self.vocab,
        })
    }

    fn norm(&self, tensors: &Tensors, name: &str) -> Result<LayerNorm> {
        layer_norm(tensors, name, self.hidden, self.epsilon, true)
    }

    fn block(&self, tensors: &Tensors, block: &str) -> Result<Block> {
        let (layout, hidden, wide) = (self.layout, self.hidden, self.wide);
        let norm = |part: &str| self.norm(tensors, &format!("{block}.{part}"));
        let linear = |part: &str, outputs, features| {
            Projection::load(tensors, &format!("{block}.{part}"), outputs, features, true)
        };
        let gated = tensors.get(
            &format!("{block}.{}.weight", layout.gated),
            &[2 * wide, hidden],
        )?;
        let half = |at: usize| Projection::new(&Linear::new(gated.narrow(0, at, wide)?, None));
        let (gate, up) = match layout.gate_first {
            true => (half(0)?, half(wide)?),
            false => (half(wide)?, half(0)?),
        };
        Ok(Block {
            qkv: self.qkv(tensors, block)?,
            qk_norms: match layout.more_norms {
                true => Some([
                    norm("attention.self.layer_norm_q")?,
                    norm("attention.self.layer_norm_k")?,
                ]),
                false => None,
            },
            out: linear("attention.output.dense", hidden, hidden)?,
            norm: norm("attention.output.LayerNorm")?,
            second_norm: layout
                .more_norms
                .then(|| norm("layer_norm_1"))
                .transpose()?,
            gate,
            up,
            down: linear(layout.down, hidden, wide)?,
            feed_norm: norm(layout.feed_norm)?,
        })
    }

    /// One projection, be it stored as one or as three.
    fn qkv(&self, tensors: &Tensors, block: &str) -> Result<Projection> {
        let hidden = self.hidden;
        if let Some(name) = self.layout.fused {
            return Projection::load(
                tensors,
                &format!("{block}.{name}"),
                3 * hidden,
                hidden,
                true,
            );
        }
        let parts = |end: &str, shape: &[usize]| -> Result<Tensor> {
            let parts = ["query", "key", "value"]
                .map(|part| tensors.get(&format!("{block}.attention.self.{part}.{end}"), shape));
            let [q, k, v] = parts;
            Ok(Tensor::cat(&[q?, k?, v?], 0)?)
        };
        let (weight, bias) = (
            parts("weight", &[hidden, hidden])?,
            parts("bias", &[hidden])?,
        );
        Projection::new(&Linear::new(weight, Some(bias)))
    }
}
