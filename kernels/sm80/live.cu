// Which tiles of a paged cache may change the result of each block of rows that decode.cu has: the certified horizon, from
// the radii of the pages.
//
// A block has the rows of a block of decode.cu. Tiles in which a row stands are live. Others are compared, by all threads at
// once, with the largest score of the keys nearest to a row, a warp's worth: what has that is never left out, since what
// bounds a tile is at least each of its scores.

#include "common/horizon.cuh"
#include "common/row.cuh"
#include "live.cuh"
#include "tile.cuh"

#include <new>

namespace {

__device__ float max_of_warp(float x) {
    for (int step = WARP / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, step));
    return x;
}

// ROWS: of a block of decode.cu. In shared memory, so that it takes no registers.
template <typename T, int ROWS, int KEYS, int THREADS>
struct Live {
    static constexpr int WARPS = THREADS / WARP;

    // What tiles are tested with.
    struct Row {
        RowBound bound;
        Budget budget;
        // `max` is the exponent of a key. With infinity no tile is needed, with NaN every one.
        float slope_log2, max;
        // The visible key that is nearest to the row, from which distances count.
        int nearest;
    };

    const AttentionParams &p;
    int batch, head_k, first_r, last_r;
    Sequence s;
    Span span;
    // Tiles that rows see, and those in which rows stand.
    int first_tile, last_tile, first_kept, last_kept;

    __device__ explicit Live(const AttentionParams &p) : p(p) {
        const int heads_k = p.heads_q / p.group, blocks = (p.seqlen_q * p.group + ROWS - 1) / ROWS;
        first_r = blockIdx.x % blocks * ROWS;
        head_k = blockIdx.x / blocks % heads_k;
        batch = blockIdx.x / blocks / heads_k;
        s = sequence(p, batch);
        last_r = min(first_r + ROWS, s.seqlen_q * p.group) - 1;
        span = Span(s, first_r / p.group, last_r / p.group);
        first_tile = span.begin() / KEYS;
        last_tile = (span.end() - 1) / KEYS;
        first_kept = nearest(span.first_position) / KEYS;
        last_kept = nearest(span.last_position) / KEYS;
    }

    __device__ bool sees_keys() const { return first_r <= last_r && span.begin() < span.end(); }

    // The key that is nearest to a row that stands there.
    __device__ int nearest(int position) const { return clamp(position, s.leftpad_k, s.seqlen_k - 1); }

    // The largest of the pages that hold keys of the tile.
    __device__ float radius(int tile) const {
        const int first = max(tile * KEYS, span.begin()), end = min((tile + 1) * KEYS, span.end());
        return radius_of_pages(p, s, batch, head_k, first, end);
    }

    // Of all tiles.
    __device__ float largest_radius() const {
        __shared__ uint32_t largest;
        if (threadIdx.x == 0) largest = 0;
        __syncthreads();
        float of_thread = 0;
        for (int tile = first_tile + threadIdx.x; tile <= last_tile; tile += THREADS) {
            of_thread = max_or_nan(of_thread, radius(tile));
        }
        atomicMax(&largest, __float_as_uint(of_thread));
        __syncthreads();
        return __uint_as_float(largest);
    }

    // A warp looks at row r: what bounds its scores, and what it keeps.
    __device__ Row row_of(int r, float largest_radius) const {
        __shared__ float q_of_warp[WARPS][MAX_HEAD_DIM];
        const int lane = threadIdx.x % WARP, i = r / p.group, head = head_k * p.group + r % p.group;
        float *q = q_of_warp[threadIdx.x / WARP];
        const T *q_row = row<const T>(p.q, p.q_strides, batch, s.first_q + i, head);
        const float *centre = (const float *)p.cache_centres + (int64_t)head_k * p.head_dim;
        float dot = 0, q_squares = 0, centre_squares = 0;
        for (int c = lane; c < p.head_dim; c += WARP) {
            q[c] = widen(q_row[c]);
            dot = fmaf(q[c], centre[c], dot);
            q_squares = fmaf(q[c], q[c], q_squares);
            centre_squares = fmaf(centre[c], centre[c], centre_squares);
        }
        __syncwarp();
        const float key_norm = norm_above(sum_over_warp(centre_squares)) + largest_radius;

        Row row;
        const Alibi alibi(p, batch, head);
        const int sides = (first_tile < first_kept) + (last_kept < last_tile);
        row.bound = RowBound(p, sum_over_warp(dot), norm_above(sum_over_warp(q_squares)), key_norm, 0);
        row.budget = Budget(p, alibi, max(sides, 1), KEYS);
        row.slope_log2 = alibi.slope_log2;
        const Visible seen = visible(s, i);
        row.nearest = nearest_key(s, i);
        const int key = max(seen.first, row.nearest - (WARP - 1)) + lane;
        row.max = has_horizon(p, alibi) ? max_of_warp(exponent(q, alibi, row.nearest, key)) : NAN;
        if (seen.first > seen.last) {
            // Whatever q is.
            row.bound.centre = row.bound.reach = row.bound.slack = 0;
            row.max = INFINITY;
        }
        __syncwarp();
        return row;
    }

