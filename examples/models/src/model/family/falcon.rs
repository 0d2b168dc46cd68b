//! The models of the Falcon family that have an ALiBi bias (Hugging Face's `FalconForCausalLM`), such as Falcon-RW.
//!
//! The bias is scaled by `1/sqrt(head_dim)` with the scores. transformers rounds it to bf16, the slope and then its product
//! with the key's position: beyond position 256 neighbouring keys get the same bias, so that its results depend on where in
//! the text a key is and, on long prompts, differ from what is computed here, the bias that the family was trained for
//! without the rounding.
//!
//! The first configurations call the family `RefinedWeb` or `RefinedWebModel`, and are those of code that came with the
//! checkpoints: their keys have other names, and absent ones mean something else.

use anyhow::{Result, bail, ensure};
use flash_alibi::{Attention, Horizon, Slopes};

use super::super::block::{Activation, Feed, Fused};
use super::{Family, Names};
use crate::checkpoint::{Fixed, Keys, Tensors, head_dim};

/// Keys that change nothing here: how it was trained, and what only models without ALiBi compute.
pub const INERT: &[&str] = &[
    "attention_dropout",
    "hidden_dropout",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
];

const FIXED: &[Fixed] = &[
    ("apply_residual_connection_post_layernorm", "false"),
    ("hidden_act", r#""gelu""#),
];

/// The number of key heads.
const KEY_HEADS: [&str; 2] = ["num_kv_heads", "n_head_kv"];

pub fn describe(keys: &Keys<'_>, _: &Tensors, horizon: Horizon) -> Result<Family> {
    keys.fixed(FIXED)?;
    ensure!(
        keys.flag("alibi", false)?,
        "config.json: found alibi = {}, expected true: Falcon without it has rotary embeddings, which are not computed here",
        keys.get("alibi")
    );
    let newer = keys.text("model_type")? == Some("falcon");
    let (vocab, hidden, layers, heads) = match newer {
        true => (65_024, 4544, 32, 71),
        false => (250_880, 64, 2, 8),
    };
    let hidden = keys.hidden(hidden)?;
    let heads = keys.size(&["num_attention_heads", "n_head"], heads)?;
    let head_dim = head_dim(hidden, heads)?;
    let grouped = keys.flag("new_decoder_architecture", false)?;
    let parallel = keys.flag("parallel_attn", newer)?;
    ensure!(
        parallel || !grouped,
        "config.json: found parallel_attn = false, expected true: new_decoder_architecture has nothing else"
    );
    let heads_k = match (grouped, keys.flag("multi_query", newer)?) {
        (true, _) => keys.size(&KEY_HEADS, heads)?,
        (false, true) => 1,
        (false, false) => {
            for name in KEY_HEADS {
                keys.equal(name, heads)?;
            }
            heads
        }
    };
    // Not read where there is one key head.
    for name in KEY_HEADS {
        keys.get(name);
    }
    let norms = keys.size(&["num_ln_in_parallel_attn"], 1 + usize::from(grouped))?;
    ensure!(
        norms == 1 || grouped && norms == 2,
        "config.json: found num_ln_in_parallel_attn = {norms}, expected {}",
        if grouped { "1 or 2" } else { "1 or null" }
    );
    let activation = match keys.text("activation")?.unwrap_or("gelu") {
        "gelu" => Activation::Gelu,
        "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => Activation::GeluTanh,
        other => bail!(
            "config.json: found activation = \"{other}\", expected gelu, gelu_new, gelu_fast or gelu_pytorch_tanh"
        ),
    };
    let (norm_1, norm_2) = match (parallel, norms) {
        (false, _) => ("input_layernorm", Some("post_attention_layernorm")),
        (true, 2) => ("ln_attn", Some("ln_mlp")),
        (true, _) => ("input_layernorm", None),
    };
    Ok(Family {
        names: Names {
            embedding: "word_embeddings",
            embedding_norm: None,
            blocks: "h",
            norm_1,
            qkv: "self_attention.query_key_value",
            out: "self_attention.dense",
            norm_2,
            up: "mlp.dense_h_to_4h",
            down: "mlp.dense_4h_to_h",
            norm: "ln_f",
            // Rotary frequencies, which every block of old checkpoints has.
            inert: &["rotary.inv_freq", "rotary_emb.inv_freq"],
        },
        vocab: keys.size(&["vocab_size"], vocab)?,
        hidden,
        layers: keys.size(&["num_hidden_layers", "n_layer"], layers)?,
        wide: keys.size(&["ffn_hidden_size"], 4 * hidden)?,
        epsilon: keys.positive("layer_norm_epsilon", 1e-5)?,
        norm_bias: true,
        bias: keys.flag("bias", false)?,
        tied: keys.flag("tie_word_embeddings", true)?,
        attention: Attention::new(heads, heads_k, head_dim)
            .slopes(Slopes::geometric(heads).scaled((head_dim as f32).powf(-0.5)))
            .horizon(horizon)
            .build()?,
        fused: Fused::WithinHeads,
        clip_qkv: None,
        activation,
        feed: if parallel {
            Feed::BesideAttention
        } else {
            Feed::AfterAttention
        },
        residual_after_norm: false,
    })
}
