//! Checkpoints through this crate's attention, against what Hugging Face's transformers and candle-transformers compute for
//! them.

mod encoder;
mod horizon;
mod logits;
mod programs;
mod refused;
mod sampling;
mod stored;
mod text;
mod variant;

use std::env;
use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{D, Device, Tensor};
use flash_alibi::Horizon;
use flash_alibi_models::Model;
use serde_json::Value;

fn folder(name: &str) -> PathBuf {
    // Tests run in the package's folder, wherever it is.
    Path::new("../models").join(name)
}

fn load(folder: &Path) -> anyhow::Result<Model> {
    Model::load(folder, &Device::Cpu, Horizon::default())
}

/// A folder of a test's own, which goes with it.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let (process, number) = (std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let folder = env::temp_dir().join(format!("flash-alibi-models-{process}-{number}"));
        fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }
}

impl Deref for Scratch {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A system that keeps open files from being removed keeps them.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The golden token ids, one list a sequence, and the golden logits.
fn golden(name: &str) -> (Vec<Vec<u32>>, Tensor) {
    let file = folder(name).join("golden_logits.safetensors");
    let tensors = candle_core::safetensors::load(file, &Device::Cpu).unwrap();
    let ids = tensors["input_ids"]
        .to_dtype(candle_core::DType::U32)
        .unwrap();
    (ids.to_vec2().unwrap(), tensors["logits"].clone())
}

/// A prompt, and the tokens that follow it greedily in each case.
fn greedy_golden(name: &str) -> (String, Value) {
    let text = fs::read_to_string(folder(name).join("golden_greedy.json")).unwrap();
    let golden: Value = serde_json::from_str(&text).unwrap();
    (golden["prompt"].as_str().unwrap().to_owned(), golden)
}

/// Feeds the tokens in chunks of the given sizes, then one by one: `[batch, tokens, vocab]`.
fn logits(model: &Model, tokens: &[Vec<u32>], chunks: &[usize]) -> Tensor {
    let (batch, n) = (tokens.len(), tokens[0].len());
    let mut cache = model.cache(batch * n.div_ceil(16), 16).unwrap();
    let sequences: Vec<_> = tokens.iter().map(|_| cache.pages.create()).collect();
    let (mut hidden, mut start) = (Vec::new(), 0);
    for size in chunks.iter().copied().chain(std::iter::repeat(1)) {
        if start == n {
            break;
        }
        let chunk = tokens.iter().map(|t| &t[start..start + size]);
        let chunk: Vec<_> = sequences.iter().copied().zip(chunk).collect();
        let states = model.forward(&chunk, &mut cache).unwrap();
        let width = states.dim(1).unwrap();
        hidden.push(states.reshape((batch, size, width)).unwrap());
        start += size;
    }
    let hidden = Tensor::cat(&hidden, 1).unwrap().flatten(0, 1).unwrap();
    let logits = model.logits(&hidden).unwrap();
    logits.reshape((batch, n, ())).unwrap()
}

fn max_difference(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    let difference = (a - b).unwrap().abs().unwrap();
    difference
        .flatten_all()
        .unwrap()
        .max(D::Minus1)
        .unwrap()
        .to_scalar()
        .unwrap()
}

/// Both sides compute in f32 and sum in different orders: each logit is a sum of hundreds of products after layers of
/// such sums. Measured: 2.3e-5 for logits of up to 20 (BLOOM), so 2e-4 leaves room for other processors; the least
/// error of the bias (one position) moves logits by more than 1e-2.
const LOGIT_TOLERANCE: f32 = 2e-4;
