//! Heads by distance, as dark as much is computed.

use std::path::Path;

use anyhow::Result;
use plotters::prelude::*;

use flash_alibi_models::Measured;

/// Keys of a tile of the CPU path.
const TILE: usize = 128;

pub fn draw(file: &Path, layers: &[Measured]) -> Result<()> {
    const ROW: u32 = 18;
    let ink = RGBColor(40, 44, 52);
    let muted = RGBColor(120, 125, 135);
    let rows: Vec<(usize, usize)> = (layers.iter().enumerate())
        .flat_map(|(layer, measured)| (0..measured.slopes.len()).map(move |head| (layer, head)))
        .collect();
    let tiles = layers.iter().flat_map(|layer| &layer.pairs);
    let tiles = tiles.map(Vec::len).max().unwrap_or(1);

    let height = rows.len() as u32 * ROW;
    let root = SVGBackend::new(file, (960, height + 130)).into_drawing_area();
    root.fill(&WHITE)?;
    let title = ("sans-serif", 22).into_font().color(&ink);
    let (computed, all) = layers
        .iter()
        .map(Measured::total)
        .fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
    root.draw_text(
        &format!(
            "The horizon: {:.0}% of the tiles are computed, dark where all are",
            100.0 * computed as f64 / all as f64
        ),
        &title,
        (40, 14),
    )?;
    let area = root.margin(50, 10, 20, 90);
    let mut chart = ChartBuilder::on(&area)
        .x_label_area_size(60)
        .y_label_area_size(130)
        .build_cartesian_2d(0f64..tiles as f64, 0f64..rows.len() as f64)?;
    chart
        .configure_mesh()
        .disable_mesh()
        .axis_style(muted)
        .x_labels(9)
        .x_label_formatter(&|x| format!("{:.0}", x * TILE as f64))
        .x_desc("distance, tokens")
        .y_labels(0)
        .label_style(("sans-serif", 13).into_font().color(&ink))
        .axis_desc_style(("sans-serif", 16).into_font().color(&ink))
        .draw()?;
    for (at, &(layer, head)) in rows.iter().enumerate() {
        let (bottom, pairs) = ((rows.len() - 1 - at) as f64, &layers[layer].pairs[head]);
        let cells = pairs.iter().enumerate().map(|(tile, &(computed, all))| {
            let part = computed as f64 / all as f64;
            let (low, high) = (
                (tile as f64, bottom + 0.06),
                (tile as f64 + 1.0, bottom + 0.94),
            );
            Rectangle::new([low, high], shade(part).filled())
        });
        chart.draw_series(cells)?;
        let (computed, all) = pairs.iter().fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
        let part = format!("{:.0}%", 100.0 * computed as f64 / all as f64);
        let name = match layers.len() {
            1 => String::new(),
            _ => format!("layer {layer}, "),
        };
        let name = format!("{name}m = {:.4}", layers[layer].slopes[head]);
        let style = ("sans-serif", 13).into_font().color(&ink);
        for (text, x, edge) in [(name, -125, 0.0), (part, 10, tiles as f64)] {
            let at = chart.backend_coord(&(edge, bottom + 0.5));
            root.draw_text(&text, &style, (at.0 + x, at.1 - 6))?;
        }
    }
    root.present()?;
    Ok(())
}

/// From nearly white to a dark blue.
fn shade(part: f64) -> RGBColor {
    let mix = |from: f64, to: f64| (from + (to - from) * part) as u8;
    RGBColor(mix(236.0, 20.0), mix(240.0, 70.0), mix(245.0, 130.0))
}
