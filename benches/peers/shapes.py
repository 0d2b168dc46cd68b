"""The shapes that are timed: FlashAttention's own, 16384 tokens and a model width of 2048."""

from dataclasses import dataclass

import torch

TOKENS = 16384
WIDTH = 2048
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16}
HEAD_DIMS = (64, 128)
SEQLENS = (2048, 4096, 8192, 16384)
QUICK_SEQLENS = (2048, 8192)


@dataclass(frozen=True)
class Shape:
    """Self-attention over `batch` sequences of `seqlen` tokens."""

    dtype: str
    head_dim: int
    causal: bool
    seqlen: int
    batch: int
    heads: int

    @property
    def mask(self) -> str:
        return "causal" if self.causal else "full"

    @property
    def id(self) -> str:
        """The shape's name among the criterion benches."""
        return f"prefill/{self.dtype}/d{self.head_dim}/{self.mask}/{self.seqlen}"

    @property
    def flops(self) -> int:
        """What two matrix products take, half of it under a causal mask. ALiBi is never counted."""
        full = 4 * self.batch * self.heads * self.seqlen**2 * self.head_dim
        return full // 2 if self.causal else full

    def tflops(self, milliseconds: float) -> float:
        return self.flops / milliseconds / 1e9


def timed_shape(dtype: str, head_dim: int, causal: bool, seqlen: int) -> Shape:
    return Shape(dtype, head_dim, causal, seqlen, max(1, TOKENS // seqlen), WIDTH // head_dim)


def timed_shapes(dtype: str, quick: bool) -> list[Shape]:
    seqlens = QUICK_SEQLENS if quick else SEQLENS
    return [
        timed_shape(dtype, head_dim, causal, seqlen)
        for head_dim in HEAD_DIMS
        for causal in (True, False)
        for seqlen in seqlens
    ]


def checked_shapes(dtype: str) -> list[Shape]:
    """Small enough for the float64 reference."""
    return [
        Shape(dtype, head_dim, causal, seqlen=512, batch=2, heads=WIDTH // head_dim)
        for head_dim in HEAD_DIMS
        for causal in (True, False)
    ]
