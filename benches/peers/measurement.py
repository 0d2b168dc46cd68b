"""Clocks, and what a measurement yields: a `Timing`, or `Absent` with its reason."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


class Absent(RuntimeError):
    """There is no figure, and this is why."""


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call."""

    median_ms: float
    min_ms: float
    repetitions: int

    @classmethod
    def of(cls, milliseconds: list[float]) -> "Timing":
        return cls(statistics.median(milliseconds), min(milliseconds), len(milliseconds))


@dataclass(frozen=True)
class Budget:
    """Seconds of warming up, which bring the GPU to the clocks that it sustains, and of measuring."""

    warm_up_s: float
    measure_s: float

    def repetitions(self, call_s: float) -> int:
        """Ten at least, unless that takes long."""
        least = 10 if call_s < self.measure_s else 3
        return min(1000, max(least, round(self.measure_s / call_s)))


Run = Callable[[], Any]
Clock = Callable[[Run, Budget], Timing]


def warm_up(run: Run, wait: Callable[[Any], Any], seconds: float) -> float:
    """Runs for that long; returns the seconds that a call took."""
    wait(run())
    # One call at first: it may take longer than all of them should.
    calls, queued, start = 0, 1, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds or calls == 0:
        for _ in range(queued - 1):
            run()
        wait(run())
        calls += queued
        queued = 10
    return elapsed / calls


def cuda_events(run: Run, budget: Budget) -> Timing:
    """A pair of CUDA events around each call, all queued before the host waits."""
    call_s = warm_up(run, lambda _: torch.cuda.synchronize(), budget.warm_up_s)
    events = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        for _ in range(budget.repetitions(call_s))
    ]
    for start, end in events:
        start.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return Timing.of([start.elapsed_time(end) for start, end in events])


def batch_differences(run: Run, wait: Callable[[Any], Any], budget: Budget, calls: int = 10) -> Timing:
    """For a library whose stream takes no events: the host's time of `2 * calls` queued calls less that of `calls`, so
    that the cost of starting and of waiting cancels."""
    call_s = warm_up(run, wait, budget.warm_up_s)
    calls = min(calls, max(1, round(budget.measure_s / call_s)))

    def seconds(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count - 1):
            run()
        wait(run())
        return time.perf_counter() - start

    repetitions = max(3, budget.repetitions(call_s) // (3 * calls))
    differences = [seconds(2 * calls) - seconds(calls) for _ in range(repetitions)]
    return Timing.of([1e3 * difference / calls for difference in differences])
