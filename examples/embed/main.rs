//! Embeds texts with an ALiBi encoder (Jina embeddings v2, MosaicBERT, DNABERT-2) and prints how alike they are.
//!
//! `cargo run --release --example embed -- --model DIR [--device cpu|cuda] [--horizon off|certified|bitwise] [--normalise] [--json] [TEXT...]`
//!
//! With the feature `compare`, `--compare` runs candle-transformers' own encoder beside this one:
//! `cargo run --profile bench --features compare --example embed -- --compare`

#[cfg(feature = "compare")]
mod compare;

use std::io::stdin;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use flash_alibi::Horizon;
use flash_alibi_models::{Backend, Encoder, Tokenizer, cosines, normalised};

#[derive(Parser)]
#[command(about = "Embeds texts with an ALiBi encoder and prints how alike they are")]
struct Arguments {
    /// The texts; without any, the lines of the standard input.
    #[arg(value_name = "TEXT")]
    texts: Vec<String>,
    /// A Hugging Face checkpoint folder: config.json, safetensors and, unless the model reads bytes, tokenizer.json.
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Where the model runs. A GPU needs a build with `--features candle-cuda`.
    #[arg(long, value_enum, default_value_t = Backend::Cpu)]
    device: Backend,
    /// Which keys are left out, because they cannot change the result: off, certified, certified:TOLERANCE or bitwise.
    #[arg(long, default_value = "certified")]
    horizon: Horizon,
    /// Makes the embeddings that `--json` prints vectors of length 1.
    #[arg(long, requires = "json")]
    normalise: bool,
    /// Prints one line of JSON, and nothing else: `tokens` (how many each text has), `embeddings` and `cosines`.
    #[arg(long)]
    json: bool,
    #[cfg(feature = "compare")]
    #[command(flatten)]
    compare: compare::Compare,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    #[cfg(feature = "compare")]
    if arguments.compare.asked() {
        return compare::run(&arguments.compare, arguments.horizon);
    }
    let model = arguments.model.as_deref().context(
        "no model was named: download one, for example by `hf download jinaai/jina-embeddings-v2-small-en --local-dir jina`, and name its folder: `--model jina`",
    )?;
    let device = arguments.device.device()?;
    let encoder = Encoder::load(model, &device, arguments.horizon)?;
    let tokenizer = Tokenizer::load(model)?;
    let texts = match arguments.texts.is_empty() {
        true => stdin().lines().collect::<Result<_, _>>()?,
        false => arguments.texts,
    };
    ensure!(
        !texts.is_empty(),
        "found no texts, expected some as arguments, or as lines of the standard input"
    );
    let tokens = texts.iter().map(|text| tokenizer.encode(text));
    let tokens = tokens.collect::<Result<Vec<_>>>()?;
    let tokens: Vec<&[u32]> = tokens.iter().map(Vec::as_slice).collect();
    let mut embeddings = encoder.embed(&tokens)?;
    let cosines = cosines(&embeddings)?;
    if arguments.json {
        if arguments.normalise {
            embeddings = normalised(&embeddings)?;
        }
        let line = serde_json::json!({
            "tokens": tokens.iter().map(|tokens| tokens.len()).collect::<Vec<_>>(),
            "embeddings": embeddings.to_vec2::<f32>()?,
            "cosines": cosines,
        });
        println!("{line}");
        return Ok(());
    }
    for (i, row) in cosines.iter().enumerate() {
        let row: Vec<String> = row.iter().map(|cosine| format!("{cosine:6.3}")).collect();
        println!("{:3} {}  {}", i + 1, row.join(" "), start(&texts[i]));
    }
    Ok(())
}

/// As much of a text as stands beside its row.
fn start(text: &str) -> String {
    const CHARACTERS: usize = 60;
    match text.char_indices().nth(CHARACTERS) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}
