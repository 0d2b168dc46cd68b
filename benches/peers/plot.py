"""Rates or times over the sequence length, one panel for shapes that differ in it alone, drawn from the results."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

from report import Results


def panels(results: Results) -> dict[str, list[dict[str, Any]]]:
    """The shapes of each panel, by sequence length."""
    grouped: dict[str, list[dict[str, Any]]] = {}
    for shape in sorted(results["shapes"], key=lambda shape: shape["seqlen"]):
        grouped.setdefault(shape["panel"], []).append(shape)
    return grouped


def draw_panel(axes: Axes, results: Results, shapes: list[dict[str, Any]]) -> None:
    figure = "median_ms" if results["plots_time"] else "rate"
    for index, contender in enumerate(results["contenders"]):
        timed = [shape for shape in shapes if figure in shape["results"][contender["name"]]]
        if not timed:
            continue
        axes.plot(
            [shape["seqlen"] for shape in timed],
            [shape["results"][contender["name"]][figure] for shape in timed],
            label=contender["name"] + (" (ALiBi)" if contender["alibi"] else " (no bias)"),
            color="black" if index == 0 else pyplot.get_cmap("tab20")(index - 1),
            linewidth=2.5 if contender["name"].startswith("ours") else 1.5,
            linestyle="-" if contender["alibi"] else "--",
            marker="o",
            markersize=4,
        )
    seqlens = sorted({shape["seqlen"] for shape in shapes})
    axes.set_xscale("log", base=2)
    axes.set_xticks(seqlens, [str(seqlen) for seqlen in seqlens])
    if results["plots_time"]:
        axes.set_yscale("log")
    axes.minorticks_off()
    axes.grid(alpha=0.3)


def draw(results: Results, path: Path) -> None:
    """Writes the format that the path's extension names: PNG, SVG."""
    grouped = panels(results)
    if not grouped:
        raise ValueError("the results hold no shape")
    columns = min(2, len(grouped))
    rows = -(-len(grouped) // columns)
    figure, grid = pyplot.subplots(rows, columns, figsize=(6 * columns, 3.6 * rows + 1), squeeze=False, sharey=True)
    for axes in grid.flat[len(grouped) :]:
        axes.set_visible(False)
    for axes, (title, shapes) in zip(grid.flat, grouped.items()):
        draw_panel(axes, results, shapes)
        axes.set_title(title)
    for axes in grid[:, 0]:
        axes.set_ylabel("milliseconds" if results["plots_time"] else results["unit"])
    for axes in grid[-1]:
        axes.set_xlabel("keys of a sequence")
    if not results["plots_time"]:
        # Once all is drawn: it ends the scaling of the axis that the panels share.
        grid.flat[0].set_ylim(bottom=0)
    dtype = results["shapes"][0]["dtype"]
    figure.suptitle(f"{results['title']}, {dtype}, {results['environment']['gpu']}")
    legend = {label: line for axes in grid.flat for line, label in zip(*axes.get_legend_handles_labels())}
    figure.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=4, frameon=False)
    figure.set_layout_engine("constrained")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
