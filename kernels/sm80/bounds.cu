// What the horizon of the prefill kernel needs to know of keys: a centre of each head, and how far from it the keys of each
// tile are. K is read once; not at all where it lies in a cache that keeps radii.

#include "common/chunk.cuh"
#include "common/horizon.cuh"
#include "common/row.cuh"
#include "table.cuh"

namespace {

// Keys whose mean is the centre. Any vector is a centre.
constexpr int SAMPLE = 256;

// The keys of a sequence and key head.
template <typename T>
struct Keys {
    const AttentionParams &p;
    int batch, head_k;
    Sequence s;
    Seen seen;

    __device__ Keys(const AttentionParams &p, int index)
        : p(p), batch(index / heads(p)), head_k(index % heads(p)), s(sequence(p, batch)), seen(p, s) {}

    __device__ static int heads(const AttentionParams &p) { return p.heads_q / p.group; }

    // The centre of the head, and the radii of its tiles.
    __device__ float *centre() const { return (float *)p.centres + ((int64_t)batch * heads(p) + head_k) * p.head_dim; }
    __device__ float *radii() const { return (float *)p.radii + ((int64_t)batch * heads(p) + head_k) * 3 * p.tiles; }

    __device__ void read(int key, int column, float (&x)[CHUNK]) const {
        const Place at = place(p, s, batch, key);
        const T *from = row<const T>(p.k, p.k_strides, at.entry, at.row, head_k) + column;
        T chunk[CHUNK];
        if ((uint64_t)from % 16 == 0) {
            *(uint4 *)chunk = *(const uint4 *)from;
        } else {
#pragma unroll
            for (int e = 0; e < CHUNK; ++e) chunk[e] = from[e];
        }
#pragma unroll
        for (int e = 0; e < CHUNK; ++e) x[e] = widen(chunk[e]);
    }
};

// The mean of some keys, all over the sequence: a block a key head.
template <typename T, int THREADS>
__device__ void centre(const AttentionParams &p) {
    const Keys<T> keys(p, blockIdx.x);
    if (!keys.seen.enough()) return;
    const int chunks = p.head_dim / CHUNK, groups = THREADS / chunks;
    const int chunk = threadIdx.x % chunks, group = threadIdx.x / chunks;
    const int stride = (keys.seen.end - keys.seen.begin + SAMPLE - 1) / SAMPLE;
    const int count = (keys.seen.end - keys.seen.begin + stride - 1) / stride;
    float sum[CHUNK] = {};
    if (group < groups) {
        for (int j = keys.seen.begin + group * stride; j < keys.seen.end; j += groups * stride) {
            float x[CHUNK];
            keys.read(j, chunk * CHUNK, x);
#pragma unroll
            for (int e = 0; e < CHUNK; ++e) sum[e] += x[e];
        }
    }
    __shared__ float sums[THREADS][CHUNK + 1];
#pragma unroll
    for (int e = 0; e < CHUNK; ++e) sums[threadIdx.x][e] = sum[e];
    __syncthreads();
    for (int column = threadIdx.x; column < p.head_dim; column += THREADS) {
        float total = 0;
        for (int g = 0; g < groups; ++g) total += sums[g * chunks + column / CHUNK][column % CHUNK];
        keys.centre()[column] = total / count;
    }
}

// How far from the centre the keys of a tile are: a block a tile.
template <typename T, int THREADS>
__device__ void radius(const AttentionParams &p) {
    const int tile = blockIdx.x % p.tiles;
    const Keys<T> keys(p, blockIdx.x / p.tiles);
    if (!keys.seen.enough()) return;
    const int width = prefill_keys(p.head_dim);
    const int first = max(tile * width, keys.seen.begin), end = min((tile + 1) * width, keys.seen.end);
    // So many lanes have a key: a power of two.
    const int chunks = p.head_dim / CHUNK, lanes = lanes_of(chunks);
    const int chunk = threadIdx.x % lanes, at_once = THREADS / lanes;
    float c[CHUNK] = {};
    if (chunk < chunks) {
#pragma unroll
        for (int e = 0; e < CHUNK; ++e) c[e] = keys.centre()[chunk * CHUNK + e];
    }
    float largest = 0;
    for (int j = first; j < end; j += at_once) {
        const int key = j + threadIdx.x / lanes;
        float sum = 0;
        if (key < end && chunk < chunks) {
            float x[CHUNK];
            keys.read(key, chunk * CHUNK, x);
#pragma unroll
            for (int e = 0; e < CHUNK; ++e) sum = fmaf(x[e] - c[e], x[e] - c[e], sum);
        }
        for (int step = lanes / 2; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffff, sum, step);
        largest = max_or_nan(largest, norm_above(sum));
    }
    constexpr int WARPS = THREADS / WARP;
    __shared__ float of_warp[WARPS];
    for (int step = WARP / 2; step > 0; step /= 2) {
        largest = max_or_nan(largest, __shfl_xor_sync(0xffffffff, largest, step));
    }
    if (threadIdx.x % WARP == 0) of_warp[threadIdx.x / WARP] = largest;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int w = 1; w < WARPS; ++w) largest = max_or_nan(largest, of_warp[w]);
        keys.radii()[tile] = largest;
    }
}

