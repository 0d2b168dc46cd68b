// Merges attention over other keys into a result, in place: src/merge.rs has the formulas and what they do at the edges. Some
// lanes of a warp have a row of a head, each 16 bytes of it.

#include "common/chunk.cuh"
#include "common/row.cuh"

namespace {

template <typename T, int THREADS>
__device__ void merge(const MergeStateParams &p) {
    const int chunks = p.head_dim / CHUNK, lanes = lanes_of(chunks);
    const int64_t index = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    const int chunk = index % lanes, head = index / lanes % p.heads_q;
    const int64_t of_all = index / lanes / p.heads_q, batch = of_all / p.rows, i = of_all % p.rows;
    const bool exists = batch < p.batch;
    float *lse = (float *)p.lse + (batch * p.heads_q + head) * p.rows + i;
    const float ours = exists ? *lse : -INFINITY;
    const float theirs = exists ? ((const float *)p.other_lse)[(batch * p.heads_q + head) * p.rows + i] : -INFINITY;
    // All lanes of a row have read its lse before one of them writes it.
    __syncwarp();
    if (!exists || chunk >= chunks) return;

    T *out = row<T>(p.out, p.out_strides, batch, i, head) + chunk * CHUNK;
    const T *other = row<const T>(p.other_out, p.other_out_strides, batch, i, head) + chunk * CHUNK;
    const bool whole = aligned(p.out, p.out_strides) && aligned(p.other_out, p.other_out_strides);
    if (theirs == -INFINITY) {
        // Two rows that have seen no key are one that has seen none.
        const T zeros[CHUNK] = {};
        if (ours == -INFINITY) copy_chunk((uint16_t *)out, (const uint16_t *)zeros, false);
        return;
    }
    if (ours == -INFINITY) {
        copy_chunk((uint16_t *)out, (const uint16_t *)other, whole);
        if (chunk == 0) *lse = theirs;
        return;
    }
    // Products and sums are rounded one by one, so that either order of the two gives the same bits.
    const float largest = fmaxf(ours, theirs);
    float weight = expf(ours - largest), other_weight = expf(theirs - largest);
    const float sum = __fadd_rn(weight, other_weight);
    weight /= sum;
    other_weight /= sum;
    __align__(16) T x[CHUNK], y[CHUNK];
    copy_chunk((uint16_t *)x, (const uint16_t *)out, whole);
    copy_chunk((uint16_t *)y, (const uint16_t *)other, whole);
#pragma unroll
    for (int e = 0; e < CHUNK; ++e) {
        narrow(__fadd_rn(__fmul_rn(weight, widen(x[e])), __fmul_rn(other_weight, widen(y[e]))), &x[e]);
    }
    copy_chunk((uint16_t *)out, (const uint16_t *)x, whole);
    if (chunk == 0) *lse = largest + logf(sum);
}

}  // namespace

#define MERGE_STATE_OF(NAME, T, ELEMENTS, THREADS)                                                                       \
    extern "C" __global__ void __launch_bounds__(THREADS) merge_state_##NAME(const __grid_constant__ MergeStateParams p) { \
        static_assert(ELEMENTS == CHUNK, "a thread has a chunk");                                                        \
        merge<T, THREADS>(p);                                                                                            \
    }
#define MERGE_STATE(...) FOR_EACH_ELEMENT(MERGE_STATE_OF, __VA_ARGS__)
#include "kernels.def"
