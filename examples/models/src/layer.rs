//! What is attended to.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor};
use flash_alibi::{Attention, Horizon, Slopes};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt as _, SeedableRng as _};
use rand_distr::StandardNormal;

use crate::model::Model;
use crate::tokenizer::Tokenizer;

/// One sequence, causal: `[tokens, heads, head_dim]` each.
pub struct Problem {
    /// Query and key rows.
    pub tokens: usize,
    /// With the default horizon.
    pub attention: Attention,
    /// Queries.
    pub q: Vec<f32>,
    /// Keys.
    pub k: Vec<f32>,
    /// Values.
    pub v: Vec<f32>,
}

impl Problem {
    /// Of each layer of a model that reads the first tokens of a text.
    pub fn of_model(model: &Path, text: &Path, tokens: usize) -> Result<Vec<Self>> {
        let tokenizer = Tokenizer::load(model)?;
        let model = Model::load(model, &Device::Cpu, Horizon::default())?;
        let read = fs::read_to_string(text).with_context(|| text.display().to_string())?;
        let ids = tokenizer.encode(&read)?;
        let found = ids.len();
        ensure!(
            (1..=found).contains(&tokens),
            "tokens: found {tokens}, expected 1 to the {found} of {}",
            text.display()
        );
        let page_size = 16;
        let mut cache = model.cache(tokens.div_ceil(page_size), page_size)?;
        let sequence = cache.pages.create();
        let attention = model.attention().clone();
        let mut problems = Vec::new();
        let mut watch = |q: &Tensor, k: &Tensor, v: &Tensor| -> Result<()> {
            let values = |x: &Tensor| x.flatten_all()?.to_vec1();
            problems.push(Self {
                tokens,
                attention: attention.clone(),
                q: values(q)?,
                k: values(k)?,
                v: values(v)?,
            });
            Ok(())
        };
        model.forward_watched(&[(sequence, &ids[..tokens])], &mut cache, &mut watch)?;
        Ok(problems)
    }

    /// Independent normal numbers; scores have a standard deviation of `sd`.
    pub fn normal(
        tokens: usize,
        (heads, head_dim): (usize, usize),
        sd: f32,
        bias_max: f64,
    ) -> Result<Self> {
        let mut source = ChaCha8Rng::seed_from_u64(1);
        let mut random = |sd: f32| -> Vec<f32> {
            (0..tokens * heads * head_dim)
                .map(|_| sd * source.sample::<f32, _>(StandardNormal))
                .collect()
        };
        Ok(Self {
            tokens,
            attention: Attention::new(heads, heads, head_dim)
                .slopes(Slopes::with_bias_max(heads, bias_max))
                .build()?,
            q: random(sd.sqrt()),
            k: random(sd.sqrt()),
            v: random(1.0),
        })
    }
}
