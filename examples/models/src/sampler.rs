//! Which token follows.

use anyhow::{Result, ensure};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt as _, SeedableRng as _};

/// Draws tokens from logits.
#[derive(Debug)]
pub struct Sampler {
    temperature: f64,
    top_p: f64,
    random: ChaCha8Rng,
}

impl Sampler {
    /// Draws from the probabilities of `logits / temperature`, of which only the largest are kept: as few as have `top_p`
    /// together. At a temperature of 0 it takes the likeliest token. One seed gives the same tokens for the same logits, on every machine.
    ///
    /// # Errors
    /// When the temperature is not a number of at least 0, or `top_p` not above 0 and at most 1.
    pub fn new(temperature: f64, top_p: f64, seed: u64) -> Result<Self> {
        ensure!(
            temperature >= 0.0 && temperature.is_finite(),
            "temperature: found {temperature}, expected a number of at least 0"
        );
        ensure!(
            top_p > 0.0 && top_p <= 1.0,
            "top-p: found {top_p}, expected a number above 0 and at most 1"
        );
        Ok(Self {
            temperature,
            top_p,
            random: ChaCha8Rng::seed_from_u64(seed),
        })
    }

    /// Takes the likeliest token.
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            top_p: 1.0,
            random: ChaCha8Rng::seed_from_u64(0),
        }
    }

    /// The next token.
    ///
    /// # Errors
    /// When there are no logits, or one is not a number.
    pub fn draw(&mut self, logits: &[f32]) -> Result<u32> {
        ensure!(!logits.is_empty(), "logits: found none");
        let nan = logits.iter().position(|logit| logit.is_nan());
        ensure!(
            nan.is_none(),
            "logits: found NaN for token {}, expected numbers",
            nan.unwrap_or(0)
        );
        // The first of equals, as transformers takes it.
        let best = (0..logits.len())
            .rev()
            .max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
        let best = best.unwrap_or(0);
        if self.temperature == 0.0 || logits[best].is_infinite() {
            return Ok(best as u32);
        }
        let max = f64::from(logits[best]);
        let weight = |logit: f32| ((f64::from(logit) - max) / self.temperature).exp();
        let mut likeliest: Vec<(u32, f64)> = (0..).zip(logits.iter().map(|&x| weight(x))).collect();
        likeliest.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        let total: f64 = likeliest.iter().map(|(_, weight)| weight).sum();
        let mut kept = 0.0;
        let mut sums = Vec::new();
        for (_, weight) in &likeliest {
            kept += weight;
            sums.push(kept);
            if kept >= self.top_p * total {
                break;
            }
        }
        let at = self.random.random::<f64>() * kept;
        let drawn = sums.partition_point(|&sum| sum <= at).min(sums.len() - 1);
        Ok(likeliest[drawn].0)
    }
}
