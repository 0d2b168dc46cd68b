//! "Train short, test long": bits per byte of a model at contexts far beyond the one it was trained at.
//!
//! `cargo run --release --example extrapolate -- [--model DIR] [--device cpu|cuda] [--horizon off|certified|bitwise] [--text FILE] [--plot FILE] [--json]`

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use candle_core::{D, IndexOp, Tensor};
use clap::Parser;
use flash_alibi::Horizon;
use flash_alibi_models::{Backend, Model, Tokenizer};
use indicatif::{ProgressBar, ProgressStyle};
use plotters::prelude::*;

#[derive(Parser)]
#[command(about = "Bits per byte of an ALiBi model at contexts of 128 to 4096 tokens")]
struct Arguments {
    /// A Hugging Face checkpoint folder of the BLOOM or MPT family.
    #[arg(long, value_name = "DIR", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/kjv-bloom"))]
    model: PathBuf,
    /// Where the model runs. A GPU needs a build with `--features candle-cuda`.
    #[arg(long, value_enum, default_value_t = Backend::Cpu)]
    device: Backend,
    /// Which keys are left out, because they cannot change the result: off, certified or bitwise.
    #[arg(long, default_value = "certified")]
    horizon: Horizon,
    /// The context at which the model was trained, to be marked.
    #[arg(long, value_name = "N", default_value_t = 256)]
    trained: usize,
    /// The text to predict.
    #[arg(long, value_name = "FILE", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/kjv-bloom/heldout.txt"))]
    text: PathBuf,
    /// Where to draw the plot, an SVG.
    #[arg(long, value_name = "FILE", default_value = "target/extrapolate.svg")]
    plot: PathBuf,
    /// Prints the bits per byte of each context as JSON, and nothing else.
    #[arg(long)]
    json: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let device = arguments.device.device()?;
    let model = Model::load(&arguments.model, &device, arguments.horizon)?;
    let tokenizer = Tokenizer::load(&arguments.model)?;
    let text = fs::read_to_string(&arguments.text);
    let tokens = tokenizer.encode(&text.with_context(|| arguments.text.display().to_string())?)?;
    let contexts: Vec<usize> = (7..=12).map(|power| 1 << power).collect();
    let windows = |context: usize| (32768 / context).min(40);
    let needed = contexts.iter().map(|&c| c * windows(c)).max().unwrap_or(0);
    ensure!(
        tokens.len() >= needed,
        "{}: found {} tokens, expected at least {needed}",
        arguments.text.display(),
        tokens.len()
    );

    let style =
        ProgressStyle::with_template("{wide_bar} {pos}/{len} windows, {eta} left, context {msg}")?;
    let progress =
        ProgressBar::new(contexts.iter().map(|&c| windows(c) as u64).sum()).with_style(style);
    let mut results = Vec::new();
    for &context in &contexts {
        progress.set_message(context.to_string());
        let (mut bits, mut bytes) = (0.0, 0);
        for window in tokens.chunks_exact(context).take(windows(context)) {
            bits += model_bits(&model, window)?;
            bytes += tokenizer.text_len(&window[1..])?;
            progress.inc(1);
        }
        results.push((context, bits / bytes as f64));
    }
    progress.finish_and_clear();

    if arguments.json {
        let entries = results
            .iter()
            .map(|(context, bits)| (context.to_string(), (*bits).into()));
        println!("{}", serde_json::Value::Object(entries.collect()));
        return Ok(());
    }
    println!("context  bits per byte");
    for (context, bits) in &results {
        let note = if *context == arguments.trained {
            "  the context of training"
        } else {
            ""
        };
        println!("{context:7}  {bits:.4}{note}");
    }
    if let Some(folder) = arguments.plot.parent() {
        fs::create_dir_all(folder)?;
    }
    draw(&arguments.plot, &results, arguments.trained)
        .with_context(|| arguments.plot.display().to_string())?;
    println!("\nplot: {}", arguments.plot.display());
    Ok(())
}

/// The bits that the model needs for all tokens of a window but the first.
fn model_bits(model: &Model, window: &[u32]) -> Result<f64> {
    let page_size = 128;
    let mut cache = model.cache(window.len().div_ceil(page_size), page_size)?;
    let sequence = cache.pages.create();
    let hidden = model.forward(&[(sequence, window)], &mut cache)?;
    let logits = model.logits(&hidden.i(..window.len() - 1)?)?;
    let next = Tensor::new(&window[1..], logits.device())?.unsqueeze(1)?;
    let logs = candle_nn::ops::log_softmax(&logits, D::Minus1)?.gather(&next, 1)?;
    let nats: f32 = logs.neg()?.sum_all()?.to_scalar()?;
    Ok(f64::from(nats) / std::f64::consts::LN_2)
}

fn draw(file: &Path, results: &[(usize, f64)], trained: usize) -> Result<()> {
    let ink = RGBColor(40, 44, 52);
    let muted = RGBColor(120, 125, 135);
    let line = RGBColor(31, 119, 180);
    let root = SVGBackend::new(file, (880, 520)).into_drawing_area();
    root.fill(&WHITE)?;
    let title = ("sans-serif", 24).into_font().color(&ink);
    root.draw_text(
        &format!("Train short, test long: trained at {trained}, read at up to 4096"),
        &title,
        (70, 18),
    )?;

    let (low, high) = results
        .iter()
        .fold((f64::MAX, 0f64), |(low, high), &(_, bits)| {
            (low.min(bits), high.max(bits))
        });
    let margin = (high - low).max(0.1);
    let area = root.margin(60, 10, 20, 40);
    let mut chart = ChartBuilder::on(&area)
        .x_label_area_size(50)
        .y_label_area_size(60)
        .build_cartesian_2d(6.8f64..12.2, low - margin * 0.6..high + margin * 0.6)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(WHITE)
        .bold_line_style(RGBColor(230, 232, 236))
        .axis_style(muted)
        .x_labels(6)
        .x_label_formatter(&|x| format!("{:.0}", x.exp2()))
        .y_label_formatter(&|y| format!("{y:.2}"))
        .x_desc("context, tokens (logarithmic)")
        .y_desc("bits per byte, held-out text")
        .label_style(("sans-serif", 15).into_font().color(&ink))
        .axis_desc_style(("sans-serif", 16).into_font().color(&ink))
        .draw()?;

    let trained = (trained as f64).log2();
    let (bottom, top) = (low - margin * 0.6, high + margin * 0.6);
    chart.draw_series([PathElement::new(
        [(trained, bottom), (trained, top)],
        muted.stroke_width(1),
    )])?;
    let note = ("sans-serif", 15).into_font().color(&muted);
    chart.draw_series([Text::new(
        "trained here",
        (trained + 0.05, top - margin * 0.08),
        note,
    )])?;

    let points: Vec<_> = results
        .iter()
        .map(|&(context, bits)| ((context as f64).log2(), bits))
        .collect();
    chart.draw_series(LineSeries::new(points.clone(), line.stroke_width(3)))?;
    chart.draw_series(
        points
            .iter()
            .map(|&point| Circle::new(point, 5, line.filled())),
    )?;
    let label = ("sans-serif", 15).into_font().color(&ink);
    chart.draw_series(points.iter().map(|&(x, y)| {
        Text::new(
            format!("{y:.3}"),
            (x - 0.15, y + margin * 0.17),
            label.clone(),
        )
    }))?;
    root.present()?;
    Ok(())
}
