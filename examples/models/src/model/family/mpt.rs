//! The MPT family (Hugging Face's `MptForCausalLM`).
//!
//! Where it and the code that MPT was trained with (llm-foundry) read a key differently, the checkpoint is refused unless
//! both compute the same.

use anyhow::{Result, ensure};
use flash_alibi::{Attention, Horizon, Slopes};

use super::super::block::{Activation, Feed, Fused};
use super::{Family, Names};
use crate::checkpoint::{Fixed, Keys, Tensors, head_dim};

/// Keys that change nothing here: how it was made and trained. With ALiBi there are no learned positions, and the embedding's
/// fraction is of its gradient.
pub const INERT: &[&str] = &[
    "emb_pdrop",
    "embedding_fraction",
    "fc_type",
    "init_config",
    "init_device",
    "learned_pos_emb",
    "max_seq_len",
    "name",
    "resid_pdrop",
    "tokenizer_name",
    "use_pad_tok_in_ffn",
    "verbose",
];

const FIXED: &[Fixed] = &[
    ("block_overrides", "{}"),
    ("final_logit_softcapping", "0"),
    ("logit_scale", "1"),
    ("norm_type", r#""low_precision_layernorm"|"layernorm""#),
];

/// The same within `attn_config`.
const ATTENTION_INERT: &[&str] = &[
    "attn_impl",
    "attn_pdrop",
    "rope_dail_config",
    "rope_hf_config",
    "rope_impl",
    "rope_theta",
    // A configuration within the configuration repeats it.
    "tie_word_embeddings",
];

const ATTENTION_FIXED: &[Fixed] = &[
    ("attn_logit_softcapping", "0"),
    ("attn_type", r#""multihead_attention""#),
    ("attn_uses_sequence_id", "false"),
    ("fused_qkv", "true"),
    ("prefix_lm", "false"),
    ("qk_gn", "false"),
    ("qk_ln", "false"),
    ("rope", "false"),
    ("sliding_window_size", "-1"),
];

/// The same within `ffn_config`.
const FEED_INERT: &[&str] = &["fc_type"];

const FEED_FIXED: &[Fixed] = &[("ffn_type", r#""mptmlp""#)];

/// What `attn_config` says.
struct AttentionKeys {
    bias_max: f64,
    softmax_scale: Option<f64>,
    clip_qkv: Option<f64>,
}

impl AttentionKeys {
    fn read(keys: &Keys<'_>, heads: usize) -> Result<Self> {
        let default = Self {
            bias_max: 8.0,
            softmax_scale: None,
            clip_qkv: None,
        };
        let Some(keys) = keys.within("attn_config", "attn_config.")? else {
            return Ok(default);
        };
        ensure!(
            keys.flag("alibi", true)?,
            "config.json: found attn_config.alibi = {}, expected true",
            keys.get("alibi")
        );
        keys.fixed(ATTENTION_FIXED)?;
        keys.equal("kv_n_heads", heads)?;
        let clip = keys.number("clip_qkv")?;
        ensure!(
            clip.is_none_or(|clip| clip >= 0.0),
            "config.json: found attn_config.clip_qkv = {}, expected a number of at least 0",
            keys.get("clip_qkv")
        );
        let found = Self {
            bias_max: keys.positive("alibi_bias_max", default.bias_max)?,
            softmax_scale: keys.number("softmax_scale")?,
            // 0 is no limit.
            clip_qkv: clip.filter(|&clip| clip > 0.0),
        };
        keys.finish(ATTENTION_INERT)?;
        Ok(found)
    }
}

pub fn describe(keys: &Keys<'_>, tensors: &Tensors, horizon: Horizon) -> Result<Family> {
    keys.fixed(FIXED)?;
    if let Some(keys) = keys.within("ffn_config", "ffn_config.")? {
        keys.fixed(FEED_FIXED)?;
        keys.finish(FEED_INERT)?;
    }
    let hidden = keys.size(&["d_model", "hidden_size"], 2048)?;
    let heads = keys.size(&["n_heads", "num_attention_heads"], 16)?;
    let head_dim = head_dim(hidden, heads)?;
    let of_attention = AttentionKeys::read(keys, heads)?;
    let mut attention = Attention::new(heads, heads, head_dim)
        .slopes(Slopes::with_bias_max(heads, of_attention.bias_max))
        .horizon(horizon);
    if let Some(scale) = of_attention.softmax_scale {
        attention = attention.scale(scale as f32);
    }
    // transformers has no biases whatever the key says; a file that has them means them.
    let bias = !keys.flag("no_bias", true)? && tensors.names().any(|name| name.ends_with(".bias"));
    let epsilon = keys.positive("layer_norm_epsilon", 1e-5)?;
    ensure!(
        keys.number("norm_eps")?.is_none_or(|eps| eps == epsilon),
        "config.json: found norm_eps = {}, expected the {epsilon} of layer_norm_epsilon",
        keys.get("norm_eps")
    );
    Ok(Family {
        names: Names {
            embedding: "wte",
            embedding_norm: None,
            blocks: "blocks",
            norm_1: "norm_1",
            qkv: "attn.Wqkv",
            out: "attn.out_proj",
            norm_2: Some("norm_2"),
            up: "ffn.up_proj",
            down: "ffn.down_proj",
            norm: "norm_f",
            inert: &[],
        },
        vocab: keys.size(&["vocab_size"], 50_368)?,
        hidden,
        layers: keys.size(&["n_layers", "num_hidden_layers"], 24)?,
        wide: hidden * keys.size(&["expansion_ratio"], 4)?,
        epsilon,
        norm_bias: bias,
        bias,
        tied: keys.flag("tie_word_embeddings", true)?,
        attention: attention.build()?,
        fused: Fused::AcrossHeads,
        clip_qkv: of_attention.clip_qkv,
        activation: Activation::Gelu,
        feed: Feed::AfterAttention,
        residual_after_norm: false,
    })
}
