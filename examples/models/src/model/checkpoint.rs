//! Files of a checkpoint folder.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use candle_core::{DType, Device};
use candle_nn::VarBuilder;
use serde_json::Value;

fn json(path: &Path) -> Result<Value> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}

/// `config.json`.
pub fn config(folder: &Path) -> Result<Value> {
    json(&folder.join("config.json"))
}

/// The tensors, in f32 as they are asked for, from `model.safetensors` or from the shards that its index lists.
pub fn weights(folder: &Path, device: &Device) -> Result<VarBuilder<'static>> {
    let index = folder.join("model.safetensors.index.json");
    let files: Vec<PathBuf> = if index.exists() {
        let index = json(&index)?;
        let map = index["weight_map"].as_object();
        let map = map.context("model.safetensors.index.json: found no weight_map")?;
        let names: BTreeSet<&str> = map.values().filter_map(Value::as_str).collect();
        names.into_iter().map(|name| folder.join(name)).collect()
    } else {
        vec![folder.join("model.safetensors")]
    };
    // SAFETY: the files are mapped for reading; a checkpoint does not change while it is in use.
    let weights = unsafe { VarBuilder::from_mmaped_safetensors(&files, DType::F32, device) };
    let weights =
        weights.with_context(|| format!("{}: no readable safetensors", folder.display()))?;
    // Saved from the model with a head, names begin with `transformer`; from the bare model, they do not.
    let has_prefix = ["word_embeddings", "wte"]
        .iter()
        .any(|name| weights.contains_tensor(&format!("transformer.{name}.weight")));
    Ok(if has_prefix {
        weights.pp("transformer")
    } else {
        weights
    })
}

/// A positive integer of the configuration, under any of its names.
pub fn size(config: &Value, names: &[&str]) -> Result<usize> {
    names
        .iter()
        .find_map(|name| config[*name].as_u64())
        .filter(|&n| n > 0)
        .map(|n| n as usize)
        .with_context(|| format!("config.json: found no {}", names.join(" or ")))
}

/// The token that ends a text, if there is one.
pub fn eos_token(config: &Value) -> Option<u32> {
    config["eos_token_id"]
        .as_u64()
        .and_then(|id| id.try_into().ok())
}
