"""Attention as it is defined, in float64, and the inputs that it and the peers are given."""

from dataclasses import dataclass

import torch

from shapes import DTYPES, Shape


@dataclass(frozen=True)
class Inputs:
    """q, k and v of one shape, each `[batch, seqlen, heads, head_dim]`."""

    shape: Shape
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor

    @property
    def scale(self) -> float:
        return self.shape.head_dim**-0.5

    def heads_first(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Views `[batch, heads, seqlen, head_dim]`, as PyTorch's functions take them."""
        q, k, v = (x.transpose(1, 2) for x in (self.q, self.k, self.v))
        return q, k, v


def make_inputs(shape: Shape, device: str, seed: int = 0) -> Inputs:
    generator = torch.Generator(device).manual_seed(seed)
    size = (shape.batch, shape.seqlen, shape.heads, shape.head_dim)
    q, k, v = (torch.randn(size, generator=generator, device=device, dtype=DTYPES[shape.dtype]) for _ in range(3))
    return Inputs(shape, q, k, v)


def alibi_slopes(heads: int) -> list[float]:
    """`2^(-8k/n)` for `k = 1..=n`, of a head count that is a power of two."""
    if heads < 1 or heads & (heads - 1):
        raise ValueError(f"heads is {heads}, expected a power of two")
    return [2.0 ** (-8 * k / heads) for k in range(1, heads + 1)]


def reference(inputs: Inputs, alibi: bool) -> torch.Tensor:
    """`softmax(scale q k^T - slope |i - j|) v` in float64, `[batch, seqlen, heads, head_dim]`."""
    q, k, v = (x.double() for x in inputs.heads_first())
    scores = inputs.scale * (q @ k.transpose(-1, -2))
    position = torch.arange(inputs.shape.seqlen, device=q.device)
    distance = position[:, None] - position[None, :]
    if alibi:
        slopes = torch.tensor(alibi_slopes(inputs.shape.heads), dtype=torch.float64, device=q.device)
        scores -= slopes[:, None, None] * distance.abs()
    if inputs.shape.causal:
        scores.masked_fill_(distance < 0, float("-inf"))
    return (scores.softmax(-1) @ v).transpose(1, 2)
