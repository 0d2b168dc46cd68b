//! The BLOOM family (Hugging Face's `BloomForCausalLM`).

use anyhow::{Result, ensure};
use candle_nn::{LayerNorm, Linear, VarBuilder, embedding, layer_norm, linear};
use flash_alibi::{Attention, Horizon, Slopes};
use serde_json::Value;

use super::checkpoint::{eos_token, size};
use super::{Block, Fused, Gelu, Model, Projection};

pub fn load(config: &Value, weights: VarBuilder<'_>, horizon: Horizon) -> Result<Model> {
    let hidden = size(config, &["hidden_size", "n_embed"])?;
    let heads = size(config, &["n_head", "num_attention_heads"])?;
    ensure!(
        hidden % heads == 0,
        "config.json: hidden_size = {hidden} is not a multiple of {heads} heads"
    );
    let layers = size(config, &["n_layer", "num_hidden_layers"])?;
    let vocab = size(config, &["vocab_size"])?;
    let epsilon = config["layer_norm_epsilon"].as_f64().unwrap_or(1e-5);
    let norm = |w: VarBuilder<'_>| -> Result<LayerNorm> { Ok(layer_norm(hidden, epsilon, w)?) };

    let attention = Attention::new(heads, heads, hidden / heads)
        .slopes(Slopes::geometric(heads))
        .horizon(horizon)
        .build()?;
    let block = |i: usize| -> Result<Block> {
        let w = weights.pp("h").pp(i);
        let (attention, mlp) = (w.pp("self_attention"), w.pp("mlp"));
        Ok(Block {
            norm_1: norm(w.pp("input_layernorm"))?,
            qkv: Projection::new(&linear(
                hidden,
                3 * hidden,
                attention.pp("query_key_value"),
            )?)?,
            fused: Fused::WithinHeads,
            clip_qkv: None,
            out: Projection::new(&linear(hidden, hidden, attention.pp("dense"))?)?,
            norm_2: norm(w.pp("post_attention_layernorm"))?,
            up: Projection::new(&linear(hidden, 4 * hidden, mlp.pp("dense_h_to_4h"))?)?,
            gelu: Gelu::Tanh,
            down: Projection::new(&linear(4 * hidden, hidden, mlp.pp("dense_4h_to_h"))?)?,
            residual_after_norm: config["apply_residual_connection_post_layernorm"] == true,
        })
    };
    let words = embedding(vocab, hidden, weights.pp("word_embeddings"))?;
    Ok(Model {
        // The head's weights are the embeddings'.
        head: Projection::new(&Linear::new(words.embeddings().clone(), None))?,
        embedding: words,
        embedding_norm: Some(norm(weights.pp("word_embeddings_layernorm"))?),
        blocks: (0..layers).map(block).collect::<Result<_>>()?,
        norm: norm(weights.pp("ln_f"))?,
        attention,
        eos_token: eos_token(config),
    })
}
