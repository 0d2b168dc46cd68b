"""What is timed: suites of shapes, and which of our benches time them too."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

TOKENS = 16384
WIDTH = 2048
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16}
HEAD_DIMS = (64, 128)
SEQLENS = (2048, 4096, 8192, 16384)
QUICK_SEQLENS = (2048, 8192)
CONTEXTS = tuple(2**power for power in range(12, 21))
QUICK_CONTEXTS = (4096, 16384, 65536)
# Query heads, key heads and head_dim: BLOOM-7b1 and MPT-7B, a model with 4 heads a group, Falcon-7B.
DECODE_LAYERS = ((32, 32, 128), (32, 8, 128), (71, 1, 64))
DECODE_BATCHES = (1, 8, 64)
DECODE_KEYS = (1024, 4096, 16384, 65536, 131072)
QUICK_DECODE_KEYS = (4096, 65536)
# What the caches of a shape take at most.
CACHE_BYTES = 16 << 30

OURS = "ours"
# Of as many bytes as the caches have, half of them read and half written.
COPY = "copy"


@dataclass(frozen=True)
class Shape:
    """Attention of `batch` sequences of `seqlen` tokens, of which the last `queries` ask."""

    dtype: str
    head_dim: int
    causal: bool
    seqlen: int
    batch: int
    heads: int
    heads_k: int
    queries: int

    @property
    def decoding(self) -> bool:
        return self.queries < self.seqlen

    @property
    def panel(self) -> str:
        """What shapes have in common that differ in `seqlen` alone."""
        if self.decoding:
            return f"{self.heads} heads over {self.heads_k}, head_dim {self.head_dim}, batch {self.batch}"
        return f"head_dim {self.head_dim}, {'causal' if self.causal else 'full'}"

    @property
    def benches(self) -> dict[str, str]:
        """Our contenders, by what they are called, and their names among the criterion benches."""
        if self.decoding:
            group, row = f"decode/{self.dtype}/{self.heads}q{self.heads_k}k/d{self.head_dim}", f"{self.batch}x{self.seqlen}"
            names = {OURS: "contiguous", "ours paged": "paged", "ours horizon": "horizon", COPY: COPY}
            return {contender: f"{group}/{name}/{row}" for contender, name in names.items()}
        group = f"prefill/{self.dtype}/d{self.head_dim}/{'causal' if self.causal else 'full'}"
        return {OURS: f"{group}/{self.seqlen}", "ours horizon": f"{group}/horizon/{self.seqlen}"}

    @property
    def id(self) -> str:
        return self.benches[OURS]

    @property
    def flops(self) -> int:
        """Of prefill: what two matrix products take, half of it under a causal mask. ALiBi is never counted."""
        full = 4 * self.batch * self.heads * self.seqlen**2 * self.head_dim
        return full // 2 if self.causal else full

    @property
    def cache_bytes(self) -> int:
        return 2 * 2 * self.batch * self.seqlen * self.heads_k * self.head_dim

    @property
    def tensor_bytes(self) -> int:
        """q, k, v and out."""
        return self.cache_bytes + 2 * 2 * self.batch * self.queries * self.heads * self.head_dim

    def rate(self, milliseconds: float) -> float:
        """TFLOP/s of prefill; GB/s of the caches, each byte once, of decoding."""
        return self.cache_bytes / milliseconds / 1e6 if self.decoding else self.flops / milliseconds / 1e9


def prefill_shape(dtype: str, head_dim: int, causal: bool, seqlen: int) -> Shape:
    heads = WIDTH // head_dim
    return Shape(dtype, head_dim, causal, seqlen, max(1, TOKENS // seqlen), heads, heads, seqlen)


def prefill_shapes(dtype: str, quick: bool) -> list[Shape]:
    return [
        prefill_shape(dtype, head_dim, causal, seqlen)
        for head_dim in HEAD_DIMS
        for causal in (True, False)
        for seqlen in (QUICK_SEQLENS if quick else SEQLENS)
    ]


def context_shapes(dtype: str, quick: bool) -> list[Shape]:
    return [prefill_shape(dtype, 128, True, seqlen) for seqlen in (QUICK_CONTEXTS if quick else CONTEXTS)]


def decode_shapes(dtype: str, quick: bool) -> list[Shape]:
    shapes = [
        Shape(dtype, head_dim, True, keys, batch, heads, heads_k, queries=1)
        for heads, heads_k, head_dim in DECODE_LAYERS
        for batch in DECODE_BATCHES
        for keys in (QUICK_DECODE_KEYS if quick else DECODE_KEYS)
    ]
    return [shape for shape in shapes if shape.cache_bytes <= CACHE_BYTES]


def checked_prefill(dtype: str) -> list[Shape]:
    """Small enough for the float64 reference."""
    return [
        Shape(dtype, head_dim, causal, 512, 2, WIDTH // head_dim, WIDTH // head_dim, queries=512)
        for head_dim in HEAD_DIMS
        for causal in (True, False)
    ]


def checked_decode(dtype: str) -> list[Shape]:
    return [
        Shape(dtype, head_dim, True, 512, 2, heads, heads_k, queries=1) for heads, heads_k, head_dim in DECODE_LAYERS
    ]


@dataclass(frozen=True)
class Suite:
    """Shapes of one kind, whose figures have one unit."""

    title: str
    unit: str
    # Whether a plot shows times; rates otherwise.
    plots_time: bool
    timed: Callable[[str, bool], list[Shape]]
    checked: Callable[[str], list[Shape]]


SUITES = {
    "prefill": Suite("Attention forward", "TFLOP/s", False, prefill_shapes, checked_prefill),
    "contexts": Suite("Causal attention forward", "TFLOP/s", True, context_shapes, checked_prefill),
    "decode": Suite("Decoding one token", "GB/s", False, decode_shapes, checked_decode),
}
