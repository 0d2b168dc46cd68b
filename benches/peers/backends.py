"""The peers: how each is given the inputs and called."""

import functools
import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from measurement import Absent, Clock, Run, batch_differences, cuda_events
from reference import Inputs, alibi_slopes, distances


@dataclass(frozen=True)
class Prepared:
    """A peer that holds the inputs of one shape."""

    run: Run
    # The tensor `[batch, queries, heads, head_dim]` that `run` returned.
    output: Callable[[Any], torch.Tensor]
    clock: Clock = cuda_events


@dataclass(frozen=True)
class Backend:
    name: str
    alibi: bool
    prepare: Callable[[Inputs], Prepared]
    # Python packages whose versions are recorded.
    packages: tuple[str, ...] = ()


def heads_second(output: torch.Tensor) -> torch.Tensor:
    return output.transpose(1, 2)


def masked(inputs: Inputs) -> bool:
    """Whether there are keys after some query. PyTorch's causal mask is of the first queries, not of the last."""
    if inputs.shape.causal and 1 < inputs.shape.queries < inputs.shape.seqlen:
        raise Absent("a causal mask of several queries at the end of a cache is not tried")
    return inputs.shape.causal and inputs.shape.queries > 1


def prepare_sdpa(backend: SDPBackend, inputs: Inputs, bias: torch.Tensor | None = None) -> Prepared:
    q, k, v = inputs.heads_first()
    # A bias holds the causal mask itself: PyTorch takes one or the other. A single query at the end sees every key.
    causal = masked(inputs) and bias is None
    shared = inputs.shape.heads_k != inputs.shape.heads

    def run() -> torch.Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=causal, enable_gqa=shared)

    return Prepared(run, heads_second)


def bias_bytes(inputs: Inputs) -> int:
    """The bias, and what one head of it is made from."""
    shape = inputs.shape
    return shape.queries * shape.seqlen * (shape.heads * inputs.q.element_size() + 2 * 8)


def materialised_bias(inputs: Inputs) -> torch.Tensor:
    """`[batch, heads, queries, seqlen]` in the inputs' dtype, stored once for the batch, causal mask included."""
    shape = inputs.shape
    distance = distances(shape, inputs.q.device)
    bias = torch.empty(shape.heads, *distance.shape, device=inputs.q.device, dtype=inputs.q.dtype)
    for head, slope in zip(bias, alibi_slopes(shape.heads)):
        head.copy_(distance.abs() * -slope)
    if shape.causal:
        bias.masked_fill_(distance < 0, float("-inf"))
    return bias.expand(shape.batch, -1, -1, -1)


def prepare_sdpa_bias(inputs: Inputs) -> Prepared:
    free, _ = torch.cuda.mem_get_info()
    needed = bias_bytes(inputs)
    # What else the GPU holds, the output and ours among it, needs room too.
    if needed > 0.8 * free:
        raise Absent(f"the bias takes {needed / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free")
    return prepare_sdpa(SDPBackend.EFFICIENT_ATTENTION, inputs, materialised_bias(inputs))


