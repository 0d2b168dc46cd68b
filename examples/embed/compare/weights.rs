//! Random weights in the shape of published models.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use anyhow::Result;
use candle_core::{Device, Tensor};
use clap::ValueEnum;
use rand::rngs::ChaCha8Rng;
use rand::{RngExt as _, SeedableRng as _};
use rand_distr::StandardNormal;
use serde_json::json;

/// The published model whose shape the weights have.
#[derive(Clone, Copy, ValueEnum)]
pub enum Size {
    /// jina-embeddings-v2-small-en: 4 layers, 8 heads of 64.
    Small,
    /// jina-embeddings-v2-base-en: 12 layers, 12 heads of 64.
    Base,
}

/// `max_position_embeddings` of both, by which candle-transformers sizes its table of the bias.
pub const LONGEST: usize = 8192;

/// Tokens of both.
pub const VOCAB: u32 = 30_528;

/// Writes a checkpoint. Weights of linear layers have a variance of one over their features, so that scores have a standard
/// deviation of about 1; norms change nothing.
pub fn write(size: Size, folder: &Path) -> Result<()> {
    let (layers, heads) = match size {
        Size::Small => (4, 8),
        Size::Base => (12, 12),
    };
    let (hidden, wide, vocab) = (64 * heads, 256 * heads, VOCAB as usize);
    let config = json!({
        "model_type": "bert", "vocab_size": vocab, "hidden_size": hidden, "num_hidden_layers": layers,
        "num_attention_heads": heads, "intermediate_size": wide, "hidden_act": "gelu", "feed_forward_type": "geglu",
        "max_position_embeddings": LONGEST, "position_embedding_type": "alibi", "type_vocab_size": 2,
        "initializer_range": 0.02, "layer_norm_eps": 1e-12, "pad_token_id": 0, "emb_pooler": "mean",
    });
    fs::write(folder.join("config.json"), config.to_string())?;

    let mut random = ChaCha8Rng::seed_from_u64(1);
    let mut tensors: HashMap<String, Tensor> = HashMap::new();
    let mut add = |name: String, shape: &[usize], sd: f32| -> Result<()> {
        let values = (0..shape.iter().product())
            .map(|_| sd * random.sample::<f32, _>(StandardNormal))
            .collect();
        tensors.insert(name, Tensor::from_vec(values, shape, &Device::Cpu)?);
        Ok(())
    };
    let mut norms = vec!["embeddings.LayerNorm".to_owned()];
    add(
        "embeddings.word_embeddings.weight".into(),
        &[vocab, hidden],
        1.0,
    )?;
    add(
        "embeddings.token_type_embeddings.weight".into(),
        &[2, hidden],
        1.0,
    )?;
    for i in 0..layers {
        let name = |part: &str| format!("encoder.layer.{i}.{part}");
        for (part, outputs, features, bias) in [
            ("attention.self.query", hidden, hidden, true),
            ("attention.self.key", hidden, hidden, true),
            ("attention.self.value", hidden, hidden, true),
            ("attention.output.dense", hidden, hidden, true),
            ("mlp.gated_layers", 2 * wide, hidden, false),
            ("mlp.wo", hidden, wide, true),
        ] {
            let sd = (features as f32).sqrt().recip();
            add(name(&format!("{part}.weight")), &[outputs, features], sd)?;
            if bias {
                add(name(&format!("{part}.bias")), &[outputs], 0.1)?;
            }
        }
        norms.extend([name("attention.output.LayerNorm"), name("mlp.layernorm")]);
    }
    for norm in norms {
        let (ones, zeros) = (vec![1f32; hidden], vec![0f32; hidden]);
        tensors.insert(format!("{norm}.weight"), Tensor::new(ones, &Device::Cpu)?);
        tensors.insert(format!("{norm}.bias"), Tensor::new(zeros, &Device::Cpu)?);
    }
    candle_core::safetensors::save(&tensors, folder.join("model.safetensors"))?;
    Ok(())
}
