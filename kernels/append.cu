// Writes the keys and values of new tokens into the pages of a cache: 16 bytes a thread.

#include "sequence.cuh"

namespace {

constexpr int THREADS = 256;
constexpr int CHUNK = 8;

__device__ bool aligned(uint64_t tensor, const TensorStrides &strides) {
    return (tensor | (strides.batch | strides.row | strides.head) * sizeof(uint16_t)) % 16 == 0;
}

__device__ void copy_chunk(uint16_t *to, const uint16_t *from, bool aligned) {
    if (aligned) {
        *(uint4 *)to = *(const uint4 *)from;
    } else {
#pragma unroll
        for (int e = 0; e < CHUNK; ++e) to[e] = from[e];
    }
}

}  // namespace

// Elements of 16 bits, of whatever type.
extern "C" __global__ void __launch_bounds__(THREADS) append(const __grid_constant__ AppendParams p) {
    const int chunks = p.head_dim / CHUNK;
    const int64_t index = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    const int column = index % chunks * CHUNK, head = index / chunks % p.heads_k;
    const int64_t token = index / chunks / p.heads_k;
    if (token >= p.tokens) return;
    const int64_t slot = ((const int64_t *)p.slot_mapping)[token];
    // Unsigned, so that a negative slot is beyond the last too.
    if ((uint64_t)slot >= (uint64_t)(p.pages * p.page_size)) return;
    const int64_t page = slot / p.page_size, within = slot % p.page_size;
    copy_chunk(row<uint16_t>(p.k_pages, p.k_page_strides, page, within, head) + column,
               row<const uint16_t>(p.k, p.k_strides, 0, token, head) + column,
               aligned(p.k_pages, p.k_page_strides) && aligned(p.k, p.k_strides));
    copy_chunk(row<uint16_t>(p.v_pages, p.v_page_strides, page, within, head) + column,
               row<const uint16_t>(p.v, p.v_strides, 0, token, head) + column,
               aligned(p.v_pages, p.v_page_strides) && aligned(p.v, p.v_strides));
}
