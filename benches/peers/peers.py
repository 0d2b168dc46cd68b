"""Times attention on a GPU: ours and its peers, shape by shape, in one run.

`run` measures; `plot` draws a run's results again.
"""

import argparse
import gc
import importlib.util
import json
import math
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from backends import BACKENDS, Backend
from criterion import run_bench
from environment import clocks, environment
from measurement import Absent, Budget
from reference import Inputs, make_inputs, reference
from report import Results, table
from shapes import COPY, DTYPES, OURS, SUITES, Shape, Suite

BUDGET = Budget(warm_up_s=1.0, measure_s=1.0)
QUICK_BUDGET = Budget(warm_up_s=0.25, measure_s=0.25)
# Of outputs near 1: room for the bias in bf16 of "SDPA bias"; a wrong slope, sign or mask is far beyond.
TOLERANCES = {"bf16": 5e-2, "f16": 1e-2}


def reason(error: Exception, caught: list[warnings.WarningMessage]) -> str:
    """Why a peer has no figure; PyTorch says in warnings why its backends decline."""
    message = (str(error).strip() or "no message").splitlines()[0]
    if isinstance(error, Absent):
        return message
    said = dict.fromkeys(str(warning.message).strip().splitlines()[0] for warning in caught)
    return "; ".join([f"{type(error).__name__}: {message}", *said])


