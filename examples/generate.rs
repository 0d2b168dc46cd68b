//! Continues a prompt with an ALiBi model: greedily, or with tokens drawn at a temperature.
//!
//! `cargo run --release --example generate -- [--model DIR] [--device cpu|cuda] [--horizon off|certified|bitwise] [--prompt TEXT] [--tokens N] [--temperature T] [--top-p P] [--seed N] [--quiet | --json]`

use std::io::{Write, stdout};
use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use flash_alibi::Horizon;
use flash_alibi_models::{Backend, Model, Sampler, Tokenizer, generate};

#[derive(Parser)]
#[command(about = "Continues a prompt with an ALiBi model of the BLOOM, Falcon or MPT family")]
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
    /// Draws tokens at this temperature; 0 takes the likeliest.
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f64,
    /// Draws from the likeliest tokens only: as few as have this probability together.
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f64,
    /// The same seed draws the same tokens.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Prints the prompt and its continuation, and nothing else.
    #[arg(long)]
    quiet: bool,
    /// Prints one line of JSON, and nothing else: `prompt_tokens` (how many), `tokens` (those that were added, with the one
    /// that ended the text), `text` (the prompt and its continuation), `prefill_seconds` and `decode_seconds`.
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let mut sampler = Sampler::new(arguments.temperature, arguments.top_p, arguments.seed)?;
    let device = arguments.device.device()?;
    let model = Model::load(&arguments.model, &device, arguments.horizon)?;
    let tokenizer = Tokenizer::load(&arguments.model)?;
    let prompt = tokenizer.encode(&arguments.prompt)?;
    let mut out = stdout().lock();
    let mut write = |text: &str| -> Result<()> {
        if !arguments.json {
            write!(out, "{text}")?;
            out.flush()?;
        }
        Ok(())
    };
    write(&arguments.prompt)?;
    let found = generate(
        &model,
        &tokenizer,
        &prompt,
        arguments.tokens,
        &mut sampler,
        &mut write,
    )?;
    let (prefill, decode) = (found.prefill.as_secs_f64(), found.decode.as_secs_f64());
    if arguments.json {
        let line = serde_json::json!({
            "prompt_tokens": prompt.len(),
            "tokens": found.tokens,
            "text": arguments.prompt + &found.text,
            "prefill_seconds": prefill,
            "decode_seconds": decode,
        });
        writeln!(out, "{line}")?;
    } else if !arguments.quiet {
        let (read, added) = (prompt.len(), found.tokens.len());
        writeln!(
            out,
            "\n\nprefill: {read} tokens, {:.0} tokens/s; decode: {added} tokens, {:.0} tokens/s",
            read as f64 / prefill,
            added as f64 / decode,
        )?;
    }
    Ok(())
}
