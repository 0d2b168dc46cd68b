"""Causal ALiBi prefill on the CPU: ours, with the horizon and without, beside PyTorch's `scaled_dot_product_attention` with
the bias as a tensor. One sequence, f32, 8 heads of 64 with geometric slopes, normal q, k and v; PyTorch's call is a head
each, so that the bias of 16384 tokens fits, and making the bias is not timed.

`python benches/peers/cpu.py PROGRAM`, where PROGRAM is what `cargo bench --bench attention --no-run` prints; as many threads
as RAYON_NUM_THREADS says, or as there are cores, for both.
"""

import argparse
import os
import time
from pathlib import Path

import torch

from criterion import run_bench
from reference import alibi_slopes

HEADS = 8
HEAD_DIM = 64
SEQLENS = (4096, 16384)


def sdpa_seconds(seqlen: int, repetitions: int) -> float:
    """The least of so many."""
    q, k, v = (torch.randn(HEADS, 1, 1, seqlen, HEAD_DIM) for _ in range(3))
    position = torch.arange(seqlen)
    distance = (position[:, None] - position[None, :]).float()
    hidden = distance < 0
    totals = [0.0] * repetitions
    for head, slope in enumerate(alibi_slopes(HEADS)):
        bias = (-slope * distance).masked_fill_(hidden, float("-inf"))
        for repetition in range(repetitions):
            start = time.perf_counter()
            torch.nn.functional.scaled_dot_product_attention(q[head], k[head], v[head], attn_mask=bias)
            totals[repetition] += time.perf_counter() - start
    return min(totals)


def ours_seconds(program: Path, horizon: str, seqlen: int) -> float:
    return run_bench(program, f"horizon/{HEADS}/sd 1/{horizon}/{seqlen}").median_ns / 1e9


def rows(program: Path, seqlens: tuple[int, ...] = SEQLENS) -> list[str]:
    lines = [f"{'tokens':>6}  {'SDPA, s':>8}  {'ours, s':>8}  {'ratio':>6}  {'with horizon, s':>15}  {'ratio':>6}"]
    for seqlen in seqlens:
        sdpa = sdpa_seconds(seqlen, 3 if seqlen <= 4096 else 2)
        dense, certified = (ours_seconds(program, horizon, seqlen) for horizon in ("dense", "certified"))
        lines.append(
            f"{seqlen:6}  {sdpa:8.3f}  {dense:8.3f}  {sdpa / dense:5.2f}x  {certified:15.3f}  {sdpa / certified:5.2f}x"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description="Causal ALiBi prefill on the CPU, beside PyTorch's SDPA")
    parser.add_argument("program", type=Path, help="our bench program")
    program = parser.parse_args().program
    threads = int(os.environ.get("RAYON_NUM_THREADS", os.cpu_count() or 1))
    torch.set_num_threads(threads)
    print(f"PyTorch {torch.__version__}, {threads} threads")
    print("\n".join(rows(program)))


if __name__ == "__main__":
    main()