// The largest of `x` in this thread and those before it.
__device__ float running_max(float x, float *of_warp) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    for (int step = 1; step < WARP; step *= 2) {
        const float other = __shfl_up_sync(0xffffffff, x, step);
        if (lane >= step) x = max_or_nan(x, other);
    }
    __syncthreads();
    if (lane == WARP - 1) of_warp[warp] = x;
    __syncthreads();
    for (int w = 0; w < warp; ++w) x = max_or_nan(x, of_warp[w]);
    return x;
}

// What `centres` and `radii` make, from what a cache keeps: a thread a tile.
template <int THREADS>
__device__ void take_radii_of_pages(const AttentionParams &p) {
    const int heads_k = p.heads_q / p.group, blocks = (p.tiles + THREADS - 1) / THREADS;
    const int index = blockIdx.x / blocks, batch = index / heads_k, head_k = index % heads_k;
    const Sequence s = sequence(p, batch);
    const Seen seen(p, s);
    if (!seen.enough()) return;
    const int tile = blockIdx.x % blocks * THREADS + threadIdx.x, width = prefill_keys(p.head_dim);
    if (tile < p.tiles) {
        const int first = max(tile * width, seen.begin), end = min((tile + 1) * width, seen.end);
        ((float *)p.radii)[(int64_t)index * 3 * p.tiles + tile] = radius_of_pages(p, s, batch, head_k, first, end);
    }
    if (blockIdx.x % blocks != 0) return;
    for (int column = threadIdx.x; column < p.head_dim; column += THREADS) {
        const float centre = ((const float *)p.cache_centres)[(int64_t)head_k * p.head_dim + column];
        ((float *)p.centres)[(int64_t)index * p.head_dim + column] = centre;
    }
}

// The largest radii of a tile and all before it, and of a tile and all after it: a block a key head. The first of a sequence's
// blocks also orders its heads: those that reach farthest first, since they take longest.
template <int THREADS>
__device__ void find_farther_radii(const AttentionParams &p) {
    __shared__ float of_warp[THREADS / WARP];
    const int heads_k = p.heads_q / p.group, batch = blockIdx.x / heads_k;
    float *radii = (float *)p.radii + (int64_t)blockIdx.x * 3 * p.tiles;
    const int tiles = Seen(p, sequence(p, batch)).enough() ? p.tiles : 0;
    // A tile for each thread at a time; thread 0 also has what came before.
    for (int side = 0; side < 2; ++side) {
        float carried = 0;
        for (int first = 0; first < tiles; first += THREADS) {
            const int i = first + threadIdx.x, tile = side == 0 ? i : tiles - 1 - i;
            float x = i < tiles ? radii[tile] : 0;
            if (threadIdx.x == 0) x = max_or_nan(x, carried);
            x = running_max(x, of_warp);
            if (i < tiles) radii[(1 + side) * p.tiles + tile] = x;
            __syncthreads();
            if (threadIdx.x == THREADS - 1) of_warp[0] = x;
            __syncthreads();
            carried = of_warp[0];
            __syncthreads();
        }
    }
    if (blockIdx.x % heads_k != 0) return;
    // As integers: every number has a place.
    const int32_t *slopes = (const int32_t *)p.slopes + batch * p.slopes_batch_stride;
    for (int head = threadIdx.x; head < p.heads_q; head += THREADS) {
        int rank = 0;
        for (int other = 0; other < p.heads_q; ++other) {
            rank += slopes[other] < slopes[head] || (slopes[other] == slopes[head] && other < head);
        }
        ((int32_t *)p.order)[(int64_t)batch * p.heads_q + rank] = head;
    }
}

}  // namespace

#define CENTRES_OF(NAME, T, THREADS)                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS) centres_##NAME(const __grid_constant__ AttentionParams p) { \
        centre<T, THREADS>(p);                                                                                        \
    }
#define CENTRES(...) FOR_EACH_ELEMENT(CENTRES_OF, __VA_ARGS__)

#define TILE_RADII_OF(NAME, T, THREADS)                                                                               \
    extern "C" __global__ void __launch_bounds__(THREADS) radii_##NAME(const __grid_constant__ AttentionParams p) {   \
        radius<T, THREADS>(p);                                                                                        \
    }
#define TILE_RADII(...) FOR_EACH_ELEMENT(TILE_RADII_OF, __VA_ARGS__)

#define PAGE_RADII(THREADS)                                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS) radii_of_pages(const __grid_constant__ AttentionParams p) { \
        take_radii_of_pages<THREADS>(p);                                                                                   \
    }

#define FARTHER_RADII(THREADS)                                                                                        \
    extern "C" __global__ void __launch_bounds__(THREADS) farther_radii(const __grid_constant__ AttentionParams p) {  \
        find_farther_radii<THREADS>(p);                                                                                    \
    }
#include "kernels.def"
