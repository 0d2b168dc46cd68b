//! One side of the comparison, in a process of its own.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use candle_core::{DType, Device, Module, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::jina_bert::{BertModel, Config};
use clap::ValueEnum;
use cpu_time::ProcessTime;
use flash_alibi::Horizon;
use flash_alibi_models::Encoder;
use rand::rngs::ChaCha8Rng;
use rand::{RngExt as _, SeedableRng as _};
use serde::{Deserialize, Serialize};

use super::weights::VOCAB;

/// Who computes, and how.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Side {
    /// The encoder here, all texts packed.
    Ours,
    /// candle-transformers', all texts padded to the longest.
    Padded,
    /// candle-transformers', one text after the other.
    OneByOne,
}

impl Side {
    /// What the command line calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Padded => "padded",
            Self::OneByOne => "one-by-one",
        }
    }
}

/// What a process took, and found.
#[derive(Serialize, Deserialize)]
pub struct Measured {
    /// The processor's, for loading the weights.
    pub load_seconds: f64,
    /// The processor's, for the embeddings.
    pub seconds: f64,
    /// The most memory that the process had at once.
    pub peak_bytes: u64,
    /// Of each text by itself: jina_bert of candle-transformers takes no mask, so that padding changes its embeddings.
    pub embeddings: Vec<Vec<f32>>,
}

impl Measured {
    /// The least times and memory of two runs.
    pub fn least(self, other: Self) -> Self {
        Self {
            load_seconds: self.load_seconds.min(other.load_seconds),
            seconds: self.seconds.min(other.seconds),
            peak_bytes: self.peak_bytes.min(other.peak_bytes),
            embeddings: other.embeddings,
        }
    }
}

/// Loads the weights and embeds random texts of these lengths.
pub fn measure(side: Side, folder: &Path, lengths: &[usize], horizon: Horizon) -> Result<Measured> {
    let mut random = ChaCha8Rng::seed_from_u64(2);
    let texts: Vec<Vec<u32>> = lengths
        .iter()
        .map(|&length| (0..length).map(|_| random.random_range(1..VOCAB)).collect())
        .collect();
    match side {
        Side::Ours => ours(folder, &texts, horizon),
        Side::Padded | Side::OneByOne => theirs(folder, &texts, side == Side::Padded),
    }
}

fn ours(folder: &Path, texts: &[Vec<u32>], horizon: Horizon) -> Result<Measured> {
    let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
    let start = ProcessTime::now();
    let encoder = Encoder::load(folder, &Device::Cpu, horizon)?;
    let load = start.elapsed();
    let start = ProcessTime::now();
    let embeddings = encoder.embed(&texts)?;
    let seconds = start.elapsed().as_secs_f64();
    Ok(Measured {
        load_seconds: load.as_secs_f64(),
        seconds,
        peak_bytes: peak_bytes()?,
        embeddings: embeddings.to_vec2()?,
    })
}

fn theirs(folder: &Path, texts: &[Vec<u32>], padded: bool) -> Result<Measured> {
    let device = &Device::Cpu;
    let start = ProcessTime::now();
    let config: Config = serde_json::from_str(&fs::read_to_string(folder.join("config.json"))?)?;
    let file = folder.join("model.safetensors");
    // SAFETY: the file is mapped for reading, and it does not change while the process that wrote it waits for this one.
    let weights = unsafe { VarBuilder::from_mmaped_safetensors(&[file], DType::F32, device)? };
    let model = BertModel::new(weights, &config)?;
    let load = start.elapsed();

    let alone = || -> Result<Vec<Tensor>> {
        let embed = |text: &Vec<u32>| -> Result<Tensor> {
            let ids = Tensor::new(text.as_slice(), device)?.unsqueeze(0)?;
            Ok(model.forward(&ids)?.mean(1)?)
        };
        texts.iter().map(embed).collect()
    };
    let start = ProcessTime::now();
    let embeddings = match padded {
        true => {
            let longest = texts.iter().map(Vec::len).max().unwrap_or(0);
            let mut rows = texts.to_vec();
            rows.iter_mut().for_each(|row| row.resize(longest, 0));
            model.forward(&Tensor::new(rows, device)?)?.mean(1)?
        }
        false => Tensor::cat(&alone()?, 0)?,
    };
    let seconds = start.elapsed().as_secs_f64();
    let peak_bytes = peak_bytes()?;
    let embeddings = match padded && texts.len() > 1 {
        true => Tensor::cat(&alone()?, 0)?,
        false => embeddings,
    };
    Ok(Measured {
        load_seconds: load.as_secs_f64(),
        seconds,
        peak_bytes,
        embeddings: embeddings.to_vec2()?,
    })
}

/// The most memory that this process had at once. Unlike `ru_maxrss`, Linux' `VmHWM` has nothing of the process that
/// started it.
fn peak_bytes() -> Result<u64> {
    let file = "/proc/self/status";
    let status = fs::read_to_string(file).context(file)?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
    let kilobytes = kilobytes.with_context(|| format!("{file}: found no VmHWM in kB"))?;
    Ok(1024 * kilobytes.trim().parse::<u64>()?)
}
