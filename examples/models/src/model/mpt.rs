//! The MPT family (Hugging Face's `MptForCausalLM`).

use anyhow::{Result, ensure};
use candle_nn::{LayerNorm, Linear, VarBuilder, embedding, linear_no_bias};
use flash_alibi::{Attention, Horizon, Slopes};
use serde_json::Value;

use super::checkpoint::{eos_token, size};
use super::{Block, Fused, Gelu, Model, Projection};

pub fn load(config: &Value, weights: VarBuilder<'_>, horizon: Horizon) -> Result<Model> {
    let hidden = size(config, &["d_model", "hidden_size"])?;
    let heads = size(config, &["n_heads", "num_attention_heads"])?;
    ensure!(
        hidden % heads == 0,
        "config.json: d_model = {hidden} is not a multiple of {heads} heads"
    );
    let layers = size(config, &["n_layers", "num_hidden_layers"])?;
    let vocab = size(config, &["vocab_size"])?;
    let wide = hidden * config["expansion_ratio"].as_u64().unwrap_or(4) as usize;
    let epsilon = config["layer_norm_epsilon"].as_f64().unwrap_or(1e-5);
    let of_attention = &config["attn_config"];
    let unset = |value: &Value| value.is_null() || *value == false;
    for (name, found, fits, expected) in [
        (
            "attn_config.alibi",
            &of_attention["alibi"],
            of_attention["alibi"] == true,
            "true",
        ),
        (
            "attn_config.attn_type",
            &of_attention["attn_type"],
            of_attention["attn_type"].is_null()
                || of_attention["attn_type"] == "multihead_attention",
            "multihead_attention",
        ),
        (
            "attn_config.qk_ln",
            &of_attention["qk_ln"],
            unset(&of_attention["qk_ln"]),
            "false",
        ),
        (
            "attn_config.prefix_lm",
            &of_attention["prefix_lm"],
            unset(&of_attention["prefix_lm"]),
            "false",
        ),
        (
            "no_bias",
            &config["no_bias"],
            config["no_bias"] != false,
            "true",
        ),
        (
            "logit_scale",
            &config["logit_scale"],
            config["logit_scale"].is_null(),
            "null",
        ),
    ] {
        ensure!(
            fits,
            "config.json: found {name} = {found}, expected {expected}"
        );
    }

    let bias_max = of_attention["alibi_bias_max"].as_f64().unwrap_or(8.0);
    let mut attention = Attention::new(heads, heads, hidden / heads)
        .slopes(Slopes::with_bias_max(heads, bias_max))
        .horizon(horizon);
    if let Some(scale) = of_attention["softmax_scale"].as_f64() {
        attention = attention.scale(scale as f32);
    }
    let norm = |w: VarBuilder<'_>| -> Result<LayerNorm> {
        Ok(LayerNorm::new_no_bias(w.get(hidden, "weight")?, epsilon))
    };
    let block = |i: usize| -> Result<Block> {
        let w = weights.pp("blocks").pp(i);
        Ok(Block {
            norm_1: norm(w.pp("norm_1"))?,
            qkv: Projection::new(&linear_no_bias(
                hidden,
                3 * hidden,
                w.pp("attn").pp("Wqkv"),
            )?)?,
            fused: Fused::AcrossHeads,
            clip_qkv: of_attention["clip_qkv"].as_f64(),
            out: Projection::new(&linear_no_bias(
                hidden,
                hidden,
                w.pp("attn").pp("out_proj"),
            )?)?,
            norm_2: norm(w.pp("norm_2"))?,
            up: Projection::new(&linear_no_bias(hidden, wide, w.pp("ffn").pp("up_proj"))?)?,
            gelu: Gelu::Exact,
            down: Projection::new(&linear_no_bias(wide, hidden, w.pp("ffn").pp("down_proj"))?)?,
            residual_after_norm: false,
        })
    };
    let words = embedding(vocab, hidden, weights.pp("wte"))?;
    Ok(Model {
        // The head's weights are the embeddings'.
        head: Projection::new(&Linear::new(words.embeddings().clone(), None))?,
        embedding: words,
        embedding_norm: None,
        blocks: (0..layers).map(block).collect::<Result<_>>()?,
        norm: norm(weights.pp("norm_f"))?,
        attention: attention.build()?,
        eos_token: eos_token(config),
    })
}
