// Copies pages of a cache, in the order in which the pairs are listed: a page may be copied from once it has been copied to.
// So each thread has 16 bytes of a page, of every pair: no thread waits for another.

#include "common/chunk.cuh"
#include "common/sequence.cuh"

namespace {

// Calls `copy` for each pair of pages that the cache has.
template <typename Copy>
__device__ void for_each_pair(const CopyPagesParams &p, Copy copy) {
    const int64_t *pairs = (const int64_t *)p.copies;
    for (int i = 0; i < p.count; ++i) {
        const int64_t from = pairs[2 * i], to = pairs[2 * i + 1];
        // Unsigned, so that a negative page is beyond the last too.
        if ((uint64_t)from < (uint64_t)p.pages && (uint64_t)to < (uint64_t)p.pages) copy(from, to);
    }
}

// Of K, then of V, and then the radii of the heads.
template <int THREADS>
__device__ void copy(const CopyPagesParams &p) {
    const int chunks = p.head_dim / CHUNK;
    const int64_t of_pool = (int64_t)p.page_size * p.heads_k * chunks;
    const int64_t thread = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (thread >= 2 * of_pool) {
        const int64_t head = thread - 2 * of_pool;
        if (!p.radii || head >= p.heads_k) return;
        float *radii = (float *)p.radii + head;
        for_each_pair(p, [&](int64_t from, int64_t to) { radii[to * p.heads_k] = radii[from * p.heads_k]; });
        return;
    }
    const bool of_values = thread >= of_pool;
    const uint64_t pool = of_values ? p.v_pages : p.k_pages;
    const TensorStrides &strides = of_values ? p.v_page_strides : p.k_page_strides;
    const int64_t index = of_values ? thread - of_pool : thread;
    const int column = index % chunks * CHUNK, head = index / chunks % p.heads_k;
    const int64_t in_page = index / chunks / p.heads_k;
    const bool whole = aligned(pool, strides);
    for_each_pair(p, [&](int64_t from, int64_t to) {
        copy_chunk(row<uint16_t>(pool, strides, to, in_page, head) + column,
                   row<const uint16_t>(pool, strides, from, in_page, head) + column, whole);
    });
}

}  // namespace

#define COPY_PAGES(ELEMENTS, THREADS)                                                                                   \
    extern "C" __global__ void __launch_bounds__(THREADS) copy_pages(const __grid_constant__ CopyPagesParams p) {       \
        static_assert(ELEMENTS == CHUNK, "a thread has a chunk");                                                       \
        copy<THREADS>(p);                                                                                               \
    }
#include "kernels.def"
