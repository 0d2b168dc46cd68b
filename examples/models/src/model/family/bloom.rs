//! The BLOOM family (Hugging Face's `BloomForCausalLM`).

use anyhow::Result;
use flash_alibi::{Attention, Horizon, Slopes};

use super::super::block::{Activation, Feed, Fused};
use super::{Family, Names};
use crate::checkpoint::{Fixed, Keys, Tensors, head_dim};

/// Keys that change nothing here: how it was trained, and how its numbers were rounded.
pub const INERT: &[&str] = &[
    "attention_dropout",
    "attention_softmax_in_fp32",
    "bias_dropout_fusion",
    "hidden_dropout",
    "masked_softmax_fusion",
    "offset_alibi",
    "pretraining_pp",
    "pretraining_tp",
    "skip_bias_add",
    "skip_bias_add_qkv",
    "slow_but_exact",
];

/// Names of models that were made of BLOOM, and what they changed.
const FIXED: &[Fixed] = &[
    ("activation", r#""gelu""#),
    ("hidden_act", r#""gelu""#),
    ("multi_query", "false"),
    ("parallel_attn", "false"),
    ("alibi", "true"),
];

pub fn describe(keys: &Keys<'_>, _: &Tensors, horizon: Horizon) -> Result<Family> {
    keys.fixed(FIXED)?;
    let hidden = keys.hidden(64)?;
    let heads = keys.size(&["n_head", "num_attention_heads"], 8)?;
    let head_dim = head_dim(hidden, heads)?;
    keys.equal("n_inner", 4 * hidden)?;
    Ok(Family {
        names: Names {
            embedding: "word_embeddings",
            embedding_norm: Some("word_embeddings_layernorm"),
            blocks: "h",
            norm_1: "input_layernorm",
            qkv: "self_attention.query_key_value",
            out: "self_attention.dense",
            norm_2: Some("post_attention_layernorm"),
            up: "mlp.dense_h_to_4h",
            down: "mlp.dense_4h_to_h",
            norm: "ln_f",
            // A mask that the first conversions kept.
            inert: &["self_attention.scale_mask_softmax.causal_mask"],
        },
        vocab: keys.size(&["vocab_size"], 250_880)?,
        hidden,
        layers: keys.size(&["n_layer", "num_hidden_layers"], 2)?,
        wide: 4 * hidden,
        epsilon: keys.positive("layer_norm_epsilon", 1e-5)?,
        norm_bias: true,
        bias: true,
        tied: keys.flag("tie_word_embeddings", true)?,
        attention: Attention::new(heads, heads, head_dim)
            .slopes(Slopes::geometric(heads))
            .horizon(horizon)
            .build()?,
        fused: Fused::WithinHeads,
        clip_qkv: None,
        activation: Activation::GeluTanh,
        feed: Feed::AfterAttention,
        residual_after_norm: keys.flag("apply_residual_connection_post_layernorm", false)?,
    })
}
