"""How many tiles the horizon's theorem leaves of causal attention with normal q and k: the count alone, without the crate, to
compare with what the crate computes. A tile is 128 queries and as many keys as that of the kernels of sm_80
(`kernels/sm80/kernels.def`). It is left out where each of its rows that sees it satisfies (A) or (B) of `src/horizon.rs`, by
the row's largest score so far; tolerance 2^-24.

`python benches/peers/tiles.py [--heads 8] [--bias-max 8] [--head-dim 64] [--sd 1] [--samples 32] TOKENS...`
"""

import argparse
import math

import torch

from reference import alibi_slopes

ROWS = 128
TOLERANCE = 2.0**-24
CENTRE_SAMPLE = 256


def keys_of_tile(head_dim: int) -> int:
    """How many keys a tile has."""
    return 128 if head_dim <= 32 else 64


class Keys:
    """Of one head: `[tokens, head_dim]`, tokens a multiple of 128; their centre, R of each tile of `of_tile` keys and R' of it
    and all before."""

    def __init__(self, k: torch.Tensor, of_tile: int) -> None:
        self.of_tile = of_tile
        self.tiles = k.split(of_tile)
        self.centre = k[:: max(1, len(k) // CENTRE_SAMPLE)].mean(0)
        self.radii = torch.stack([(tile - self.centre).norm(dim=1).max() for tile in self.tiles])
        self.farther = self.radii.cummax(0).values


def kept_tiles(q: torch.Tensor, keys: Keys, first: int, slope: float) -> list[int]:
    """Of the block of queries `[128, head_dim]` that stand at the keys from `first` on, the nearest to the last query first."""
    scale = q.shape[1] ** -0.5
    centre, reach = scale * (q @ keys.centre), scale * q.norm(dim=1)
    position, within = first + torch.arange(ROWS), torch.arange(keys.of_tile)
    geometric = -1 / math.expm1(-slope)
    tail = math.log(2 * geometric / TOLERANCE)
    tile_budget = math.log(2 * min(keys.of_tile, geometric) / TOLERANCE)
    largest = torch.full((ROWS,), -math.inf)
    kept = []
    for t, tile in enumerate(range((first + ROWS - 1) // keys.of_tile, -1, -1)):
        first_key = tile * keys.of_tile
        if t > 0:
            nearest = position - (first_key + keys.of_tile - 1)
            below = centre - slope * nearest - largest
            ends = (nearest >= 0) & (below + reach * keys.farther[tile] <= -tail)
            light = (nearest >= 0) & (below + reach * keys.radii[tile] <= -(tile_budget + math.log(t * (t + 1))))
            if ends.all():
                break
            if (ends | light | (position < first_key)).all():
                continue
        distance = position[:, None] - (first_key + within[None, :])
        scores = scale * (q @ keys.tiles[tile].T) - slope * distance
        largest = largest.maximum(scores.masked_fill(distance < 0, -math.inf).amax(1))
        kept.append(tile)
    return kept


def saved(heads: int, bias_max: float, head_dim: int, sd: float, tokens: int, samples: int) -> float:
    """All tiles, divided by those kept, of `samples` blocks of queries in each head; one k for all heads."""

    def normal(rows: int) -> torch.Tensor:
        return torch.randn(rows, head_dim) * math.sqrt(sd)

    keys = Keys(normal(tokens), keys_of_tile(head_dim))
    blocks = tokens // ROWS
    samples = min(samples, blocks)
    places = [int((i + 0.5) * blocks / samples) * ROWS for i in range(samples)]
    slopes = alibi_slopes(heads, bias_max)
    kept = sum(len(kept_tiles(normal(ROWS), keys, first, slope)) for slope in slopes for first in places)
    return heads * sum((first + ROWS) // keys.of_tile for first in places) / kept


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
