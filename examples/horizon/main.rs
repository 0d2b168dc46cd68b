//! What the certified horizon leaves out: of each head and distance, what that saves, and what it changes.
//!
//! `cargo run --release --example horizon -- [--input model|normal] [--tokens N] [--contexts] [--tolerance X] [--plot FILE] [--json]`

mod contexts;
mod plot;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use flash_alibi_models::Problem;
use flash_alibi_models::{Measured, measure};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Source {
    /// Queries, keys and values of every layer of a model, as it reads a text.
    Model,
    /// Normally distributed queries, keys and values.
    Normal,
}

#[derive(Debug, Parser)]
#[command(about = "What the certified horizon leaves out, what that saves and what it changes")]
struct Arguments {
    /// What is attended to.
    #[arg(long, value_enum, default_value_t = Source::Model)]
    input: Source,
    /// Tokens of one sequence.
    #[arg(long, value_name = "N", default_value_t = 4096)]
    tokens: usize,
    /// Of `normal` numbers, counts the keys that a query computes in contexts from 1024 to 65536 tokens, and draws it.
    #[arg(long, conflicts_with = "json")]
    contexts: bool,
    /// The weight that may be left out of a row: above 0, and at most 0.5.
    #[arg(long, value_name = "X", default_value_t = 0.5f32.powi(24))]
    tolerance: f32,
    /// Of `model`: a Hugging Face checkpoint folder of the BLOOM or MPT family.
    #[arg(long, value_name = "DIR", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/kjv-bloom"))]
    model: PathBuf,
    /// Of `model`: the text that it reads.
    #[arg(long, value_name = "FILE", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/kjv-bloom/heldout.txt"))]
    text: PathBuf,
    /// Of `normal`: heads, which have geometric slopes.
    #[arg(long, value_name = "N", default_value_t = 8)]
    heads: usize,
    /// Of `normal`: the dimension of heads.
    #[arg(long, value_name = "N", default_value_t = 64)]
    head_dim: usize,
    /// Of `normal`: the standard deviation of scores.
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    sd: f32,
    /// Of `normal`: the bias that the last slope reaches, 8 as a rule; 16 for MPT-7B-StoryWriter.
    #[arg(long, value_name = "X", default_value_t = 8.0)]
    bias_max: f64,
    /// Where to draw the picture, an SVG.
    #[arg(long, value_name = "FILE", default_value = "target/horizon.svg")]
    plot: PathBuf,
    /// Prints everything as JSON, and nothing else; draws nothing.
    #[arg(long)]
    json: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let plot = &arguments.plot;
    if let Some(folder) = plot.parent() {
        fs::create_dir_all(folder)?;
    }
    if arguments.contexts {
        let size = (arguments.heads, arguments.head_dim);
        contexts::draw(plot, size, arguments.tolerance)
            .with_context(|| plot.display().to_string())?;
        println!("\nplot: {}", plot.display());
        return Ok(());
    }
    let problems = match arguments.input {
        Source::Model => Problem::of_model(&arguments.model, &arguments.text, arguments.tokens)?,
        Source::Normal => vec![Problem::normal(
            arguments.tokens,
            (arguments.heads, arguments.head_dim),
            arguments.sd,
            arguments.bias_max,
        )?],
    };
    let measured = problems
        .iter()
        .map(|problem| measure(problem, arguments.tolerance))
        .collect::<Result<Vec<_>>>()?;
    if arguments.json {
        let layers: Vec<_> = measured.iter().map(Measured::json).collect();
        println!("{}", serde_json::Value::Array(layers));
        return Ok(());
    }
    println!(
        "layer  computed  dense, s  horizon, s  faster  out error (certified)    lse error (certified)    f16 that differ"
    );
    for (layer, measured) in measured.iter().enumerate() {
        println!("{layer:5}  {measured}");
    }
    plot::draw(plot, &measured).with_context(|| plot.display().to_string())?;
    println!("\nplot: {}", plot.display());
    Ok(())
}
