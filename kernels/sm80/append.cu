// Writes the keys and values of new tokens into the pages of a cache: 16 bytes a thread. Where the cache has radii, they are
// kept: the largest distance of a page's keys from a centre.

#include "common/chunk.cuh"
#include "common/horizon.cuh"
#include "common/row.cuh"

namespace {

// Where a token goes.
struct Slot {
    int64_t page, row;
    bool exists;

    __device__ Slot(const AppendParams &p, int64_t token) {
        const int64_t slot = token < p.tokens ? ((const int64_t *)p.slot_mapping)[token] : -1;
        // Unsigned, so that a negative slot is beyond the last too.
        exists = (uint64_t)slot < (uint64_t)(p.pages * p.page_size);
        page = slot / p.page_size;
        row = slot % p.page_size;
    }
};

// Copies the elements of a token's head from `column` on.
__device__ void copy_token(const AppendParams &p, int64_t token, const Slot &slot, int head, int column) {
    copy_chunk(row<uint16_t>(p.k_pages, p.k_page_strides, slot.page, slot.row, head) + column,
               row<const uint16_t>(p.k, p.k_strides, 0, token, head) + column,
               aligned(p.k_pages, p.k_page_strides) && aligned(p.k, p.k_strides));
    copy_chunk(row<uint16_t>(p.v_pages, p.v_page_strides, slot.page, slot.row, head) + column,
               row<const uint16_t>(p.v, p.v_strides, 0, token, head) + column,
               aligned(p.v_pages, p.v_page_strides) && aligned(p.v, p.v_strides));
}

__device__ float *radius_of(const AppendParams &p, const Slot &slot, int head) {
    return (float *)p.radii + slot.page * p.heads_k + head;
}

// As `append`, and raises radii.
template <typename T, int THREADS>
__device__ void append_and_raise(const AppendParams &p) {
    const int chunks = p.head_dim / CHUNK, lanes = lanes_of(chunks);
    const int64_t index = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    const int chunk = index % lanes, column = chunk * CHUNK, head = index / lanes % p.heads_k;
    const int64_t token = index / lanes / p.heads_k;
    const Slot slot(p, token);
    float squares = 0;
    if (slot.exists && chunk < chunks) {
        copy_token(p, token, slot, head, column);
        const T *key = row<const T>(p.k, p.k_strides, 0, token, head) + column;
        const float *centre = (const float *)p.centres + (int64_t)head * p.head_dim + column;
#pragma unroll
        for (int e = 0; e < CHUNK; ++e) {
            const float x = widen(key[e]) - centre[e];
            squares = fmaf(x, x, squares);
        }
    }
    for (int step = lanes / 2; step > 0; step /= 2) squares += __shfl_xor_sync(0xffffffff, squares, step);
    if (slot.exists && chunk == 0) {
        // Bits of numbers that are not negative are ordered as they are, and those of NaN are the largest.
        atomicMax((uint32_t *)radius_of(p, slot, head), __float_as_uint(norm_above(squares)));
    }
}

// Copies only.
template <int THREADS>
__device__ void append_chunk(const AppendParams &p) {
    const int chunks = p.head_dim / CHUNK;
    const int64_t index = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    const int column = index % chunks * CHUNK, head = index / chunks % p.heads_k;
    const int64_t token = index / chunks / p.heads_k;
    const Slot slot(p, token);
    if (slot.exists) copy_token(p, token, slot, head, column);
}

// A page is filled from its first row on: whoever writes that begins it anew. Before any radius is raised.
template <int THREADS>
__device__ void restart(const AppendParams &p) {
    const int64_t index = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    const Slot slot(p, index / p.heads_k);
    if (slot.exists && slot.row == 0) *radius_of(p, slot, index % p.heads_k) = 0;
}

}  // namespace

#define APPEND(ELEMENTS, THREADS)                                                                                   \
    extern "C" __global__ void __launch_bounds__(THREADS) append(const __grid_constant__ AppendParams p) {          \
        static_assert(ELEMENTS == CHUNK, "a thread has a chunk");                                                   \
        append_chunk<THREADS>(p);                                                                                   \
    }

#define RESTART_RADII(THREADS)                                                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS) restart_radii(const __grid_constant__ AppendParams p) {   \
        restart<THREADS>(p);                                                                                        \
    }

#define RAISE_RADII_OF(NAME, T, ELEMENTS, THREADS)                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS) append_##NAME(const __grid_constant__ AppendParams p) {   \
        static_assert(ELEMENTS == CHUNK, "a thread has a chunk");                                                   \
        append_and_raise<T, THREADS>(p);                                                                            \
    }
#define RAISE_RADII(...) FOR_EACH_ELEMENT(RAISE_RADII_OF, __VA_ARGS__)
#include "kernels.def"
