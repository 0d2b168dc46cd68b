//! Continues a prompt greedily with an ALiBi model.
//!
//! `cargo run --release --example generate -- [--model DIR] [--device cpu|cuda] [--horizon off|certified|bitwise] [--prompt TEXT] [--tokens N] [--quiet]`

use std::io::{Write, stdout};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, ensure};
use clap::Parser;
use flash_alibi::Horizon;
use flash_alibi_models::{Backend, Model, Tokenizer};

#[derive(Parser)]
#[command(about = "Continues a prompt with an ALiBi model of the BLOOM or MPT family")]
struct Arguments {
    /// A Hugging Face checkpoint folder: config.json, safetensors and, unless the model reads bytes, tokenizer.json.
    #[arg(long, value_name = "DIR", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/kjv-bloom"))]
    model: PathBuf,
    /// Where the model runs. A GPU needs a build with `--features candle-cuda`.
    #[arg(long, value_enum, default_value_t = Backend::Cpu)]
    device: Backend,
    /// Which keys are left out, because they cannot change the result: off, certified or bitwise.
    #[arg(long, default_value = "certified")]
    horizon: Horizon,
    /// The text to continue.
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "Ge1:1 In the beginning God created"
    )]
    prompt: String,
    /// How many tokens to add at most.
    #[arg(long, value_name = "N", default_value_t = 240)]
    tokens: usize,
    /// Prints the prompt and its continuation, and nothing else.
    #[arg(long)]
    quiet: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let device = arguments.device.device()?;
    let model = Model::load(&arguments.model, &device, arguments.horizon)?;
    let tokenizer = Tokenizer::load(&arguments.model)?;
    let prompt = tokenizer.encode(&arguments.prompt)?;
    ensure!(!prompt.is_empty(), "the prompt is empty");
    let mut out = stdout().lock();
    write!(out, "{}", arguments.prompt)?;
    out.flush()?;

    let page_size = 16;
    let pages = (prompt.len() + arguments.tokens).div_ceil(page_size);
    let mut cache = model.cache(pages, page_size)?;
    let sequence = cache.pages.create();
    let start = Instant::now();
    let hidden = model.forward(&[(sequence, &prompt)], &mut cache)?;
    let mut next = model.greedy(&hidden, &[prompt.len() as u32 - 1])?;
    let prefill = start.elapsed();

    let start = Instant::now();
    let mut text = tokenizer.stream();
    let mut generated = 0;
    while generated < arguments.tokens {
        let token = next[0];
        if Some(token) == model.eos_token {
            break;
        }
        write!(out, "{}", text(token)?)?;
        out.flush()?;
        generated += 1;
        if generated < arguments.tokens {
            let hidden = model.forward(&[(sequence, &next)], &mut cache)?;
            next = model.greedy(&hidden, &[0])?;
        }
    }
    let decode = start.elapsed();

    if !arguments.quiet {
        let rate = |tokens: usize, seconds: f64| tokens as f64 / seconds;
        writeln!(
            out,
            "\n\nprefill: {} tokens, {:.0} tokens/s; decode: {generated} tokens, {:.0} tokens/s",
            prompt.len(),
            rate(prompt.len(), prefill.as_secs_f64()),
            rate(generated, decode.as_secs_f64()),
        )?;
    }
    Ok(())
}
