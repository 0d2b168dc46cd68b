//! Serves a recorded trace of requests: sequences of different lengths decode together from one paged cache.
//!
//! `cargo run --release --example serve_trace -- [--model DIR] [--device cpu|cuda] [--horizon off|certified|bitwise] [--trace FILE] [--pages N] [--page-size N] [--texts]`

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use flash_alibi::Horizon;
use flash_alibi_models::{Backend, Model, Tokenizer};
use flash_alibi_models::{Request, serve};

#[derive(Parser)]
#[command(about = "Serves a trace of requests by continuous batching over a paged cache")]
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
    /// A JSON list of requests in the order of arrival: {"arrival": STEP, "prompt": TEXT, "tokens": N}.
    #[arg(long, value_name = "FILE", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../serve/trace.json"))]
    trace: PathBuf,
    /// Pages of the cache; requests wait while it is full.
    #[arg(long, value_name = "N", default_value_t = 96)]
    pages: usize,
    /// Tokens of a page, a multiple of 8.
    #[arg(long, value_name = "N", default_value_t = 16)]
    page_size: usize,
    /// Prints every prompt with what was added to it.
    #[arg(long)]
    texts: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let device = arguments.device.device()?;
    let model = Model::load(&arguments.model, &device, arguments.horizon)?;
    let tokenizer = Tokenizer::load(&arguments.model)?;
    let trace = &arguments.trace;
    let text = fs::read_to_string(trace).with_context(|| trace.display().to_string())?;
    let requests: Vec<Request> =
        serde_json::from_str(&text).with_context(|| trace.display().to_string())?;

    let (pages, page_size) = (arguments.pages, arguments.page_size);
    let report = serve(&model, &tokenizer, &requests, pages, page_size)?;
    if arguments.texts {
        for (request, text) in requests.iter().zip(&report.texts) {
            println!("{}|{text}\n", request.prompt);
        }
    }
    let tokens = report.prompt_tokens + report.new_tokens;
    let seconds = report.elapsed.as_secs_f64();
    println!(
        "{} requests, {} steps, at most {} sequences together",
        requests.len(),
        report.steps,
        report.most_sequences
    );
    println!(
        "{} prompt tokens, {} new tokens, {:.1} s: {:.0} tokens/s, {:.0} of them new",
        report.prompt_tokens,
        report.new_tokens,
        seconds,
        tokens as f64 / seconds,
        report.new_tokens as f64 / seconds
    );
    println!(
        "cache: at most {} of {pages} pages of {page_size} tokens in use",
        report.most_pages
    );
    Ok(())
}
