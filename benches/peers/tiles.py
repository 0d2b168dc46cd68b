"""How many tiles of 128 x 128 the horizon's theorem leaves of causal attention with normal q and k: the count alone, without
the crate, to compare with what the crate computes. A tile is left out where each of its rows satisfies (A) or (B) of
`src/horizon.rs`, by its largest score so far; tolerance 2^-24.

`python benches/peers/tiles.py [--heads 8] [--bias-max 8] [--head-dim 64] [--sd 1] [--samples 32] TOKENS...`
"""

import argparse
import math

import torch

from reference import alibi_slopes

TILE = 128
TOLERANCE = 2.0**-24
CENTRE_SAMPLE = 256


class Keys:
    """Of one head: `[tokens, head_dim]`, tokens a multiple of 128; their centre, R of each tile and R' of it and all before."""

    def __init__(self, k: torch.Tensor) -> None:
        self.tiles = k.split(TILE)
        self.centre = k[:: max(1, len(k) // CENTRE_SAMPLE)].mean(0)
        self.radii = torch.stack([(tile - self.centre).norm(dim=1).max() for tile in self.tiles])
        self.farther = self.radii.cummax(0).values


def kept_tiles(q: torch.Tensor, keys: Keys, last: int, slope: float) -> list[int]:
    """Of the block of queries `[128, head_dim]` that stands at tile `last`, the nearest first."""
    scale = q.shape[1] ** -0.5
    centre, reach = scale * (q @ keys.centre), scale * q.norm(dim=1)
    within = torch.arange(TILE)
    geometric = -1 / math.expm1(-slope)
    tail = math.log(2 * geometric / TOLERANCE)
    tile_budget = math.log(2 * min(TILE, geometric) / TOLERANCE)
    largest = torch.full((TILE,), -math.inf)
    kept = []
    for t, tile in enumerate(range(last, -1, -1)):
        if t > 0:
            nearest = t * TILE + within - (TILE - 1)
            below = centre - slope * nearest - largest
            ends = below + reach * keys.farther[tile] <= -tail
            light = below + reach * keys.radii[tile] <= -(tile_budget + math.log(t * (t + 1)))
            if ends.all():
                break
            if (ends | light).all():
                continue
        distance = t * TILE + within[:, None] - within[None, :]
        scores = scale * (q @ keys.tiles[tile].T) - slope * distance
        largest = largest.maximum(scores.masked_fill(distance < 0, -math.inf).amax(1))
        kept.append(tile)
    return kept


def saved(heads: int, bias_max: float, head_dim: int, sd: float, tokens: int, samples: int) -> float:
    """All tiles, divided by those kept, of `samples` blocks of queries in each head; one k for all heads."""

    def normal(rows: int) -> torch.Tensor:
        return torch.randn(rows, head_dim) * math.sqrt(sd)

    keys = Keys(normal(tokens))
    blocks = tokens // TILE
    samples = min(samples, blocks)
    places = [int((i + 0.5) * blocks / samples) for i in range(samples)]
    slopes = alibi_slopes(heads, bias_max)
    kept = sum(len(kept_tiles(normal(TILE), keys, last, slope)) for slope in slopes for last in places)
    return heads * sum(last + 1 for last in places) / kept


def main() -> None:
    parser = argparse.ArgumentParser(description="All tiles, divided by those that the horizon's theorem keeps")
    parser.add_argument("tokens", type=int, nargs="+", help="multiples of 128")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--bias-max", type=float, default=8.0)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--sd", type=float, default=1.0, help="the standard deviation of the scores")
    parser.add_argument("--samples", type=int, default=32, help="blocks of queries that are looked at, in each head")
    args = parser.parse_args()
    torch.manual_seed(0)
    for tokens in args.tokens:
        ratio = saved(args.heads, args.bias_max, args.head_dim, args.sd, tokens, args.samples)
        print(f"{tokens:8}  {ratio:.2f}", flush=True)


if __name__ == "__main__":
    main()