def attempt(action: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """What the action returns, or `{"absent": reason}`: a peer that fails costs the others nothing."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            return action(*arguments)
        except Exception as error:
            return {"absent": reason(error, caught)}


@contextmanager
def memory_released() -> Iterator[None]:
    """Gives a peer's memory back to the GPU, for the others and for ours, a process of its own."""
    try:
        yield
    finally:
        gc.collect()
        try:
            torch.cuda.empty_cache()
        except RuntimeError as error:
            print(f"peers: the GPU's memory could not be released: {error}", file=sys.stderr)


def described(shape: Shape) -> dict[str, Any]:
    return {"id": shape.id, **asdict(shape), "panel": shape.panel}


def check(backend: Backend, inputs: Inputs, expected: torch.Tensor) -> dict[str, Any]:
    prepared = backend.prepare(inputs)
    output = prepared.output(prepared.run())
    error = (output.double() - expected).abs().max().item()
    # A NaN compares as no error at all.
    return {"max_error": math.inf if math.isnan(error) else error, "tolerance": TOLERANCES[inputs.shape.dtype]}


def check_shape(shape: Shape) -> dict[str, Any]:
    inputs = make_inputs(shape, "cuda")
    expected = {alibi: reference(inputs, alibi) for alibi in (False, True)}
    results = {}
    for backend in BACKENDS:
        with memory_released():
            results[backend.name] = attempt(check, backend, inputs, expected[backend.alibi])
    return {**described(shape), "results": results}


def time_peer(backend: Backend, inputs: Inputs, budget: Budget) -> dict[str, Any]:
    prepared = backend.prepare(inputs)
    timing = prepared.clock(prepared.run, budget)
    return {"rate": inputs.shape.rate(timing.median_ms), **asdict(timing)}


def time_ours(program: Path | None, bench: str) -> dict[str, Any]:
    if program is None:
        raise Absent("no --ours was given")
    return asdict(run_bench(program, bench))


def summarise_ours(runs: list[dict[str, Any]], shape: Shape) -> dict[str, Any]:
    """The mean of the medians."""
    absent = [run["absent"] for run in runs if "absent" in run]
    if absent:
        return {"absent": absent[0], "runs": runs}
    median_ms = statistics.mean(run["median_ns"] for run in runs) / 1e6
    return {"rate": shape.rate(median_ms), "median_ms": median_ms, "runs": runs}


def time_peers(shape: Shape, budget: Budget) -> dict[str, Any]:
    inputs = make_inputs(shape, "cuda")
    results = {}
    for backend in BACKENDS:
        with memory_released():
            results[backend.name] = attempt(time_peer, backend, inputs, budget)
    return results


def time_shape(shape: Shape, program: Path | None, budget: Budget) -> dict[str, Any]:
    """Ours, each peer, ours again; our other contenders once."""
    runs = {name: [attempt(time_ours, program, bench)] for name, bench in shape.benches.items()}
    with memory_released():
        peers = time_peers(shape, budget)
    measured_at = clocks()
    if "absent" not in runs[OURS][0]:
        runs[OURS].append(attempt(time_ours, program, shape.id))
    ours = {name: summarise_ours(of_name, shape) for name, of_name in runs.items()}
    return {**described(shape), "clocks": measured_at, "results": {**ours, **peers}}


def empty_results(suite: Suite, shapes: list[Shape], budget: Budget) -> Results:
    packages = dict.fromkeys(package for backend in BACKENDS for package in backend.packages)
    smallest = min(shape.tensor_bytes for shape in shapes)
    return {
        "title": suite.title,
        "unit": suite.unit,
        "plots_time": suite.plots_time,
        "environment": environment(packages, smallest),
        "budget": asdict(budget),
        "contenders": [{"name": name, "alibi": name != COPY} for name in shapes[0].benches]
        + [{"name": backend.name, "alibi": backend.alibi} for backend in BACKENDS],
        "checks": [],
        "shapes": [],
    }


def save(results: Results, path: Path | None) -> None:
    if path is not None:
        path.write_text(json.dumps(results, indent=2) + "\n")


def measure(arguments: argparse.Namespace) -> Results:
    """Saves after each shape, so that a run cut short keeps what it has."""
    budget, suite = QUICK_BUDGET if arguments.quick else BUDGET, SUITES[arguments.suite]
    shapes = suite.timed(arguments.dtype, arguments.quick)
    results = empty_results(suite, shapes, budget)
    for shape in suite.checked(arguments.dtype):
        print(f"checking {shape.id}", file=sys.stderr)
        results["checks"].append(check_shape(shape))
    for shape in shapes:
        print(f"timing {shape.id}", file=sys.stderr)
        results["shapes"].append(time_shape(shape, arguments.ours, budget))
        save(results, arguments.json)
    return results


def draw_plot(results: Results, path: Path) -> None:
    # matplotlib is needed by nothing else.
    from plot import draw

    draw(results, path)


def require_matplotlib() -> None:
    if importlib.util.find_spec("matplotlib") is None:
        sys.exit("peers: a plot needs matplotlib, which is not installed")


def run(arguments: argparse.Namespace) -> None:
    if not torch.cuda.is_available():
        sys.exit("peers: there is no CUDA GPU here that PyTorch can use; nothing was measured")
    if arguments.plot:
        require_matplotlib()
    results = measure(arguments)
    print(table(results))
    if arguments.plot:
        draw_plot(results, arguments.plot)


def plot(arguments: argparse.Namespace) -> None:
    require_matplotlib()
    draw_plot(json.loads(arguments.json.read_text()), arguments.plot)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="run|plot")
    command = commands.add_parser("run", help="measure")
    command.add_argument("suite", choices=SUITES, nargs="?", default="prefill")
    command.add_argument("--ours", type=Path, metavar="PROGRAM", help="our criterion bench program")
    command.add_argument("--json", type=Path, metavar="FILE", help="write the results here")
    command.add_argument("--plot", type=Path, metavar="FILE", help="draw the results here: .svg or .png")
    command.add_argument("--dtype", choices=DTYPES, default="bf16")
    command.add_argument("--quick", action="store_true", help="fewer sequence lengths, a quarter of the time each")
    command.set_defaults(function=run)
    command = commands.add_parser("plot", help="draw the results of a run again")
    command.add_argument("json", type=Path, metavar="RESULTS")
    command.add_argument("plot", type=Path, metavar="PLOT", help=".svg or .png")
    command.set_defaults(function=plot)
    return parser


def main(arguments: list[str] | None = None) -> None:
    parsed = parser().parse_args(arguments)
    parsed.function(parsed)


if __name__ == "__main__":
    main()
