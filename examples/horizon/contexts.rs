//! What attention costs as the context grows, with the horizon and without.

use std::path::Path;

use anyhow::Result;
use flash_alibi_models::{Problem, computed_keys};
use plotters::prelude::*;

/// Tokens of the contexts.
const CONTEXTS: std::ops::RangeInclusive<u32> = 10..=16;

/// A kind of layer: its name, the bias that its last slope reaches, the standard deviation of its scores, and its colour.
const LAYERS: [(&str, f64, f32, RGBColor); 3] = [
    (
        "geometric slopes, scores of sd 1",
        8.0,
        1.0,
        RGBColor(20, 70, 130),
    ),
    (
        "geometric slopes, scores of sd 3",
        8.0,
        3.0,
        RGBColor(70, 150, 200),
    ),
    (
        "MPT-7B-StoryWriter's slopes, sd 1",
        16.0,
        1.0,
        RGBColor(215, 130, 50),
    ),
];

/// The keys that a query computes in the mean, of normal numbers: printed, and drawn.
pub fn draw(file: &Path, (heads, head_dim): (usize, usize), tolerance: f32) -> Result<()> {
    let ink = RGBColor(40, 44, 52);
    let muted = RGBColor(120, 125, 135);
    let contexts: Vec<usize> = CONTEXTS.map(|power| 1 << power).collect();

    println!(
        "keys that a query computes in the mean, {heads} heads of dimension {head_dim}, causal\n"
    );
    println!(
        "{:36} {}",
        "context",
        row(contexts.iter().map(|&n| n as f64))
    );
    let every: Vec<f64> = contexts.iter().map(|&n| (n + 1) as f64 / 2.0).collect();
    println!("{:36} {}", "every key", row(every.iter().copied()));
    let mut lines = vec![("every key", muted, every)];
    for (name, bias_max, sd, colour) in LAYERS {
        let keys = contexts.iter().map(|&tokens| {
            let problem = Problem::normal(tokens, (heads, head_dim), sd, bias_max)?;
            computed_keys(&problem, tolerance)
        });
        let keys = keys.collect::<Result<Vec<f64>>>()?;
        println!("{name:36} {}", row(keys.iter().copied()));
        lines.push((name, colour, keys));
    }

    let root = SVGBackend::new(file, (960, 480)).into_drawing_area();
    root.fill(&WHITE)?;
    let title = ("sans-serif", 22).into_font().color(&ink);
    let text = "What a token costs as the context grows, for the same result";
    root.draw_text(text, &title, (40, 14))?;
    let area = root.margin(50, 10, 20, 30);
    let mut chart = ChartBuilder::on(&area)
        .x_label_area_size(60)
        .y_label_area_size(90)
        .build_cartesian_2d(10f64..16.0, 8f64..15.2)?;
    // Both axes are powers of two.
    let power = |x: &f64| format!("{:.0}", x.exp2());
    chart
        .configure_mesh()
        .disable_mesh()
        .axis_style(muted)
        .x_desc("context, tokens")
        .y_desc("keys computed for a query, mean")
        .x_labels(7)
        .y_labels(8)
        .x_label_formatter(&power)
        .y_label_formatter(&power)
        .label_style(("sans-serif", 13).into_font().color(&ink))
        .axis_desc_style(("sans-serif", 16).into_font().color(&ink))
        .draw()?;
    for (name, colour, keys) in lines {
        let points = (contexts.iter().zip(keys)).map(|(&n, keys)| ((n as f64).log2(), keys.log2()));
        let points: Vec<(f64, f64)> = points.collect();
        chart
            .draw_series(LineSeries::new(
                points.iter().copied(),
                colour.stroke_width(3),
            ))?
            .label(name)
            .legend(move |(x, y)| Rectangle::new([(x, y - 2), (x + 20, y + 2)], colour.filled()));
        chart.draw_series(points.iter().map(|&at| Circle::new(at, 4, colour.filled())))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .label_font(("sans-serif", 15).into_font().color(&ink))
        .draw()?;
    root.present()?;
    Ok(())
}

fn row(values: impl Iterator<Item = f64>) -> String {
    values.map(|value| format!("{value:8.0}")).collect()
}
