// What kernels must know of each other's tiles: looked up in kernels.def.

#pragma once

// The keys of a tile of the prefill kernel for this head dimension.
__host__ __device__ constexpr int prefill_keys(int head_dim) {
#define PREFILL(HEAD_DIM, ROWS, KEYS, BLOCKS, THREADS) \
    if (head_dim <= HEAD_DIM) return KEYS;
#include "kernels.def"
    return 0;
}
