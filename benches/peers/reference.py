"""Attention as it is defined, in float64, and the inputs that it and the peers are given."""

from dataclasses import dataclass

import torch

from shapes import DTYPES, Shape


@dataclass(frozen=True)
class Inputs:
    """q `[batch, queries, heads, head_dim]`, k and v `[batch, seqlen, heads_k, head_dim]` of one shape."""

    shape: Shape
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor

    @property
    def scale(self) -> float:
        return self.shape.head_dim**-0.5

    def heads_first(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Views with heads before rows, as PyTorch's functions take them."""
        q, k, v = (x.transpose(1, 2) for x in (self.q, self.k, self.v))
        return q, k, v


def make_inputs(shape: Shape, device: str, seed: int = 0) -> Inputs:
    generator = torch.Generator(device).manual_seed(seed)

    def normal(rows: int, heads: int) -> torch.Tensor:
        size = (shape.batch, rows, heads, shape.head_dim)
        return torch.randn(size, generator=generator, device=device, dtype=DTYPES[shape.dtype])

    q, k, v = normal(shape.queries, shape.heads), normal(shape.seqlen, shape.heads_k), normal(shape.seqlen, shape.heads_k)
    return Inputs(shape, q, k, v)


def alibi_slopes(heads: int, bias_max: float = 8.0) -> list[float]:
    """`2^(-bias_max k/n)` for `k = 1..=n`; where n is no power of two, those of the power below, and the odd ones of that
    above."""
    if heads < 1:
        raise ValueError(f"heads is {heads}, expected at least 1")
    power = 1 << (heads.bit_length() - 1)
    slopes = [2.0 ** (-bias_max * k / power) for k in range(1, power + 1)]
    return slopes + [2.0 ** (-bias_max * k / (2 * power)) for k in range(1, 2 * (heads - power), 2)]


def distances(shape: Shape, device: torch.device) -> torch.Tensor:
    """`[queries, seqlen]`, how far each key lies before each query; the last query stands at the last key."""
    position = torch.arange(shape.seqlen, device=device)
    return position[-shape.queries :, None] - position[None, :]


def reference(inputs: Inputs, alibi: bool) -> torch.Tensor:
    """`softmax(scale q k^T - slope |i - j|) v` in float64, as q."""
    q, k, v = (x.double() for x in inputs.heads_first())
    group = inputs.shape.heads // inputs.shape.heads_k
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = inputs.scale * (q @ k.transpose(-1, -2))
    distance = distances(inputs.shape, q.device)
    if alibi:
        slopes = torch.tensor(alibi_slopes(inputs.shape.heads), dtype=torch.float64, device=q.device)
        scores -= slopes[:, None, None] * distance.abs()
    if inputs.shape.causal:
        scores.masked_fill_(distance < 0, float("-inf"))
    return (scores.softmax(-1) @ v).transpose(1, 2)
