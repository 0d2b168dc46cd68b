// The horizon of a block of rows of one head: which tile of keys comes next.

#pragma once

#include "horizon.cuh"
#include "row.cuh"

// What is said of a tile for one row.
//
// Block: what all threads know; `Prefill::Block` of sm80/prefill.cu says of what kind.
template <typename T, typename Block, int ROWS, int KEYS>
struct RowVerdicts {
    const AttentionParams &p;
    const Block &block;
    // Of each row: what bounds its scores, and the largest exponent so far.
    RowBound *bounds;
    float *maxima;

    // What bounds the scores of row `r` of Q.
    template <typename Tile>
    __device__ void bound_row(Tile q_tile, int r) const {
        float dot = 0, square = 0, centre_square = 0;
        for (int chunk = 0; chunk < p.head_dim / 8; ++chunk) {
            const uint4 eight = ld_shared(q_tile.at(r, chunk));
#pragma unroll
            for (int e = 0; e < 8; ++e) {
                const float x = widen(((const T *)&eight)[e]), c = block.centre[chunk * 8 + e];
                dot = fmaf(x, c, dot);
                square = fmaf(x, x, square);
                centre_square = fmaf(c, c, centre_square);
            }
        }
        // The largest radius of all tiles.
        const float key_norm = norm_above(centre_square) + block.largest_radius(p);
        const float bias = block.alibi.slope_log2 * LN_2 * (KEYS / 2);
        bounds[r] = RowBound(p, dot, norm_above(square), key_norm, bias);
    }

    // Of several rows, the first that any says.
    enum Verdict { KEEP, SKIP, STOP };

    // What becomes of the tile of a step, for row `r`.
    __device__ Verdict of_row(int step, int r) const {
        const int position = block.span.first_position + r;
        const int tile = block.tile(step), first = tile * KEYS, last = first + KEYS - 1;
        const bool before = step <= block.back();
        const Visible v = block.span.visible(block.s, position);
        // A row that sees no key here: the keys it sees may be farther.
        if (r >= ROWS || block.first_row + r > block.last_row || v.first > v.last) return STOP;
        if (v.first > last) return before ? STOP : SKIP;
        if (v.last < first) return before ? SKIP : STOP;
        const int nearest = max(position, block.s.leftpad_k), distance = before ? nearest - last : first - nearest;
        // Keys on both sides of the row.
        if (distance < 0) return KEEP;
        const float radius = block.radius(p, tile), farther = block.farther_radius(p, tile, before);
        const RowBound bound = bounds[r];
        auto above = [&](float radius) { return bound.above(p, block.alibi.slope_log2, radius, distance) - maxima[r]; };
        if (above(farther) <= -block.budget.tail) return STOP;
        const float share = block.budget.share(before ? step : step - block.back(), log2_approx);
        return above(radius) <= -(block.budget.tile + share) ? SKIP : KEEP;
    }
};

// What all threads of a block say, each for the row of its number, and how many tiles from a step on its row keeps for sure. Those
// are not judged again, so that votes are as rare as the horizon is far.
template <typename T, typename Block, int ROWS, int KEYS, int WARPS>
struct Verdicts : RowVerdicts<T, Block, ROWS, KEYS> {
    using Rows = RowVerdicts<T, Block, ROWS, KEYS>;
    using typename Rows::Verdict;
    using Rows::p, Rows::block, Rows::bounds, Rows::maxima, Rows::KEEP, Rows::STOP;

    // The tiles of steps before `settled` need no verdict any more; and how many tiles were left out.
    int &settled, &skipped;

    // As many tiles as a warp looks at in one turn.
    static constexpr int AHEAD = 32;

    // The tiles of the first two steps are computed: nothing is known of the maxima when the second is chosen. Without a horizon,
    // all are.
    __device__ void begin() const {
        if (threadIdx.x == 0) settled = block.horizon ? 2 : block.tiles, skipped = 0;
    }

    template <typename Tile>
    __device__ void bound_rows(Tile q_tile) const {
        if (threadIdx.x < ROWS) this->bound_row(q_tile, threadIdx.x);
    }

