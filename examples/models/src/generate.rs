//! Continues a prompt.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::model::Model;
use crate::sampler::Sampler;
use crate::tokenizer::Tokenizer;

/// What was added to a prompt, and what it took.
#[derive(Debug, Clone, PartialEq)]
pub struct Generated {
    /// The tokens that were added; the last may be one that ends a text.
    pub tokens: Vec<u32>,
    /// Their text, without that of an end token.
    pub text: String,
    /// Reading the prompt and choosing the first token.
    pub prefill: Duration,
    /// All after it.
    pub decode: Duration,
}

/// Adds tokens to a prompt, at most so many, until one ends the text; `write` gets the text as it comes.
///
/// # Errors
/// When the prompt is empty or has a token that the model has not.
pub fn generate(
    model: &Model,
    tokenizer: &Tokenizer,
    prompt: &[u32],
    tokens: usize,
    sampler: &mut Sampler,
    write: &mut dyn FnMut(&str) -> Result<()>,
) -> Result<Generated> {
    ensure!(!prompt.is_empty(), "the prompt is empty");
    let page_size = 16;
    let pages = prompt.len().saturating_add(tokens).div_ceil(page_size);
    let mut cache = model.cache(pages, page_size)?;
    let sequence = cache.pages.create();
    let mut next = |input: &[u32]| -> Result<u32> {
        let hidden = model.forward(&[(sequence, input)], &mut cache)?;
        let last = hidden.narrow(0, input.len() - 1, 1)?;
        let logits: Vec<f32> = model.logits(&last)?.flatten_all()?.to_vec1()?;
        sampler.draw(&logits)
    };
    let start = Instant::now();
    let mut token = next(prompt)?;
    let prefill = start.elapsed();

    let start = Instant::now();
    let mut stream = tokenizer.stream(prompt);
    let mut generated = Generated {
        tokens: Vec::new(),
        text: String::new(),
        prefill,
        decode: Duration::ZERO,
    };
    let mut add = |text: String| -> Result<()> {
        write(&text)?;
        generated.text += &text;
        Ok(())
    };
    while generated.tokens.len() < tokens {
        generated.tokens.push(token);
        if model.end_tokens().contains(&token) {
            break;
        }
        add(stream.push(token)?)?;
        if generated.tokens.len() < tokens {
            token = next(&[token])?;
        }
    }
    add(stream.finish()?)?;
    generated.decode = start.elapsed();
    Ok(generated)
}
