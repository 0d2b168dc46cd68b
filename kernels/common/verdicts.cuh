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

// What all threads of a block say, each for the row of its number.
template <typename T, typename Block, int ROWS, int KEYS, int WARPS>
struct Verdicts : RowVerdicts<T, Block, ROWS, KEYS> {
    using Rows = RowVerdicts<T, Block, ROWS, KEYS>;
    using typename Rows::Verdict;
    using Rows::block, Rows::KEEP, Rows::STOP;

    template <typename Tile>
    __device__ void bound_rows(Tile q_tile) const {
        if (threadIdx.x < ROWS) this->bound_row(q_tile, threadIdx.x);
    }

    __device__ Verdict of_row(int step) const {
        // Read anew each time, so that what follows from it takes no registers in between.
        int r;
        asm volatile("mov.u32 %0, %%tid.x;" : "=r"(r));
        return Rows::of_row(step, r);
    }

    // The next step whose tile some row of the block keeps.
    __device__ int next(int step) const {
        __shared__ uint32_t kept[WARPS];
        ++step;
        while (step < block.tiles) {
            const Verdict verdict = of_row(step);
            if (!__syncthreads_and(verdict != KEEP)) break;
            const int end = step <= block.back() ? block.back() + 1 : block.tiles;
            if (__syncthreads_and(verdict == STOP)) {
                step = end;
                continue;
            }
            // The next 32 tiles at once.
            const int first = step + 1, count = min(32, end - first);
            uint32_t mine = 0;
#pragma unroll 1
            for (int i = 0; i < count; ++i) mine |= (uint32_t)(of_row(first + i) == KEEP) << i;
            mine = __reduce_or_sync(0xffffffff, mine);
            if (threadIdx.x % 32 == 0) kept[threadIdx.x / 32] = mine;
            __syncthreads();
            uint32_t any = 0;
#pragma unroll
            for (int warp = 0; warp < WARPS; ++warp) any |= kept[warp];
            step = first + (any ? __ffs(any) - 1 : count);
            if (any) break;
        }
        return step;
    }
};
