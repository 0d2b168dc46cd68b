// What a thread copies at once: 16 bytes of elements of 16 bits, whatever their type.

#pragma once

#include "params.h"

constexpr int CHUNK = 8;

// Whether all rows of a tensor begin at multiples of 16 bytes.
__device__ inline bool aligned(uint64_t tensor, const TensorStrides &strides) {
    return (tensor | (strides.batch | strides.row | strides.head) * sizeof(uint16_t)) % 16 == 0;
}

__device__ inline void copy_chunk(uint16_t *to, const uint16_t *from, bool aligned) {
    if (aligned) {
        *(uint4 *)to = *(const uint4 *)from;
    } else {
#pragma unroll
        for (int e = 0; e < CHUNK; ++e) to[e] = from[e];
    }
}

// The lanes that share a row of so many chunks: a power of two, so that no row has parts of two warps. Some may be idle.
__device__ inline int lanes_of(int chunks) { return chunks <= 1 ? 1 : 1 << (32 - __clz(chunks - 1)); }
