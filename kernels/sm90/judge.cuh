// The horizon: the warpgroup that copies judges which tile comes next, ahead of those that multiply.
//
// These leave the maxima of their rows in shared memory before they release a tile of values, and the next ones only once keys
// have arrived that were copied after that. In between the maxima stand still: what is kept does not depend on who is faster.

#pragma once

#include "common/verdicts.cuh"
#include "producer.cuh"
#include "sm80/table.cuh"

// What all threads of a block know.
template <int D, int ROWS, int KEYS>
struct JudgedBlock : Block<ROWS, KEYS> {
    // Of the tiles whose radii bounds.cu finds.
    static constexpr int WIDTH = prefill_keys(D);

    // Whether the horizon may leave out tiles, and what it compares with.
    bool horizon;
    Budget budget;
    const float *centre, *radii;

    __device__ JudgedBlock(const AttentionParams &p) : JudgedBlock(p, Block<ROWS, KEYS>::index(p)) {}

    // How far from their centre the keys of a tile are, those of a tile and of all that are farther, and those of all: at most, of
    // the tiles that bounds.cu has there.
    __device__ float radius(const AttentionParams &p, int tile) const {
        const int first = tile * KEYS / WIDTH, last = last_of(p, tile);
        float largest = 0;
#pragma unroll
        for (int i = 0; i <= (KEYS + WIDTH - 2) / WIDTH; ++i) largest = max_or_nan(largest, radii[min(first + i, last)]);
        return largest;
    }
    __device__ float farther_radius(const AttentionParams &p, int tile, bool before) const {
        return before ? radii[p.tiles + last_of(p, tile)] : radii[2 * p.tiles + tile * KEYS / WIDTH];
    }
    __device__ float largest_radius(const AttentionParams &p) const { return radii[2 * p.tiles - 1]; }

private:
    // Those with the gentlest slopes first.
    __device__ JudgedBlock(const AttentionParams &p, int index)
        : Block<ROWS, KEYS>(p, index % p.batch, ((const int32_t *)p.order)[(int64_t)(index % p.batch) * p.heads_q + index / p.batch]) {
        horizon = has_horizon(p, this->alibi) && Seen(p, this->s).enough();
        const int64_t of_keys = (int64_t)this->batch * (p.heads_q / p.group) + this->head / p.group;
        budget = Budget(p, this->alibi, p.window_right == 0 ? 1 : 2, KEYS);
        centre = (const float *)p.centres + of_keys * p.head_dim;
        radii = (const float *)p.radii + of_keys * 3 * p.tiles;
    }

    __device__ static int last_of(const AttentionParams &p, int tile) {
        return min((tile * KEYS + KEYS - 1) / WIDTH, p.tiles - 1);
    }
};

// The warpgroup that does not multiply: its first warp copies, the others judge, a row or two a thread.
template <typename T, typename Block, typename Shared>
struct Judge {
    static constexpr int ROWS = Block::ROWS, JUDGES = WARPGROUP / 32 - 1;
    using Rows = RowVerdicts<T, Block, ROWS, Block::KEYS>;

    const Shared &shared;
    Rows rows;
    // A barrier of the warpgroup; and what the rows of each warp that judges say.
    int barrier;
    uint32_t *said;

    // Tiles that are judged at once: a bit each that some row keeps it, and one more that some row may keep what is farther.
    static constexpr int AT_ONCE = 31;
    static constexpr uint32_t GO_ON = 1u << AT_ONCE;

    // The next step whose tile some row of the block keeps. `say` leaves what the rows of a warp say of so many tiles.
    template <typename Say>
    __device__ int following(int step, Say say) const {
        const Block &block = rows.block;
        ++step;
        for (int count = 1; step < block.tiles; count = AT_ONCE) {
            const int end = step <= block.back() ? block.back() + 1 : block.tiles;
            count = min(count, end - step);
            // The maxima are there, and what was said before has been read.
            barrier_sync(barrier, WARPGROUP);
            say(step, count);
            barrier_sync(barrier, WARPGROUP);
            uint32_t all = 0;
#pragma unroll
            for (int warp = 0; warp < JUDGES; ++warp) all |= said[warp];
            if (all & ~GO_ON) return step + __ffs(all) - 1;
            step = all & GO_ON ? step + count : end;
        }
        return step;
    }

    // By the warps that judge. The tiles of the first two steps are computed: nothing is known of the maxima when the second is
    // chosen.
    __device__ void run() const {
        const int first = threadIdx.x % WARPGROUP - 32;
        if (rows.block.tiles <= 2) return;
        mbarrier_wait(shared.q_full, 0);
#pragma unroll 1
        for (int r = first; r < ROWS; r += JUDGES * 32) rows.bound_row(shared.q, r);
        auto say = [&](int step, int count) {
            uint32_t mine = 0;
#pragma unroll 1
            for (int r = first; r < ROWS; r += JUDGES * 32) {
#pragma unroll 1
                for (int i = 0; i < count; ++i) {
                    read_anew();
                    const auto verdict = rows.of_row(step + i, r);
                    if (verdict == Rows::KEEP) mine |= 1u << i;
                    if (verdict != Rows::STOP) mine |= GO_ON;
                }
            }
            mine = __reduce_or_sync(0xffffffff, mine);
            if (first % 32 == 0) said[first / 32] = mine;
        };
#pragma unroll 1
        for (int step = 1; step < rows.block.tiles;) step = following(step, say);
    }

    // By the warp that copies.
    __device__ void copy(Producer<Block, Shared> producer) const {
        const Block &block = rows.block;
        producer.copy_q();
        Slot slot;
        int first_key = block.first_key(0);
        Place here = producer.box(first_key), there = producer.box(block.first_key(1));
        producer.copy_k(slot, 0, here);
        producer.copy_k(slot.next(), 1, there);
        producer.copy_v(slot, first_key, here);
#pragma unroll 1
        for (int step = 1; step < block.tiles;) {
            slot = slot.next(), first_key = block.first_key(step), here = there;
            // Once this slot is free, the maxima of all tiles before this one are there.
            producer.copy_v(slot, first_key, here);
            step = following(step, [](int, int) {});
            there = producer.box(block.first_key(step));
            producer.copy_k(slot.next(), step, there);
        }
    }
};