    // At most that of the key; nothing of keys after the nearest.
    __device__ float exponent(const float *q, const Alibi &alibi, int nearest, int key) const {
        if (key > nearest) return -INFINITY;
        const Place at = place(p, s, batch, key);
        const T *k_row = row<const T>(p.k, p.k_strides, at.entry, at.row, head_k);
        const bool aligned = (uint64_t)k_row % 16 == 0;
        float dot = 0;
        for (int c = 0; c < p.head_dim; c += 8) {
            const uint4 chunk = aligned ? *(const uint4 *)(k_row + c) : Copy<T, 64, THREADS>::gather(k_row + c);
#pragma unroll
            for (int e = 0; e < 8; ++e) dot = fmaf(q[c + e], widen(((const T *)&chunk)[e]), dot);
        }
        float score = p.scale * dot;
        if (p.softcap > 0) score = p.softcap * tanhf(score / p.softcap);
        return fmaf(score, LOG2_E, -alibi.slope_log2 * (float)(nearest - key) * (1 + 0x1p-21f));
    }

    // Adds the live ones of `tiles` on one side to a list of `count`, first the farthest; returns the new count. The t-th is
    // t `step`s after `kept`.
    __device__ int add_side(const Row *rows, int kept, int step, int tiles, int32_t *list, int count) const {
        __shared__ float maxima[WARPS];
        __shared__ int counts[WARPS];
        const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
        // The largest radius of those farther.
        float passed = 0;
        for (int done = 0; done < tiles; done += THREADS) {
            const int t = tiles - done - (int)threadIdx.x, tile = kept + step * t;
            const float radius = t > 0 ? this->radius(tile) : 0;
            float farther = radius;
            for (int other = 1; other < WARP; other *= 2) {
                const float x = __shfl_up_sync(0xffffffff, farther, other);
                if (lane >= other) farther = max_or_nan(farther, x);
            }
            if (lane == WARP - 1) maxima[warp] = farther;
            __syncthreads();
            farther = max_or_nan(farther, passed);
            for (int w = 0; w < WARPS; ++w) {
                if (w < warp) farther = max_or_nan(farther, maxima[w]);
                passed = max_or_nan(passed, maxima[w]);
            }

            const bool live = t > 0 && !all_prune(rows, tile, step, t, radius, farther);
            const uint32_t live_of_warp = __ballot_sync(0xffffffff, live);
            if (lane == 0) counts[warp] = __popc(live_of_warp);
            __syncthreads();
            int at = count + __popc(live_of_warp & ((1u << lane) - 1));
            for (int w = 0; w < WARPS; ++w) {
                if (w < warp) at += counts[w];
                count += counts[w];
            }
            if (live) list[at] = tile;
        }
        return count;
    }

    // Whether no row needs the tile: the theorem's (A) or (B), each false for NaN.
    __device__ bool all_prune(const Row *rows, int tile, int step, int t, float radius, float farther) const {
        // Its nearest key.
        const int key = tile * KEYS + (step < 0 ? KEYS - 1 : 0);
        for (int r = 0; r <= last_r - first_r; ++r) {
            const Row &row = rows[r];
            const float distance = abs(row.nearest - key);
            const auto above = [&](float radius) { return row.bound.above(p, row.slope_log2, radius, distance) - row.max; };
            const bool stops = above(farther) <= -row.budget.tail;
            if (!stops && !(above(radius) <= -(row.budget.tile + row.budget.share(t, log2f)))) return false;
        }
        return true;
    }

    __device__ void run() const {
        __shared__ __align__(alignof(Row)) unsigned char row_bytes[ROWS * sizeof(Row)];
        Row *const rows = (Row *)row_bytes;
        int32_t *const list = live_tiles<ROWS>(p, batch, head_k, first_r);
        int count = 0;
        if (sees_keys()) {
            const float largest = largest_radius();
            for (int r = threadIdx.x / WARP; r <= last_r - first_r; r += WARPS) {
                const Row row = row_of(first_r + r, largest);
                if (threadIdx.x % WARP == 0) rows[r] = row;
            }
            __syncthreads();
            // One call for both sides: of two, neither would be inlined.
#pragma unroll 1
            for (int step = -1; step <= 1; step += 2) {
                if (step > 0) {
                    const int kept = last_kept - first_kept + 1;
                    for (int i = threadIdx.x; i < kept; i += THREADS) list[1 + count + i] = first_kept + i;
                    count += kept;
                }
                const int tiles = step < 0 ? first_kept - first_tile : last_tile - last_kept;
                count = add_side(rows, step < 0 ? first_kept : last_kept, step, tiles, list + 1, count);
            }
        }
        if (threadIdx.x == 0) list[0] = count;
    }
};

}  // namespace

#define LIVE_OF(NAME, T, ROWS, KEYS, THREADS)                                                                        \
    extern "C" __global__ void __launch_bounds__(THREADS) live_##NAME##_r##ROWS(                                     \
        const __grid_constant__ AttentionParams p) {                                                                 \
        using Block = Live<T, ROWS, KEYS, THREADS>;                                                                  \
        __shared__ __align__(alignof(Block)) unsigned char bytes[sizeof(Block)];                                     \
        if (threadIdx.x == 0) new (bytes) Block(p);                                                                  \
        __syncthreads();                                                                                             \
        ((const Block *)bytes)->run();                                                                               \
    }
#define LIVE(...) FOR_EACH_ELEMENT(LIVE_OF, __VA_ARGS__)
#include "kernels.def"
