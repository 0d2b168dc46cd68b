"""Ours: a criterion bench program, one shape a run."""

import json
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from measurement import Absent

TIMEOUT_S = 300


@dataclass(frozen=True)
class Estimate:
    """Nanoseconds of one call."""

    median_ns: float
    mean_ns: float


def read_estimates(home: Path) -> dict[str, Estimate]:
    """Every bench's newest estimate under a CRITERION_HOME."""
    estimates = {}
    for benchmark in home.glob("**/new/benchmark.json"):
        values = json.loads(benchmark.with_name("estimates.json").read_text())
        name = json.loads(benchmark.read_text())["full_id"]
        estimates[name] = Estimate(values["median"]["point_estimate"], values["mean"]["point_estimate"])
    return estimates


def run_bench(program: Path, name: str) -> Estimate:
    """Runs the bench of that name alone.

    Raises Absent if the program fails or has no such bench.
    """
    with tempfile.TemporaryDirectory() as home:
        try:
            done = subprocess.run(
                [program.resolve(), "--bench", f"^{re.escape(name)}$"],
                env=os.environ | {"CRITERION_HOME": home},
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Absent(f"{program.name}: {error}") from error
        if done.returncode != 0:
            last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
            raise Absent(f"{program.name} exited with {done.returncode}: {last}")
        estimates = read_estimates(Path(home))
    if name not in estimates:
        raise Absent(f"{program.name} has no bench of this name")
    return estimates[name]