    // The index of this thread, read anew each time, so that what follows from it takes no registers in between.
    __device__ static int thread() {
        int index;
        asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
        return index;
    }

    __device__ Verdict of_row(int step) const { return Rows::of_row(step, thread()); }

    // How many tiles from that of a step on, of at most `count`, the row of this thread keeps by its maximum so far: by the
    // smallest of their radii, and by the least that a tile or a tail must weigh. To keep more than is needed is no error.
    __device__ int kept_for_sure(int step, int count) const {
        const int r = thread(), lane = r % 32, position = block.span.first_position + r;
        const bool before = step <= block.back();
        const int tile = block.tile(step), first = tile * KEYS, last = first + KEYS - 1;
        const float radius = lane < count ? block.radii[before ? tile - lane : tile + lane] : INFINITY;
        const float smallest = __uint_as_float(__reduce_min_sync(0xffffffff, __float_as_uint(radius)));
        const Visible v = block.span.visible(block.s, position);
        if (r >= ROWS || block.first_row + r > block.last_row || v.first > last || v.last < first) return 0;
        const int nearest = max(position, block.s.leftpad_k), distance = before ? nearest - last : first - nearest;
        const float share = block.budget.share(before ? step : step - block.back(), log2_approx);
        const float budget = fminf(block.budget.tail, block.budget.tile + share);
        const float spare = bounds[r].above(p, block.alibi.slope_log2, smallest, distance) - maxima[r] + budget;
        // From tile to tile, the bias takes its part. What is not a number is kept.
        const int seen = before ? tile - v.first / KEYS : v.last / KEYS - tile;
        return max((int)fminf(ceilf(spare * block.budget.tiles_a_unit), min(count, seen + 1)), 0);
    }

    // The largest of what the threads have, once all have come here.
    __device__ int largest(int mine) const {
        __shared__ int of_warp[WARPS];
        mine = __reduce_max_sync(0xffffffff, mine);
        const int index = thread();
        if (index % 32 == 0) of_warp[index / 32] = mine;
        __syncthreads();
#pragma unroll
        for (int warp = 0; warp < WARPS; ++warp) mine = max(mine, of_warp[warp]);
        return mine;
    }

    // The next step, from `step` on, whose tile some row of the block keeps. A warp has whole blocks of 16 rows.
    template <int M>
    __device__ int search(int step, const float (&largest_exponents)[M][2]) const {
        const int index = thread();
#pragma unroll
        for (int i = 0; i < 2 * M; ++i) maxima[index / 32 * 16 * M + index % 32 / 4 + 8 * i] = largest_exponents[i / 2][i % 2];
        __shared__ uint32_t kept[WARPS];
        const int from = step;
        int sure = 0;
        __syncthreads();
        while (step < block.tiles) {
            const bool before = step <= block.back();
            const int end = before ? block.back() + 1 : block.tiles, in_turn = before ? step : step - block.back();
            // Half as many tiles as there were: by then the maxima may have grown.
            sure = largest(kept_for_sure(step, min(min(max(in_turn / 2, 1), AHEAD), end - step)));
            if (sure > 0) break;
            const Verdict verdict = of_row(step);
            if (!__syncthreads_and(verdict != KEEP)) break;
            if (__syncthreads_and(verdict == STOP)) {
                step = end;
                continue;
            }
            // The next tiles at once.
            const int first = step + 1, count = min(AHEAD, end - first);
            uint32_t mine = 0;
#pragma unroll 1
            for (int i = 0; i < count; ++i) mine |= (uint32_t)(of_row(first + i) == KEEP) << i;
            mine = __reduce_or_sync(0xffffffff, mine);
            if (index % 32 == 0) kept[index / 32] = mine;
            __syncthreads();
            uint32_t any = 0;
#pragma unroll
            for (int warp = 0; warp < WARPS; ++warp) any |= kept[warp];
            step = first + (any ? __ffs(any) - 1 : count);
            if (any) break;
        }
        // By way of shared memory, so that it is known to be the same for all threads.
        __shared__ int found;
        if (index == 0) found = step, settled = step + max(sure, 1), skipped += step - from;
        __syncthreads();
        return found;
    }
};