def alibi_score_mod(slopes: torch.Tensor, first: int = 0) -> Callable[..., torch.Tensor]:
    """FlexAttention's `score_mod` that adds `-slope |i - j|`; the first query stands at key `first`."""

    def score_mod(score: torch.Tensor, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> torch.Tensor:
        return score - slopes[h] * (q_idx + first - kv_idx).abs()

    return score_mod


def causal_mask_mod(b: Any, h: Any, q_idx: torch.Tensor, kv_idx: torch.Tensor) -> torch.Tensor:
    return q_idx >= kv_idx


def prepare_flex(inputs: Inputs) -> Prepared:
    q, k, v = inputs.heads_first()
    shape, device = inputs.shape, inputs.q.device
    slopes = torch.tensor(alibi_slopes(shape.heads), dtype=torch.float32, device=device)
    score_mod = alibi_score_mod(slopes, shape.seqlen - shape.queries)
    block_mask = None
    if masked(inputs):
        block_mask = create_block_mask(causal_mask_mod, None, None, shape.seqlen, shape.seqlen, device=device)
    # Each shape is compiled for itself. Past Dynamo's limit of recompilations FlexAttention would run uncompiled.
    torch._dynamo.reset()
    compiled = torch.compile(flex_attention, fullgraph=True, dynamic=False)
    shared = shape.heads_k != shape.heads

    def run() -> torch.Tensor:
        return compiled(q, k, v, score_mod=score_mod, block_mask=block_mask, enable_gqa=shared)

    return Prepared(run, heads_second)


def cudnn_graph(cudnn: Any, handle: Any, inputs: Inputs, output: torch.Tensor) -> tuple[Any, dict[Any, torch.Tensor]]:
    """The graph, and which tensor is which of its nodes."""
    dtype = {torch.bfloat16: cudnn.data_type.BFLOAT16, torch.float16: cudnn.data_type.HALF}[output.dtype]
    graph = cudnn.pygraph(
        io_data_type=dtype,
        intermediate_data_type=cudnn.data_type.FLOAT,
        compute_data_type=cudnn.data_type.FLOAT,
        handle=handle,
    )
    tensors = inputs.heads_first()
    q, k, v = (graph.tensor(dim=list(x.shape), stride=list(x.stride()), data_type=dtype) for x in tensors)
    # cuDNN makes the slopes itself: 2^(-8k/n).
    out, _ = graph.sdpa(
        q=q, k=k, v=v, attn_scale=inputs.scale, generate_stats=False, use_causal_mask=True, use_alibi_mask=True
    )
    out.set_output(True).set_dim(list(output.shape)).set_stride(list(output.stride()))
    return graph, dict(zip((q, k, v, out), (*tensors, output)))


def prepare_cudnn(inputs: Inputs) -> Prepared:
    if not inputs.shape.causal:
        raise Absent("cuDNN takes its ALiBi mask with a causal mask only")
    if inputs.shape.decoding:
        raise Absent("cuDNN's ALiBi and causal masks count from the first query and key: a query at the end sees one key")
    cudnn = importlib.import_module("cudnn")
    handle = cudnn.create_handle()
    cudnn.set_stream(handle=handle, stream=torch.cuda.current_stream().cuda_stream)
    output = torch.empty_like(inputs.q).transpose(1, 2)
    graph, tensors = cudnn_graph(cudnn, handle, inputs, output)
    graph.build([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
    workspace = torch.empty(max(1, graph.get_workspace_size()), device=inputs.q.device, dtype=torch.uint8)

    def run() -> torch.Tensor:
        graph.execute(tensors, workspace, handle=handle)
        return output

    return Prepared(run, heads_second)


def prepare_flash3(module: str, head_dims: tuple[int, ...], inputs: Inputs) -> Prepared:
    """FlashAttention-3 from a wheel that calls it from JAX; JAX reads PyTorch's memory in place."""
    shape = inputs.shape
    if shape.head_dim not in head_dims:
        raise Absent(f"the wheel of {module} holds kernels of head_dim {head_dims} only")
    if torch.cuda.get_device_capability() != (9, 0):
        raise Absent("FlashAttention-3 runs on Hopper (compute capability 9.0) only")
    # JAX would otherwise take most of the GPU's memory at its first use.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    jax = importlib.import_module("jax")
    flash_mha = importlib.import_module(module).flash_mha
    torch.cuda.synchronize()
    q, k, v = (jax.dlpack.from_dlpack(x) for x in (inputs.q, inputs.k, inputs.v))
    attend = jax.jit(functools.partial(flash_mha, softmax_scale=inputs.scale, is_causal=masked(inputs)))
    return Prepared(
        run=lambda: attend(q, k, v),
        output=lambda out: torch.from_dlpack(jax.block_until_ready(out)),
        clock=lambda run, budget: batch_differences(run, jax.block_until_ready, budget),
    )


BACKENDS = (
    Backend("SDPA flash", False, functools.partial(prepare_sdpa, SDPBackend.FLASH_ATTENTION)),
    Backend("SDPA cuDNN", False, functools.partial(prepare_sdpa, SDPBackend.CUDNN_ATTENTION)),
    Backend("SDPA bias", True, prepare_sdpa_bias),
    Backend("Flex", True, prepare_flex, ("triton",)),
    Backend("cuDNN", True, prepare_cudnn, ("nvidia-cudnn-frontend", "nvidia-cudnn-cu13", "nvidia-cudnn-cu12")),
    Backend(
        "FA3 jax",
        False,
        functools.partial(prepare_flash3, "flash_attn3_jax", (128,)),
        ("flash-attn3-jax", "jax", "jaxlib", "jax-cuda13-plugin", "jax-cuda12-plugin"),
    ),
    Backend(
        "FA3 dew",
        False,
        functools.partial(prepare_flash3, "dew_flash_attn", (64, 128)),
        ("dew-flash-attn-cu13", "dew-flash-attn-cu12"),
    ),
)
